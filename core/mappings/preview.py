"""What a sample record would become, for people who try their mappings. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

from core.mappings.mapping import Delayed, Failed, Mapped, Mapping
from core.mappings.schemas import Schemas
from core.mappings.template import SourceRecord

_SAMPLE = {"topic", "partition", "offset", "key", "value", "headers"}


def read_sample(sample: object) -> SourceRecord:
    """A record from `{"topic", "partition", "offset", "key", "value", "headers": {name: value}}`; all but `topic` may be left out.

    Keys and values are text, null, any other JSON (its text is meant), or `{"base64": "…"}` for bytes. Raises ValueError.
    """
    if not isinstance(sample, dict) or not isinstance(sample.get("topic"), str):
        raise ValueError("a record is a JSON object with a topic")  # noqa: TRY004 - all of this function is about one value
    if unknown := sorted(sample.keys() - _SAMPLE):
        raise ValueError(f"{unknown[0]!r} is not part of a record; known are {', '.join(sorted(_SAMPLE))}")
    headers = sample.get("headers", {})
    if not isinstance(headers, dict):
        raise ValueError("headers are an object of names and values")  # noqa: TRY004
    partition, offset = (sample.get(name, 0) for name in ("partition", "offset"))
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (partition, offset)):
        raise ValueError("partition and offset are numbers from 0 on")
    return SourceRecord(
        sample["topic"],
        partition,
        offset,
        _bytes(sample.get("key")),
        _bytes(sample.get("value")),
        [(str(name), _bytes(value)) for name, value in headers.items()],
    )


def _bytes(value: Any) -> bytes | None:
    match value:
        case None:
            return None
        case str():
            return value.encode()
        case {"base64": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                raise ValueError("base64 is not base64") from None
        case _:
            return json.dumps(value, ensure_ascii=False).encode()


class Preview(NamedTuple):
    """What one mapping makes of a record. `message` is as a client would get it in JSON; None: `then` says what happens instead."""

    mapping: str
    channel: str | None = None
    message: dict[str, Any] | None = None
    reason: str | None = None
    detail: str | None = None
    then: str | None = None
    """`skip`, `stop`, `dlq`, or `wait` for a schema that the registry did not give."""

    def shape(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


def preview(mapping: Mapping, record: SourceRecord, now_ms: int, schemas: Schemas | None = None) -> Preview:
    """`mapping` must read the record's topic."""
    match mapping.map(record, now_ms, schemas):
        case Mapped(_, _, _, channel, message):
            shown: dict[str, Any] = {"id": message.id}
            if message.name is not None:
                shown["name"] = message.name
            if isinstance(message.data, bytes):
                shown["data"] = base64.b64encode(message.data).decode()
                shown["encoding"] = f"{message.encoding}/base64" if message.encoding else "base64"
            elif message.data is not None:
                shown["data"] = message.data
                if message.encoding:
                    shown["encoding"] = message.encoding
            if message.extras is not None:
                shown["extras"] = message.extras
            return Preview(mapping.id, channel, shown)
        case Failed(reason, detail):
            return Preview(mapping.id, reason=reason, detail=detail, then=mapping.config.on_failed_record_mapping)
        case Delayed(schema):
            return Preview(mapping.id, reason="waiting_for_schema", detail=f"schema {schema}", then="wait")
