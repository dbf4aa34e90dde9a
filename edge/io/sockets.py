"""Clients' WebSockets: picows in, prepared frames out.

All frames that one turn of the event loop has for a client leave in one write. There is no task, no timer and no closure per client. While
a client's socket takes no more, its frames wait in an `Outbox`; a client that stays behind is cut off, alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from edge.ably.websocket import pong_frame
from edge.effects import Broadcast, CloseClient, TellWhenDrained, Write
from edge.events import ClientFrame, ClientLost, ClientOpened, ClientPong, Drained, Event
from edge.outbox import Outbox
from relay.model.limits import EdgeLimits
from relay.runtime.head import Request
from relay.runtime.listener import Refusal, TransportInfo

CLOSE_WAIT_S = 2.0
"""How long a client may take to answer our close frame before its socket is closed anyway."""
SWEEP_S = 0.5
"""How often slow and closing clients are looked at, while there are any."""

_HEADERS = ("authorization", "ably-agent")


class ClientSocket(WSListener):
    """One client's socket. Made before the upgrade is answered; `opening` is dropped once it is."""

    __slots__ = ("asked", "client", "close_by", "fragments", "opening", "outbox", "pending", "raw", "sockets", "transport", "why")

    def __init__(self, sockets: Sockets, opening: ClientOpened) -> None:
        self.sockets = sockets
        self.client = opening.client
        self.opening: ClientOpened | None = opening
        self.transport: WSTransport | None = None
        self.raw: Any = None
        self.pending: bytes | list[bytes] | None = None
        """What this turn of the loop has for it so far."""
        self.outbox: Outbox | None = None
        self.fragments: bytearray | None = None
        self.close_by: float | None = None
        """Our close frame is out: when to stop waiting for the client's."""
        self.asked = False
        """The node wants to know when everything has been taken."""
        self.why = "lost"

    # --- in --------------------------------------------------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.raw = transport.underlying_transport
        opening, self.opening = self.opening, None
        assert opening is not None, "connected once"
        self.sockets.open[self.client] = self
        self.sockets.post(opening)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            if self.close_by is not None:
                return
            # Copied now: picows reuses the buffer behind `frame` once this returns.
            data = frame.get_payload_as_bytes()
            if frame.fin:
                self.sockets.post(ClientFrame(self.client, data))
            else:
                self.fragments = bytearray(data)
        elif kind is WSMsgType.CONTINUATION:
            self._continued(frame)
        elif kind is WSMsgType.CLOSE:
            if self.close_by is None:
                transport.send_close(WSCloseCode.OK)
                self.why = "client closed"
            transport.disconnect()
        else:
            if kind is WSMsgType.PING and self.close_by is None:
                # With the other frames, so that a client which pings and never reads ends at the bound of its outbox.
                self.push(pong_frame(frame.get_payload_as_bytes()))
                self.sockets.flush_soon()
            self.sockets.post(ClientPong(self.client))

    def _continued(self, frame: WSFrame) -> None:
        if self.fragments is None or self.close_by is not None:
            return
        self.fragments += frame.get_payload_as_bytes()
        # One byte more than allowed is enough for the node to refuse it.
        too_much = len(self.fragments) > self.sockets.limits.max_frame_bytes
        if frame.fin or too_much:
            whole, self.fragments = bytes(self.fragments), None
            self.sockets.post(ClientFrame(self.client, whole))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.sockets.forget(self):
            self.pending = self.outbox = self.raw = None
            self.sockets.post(ClientLost(self.client, self.why))

    # --- out -------------------------------------------------------------------------------------------------------------------------

    def push(self, frame: bytes) -> None:
        """Write at the end of this turn of the loop."""
        pending = self.pending
        if pending is None:
            self.pending = frame
            self.sockets.dirty.append(self)
        elif type(pending) is list:
            pending.append(frame)
        else:
            self.pending = [pending, frame]  # type: ignore[list-item]

    def flush(self) -> None:
        pending = self.pending
        if pending is None:
            return
        self.pending = None
        data = b"".join(pending) if type(pending) is list else pending
        if self.outbox is None:
            self.raw.write(data)
        else:
            self.outbox.push(data)  # type: ignore[arg-type]
            if self.outbox.size > self.sockets.limits.outbox_bytes:
                self.cut("slow")

    def pause_writing(self) -> None:
        """The socket's buffer is full: what follows waits here."""
        if self.outbox is None:
            self.outbox = Outbox(self.sockets.loop.time())
            self.sockets.slow.add(self)
            self.sockets.sweep_later()

    def resume_writing(self) -> None:
        outbox, self.outbox = self.outbox, None
        if outbox is None:
            return
        self.sockets.slow.discard(self)
        waiting = outbox.take(self.sockets.loop.time())
        if waiting and self.raw is not None:
            self.raw.write(waiting)  # may pause at once again, with a new outbox
        if self.asked:
            self.sockets.awaited.append(self)
            self.sockets.flush_soon()
        if self.close_by is not None and self.outbox is None:
            self._send_close(WSCloseCode.OK)

    def close(self, code: int) -> None:
        """Everything written so far, then a close frame; the socket ends with the client's answer, or without it after a while."""
        if self.close_by is not None or self.transport is None:
            return
        self.flush()
        self.close_by = self.sockets.loop.time() + CLOSE_WAIT_S
        self.sockets.closing.add(self)
        self.sockets.sweep_later()
        if self.outbox is None:
            self._send_close(WSCloseCode(code))

    def _send_close(self, code: WSCloseCode) -> None:
        if self.transport is not None and not self.transport.is_close_frame_sent:
            self.transport.send_close(code)

    def cut(self, why: str) -> None:
        """At once, whatever is unread."""
        self.why = why
        if self.transport is not None:
            self.transport.disconnect(False)


