"""The span of an owned partition: what is written with which position."""

from __future__ import annotations

from typing import Any

import msgspec

from core import state
from core.lifecycle import CLOSED, OPENED, LifecycleBody
from core.log import LogRecord
from core.ownership import FORGET_EDGES_MS, OwnedPartition, PartitionState
from core.quiet import QUIET_MS
from core.rules import Rule, RuleConfig, RuleSet
from core.state import Checkpoint, EdgeState, HolderState, LastState, MemberState
from relay.model.message import Kind, Message, PresenceAction, PresenceItem, RecordBody

KEY = b"app:room"
NO_RULES = RuleSet([], site="core-1")
RULES = RuleSet([Rule("app", msgspec.convert({"id": "r", "target": {"routing_key": "out"}}, RuleConfig))], site="core-1")
NEW = PartitionState(None, {})


def partition(found: PartitionState = NEW, *, first: int = 0, rules_from: int = 0, low: int = 0, time: int = 0) -> OwnedPartition:
    return OwnedPartition(
        3, found, stream="stream00", core="core-1", low=low, first=first, rules_from=rules_from, time=time, channels=100, now=0.0
    )


def record(offset: int, kind: int, at: int = 1_000, **body: Any) -> LogRecord:
    value = msgspec.msgpack.encode(RecordBody(id=f"c:{offset}", timestamp=at, connection_id="c", **body))
    return LogRecord("stream00", 3, offset, at, KEY, value, kind, f"c:c:{offset}")


def message(offset: int, at: int = 1_000, **body: Any) -> LogRecord:
    return record(offset, Kind.MESSAGE, at, messages=[Message(data="x")], **body)


def entered(offset: int, client: str = "ann") -> LogRecord:
    items = [PresenceItem(action=PresenceAction.ENTER, client_id=client)]
    return record(offset, Kind.PRESENCE, presence=items, incarnation=1, edge="boot")


def checkpoint_of(owned: OwnedPartition) -> Checkpoint:
    read = state.decode(state.CHECKPOINT, owned.checkpoint())
    assert read is not None
    assert isinstance(read[1], Checkpoint)
    return read[1]


def test_outputs_and_changes_of_a_span_and_the_position_behind_them() -> None:
    """R1.16: duplicates make nothing."""
    owned = partition(PartitionState(Checkpoint(stream="stream00", offset=0), {}))
    owned.take(message(0), duplicate=False, rules=RULES, now=1.0)
    owned.take(entered(1), duplicate=False, rules=RULES, now=1.0)
    owned.take(message(2, at=2_000), duplicate=True, rules=RULES, now=1.0)
    assert [output.topic for output in owned.outputs] == ["out"]
    assert set(owned.changes) == {state.member_key(KEY, "c", "ann"), state.holder_key(KEY, "c")}
    assert owned.writes
    assert checkpoint_of(owned) == Checkpoint(stream="stream00", offset=3, time=2_000, core="core-1")
    owned.done()
    assert (owned.writes, owned.moved, owned.outputs, owned.changes) == (False, False, [], {})
    owned.take(message(3), duplicate=False, rules=NO_RULES, now=1.0)
    assert owned.moved
    assert not owned.writes, "a message that no rule wants is no reason for a transaction"


def test_nothing_is_committed_before_the_rules_begin() -> None:
    """Else a second start would take the position for that of the rules."""
    owned = partition(rules_from=2)
    for each in (entered(0), message(1)):
        owned.take(each, duplicate=False, rules=RULES, now=1.0)
        assert not owned.claims
        assert (owned.moved, owned.writes) == (owned.position == 2, owned.position == 2)
    assert owned.outputs == []
    owned.done()
    owned.take(message(2), duplicate=False, rules=RULES, now=1.0)
    assert len(owned.outputs) == 1


def test_an_empty_partition_is_begun_and_one_of_an_owner_is_claimed_first() -> None:
    assert partition().moved
    taken_over = partition(PartitionState(Checkpoint(stream="stream00", offset=7), {}), first=7, rules_from=7)
    assert taken_over.claims
    assert not taken_over.moved
    taken_over.done()
    assert not taken_over.claims


def test_what_the_state_says_is_gone_on_from() -> None:
    records = {
        state.member_key(KEY, "c", "ann"): state.encode(MemberState(id="c:0:0", timestamp=1, offset=0)),
        state.holder_key(KEY, "c"): state.encode(HolderState(incarnation=1, edge="boot")),
        state.last_key(b"app:quiet"): state.encode(LastState(offset=1, at=1_000)),
        state.edge_key("dead"): state.encode(EdgeState(gone=2, at=1_000)),
    }
    found = PartitionState(Checkpoint(stream="stream00", offset=7, time=5_000, quiet_from=3), records)
    owned = partition(found, first=7, rules_from=7, time=5_000)
    assert owned.changes == {}
    assert checkpoint_of(owned).quiet_from == 3
    leave = record(7, Kind.PRESENCE, presence=[PresenceItem(action=PresenceAction.LEAVE, client_id="ann")], incarnation=1, edge="boot")
    owned.take(leave, duplicate=False, rules=NO_RULES, now=1.0)
    assert owned.changes == {state.member_key(KEY, "c", "ann"): None, state.holder_key(KEY, "c"): None}
    owned.done()
    owned.sweep(1.0 + FORGET_EDGES_MS / 1000 + 1)
    assert owned.changes[state.edge_key("dead")] is None
    assert state.last_key(b"app:quiet") not in owned.changes


def test_the_state_of_an_earlier_log_is_taken_back() -> None:
    owned = partition(PartitionState(None, {b"old": b"x"}, made_anew=True))
    assert owned.changes == {b"old": None}
    assert owned.writes


def test_only_what_is_shown_and_kept_counts_as_the_last_of_a_channel() -> None:
    owned = partition(first=2)
    owned.look_back(message(1, at=500))
    later = [message(2, ephemeral=True), record(3, Kind.GONE, incarnation=1), message(4)]
    for each in later:
        owned.take(each, duplicate=each.offset == 4, rules=NO_RULES, now=1.0)
    owned.sweep(1.0 + QUIET_MS / 1000)
    assert owned.changes == {state.last_key(KEY): state.encode(LastState(offset=1, at=500))}


def test_events_of_the_lifecycle_are_state_and_no_sign_of_life() -> None:
    owned = partition()
    for offset, name in enumerate((OPENED, CLOSED)):
        value = msgspec.msgpack.encode(LifecycleBody(id="x", timestamp=1_000, name=name, n=1))
        owned.take(LogRecord("stream00", 3, offset, 1_000, KEY, value, Kind.LIFECYCLE, "x"), duplicate=False, rules=NO_RULES, now=0.0)
    assert len(owned.quiet) == 0
    assert owned.changes[state.lifecycle_key(KEY)] == state.encode(state.LifecycleState(number=1, open=False, at=1_000))
    owned.done()
    assert owned.lifecycle.journal is owned.changes
