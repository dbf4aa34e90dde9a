"""Batch mode: events that one rule sends to one topic under one key share a record. Pure."""

from __future__ import annotations

from typing import NamedTuple

from core.rules.envelope import Format, Headers, batch_of
from core.rules.schema import RuleSchema
from relay.model.limits import CoreLimits


class Output(NamedTuple):
    """One record to write. `rule` is the rule's `label`."""

    rule: str
    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    schema: RuleSchema | None = None
    """What the value has yet to be encoded by."""


class Batched(NamedTuple):
    """One event on its way into a batch record: `item` is an element of its `items`, encoded in `format`."""

    rule: str
    topic: str
    key: bytes | None
    item: bytes
    format: Format
    headers: Headers
    """Of the record."""


class _Batch:
    __slots__ = ("first", "items", "size")

    def __init__(self, first: Batched) -> None:
        self.first = first
        self.items = [first.item]
        self.size = len(first.item)

    def output(self) -> Output:
        first = self.first
        return Output(first.rule, first.topic, first.key, batch_of(self.items, first.format), first.headers)


class Batcher:
    """The batches of one span of one partition. Whoever has the span empties it (`flush`) before it is written, and throws it away with the
    span if that is given up: what it holds exists nowhere else."""

    __slots__ = ("_batches", "_most_bytes", "_most_events")

    def __init__(self, most_events: int = CoreLimits().rule_batch_events, most_bytes: int = CoreLimits().rule_batch_bytes) -> None:
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._batches: dict[tuple[str, str, bytes | None], _Batch] = {}

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(self, event: Batched) -> Output | None:
        """Returns the record that had to be closed because the event did not fit into it."""
        place = event[:3]
        batch = self._batches.get(place)
        if batch is None:
            self._batches[place] = _Batch(event)
            return None
        if len(batch.items) < self._most_events and batch.size + len(event.item) <= self._most_bytes:
            batch.items.append(event.item)
            batch.size += len(event.item)
            return None
        self._batches[place] = _Batch(event)
        return batch.output()

    def flush(self) -> list[Output]:
        """The records of all that is left, in the order in which they were begun."""
        made = [batch.output() for batch in self._batches.values()]
        self._batches.clear()
        return made
