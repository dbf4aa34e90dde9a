"""The link as a dialogue: an edge's lane and a core's lane joined by nothing but the bytes of each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.link import frames as f
from relay.link.codec import Fault, LinkProtocolError, encode
from relay.link.session import Decoders, Ended, LaneSession, LinkEnded, Lobby, Side, State, lane_of, negotiate
from relay.model.errors import ErrorInfo
from relay.model.limits import LinkLimits

LIMITS = LinkLimits(
    max_frame_bytes=2_000, bulk_chunk_bytes=500, credit_bytes=10_000, queue_bytes=50_000, bulk_queue_bytes=60_000, max_message_bytes=20_000
)
DECODERS = {side: Decoders(side, LIMITS) for side in Side}
LIVE = f.Hello(f.VERSION, f.LOWEST_VERSION, f.Lane.LIVE, "eu", "edge-1", "boot")
BULK = f.Hello(f.VERSION, f.LOWEST_VERSION, f.Lane.BULK, "eu", "edge-1", "boot", "pair")
WELCOME = f.Welcome(f.VERSION, "core-1", "pair", 1, [f.Stream("abcdefgh", 4, (0, 3))], 0)
REFUSAL = ErrorInfo.of(40160, "no")


def new(side: Side, now: float = 0.0) -> LaneSession:
    return LaneSession(side, LIMITS, DECODERS[side], now)


def joined(hello: f.Hello = LIVE) -> tuple[LaneSession, LaneSession]:
    """An edge's and a core's end of a lane that is up."""
    edge, core = new(Side.EDGE), new(Side.CORE)
    core.receive(edge.greet(hello), 0.0)
    edge.receive(core.welcome(WELCOME), 0.0)
    assert edge.state is core.state is State.UP
    return edge, core


def record(ref: int, size: int = 100, offset: int = 0) -> f.Record:
    return f.Record(ref, offset, 0, bytes(size))


def drain(sender: LaneSession, receiver: LaneSession) -> list[list[f.Frame]]:
    """All messages that go now, without answers."""
    messages = []
    while (data := sender.next_batch()) is not None:
        if frames := receiver.receive(data, 0.0):
            messages.append(frames)
    return messages


def fault(session: LaneSession, data: bytes) -> Fault:
    with pytest.raises(LinkProtocolError) as caught:
        session.receive(data, 0.0)
    return caught.value.fault


# --- hello -----------------------------------------------------------------------------------------------------------------------------


def test_hello_and_welcome_bring_a_lane_up_and_carry_each_others_credit() -> None:
    edge, core = new(Side.EDGE), new(Side.CORE)
    (hello,) = core.receive(edge.greet(LIVE), 0.0)
    assert isinstance(hello, f.Hello)
    assert (hello.node, hello.credit) == ("edge-1", LIMITS.credit_bytes)
    assert core.state is State.GREETED
    (welcome,) = edge.receive(core.welcome(WELCOME), 0.0)
    assert isinstance(welcome, f.Welcome)
    assert (welcome.core, welcome.credit, welcome.streams) == ("core-1", LIMITS.credit_bytes, WELCOME.streams)


def test_a_newer_edge_is_answered_with_what_this_core_speaks_if_it_still_serves_that() -> None:
    assert negotiate(f.Hello(f.VERSION + 1, f.VERSION, f.Lane.LIVE, "s", "n", "b")) == f.VERSION
    assert negotiate(f.Hello(f.LOWEST_VERSION, f.LOWEST_VERSION, f.Lane.LIVE, "s", "n", "b")) == f.LOWEST_VERSION


@pytest.mark.parametrize(("version", "lowest"), [(f.VERSION + 2, f.VERSION + 1), (f.LOWEST_VERSION - 1, f.LOWEST_VERSION - 1)])
def test_no_version_in_common_is_refused(version: int, lowest: int) -> None:
    assert fault(new(Side.CORE), encode([f.Hello(version, lowest, f.Lane.LIVE, "s", "n", "b")])) is Fault.VERSION


def test_a_core_that_chooses_a_version_that_was_not_offered_is_refused() -> None:
    edge = new(Side.EDGE)
    edge.greet(LIVE)
    assert fault(edge, encode([f.Welcome(f.VERSION + 1, "core-1", "p", 10, [], 0)])) is Fault.VERSION


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        encode([f.Shut(1)]),
        encode([LIVE, LIVE]),
        encode([LIVE, f.Shut(1)]),
        encode([f.Hello(1, 1, f.Lane.LIVE, "", "node", "boot")]),
        encode([f.Hello(1, 1, f.Lane.LIVE, "site", "node", "boot", "a live lane has no pair")]),
        encode([f.Hello(1, 1, f.Lane.BULK, "site", "node", "boot")]),
        encode([f.Hello(1, 1, f.Lane.LIVE, "site", "node", "boot", credit=0)]),
    ],
)
def test_anything_but_one_proper_hello_is_a_bad_hello(data: bytes) -> None:
    assert fault(new(Side.CORE), data) is Fault.BAD_HELLO


def test_a_hello_of_unreasonable_length_is_refused_unread() -> None:
    assert fault(new(Side.CORE), encode([f.Hello(1, 1, f.Lane.LIVE, "site", "n" * 5_000, "boot")])) is Fault.OVERSIZE


def test_frames_before_the_welcome_are_refused_on_either_side() -> None:
    core = new(Side.CORE)
    core.receive(encode([LIVE]), 0.0)
    assert fault(core, encode([f.Shut(1)])) is Fault.BAD_HELLO
    edge = new(Side.EDGE)
    assert fault(edge, encode([WELCOME])) is Fault.BAD_HELLO  # it has not said hello yet
    edge.greet(LIVE)
    assert fault(edge, encode([record(1)])) is Fault.BAD_HELLO


def test_a_second_hello_or_welcome_is_refused() -> None:
    edge, core = joined()
    assert fault(core, encode([LIVE])) is Fault.MALFORMED
    assert fault(edge, encode([WELCOME])) is Fault.MALFORMED


def test_a_hello_that_does_not_come_ends_the_lane_as_late() -> None:
    core = new(Side.CORE, now=100.0)
    at = 100.0
    while at <= 100.0 + LIMITS.handshake_s:
        assert core.check(at) is False
        at += 0.25
    with pytest.raises(LinkEnded, match="late"):
        core.check(at)


# --- lanes and order -------------------------------------------------------------------------------------------------------------------


def test_frames_of_one_turn_leave_as_one_message_in_order() -> None:
    edge, core = joined()
    for n in range(10):
        core.send(record(1, offset=n), 0.0)
    ((*frames,),) = drain(core, edge)
    assert [frame.offset for frame in frames if isinstance(frame, f.Record)] == list(range(10))
    assert core.queued == 0


def test_a_frame_may_be_changed_after_it_was_sent() -> None:
    edge, core = joined()
    frame = record(1, offset=1)
    core.send(frame, 0.0)
    frame.offset = 2
    assert drain(core, edge) == [[record(1, offset=1)]]


def test_admission_and_pages_take_bulk_everything_else_live_unless_told() -> None:
    assert lane_of(f.Page(1, 200, b""), None) is f.Lane.BULK
    assert lane_of(record(1), None) is f.Lane.LIVE
    assert lane_of(record(1), f.Lane.BULK) is f.Lane.BULK


def test_live_messages_are_cut_at_their_limit_but_one_frame_may_exceed_it_alone() -> None:
    edge, core = joined()
    for size in (900, 900, 900, 5_000, 10):
        core.send(record(1, size), 0.0)
    assert [[len(frame.body) for frame in frames if isinstance(frame, f.Record)] for frames in drain(core, edge)] == [
        [900, 900],
        [900],
        [5_000],
        [10],
    ]


def test_bulk_takers_have_turns_of_one_chunk_and_small_answers_share_a_message() -> None:
    edge, core = joined(BULK)
    for _ in range(20):
        core.send(record(1, 100), 0.0)
    for _ in range(20):
        core.send(record(2, 100), 0.0)
    core.send(f.Refused(3, REFUSAL), 0.0)
    core.send(f.Refused(4, REFUSAL), 0.0)
    turns = [
        {getattr(frame, "ref", None) or getattr(frame, "req", None) for frame in frames}  # who is in which message
        for frames in drain(core, edge)
    ]
    assert turns[0] == {1}
    assert turns[1] == {2}
    assert turns[2] >= {3, 4}  # not after 40 records of others
    assert len(turns) <= 12


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 700)), max_size=40), st.lists(st.booleans(), max_size=40))
@settings(deadline=None, max_examples=200)
def test_bulk_keeps_the_order_of_each_taker_and_loses_nothing(sends: list[tuple[int, int]], pauses: list[bool]) -> None:
    edge, core = joined(BULK)
    received: list[f.Frame] = []
    for n, (ref, size) in enumerate(sends):
        core.send(record(ref, size, offset=n), 0.0)
        if n < len(pauses) and pauses[n]:
            continue
        received += [frame for message in drain(core, edge) for frame in message]
        drain(edge, core)
    for _ in range(60):
        received += [frame for message in drain(core, edge) for frame in message]
        drain(edge, core)
    records = [frame for frame in received if isinstance(frame, f.Record)]
    for ref in range(1, 5):
        assert [r.offset for r in records if r.ref == ref] == [n for n, (to, _) in enumerate(sends) if to == ref]
    assert core.queued == 0


# --- credit ----------------------------------------------------------------------------------------------------------------------------


def test_a_sender_stops_when_credit_is_used_up_and_goes_on_when_half_is_returned() -> None:
    edge, core = joined()
    for n in range(40):
        core.send(record(1, 500, offset=n), 0.0)
    sent = []
    while (data := core.next_batch()) is not None:
        sent.append(data)
    assert LIMITS.credit_bytes <= sum(map(len, sent)) < LIMITS.credit_bytes + LIMITS.max_frame_bytes
    assert core.queued > 5_000

    received: list[f.Frame] = []
    returned = []
    for data in sent:
        received += edge.receive(data, 0.0)
        if (credit := edge.next_batch()) is not None:
            returned.append(credit)
    (credit,) = returned  # at half, not for every message
    assert core.receive(credit, 0.0) == []
    while core.queued:
        received += [frame for message in drain(core, edge) for frame in message]
        drain(edge, core)
    assert [frame.offset for frame in received if isinstance(frame, f.Record)] == list(range(40))


def test_credit_goes_out_even_when_this_side_has_none_left() -> None:
    edge, core = joined()
    for _ in range(30):
        core.send(record(1, 500), 0.0)
        edge.send(f.Present(bytes(500)), 0.0)
    to_edge = []
    while (data := core.next_batch()) is not None:
        to_edge.append(data)
    while edge.next_batch() is not None:
        pass
    assert edge.queued
    for data in to_edge:
        edge.receive(data, 0.0)
    (credit,) = [edge.next_batch()]
    assert credit is not None
    assert core.receive(credit, 0.0) == []
    assert core.next_batch() is not None


def test_a_frame_larger_than_all_credit_that_is_left_is_not_stuck() -> None:
    edge, core = joined()
    core.send(record(1, 9_990), 0.0)
    core.send(record(1, 15_000), 0.0)
    core.send(record(1, 15_000), 0.0)
    bodies = []
    for _ in range(3):
        bodies += [len(x.body) for message in drain(core, edge) for x in message if isinstance(x, f.Record)]
        drain(edge, core)
    assert bodies == [9_990, 15_000, 15_000]


def test_a_peer_that_sends_more_than_it_was_granted_is_refused() -> None:
    _, core = joined()
    message = encode([f.Present(bytes(4_900))])
    for _ in range(3):  # never giving it credit: `next_batch` is not called
        core.receive(message, 0.0)
    assert fault(core, message) is Fault.CREDIT


@pytest.mark.parametrize("size", [1, 2**40, 0, -5])
def test_a_peer_that_returns_more_than_was_used_is_refused(size: int) -> None:
    _, core = joined()
    assert fault(core, encode([f.Credit(size)])) is Fault.CREDIT


def test_credit_comes_alone() -> None:
    _, core = joined()
    assert fault(core, encode([f.Shut(1), f.Credit(1)])) is Fault.MALFORMED
    assert fault(core, encode([f.Credit(1), f.Present(bytes(50))])) is Fault.MALFORMED


# --- bounds ----------------------------------------------------------------------------------------------------------------------------


def ticks(session: LaneSession, start: float, end: float, *, heard: bool = True) -> None:
    """Checks every quarter second; the peer answers pings, if `heard`."""
    at = start
    while at <= end:
        if session.check(at) and heard:
            session.heard(at)
        at += 0.25


def flood(session: LaneSession) -> None:
    for _ in range(100):
        session.send(record(1, 1_000), 0.0)


def test_a_live_queue_above_its_bytes_ends_the_link_as_slow() -> None:
    _, core = joined()
    with pytest.raises(LinkEnded, match="slow"):
        flood(core)
    assert core.queued <= LIMITS.queue_bytes + 2_000


def test_a_live_frame_that_waits_too_long_ends_the_link_as_slow() -> None:
    _, core = joined()
    core.send(record(1), 1.0)
    ticks(core, 1.0, 1.0 + LIMITS.queue_age_s)
    with pytest.raises(LinkEnded, match="slow"):
        ticks(core, 1.0 + LIMITS.queue_age_s, 2.0 + LIMITS.queue_age_s)


def test_a_live_queue_that_moves_is_not_slow_however_long_it_is_never_empty() -> None:
    edge, core = joined()
    for second in range(30):
        for _ in range(4):
            core.send(record(1, 1_900), float(second))
        data = core.next_batch()
        for _ in range(2):
            assert data is not None
            edge.receive(data, 0.0)
            data = core.next_batch()
        if data is not None:
            edge.receive(data, 0.0)
        drain(core, edge)
        drain(edge, core)
        ticks(core, float(second), second + 0.75)


def test_a_bulk_queue_may_wait_longer_but_not_for_ever_nor_without_bound() -> None:
    _, core = joined(BULK)
    core.send(record(1), 0.0)
    ticks(core, 0.0, LIMITS.bulk_stall_s - 1)
    with pytest.raises(LinkEnded, match="slow"):
        ticks(core, LIMITS.bulk_stall_s - 1, LIMITS.bulk_stall_s + 1)
    _, core = joined(BULK)
    with pytest.raises(LinkEnded, match="slow"):
        flood(core)


def test_a_bulk_queue_that_moves_is_not_slow() -> None:
    edge, core = joined(BULK)
    for second in range(100):
        for _ in range(3):
            core.send(record(second, 400), float(second))
        data = core.next_batch()
        assert data is not None
        edge.receive(data, 0.0)
        while (data := edge.next_batch()) is not None:
            core.receive(data, 0.0)
        if second % 3 == 0:
            drain(core, edge)
        ticks(core, float(second), second + 0.75)


# --- silence ---------------------------------------------------------------------------------------------------------------------------


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    edge, _ = joined()
    edge.heard(10.0)
    edge.check(10.0)
    times = [10.0 + quarter / 4 for quarter in range(int(4 * LIMITS.silent_after_s))]
    assert [at for at in times if edge.check(at)] == [10.0 + LIMITS.ping_after_s]
    with pytest.raises(LinkEnded) as caught:
        edge.check(10.0 + LIMITS.silent_after_s)
    assert caught.value.why is Ended.SILENT


def test_a_peer_that_answers_pings_or_sends_anything_lives() -> None:
    edge, core = joined()
    ticks(edge, 0.0, 60.0)
    for tenth in range(600):
        edge.receive(encode([f.Unknown(1)]), 60.0 + tenth / 10)
        assert edge.check(60.0 + tenth / 10) is False
        drain(edge, core)


def test_a_process_that_stood_still_itself_asks_again_before_it_gives_up_its_peer() -> None:
    edge, core = joined()
    core.send(record(1), 0.5)
    ticks(edge, 0.0, 1.25, heard=False)
    core.check(0.5)
    assert edge.check(60.0) is True  # not silent, but pinged
    edge.heard(60.1)
    ticks(edge, 60.25, 70.0)
    core.check(60.0)  # and not slow: it could not send


# --- pairing ---------------------------------------------------------------------------------------------------------------------------


def test_a_bulk_lane_finds_the_live_lane_of_the_same_edge_process_once() -> None:
    lobby: Lobby[str] = Lobby(2)
    lobby.wait("p1", "spiffe://t/edge/eu/a", "boot-1", "link 1")
    for pair, identity, boot in [
        ("p2", "spiffe://t/edge/eu/a", "boot-1"),
        ("p1", "spiffe://t/edge/eu/b", "boot-1"),
        ("p1", "spiffe://t/edge/eu/a", "boot-2"),
    ]:
        with pytest.raises(LinkProtocolError, match="pair"):
            lobby.claim(pair, identity, boot)
    assert lobby.claim("p1", "spiffe://t/edge/eu/a", "boot-1") == "link 1"
    with pytest.raises(LinkProtocolError, match="pair"):
        lobby.claim("p1", "spiffe://t/edge/eu/a", "boot-1")


def test_a_lobby_holds_only_so_many() -> None:
    lobby: Lobby[str] = Lobby(2)
    lobby.wait("p1", "i", "b", "1")
    lobby.wait("p2", "i", "b", "2")
    with pytest.raises(LinkEnded, match="full"):
        lobby.wait("p3", "i", "b", "3")
    lobby.leave("p1")
    lobby.wait("p3", "i", "b", "3")
    assert len(lobby) == 2


# --- fuzz ------------------------------------------------------------------------------------------------------------------------------

GOOD = [
    encode([LIVE]),
    encode([WELCOME]),
    encode([f.Credit(5_000)]),
    encode([f.Shut(3)]),
    encode([record(1), record(2)]),
    encode([f.Append(1, "s", "c", "i", True, [])]),
]


@given(st.sampled_from(Side), st.lists(st.sampled_from(GOOD) | st.binary(max_size=40), max_size=12), st.booleans())
@settings(max_examples=2_000, deadline=None)
def test_fuzz_no_sequence_of_messages_does_more_than_break_the_link(side: Side, messages: list[bytes], up: bool) -> None:
    session = joined()[0 if side is Side.EDGE else 1] if up else new(side)
    if not up and side is Side.EDGE:
        session.greet(LIVE)
    now = 0.0
    try:
        for data in messages:
            now += 0.5
            for frame in session.receive(data, now):
                if isinstance(frame, f.Hello):
                    session.welcome(WELCOME)
            if session.state is State.UP:
                session.send(record(1), now)
                session.next_batch()
            session.check(now)
    except (LinkProtocolError, LinkEnded):
        pass
