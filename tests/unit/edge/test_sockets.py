"""The shell around clients' sockets, over a transport made of paper: one write per turn, slow clients, the close handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from picows import WSCloseCode, WSMsgType

from edge.effects import Broadcast, CloseClient, TellWhenDrained, Write
from edge.events import ClientFrame, ClientLost, ClientOpened, ClientPong, Drained, Event
from edge.io.sockets import CLOSE_WAIT_S, ClientSocket, Sockets
from edge.limits import group_of
from edge.outbox import Outbox
from relay.model.limits import EdgeLimits
from relay.runtime.head import Headers, Request
from relay.runtime.listener import Refusal, TransportInfo

Script = Callable[["Wire"], Coroutine[Any, Any, None]]


class Transport:
    """As much of picows' transport, and of the one beneath it, as the shell uses."""

    def __init__(self, wire: Wire) -> None:
        self.underlying_transport = self
        self.is_close_frame_sent = False
        self.closed: str | None = None
        self.written: list[bytes] = []
        self.codes: list[WSCloseCode] = []
        self._wire = wire
        self.socket: ClientSocket | None = None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def send_close(self, code: WSCloseCode = WSCloseCode.NO_INFO) -> None:
        self.is_close_frame_sent = True
        self.codes.append(code)

    def disconnect(self, graceful: bool = True) -> None:
        if self.closed is None:
            self.closed = "closed" if graceful else "aborted"
            assert self.socket is not None
            self.socket.on_ws_disconnected(self)  # type: ignore[arg-type]


class Wire:
    def __init__(self, limits: EdgeLimits | None = None) -> None:
        self.events: list[Event] = []
        self.sockets = Sockets(limits or EdgeLimits(), self.events.append)

    def connect(self, path: str = "/") -> tuple[ClientSocket, Transport]:
        request = Request("GET", f"{path}?key=a.b:c&v=6", Headers([("authorization", "Basic x"), ("cookie", "y")]))
        socket = self.sockets.make_listener(request, TransportInfo(("192.0.2.7", 5), None))
        assert isinstance(socket, ClientSocket)
        transport = Transport(self)
        transport.socket = socket
        socket.on_ws_connected(transport)  # type: ignore[arg-type]
        return socket, transport

    @staticmethod
    def frame(kind: WSMsgType, data: bytes = b"", *, fin: bool = True) -> Any:
        return SimpleNamespace(msg_type=kind, fin=fin, get_payload_as_bytes=lambda: data)


@pytest.fixture
def play() -> Callable[[Script], None]:
    """Runs a script on a loop of its own."""

    def run(script: Script, limits: EdgeLimits | None = None) -> None:
        async def main() -> None:
            wire = Wire(limits)
            try:
                await script(wire)
            finally:
                wire.sockets.stop()

        asyncio.run(main())

    return run


def test_a_client_is_opened_with_what_the_node_reads_and_nothing_else(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, _ = wire.connect()
        assert wire.events == [ClientOpened(1, "key=a.b:c&v=6", {"authorization": "Basic x"}, "192.0.2.7", False)]
        assert socket.opening is None, "the query holds a credential: it is not kept"

    play(script)


def test_websockets_are_served_at_the_root_only(play: Any) -> None:
    async def script(wire: Wire) -> None:
        refused = wire.sockets.make_listener(Request("GET", "/other", Headers([])), TransportInfo(("::1", 5), None))
        assert isinstance(refused, Refusal)
        assert refused.status == 404

    play(script)


def test_all_frames_of_a_turn_leave_in_one_write(play: Any) -> None:
    async def script(wire: Wire) -> None:
        one, first = wire.connect()
        two, second = wire.connect()
        wire.sockets.write(Write(one.client, b"a"))
        wire.sockets.broadcast(Broadcast([one.client, two.client], b"b"))
        wire.sockets.broadcast(Broadcast([one.client, two.client], b"c", skip=two.client))
        wire.sockets.broadcast(Broadcast([99], b"nobody"))
        assert first.written == []
        await asyncio.sleep(0)
        assert (first.written, second.written) == ([b"abc"], [b"b"])

    play(script)


def test_fragments_are_put_together_within_the_limit(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        wire.events.clear()
        for kind, data, fin in (
            (WSMsgType.TEXT, b"ab", False),
            (WSMsgType.CONTINUATION, b"cd", False),
            (WSMsgType.CONTINUATION, b"e", True),
        ):
            socket.on_ws_frame(transport, Wire.frame(kind, data, fin=fin))  # type: ignore[arg-type]
        assert wire.events == [ClientFrame(1, b"abcde")]
        wire.events.clear()
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.BINARY, b"x" * 8, fin=False))  # type: ignore[arg-type]
        for _ in range(5):
            socket.on_ws_frame(transport, Wire.frame(WSMsgType.CONTINUATION, b"x" * 8, fin=False))  # type: ignore[arg-type]
        (event,) = wire.events
        assert isinstance(event, ClientFrame)
        assert 20 < len(event.data) <= 28, "enough for the node to refuse it"

    play(script, EdgeLimits(max_frame_bytes=20))


def test_a_pong_is_a_sign_of_life(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.PONG))  # type: ignore[arg-type]
        assert wire.events[-1] == ClientPong(1)

    play(script)


