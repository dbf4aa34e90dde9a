"""What the owner of a partition makes of its log: records for your topics, and state. Pure; `core.kafka.owner` reads and writes.

From commit to commit it adds up a span: outputs, changes of the state, and the position behind them. They are written in one transaction or
not at all, so that whoever owns the partition next goes on exactly where the last transaction ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from core import state
from core.kept import PREFIX as KEPT
from core.kept import KeptToWrite
from core.lifecycle import REMEMBERED_MS, LifecycleBody, PartitionLifecycle
from core.log import LogRecord, body_is_ephemeral
from core.occupancy_log import OccupancyBody, PartitionOccupancy
from core.parked import GivenUp, ParkedRules
from core.presence import Change, PartitionPresence
from core.quiet import Changes, QuietChannels, lasts
from core.remote import Place, RemoteRules
from core.rules import Batched, Batcher, Drop, Outcome, Output, RuleSet, Version
from core.state import Checkpoint, ParkedState
from relay.model.limits import CoreLimits
from relay.model.message import Kind

OVERHEAD = 100
"""Bytes that a record costs beside key, value and headers, for the bound of a span."""
FORGET_EDGES_MS = 3_600_000
"""How long the state remembers that an edge process is gone, in milliseconds: far longer than anybody waits for one."""

# Plain numbers: comparing with members of an enumeration costs more than all the rest of a message.
_MESSAGE = int(Kind.MESSAGE)
_LIFECYCLE = int(Kind.LIFECYCLE)
_OCCUPANCY = int(Kind.OCCUPANCY)
_PRESENCE = frozenset(map(int, (Kind.PRESENCE, Kind.GONE, Kind.BACK, Kind.EDGE_GONE, Kind.EDGE_BACK)))
_HIDDEN = _PRESENCE - {int(Kind.PRESENCE)} | {_LIFECYCLE, _OCCUPANCY}


class PartitionState(msgspec.Struct, frozen=True):
    """One partition of `tidegate.state` as of its last checkpoint: `records` are key → value without it. None: there has been no owner
    since this stream began; `made_anew`: but of an earlier one, from which `records` are left."""

    checkpoint: Checkpoint | None
    records: Mapping[bytes, bytes]
    made_anew: bool = False

    @property
    def rules(self) -> Version:
        """What any further owner has to know of the rules."""
        return Version() if self.checkpoint is None else Version(self.checkpoint.config, self.checkpoint.rules)


class OwnedPartition:
    """One partition of the log, from `first` on. What lies before is read for the duplicate verdicts, and for the channels that are not yet
    quiet."""

    __slots__ = (
        "_core",
        "_read_at",
        "_stream",
        "_time_of_span",
        "batcher",
        "changes",
        "claimed",
        "committed",
        "first",
        "forgotten",
        "given_up",
        "kept",
        "lifecycle",
        "number",
        "occupancy",
        "outputs",
        "parked",
        "position",
        "presence",
        "quiet",
        "remote",
        "rules",
        "rules_from",
        "rules_said",
        "size",
        "time",
    )

    def __init__(
        self,
        number: int,
        found: PartitionState,
        *,
        stream: str,
        core: str,
        low: int,
        first: int,
        rules_from: int,
        time: int,
        channels: int,
        now: float,
        batcher: Batcher | None = None,
        rules: RuleSet | None = None,
        limits: CoreLimits | None = None,
    ) -> None:
        """`low`: the first record that the log still has. `time`: broker time of the last record before `first`, in ms; 0 if not known.
        `channels`: limit of the quiet ones. `now` is monotonic seconds. `rules`: those that run from here on."""
        self.number = number
        self.given_up = False
        self._stream = stream
        self._core = core
        self.first = self.position = first
        """`position` is the next offset to be read, at least `first`."""
        self.rules_from = rules_from
        """Messages before it are none of the rules' business."""
        self.committed: int | None = None if found.checkpoint is None else first
        """Where the next owner would go on; None: nowhere yet."""
        self.claimed = False
        """The state names this core as the owner."""
        self.time = self._time_of_span = time
        self._read_at = now
        self.rules = rules or RuleSet((), site=core)
        """In force from the beginning of the span that is open."""
        self.rules_said = found.rules == self.rules.version
        """And the state says so."""
        limits = limits or CoreLimits()
        self.parked = ParkedRules(number, most_held=limits.parked_held_bytes, most_topics=limits.parked_topics)
        self.remote = RemoteRules(
            number,
            Batcher(limits.rule_batch_events, limits.rule_batch_bytes),
            most_held=limits.remote_held_bytes,
            most_topics=limits.parked_topics,
        )
        self.forgotten: list[GivenUp] = []
        """Cursors that were found of rules that run no more, or route otherwise."""
        self.outputs: list[Output] = []
        self.batcher = Batcher() if batcher is None else batcher
        """What batch rules made of the span, until `combine`."""
        self.changes: Changes = {}
        self.size = 0
        """Of outputs and changes, in bytes, roughly."""
        self.presence = PartitionPresence()
        self.lifecycle = PartitionLifecycle()
        self.occupancy = PartitionOccupancy()
        self._keep_journal()
        self.kept = KeptToWrite(limits.owner_span_bytes)
        self.quiet = QuietChannels(channels, low if found.checkpoint is None else max(low, found.checkpoint.quiet_from))
        if found.checkpoint is None:
            self.changes.update(dict.fromkeys(found.records))
        else:
            self.presence.restore(dict(found.records), now)
            self.lifecycle.restore(dict(found.records))
            self.occupancy.restore(dict(found.records))
            self.quiet.restore(lasts(found.records))
            changes, self.forgotten = self.parked.restore(found.records, self.rules.own, first)
            self.changes.update(changes)
        records = {} if found.checkpoint is None else found.records
        changes, given_up = self.remote.restore(records, self.rules.remote, Place(max(first, rules_from), time))
        self.changes.update(changes)
        self.forgotten += given_up

    def _keep_journal(self) -> None:
        self.presence.journal = self.lifecycle.journal = self.occupancy.journal = self.changes

    def look_back(self, record: LogRecord) -> None:
        """A record before `first`, no duplicate as far as is known."""
        if record.kind == Kind.PRESENCE:
            self.presence.look_back(record)
        if record.kind not in _HIDDEN and not body_is_ephemeral(record.value):
            self.quiet.saw(record.key, record.offset, record.timestamp, self.changes)
        if record.id.startswith(KEPT):
            self.kept.saw(record.key, record.offset, record.timestamp, record.value, self.changes)

    def take(self, record: LogRecord, *, duplicate: bool, rules: RuleSet, now: float) -> list[Drop]:
        """The next record from `first` on. Returns what rules matched and cannot write."""
        offset, timestamp, key, value, kind = record.offset, record.timestamp, record.key, record.value, record.kind
        self.position = offset + 1
        self._read_at = now
        if timestamp > self.time:  # noqa: PLR1730 - a third of the time of max(), for each record
            self.time = timestamp
        if duplicate:
            return []
        happened: list[Change] | LifecycleBody | OccupancyBody | None = None
        if kind in _PRESENCE:
            happened = self.presence.apply(record, now)
            self.size += len(value)
        elif kind == _LIFECYCLE:
            happened = self.lifecycle.apply(record)
            self.size += len(value)
        elif kind == _OCCUPANCY:
            happened = self.occupancy.apply(record)
            self.size += len(value)
        if kind not in _HIDDEN and not body_is_ephemeral(value):
            self.quiet.saw(key, offset, timestamp, self.changes)
        if record.id.startswith(KEPT):
            self.kept.saw(key, offset, timestamp, value, self.changes)
            self.size += len(value)
        if (kind != _MESSAGE and not happened) or not rules.enabled or offset < self.rules_from:
            return []
        outcome = rules.outcome(record, happened)
        if self.remote.rules:
            before = self.remote.size
            outcome = self.remote.take(outcome)
            self.size += self.remote.size - before
        if self.parked:
            outcome = self._without_parked(outcome, offset)
        if outcome.outputs:
            self.outputs += outcome.outputs
            for output in outcome.outputs:
                self.size += size_of(output) + OVERHEAD
        for event in outcome.batched:
            self.size += len(event.item) + OVERHEAD
            self._batch(event)
        return outcome.drops

    def _batch(self, event: Batched) -> None:
        full = self.batcher.add(event)
        if full is not None:
            self.outputs.append(full)

    def _without_parked(self, outcome: Outcome, offset: int) -> Outcome:
        withholds = self.parked.withholds
        outputs = [output for output in outcome.outputs if not withholds(output, offset)]
        batched = [event for event in outcome.batched if not withholds(event, offset)]
        return Outcome(outputs, batched, outcome.drops)

    def broker_time(self, now: float) -> int:
        """What the brokers' clock says at least, in ms."""
        return self.time + int((now - self._read_at) * 1000)

    def sweep(self, now: float) -> None:
        """What the passing of time makes of the state."""
        at = self.broker_time(now)
        self.quiet.sweep(at, self.changes)
        self.kept.sweep(at, self.changes)
        self.presence.forget_edges(at - FORGET_EDGES_MS)
        self.lifecycle.forget(at - REMEMBERED_MS)
        self.occupancy.forget(at - REMEMBERED_MS)

    # --- the span ----------------------------------------------------------------------------------------------------------------------

    @property
    def moved(self) -> bool:
        """There is a position to commit. The first one is where the rules begin, or it would be lost with the process."""
        return self.position != self.committed and (self.committed is not None or self.position >= self.rules_from)

    @property
    def claims(self) -> bool:
        """The state should name this core as the owner, before it writes anything else: should it die within a transaction, the next owner
        has to know whose that is."""
        return not self.claimed and self.committed is not None

    @property
    def writes(self) -> bool:
        """There is something to write beside the position."""
        waiting = self.outputs or self.changes or self.batcher or self.remote.size or not self.rules_said
        return bool(waiting) and (self.committed is not None or self.moved)

    @property
    def due(self) -> bool:
        """The span should be written before long. Spans are short while somebody catches up, as that is where they can rejoin."""
        return (
            self.writes
            or (self.moved and self.committed is None)
            or (bool(self.parked.rules) and (self.parked.offers or (self.moved and self.parked.catching_up)))
        )

    @property
    def records(self) -> int:
        """How many records the span has come to."""
        return len(self.outputs) + len(self.changes)

    def combine(self) -> None:
        """The span ends here: those who were parked and have caught up come back, and what batch rules made of it becomes outputs."""
        if self.committed is not None and self.parked.offers:
            made, changes = self.parked.rejoin(self.committed)
            self.changes.update(changes)
            for each in made:
                if isinstance(each, Batched):
                    self._batch(each)
                else:
                    self.outputs.append(each)
        self.outputs += self.batcher.flush()

    def park(self, faults: Mapping[str, str], now_ms: int, at_fault: Mapping[str, str] = MappingProxyType({})) -> list[Output]:
        """Leave rules that cannot write out of the span, which is combined: they go their own way from where it began. `faults` says what
        is wrong with a topic, `at_fault` with a rule, by label. Returns outputs that are dropped, as their rule has too many topics at
        fault."""
        start = self.rules_from if self.committed is None else self.committed
        at = ParkedState(offset=start, time=self._time_of_span, since=now_ms)
        self.outputs, dropped, changes = self.parked.park(faults, self.outputs, self.rules.own, at, self.position - 1, at_fault)
        self.changes.update(changes)
        return dropped

    def change_rules(self, rules: RuleSet) -> list[GivenUp] | None:
        """These run from here on, where a span was committed and the next one begins. Returns which cursors are given up; None: not yet,
        try again."""
        assert not any((self.outputs, self.batcher, self.remote.size)), "they would be parked, if need be, as the rules say now"
        found = self.parked.change(rules.own, self.position)
        if found is None:
            return None
        changes, given_up = found
        self.changes.update(changes)
        changes, remotely = self.remote.change(rules.remote, Place(self.position, self.time))
        self.changes.update(changes)
        given_up += remotely
        self.rules_said = False
        self.rules = rules
        return given_up

    def checkpoint(self) -> bytes:
        """To be written behind the changes of a `sweep`: what it says of quiet channels holds for all that are quiet by now."""
        known = self.rules.version
        return state.encode(
            Checkpoint(
                stream=self._stream,
                offset=self.position,
                time=self.time,
                quiet_from=self.quiet.known_from,
                core=self._core,
                config=known.stream,
                rules=known.position,
            )
        )

    def done(self) -> None:
        """The span is committed."""
        self.committed = self.position
        self._time_of_span = self.time
        self.claimed = self.rules_said = True
        self.parked.done(self.position)
        self.remote.hand_over(Place(self.position, self.time))
        self.outputs = []
        self.changes = {}
        self._keep_journal()
        self.size = 0


def size_of(output: Output) -> int:
    """Bytes of one record, without what its batch adds."""
    size = len(output.value) + len(output.key or b"")
    for name, value in output.headers:
        size += len(name) + len(value or b"")
    return size
