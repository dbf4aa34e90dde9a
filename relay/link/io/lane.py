"""One lane on a WebSocket: bytes in, bytes out, one timer. The rules are those of `relay.link.session`."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from relay.link.codec import Fault, LinkProtocolError
from relay.link.frames import Frame, Lane
from relay.link.session import Ended, LaneSession, LinkEnded, lane_of

CHECK_S = 0.25
"""How often a lane is asked whether its peer is silent or slow."""
GOODBYE_S = 1.0
"""How long a close frame may take to leave before the socket is aborted."""
PATH = "/link"
"""The only path there is on the link's port."""

WORDS = frozenset([*Fault, *Ended])
"""What a close frame may say. Anything else from a peer is reported as `closed`: the word becomes a label on a metric."""

quiet = logging.getLogger("relay.link.picows")
"""picows logs every connection, and what peers sent when they break its rules; ends are logged here, once, by their word."""
quiet.setLevel(logging.CRITICAL)


class Owner(Protocol):
    """Who is told about a lane: the dialer or the link server."""

    def lane_received(self, socket: LaneSocket, frames: list[Frame]) -> None: ...

    def lane_ended(self, socket: LaneSocket, why: str) -> None:
        """Exactly once for each lane, also for one that this side closed. The lane is already unusable."""


class LaneSocket(WSListener):
    """The WebSocket of one lane. Owns its timer; ends by `close`, or when the socket does."""

    def __init__(self, session: LaneSession, owner: Owner) -> None:
        self.session = session
        self.ended: str | None = None
        """Why the lane ended; None while it lives."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: WSTransport | None = None
        self._full = False
        self._flush_due = False
        self._timer = self._loop.call_later(CHECK_S, self._check)

    # --- out ---------------------------------------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Queue a frame; all frames of one turn of the loop leave in one message."""
        if self.ended is not None:
            return
        try:
            self.session.send(frame, self._loop.time())
        except LinkEnded as end:
            self.close(end.why)
            return
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def write(self, message: bytes) -> None:
        """A message that goes before all queued frames: the hello or the welcome."""
        if self._transport is not None and self.ended is None:
            self._transport.send(WSMsgType.BINARY, message)

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if transport is None:
            return
        while self.ended is None and not self._full and (message := self.session.next_batch()) is not None:
            transport.send(WSMsgType.BINARY, message)

    def close(self, why: str) -> None:
        """Say why, and end. Idempotent. The owner is told at once; the socket has a moment to send what it holds."""
        self._end(why)

    def _end(self, why: str, *, answer: bool = True) -> None:
        if self.ended is not None:
            return
        self.ended = why
        self._timer.cancel()
        transport = self._transport
        if transport is not None and not transport.is_disconnected:
            if answer:
                transport.send_close(WSCloseCode.OK if why == Ended.STOPPING else WSCloseCode.POLICY_VIOLATION, why.encode())
            transport.disconnect()
            # A peer that reads nothing would keep the socket open for as long as the kernel retries.
            self._loop.call_later(GOODBYE_S, transport.disconnect, False)
        self._owner.lane_ended(self, why)

    # --- in ----------------------------------------------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=524_288)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self.ended is not None:
            return
        try:
            if frame.msg_type == WSMsgType.BINARY and frame.fin:
                # Decoding copies: picows reuses the buffer behind the view once this returns.
                frames = self.session.receive(frame.get_payload_as_memoryview(), self._loop.time())
                if frames:
                    self._owner.lane_received(self, frames)
                if not self._flush_due:
                    self._flush()
            elif frame.msg_type == WSMsgType.PONG:
                self.session.heard(self._loop.time())
            elif frame.msg_type == WSMsgType.CLOSE:
                word = (frame.get_close_message() or b"").decode("ascii", "replace")
                self._end(word if word in WORDS else Ended.CLOSED, answer=False)
            else:
                self._end(Fault.NOT_BINARY)
        except LinkProtocolError as error:
            self._end(error.fault)
        except LinkEnded as end:
            self._end(end.why)
        except Exception as error:
            # A defect of this side, met by what this peer sent: it costs this link and nothing else.
            self._loop.call_exception_handler({"message": "handling frames of the link failed", "exception": error})
            self._end(Ended.INTERNAL)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        handshake = transport.close_handshake
        code = handshake.sent.code if handshake is not None and handshake.sent is not None else None
        if code == WSCloseCode.MESSAGE_TOO_BIG:  # picows refused it by its length, before reading it
            self._end(Fault.OVERSIZE, answer=False)
        elif code == WSCloseCode.PROTOCOL_ERROR:
            self._end(Fault.MALFORMED, answer=False)
        else:
            self._end(Ended.CLOSED, answer=False)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    def _check(self) -> None:
        self._timer = self._loop.call_later(CHECK_S, self._check)
        try:
            ping = self.session.check(self._loop.time())
        except LinkEnded as end:
            self.close(end.why)
            return
        if ping and self._transport is not None:
            self._transport.send_ping()


class LinkSockets:
    """Both lanes of a link that is up, under the number by which the node knows it. Numbers are never used twice."""

    __slots__ = ("bulk", "live", "number")

    def __init__(self, number: int, live: LaneSocket, bulk: LaneSocket) -> None:
        self.number = number
        self.live = live
        self.bulk = bulk

    def send(self, frame: Frame, lane: Lane | None) -> None:
        (self.live if lane_of(frame, lane) is Lane.LIVE else self.bulk).send(frame)

    def close(self, why: str) -> None:
        self.live.close(why)
        self.bulk.close(why)
