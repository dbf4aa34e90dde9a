"""Rules that change while everything runs: from which record of the log on, what becomes of what was waiting, and that each record is
written by one version of a rule, once, whoever owns the partition and whatever each owner knows."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaException, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from core import state
from core.kafka import owner as owner_module
from core.kafka.owner import OwnerRunner
from core.log import LogRecord
from core.ownership import OwnedPartition, PartitionState
from core.parked import GivenUp, ParkedRule
from core.rules import Output, Rule, RuleConfig, RuleSet, Version
from core.state import Checkpoint, ParkedState
from core.troubles import Troubles
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody
from tests.unit.core.test_catch_up import World as CatchingUp
from tests.unit.core.test_owner_run import TOPIC, Clock, FakeMessage, States, at, make_run

STREAM, CONFIG = "stream00", "config00"
COMPUTED = "#{message.name}:k"
NO_CHECKPOINT = state.encode(Checkpoint(stream=STREAM, offset=0))


def rule(name: str, routing_key: str, *, begun: int = 0, **fields: Any) -> Rule:
    return Rule("app", msgspec.convert({"id": name, "target": {"routing_key": routing_key}, **fields}, RuleConfig), begun=begun)


def rule_set(*rules: Rule, version: int = 0) -> RuleSet:
    return RuleSet(rules, site="core-1", version=Version(CONFIG, version))


def message(offset: int, name: str = "x") -> LogRecord:
    value = msgspec.msgpack.encode(RecordBody(id=f"c:{offset}", timestamp=1, connection_id="c", messages=[Message(data="x", name=name)]))
    return LogRecord(STREAM, 3, offset, 1_000 + offset, b"app:room", value, Kind.MESSAGE, f"c:c:{offset}")


def owner(rules: RuleSet, records: dict[bytes, bytes] | None = None, *, first: int = 0, limits: CoreLimits | None = None) -> OwnedPartition:
    found = PartitionState(Checkpoint(stream=STREAM, offset=first), records or {})
    return OwnedPartition(
        3,
        found,
        stream=STREAM,
        core="core-1",
        low=0,
        first=first,
        rules_from=first,
        time=0,
        channels=10,
        now=0.0,
        rules=rules,
        limits=limits,
    )


def take(owned: OwnedPartition, *records: LogRecord) -> None:
    for record in records:
        owned.take(record, duplicate=False, rules=owned.rules, now=0.0)


def offset_of(output: Output) -> int:
    return int(msgspec.json.decode(output.value)["messages"][0]["serial"].rpartition(":")[0].rpartition("-")[2])


def parked(rules: RuleSet, *faults: str) -> tuple[OwnedPartition, dict[str, ParkedRule]]:
    """Three records were taken, of the topics x, y and x, of which `faults` are missing."""
    owned = owner(rules)
    take(owned, message(0, "x"), message(1, "y"), message(2, "x"))
    owned.combine()
    owned.park(dict.fromkeys(faults, "missing_topic"), 1)
    owned.done()
    return owned, {each.topic: each for each in owned.parked.rules.values()}


# --- a change on one partition ------------------------------------------------------------------------------------------------------------


def test_a_new_rule_begins_where_a_span_ended_and_the_state_says_so_at_once() -> None:
    """R6.1."""
    owned = owner(rule_set())
    take(owned, message(0))
    owned.done()
    assert owned.change_rules(rule_set(rule("r", "x"), version=7)) == []
    assert owned.writes, "without waiting for something to write"
    assert state.decode(state.CHECKPOINT, owned.checkpoint()) == (
        ["checkpoint"], Checkpoint(stream=STREAM, offset=1, time=1_000, core="core-1", config=CONFIG, rules=7),
    )  # fmt: skip
    take(owned, message(1))
    assert [offset_of(output) for output in owned.outputs] == [1]
    owned.done()
    assert not owned.writes


@pytest.mark.parametrize(
    "now",
    [[], [rule("r", "z", status="disabled")], [rule("r", "z", begun=3)]],
    ids=["R6.5 removed", "R6.5 disabled", "R6.6 enabled again"],
)
def test_what_waited_for_a_rule_that_stopped_is_given_up(now: list[Rule]) -> None:
    owned, found = parked(rule_set(rule("r", "z")), "z")
    assert owned.change_rules(rule_set(*now)) == [GivenUp("app/r", "", 0)]
    assert owned.changes == {state.parked_key("app/r", ""): None}
    assert found[""].gone
    assert not owned.parked


def test_what_waited_is_the_changed_rules_from_its_cursor_on() -> None:
    """R6.3."""
    before, after = rule("r", "z"), rule("r", "other")
    owned, found = parked(rule_set(before), "z")
    found[""].catching_up = True
    owned.done()
    take(owned, message(3))  # held, as the rule was
    owned.done()
    found[""].cursor, found[""].offered = 3, True
    assert owned.change_rules(rule_set(after)) == []
    each = found[""]
    assert (each.by, each.gone, each.newest) == (after, False, 3)
    owned.combine()
    assert not each.gone, "what is held was made by the rule as it was: it goes on catching up"
    assert owned.outputs == []


def test_a_rule_as_it_was_keeps_what_is_held_for_it() -> None:
    """R6.7."""
    same = rule("r", "z")
    owned, found = parked(rule_set(same), "z")
    found[""].catching_up = True
    owned.done()
    take(owned, message(3))
    owned.done()
    assert owned.change_rules(rule_set(same, rule("new", "x"))) == []
    found[""].cursor, found[""].offered = 3, True
    owned.combine()
    assert found[""].gone
    assert [offset_of(output) for output in owned.outputs] == [3]


def test_what_waits_for_one_topic_is_given_up_with_the_routing_that_sent_it_there() -> None:
    """R6.4. A record before could be that topic's by now, which as the rule was went to another one."""
    owned, found = parked(rule_set(rule("r", COMPUTED)), "x")
    assert set(found) == {"x"}
    assert owned.change_rules(rule_set(rule("r", COMPUTED, source={"channel_filter": "room"}))) == []
    assert owned.change_rules(rule_set(rule("r", "x"))) == [GivenUp("app/r", "x", 0)]


