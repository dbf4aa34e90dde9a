"""Rules into other clusters, which no transaction of the owner can reach. Pure; `core.kafka.clusters` sends.

Such a rule always goes its own way, as a parked one does: it has a cursor on each partition, in the state. What lies before the cursor the
other cluster has acknowledged. The owner hands over what the rule makes of each span that it has committed, and writes the cursors down
with its own spans. What was sent and not yet written down is sent again by the next owner: at least once.

What is handed over and not yet sent is bounded. Above the bound the owner keeps nothing for the rule until that is sent; what it made
meanwhile is read from the log again.

A rule that computes its topics has, for each topic that cannot be written to, a cursor of that topic alone, which follows behind the rule's
until it has caught up with it.

Two threads share a `RemoteRule`, the owner's and that which sends, without a lock: each field has one writer, whose changes are single
assignments, and in an order that suits the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from core import state
from core.parked import FIRST_RETRY_S, LAST_RETRY_S, GivenUp
from core.quiet import Changes
from core.rules import Batcher, Outcome, Output, Rule
from core.state import ParkedState

SETTLE_S = 1.0
"""Time between two notes of the same cursor, in seconds: what is sent again after a core was killed."""


class Place(NamedTuple):
    """A position in the log, and the broker time of the last record before it, milliseconds; 0 if not known."""

    offset: int
    time: int


class Span(NamedTuple):
    """What the rule has made of the log from `start` to `end`."""

    start: int
    end: Place
    outputs: list[Output]
    size: int


class Sending:
    """A span on its way. Of the thread that sends."""

    __slots__ = ("end", "refused", "unreported", "waiting")

    def __init__(self, end: Place, outputs: Iterable[Output]) -> None:
        self.end = end
        self.waiting = deque(outputs)
        """Not yet with the driver."""
        self.unreported = 0
        self.refused: list[tuple[Output, Any]] = []
        """And what the driver said of each."""

    @property
    def done(self) -> bool:
        return not (self.waiting or self.unreported or self.refused)


class RemoteRule:
    """One rule on one partition, or one of its topics there."""

    __slots__ = (
        *("_answered", "_asked", "_end", "_feeding", "_put", "_settled", "_settled_at", "_spans", "_taken", "_reread"),
        *("alone", "at", "by", "closing", "failures", "fed", "followers", "gone", "heard", "main", "partition"),
        *("reading", "reason", "retry_at", "rule", "sending", "sent", "since", "topic", "unreported"),
    )

    def __init__(self, partition: int, rule: Rule, at: Place, first: Place, *, topic: str = "", main: RemoteRule | None = None) -> None:
        """`at` is the cursor, `first` where the owner begins to hand over. `main`: what it follows, for the one `topic`."""
        self.partition = partition
        self.by = rule
        """A rule that is changed goes on as another one."""
        self.rule = rule.label
        self.topic = topic
        """Empty: all topics that have no cursor of their own."""
        self.main = main
        # Of the owner's thread
        self._settled: Place | None = None
        self._settled_at = 0.0
        self._spans: deque[Span] = deque([Span(first.offset, first, [], 0)])
        """Appended to by the owner, emptied by who sends."""
        self._put = 0
        self._answered = 0
        self._feeding = True
        self._end = first.offset
        self.fed = first
        """Whatever lies before it was sent once there are no spans left."""
        self.closing = False
        """Nothing further should be sent."""
        self.gone = False
        """Somebody else has it now; or, of one that follows, it has caught up."""
        # Of the thread that sends
        self._taken = 0
        self._asked = 0
        self._reread = 0
        """Up to here it was taken once, and has to be read from the log all the same."""
        self.at = at
        """The cursor: the other cluster has acknowledged what lies before it."""
        self.sent = at.offset
        """What lies before it is sent, or on its way."""
        self.sending: deque[Sending] = deque()
        self.unreported = 0
        """Records that the driver has and has not reported on."""
        self.heard = 0.0
        """When it last did, or was given something while it had nothing. Monotonic seconds, like `retry_at`."""
        self.followers: dict[str, RemoteRule] = {}
        """By topic."""
        self.alone = False
        """Records are sent one by one, as some were too large in company."""
        self.reading = False
        """The log is read for it."""
        self.reason = ""
        """Why it stands still; empty: it does not."""
        self.since = 0
        """Wall clock of when that began, milliseconds."""
        self.failures = 0
        self.retry_at = 0.0

    @property
    def key(self) -> bytes:
        return state.remote_key(self.rule, self.topic)

    # --- the owner's thread ------------------------------------------------------------------------------------------------------------

    def hand_over(self, outputs: list[Output], end: Place, most_held: int) -> None:
        """What the rule has made of a span that is committed. Kept, unless it would be more than `most_held` bytes with what waits."""
        if self._feeding and outputs:
            size = sum(map(size_of, outputs))
            if self._put - self._taken and self._put + size - self._taken > most_held:
                self._feeding = False
                return
            self._put += size
            self._spans.append(Span(self._end, end, outputs, size))
            self._end = end.offset
        elif not self._feeding and self._asked != self._answered:
            self._answered = self._asked
            self._spans.append(Span(end.offset, end, [], 0))
            self._end = end.offset
            self._feeding = True
        if self._feeding:
            self.fed = end

    def settle(self, now: float, changes: Changes, at: Place, *, at_once: bool = False) -> None:
        """Note the cursor, as of a moment ago, if it has moved and the last note is old enough."""
        if at != self._settled and (at_once or self._settled is None or now - self._settled_at >= SETTLE_S):
            self._settled, self._settled_at = at, now
            routing = self.by.routing if self.topic else ""
            noted = ParkedState(offset=at.offset, time=at.time, since=self.since, reason=self.reason, begun=self.by.begun, routing=routing)
            changes[self.key] = state.encode(noted)

    # --- the thread that sends -----------------------------------------------------------------------------------------------------------

    def covers(self, output: Output) -> bool:
        if output.rule != self.rule:
            return False
        return output.topic == self.topic if self.topic else output.topic not in self.followers

    @property
    def idle(self) -> bool:
        """There is nothing to be done for it now."""
        if self.sending or self.gone or self.main is not None or not self._feeding:
            return False
        fed = self.fed  # first, as below
        return not self._spans and fed.offset == self.sent and not self.reason

    def gap(self, committed: int) -> int:
        """Up to where the log has to be read before anything else is sent; `sent` if it need not be. `committed`: the owner's position."""
        if self.main is not None:
            return max(self.sent, self.main.sent)
        if self.sent < self._reread:
            return self._reread
        feeding = self._feeding  # first: what was handed over until then is in `_spans`
        if self._spans:
            return max(self.sent, self._spans[0].start)
        if feeding:
            return self.sent
        if self._asked == self._answered:
            self._asked += 1
        return max(self.sent, committed)

    def take(self) -> Span | None:
        """The next span that was handed over, if it follows on what was sent."""
        if self.main is not None or self.sent < self._reread:
            return None
        fed = self.fed  # first, as above
        if self._spans:
            if self._spans[0].start > self.sent:
                return None
            span = self._spans.popleft()
            self._taken += span.size
            return span if span.end.offset > self.sent else None
        return Span(self.sent, fed, [], 0) if fed.offset > self.sent else None

    @property
    def sent_at(self) -> Place:
        return Place(self.sent, self.sending[-1].end.time if self.sending else self.at.time)

    @property
    def refused(self) -> int:
        return sum(len(entry.refused) for entry in self.sending)

    @property
    def waits(self) -> bool:
        """There is something that the driver should have, or have again."""
        return any(entry.waiting or entry.refused for entry in self.sending)

    def begin_again(self) -> None:
        """From the cursor, whatever has arrived: nobody will say so any more."""
        self._reread, self.sent = max(self._reread, self.sent), self.at.offset
        self.sending.clear()
        self.unreported = 0

    def send(self, end: Place, outputs: Iterable[Output]) -> None:
        """A span that follows on what was sent: to be sent."""
        self.sending.append(Sending(end, [output for output in outputs if self.covers(output)]))
        self.sent = end.offset

    def report(self, entry: Sending, output: Output, error: Any, now: float) -> None:
        """The driver says what became of a record."""
        self.unreported -= 1
        self.heard = now
        entry.unreported -= 1
        if error is not None:
            entry.refused.append((output, error))
            return
        self.goes_on()

    def advance(self) -> None:
        """The cursor moves behind what is done."""
        while self.sending and self.sending[0].done:
            self.at = self.sending.popleft().end

    def goes_on(self) -> None:
        self.reason = ""
        self.since = self.failures = 0
        self.retry_at = 0.0

    def failed(self, reason: str, now: float, now_ms: int) -> None:
        """Tries again later, ever more rarely."""
        self.stands(reason, now_ms)
        self.retry_at = now + min(FIRST_RETRY_S * 2**self.failures, LAST_RETRY_S)
        self.failures = min(self.failures + 1, 10)

    def stands(self, reason: str, now_ms: int) -> None:
        self.since = self.since or now_ms
        self.reason = reason

    def lost(self, low: int) -> int:
        """Retention has deleted what lies before `low`: how many records of the log that are not yet sent, and will not be."""
        missed = max(0, low - self.sent)
        if missed:
            self.sent = low
            if not self.sending:
                self.at = Place(low, 0)
        return missed

    def follow(self, topic: str) -> RemoteRule:
        """A cursor for this topic alone, of which nothing is sent here any more. It begins where everything is acknowledged."""
        one = RemoteRule(self.partition, self.by, self.at, self.at, topic=topic, main=self)
        self.followers[topic] = one
        for entry in self.sending:
            entry.waiting = deque(output for output in entry.waiting if output.topic != topic)
        return one

    @property
    def awaits_follower(self) -> bool:
        """One that follows is about to have caught up, once what it has sent is acknowledged: the rule stands still for so long."""
        return any(each.sent == self.sent and not each.reason for each in self.followers.values())

    def caught_up(self) -> bool:
        """Whether it follows no more: the rule itself sends from here on what is for its topic."""
        main = self.main
        if main is None or self.gone or self.sending or self.sent != main.sent:
            return False
        main.followers.pop(self.topic, None)
        self.gone = True
        return True


