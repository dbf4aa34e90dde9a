"""Rules that cannot write go their own way until they can, so that none holds up the others. Pure; `core.kafka.catch_up` reads and writes.

A rule whose topic is missing, or does not take what it is sent, is *parked* on that partition: the owner's span goes on without it, and its
own cursor joins the state, in the transaction of that span. From there it *catches up* in transactions of its own. Once its cursor stands
where one of the owner's spans began, it *rejoins*: the cursor leaves the state in the transaction of a span that has all the rule's records
since. So each record of the log is behind exactly one of the two positions, whoever owns the partition next.

A rule with a single topic is parked as a whole, so that it may be given another topic and what waits goes there. One that computes its
topics is parked for the topics that are at fault alone: a client that makes up a channel's name holds up nobody else.

When rules change, between two spans, a cursor stays with its rule as long as each record of the log is then still written by one of its
versions only: not when the rule was disabled in between, and that of a single topic not when the rule routes otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from core import state
from core.quiet import Changes
from core.rules import Batched, Output, Rule
from core.state import ParkedState

Fault = Literal["missing_topic", "unauthorized_topic", "unavailable_topic", "unavailable_schema", "unknown_schema"]
"""What is wrong with a topic: not there; no permission to write; some partition of it has no leader, or takes nothing. Or with the schema
of a rule: the registry does not answer; it has no such schema, or none that can be used."""

FIRST_RETRY_S = 1.0
"""Time from the first failure to the first attempt at catching up, in seconds; doubled with each further one."""
LAST_RETRY_S = 15.0
"""Longest time between two attempts, in seconds."""

Made = Output | Batched


class ParkedRule:
    """One rule on one partition, all of it or one topic, with a cursor of its own.

    It belongs to whoever catches up, except while it is `offered`: then to the owner. Each side writes its own fields.
    """

    __slots__ = (
        *("by", "catching_up", "cursor", "failures", "gone", "newest", "offered"),
        *("partition", "reason", "retry_at", "rule", "since", "time", "topic", "tried", "writing"),
    )

    def __init__(self, partition: int, rule: Rule, topic: str, at: ParkedState, newest: int) -> None:
        self.partition = partition
        self.rule = rule.label
        self.by = rule
        """As it is now. Of the owner."""
        self.tried = rule
        """As it was in the last attempt. Of the one who catches up, like `writing`."""
        self.writing = False
        """A transaction is under way that moves the cursor."""
        self.topic = topic
        """Empty: all of the rule."""
        self.since = at.since
        self.cursor = at.offset
        """What lies before it is written. Of the one who catches up, like all up to `offered`."""
        self.time = at.time
        """Broker time of the last record before the cursor, milliseconds; 0 if not known."""
        self.reason = at.reason
        self.failures = 0
        self.retry_at = 0.0
        """Monotonic seconds."""
        self.catching_up = False
        """Its topic is there by now."""
        self.offered = False
        """The cursor stands where a span of the owner began, or nothing is left: the owner may take it back."""
        self.newest = newest
        """The last record of the log that gave it something to write, or a later one. Of the owner, like `gone`."""
        self.gone = False
        """It has rejoined, was given up, or somebody else has it now."""

    @property
    def key(self) -> bytes:
        return state.parked_key(self.rule, self.topic)

    def at(self, offset: int, time: int) -> bytes:
        """What the state says of it when the cursor stands there."""
        return state.encode(_parked_state(self.by, self.topic, offset=offset, time=time, since=self.since, reason=self.reason))

    def covers(self, made: Made) -> bool:
        return made.rule == self.rule and self.topic in ("", made.topic)

    def failed(self, reason: str, now: float) -> None:
        self.reason = reason
        self.catching_up = False
        self.retry_at = now + min(FIRST_RETRY_S * 2**self.failures, LAST_RETRY_S)
        self.failures = min(self.failures + 1, 10)

    def lost(self, low: int) -> int:
        """Retention has deleted what lies before `low`: how many records of the log the rule has not seen, and will not. The cursor moves
        on."""
        if self.cursor >= low:
            return 0
        missed = min(low, self.newest + 1) - self.cursor
        self.cursor = low
        return max(missed, 0)


class ParkedRules:
    """Those of one partition. Of the thread that owns it."""

    __slots__ = ("_held", "_held_size", "_most_held", "_most_topics", "_number", "_rejoined", "_started", "rules")

    def __init__(self, number: int, *, most_held: int, most_topics: int) -> None:
        """`most_held`: bytes that wait here for rules that have nearly caught up. `most_topics`: of one rule."""
        self._number = number
        self._most_held = most_held
        self._most_topics = most_topics
        self.rules: dict[tuple[str, str], ParkedRule] = {}
        self._held: dict[ParkedRule, deque[tuple[int, list[Made]]]] = {}
        """By span, with its first offset: what the rules would have written, for those that are catching up."""
        self._held_size = 0
        self._started: list[ParkedRule] = []
        self._rejoined: dict[tuple[str, str], tuple[int, int]] = {}
        """Within the span that is open: cursor and time of each."""

    def __bool__(self) -> bool:
        return bool(self.rules)

    def restore(self, records: Mapping[bytes, bytes], rules: Mapping[str, Rule], first: int) -> tuple[Changes, list[GivenUp]]:
        """Take over what the state says. `rules` are those that run, by label, and `first` is the position of the owner. Returns the
        changes that follow, and which cursors were given up because what waits there is nobody's any more."""
        changes: Changes = {}
        given_up = []
        for key, value in records.items():
            match state.decode(key, value):
                case (["parked", str(label), str(topic)], ParkedState() as at):
                    rule = rules.get(label)
                    if rule is not None and _goes_on(at, topic, rule):
                        each = self.rules[label, topic] = ParkedRule(self._number, rule, topic, at, newest=first - 1)
                        self._started.append(each)
                    else:
                        changes[key] = None
                        given_up.append(GivenUp(label, topic, at.offset))
        return changes, given_up

    def change(self, rules: Mapping[str, Rule], position: int) -> tuple[Changes, list[GivenUp]] | None:
        """From `position` on, where a span ended and the next one begins, `rules` run, by label. Returns what follows, as `restore` does.
        None: not yet, since a transaction is under way for one that is to be given up; nobody begins another one."""
        leaving = [each for each in self.rules.values() if each.gone or not self._stays(each, rules.get(each.rule))]
        for each in leaving:
            each.gone = True
        if any(each.writing for each in leaving):
            return None
        changes: Changes = {}
        for each in leaving:
            changes[each.key] = None
            del self.rules[each.rule, each.topic]
            self._held.pop(each, None)
        for each in self.rules.values():
            if each.by is not rules[each.rule]:
                each.by = rules[each.rule]
                each.newest = position - 1  # what it has left out so far it may want now
                self._held.pop(each, None)
        self._count_held()
        return changes, [GivenUp(each.rule, each.topic, each.cursor) for each in leaving]

    @staticmethod
    def _stays(each: ParkedRule, rule: Rule | None) -> bool:
        return rule is not None and (rule is each.by or _goes_on(_parked_state(each.by, each.topic, offset=each.cursor), each.topic, rule))

    def withholds(self, made: Made, offset: int) -> bool:
        """Whether this, made of the record at `offset`, is for somebody who is parked, and not for the span."""
        each = self.rules.get((made.rule, "")) or self.rules.get((made.rule, made.topic))
        if each is None:
            return False
        each.newest = offset
        spans = self._held.get(each)
        if spans is not None:
            spans[-1][1].append(made)
            self._held_size += _size(made)
            if self._held_size > self._most_held:  # it begins again with the next span
                self._held.clear()
                self._held_size = 0
        return True

    def park(
        self,
        faults: Mapping[str, str],
        outputs: Iterable[Output],
        rules: Mapping[str, Rule],
        at: ParkedState,
        newest: int,
        at_fault: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[list[Output], list[Output], Changes]:
        """Who cannot write is parked from the beginning of the span on: `at`. `faults` says what is wrong with a topic, `at_fault` with a
        rule, by label. `rules`, by label, are those that made it; `newest` is the last record of the span. Returns what is left of the
        span; what is dropped because its rule has too many topics at fault; and changes."""
        kept: list[Output] = []
        dropped: list[Output] = []
        changes: Changes = {}
        for output in outputs:
            fault = at_fault.get(output.rule) or faults.get(output.topic)
            if fault is None:
                kept.append(output)
                continue
            label, topic = output.rule, output.topic
            if (label, "") in self.rules or (label, topic) in self.rules:
                continue
            rule = rules[label]
            others = sum(each == label for each, _ in self.rules)
            if others >= self._most_topics:
                dropped.append(output)
                continue
            place = (label, "") if rule.topic is not None and not others else (label, topic)
            offset, time = self._rejoined.get(place) or self._rejoined.get((label, "")) or (at.offset, at.time)
            begun = _parked_state(rule, place[1], offset=offset, time=time, since=at.since, reason=fault)
            each = self.rules[place] = ParkedRule(self._number, rule, place[1], begun, newest)
            self._started.append(each)
            changes[each.key] = state.encode(begun)
        return [output for output in kept if (output.rule, "") not in self.rules], dropped, changes

    def rejoin(self, span: int) -> tuple[list[Made], Changes]:
        """Those who are offered and can be taken back into the span that began at `span`: what they have to write since, and changes.
        The others go on catching up."""
        made: list[Made] = []
        changes: Changes = {}
        for place, each in [(place, each) for place, each in self.rules.items() if each.offered]:
            spans = self._held.get(each, ())
            if each.newest >= each.cursor:
                if not any(start == each.cursor for start, _ in spans):
                    each.offered = False
                    continue
                made += [one for start, held in spans if start >= each.cursor for one in held]
            changes[each.key] = None
            self._rejoined[place] = min(each.cursor, span), each.time
            each.gone = True
            self._held.pop(each, None)
            del self.rules[place]
        return made, changes

    @property
    def catching_up(self) -> bool:
        return any(each.catching_up for each in self.rules.values())

    @property
    def offers(self) -> bool:
        return any(each.offered for each in self.rules.values())

    def done(self, position: int) -> None:
        """A span was committed; the next one begins at `position`."""
        self._rejoined.clear()
        for each in self.rules.values():
            if each.catching_up:
                self._held.setdefault(each, deque()).append((position, []))
        for each, spans in list(self._held.items()):
            if each.catching_up:
                while spans and spans[0][0] < each.cursor:
                    spans.popleft()
            if not (each.catching_up and spans):
                del self._held[each]
        self._count_held()

    def _count_held(self) -> None:
        self._held_size = sum(_size(one) for spans in self._held.values() for _, held in spans for one in held)

    def started(self) -> list[ParkedRule]:
        """Those who are in the state by now and are to be caught up, each once."""
        started, self._started = [each for each in self._started if not each.gone], []
        return started

    def give_up(self) -> None:
        for each in self.rules.values():
            each.gone = True
        self.rules.clear()
        self._held.clear()


class GivenUp(NamedTuple):
    """A cursor whose rule, or whose routing, is no more: what the rule had left to write from there on will not be written."""

    rule: str
    topic: str
    cursor: int


def _parked_state(rule: Rule, topic: str, **fields: Any) -> ParkedState:
    return ParkedState(begun=rule.begun, routing=rule.routing if topic else "", **fields)


def _goes_on(at: ParkedState, topic: str, rule: Rule) -> bool:
    """Whether a cursor is one of this rule as it is now."""
    return at.begun == rule.begun and (not topic or at.routing in ("", rule.routing))


def _size(made: Made) -> int:
    """Bytes, roughly."""
    return len(made.item if isinstance(made, Batched) else made.value) + 200


def summary(parked: Iterable[tuple[ParkedRule, int]]) -> list[dict[str, Any]]:
    """By rule and topic, in their order: why (of the last partition), since when (ms), on which partitions, on how many of them it is
    catching up, where its cursor is on each, and how many records of the log lie between it and the owner, whose position is given with
    each."""
    found: dict[tuple[str, str], list[tuple[ParkedRule, int]]] = {}
    for each, position in parked:
        found.setdefault((each.rule, each.topic), []).append((each, position))
    return [
        {
            "rule": rule,
            "topic": topic,
            "reason": group[-1][0].reason,
            "since": min(each.since for each, _ in group),
            "partitions": sorted(each.partition for each, _ in group),
            "cursors": {str(number): cursor for number, cursor in sorted((each.partition, each.cursor) for each, _ in group)},
            "catchingUp": sum(each.catching_up for each, _ in group),
            "behind": sum(max(0, position - each.cursor) for each, position in group),
        }
        for (rule, topic), group in sorted(found.items())
    ]