class Sockets:
    """All clients of this process."""

    __slots__ = ("_empty", "_flushing", "_last", "_sweep", "awaited", "closing", "dirty", "limits", "loop", "open", "post", "slow")

    def __init__(self, limits: EdgeLimits, post: Callable[[Event], None]) -> None:
        self.limits = limits
        self.post = post
        self.loop = asyncio.get_running_loop()
        self.open: dict[int, ClientSocket] = {}
        self.dirty: list[ClientSocket] = []
        self.slow: set[ClientSocket] = set()
        self.closing: set[ClientSocket] = set()
        self.awaited: list[ClientSocket] = []
        """Those who may have taken everything, and of whom the node wants to know."""
        self._empty: asyncio.Event | None = None
        self._last = 0
        self._flushing = False
        self._sweep: asyncio.TimerHandle | None = None

    def make_listener(self, request: Request, info: TransportInfo) -> ClientSocket | Refusal:
        """For `relay.runtime.listener.Listener`."""
        if request.path not in ("/", ""):
            return Refusal(404, "WebSockets are served at /\n")
        self._last += 1
        headers = {name: value for name in _HEADERS if (value := request.headers.get(name)) is not None}
        return ClientSocket(self, ClientOpened(self._last, request.query, headers, info.peername[0], info.tls))

    def write(self, effect: Write) -> None:
        socket = self.open.get(effect.client)
        if socket is not None:
            socket.push(effect.frame)
            self.flush_soon()

    def broadcast(self, effect: Broadcast) -> None:
        """The hot path: a dictionary look-up, a comparison and two assignments for each subscriber."""
        sockets, dirty, frame, skip = self.open, self.dirty, effect.frame, effect.skip
        for client in effect.clients:
            socket = sockets.get(client)
            if socket is None or client == skip:
                continue
            if socket.pending is None:
                socket.pending = frame
                dirty.append(socket)
            else:
                socket.push(frame)
        self.flush_soon()

    def tell_when_drained(self, effect: TellWhenDrained) -> None:
        socket = self.open.get(effect.client)
        if socket is not None:
            socket.asked = True
            self.awaited.append(socket)
            self.flush_soon()

    def close(self, effect: CloseClient) -> None:
        socket = self.open.get(effect.client)
        if socket is not None:
            socket.why = effect.why
            socket.close(effect.code)

    def flush_soon(self) -> None:
        if not self._flushing and (self.dirty or self.awaited):
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self.dirty = self.dirty, []
        for socket in dirty:
            # `ClientSocket.flush`, without a call for the usual case.
            pending = socket.pending
            if type(pending) is bytes and socket.outbox is None:
                socket.pending = None
                socket.raw.write(pending)
            else:
                socket.flush()
        if self.awaited:
            awaited, self.awaited = self.awaited, []
            for socket in awaited:
                if socket.asked and socket.outbox is None and socket.raw is not None:
                    socket.asked = False
                    self.post(Drained(socket.client))

    # --- slow and closing ------------------------------------------------------------------------------------------------------------

    def sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        now = self.loop.time()
        for socket in [each for each in self.slow if each.outbox is not None and each.outbox.overdue(self.limits, now)]:
            socket.cut("slow")
        for socket in [each for each in self.closing if each.close_by is not None and each.close_by <= now]:
            socket.cut(socket.why)
        if self.slow or self.closing:
            self.sweep_later()

    async def emptied(self) -> None:
        """Until no client is left."""
        if self.open:
            self._empty = asyncio.Event()
            await self._empty.wait()

    def forget(self, socket: ClientSocket) -> bool:
        """The socket is gone. False if it was forgotten before, or never opened."""
        if self.open.pop(socket.client, None) is None:
            return False
        self.slow.discard(socket)
        self.closing.discard(socket)
        if self._empty is not None and not self.open:
            self._empty.set()
        return True

    def stop(self) -> None:
        """No timers after this; sockets are the listener's to close."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
