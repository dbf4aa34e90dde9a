"""HTTP of an edge: every request becomes `RestAsked`, every `RestAnswer` a response. The node does the routing, on the raw path.

In `dev` a directory of static files is served under /demo/, to loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from pathlib import Path

from starlette.responses import Response
from starlette.routing import Mount, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.effects import RestAnswer
from edge.events import Event, RestAsked, RestGone
from edge.rest import CORS, JSON, error_answer
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits

_GRACE_S = 5.0
"""Beyond the node's own time limits: by then it has answered."""


class Http:
    """Requests in progress, by the number that the node knows them by."""

    __slots__ = ("_calls", "_held", "_last", "_limits", "_post", "_tls")

    def __init__(self, limits: EdgeLimits, post: Callable[[Event], None], *, tls: bool) -> None:
        self._limits = limits
        self._post = post
        self._tls = tls
        self._calls: dict[int, asyncio.Future[RestAnswer]] = {}
        self._held = 0
        """Bytes of bodies of requests in progress."""
        self._last = 0

    def answer(self, effect: RestAnswer) -> None:
        waiting = self._calls.pop(effect.call, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.rest_body_wait_s):
                    if not await self._read(receive, body):
                        return
            except TimeoutError:
                if len(body) > self._limits.max_frame_bytes:
                    await self._ask(bytes(body), scope, receive, send)
                    return
                await _refusal(ErrorInfo.of(40000, "the request body did not arrive in time", 408))(scope, receive, send)
            except _NoRoom:
                await _refusal(ErrorInfo.of(50004, "this server is busy; try again"))(scope, receive, send)
            else:
                await self._ask(bytes(body), scope, receive, send)
        finally:
            self._held -= len(body)

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Appends to `body`, at most one byte more than allowed, which is enough for the node to refuse it. False: the caller went away.

        What is more is read and dropped: Hypercorn gives a whole HTTP/2 connection up over a body that goes on after its answer.
        Raises: _NoRoom.
        """
        most = self._limits.max_frame_bytes + 1
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
            raw_path=scope.get("raw_path", scope["path"].encode()).decode("latin-1"),
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


class _NoRoom(Exception):  # noqa: N818 - a bound is reached
    """Too many bytes of bodies are held."""


def _refusal(error: ErrorInfo) -> Response:
    """What this shell refuses by itself, in the form of the node's refusals."""
    body, extra = error_answer(error, msgpack=False)
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
