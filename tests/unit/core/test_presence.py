"""Who is present: the fold over the records of one partition."""

from __future__ import annotations

import msgspec
import pytest

from core.log import LogRecord
from core.presence import Change, PartitionPresence
from relay.model.message import Kind, PresenceAction, PresenceItem, RecordBody

KEY = b"shop:room"
ENTER, LEAVE, UPDATE = PresenceAction.ENTER, PresenceAction.LEAVE, PresenceAction.UPDATE


class Log:
    """One partition, written and folded at once; a second view is kept from the state that the first one writes."""

    def __init__(self) -> None:
        self.view = PartitionPresence()
        self.view.journal = {}
        self.offset = 0
        self.records: list[LogRecord] = []

    def append(self, kind: Kind, key: bytes = KEY, **body: object) -> list[Change]:
        fields = {"id": f"r{self.offset}", "timestamp": 1_000 + self.offset} | body
        record = LogRecord("s", 0, self.offset, 1_000 + self.offset, key, msgspec.msgpack.encode(RecordBody(**fields)), kind, "")  # type: ignore[arg-type]
        self.offset += 1
        self.records.append(record)
        return self.view.apply(record, 10.0)

    def presence(self, connection: str, action: int, *clients: str, serial: int = 0, **fields: object) -> list[Change]:
        items = [PresenceItem(action=action, client_id=client, data=fields.get("data")) for client in clients]
        body: dict[str, object] = {"id": f"{connection}:{serial}", "incarnation": 0, "edge": "e1"} | {
            k: v for k, v in fields.items() if k != "data"
        }
        return self.append(Kind.PRESENCE, connection_id=connection, presence=items, **body)

    def members(self, view: PartitionPresence | None = None) -> set[tuple[str, str]]:
        channel = (view or self.view).channels.get(KEY)
        return set() if channel is None else {(m.holder.connection, m.client_id) for m in channel.after(0)}

    def reloaded(self) -> PartitionPresence:
        assert self.view.journal is not None
        view = PartitionPresence()
        view.restore({key: value for key, value in self.view.journal.items() if value is not None}, 20.0)
        return view


@pytest.fixture
def log() -> Log:
    return Log()


def test_rtp2_members_enter_update_and_leave(log: Log) -> None:
    assert [c.action for c in log.presence("a", ENTER, "ann", "bob", data="x")] == [ENTER, ENTER]
    (update,) = log.presence("a", UPDATE, "ann", serial=1, data="y")
    assert (update.action, update.state.id, update.state.data) == (UPDATE, "a:1:0", "y")
    assert log.members() == {("a", "ann"), ("a", "bob")}
    (leave,) = log.presence("a", LEAVE, "ann", serial=2)
    assert (leave.action, leave.state.data) == (LEAVE, "y"), "a leave without data carries the member's last data"
    assert log.presence("a", LEAVE, "ann", serial=3) == []
    (entered,) = log.presence("a", UPDATE, "cid", serial=4)
    assert entered.action == ENTER, "an update by a stranger enters it"


def test_rtp17g_entering_again_under_the_same_or_an_older_id_changes_nothing(log: Log) -> None:
    log.presence("a", ENTER, "ann", serial=3)
    again = [PresenceItem(action=ENTER, client_id="ann", id="a:3:0")]
    assert log.append(Kind.PRESENCE, connection_id="a", id="a:9", presence=again, incarnation=1, edge="e2") == []
    older = [PresenceItem(action=ENTER, client_id="ann", id="a:2:0")]
    assert log.append(Kind.PRESENCE, connection_id="a", id="a:10", presence=older, incarnation=1, edge="e2") == []
    assert log.view.by_connection["a"][KEY].incarnation == 1, "it acted under a later incarnation"


def test_a_leave_counts_only_while_its_cause_holds(log: Log) -> None:
    log.presence("a", ENTER, "ann")
    log.append(Kind.GONE, connection_id="a", incarnation=0)
    gone = log.offset - 1
    assert (KEY, "a") in log.view.gone
    log.append(Kind.BACK, connection_id="a", incarnation=1, edge="e2")
    assert not log.view.gone
    assert log.presence("a", LEAVE, "ann", cause=gone) == []
    log.append(Kind.GONE, connection_id="a", incarnation=0)
    assert not log.view.gone, "the end of an earlier incarnation is old news"
    log.append(Kind.GONE, connection_id="a", incarnation=1)
    assert [c.client_id for c in log.presence("a", LEAVE, "ann", cause=log.offset - 1)] == ["ann"]
    assert log.members() == set()
    assert not log.view.channels
    assert not log.view.by_connection
    assert not log.view.by_edge


def test_a_member_that_enters_while_its_connection_is_gone_goes_with_it(log: Log) -> None:
    log.presence("a", ENTER, "ann")
    log.append(Kind.GONE, connection_id="a", incarnation=0)
    cause = log.offset - 1
    log.presence("a", ENTER, "bob", serial=1)
    assert len(log.presence("a", LEAVE, "ann", "bob", cause=cause)) == 2


