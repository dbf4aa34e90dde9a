"""How many there are on a channel, as cores add it up from what edges report."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.effects import AskSessionsEnd, LinkSend, ShowOccupancy, WriteSession
from core.events import SESSIONS_END, EdgeLost, EndOffset, SessionRead, SessionWritten, Watching
from core.occupancy import Occupancies
from relay.link import calls
from relay.link.frames import Counts, Depart, Fetch, Occupancy, Page, Refused, Shut, Watch
from relay.model.limits import CoreLimits
from relay.model.occupancy import ATTACHED, METRICS, metrics
from tests.unit.core.dialogue import OTHER_EDGE, SECRET, Dialogue, token

KEY = b"shop:room"


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue()
    core.edge_up()
    core.sessions_round()
    return core


def counts(connections: int, **others: int) -> list[int]:
    return [connections, *(others.get(name, 0) for name in ATTACHED[1:])]


def report(
    core: Dialogue,
    number: int,
    connections: int,
    *,
    channel: str = "room",
    app: str = "shop",
    link: int = 1,
    by: str | None = None,
    **more: int,
) -> None:
    session = next(iter(core.node._roster.links[link].sessions), "") if by is None else by
    core.edge_sends(Counts(number, app, channel, counts(connections, **more), session), link)
    core.sessions_round()


def total(core: Dialogue, key: bytes = KEY) -> dict[str, int]:
    return metrics(core.node._occupancy.totals(key))


def watching(core: Dialogue, session: str, channel: str = "room", link: int = 1) -> int:
    ref = core.open(channel, session, link=link)
    core.edge_sends(Watch(ref, on=True, session=session), link)
    return ref


def told(core: Dialogue, link: int = 1) -> list[dict[str, int]]:
    return [metrics(frame.counts) for frame in core.sent(link) if isinstance(frame, Occupancy)]


# --- sums


def test_what_edges_report_is_added_up_by_every_core() -> None:
    core, other = Dialogue(name="core-1"), Dialogue(name="core-2")
    core.peers.append(other)
    other.peers.append(core)
    core.edge_up()
    core.admitted()
    other.edge_up(9, OTHER_EDGE, "boot-2")
    other.admitted(link=9)
    report(core, 1, 3, publishers=2)
    report(other, 1, 2, subscribers=1, link=9)
    for each in (core, other):
        assert (total(each)["connections"], total(each)["publishers"], total(each)["subscribers"]) == (5, 2, 1)
    report(core, 2, 0)
    assert [total(each)["connections"] for each in (core, other)] == [2, 2]


def test_an_older_report_that_comes_late_is_ignored_and_written_over(core: Dialogue) -> None:
    core.admitted()
    report(core, 7, 5)
    core.written.clear()
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-1","number":3,"counts":[9,0,0,0,0,0,0]}'))
    core.sessions_round()
    assert total(core)["connections"] == 5
    (again,) = core.written
    assert msgspec.json.decode(again.value or b"")["number"] == 7
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-2","number":3,"counts":[9,0,0,0,0,0,0]}'))
    core.written.clear()
    core.sessions_round()
    assert [msgspec.json.decode(write.value or b"")["number"] for write in core.written] == [7], "core-2 may have died since"
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-2","number":8,"counts":[2,0,0,0,0,0,0]}'))
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-3","number":3,"counts":[9,0,0,0,0,0,0]}'))
    assert core.take(WriteSession) == []  # those two put it right


def test_that_nobody_is_left_is_believed_before_what_it_takes_back_was_read(core: Dialogue) -> None:
    """The first report was in the hands of a core that is gone, or Kafka is slow: it comes into the log after all."""
    session = core.admitted().session
    for number, connections in ((1, 1), (2, 0)):
        core.edge_sends(Counts(number, "shop", "slow", counts(connections), session if connections else ""))
    core.sessions_round()
    assert total(core, b"shop:slow")["connections"] == 0
    core.edge_sends(Counts(2, "shop", "room", counts(0), ""))
    core.sessions_round()
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-2","number":1,"counts":[1,0,0,0,0,0,0]}'))
    assert total(core)["connections"] == 0
    for app, channel in (("bank!", "room"), ("shop", "[meta]channel.lifecycle"), ("shop", ":")):
        core.edge_sends(Counts(3, app, channel, counts(0), ""))
    assert core.counted("occupancy.no_witness") == 3


def test_zeros_are_followed_by_a_tombstone_which_stands_for_them(core: Dialogue) -> None:
    core.admitted()
    report(core, 1, 1)
    report(core, 2, 0)
    assert core.written[-1].value is not None
    core.tick(5.0)
    assert not any(write.value is None for write in core.take(WriteSession))
    core.tick(6.0)
    core.sessions_round()
    assert (core.written[-1].key, core.written[-1].value) == ("counts:boot-1:shop:room", None)
    assert len(core.node._occupancy) == 0
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-2","number":1,"counts":[1,0,0,0,0,0,0]}'))
    assert total(core)["connections"] == 0


def test_a_tombstone_for_what_lives_is_taken_back(core: Dialogue) -> None:
    core.admitted()
    report(core, 1, 4)
    core.happens(SessionRead("counts:boot-1:shop:room", None))
    assert total(core)["connections"] == 4
    core.sessions_round()
    assert msgspec.json.decode(core.written[-1].value or b"")["counts"][0] == 4


def test_the_counts_of_an_edge_end_with_its_lease_and_come_back_with_it(core: Dialogue) -> None:
    core.admitted()
    report(core, 1, 4)
    core.happens(EdgeLost(1, "gone"))
    core.tick(8.0)
    assert total(core)["connections"] == 4
    core.tick(3.0)
    assert total(core)["connections"] == 0
    core.edge_up(2)
    core.sessions_round()
    core.tick(1.0)
    assert total(core)["connections"] == 4


def test_an_edge_is_believed_about_channels_that_a_client_of_its_could_attach_to(core: Dialogue) -> None:
    session, chats = core.admitted().session, core.admitted(f"shop.chat:{SECRET}").session
    report(core, 1, 1, app="bank", by=session)
    report(core, 2, 1, by=chats)
    report(core, 3, 1, by="nobodyhere")
    report(core, 4, 1, by="")
    assert (total(core)["connections"], total(core, b"bank:room")["connections"]) == (0, 0)
    assert core.counted("occupancy.no_witness") == 4
    through = core.admitted(token("shop.filters", **{"x-ably-capability": '{"[filter]derived":["subscribe"]}'})).session
    report(core, 1, 1, by=through, channel="derived")
    assert total(core, b"shop:derived")["connections"] == 1
    report(core, 5, 1, by=chats, channel="chat:x")
    assert total(core, b"shop:chat:x")["connections"] == 1
    # What it was believed about it may take back through any core, whoever is left there.
    report(core, 6, 1)
    core.happens(EdgeLost(1, "gone"))
    core.edge_up(2)
    report(core, 7, 0, link=2, by="")
    assert total(core)["connections"] == 0


@pytest.mark.parametrize(
    "frame",
    [
        Counts(1, "shop", "room", [1]),
        Counts(1, "shop", "room", []),
        Counts(1, "shop", "room", counts(-1)),
        Counts(1, "shop", "room", counts(1 << 40)),
        Counts(0, "shop", "room", counts(1)),
        Counts(1 << 60, "shop", "room", counts(1)),
    ],
)
def test_a_report_that_cannot_be_meant_is_counted_and_left_out(core: Dialogue, frame: Counts) -> None:
    frame.session = core.admitted().session
    core.take(WriteSession)
    core.edge_sends(frame)
    assert core.take(WriteSession) == []
    assert core.counted("occupancy.refused") == 1


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"core":"c","number":1,"counts":[1]}', b'{"core":"c","number":1,"counts":"x"}'])
def test_a_record_that_cannot_be_read_is_counted_and_left_out(core: Dialogue, value: bytes) -> None:
    core.happens(SessionRead("counts:boot-1:shop:room", value))
    assert core.counted("sessions.unreadable") == 1
    assert len(core.node._occupancy) == 0


def test_what_one_edge_reports_is_bounded_and_the_newest_of_each_channel_waits() -> None:
    core = Dialogue(limits=CoreLimits(link_counts_per_s=10, link_counts=30))
    core.edge_up()
    session = core.admitted().session
    core.take(WriteSession)
    for number in range(1, 101):
        core.edge_sends(Counts(number, "shop", f"c{number % 40}", counts(number), session))
    assert core.counted("occupancy.refused") > 0
    assert len(core.take(WriteSession)) == 10
    for _ in range(5):
        core.tick(1.0)
        assert len([write for write in core.take(WriteSession) if write.key.startswith("counts:")]) <= 10


def test_above_the_bound_further_channels_are_left_out_of_the_counts() -> None:
    core = Dialogue(limits=CoreLimits(occupancy_entries=2))
    core.edge_up()
    core.admitted()
    for number in range(1, 4):
        report(core, number, number, channel=f"c{number}")
    assert [total(core, f"shop:c{n}".encode())["connections"] for n in (1, 2, 3)] == [1, 2, 0]
    assert core.counted("occupancy.full") == 1


def test_a_write_that_fails_is_tried_again_unless_there_is_newer_word(core: Dialogue) -> None:
    session = core.admitted().session
    core.sessions_round()
    core.edge_sends(Counts(1, "shop", "room", counts(1), session))
    (write,) = core.take(WriteSession)
    core.edge_sends(Counts(2, "shop", "room", counts(2), session))
    assert core.take(WriteSession) == []  # one at a time
    core.happens(SessionWritten(write.ticket, ok=False))
    core.tick(1.0)
    written = [msgspec.json.decode(write.value) for write in core.take(WriteSession) if write.key.startswith("counts:")]
    assert [record["number"] for record in written] == [2]


# --- watching


def test_who_watches_is_told_at_once_then_on_change_with_the_last_state_always(core: Dialogue) -> None:
    session = core.admitted().session
    watching(core, session)
    assert [each["connections"] for each in told(core)] == [0]
    report(core, 1, 1)
    assert [each["connections"] for each in told(core)] == [1]  # from nobody to somebody: at once
    for number in range(2, 6):
        core.tick(0.1)
        report(core, number, number)
    assert told(core) == []
    core.tick(0.7)
    assert [each["connections"] for each in told(core)] == [5]
    core.tick(2.0)
    assert told(core) == []
    report(core, 6, 6)
    assert [each["connections"] for each in told(core)] == [6]
    report(core, 7, 0)
    assert [each["connections"] for each in told(core)] == [0]


def test_every_category_that_becomes_zero_or_ceases_to_be_is_told_at_once(core: Dialogue) -> None:
    session = core.admitted().session
    watching(core, session)
    report(core, 1, 2, publishers=1)
    told(core)
    report(core, 2, 2, subscribers=1)
    assert [(each["publishers"], each["subscribers"]) for each in told(core)] == [(0, 1)]


def test_watching_needs_channel_metadata_of_a_session_on_that_link(core: Dialogue) -> None:
    reader = core.admitted(f"shop.chat:{SECRET}").session
    ref = core.open("chat:x", reader)
    for session in (reader, "nobody", ""):
        core.edge_sends(Watch(ref, on=True, session=session))
    core.edge_sends(Watch(999, on=True, session=reader))
    assert told(core) == []
    assert core.counted("occupancy.no_witness") == 3
    knows = core.admitted().session
    core.edge_sends(Watch(ref, on=True, session=knows))
    assert len(told(core)) == 1
    core.edge_sends(Depart(knows, closed=True, incarnation=0))
    report(core, 1, 1, channel="chat:x")
    assert told(core) == []


def test_it_ends_with_the_channel_and_with_the_link(core: Dialogue) -> None:
    session = core.admitted().session
    first = watching(core, session)
    second = watching(core, session, "other")
    core.edge_sends(Watch(first, on=False))
    core.edge_sends(Shut(second))
    assert core.node._occupancy.watched == 0
    watching(core, session, "third")
    core.happens(EdgeLost(1, "gone"))
    assert core.node._occupancy.watched == 0
    assert core.node._occupancy._by_link == {}


def test_operators_see_the_same(core: Dialogue) -> None:
    core.admitted()
    core.happens(Watching(KEY, on=True))
    report(core, 1, 2)
    assert [effect.counts[0] for effect in core.take(ShowOccupancy)] == [0, 2]
    core.happens(Watching(KEY, on=False))
    report(core, 2, 0)
    assert core.take(ShowOccupancy) == []


# --- status


def status(core: Dialogue, session: str, channel: str = "room") -> int:
    req = core.req()
    core.edge_sends(Fetch(req, session, calls.STATUS, calls.encode(calls.Status(channel=channel))))
    return req


def test_status_waits_for_what_was_written_before(core: Dialogue) -> None:
    session = core.admitted().session
    core.sent()
    req = status(core, session)
    (ask,) = core.take(AskSessionsEnd)
    assert core.sent() == []
    core.happens(SessionRead("counts:boot-1:shop:room", b'{"v":1,"core":"core-2","number":3,"counts":[9,0,0,0,0,0,0]}'))
    core.happens(EndOffset(ask.ask, SESSIONS_END, 5))
    page = core.answer(req)
    assert isinstance(page, Page)
    assert dict(zip(METRICS, calls.decode_counts(page.body), strict=True))["connections"] == 9


def test_status_is_refused_without_the_right_and_without_kafka(core: Dialogue) -> None:
    reader, knows = core.admitted(f"shop.chat:{SECRET}").session, core.admitted().session
    for session, channel, code in ((reader, "chat:x", 40160), ("nobody", "x", 40160), (knows, ":x", 40010), (knows, "[meta]x", 40010)):
        refused = core.answer(status(core, session, channel))
        assert isinstance(refused, Refused)
        assert refused.error.code == code or session == "nobody"
    req = status(core, knows)
    (ask,) = core.take(AskSessionsEnd)
    core.happens(EndOffset(ask.ask, SESSIONS_END, None))
    assert core.answer(req).error.code == 50003


# --- what all readers agree on


class Cluster:
    """Some cores over one compacted topic, each reading at its own pace; two edges that talk to whichever core."""

    def __init__(self, size: int) -> None:
        self.now = 0.0
        self.log: list[tuple[str, bytes | None]] = []
        self.out: list[deque[Any]] = [deque() for _ in range(size)]
        self.at = [0] * size
        self.tickets: list[deque[tuple[int, int]]] = [deque() for _ in range(size)]
        self.numbers = count(1)
        self.cores = [self.new(n, self.out[n].append) for n in range(size)]
        self.last: dict[tuple[str, bytes], tuple[int, int]] = {}

    def new(self, n: int, emit: Callable[[Any], None]) -> Occupancies:
        return Occupancies(
            f"core-{n}",
            CoreLimits(),
            Counter(),
            emit=emit,
            number=lambda: next(self.numbers),
            alive=lambda _: True,
            leased=lambda _: True,
            members=lambda _: 0,
            changed=lambda _: None,
            permitted=lambda *_: True,
        )

    def writes(self, n: int) -> None:
        if self.out[n]:
            effect = self.out[n].popleft()
            self.log.append((effect.key, effect.value))
            self.tickets[n].append((len(self.log), effect.ticket))

    def reads(self, n: int, most: int) -> None:
        for key, value in self.log[self.at[n] : self.at[n] + most]:
            self.at[n] += 1
            self.cores[n].read(key.removeprefix("counts:"), value, self.now)
        while self.tickets[n] and self.tickets[n][0][0] <= self.at[n]:
            self.cores[n].settled(self.tickets[n].popleft()[1], ok=True, now=self.now)

    def settle(self) -> None:
        for _ in range(400):
            for n in range(len(self.cores)):
                self.writes(n)
                self.reads(n, len(self.log))
            if all(at == len(self.log) for at in self.at) and not any(self.out):
                return
        raise AssertionError("they write to each other for ever")


STEP = st.tuples(st.sampled_from(["report", "report", "write", "read", "read", "late", "time"]), st.integers(0, 2), st.integers(0, 3))


@given(st.lists(STEP, max_size=60))
def test_all_readers_agree_and_so_does_one_that_finds_the_topic_compacted(steps: list[tuple[str, int, int]]) -> None:
    cluster = Cluster(3)
    numbers = count(1)
    late: list[tuple[int, Counts]] = []
    newest = (0, 0)
    for what, n, number in steps:
        match what:
            case "report" | "late":
                made = next(numbers)
                newest = (made, number)
                frame = Counts(made, "shop", "room", counts(number))
                if what == "late":  # on its way, and another core hears the next report before
                    late.append((n, frame))
                    newest = (made + 1, number)
                    next(numbers)
                    frame = Counts(made + 1, "shop", "room", counts(number))
                    cluster.cores[(n + 1) % 3].reported("e1", frame, cluster.now)
                else:
                    cluster.cores[n].reported("e1", frame, cluster.now)
            case "write":
                cluster.writes(n)
            case "read":
                cluster.reads(n, number)
            case "time":
                for at, frame in late:
                    cluster.cores[at].reported("e1", frame, cluster.now)
                late.clear()
                cluster.now += 4.0 * number
                for core in cluster.cores:
                    core.sweep(cluster.now)
    for at, frame in late:
        cluster.cores[at].reported("e1", frame, cluster.now)
    for _ in range(40):
        cluster.settle()
        cluster.now += 4.0
        for core in cluster.cores:
            core.sweep(cluster.now)
    cluster.settle()
    compacted = cluster.new(0, lambda _: None)
    for key, value in dict(cluster.log).items():
        compacted.read(key.removeprefix("counts:"), value, cluster.now)
    assert [core.connections(KEY) for core in (*cluster.cores, compacted)] == [newest[1]] * 4
    if not newest[1]:
        assert [len(core) for core in (*cluster.cores, compacted)] == [0] * 4
    assert len(cluster.log) <= 4 * (len(steps) + 2)


def test_frames_to_edges_go_on_live(core: Dialogue) -> None:
    session = core.admitted().session
    ref = watching(core, session)
    (sent,) = [effect for effect in core.take(LinkSend) if isinstance(effect.frame, Occupancy)]
    assert (sent.frame.ref, len(sent.frame.counts), sent.lane) == (ref, len(METRICS), 0)
