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


class RecordBody(msgspec.Struct, rename="camel", omit_defaults=True):
    """The value of one log record.

    `id` is the ProtocolMessage id (`connectionId:msgSerial`, or the base of client-supplied ids), `timestamp` the core's receipt time in
    milliseconds, `connection_id` the publisher's connection (absent for REST without a connectionKey). `ephemeral` messages are neither
    replayed nor ruled upon.
    """

    id: str
    timestamp: int
    connection_id: str | None = None
    messages: list[Message] = []
    ephemeral: bool = False
