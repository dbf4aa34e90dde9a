"""Connections that outlive their socket, their edge and their core. Source: specification RTN15, RTN16; Ably protocol docs, 6."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.connections import BAD_KEY, EXPIRED, Claim, Connections, join
from core.effects import AskSessionsEnd, Effect, WriteSession
from core.events import SESSIONS_END, EdgeLost, EndOffset, SessionRead, SessionWritten
from relay.link.frames import Admit, Admitted, Depart, Open, Present, Refused, Superseded, Up
from relay.model.connection_key import make_key
from relay.model.grants import Grant
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from tests.unit.core.dialogue import OTHER_EDGE, RING, SECRET, START_MS, Dialogue, token


@pytest.fixture
def core() -> Dialogue:
    """Linked to edge e1 by link 1, to edge e2 by link 2."""
    core = Dialogue()
    core.edge_up()
    core.edge_up(2, OTHER_EDGE, "boot-2")
    core.sessions_round()
    return core


@pytest.fixture
def other(core: Dialogue) -> Dialogue:
    """A core of the same cluster, linked to edge e2 only, by link 2."""
    other = Dialogue(name="core-2")
    core.peers, other.peers = [other], [core]
    other.edge_up(2, OTHER_EDGE, "boot-2")
    other.sessions_round()
    for record in core.written:
        other.happens(record)
    return other


def drops(core: Dialogue, session: str, *, closed: bool = False, link: int = 1, incarnation: int | None = None) -> None:
    core.edge_sends(Depart(session, closed, incarnation), link)
    core.sessions_round()


def resumes(core: Dialogue, key: str, link: int = 2) -> int:
    """Asks for it; the request's number."""
    req = core.req()
    core.edge_sends(Admit(req, f"shop.all:{SECRET}", True, True, True, 6, resume=key), link)
    core.turns()
    core.sessions_round()
    return req


def answers(core: Dialogue) -> list[Admitted]:
    return [frame for link in (1, 2) for frame in core.sent(link) if isinstance(frame, Admitted)]


def admitted_unwritten(core: Dialogue) -> Admitted:
    """A new connection whose record has not reached Kafka yet."""
    req = core.req()
    core.edge_sends(Admit(req, f"shop.all:{SECRET}", True, True, True, 6))
    core.turns()
    return core.answer(req)


def test_rtn15c6_a_dropped_connection_goes_on_with_its_id_under_a_new_key(core):
    first = core.admitted()
    drops(core, first.session)
    again = core.admitted(link=2, resume=first.key)
    assert (again.session, again.incarnation, again.error) == (first.session, 1, None)
    assert again.key != first.key
    assert again.key.startswith(f"{first.session}!1.")


def test_rtn16_recover_is_answered_like_resume(core):
    first = core.admitted()
    drops(core, first.session)
    assert core.admitted(recover=first.key).session == first.session


def test_rtn15c_another_core_takes_over_what_it_has_only_read_of(core, other):
    first = core.admitted()
    core.sessions_round()
    again = other.admitted(link=2, resume=first.key)
    assert (again.session, again.incarnation) == (first.session, 1)


def test_the_answer_waits_for_the_barrier_and_for_the_record_of_the_new_incarnation(core):
    first = core.admitted()
    frame = Admit(50, f"shop.all:{SECRET}", True, True, True, 6, resume=first.key)
    core.edge_sends(frame, 2)
    core.turns()
    (ask,) = core.take(AskSessionsEnd)
    assert core.take(WriteSession) == []
    core.happens(EndOffset(ask.ask, SESSIONS_END, 7))
    (write,) = core.take(WriteSession)
    assert [frame for frame in core.sent(2) if isinstance(frame, Admitted)] == []
    core.happens(SessionRead(write.key, write.value))
    core.happens(SessionWritten(write.ticket, True))
    assert isinstance(core.answer(50), Admitted)


def test_rtn15c7_dropped_for_longer_than_two_minutes_is_a_new_connection_with_80008(core):
    first = core.admitted()
    drops(core, first.session)
    core.tick(120.5)
    again = core.admitted(resume=first.key)
    assert again.session != first.session
    assert (again.error.code, again.error.status_code) == (80008, 400)


def test_a_drop_of_nearly_two_minutes_is_none(core):
    first = core.admitted()
    drops(core, first.session)
    core.tick(119.5)
    assert core.admitted(resume=first.key).session == first.session