def test_the_next_owner_gives_up_the_same() -> None:
    parked_at = state.encode(ParkedState(offset=1, begun=2, routing=COMPUTED))
    records = {state.parked_key("app/r", "x"): parked_at, state.parked_key("app/s", "x"): parked_at}
    owned = owner(rule_set(rule("r", COMPUTED, begun=2), rule("s", "other", begun=2)), dict(records), first=3)
    assert set(owned.parked.rules) == {("app/r", "x")}
    assert owned.forgotten == [GivenUp("app/s", "x", 1)]
    owned = owner(rule_set(rule("r", COMPUTED, begun=3)), dict(records), first=3)
    assert [each.rule for each in owned.forgotten] == ["app/r", "app/s"]


def test_nothing_changes_while_a_transaction_may_move_a_cursor_that_is_to_go() -> None:
    owned, _ = parked(rule_set(rule("r", "z"), rule("other", "z")), "z")
    stays, goes = owned.parked.rules["app/other", ""], owned.parked.rules["app/r", ""]
    stays.writing = goes.writing = True
    without = rule_set(stays.by)
    assert owned.change_rules(without) is None
    assert goes.gone, "and none begins"
    take(owned, message(3))
    assert owned.outputs == [], "still as it was"
    owned.done()
    goes.writing = False
    goes.cursor = 2
    assert owned.change_rules(without) == [GivenUp("app/r", "", 2)]
    assert not stays.gone


# --- catching up meanwhile ----------------------------------------------------------------------------------------------------------------


def test_catching_up_ends_with_the_version_that_it_began_with_and_begins_with_the_next() -> None:
    world = CatchingUp()
    changed = rule("bad", "late", source={"channel_filter": "room"})
    world.parked.by = changed
    world.parked.failed("missing_topic", 1e12)
    world.turn()
    assert world.parked.tried is changed, "what was wrong may be right by now: it is tried at once"
    ((count, *_),) = world.transactions.written
    assert count == 4


def test_no_transaction_begins_for_a_cursor_that_is_given_up() -> None:
    world = CatchingUp()
    found: list[bool] = []
    world.transactions.before = lambda: found.append(world.parked.writing)
    world.turn()
    assert found == [True]
    assert not world.parked.writing
    again = CatchingUp()
    span = OwnedPartition.combine

    def given_up_meanwhile(self: OwnedPartition) -> None:
        span(self)
        again.parked.gone = True

    OwnedPartition.combine = given_up_meanwhile  # type: ignore[method-assign]
    try:
        again.turn()
    finally:
        OwnedPartition.combine = span  # type: ignore[method-assign]
    assert again.transactions.written == []


# --- the owner ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("core.kafka.owner.time", clock)
    return clock


