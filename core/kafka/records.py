"""Records of the log as Kafka stores them: key `app:channel`, value the record's body, headers `kind` (decimal), `id` and `version`."""

from __future__ import annotations

from typing import Any

from core.log import LogRecord

FORMAT_VERSION = b"1"
"""The `version` header. A reader skips what it does not know."""
UNKNOWN = -1
"""Kind of a record that this build cannot read: no headers, another format version, or a kind that is no number."""
NUMERALS = [str(kind).encode() for kind in range(256)]
KINDS = {numeral: kind for kind, numeral in enumerate(NUMERALS)}


def headers(kind: int, publish_id: str) -> list[tuple[str, str | bytes | None]]:
    """The headers of a new record."""
    return [("kind", NUMERALS[kind]), ("id", publish_id.encode()), ("version", FORMAT_VERSION)]


def log_record(message: Any, stream: str) -> LogRecord:
    """What a message of confluent_kafka says as a record of the log. Foreign records keep their place and get the kind `UNKNOWN`."""
    kind, publish_id, version = UNKNOWN, "", b""
    for name, value in message.headers() or ():
        if name == "kind":
            kind = KINDS.get(value, UNKNOWN)
        elif name == "id":
            publish_id = value.decode(errors="replace") if value else ""
        elif name == "version":
            version = value
    return LogRecord(
        stream,
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key() or b"",
        message.value() or b"",
        kind if version == FORMAT_VERSION else UNKNOWN,
        publish_id,
    )