@pytest.mark.parametrize("link", [1, 2])
def test_rtn12_closed_is_like_expired(core, link):
    first = core.admitted()
    drops(core, first.session, closed=True)
    again = core.admitted(link=link, resume=first.key)
    assert (again.session != first.session, again.error.code) == (True, 80008)


def test_a_genuine_key_of_a_connection_that_nobody_remembers_is_80008(core):
    """Not at once: until a second has gone, its first record may be on the way."""
    req = resumes(core, make_key(core.keyring, "shop", "abcdefghij", 0, b"123456789"))
    core.tick(0.9)
    assert answers(core) == []
    core.tick(1.2)
    answer = core.answer(req)
    assert (answer.error.code, answer.session != "abcdefghij") == (80008, True)


def test_a_client_that_is_faster_than_the_first_record_of_its_connection_goes_on_with_it(core, other):
    """CONNECTED does not wait for that record, so another core may be asked before it is in the log."""
    first = admitted_unwritten(core)
    req = resumes(other, first.key)
    assert answers(other) == []
    core.sessions_round()
    other.sessions_round()
    again = other.answer(req)
    assert (again.session, again.incarnation, again.error) == (first.session, 1, None)
    other.tick(2)
    other.sessions_round()
    assert answers(other) == []


def test_an_edge_that_goes_while_its_client_waits_takes_the_connection_from_nobody(core, other):
    first = admitted_unwritten(core)
    resumes(other, first.key)
    other.happens(EdgeLost(2, "gone"))
    core.sessions_round()
    other.tick(2)
    assert [write.key for write in other.take(WriteSession) if write.key.startswith("connection:")] == []
    assert answers(other) == []


def test_above_the_bound_on_those_that_wait_a_key_is_expired_at_once():
    core = Dialogue(limits=CoreLimits(session_waiters=1))
    core.edge_up()
    core.sessions_round()
    waiting, refused = (resumes(core, make_key(core.keyring, "shop", f"abcdefgh{n:02}", 0, b"123456789"), 1) for n in range(2))
    assert [(frame.req, frame.error.code) for frame in answers(core)] == [(refused, 80008)]
    core.tick(2)
    assert core.answer(waiting).error.code == 80008


def test_records_that_cannot_be_written_are_bounded_and_so_is_what_waits_for_them():
    core = Dialogue(limits=CoreLimits(session_writes=2))
    core.edge_up()
    core.sessions_round()
    for _ in range(5):
        admitted_unwritten(core)
    for write in core.take(WriteSession):
        core.happens(SessionWritten(write.ticket, False))
    assert (len(core.node._connections._again), len(core.node._connections._unread)) == (2, 2)


def test_a_key_with_a_wrong_mac_is_80018(core):
    first = core.admitted()
    forged = first.key[:-1] + ("A" if first.key[-1] != "A" else "Q")
    assert core.admitted(resume=forged).error.code == 80018


def test_6_2_a_connection_of_another_app_is_40102(core):
    first = core.admitted(f"bank.all:{SECRET}")
    answer = core.admit(resume=first.key)
    assert isinstance(answer, Refused)
    assert (answer.error.code, answer.error.status_code) == (40102, 401)


@pytest.mark.parametrize(
    ("before", "after", "resumed"), [("bob", "bob", True), ("bob", "eve", False), ("bob", None, False), ("*", "eve", True)]
)
def test_6_2_a_connection_of_another_client_id_is_40102(core, before, after, resumed):
    def bearer(client_id):
        return token(**({} if client_id is None else {"x-ably-clientId": client_id}))

    first = core.admitted(bearer(before))
    answer = core.admit(bearer(after), resume=first.key)
    assert answer.session == first.session if resumed else answer.error.code == 40102


def test_6_2_the_new_credentials_count(core):
    first = core.admitted()
    again = core.admitted(token("shop.chat", **{"x-ably-clientId": "*"}), resume=first.key)
    assert "chat:*" in again.capability


def test_a_socket_that_is_still_open_is_superseded_wherever_it_is(core, other):
    first = core.admitted()
    core.sessions_round()
    again = other.admitted(link=2, resume=first.key)
    assert Superseded(first.session, 1) in core.sent(1)
    core.append(first.session, "a")
    assert core.counted("append.no_grant") == 1
    core.edge_sends(Present(first.grant))
    assert core.counted("grant.old_incarnation") == 1
    core.edge_sends(Present(again.grant), 2)
    core.append(again.session, "a", link=2)
    assert core.counted("append.no_grant") == 1


