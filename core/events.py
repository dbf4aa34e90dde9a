"""All that can happen to a core. `effects.py` is all it can do about it; `node.py` connects the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.log import LogRecord
from relay.link.frames import ToCore


@dataclass(frozen=True, slots=True)
class EdgeUp:
    """An edge's link is up: mTLS and hello are done. `identity` is the SPIFFE id of its certificate, never what it says of itself."""

    link: int
    identity: str
    site: str
    node: str
    boot: str


@dataclass(frozen=True, slots=True)
class EdgeFrame:
    link: int
    frame: ToCore


@dataclass(frozen=True, slots=True)
class EdgeLost:
    link: int
    why: str


@dataclass(frozen=True, slots=True)
class Tailed:
    """Records of the log, in offset order per partition; duplicates (in the sense of the fold) still among them."""

    records: list[LogRecord]


@dataclass(frozen=True, slots=True)
class Reported:
    """A delivery report. `offset` is None when the fate of the record is unknown; never does it mean that it was not written."""

    ticket: int
    partition: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class Overfull:
    """The record was not handed to the producer: its partition's budget is used up, or the producer is being replaced. Safe to refuse."""

    ticket: int
    reason: str


CONFIG_END = -1
SESSIONS_END = -2
"""The partitions of an `EndOffset` that answers a barrier on `tidegate.config` or `tidegate.sessions`."""


@dataclass(frozen=True, slots=True)
class EndOffset:
    """Answer to `AskEnd`, `AskConfigEnd` or `AskSessionsEnd`; `offset` None when Kafka did not answer in time."""

    ask: int
    partition: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class ConfigRead:
    """A record of `tidegate.config`; `value` is None for a tombstone."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class ConfigWritten:
    """The record written by `WriteConfig` is durable and has been read back (`ConfigRead` came first); `ok` False: it failed."""

    ticket: int
    ok: bool


@dataclass(frozen=True, slots=True)
class SessionRead:
    """A record of `tidegate.sessions`; `value` is None for a tombstone. `at`: broker time, milliseconds."""

    key: str
    value: bytes | None
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class SessionWritten:
    """The record written by `WriteSession` is durable and has been read back (`SessionRead` came first); `ok` False: it failed, or it
    cannot be told."""

    ticket: int
    ok: bool


@dataclass(frozen=True, slots=True)
class StateRead:
    """What `tidegate.state` says of one partition, read before the tail starts. `checkpoint` is the offset from which the log goes on, None
    if no owner has ever written one; `records` are key → value (`core.state`), without the checkpoint. `quiet_from`: a channel of which
    the tail reads nothing, and of which there is no `last` record, had its last record before that offset; None: nothing is known.
    `time`: broker time of the last record before the checkpoint, in milliseconds, 0 if it is not known."""

    partition: int
    checkpoint: int | None
    records: dict[bytes, bytes]
    quiet_from: int | None = None
    time: int = 0


@dataclass(frozen=True, slots=True)
class Owned:
    """The partitions that this core owns from now on: it ends graces there. Two cores may believe to own the same one for some seconds;
    what they append means the same."""

    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class OccupancyWanted:
    """The apps that have a rule for occupancy: where this core owns channels of theirs, it writes to the log how many there are on each."""

    apps: frozenset[str]


@dataclass(frozen=True, slots=True)
class Looked:
    """Look-back is done: the tail has reached what was the end of `partition` at start. Ready when all have."""

    partition: int
    start: int
    position: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Retention took records of `partition` from `position` up to `resumed` (exclusive) before the tail read them: it goes on at `resumed`.
    Continuity of the partition's channels is lost. `resumed` below `position`: the topic was made anew under the core, whose
    stream is gone: the process has to start again."""

    stream: str
    partition: int
    position: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Watching:
    """Whether an operator watches the channel with this log key: what happens on it is shown (`ShowRecord`, `ShowOccupancy`)."""

    key: bytes
    on: bool


@dataclass(frozen=True, slots=True)
class Congested:
    """Much is queued on the bulk lane of this link (`on`), or it has room again. Meanwhile nothing of the past is read for it."""

    link: int
    on: bool


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something of an app that operators should know, for `[meta]log`. Of several under one `number`, by whichever core, one is shown."""

    app: str
    number: str
    name: str
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has reached `next_deadline()`, or a turn ended with admissions still queued."""


Event = (
    EdgeUp
    | EdgeFrame
    | EdgeLost
    | Tailed
    | Reported
    | Overfull
    | EndOffset
    | ConfigRead
    | ConfigWritten
    | SessionRead
    | SessionWritten
    | StateRead
    | Owned
    | OccupancyWanted
    | Looked
    | Gap
    | Watching
    | Congested
    | Noticed
    | Tick
)