def make_owner(rules: list[Rule], version: int = 0) -> OwnerRunner:
    config = SimpleNamespace(prefix="t")
    log, state_topic = SimpleNamespace(topic=TOPIC, stream=STREAM, partitions=4), SimpleNamespace(topic="t.state")
    loop = SimpleNamespace(call_soon_threadsafe=lambda *_: None)
    return OwnerRunner(
        config, log, state_topic, rules, core="core-1", limits=CoreLimits(), loop=loop, deliver=lambda _: None,  # type: ignore[arg-type]
        version=Version(CONFIG, version),
    )  # fmt: skip


def test_rules_into_other_clusters_that_wait_are_told_of_like_the_others() -> None:
    far = rule("far", "x", target={"routing_key": "x", "brokers": ["other:9092"]})
    runner = make_owner([far])
    runner.partitions = (owner(rule_set(far)),)
    assert runner.waiting_rules() == []
    runner.partitions[0].remote.rules[far.label].stands("unreachable_cluster", 5)
    (found,) = runner.waiting_rules()
    (told,) = Troubles().look([found], {}, [], 60_000)
    assert (told.name, told.about["reason"], told.about["ruleId"]) == ("rule.parked", "unreachable_cluster", "far")


def test_what_rules_counted_that_came_and_went_does_not_stay_for_ever() -> None:
    runner = make_owner([])
    runner.limits = CoreLimits(stopped_rules=2)
    for number in range(4):
        one = rule(f"r{number}", "x")
        runner.written[one.label] = runner.missed[one.label] = runner.dropped[one.label, "too_large"] = 1
        assert runner.within_topics(Output(one.label, "x", None, b"", []))
        runner.tell_changes(rule_set(one), rule_set(), {1: number}, {})
    assert set(runner.written) == set(runner.missed) == {"app/r2", "app/r3"}
    assert {label for label, _ in runner.dropped} == set(runner._rule_topics) == set(runner.written)


def test_an_owner_takes_new_rules_up_between_two_spans(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = rule("a", "x"), rule("b", "x")
    owner = make_owner([first])
    run, consumer, transactions = make_run(clock, States({1: at(10)}))
    run._owner = owner
    run._assigned(consumer, [TopicPartition(TOPIC, 1)])
    consumer.script = [FakeMessage(1, 10)]
    run._read()
    assert len(run._owned[1].outputs) == 1
    assert (owner.runs(first), owner.runs(second)) == (True, False)
    owner.change([first, second], Version(CONFIG, 5))
    assert not owner.runs(second), "not yet"
    run._take_up_rules()
    assert transactions.written[-1] == (1, 11), "the span ended"
    assert not owner.runs(second), "not until it is in the state"
    run._commit_what_is_due()
    clock.now += 1
    run._commit_what_is_due()
    assert owner.runs(second)
    consumer.script = [FakeMessage(1, 11)]
    run._read()
    assert Counter(output.rule for output in run._owned[1].outputs) == {"app/a": 1, "app/b": 1}
    assert "rule app/b begins: partition and first offset {1: 11}" in caplog.text
    owner.change([first], Version(CONFIG, 6))
    run._take_up_rules()
    assert "rule app/b stops: partition and first offset {1: 12}" in caplog.text
    assert (owner.state_of("app/b")["state"], owner.state_of("app/b")["positions"]) == ("stopped", {"1": 12})
    assert (owner.state_of("app/a")["state"], owner.state_of("app/a")["positions"]) == ("running", {"1": 12})
    run._take_up_rules()
    assert caplog.text.count("stops") == 1


def test_an_owner_waits_until_it_knows_what_the_one_before_knew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "CALL_S", 0.05)
    found = PartitionState(Checkpoint(stream=STREAM, offset=10, core="core-2", config=CONFIG, rules=30), {})
    run, consumer, _ = make_run(clock, States({1: found}))
    run._owner = owner = make_owner([], version=20)
    with pytest.raises(KafkaException):
        run._assigned(consumer, [TopicPartition(TOPIC, 1)])
    assert not run._owned
    owner.change([rule("new", "x")], Version(CONFIG, 25))
    owner.change(None, Version(CONFIG, 30))
    run._assigned(consumer, [TopicPartition(TOPIC, 1)])
    assert list(run._owned[1].rules.by_label) == ["app/new"]


def test_what_another_incarnation_of_the_configuration_said_is_over() -> None:
    assert Version("new", 1).reaches(Version("old", 100))
    assert Version("new", 1).reaches(Version())
    assert not Version("new", 1).reaches(Version("new", 2))