def test_grants_are_void_on_every_core_once_the_connection_is_over(core, other):
    first = core.admitted(link=2)
    core.sessions_round()
    other.edge_sends(Present(first.grant), 2)
    core.edge_sends(Depart(first.session, True), 2)
    core.sessions_round()
    other.append(first.session, "a", link=2)
    other.edge_sends(Present(first.grant), 2)
    assert (other.counted("append.no_grant"), other.counted("grant.old_incarnation")) == (1, 1)


def test_both_keys_hold_until_the_client_has_used_its_new_transport(core):
    """It may never have read CONNECTED, and then it comes again with the key that it has."""
    first = core.admitted()
    second = core.admitted(resume=first.key)
    third = core.admitted(resume=first.key)
    assert (third.session, third.incarnation) == (first.session, 2)
    assert core.admitted(resume=second.key).incarnation == 3
    last = core.admitted(resume=third.key)
    core.edge_sends(Up(last.session, last.incarnation))
    core.sessions_round()
    for key in (first.key, second.key, third.key):
        assert core.admitted(resume=key).error.code == 80008
    assert core.admitted(resume=last.key).session == first.session


def test_an_edge_speaks_for_its_own_connections_only(core):
    first = core.admitted()
    core.edge_sends(Depart(first.session, True, 0), 2)
    core.edge_sends(Up(first.session, 5), 2)
    core.sessions_round()
    assert core.admitted(link=2, resume=first.key).session == first.session


def test_the_end_of_an_earlier_incarnation_does_not_end_a_later_one(core):
    """`Depart` travels on the live lane, the answer to the resume on the other."""
    first = core.admitted()
    again = core.admitted(resume=first.key)
    drops(core, first.session, incarnation=0)
    core.append(again.session, "a")
    assert core.counted("append.no_grant") == 0


def test_the_end_of_a_connection_is_heard_of_a_core_that_never_had_its_grant(core, other):
    first = core.admitted(link=2)
    core.sessions_round()
    other.edge_sends(Depart(first.session, False, 0), 2)
    other.tick(2)
    other.sessions_round()
    core.tick(121)
    assert core.admitted(link=2, resume=first.key).error.code == 80008


def test_when_two_cores_take_a_connection_at_once_the_later_one_in_the_log_takes_it_again(core, other):
    first = core.admitted()
    core.sessions_round()
    for dialogue, link in ((core, 1), (other, 2)):
        dialogue.edge_sends(Admit(50, f"shop.all:{SECRET}", True, True, True, 6, resume=first.key), link)
        dialogue.turns()
        (ask,) = dialogue.take(AskSessionsEnd)
        dialogue.happens(EndOffset(ask.ask, SESSIONS_END, 0))
    writes = [(dialogue, write) for dialogue in (core, other) for write in dialogue.take(WriteSession)]
    for dialogue, write in writes:
        for reader in (core, other):
            reader.happens(SessionRead(write.key, write.value))
        dialogue.happens(SessionWritten(write.ticket, True))
    assert core.answer(50).incarnation == 1
    other.sessions_round()
    assert other.answer(50).incarnation == 2
    assert Superseded(first.session, 2) in core.sent(1)


def test_without_an_answer_from_kafka_the_client_is_told_to_come_again(core):
    first = core.admitted()
    for req, answer_ask in ((50, False), (51, True)):
        core.edge_sends(Admit(req, f"shop.all:{SECRET}", True, True, True, 6, resume=first.key), 2)
        core.turns()
        (ask,) = core.take(AskSessionsEnd)
        core.happens(EndOffset(ask.ask, SESSIONS_END, 0 if answer_ask else None))
        for write in core.take(WriteSession):
            core.happens(SessionWritten(write.ticket, False))
        assert core.answer(req).error.code == 50003
    core.sessions_round()
    assert core.admitted(resume=first.key).session == first.session


def test_a_resumed_connection_reads_and_writes(core):
    first = core.admitted()
    again = core.admitted(link=2, resume=first.key)
    core.append(again.session, "a", f"c:{again.session}:7", fresh=False, link=2)
    core.kafka_round()
    core.edge_sends(Open(90, "shop", "a", again.session), 2)
    assert not [frame for frame in core.sent(2) if isinstance(frame, Refused)]


