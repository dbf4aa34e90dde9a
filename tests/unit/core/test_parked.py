"""Parked rules: who is left out of a span, where their cursors stand, and that every record of the log reaches their topics once, whatever
is killed in between."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from rich.console import Console

from core import state
from core.io.http import watch_kafka
from core.log import LogRecord
from core.ownership import OwnedPartition, PartitionState
from core.parked import FIRST_RETRY_S, LAST_RETRY_S, ParkedRule, summary
from core.rules import Output, Rule, RuleConfig, RuleSet
from core.state import Checkpoint, ParkedState
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody
from relay.runtime.metrics import Metrics
from tidegate.operators import show_status

STREAM = "stream00"


def rule(name: str, routing_key: str, **fields: Any) -> Rule:
    return Rule("app", msgspec.convert({"id": name, "target": {"routing_key": routing_key}, **fields}, RuleConfig))


def rule_set(*rules: Rule) -> RuleSet:
    return RuleSet(rules, site="core-1")


def message(offset: int, name: str = "n") -> LogRecord:
    value = msgspec.msgpack.encode(RecordBody(id=f"c:{offset}", timestamp=1, connection_id="c", messages=[Message(data="x", name=name)]))
    return LogRecord(STREAM, 3, offset, 1_000 + offset, b"app:room", value, Kind.MESSAGE, f"c:c:{offset}")


def owner(
    rules: RuleSet, records: dict[bytes, bytes] | None = None, *, first: int = 0, time: int = 0, limits: CoreLimits | None = None
) -> OwnedPartition:
    found = PartitionState(Checkpoint(stream=STREAM, offset=first, time=time), records or {})
    return OwnedPartition(
        3, found, stream=STREAM, core="core-1", low=0, first=first, rules_from=first, time=time, channels=10, now=0.0,
        rules=rules, limits=limits,
    )  # fmt: skip


def take(owned: OwnedPartition, rules: RuleSet, offsets: Iterable[int]) -> None:
    for offset in offsets:
        owned.take(message(offset), duplicate=False, rules=rules, now=0.0)


def parked_state(owned: OwnedPartition, label: str, topic: str = "") -> ParkedState | None:
    value = owned.changes[state.parked_key(label, topic)]
    if value is None:
        return None
    read = state.decode(state.parked_key(label, topic), value)
    assert read is not None
    assert isinstance(read[1], ParkedState)
    return read[1]


BOTH = rule_set(rule("bad", "missing:k"), rule("good", "there"))


def parked_at(offset: int = 0) -> tuple[OwnedPartition, ParkedRule]:
    """`bad` was parked by a span of three records from `offset` on, which is committed."""
    owned = owner(BOTH, first=offset, time=77)
    take(owned, BOTH, range(offset, offset + 3))
    owned.combine()
    assert owned.park({"missing": "missing_topic"}, 5_000) == []
    assert [output.rule for output in owned.outputs] == ["app/good"] * 3
    assert parked_state(owned, "app/bad") == ParkedState(offset=offset, time=77, since=5_000, reason="missing_topic")
    assert owned.parked.started(), "it is told of once"
    owned.done()
    assert owned.parked.started() == []
    (each,) = owned.parked.rules.values()
    return owned, each


def test_a_rule_whose_topic_is_missing_is_left_out_from_the_beginning_of_the_span() -> None:
    owned, each = parked_at(10)
    assert (each.rule, each.topic, each.cursor, each.newest, each.time) == ("app/bad", "", 10, 12, 77)
    take(owned, BOTH, [13])
    assert [output.rule for output in owned.outputs] == ["app/good"]
    assert each.newest == 13


def test_a_rule_that_computes_its_topics_waits_for_the_missing_ones_alone() -> None:
    rules = rule_set(rule("r", "#{message.name}:k"))
    owned = owner(rules)
    for offset, name in enumerate(["a", "b", "a"]):
        owned.take(message(offset, name), duplicate=False, rules=rules, now=0.0)
    owned.combine()
    owned.park({"a": "unauthorized_topic"}, 1)
    assert [output.topic for output in owned.outputs] == ["b"]
    assert set(owned.parked.rules) == {("app/r", "a")}
    owned.done()
    for offset, name in enumerate(["a", "b"], 3):
        owned.take(message(offset, name), duplicate=False, rules=rules, now=0.0)
    assert [output.topic for output in owned.outputs] == ["b"]


def test_beyond_the_limit_of_topics_records_are_dropped_and_returned() -> None:
    rules = rule_set(rule("r", "#{message.name}:k"))
    owned = owner(rules, limits=CoreLimits(parked_topics=2))
    for offset, name in enumerate("abcc"):
        owned.take(message(offset, name), duplicate=False, rules=rules, now=0.0)
    owned.combine()
    dropped = owned.park(dict.fromkeys("abc", "missing_topic"), 1)
    assert [output.topic for output in dropped] == ["c", "c"]
    assert set(owned.parked.rules) == {("app/r", "a"), ("app/r", "b")}
    assert owned.outputs == []


def test_with_nothing_left_to_write_it_rejoins_at_once() -> None:
    owned, each = parked_at()
    each.cursor, each.offered = 3, True
    take(owned, BOTH, [])
    owned.combine()
    assert each.gone
    assert owned.changes == {each.key: None}
    assert owned.writes
    take(owned, BOTH, [3])
    assert [output.rule for output in owned.outputs] == ["app/bad", "app/good"]


def test_it_rejoins_with_what_was_held_for_it_since_its_cursor() -> None:
    owned, each = parked_at()
    take(owned, BOTH, [3])  # topics there again from here on; nothing of this span is held
    each.catching_up = True
    each.cursor, each.offered = 3, True
    owned.combine()
    assert not each.gone, "what it would have written at 3 is not here: it goes on"
    assert not each.offered
    owned.done()
    take(owned, BOTH, [4, 5])
    owned.done()
    take(owned, BOTH, [6])
    each.cursor, each.offered = 4, True
    owned.combine()
    assert each.gone
    found = [(output.rule, _offset(output)) for output in owned.outputs]
    assert sorted(found) == [("app/bad", 4), ("app/bad", 5), ("app/bad", 6), ("app/good", 6)]
    assert [offset for label, offset in found if label == "app/bad"] == [4, 5, 6], "in the order of the log"


def _offset(output: Output) -> int:
    return int(msgspec.json.decode(output.value)["messages"][0]["serial"].rpartition(":")[0].rpartition("-")[2])


def test_who_rejoins_and_fails_within_the_same_span_goes_back_to_its_own_cursor() -> None:
    owned, each = parked_at()
    each.catching_up = True
    owned.done()
    take(owned, BOTH, [3, 4])
    owned.done()
    take(owned, BOTH, [5])
    each.cursor, each.time, each.offered = 3, 1_002, True
    owned.combine()
    assert each.gone
    owned.park({"missing": "missing_topic"}, 9_000)
    assert [output.rule for output in owned.outputs] == ["app/good"]
    assert parked_state(owned, "app/bad") == ParkedState(offset=3, time=1_002, since=9_000, reason="missing_topic")


def test_too_much_to_hold_is_let_go_and_held_again_from_the_next_span_on() -> None:
    rules = BOTH
    owned = owner(rules, {state.parked_key("app/bad", ""): state.encode(ParkedState(offset=0))}, limits=CoreLimits(parked_held_bytes=1_000))
    (each,) = owned.parked.rules.values()
    each.catching_up = True
    owned.done()
    take(owned, rules, range(10))
    each.cursor, each.offered = 0, True
    owned.combine()
    assert not each.gone
    owned.done()
    take(owned, rules, [10])
    each.cursor, each.offered = 10, True
    owned.combine()
    assert each.gone


def test_a_rule_in_batch_mode_is_left_out_and_comes_back_the_same_way() -> None:
    rules = rule_set(rule("bad", "missing:k", request_mode="batch"), rule("good", "there"))
    owned = owner(rules)
    take(owned, rules, range(3))
    owned.combine()
    owned.park({"missing": "missing_topic"}, 1)
    assert [output.rule for output in owned.outputs] == ["app/good"] * 3
    (each,) = owned.parked.rules.values()
    each.catching_up = True
    owned.done()
    take(owned, rules, [3, 4])
    assert not owned.batcher
    each.cursor, each.offered = 3, True
    owned.combine()
    assert [output.rule for output in owned.outputs] == ["app/good", "app/good", "app/bad"]


def test_the_next_owner_knows_the_cursor_and_a_rule_that_runs_no_more_loses_it() -> None:
    key, gone = state.parked_key("app/bad", ""), state.parked_key("app/removed", "t")
    found = {key: state.encode(ParkedState(offset=4, time=9, reason="missing_topic")), gone: state.encode(ParkedState(offset=2))}
    owned = owner(BOTH, found, first=7)
    (each,) = owned.parked.rules.values()
    assert (each.cursor, each.newest, each.reason) == (4, 6, "missing_topic")
    assert owned.changes == {gone: None}
    assert [(one.rule, one.cursor) for one in owned.forgotten] == [("app/removed", 2)]
    take(owned, BOTH, [7])
    assert [output.rule for output in owned.outputs] == ["app/good"]


def test_a_disabled_rule_is_one_that_runs_no_more() -> None:
    rules = rule_set(rule("bad", "missing", status="disabled"))
    owned = owner(rules, {state.parked_key("app/bad", ""): state.encode(ParkedState(offset=4))}, first=7)
    assert not owned.parked
    assert owned.changes == {state.parked_key("app/bad", ""): None}


def test_a_partition_that_is_given_up_is_nobodys_to_catch_up() -> None:
    owned, each = parked_at()
    owned.parked.give_up()
    assert each.gone


def test_attempts_grow_rarer_and_loss_is_counted_up_to_the_last_record_that_waited() -> None:
    _, each = parked_at()
    waits = []
    for _ in range(6):
        each.failed("missing_topic", 100.0)
        waits.append(each.retry_at - 100.0)
    assert waits == [FIRST_RETRY_S, 2.0, 4.0, 8.0, LAST_RETRY_S, LAST_RETRY_S]
    assert each.lost(2) == 2
    assert each.lost(2) == 0
    assert each.lost(50) == 1
    assert each.cursor == 50


def test_what_status_and_metrics_say() -> None:
    _, one = parked_at(10)
    _, two = parked_at(20)
    two.partition, two.since, two.catching_up = 1, 4_000, True
    assert summary([(one, 15), (two, 22)]) == [
        {
            "rule": "app/bad", "topic": "", "reason": "missing_topic", "since": 4_000, "partitions": [1, 3],
            "cursors": {"1": 20, "3": 10}, "catchingUp": 1, "behind": 7,
        }
    ]  # fmt: skip
    shown = summary([(one, 15), (two, 22)])
    counters: dict[str, Any] = {"written": Counter(), "dropped": Counter(), "missed": Counter({"app/bad": 3})}
    numbers = dict.fromkeys(("records", "states", "commits", "refused", "lost"), 0)
    metrics = Metrics()
    watch_kafka(metrics, SimpleNamespace(owned=frozenset(), parked_rules=lambda: shown, remote_rules=list, **counters, **numbers), [])
    text = generate_latest(metrics.registry).decode()
    assert 'tidegate_rule_parked{reason="missing_topic",rule="app/bad"} 2.0' in text
    assert 'tidegate_rule_behind{rule="app/bad"} 7.0' in text
    assert 'tidegate_rule_missed_total{rule="app/bad"} 3.0' in text


def test_operators_are_shown_them() -> None:
    _, each = parked_at(10)
    core = {"node": "core-1", "ready": True, "partitions": [], "links": [], "parkedRules": summary([(each, 15)])}
    numbers = dict.fromkeys(("sessions", "connections", "channels", "appends"), 0)
    told = io.StringIO()
    show_status({"cores": [core | numbers], "edges": [], "partitions": []}, Console(file=told, width=200))
    (line,) = [line for line in told.getvalue().splitlines() if "app/bad" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "app/bad",
        "all",
        "missing topic",
        "1970-01-01 00:00:05",
        "core-1",
        "3",
        "5",
    ]


# --- exactly once ------------------------------------------------------------------------------------------------------------------------

STEPS = [
    *(["publish"] * 3 + ["commit"] * 3 + ["catch up"] * 4 + ["traffic"] * 4 + ["topic comes"] * 2),
    *("topic goes", "takeover", "catch up is lost"),
]


class World:
    """One partition, its state as it is committed, and the topic of the rule that is parked at times."""

    def __init__(self) -> None:
        self.log: list[int] = []
        self.there = True
        self.written: list[int] = []
        self.records: dict[bytes, bytes] = {}
        self.checkpoint = 0
        self.limits = CoreLimits(parked_held_bytes=1_500)
        self.owned = owner(BOTH, limits=self.limits)

    def publish(self) -> None:
        offset = len(self.log)
        self.log.append(offset)
        take(self.owned, BOTH, [offset])

    def commit(self) -> None:
        """A transaction of the owner: outputs, state, checkpoint."""
        owned = self.owned
        owned.combine()
        if not self.there and any(output.topic == "missing" for output in owned.outputs):
            owned.park({"missing": "missing_topic"}, 1)
        assert self.there or all(output.topic != "missing" for output in owned.outputs)
        self.written += [_offset(output) for output in owned.outputs if output.topic == "missing"]
        for key, value in owned.changes.items():
            if value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = value
        self.checkpoint = owned.position
        owned.done()

    def catch_up(self, *, most: int = 3, lost: bool = False) -> None:
        """What `core.kafka.catch_up` does in one step. `lost`: its core dies before the transaction is committed."""
        for each in self.owned.parked.rules.values():
            if each.offered or each.key not in self.records:
                continue
            if not self.there:
                each.catching_up = False
                return
            each.catching_up = True
            to = self.owned.committed
            assert to is not None
            done = min(to, each.newest + 1, each.cursor + most)
            if each.cursor < done and not lost:
                self.written += range(each.cursor, done)
                self.records[each.key] = each.at(done, 0)
                each.cursor = done
            if each.cursor > each.newest or each.cursor >= to:
                each.cursor = max(each.cursor, to)
                each.offered = True

    def takeover(self) -> None:
        self.owned.parked.give_up()
        self.owned = owner(BOTH, dict(self.records), first=self.checkpoint, limits=self.limits)
        take(self.owned, BOTH, self.log[self.checkpoint :])

    def step(self, what: str) -> None:
        match what:
            case "publish":
                self.publish()
            case "commit":
                self.commit()
            case "catch up":
                self.catch_up()
            case "catch up is lost":
                self.catch_up(lost=True)
                self.takeover()
            case "traffic":
                for each in ("publish", "commit", "publish", "catch up"):
                    self.step(each)
            case "topic comes":
                self.there = True
            case "topic goes":
                self.there = False
            case "takeover":
                self.takeover()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=80))
def test_each_record_is_written_once_and_in_order_whatever_happens(steps: list[str]) -> None:
    world = World()
    for each in steps:
        world.step(each)
        assert world.written == sorted(set(world.written)), "never twice, never out of order"
    world.there = True
    for _ in range(60):
        world.catch_up()
        world.commit()
    assert world.written == world.log
    assert not world.owned.parked, "it is back"
    assert not world.records


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["publish", "commit", "catch up"]), min_size=20, max_size=60))
def test_it_rejoins_while_others_go_on_publishing(steps: list[str]) -> None:
    world = World()
    world.there = False
    for each in ["publish"] * 5 + ["commit"]:
        world.step(each)
    assert world.owned.parked
    world.there = True
    for each in steps:
        world.step(each)
    for _ in range(10):  # one span after the other, and a step between them
        for each in ("publish", "commit", "catch up", "publish"):
            world.step(each)
        while world.owned.parked and not next(iter(world.owned.parked.rules.values())).offered:
            world.catch_up(most=1_000)
        world.commit()
    assert not world.owned.parked
    world.commit()
    assert world.written == world.log
