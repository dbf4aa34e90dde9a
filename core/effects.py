"""All that a core can do."""

from __future__ import annotations

from dataclasses import dataclass

from core.log import LogRecord
from relay.link.frames import Lane, ToEdge
from relay.model.message import Kind


@dataclass(frozen=True, slots=True)
class LinkSend:
    """`lane` None: the lane the frame belongs to (`relay.link.frames.BULK`)."""

    link: int
    frame: ToEdge
    lane: Lane | None = None


@dataclass(frozen=True, slots=True)
class LinkClose:
    link: int
    why: str


@dataclass(frozen=True, slots=True)
class Produce:
    """Append one record to the log. Answered by `Reported` or `Overfull`, exactly once, always."""

    ticket: int
    partition: int
    key: bytes
    value: bytes
    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class AskEnd:
    """Ask Kafka for the end offset of a partition of the log. Answered by `EndOffset`."""

    ask: int
    partition: int


@dataclass(frozen=True, slots=True)
class AskConfigEnd:
    """Barrier on `tidegate.config`. Answered by `EndOffset` with partition -1 once everything written before the ask has been read."""

    ask: int


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Answered by `ConfigWritten`."""

    ticket: int
    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class AskSessionsEnd:
    """Barrier on `tidegate.sessions`. Answered by `EndOffset` with partition -2 once everything written before the ask has been read."""

    ask: int


@dataclass(frozen=True, slots=True)
class WriteSession:
    """Answered by `SessionWritten`."""

    ticket: int
    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class ShowRecord:
    """An event of a channel that operators watch (`core.events.Watching`), duplicates left out."""

    record: LogRecord


@dataclass(frozen=True, slots=True)
class ShowOccupancy:
    """How many there are on such a channel, `counts` in the order of `relay.model.occupancy.METRICS`."""

    key: bytes
    counts: tuple[int, ...]


Effect = LinkSend | LinkClose | Produce | AskEnd | AskConfigEnd | WriteConfig | AskSessionsEnd | WriteSession | ShowRecord | ShowOccupancy