# --- edges that die


def test_the_connections_of_a_dead_edge_are_gone_when_its_lease_has_run_out(core, other):
    """e1 is linked to the first core only, and dies: ten seconds, then two minutes."""
    keys = [core.admitted().key for _ in range(2)]
    core.sessions_round()
    core.happens(EdgeLost(1, "reset"))
    other.tick(125)
    assert other.admitted(link=2, resume=keys[0]).error is None
    other.tick(8)
    assert other.admitted(link=2, resume=keys[1]).error.code == 80008


def test_an_edge_that_any_core_is_linked_to_lives(core, other):
    first = core.admitted()
    core.sessions_round()
    for _ in range(100):
        core.tick(3)
        other.tick(3)
        core.sessions_round()
        other.sessions_round()
    assert other.admitted(link=2, resume=first.key).session == first.session


def test_leases_are_renewed_once_per_edge_whatever_the_number_of_cores(core, other):
    core.written.clear()
    other.written.clear()
    for _ in range(60):
        for one in (core, other):
            one.tick(1)
            one.sessions_round()
    renewed = Counter(record.key for record in core.written + other.written)
    assert 15 <= renewed["edge:boot-2"] <= 25
    assert 15 <= renewed["edge:boot-1"] <= 25


def test_what_is_long_gone_is_forgotten_everywhere_by_one_tombstone(core, other):
    gone, closed, live = (core.admitted().session for _ in range(3))
    drops(core, gone)
    drops(core, closed, closed=True)
    core.written.clear()
    for _ in range(100):
        for one in (core, other):
            one.tick(2)
            one.sessions_round()
    tombstones = [record.key for record in core.written + other.written if record.value is None]
    assert sorted(tombstones) == sorted([f"connection:{gone}", f"connection:{closed}"])
    for one in (core, other):
        assert one.node.status()["connections"] == 1
        assert one.node._connections.find(live) is not None


def test_an_edge_that_somebody_asked_for_is_forgotten_though_it_never_had_a_lease(core):
    """Members of the state may be of an edge whose lease was forgotten before this core was started."""
    connections = core.node._connections
    for boot in range(50):
        assert not connections.is_silent(f"dead-{boot}", core.now)
    core.tick(15)
    assert connections.is_silent("dead-1", core.now)
    for _ in range(200):
        core.tick(3)
        core.sessions_round()
    assert connections._heard.keys() == connections._leases.keys() == {"boot-1", "boot-2"}


def test_a_core_that_hears_nothing_of_kafka_forgets_nobody(core):
    core.admitted()
    core.sessions_round()
    core.happens(EdgeLost(1, "reset"))
    core.happens(EdgeLost(2, "reset"))
    for _ in range(50):
        core.tick(10)
    assert [write for write in core.take(WriteSession) if write.value is None] == []


def test_a_connection_that_lives_here_is_not_forgotten_because_somebody_thinks_so(core):
    first = core.admitted()
    core.sessions_round()
    core.happens(SessionRead(f"connection:{first.session}", None))
    core.sessions_round()
    assert core.admitted(resume=first.key).session == first.session


def test_records_that_cannot_be_read_are_counted_and_left_out(core):
    for key, value in (("connection:x", b"{}"), ("connection:x", b"\xff"), ("edge:y", b"[]"), ("nonsense", b"1"), ("counts:z", b"")):
        core.happens(SessionRead(key, value))
    assert core.counted("sessions.unreadable") == 4


# --- what all readers agree on


