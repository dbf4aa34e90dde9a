"""What an owner hands over to who sends: whatever the order in which the two threads come to it, each span is sent once, and in order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from core import state
from core.ownership import OwnedPartition, PartitionState
from core.remote import Place, RemoteRule, RemoteRules, summary
from core.rules import Batcher, Outcome, Output, Rule, RuleConfig, RuleSet
from core.state import Checkpoint, ParkedState
from relay.model.limits import CoreLimits


def remote(name: str = "far", routing_key: str = "t", **target: Any) -> Rule:
    fields = {"id": name, "target": {"routing_key": routing_key, "brokers": ["other:9092"]} | target}
    return Rule("app", msgspec.convert(fields, RuleConfig))


def output(number: int, topic: str = "t", rule: str = "app/far") -> Output:
    return Output(rule, topic, None, str(number).encode(), [])


class Sender:
    """The thread that sends, in steps. The log has an output for each offset."""

    def __init__(self, rule: RemoteRule) -> None:
        self.rule = rule
        self.sent: list[int] = []
        """Values, as they are given to the driver."""
        self.acknowledged: set[int] = set()

    def take(self) -> None:
        span = self.rule.take()
        if span is not None:
            self._send(span.end, span.outputs)

    def read(self, committed: int, most: int) -> None:
        to = min(self.rule.gap(committed), self.rule.sent + most)
        if to > self.rule.sent:
            self._send(Place(to, 0), [output(offset) for offset in range(self.rule.sent, to)])

    def _send(self, end: Place, outputs: list[Output]) -> None:
        self.rule.send(end, outputs)
        entry = self.rule.sending[-1]
        while entry.waiting:
            one = entry.waiting.popleft()
            self.sent.append(int(one.value))
            self.rule.unreported += 1
            entry.unreported += 1

    def acknowledge(self) -> None:
        """Everything that is on its way."""
        for entry in self.rule.sending:
            for _ in range(entry.unreported):
                self.rule.report(entry, output(0), None, 0.0)
        self.acknowledged.update(self.sent)
        self.rule.advance()


@given(st.lists(st.sampled_from(["span", "empty", "take", "read", "ack", "again"]), max_size=200), st.integers(0, 5))
def test_each_record_is_sent_once_and_in_order_however_little_is_kept(steps: list[str], behind: int) -> None:
    rule = RemoteRule(0, remote(), Place(0, 0), Place(behind, 0))
    sender, committed, again = Sender(rule), behind, 0
    for step in steps:
        if step in ("span", "empty"):
            end = committed + 2
            made = [output(committed), output(committed + 1)] if step == "span" else []
            if not made:  # the log has nothing for the rule: here, records that are not its own
                continue
            committed = end
            rule.hand_over(made, Place(end, end), most_held=1_500)
        elif step == "take":
            sender.take()
        elif step == "read":
            sender.read(committed, 3)
        elif step == "ack":
            sender.acknowledge()
        else:
            again += 1
            rule.begin_again()
            sender.sent = [value for value in sender.sent if value < rule.at.offset]
        assert sender.sent == list(range(rule.sent))
        assert set(range(rule.at.offset)) <= sender.acknowledged
        assert rule._put - rule._taken <= 1_500
    for turn in range(200):
        sender.take()
        sender.read(committed, 3)
        if turn % 5 == 0:  # commits go on, with nothing in them
            rule.hand_over([], Place(committed, 0), most_held=1_500)
    sender.acknowledge()
    assert sender.sent == list(range(committed))
    assert rule.at.offset == committed


def owned(records: dict[bytes, bytes] | None = None, rules: list[Rule] | None = None, offset: int = 10) -> OwnedPartition:
    found = PartitionState(Checkpoint(stream="s", offset=offset, core="c"), records or {})
    made = RuleSet([remote()] if rules is None else rules, site="c")
    return OwnedPartition(
        3,
        found,
        stream="s",
        core="c",
        low=0,
        first=offset,
        rules_from=offset,
        time=5,
        channels=10,
        now=0.0,
        rules=made,
        limits=CoreLimits(),
    )


def cursor(offset: int, **fields: Any) -> bytes:
    return state.encode(ParkedState(offset=offset, time=1, **fields))


def places(changes: dict[bytes, bytes | None]) -> dict[tuple[str, str], int | None]:
    found: dict[tuple[str, str], int | None] = {}
    for key, value in changes.items():
        match msgspec.msgpack.decode(key):
            case ["remote", str(rule), str(topic)]:
                found[rule, topic] = None if value is None else msgspec.msgpack.decode(value, type=ParkedState).offset
    return found


def test_cursors_go_on_begin_now_or_are_given_up() -> None:
    key = state.remote_key
    partition = owned(
        {key("app/far", ""): cursor(4), key("app/gone", ""): cursor(7), key("app/far", "t1"): cursor(2, routing="#{channelName}")},
        [remote(routing_key="#{channelName}"), remote("new")],
    )
    rules = partition.remote.rules
    assert (rules["app/far"].at.offset, rules["app/new"].at.offset) == (4, 10)
    assert rules["app/far"].followers["t1"].at.offset == 2
    assert [each[:2] for each in partition.forgotten] == [("app/gone", "")]
    assert places(partition.changes) == {("app/gone", ""): None}
    partition.remote.settle(1.0, partition.changes)
    assert places(partition.changes) == {("app/gone", ""): None, ("app/far", ""): 4, ("app/far", "t1"): 2, ("app/new", ""): 10}


def test_a_changed_rule_goes_on_from_its_cursor_and_one_that_moves_begins_anew() -> None:
    """R7.7"""
    old = remote()
    partition = owned({state.remote_key("app/far", ""): cursor(4)}, [old])
    one = partition.remote.rules["app/far"]
    changed = remote(brokers=["another:9092"])
    assert partition.change_rules(RuleSet([changed], site="c")) == []
    assert one.gone
    assert partition.remote.rules["app/far"].at.offset == 4
    assert partition.remote.rules["app/far"].gap(10) == 10, "what the old one held is read again"
    own = Rule("app", msgspec.convert({"id": "far", "target": {"routing_key": "t"}}, RuleConfig))
    given_up = partition.change_rules(RuleSet([own], site="c"))
    assert given_up is not None
    assert [tuple(each) for each in given_up] == [("app/far", "", 4)]
    assert partition.remote.rules == {}
    assert places(partition.changes) == {("app/far", ""): None}
    assert partition.change_rules(RuleSet([remote()], site="c")) == []
    assert partition.remote.rules["app/far"].at.offset == 10


def remote_rules(rule: Rule, first: int = 0) -> RemoteRules:
    made = RemoteRules(0, Batcher(), most_held=10_000, most_topics=2)
    made.restore({}, {rule.label: rule}, Place(first, 0))
    return made


def test_a_cursor_is_never_noted_ahead_of_the_topic_that_stays_behind() -> None:
    rules = remote_rules(remote(routing_key="#{channelName}"))
    main = rules.rules["app/far"]
    main.take()  # the mark at which the owner begins
    rules.take(Outcome([output(0, "a"), output(1, "b")], [], []))
    rules.hand_over(Place(2, 0))
    span = main.take()
    assert span is not None
    main.send(span.end, span.outputs)
    one = main.follow("b")
    assert rules.join(one)
    assert [each.topic for each in main.sending[0].waiting] == ["a"]
    main.sending[0].waiting.clear()
    main.advance()
    changes: dict[bytes, bytes | None] = {}
    rules.settle(0.0, changes)
    assert places(changes) == {("app/far", ""): 2, ("app/far", "b"): 0}
    assert one.gap(99) == 2, "it follows the rule, not the owner"
    one.send(Place(2, 0), [output(0, "a"), output(1, "b")])
    assert [each.topic for each in one.sending[0].waiting] == ["b"]
    assert main.awaits_follower
    assert not one.caught_up()
    one.sending[0].waiting.clear()
    one.advance()
    assert one.caught_up()
    rules.settle(0.0, changes)
    assert places(changes)["app/far", "b"] is None
    assert main.covers(output(2, "b"))


def test_topics_that_wait_are_few() -> None:
    rules = remote_rules(remote(routing_key="#{channelName}"))
    main = rules.rules["app/far"]
    assert [rules.join(main.follow(topic)) for topic in "abc"] == [True, True, False]


def test_a_cursor_is_noted_once_a_second_unless_it_is_given_up_in_order() -> None:
    rules = remote_rules(remote())
    one = rules.rules["app/far"]
    noted = Counter[int]()
    for tick in range(40):
        one.at = Place(tick + 1, 0)
        changes: dict[bytes, bytes | None] = {}
        rules.settle(tick / 20, changes)
        noted[len(changes)] += 1
    assert noted[1] == 2
    changes = {}
    rules.settle(2.0, changes, at_once=True)
    assert places(changes) == {("app/far", ""): 40}


def test_what_retention_took_is_counted() -> None:
    one = RemoteRule(0, remote(), Place(3, 7), Place(20, 9))
    assert one.lost(3) == 0
    assert one.lost(9) == 6
    assert (one.sent, one.at) == (9, Place(9, 0))


def test_what_status_says() -> None:
    rule = remote()
    one, two = (RemoteRule(number, rule, Place(5, 0), Place(5, 0)) for number in (1, 2))
    two.failed("missing_topic", 100.0, 4_000)
    assert two.retry_at == 101.0
    assert summary([(one, 9), (two, 7)]) == [
        {
            "rule": "app/far", "topic": "", "cluster": "other:9092", "state": "parked", "reason": "missing_topic", "since": 4_000,
            "partitions": [2], "behind": 6,
        }
    ]  # fmt: skip
    two.goes_on()
    one.reading = True
    (told,) = summary([(one, 9), (two, 7)])
    assert (told["state"], told["reason"], told["since"], told["partitions"]) == ("catching up", "", 0, [])
