"""HTTP of an edge: every request becomes `RestAsked`, every `RestAnswer` a response. The node does the routing, on the raw path.

In `dev` a directory of static files is served under /demo/, to loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.effects import RestAnswer
from edge.events import Event, RestAsked, RestGone
from relay.model.limits import EdgeLimits

_GRACE_S = 5.0
"""Beyond the node's own time limits: by then it has answered."""
BODY_WAIT_S = 10.0
"""How long a request body may take to arrive."""


class Http:
    """Requests in progress, by the number that the node knows them by."""

    __slots__ = ("_calls", "_last", "_limits", "_post", "_tls")

    def __init__(self, limits: EdgeLimits, post: Callable[[Event], None], *, tls: bool) -> None:
        self._limits = limits
        self._post = post
        self._tls = tls
        self._calls: dict[int, asyncio.Future[RestAnswer]] = {}
        self._last = 0

    def answer(self, effect: RestAnswer) -> None:
        waiting = self._calls.pop(effect.call, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                body = await self._body(receive)
        except TimeoutError:
            await Response(status_code=408)(scope, receive, send)
            return
        if body is None:
            return
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
            await Response(status_code=503)(scope, receive, send)
            return
        response = Response(answer.body, answer.status)
        response.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]  # `link` comes twice
        if answer.status == 204:
            del response.headers["content-length"]
        if scope["method"] == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """At most one byte more than allowed, which is enough for the node to refuse it. None: the caller went away."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            chunks.append(chunk)
            size += len(chunk)
            if size > self._limits.max_frame_bytes:
                return b"".join(chunks)[: self._limits.max_frame_bytes + 1]
            if not message.get("more_body", False):
                return b"".join(chunks)


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


def application(http: Http, demo: Path | None) -> Starlette:
    """The ASGI application of the listener."""
    routes: list[BaseRoute] = []
    if demo is not None:
        routes.append(Mount("/demo", app=LoopbackOnly(StaticFiles(directory=demo, html=True))))
    routes.append(Mount("/", app=http))
    return Starlette(routes=routes)
