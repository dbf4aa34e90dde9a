"""Messages as they are stored in the log and carried on the link.

One `RecordBody` is one atomic publish: the value of one record of `tidegate.log`, msgpack with camelCase keys, without the channel (the
record's key) and without serials (the record's position). Binary `data` is msgpack bin with no `base64` step in `encoding`.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class Kind(enum.IntEnum):
    """What a log record is; the `kind` header of the record, in decimal."""

    MESSAGE = 0
    PRESENCE = 1
    GONE = 2
    BACK = 3
    EDGE_GONE = 4
    LIFECYCLE = 5
    OCCUPANCY = 6
    EDGE_BACK = 7


class Message(msgspec.Struct, rename="camel", omit_defaults=True):
    """One message, in stored form. `None` stands for absent; `data=""` is a value. Source: specification TM2."""

    id: str | None = None
    name: str | None = None
    data: Any = None
    """str, bytes or None; msgspec has no union of the two, so `relay.model.publish` checks it at both tiers."""
    encoding: str | None = None
    client_id: str | None = None
    connection_id: str | None = None
    timestamp: int | None = None
    extras: dict[str, Any] | None = None
    action: int = 0
    serial: str | None = None
    version: dict[str, Any] | None = None


class PresenceAction(enum.IntEnum):
    """Source: specification TP2."""

    ABSENT = 0
    PRESENT = 1
    ENTER = 2
    LEAVE = 3
    UPDATE = 4


class PresenceItem(msgspec.Struct, rename="camel", omit_defaults=True):
    """One change of one member, in stored form. Source: specification TP3.

    The member is the record's `connection_id` and this `client_id`. `id` is set where a client enters again under the id that its member
    had (RTP17g); otherwise it is the record's id and the item's index. `data` is str, bytes or None, as in `Message`.
    """

    action: int
    client_id: str
    id: str | None = None
    data: Any = None
    encoding: str | None = None
    extras: dict[str, Any] | None = None


class RecordBody(msgspec.Struct, rename="camel", omit_defaults=True):
    """The value of one log record.

    `id` is the ProtocolMessage id (`connectionId:msgSerial`, or the base of client-supplied ids), `timestamp` the core's receipt time in
    milliseconds, `connection_id` the publisher's connection (absent for REST without a connectionKey). `ephemeral` messages are neither
    replayed nor ruled upon; it is the last field, so that a look at a record's end tells.

    What else each kind of record has (`core.presence` says what they mean):

        PRESENCE   `presence`; by a connection: its `incarnation` and the `edge` (boot id) it is at; by a core, for members of a
                   connection that did not come back: `cause`
        GONE       `connection_id`, `incarnation`, `grace_ms`
        BACK       `connection_id`, `incarnation`, `edge`
        EDGE_GONE  `edge`
        EDGE_BACK  `edge`
    """

    id: str
    timestamp: int
    connection_id: str | None = None
    messages: list[Message] = []
    presence: list[PresenceItem] = []
    incarnation: int = 0
    edge: str = ""
    """Boot id of an edge process."""
    grace_ms: int | None = None
    """How long members of a connection that is gone stay; None: as long as the core's settings say."""
    cause: int | None = None
    """Offset, in the same partition, of the GONE or EDGE_GONE whose grace is over. The leave counts only if the connection is still gone
    for that reason when it is read."""
    ephemeral: bool = False