def test_a_dead_edge_takes_its_connections_unless_they_moved(log: Log) -> None:
    log.presence("a", ENTER, "ann")
    log.presence("b", ENTER, "bob")
    log.append(Kind.BACK, connection_id="b", incarnation=1, edge="e2")
    log.append(Kind.EDGE_GONE, key=b"", edge="e1")
    cause = log.offset - 1
    assert set(log.view.gone) == {(KEY, "a")}
    log.presence("c", ENTER, "cid")
    assert set(log.view.gone) == {(KEY, "a"), (KEY, "c")}, "what was on its way when the edge died"
    log.append(Kind.EDGE_BACK, key=b"", edge="e1")
    assert not log.view.gone
    assert log.presence("a", LEAVE, "ann", cause=cause) == []
    log.append(Kind.EDGE_GONE, key=b"", edge="e1")
    assert log.presence("a", LEAVE, "ann", cause=log.offset - 1)


def test_a_connection_that_comes_to_a_gone_edge_shares_its_fate(log: Log) -> None:
    log.presence("a", ENTER, "ann")
    log.presence("b", ENTER, "bob", edge="e2")
    log.append(Kind.EDGE_GONE, key=b"", edge="e2")
    cause = log.offset - 1
    log.append(Kind.BACK, connection_id="a", incarnation=1, edge="e2")
    assert set(log.view.gone) == {(KEY, "a"), (KEY, "b")}, "it was on its way when the edge went"
    log.append(Kind.EDGE_BACK, key=b"", edge="e2")
    assert not log.view.gone
    assert log.presence("a", LEAVE, "ann", cause=cause) == []
    log.append(Kind.EDGE_GONE, key=b"", edge="e2")
    log.presence("a", ENTER, "cid", incarnation=2, edge="e2", serial=1)
    assert log.presence("a", LEAVE, "ann", "cid", cause=log.offset - 2)


def test_state_and_the_log_after_it_are_the_same_view(log: Log) -> None:
    log.presence("a", ENTER, "ann", "bob", data=b"\x00\xff")
    log.presence("b", ENTER, "ann", edge="e2")
    log.append(Kind.GONE, connection_id="a", incarnation=0, grace_ms=5_000)
    log.append(Kind.EDGE_GONE, key=b"", edge="e2")
    log.presence("c", ENTER, "cid")
    log.presence("c", LEAVE, "cid", serial=1)
    loaded = log.reloaded()
    assert log.members(loaded) == log.members() == {("a", "ann"), ("a", "bob"), ("b", "ann")}
    assert {place: h.gone for place, h in loaded.gone.items()} == {place: h.gone for place, h in log.view.gone.items()}
    assert loaded.gone[KEY, "a"].grace_ms == 5_000
    found = loaded.channels[KEY].find("a", "ann")
    assert found is not None
    assert found.state.data == b"\x00\xff"
    body = RecordBody(id="x", timestamp=1, connection_id="a", incarnation=4, edge="e3")
    record = msgspec.structs.replace(log.records[-1], value=msgspec.msgpack.encode(body), kind=Kind.BACK)
    for view in (loaded, log.view):
        view.apply(record, 30.0)
        assert set(view.gone) == {(KEY, "b")}


def test_pages_in_the_order_of_entering(log: Log) -> None:
    log.presence("a", ENTER, *(f"c{n}" for n in range(300)))
    log.presence("a", LEAVE, *(f"c{n}" for n in range(0, 300, 2)), serial=1)
    log.presence("a", UPDATE, "c1", serial=2)
    channel = log.view.channels[KEY]
    names = [m.client_id for m in channel.after(0)]
    assert names == [f"c{n}" for n in range(1, 300, 2)]
    third = list(channel.after(0))[2]
    assert [m.client_id for m in channel.after(third.number)] == names[3:]


def test_before_the_checkpoint_records_are_judged_by_what_they_say_of_each_other() -> None:
    log = Log()
    log.view = PartitionPresence(lenient=True)
    log.append(Kind.GONE, connection_id="a", incarnation=2)
    cause = log.offset - 1
    log.append(Kind.BACK, connection_id="a", incarnation=3, edge="e2")
    log.append(Kind.GONE, connection_id="b", incarnation=0)
    other = log.offset - 1
    assert log.presence("b", LEAVE, "bob", cause=other)
    assert log.presence("c", LEAVE, "cid", cause=-1), "whose cause was before anything read"
    log.append(Kind.GONE, connection_id="a", incarnation=3)
    assert log.presence("a", LEAVE, "ann", cause=cause) == []


def test_rtp2b2_who_has_left_stays_away_though_an_older_entry_follows_in_the_log(log: Log) -> None:
    log.presence("a", ENTER, "ann", serial=3)
    log.presence("a", LEAVE, "ann", serial=7)
    again = [PresenceItem(action=ENTER, client_id="ann", id="a:3:0")]
    assert log.append(Kind.PRESENCE, connection_id="a", id="a:9", presence=again, incarnation=1, edge="e2") == []
    late = PartitionPresence()
    late.look_back(log.records[1])
    assert late.apply(log.records[2], 0.0) == [], "a reader that starts at a checkpoint after the leave agrees"
    assert log.presence("a", ENTER, "ann", serial=10), "a later entry counts"
    log.append(Kind.GONE, connection_id="a", incarnation=1)
    assert log.presence("a", LEAVE, "ann", cause=log.offset - 1)
    back = [PresenceItem(action=ENTER, client_id="ann", id="a:10:0")]
    assert log.append(Kind.PRESENCE, connection_id="a", id="a:11", presence=back, incarnation=2, edge="e2"), "it had not left by itself"