class Cluster:
    """Some `Connections` over one log. Each reads at its own pace; `settle` lets all read everything."""

    def __init__(self, size: int) -> None:
        self.log: list[tuple[str, bytes | None]] = []
        self.out: list[deque[Effect]] = [deque() for _ in range(size)]
        self.at = [0] * size
        self.now_ms = START_MS
        numbers = count(1)
        self.cores = [self.new(n, lambda: next(numbers)) for n in range(size)]
        self.tickets: list[deque[tuple[int, int]]] = [deque() for _ in range(size)]

    def new(self, n, number):
        unique = count(1)
        return Connections(
            f"core-{n}",
            Keyring(RING),
            CoreLimits(),
            Counter(),
            emit=self.out[n].append,
            number=number,
            random=lambda size: next(unique).to_bytes(size - 1, "big") + bytes([n]),
        )

    def writes(self, n: int) -> None:
        while self.out[n]:
            effect = self.out[n].popleft()
            if isinstance(effect, WriteSession):
                self.log.append((effect.key, effect.value))
                self.tickets[n].append((len(self.log), effect.ticket))

    def reads(self, n: int, most: int) -> None:
        for key, value in self.log[self.at[n] : self.at[n] + most]:
            self.cores[n].read(key, value)
            self.at[n] += 1
            while self.tickets[n] and self.tickets[n][0][0] <= self.at[n]:
                _, ticket = self.tickets[n].popleft()
                claim = self.cores[n].settled(ticket, True)
                if claim is not None and not self.cores[n].has(claim):
                    self.resumes(n, claim)

    def resumes(self, n: int, claim: Claim) -> None:
        verdict = self.cores[n].judge(claim.text, claim.app, claim.client_id, self.now_ms)
        if isinstance(verdict, tuple) and claim.tries < 4:
            self.cores[n].claim(claim, *verdict)

    def settle(self) -> None:
        for _ in range(200):
            for n in range(len(self.cores)):
                self.writes(n)
                self.reads(n, len(self.log))
            if all(at == len(self.log) for at in self.at) and not any(self.out):
                return
        raise AssertionError("they write to each other for ever")


def grant_of(edge: str) -> Grant:
    return Grant(edge, f"boot of {edge}", "abcdefghij", True, 0, "shop", "shop.all", "*", "{}", None, None, None, START_MS)


STEP = st.tuples(
    st.sampled_from(["resume", "resume", "drop", "close", "use", "write", "read", "read"]), st.integers(0, 2), st.integers(0, 3)
)


@given(st.lists(STEP, max_size=40))
def test_all_readers_agree_and_so_does_one_that_finds_the_topic_compacted(steps):
    cluster = Cluster(3)
    for n in range(3):
        cluster.cores[n].edge_up(n, f"e{n}", f"boot of e{n}", START_MS)
    cluster.cores[0].connected("abcdefghij", grant_of("e0"), START_MS)
    cluster.settle()
    for what, n, number in steps:
        core, edge = cluster.cores[n], f"e{n}"
        known = core.find("abcdefghij")
        cluster.now_ms += 10
        match what:
            case "resume":
                key = make_key(Keyring(RING), "shop", "abcdefghij", max(0, (known.incarnation if known else 0) - number % 2), b"123456789")
                claim = Claim(key, edge=edge, boot=f"boot of {edge}", app="shop", key_name="shop.all", client_id="*", job=None)
                cluster.resumes(n, claim)
            case "drop" | "close" if known is not None:
                core.departed(
                    edge, f"boot of {edge}", "abcdefghij", known.incarnation, closed=what == "close", now=0, now_ms=cluster.now_ms
                )
            case "use" if known is not None:
                core.used(edge, f"boot of {edge}", "abcdefghij", known.incarnation)
            case "write":
                cluster.writes(n)
            case "read":
                cluster.reads(n, number)
    cluster.settle()
    found = [core.find("abcdefghij") for core in cluster.cores]
    compacted = cluster.new(0, lambda: 0)
    for key, value in dict(cluster.log).items():
        compacted.read(key, value)
    found.append(compacted.find("abcdefghij"))
    assert all(record.says_the_same(found[0]) for record in found)
    # Of resumes at once each may lose to every other.
    assert sum(key.startswith("connection:") for key, _ in cluster.log) <= (len(steps) + 1) * max(5, len(steps) + 1)


def test_join_is_the_same_in_any_order_within_one_claim():
    base = Cluster(1)
    base.cores[0].connected("abcdefghij", grant_of("e0"), START_MS)
    record = base.cores[0].find("abcdefghij")
    assert join(None, record) is record
    assert join(record, record) is record


@pytest.mark.parametrize("text", ["", "nonsense", "_____!ablyjs_test_fake-key____"])
def test_a_text_that_is_no_key_is_judged_as_such(text):
    (core,) = Cluster(1).cores
    assert core.judge(text, "shop", None, START_MS) is BAD_KEY
    assert core.judge(make_key(Keyring(RING), "shop", "abcdefghij", 0, b"123456789"), "shop", None, START_MS) is EXPIRED