def test_topics_of_a_rule_are_counted_anew_when_it_changes() -> None:
    owner = make_owner([rule("r", COMPUTED)])
    owner.limits = CoreLimits(rule_topics=1)
    output = Output("app/r", "x", None, b"", [])
    assert owner.within_topics(output)
    assert not owner.within_topics(output._replace(topic="y"))
    owner.change([rule("r", "y")], Version(CONFIG, 1))
    assert owner.within_topics(output._replace(topic="y"))


# --- a simple model -----------------------------------------------------------------------------------------------------------------------

CHANGES = ["absent", "disabled", "x", "y", COMPUTED]
NAMES, TOPICS, CORES = st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("publish"), TOPICS),
    st.tuples(st.just("traffic"), TOPICS),
    st.tuples(st.just("change"), NAMES, st.sampled_from(CHANGES)),
    st.tuples(st.just("change at once"), NAMES, st.sampled_from(CHANGES)),
    st.tuples(st.just("change at once"), NAMES, st.sampled_from(["x", "y", COMPUTED])),
    st.tuples(st.just("comes"), TOPICS),
    st.tuples(st.just("goes"), TOPICS),
    st.tuples(st.just("learn"), CORES),
    *[st.tuples(st.just(each)) for each in ("turn", "commit", "catch up", "begin", "end", "takeover")],
)


