"""Numbers of the realtime protocol: actions, flags and modes of a ProtocolMessage. Source: specification TR2-TR4."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from relay.model.capability import Operation

LOWEST_PROTOCOL = 2
HIGHEST_PROTOCOL = 6


class Action(enum.IntEnum):
    HEARTBEAT = 0
    ACK = 1
    NACK = 2
    CONNECT = 3
    CONNECTED = 4
    DISCONNECT = 5
    DISCONNECTED = 6
    CLOSE = 7
    CLOSED = 8
    ERROR = 9
    ATTACH = 10
    ATTACHED = 11
    DETACH = 12
    DETACHED = 13
    PRESENCE = 14
    MESSAGE = 15
    SYNC = 16
    AUTH = 17
    ACTIVATE = 18
    OBJECT = 19
    OBJECT_SYNC = 20
    ANNOTATION = 21


class Flag(enum.IntFlag):
    HAS_PRESENCE = 1 << 0
    HAS_BACKLOG = 1 << 1
    RESUMED = 1 << 2
    TRANSIENT = 1 << 4
    ATTACH_RESUME = 1 << 5
    HAS_OBJECTS = 1 << 7


class Mode(enum.IntFlag):
    """What an attachment may do: bits of `flags` on ATTACH (asked) and ATTACHED (granted)."""

    PRESENCE = 1 << 16
    PUBLISH = 1 << 17
    SUBSCRIBE = 1 << 18
    PRESENCE_SUBSCRIBE = 1 << 19
    ANNOTATION_PUBLISH = 1 << 21
    ANNOTATION_SUBSCRIBE = 1 << 22
    OBJECT_SUBSCRIBE = 1 << 24
    OBJECT_PUBLISH = 1 << 25


# Plain integers: attachments hold and compare them for every client, and IntFlag arithmetic costs a microsecond.
PUBLISH = int(Mode.PUBLISH)
SUBSCRIBE = int(Mode.SUBSCRIBE)
PRESENCE = int(Mode.PRESENCE)
PRESENCE_SUBSCRIBE = int(Mode.PRESENCE_SUBSCRIBE)
MODE_MASK = 0x36F0000
DEFAULT_MODES = int(Mode.PRESENCE | Mode.PUBLISH | Mode.SUBSCRIBE | Mode.PRESENCE_SUBSCRIBE | Mode.ANNOTATION_PUBLISH)
"""What an ATTACH that asks for nothing gets: no ANNOTATION_SUBSCRIBE and no OBJECT modes."""

MODE_NAMES: dict[str, int] = {mode.name.lower(): int(mode) for mode in Mode if mode.name}
"""As in `params.modes`."""

_MODES_OF: dict[Operation, int] = {
    Operation.SUBSCRIBE: int(Mode.SUBSCRIBE | Mode.PRESENCE_SUBSCRIBE | Mode.OBJECT_SUBSCRIBE),
    Operation.PUBLISH: int(Mode.PUBLISH),
    Operation.PRESENCE: int(Mode.PRESENCE),
    Operation.ANNOTATION_PUBLISH: int(Mode.ANNOTATION_PUBLISH),
    Operation.ANNOTATION_SUBSCRIBE: int(Mode.ANNOTATION_SUBSCRIBE),
    Operation.OBJECT_SUBSCRIBE: int(Mode.OBJECT_SUBSCRIBE),
    Operation.OBJECT_PUBLISH: int(Mode.OBJECT_PUBLISH),
}


def modes_of(operations: Iterable[Operation], *, read_only: bool = False) -> int:
    """The modes that a set of operations allows on a channel, as bits. `read_only`: on a metachannel, which has messages and no more."""
    if read_only:
        return SUBSCRIBE if Operation.SUBSCRIBE in set(operations) else 0
    bits = 0
    for operation in operations:
        bits |= _MODES_OF.get(operation, 0)
    return bits