def test_a_ping_is_answered_among_the_other_frames_and_is_a_sign_of_life(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        wire.sockets.write(Write(1, b"a"))
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.PING, b"hi"))  # type: ignore[arg-type]
        assert wire.events[-1] == ClientPong(1)
        await asyncio.sleep(0)
        assert transport.written == [b"a\x8a\x02hi"]

    play(script)


def test_a_client_that_pings_and_never_reads_ends_at_the_bound_of_its_outbox(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        socket.pause_writing()
        for _ in range(5):
            socket.on_ws_frame(transport, Wire.frame(WSMsgType.PING, b"x" * 50))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        assert (transport.written, transport.closed) == ([], "aborted")

    play(script, EdgeLimits(outbox_bytes=100))


def test_while_the_socket_takes_no_more_frames_wait_and_leave_in_order(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        socket.pause_writing()
        for piece in (b"a", b"b", b"c"):
            wire.sockets.write(Write(1, piece))
            await asyncio.sleep(0)
        assert transport.written == []
        socket.resume_writing()
        wire.sockets.write(Write(1, b"d"))
        await asyncio.sleep(0)
        assert transport.written == [b"abc", b"d"]
        assert not wire.sockets.slow

    play(script)


def test_the_node_is_told_once_when_a_client_has_taken_everything(play: Any) -> None:
    async def script(wire: Wire) -> None:
        quick, _ = wire.connect()
        slow, transport = wire.connect()
        lost, gone = wire.connect()
        slow.pause_writing()
        lost.pause_writing()
        wire.events.clear()
        for socket in (quick, slow, lost):
            wire.sockets.write(Write(socket.client, b"a"))
            wire.sockets.tell_when_drained(TellWhenDrained(socket.client))
        assert wire.events == []
        await asyncio.sleep(0)
        assert wire.events == [Drained(quick.client)]
        gone.disconnect(False)
        slow.resume_writing()
        await asyncio.sleep(0)
        assert wire.events == [Drained(quick.client), ClientLost(lost.client, "lost"), Drained(slow.client)]
        assert transport.written == [b"a"]
        wire.sockets.tell_when_drained(TellWhenDrained(99))
        wire.sockets.tell_when_drained(TellWhenDrained(slow.client))
        await asyncio.sleep(0)
        assert wire.events[3:] == [Drained(slow.client)]

    play(script)


def test_a_client_that_stays_behind_is_cut_off_alone(play: Any) -> None:
    async def script(wire: Wire) -> None:
        slow, behind = wire.connect()
        _, fine = wire.connect()
        slow.pause_writing()
        for _ in range(3):
            wire.sockets.broadcast(Broadcast([1, 2], b"x" * 50))
            await asyncio.sleep(0)
        assert behind.closed == "aborted"
        assert wire.events[-1] == ClientLost(1, "slow")
        assert fine.closed is None
        assert len(fine.written) == 3

    play(script, EdgeLimits(outbox_bytes=100))


def test_old_output_cuts_off_as_much_output_does() -> None:
    limits = EdgeLimits(outbox_age_s=15.0, outbox_bytes=100)
    outbox = Outbox(10.0)
    outbox.push(b"x" * 100)
    assert not outbox.overdue(limits, 25.0)
    assert outbox.overdue(limits, 25.1)
    assert outbox.take(26.0) == b"x" * 100
    assert not outbox.overdue(limits, 30.0)
    outbox.push(b"x" * 101)
    assert outbox.overdue(limits, 30.0)


def test_a_close_flushes_says_its_code_and_waits_for_the_answer(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        wire.sockets.write(Write(1, b"bye"))
        wire.sockets.close(CloseClient(1, 1009, "error"))
        assert (transport.written, transport.codes, transport.closed) == ([b"bye"], [WSCloseCode.MESSAGE_TOO_BIG], None)
        before = len(wire.events)
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.TEXT, b"late"))  # type: ignore[arg-type]
        assert len(wire.events) == before
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.CLOSE))  # type: ignore[arg-type]
        assert transport.closed == "closed"
        assert wire.events[-1] == ClientLost(1, "error")
        assert transport.codes == [WSCloseCode.MESSAGE_TOO_BIG]

    play(script)


def test_a_close_that_nobody_answers_ends_all_the_same(play: Any) -> None:
    async def script(wire: Wire) -> None:
        _, transport = wire.connect()
        wire.sockets.close(CloseClient(1, 1000, "error"))
        async with asyncio.timeout(CLOSE_WAIT_S + 2):
            await wire.sockets.emptied()
        assert transport.closed == "aborted"

    play(script)


def test_a_clients_own_close_is_answered(play: Any) -> None:
    async def script(wire: Wire) -> None:
        socket, transport = wire.connect()
        socket.on_ws_frame(transport, Wire.frame(WSMsgType.CLOSE))  # type: ignore[arg-type]
        assert (transport.codes, transport.closed) == ([WSCloseCode.OK], "closed")
        assert wire.events[-1] == ClientLost(1, "client closed")

    play(script)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2"),
        ("2001:db8::1", "2001:db8:0:0"),
        ("::1", "0:0:0:0"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_an_ipv6_customer_is_one_64(address: str, group: str) -> None:
    assert group_of(address) == group
