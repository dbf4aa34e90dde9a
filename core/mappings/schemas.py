"""Schema Registry's framing, and decoders for its three kinds of schema. Pure: `core.kafka.schema_registry` fetches the schemas.

A framed key or value is a zero byte, the schema's id (4 bytes, big-endian) and the payload; with Protobuf the payload begins with the place
of the message within its file (zigzag varints: how many indexes, and the indexes; a lone 0 is the first message). Source: Confluent's
documentation, wire format.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

SchemaFormat = Literal["avro", "protobuf", "json_schema"]
SCHEMA_FORMATS: tuple[SchemaFormat, ...] = get_args(SchemaFormat)

Decoder = Callable[[bytes], Any]
"""Payload → dicts, lists and scalars: dates are days since 1970, times milliseconds of the day, timestamps milliseconds since 1970,
decimals `Decimal`, UUIDs and enums strings; bytes stay bytes. Raises UndecodableError."""


class UndecodableError(ValueError):
    """The bytes are not what they should be. The text holds nothing of them."""


class Unknown(NamedTuple):
    """The registry has no such schema, or none that can be used: `why`."""

    why: str


class Schemas(Protocol):
    """Schemas by id."""

    def find(self, form: SchemaFormat, schema: int) -> Decoder | Unknown | None:
        """None: the registry has not answered yet; ask again later."""


class Framed(NamedTuple):
    """A key or value taken out of its frame."""

    schema: int
    payload: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Framed:
        """Raises UndecodableError."""
        if len(raw) < 5 or raw[0] != 0:
            raise UndecodableError("is not in Schema Registry's framing")
        return cls(int.from_bytes(raw[1:5], "big"), raw[5:])


def read_indexes(payload: bytes) -> tuple[list[int], bytes]:
    """Where in its file a Protobuf message is defined, and the message. Raises UndecodableError."""
    stream = io.BytesIO(payload)
    count = _zigzag(stream)
    if count < 0 or count > 100:
        raise UndecodableError("message indexes")
    indexes = [_zigzag(stream) for _ in range(count)] or [0]
    return indexes, stream.read()


def _zigzag(stream: io.BytesIO) -> int:
    shift = value = 0
    while shift < 64:
        byte = stream.read(1)
        if not byte:
            raise UndecodableError("message indexes")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
    raise UndecodableError("message indexes")
