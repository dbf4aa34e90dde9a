"""HTTP of an edge: every request becomes `RestAsked`, every `RestAnswer` a response. The node does the routing, on the raw path.

In `dev` a directory of static files is served under /demo/, to loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from starlette.responses import Response
from starlette.routing import Mount, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.effects import RestAnswer
from edge.events import Event, RestAsked, RestGone
from edge.limits import group_of
from edge.rest import CORS, JSON, body_limit, error_answer
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits

_GRACE_S = 5.0
"""Beyond the node's own time limits: by then it has answered."""


class Http:
    """Requests in progress, by the number that the node knows them by."""

    __slots__ = ("_calls", "_held", "_large", "_last", "_limits", "_post", "_tls")

    def __init__(self, limits: EdgeLimits, post: Callable[[Event], None], *, tls: bool) -> None:
        self._limits = limits
        self._post = post
        self._tls = tls
        self._calls: dict[int, asyncio.Future[RestAnswer]] = {}
        self._held = 0
        """Bytes of bodies of requests in progress."""
        self._large = LargeBodies(limits)
        self._last = 0

    def answer(self, effect: RestAnswer) -> None:
        waiting = self._calls.pop(effect.call, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = bytearray()
        most = body_limit(scope["method"], _raw_path(scope), scope["query_string"].decode("latin-1"), self._limits)
        expected = _expected(scope, most) if most > self._limits.max_frame_bytes else 0
        client = scope.get("client")
        address = group_of(client[0]) if client else ""
        if expected > self._limits.max_frame_bytes:
            if not await self._large.enter(address, expected):
                await _refusal(ErrorInfo.of(50004, "this server is busy; try again"))(scope, receive, send)
                return
        else:
            most, expected = min(most, self._limits.max_frame_bytes), 0
        try:
            try:
                async with asyncio.timeout(self._limits.rest_body_wait_s):
                    if not await self._read(receive, body, most + 1):
                        return
            except TimeoutError:
                if len(body) > most:
                    await self._ask(bytes(body), scope, receive, send)
                    return
                await _refusal(ErrorInfo.of(40000, "the request body did not arrive in time", 408))(scope, receive, send)
            except _NoRoom:
                await _refusal(ErrorInfo.of(50004, "this server is busy; try again"))(scope, receive, send)
            else:
                await self._ask(bytes(body), scope, receive, send)
        finally:
            self._held -= len(body)
            if expected:
                self._large.leave(address, expected)

    async def _read(self, receive: Receive, body: bytearray, most: int) -> bool:
        """Appends to `body`, `most` bytes at most: one more than allowed, which is enough for the node to refuse it. False: the caller went
        away.

        What is more is read and dropped: Hypercorn gives a whole HTTP/2 connection up over a body that goes on after its answer.
        Raises: _NoRoom.
        """
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")[: most - len(body)]
            body += chunk
            self._held += len(chunk)
            if self._held > self._limits.rest_body_bytes:
                raise _NoRoom
            if not message.get("more_body", False):
                return True

    async def _ask(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        self._last += 1
        call = self._last
        waiting = self._calls[call] = asyncio.get_running_loop().create_future()
        client = scope.get("client")
        event = RestAsked(
            call=call,
            method=scope["method"],
            raw_path=_raw_path(scope),
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            body=body,
            tls=self._tls,
            address=client[0] if client else "",
        )
        answer: RestAnswer | None = None
        try:
            self._post(event)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.publish_wait_s + _GRACE_S):
                    answer = await waiting
        finally:
            if answer is None:
                self._calls.pop(call, None)
                self._post(RestGone(call))
        if answer is None:
            await _refusal(ErrorInfo.of(50003, "the request could not be answered in time", 503))(scope, receive, send)
            return
        response = Response(answer.body, answer.status)
        response.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]  # `link` comes twice
        if answer.status == 204:
            del response.headers["content-length"]
        if scope["method"] == "HEAD":
            response.body = b""
        # A caller that does not read its answer must not keep its connection for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.outbox_age_s):
                await response(scope, receive, send)


def _raw_path(scope: Scope) -> str:
    path: bytes = scope.get("raw_path", scope["path"].encode())
    return path.decode("latin-1")


def _expected(scope: Scope, most: int) -> int:
    """How long the body may become, as far as its head says, and no longer than what is read of it."""
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit() and len(value) < 16:
            return min(int(value), most)
    return most


class LargeBodies:
    """Room for bodies that are longer than others may be. Who finds none waits, first come, first served; an address that has its half
    already stands aside for others."""

    __slots__ = ("_addresses", "_held", "_limits", "_waiting")

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._held = 0
        self._addresses: Counter[str] = Counter()
        """Bytes, by address."""
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    async def enter(self, address: str, size: int) -> bool:
        """False: there was no room in time. Otherwise to be followed by `leave`."""
        if len(self._waiting) >= self._limits.rest_calls:
            return False
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (address, size, waiting)
        self._waiting.append(entry)
        self._admit()
        try:
            async with asyncio.timeout(self._limits.large_body_wait_s):
                await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled():  # room was found at the last moment
                self.leave(address, size)
            elif entry in self._waiting:
                self._waiting.remove(entry)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def leave(self, address: str, size: int) -> None:
        self._held -= size
        self._addresses[address] -= size
        if self._addresses[address] <= 0:
            del self._addresses[address]
        self._admit()

    def _admit(self) -> None:
        most = self._limits.large_bodies_bytes
        for entry in list(self._waiting):
            address, size, waiting = entry
            held = self._addresses.get(address, 0)
            if held and held + size > most // 2:
                continue
            if self._held + size > most:
                return
            self._waiting.remove(entry)
            if not waiting.done():
                self._held += size
                self._addresses[address] += size
                waiting.set_result(None)


class _NoRoom(Exception):  # noqa: N818 - a bound is reached
    """Too many bytes of bodies are held."""


def _refusal(error: ErrorInfo) -> Response:
    """What this shell refuses by itself, in the form of the node's refusals."""
    body, extra = error_answer(error, {}, msgpack=False)
    return Response(body, error.status_code, headers=dict((("content-type", JSON), *CORS, *extra)))


class LoopbackOnly:
    """Answers 404 to everyone but this machine."""

    __slots__ = ("_app",)

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is None or not ipaddress.ip_address(client[0]).is_loopback:
            await Response("not found\n", 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def application(http: Http, demo: Path | None) -> ASGIApp:
    """The ASGI application of the listener. Whatever is not the demo's goes to the node, in any form of request target."""
    if demo is None:
        return http
    return Router([Mount("/demo", app=LoopbackOnly(StaticFiles(directory=demo, html=True)))], default=http)