class RemoteRules:
    """Those of one partition. Of the owner's thread, but for `join`."""

    __slots__ = ("_batcher", "_made", "_most_held", "_most_topics", "_number", "_started", "_topics", "rules", "size")

    def __init__(self, number: int, batcher: Batcher, *, most_held: int, most_topics: int) -> None:
        """`most_held`: bytes that wait for one rule. `most_topics`: of one rule, with a cursor of their own."""
        self._number = number
        self._most_held = most_held
        self._most_topics = most_topics
        self._batcher = batcher
        self.rules: dict[str, RemoteRule] = {}
        """By label."""
        self._made: dict[str, list[Output]] = {}
        """Of the span."""
        self._topics: list[RemoteRule] = []
        """Those of one topic. Appended to by the threads that send."""
        self._started: list[RemoteRule] = []
        self.size = 0
        """Bytes of the span, roughly."""

    def restore(self, records: Mapping[bytes, bytes], rules: Mapping[str, Rule], first: Place) -> tuple[Changes, list[GivenUp]]:
        """Take over what the state says. `rules` are those into other clusters, by label. `first` is the position of the owner: rules
        without a cursor begin there. Returns changes, and which cursors were given up because what waits there is nobody's any more."""
        found: dict[str, Place] = {}
        topics: list[tuple[str, str, Place]] = []
        changes: Changes = {}
        given_up = []
        for key, value in records.items():
            match state.decode(key, value):
                case (["remote", str(label), str(topic)], ParkedState() as at):
                    rule = rules.get(label)
                    place = Place(min(at.offset, first.offset), at.time)
                    if rule is None or at.begun != rule.begun or (topic and at.routing != rule.routing):
                        changes[key] = None
                        given_up.append(GivenUp(label, topic, at.offset))
                    elif topic:
                        topics.append((label, topic, place))
                    else:
                        found[label] = place
        for label, rule in rules.items():
            self._begin(rule, found.get(label, first), first)
        for label, topic, place in topics:
            self._begin_topic(self.rules[label], topic, place)
        return changes, [each for each in given_up if each.cursor < first.offset]

    def _begin(self, rule: Rule, at: Place, first: Place) -> None:
        one = self.rules[rule.label] = RemoteRule(self._number, rule, at, first)
        self._started.append(one)

    def _begin_topic(self, main: RemoteRule, topic: str, at: Place) -> None:
        one = main.followers[topic] = RemoteRule(self._number, main.by, at, at, topic=topic, main=main)
        self._topics.append(one)
        self._started.append(one)

    def change(self, rules: Mapping[str, Rule], position: Place) -> tuple[Changes, list[GivenUp]]:
        """From `position` on, where a span ended, these rules run. Those that are changed go on from their cursors, as they are now.
        Returns what `restore` does."""
        changes: Changes = {}
        given_up = []
        before, topics = self.rules, [one for one in self._topics if not one.gone]
        self.rules = {label: one for label, one in before.items() if rules.get(label) is one.by}
        leaving = [one for label, one in before.items() if label not in self.rules]
        leaving += [one for one in topics if one.rule not in self.rules]
        for one in leaving:  # the rules before their topics, which go on behind them
            one.gone = True
            rule = rules.get(one.rule)
            if rule is not None and rule.begun == one.by.begun and (not one.topic or rule.routing == one.by.routing):
                if one.topic:
                    self._begin_topic(self.rules[one.rule], one.topic, one.at)
                else:
                    self._begin(rule, one.at, position)
                continue
            changes[one.key] = None
            if one.at.offset < position.offset:
                given_up.append(GivenUp(one.rule, one.topic, one.at.offset))
        for label, rule in rules.items():
            if label not in self.rules:
                self._begin(rule, position, position)
        for one in leaving:
            if one in self._topics:
                self._topics.remove(one)
        return changes, given_up

    def started(self) -> list[RemoteRule]:
        """Those who begin, each once."""
        started, self._started = self._started, []
        return started

    def join(self, one: RemoteRule) -> bool:
        """One that follows; False if its rule has too many of them. Any thread."""
        if sum(each.rule == one.rule and not each.gone for each in list(self._topics)) >= self._most_topics:
            return False
        self._topics.append(one)
        return True

    def all(self) -> list[RemoteRule]:
        """Any thread."""
        return [*self.rules.values(), *[each for each in list(self._topics) if not each.gone]]

    def take(self, outcome: Outcome) -> Outcome:
        """Keeps what is for other clusters, and returns the rest."""
        outputs = []
        for output in outcome.outputs:
            if output.rule in self.rules:
                self._keep(output)
            else:
                outputs.append(output)
        batched = []
        for event in outcome.batched:
            if event.rule in self.rules:
                self.size += len(event.item)
                full = self._batcher.add(event)
                if full is not None:
                    self._keep(full, counted=True)
            else:
                batched.append(event)
        return Outcome(outputs, batched, outcome.drops)

    def _keep(self, output: Output, *, counted: bool = False) -> None:
        self._made.setdefault(output.rule, []).append(output)
        if not counted:
            self.size += size_of(output)

    def hand_over(self, end: Place) -> None:
        """The span is committed."""
        if not self.rules:
            return
        for output in self._batcher.flush():
            self._keep(output, counted=True)
        for label, rule in self.rules.items():
            rule.hand_over(self._made.get(label, []), end, self._most_held)
        self._made = {}
        self.size = 0

    def settle(self, now: float, changes: Changes, *, at_once: bool = False) -> None:
        """Note cursors that have moved."""
        # The rules' first: one that follows is there before the cursor that it begins at has moved
        if not self.rules and not self._topics:
            return
        places = [(rule, rule.at) for rule in self.rules.values()]
        topics = [(one, one.at) for one in list(self._topics)]
        for one, at in places + topics:
            one.settle(now, changes, at, at_once=at_once)
        for one, _ in topics:
            if one.gone:
                changes[one.key] = None
                self._topics.remove(one)

    def give_up(self) -> None:
        for one in self.all():
            one.gone = True
        self.rules = {}
        self._topics = []


def size_of(output: Output) -> int:
    """Bytes of one record, roughly."""
    return len(output.value) + len(output.key or b"") + 300


def summary(rules: Iterable[tuple[RemoteRule, int]]) -> list[dict[str, Any]]:
    """By rule and topic, in their order: its brokers, whether it runs, catches up or is parked, why and since when (ms) on which
    partitions, and how many records of the log lie between it and the owner, whose position is given with each."""
    found: dict[tuple[str, str], list[tuple[RemoteRule, int]]] = {}
    for each, position in rules:
        found.setdefault((each.rule, each.topic), []).append((each, position))
    made = []
    for (rule, topic), group in sorted(found.items()):
        standing = [each for each, _ in group if each.reason]
        reading = any(each.reading for each, _ in group)
        made.append(
            {
                "rule": rule,
                "topic": topic,
                "cluster": group[0][0].by.cluster.name if group[0][0].by.cluster else "",
                "state": "parked" if standing else "catching up" if reading else "running",
                "reason": standing[-1].reason if standing else "",
                "since": min((each.since for each in standing), default=0),
                "partitions": sorted(each.partition for each in standing),
                "behind": sum(max(0, position - each.at.offset) for each, position in group),
            }
        )
    return made