class World:
    """One partition, its state as it is committed, two topics that come and go, and two cores that own it in turn, each of which has read
    the configuration so far and no further. The model: which version of a rule was in force for each record, as the state had it."""

    def __init__(self) -> None:
        self.log: list[LogRecord] = []
        self.there = {"x", "y"}
        self.rules: dict[str, Rule] = {}
        self.versions = [rule_set()]
        self.known = [0, 0]
        self.core = 0
        self.records: dict[bytes, bytes] = {}
        self.limits = CoreLimits(parked_held_bytes=1_500)
        self.owned = owner(self.versions[0], limits=self.limits)
        self.written: list[tuple[str, int, str]] = []
        """(rule, offset, topic)"""
        self.in_force: list[RuleSet] = []
        """By offset."""
        self.given_up: list[tuple[GivenUp, int]] = []
        """And the first offset that is not."""
        self.giving_up: list[tuple[GivenUp, int]] = []
        """Within the span."""
        self.under_way: tuple[ParkedRule, int, list[Output]] | None = None

    # The configuration

    def change(self, name: str, to: str) -> None:
        """What the Control API does."""
        before, number = self.rules.get(name), len(self.versions)
        if to == "absent":
            self.rules.pop(name, None)
        else:
            begun = before.begun if before is not None and before.enabled else number
            status = "disabled" if to == "disabled" else "enabled"
            self.rules[name] = rule(name, "x" if to == "disabled" else to, begun=begun, status=status)
        self.versions.append(rule_set(*self.rules.values(), version=number))

    def learn(self, core: int, at_least: int = 0) -> None:
        self.known[core] = max(at_least, min(self.known[core] + 1, len(self.versions) - 1))

    # The owner

    def publish(self, name: str) -> None:
        self.log.append(message(len(self.log), name))
        take(self.owned, self.log[-1])

    def turn(self) -> None:
        newest = self.versions[self.known[self.core]]
        if self.owned.rules is not newest:
            self.commit()
            given_up = self.owned.change_rules(newest)
            if given_up is not None:
                self.giving_up += [(each, self.owned.position) for each in given_up]

    def commit(self) -> None:
        owned, began = self.owned, self.owned.committed
        owned.combine()
        missing = {output.topic for output in owned.outputs} - self.there
        if missing:
            assert owned.park(dict.fromkeys(missing, "missing_topic"), 1) == []
        self.write(owned.outputs)
        for key, value in owned.changes.items():
            self.put(key, value)
        assert began == len(self.in_force)
        self.in_force += [owned.rules] * (owned.position - len(self.in_force))
        assert [rules.version for rules in self.in_force] == sorted(rules.version for rules in self.in_force), "nobody goes back"
        self.put(state.CHECKPOINT, owned.checkpoint())
        self.given_up += self.giving_up
        self.giving_up = []
        owned.done()

    def write(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.topic in self.there
            self.written.append((output.rule, offset_of(output), output.topic))

    def put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = value

    def takeover(self) -> None:
        """The other core goes on, once it has read what the state says that this one knew. What was under way is lost."""
        self.under_way = None
        self.owned.parked.give_up()
        self.core = 1 - self.core
        saved = state.decode(state.CHECKPOINT, self.records.get(state.CHECKPOINT, NO_CHECKPOINT))
        assert saved is not None
        assert isinstance(saved[1], Checkpoint)
        first, known = saved[1].offset, PartitionState(saved[1], {}).rules
        if not self.versions[self.known[self.core]].version.reaches(known):
            self.learn(self.core, known.position)
        self.owned = owner(self.versions[self.known[self.core]], dict(self.records), first=first, limits=self.limits)
        self.giving_up = [(each, first) for each in self.owned.forgotten]
        take(self.owned, *self.log[first:])

    # What catches up, as `core.kafka.catch_up` does, a transaction in two steps

    def begin(self, most: int = 3) -> None:
        if self.under_way is not None:
            return
        for each in self.owned.parked.rules.values():
            if each.offered or each.gone or each.key not in self.records:
                continue
            to = self.owned.committed
            assert to is not None
            done = min(to, each.newest + 1, each.cursor + most)
            made = RuleSet([each.by], site="core-1")
            outputs = [one for record in self.log[each.cursor : done] for one in made.outcome(record).outputs if each.covers(one)]
            if not {output.topic for output in outputs} <= self.there or (each.by.topic or each.topic or "x") not in self.there:
                each.catching_up = False
                continue
            each.catching_up = True
            if each.cursor < done:
                each.writing = True
                self.under_way = each, done, outputs
                return
            if each.cursor > each.newest or each.cursor >= to:
                each.cursor = max(each.cursor, to)
                each.offered = True

    def end(self) -> None:
        if self.under_way is None:
            return
        (each, done, outputs), self.under_way = self.under_way, None
        if {output.topic for output in outputs} <= self.there:
            self.write(outputs)
            self.records[each.key] = each.at(done, 0)
            each.cursor = done
        each.writing = False

    def step(self, what: str, *about: Any) -> None:
        match what:
            case "comes":
                self.there.add(*about)
            case "goes":
                self.there.discard(*about)
            case "catch up":
                self.begin()
                self.end()
            case "traffic":
                for _ in range(3):
                    self.publish(*about)
                self.commit()
            case "change at once":
                self.change(*about)
                self.learn(self.core, len(self.versions) - 1)
                self.turn()
            case _:
                getattr(self, what)(*about)

    def settle(self) -> None:
        self.there = {"x", "y"}
        self.end()
        self.learn(self.core, len(self.versions) - 1)
        for _ in range(80):
            self.turn()
            self.step("catch up")
            self.commit()

    def left(self, label: str, offset: int, made_by: Rule) -> bool:
        """Whether what the rule had to write of a record was given up."""
        (output,) = RuleSet([made_by], site="core-1").outcome(self.log[offset]).outputs
        return any(
            each.rule == label and each.cursor <= offset < until and each.topic in ("", output.topic) for each, until in self.given_up
        )


def check(world: World) -> None:
    found = Counter((label, offset) for label, offset, _ in world.written)
    assert not [each for each, count in found.items() if count > 1], "never twice"
    for offset, rules in enumerate(world.in_force):
        for label in ("app/a", "app/b"):
            made_by = rules.by_label.get(label)
            if made_by is None:
                assert (label, offset) not in found, "not while the rule was not in force"
            elif (label, offset) not in found:
                assert world.left(label, offset, made_by), "nothing is missing that was not given up, and told"
    for label in ("app/a", "app/b"):
        for topic in "xy":
            offsets = [offset for rule_, offset, to in world.written if (rule_, to) == (label, topic)]
            assert offsets == sorted(offsets), "in the order of the log"


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=120))
def test_each_record_is_written_once_by_the_version_that_was_in_force_or_the_next(steps: list[Any]) -> None:
    """R6.1, R6.2, R6.3, R6.5."""
    world = World()
    for each in steps:
        world.step(*each)
    world.settle()
    assert len(world.in_force) == len(world.log)
    check(world)
    assert not world.owned.parked, "all is caught up"
    assert set(world.records) <= {state.CHECKPOINT}


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS.filter(lambda step: step[0] not in ("goes", "begin")), max_size=100))
def test_nothing_is_given_up_while_every_topic_is_there(steps: list[Any]) -> None:
    world = World()
    for each in steps:
        world.step(*each)
    world.settle()
    check(world)
    assert not world.given_up
