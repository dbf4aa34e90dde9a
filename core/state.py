"""`tidegate.state`: what the log adds up to. State at the checkpoint and the log after it are the present view of a partition.

Written by the owner of a partition, in the transaction that commits its position; compacted; same partition numbers as the log. Within a
transaction the checkpoint is the last record, so that a reader takes over what precedes it as a whole. Keys are msgpack arrays, which no
name can break; values are msgpack.

    [checkpoint]                           Checkpoint
    [member, log key, connection, client]  MemberState: a member of the presence set
    [holder, log key, connection]          HolderState: the connection that entered members of that channel
    [edge, boot id]                        EdgeState: an edge process that is gone
    [last, log key]                        LastState: the newest record of a channel that has been quiet for a while
    [kept, log key]                        KeptState: the last message that a mapping with `keep_last` has put on a channel
    [lifecycle, log key]                   LifecycleState
    [parked, app/rule, topic]              ParkedState: the cursor of a rule that cannot write; an empty topic stands for all of the rule
    [occupancy, log key]                   OccupancyState

Cursors of parked rules move in transactions of their own: they count as they are read, whether a checkpoint follows or not.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Checkpoint(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """Everything of log stream `stream` before `offset` is in the state. `time`: broker time of the last record before it, milliseconds.

    `quiet_from`: a channel that was quiet for a while at the checkpoint, and of which there is no `last` record, had its last record
    before that offset (`core.quiet`). `core` is the name of the owner that wrote this, whose transaction may still be open.

    `rules`: what `tidegate.config` says before this position is in force from `offset` on, and no owner after this one may know less.
    `config` is the incarnation of that topic.
    """

    stream: str
    offset: int
    time: int = 0
    quiet_from: int = 0
    core: str = ""
    config: str = ""
    rules: int = 0
    v: int = 1


class MemberState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """`offset` is that of the record that last changed it, `timestamp` its time in milliseconds."""

    id: str
    timestamp: int
    offset: int
    data: Any = None
    encoding: str | None = None
    extras: dict[str, Any] | None = None


class HolderState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    incarnation: int
    edge: str
    gone: int | None = None
    """Offset of the GONE or EDGE_GONE in force."""
    grace_ms: int | None = None


class EdgeState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    gone: int
    at: int = 0
    """Broker time, milliseconds."""


class LastState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    offset: int
    at: int = 0
    """Broker time, milliseconds: once the log has forgotten it, so may the state."""


class KeptState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    offset: int
    at: int = 0
    """Broker time, milliseconds."""
    value: bytes = b""
    """That of the log record."""


class LifecycleState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """The `number`-th time that the channel was opened; `open`: and it has not been closed since."""

    number: int
    open: bool = True
    at: int = 0
    """Broker time of the event, milliseconds: a channel that has been closed for long starts counting anew."""


class ParkedState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """Of a rule that is parked, or writes to another cluster. All that it makes of the log before `offset` is written. `time`: broker time
    of the last record before it, milliseconds."""

    offset: int
    time: int = 0
    since: int = 0
    """Wall clock of the core that parked it, milliseconds."""
    reason: str = ""
    """Why it was."""
    begun: int = 0
    """That of the rule: once it has been disabled, the cursor is nobody's."""
    routing: str = ""
    """The routing key, if the cursor is that of a single topic: what waits for it was routed so."""


class OccupancyState(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """The `number`-th event of a channel's occupancy, and what it said, in the order of `relay.model.occupancy.METRICS`."""

    number: int
    counts: tuple[int, ...]
    at: int = 0
    """Broker time, milliseconds: a channel that has been empty for long starts counting anew."""


State = Checkpoint | MemberState | HolderState | EdgeState | LastState | KeptState | LifecycleState | OccupancyState | ParkedState

SHAPES: dict[str, type[Any]] = {
    "checkpoint": Checkpoint,
    "member": MemberState,
    "holder": HolderState,
    "edge": EdgeState,
    "last": LastState,
    "kept": KeptState,
    "lifecycle": LifecycleState,
    "parked": ParkedState,
    "remote": ParkedState,
    "occupancy": OccupancyState,
}

encode = msgspec.msgpack.Encoder().encode
_DECODERS = {kind: msgspec.msgpack.Decoder(shape).decode for kind, shape in SHAPES.items()}
_split = msgspec.msgpack.Decoder(list[Any]).decode

CHECKPOINT = encode(["checkpoint"])


def member_key(log_key: bytes, connection: str, client_id: str) -> bytes:
    return encode(["member", log_key, connection, client_id])


def holder_key(log_key: bytes, connection: str) -> bytes:
    return encode(["holder", log_key, connection])


def edge_key(boot: str) -> bytes:
    return encode(["edge", boot])


def last_key(log_key: bytes) -> bytes:
    return encode(["last", log_key])


def kept_key(log_key: bytes) -> bytes:
    return encode(["kept", log_key])


_KEPT = encode(["kept", b""])[:6]
"""An array of two that begins with that word."""


def is_kept(key: bytes) -> bool:
    return key.startswith(_KEPT)


def lifecycle_key(log_key: bytes) -> bytes:
    return encode(["lifecycle", log_key])


def parked_key(rule: str, topic: str) -> bytes:
    return encode(["parked", rule, topic])


def remote_key(rule: str, topic: str) -> bytes:
    return encode(["remote", rule, topic])


_PARKED = encode(["parked", "", ""])[:8]
"""An array of three that begins with that word."""


def is_parked(key: bytes) -> bool:
    return key.startswith(_PARKED)


def occupancy_key(log_key: bytes) -> bytes:
    return encode(["occupancy", log_key])


def decode(key: bytes, value: bytes) -> tuple[list[Any], State] | None:
    """The parts of the key, its kind first, and the value. None for what this build cannot read: another kind, or not of its shape."""
    try:
        parts = _split(key)
        decoder = _DECODERS.get(str(parts[0])) if parts else None
        return None if decoder is None else (parts, decoder(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
