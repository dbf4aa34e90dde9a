"""Payloads in the form of a registered schema: what a rule asks for, and what it gets. Pure; `core.kafka.schema_registry` fetches."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from core.mappings.schemas import SchemaFormat, Unknown
from core.rules.checks import ConfigError, topic_fault

if TYPE_CHECKING:
    from core.rules.batch import Output

MAX_SUBJECT = 256
"""In characters."""
INVALID = "invalid_payload"
"""Reason of a record that is dropped, or goes to the dead letters."""
REASON = "x-tidegate-reason"
"""Header of a dead letter: why it is one. The payload is as it was."""
CONTENT_TYPES = {"avro": b"application/avro", "protobuf": b"application/x-protobuf", "json_schema": b"application/json"}

Encoder = Callable[[bytes], bytes]
"""Payload as the client sent it, JSON → what follows the schema's id. Raises InvalidError."""


class InvalidError(ValueError):
    """The payload is not valid by its schema. The text holds nothing of it."""


class Encoding(NamedTuple):
    """A schema as the registry has it now."""

    id: int
    encode: Encoder

    def framed(self, payload: bytes) -> bytes:
        """With a zero byte and the id before it (Confluent's documentation, wire format). Raises InvalidError."""
        return struct.pack(">bI", 0, self.id) + self.encode(payload)


class Encodings(Protocol):
    """Schemas by subject."""

    def find_subject(self, form: SchemaFormat, subject: str, version: int) -> Encoding | Unknown | None:
        """`version` 0: the latest. None: the registry has not answered yet; ask again later."""


class RuleSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`target.schema` of a rule: payloads are JSON, and written in this form, or not at all."""

    format: SchemaFormat
    subject: str
    version: int = 0
    """0: the latest, looked up again once a minute."""
    on_invalid: Literal["drop", "dlq"] = "drop"
    dlq_topic: str = ""


def encoded(output: Output, encodings: Encodings | None) -> Output | Literal["unavailable_schema", "unknown_schema"] | None:
    """An output in the form of its schema, or as a dead letter; why that cannot be said now; None: it is not valid, and to be dropped."""
    schema = output.schema
    assert schema is not None, "it has one"
    found = None if encodings is None else encodings.find_subject(schema.format, schema.subject, schema.version)
    if found is None:
        return "unavailable_schema"
    if isinstance(found, Unknown):
        return "unknown_schema"
    try:
        value = found.framed(output.value)
    except InvalidError as wrong:
        if not schema.dlq_topic:
            return None
        headers = [*output.headers, (REASON, str(wrong).encode())]
        return output._replace(topic=schema.dlq_topic, headers=headers, schema=None)
    kind = CONTENT_TYPES[schema.format]
    headers = [(name, kind if name == "content-type" else text) for name, text in output.headers]
    return output._replace(value=value, headers=headers, schema=None)


def check_schema(schema: RuleSchema, prefix: str, *, registry: bool, plain: bool, topic: str | None) -> None:
    """Raises ConfigError."""
    where = "target.schema"
    if not registry:
        raise ConfigError(where, "needs [schema_registry]")
    if not plain:
        raise ConfigError(where, "is for payloads: enveloped must be false, and request_mode single")
    if topic is None:
        raise ConfigError(where, "needs a routing key with one topic, which the schema is for")
    if not 1 <= len(schema.subject) <= MAX_SUBJECT or not schema.subject.isprintable():
        raise ConfigError(f"{where}.subject", f"must be 1-{MAX_SUBJECT} printable characters")
    if schema.version < 0:
        raise ConfigError(f"{where}.version", "must be at least 1; 0 is the latest")
    if (schema.on_invalid == "dlq") != bool(schema.dlq_topic):
        raise ConfigError(f"{where}.dlq_topic", 'goes together with on_invalid = "dlq"')
    if schema.dlq_topic == topic:
        raise ConfigError(f"{where}.dlq_topic", "is the topic of the rule")
    if schema.dlq_topic and (fault := topic_fault(schema.dlq_topic, prefix)):
        raise ConfigError(f"{where}.dlq_topic", f"cannot be written to ({fault.replace('_', ' ')})")
