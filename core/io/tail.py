"""What happens on a channel, shown live to operators: `GET /v1/tail?app=…&channel=…` on the admin listener, one JSON object a line.

It reads the tail as the node does, duplicates left out, and stops nothing: a reader that is too slow misses events and is told how many.
Payloads go to whoever asks here and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core.events import Event, Watching
from core.lifecycle import decode_body as decode_lifecycle
from core.log import LogRecord
from relay.model.channel import log_key, parse_channel
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from relay.model.message import Kind, PresenceAction, RecordBody
from relay.model.occupancy import metrics
from relay.model.serials import Serial

Page = Callable[[Request], Awaitable[Response]]

BEAT_S = 5.0
"""An empty line after so much silence, so that both ends notice when the other is gone."""
_ACTIONS: dict[int, str] = {action.value: action.name.lower() for action in PresenceAction}

_encode = msgspec.json.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(RecordBody).decode


class _Reader:
    """One operator on one channel."""

    __slots__ = ("left_out", "lines", "more", "over")

    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self.left_out = 0
        self.more = asyncio.Event()
        self.over = False

    def put(self, line: bytes, most: int) -> None:
        if len(self.lines) >= most:
            self.left_out += 1
        else:
            self.lines.append(line)
        self.more.set()

    def take(self) -> bytes:
        """Everything that waits."""
        taken = b"".join(self.lines)
        self.lines.clear()
        if self.left_out:
            taken += _line(event="left_out", count=self.left_out)
            self.left_out = 0
        self.more.clear()
        return taken


class Tails:
    """All readers of one core. `post` gives an event to the node; None while there is no node yet."""

    def __init__(self, node: str, limits: CoreLimits) -> None:
        self._node = node
        self._limits = limits
        self._readers: dict[bytes, dict[_Reader, None]] = {}
        self._closed = False
        self.post: Callable[[Event], None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._readers.values()))

    def route(self, guard: Callable[[Page], Page] = lambda page: page, still: Callable[[Request], bool] = lambda _: True) -> Route:
        """`still`: whether whom `guard` has let in may go on watching."""

        async def tail(request: Request) -> Response:
            return self._tail(request, lambda: still(request))

        return Route("/v1/tail", guard(tail))

    # --- what the node shows -----------------------------------------------------------------------------------------------------------

    def record(self, record: LogRecord) -> None:
        readers = self._readers.get(record.key)
        if readers:
            for line in lines_of(record):
                self._put(readers, line)

    def occupancy(self, key: bytes, counts: tuple[int, ...]) -> None:
        readers = self._readers.get(key)
        if readers:
            self._put(readers, _line(event="occupancy", metrics=metrics(counts)))

    def _put(self, readers: dict[_Reader, None], line: bytes) -> None:
        for reader in readers:
            reader.put(line, self._limits.tail_lines)

    # --- requests ----------------------------------------------------------------------------------------------------------------------

    def _tail(self, request: Request, still: Callable[[], bool]) -> Response:
        app, channel = request.query_params.get("app", ""), request.query_params.get("channel", "")
        if not app or ":" in app:
            return _refusal(400, "app: name one")
        try:
            name = parse_channel(channel)
        except RelayError as error:
            return _refusal(400, error.info.message)
        if self.post is None or self._closed:
            return _refusal(503, "the core is starting or stopping")
        if len(self) >= self._limits.tail_readers:
            return _refusal(503, "too many readers on this core")
        return StreamingResponse(self._lines(log_key(app, name.name), app, name.name, still), media_type="application/x-ndjson")

    async def _lines(self, key: bytes, app: str, channel: str, still: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Until the reader goes, may not watch any more, or the core stops."""
        reader = _Reader()
        post = self.post
        assert post is not None, "it has just been there"
        readers = self._readers.setdefault(key, {})
        readers[reader] = None
        try:
            yield _line(event="watching", app=app, channel=channel, core=self._node)
            post(Watching(key, on=True))
            while not self._closed:
                beat = b""
                try:
                    async with asyncio.timeout(BEAT_S):
                        await reader.more.wait()
                except TimeoutError:
                    beat = b"\n"
                if not still():
                    break
                yield beat + reader.take()
        finally:
            del readers[reader]
            if not readers and self._readers.get(key) is readers:
                del self._readers[key]
                if not self._closed:
                    post(Watching(key, on=False))

    async def close(self) -> None:
        """Every reader's answer ends."""
        self._closed = True
        for readers in self._readers.values():
            for reader in readers:
                reader.more.set()


def lines_of(record: LogRecord) -> list[bytes]:
    """One line for each message or presence event of a record, or for what became of the channel. Empty for records that are not shown."""
    common: dict[str, Any] = {"at": record.timestamp, "serial": Serial(record.stream, record.partition, record.offset).text}
    if record.kind == Kind.LIFECYCLE:
        event = decode_lifecycle(record.value)
        return [] if event is None else [_line(event="lifecycle", **common, name=event.name, number=event.n)]
    if record.kind not in (Kind.MESSAGE, Kind.PRESENCE):
        return []
    try:
        body = _decode_body(record.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [_line(event="unreadable", **common)]
    lines = []
    for index, message in enumerate(body.messages):
        lines.append(
            _line(
                event="message",
                **common,
                id=message.id or f"{body.id}:{index}",
                connectionId=message.connection_id or body.connection_id,
                clientId=message.client_id,
                name=message.name,
                **_payload(message.data, message.encoding),
                extras=message.extras,
                ephemeral=body.ephemeral or None,
            )
        )
    for index, item in enumerate(body.presence):
        lines.append(
            _line(
                event="presence",
                **common,
                action=_ACTIONS.get(item.action, item.action),
                id=item.id or f"{body.id}:{index}",
                connectionId=body.connection_id,
                clientId=item.client_id,
                **_payload(item.data, item.encoding),
                extras=item.extras,
            )
        )
    return lines


def _payload(data: Any, encoding: str | None) -> dict[str, Any]:
    """As JSON clients get it."""
    if isinstance(data, bytes):
        return {"data": base64.b64encode(data).decode(), "encoding": f"{encoding}/base64" if encoding else "base64"}
    return {"data": data, "encoding": encoding or None}


def _line(**fields: Any) -> bytes:
    return _encode({name: value for name, value in fields.items() if value is not None}) + b"\n"


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)
