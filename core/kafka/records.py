"""Records of the log as Kafka stores them: key `app:channel`, value the record's body, headers `kind` (decimal), `id` and `version`."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

from core.log import LogRecord

FORMAT_VERSION = b"1"
"""The `version` header. A reader skips what it does not know."""
UNKNOWN = -1
"""Kind of a record that this build cannot read: no headers, another format version, or a kind that is no number."""
_headers = methodcaller("headers")
"""Not `message.headers()`: if the name of a header is not UTF-8, confluent-kafka (2.16) returns a list with null pointers in it, which end
the process when they are touched, and sets an exception as well. Python notices that in a call from C, as this one is, but not in one that
its adaptive interpreter has specialised, as that one is when it is hot (3.11 to 3.14). It costs 0.06 µs."""
UNREADABLE = (SystemError, UnicodeDecodeError)
"""What comes of that; today it is the first. Asked once more the driver gives the list without an exception: ask once."""
NUMERALS = [str(kind).encode() for kind in range(256)]
KINDS: dict[bytes | None, int] = {numeral: kind for kind, numeral in enumerate(NUMERALS)}


def headers(kind: int, publish_id: str) -> list[tuple[str, str | bytes | None]]:
    """The headers of a new record."""
    return [("kind", NUMERALS[kind]), ("id", publish_id.encode()), ("version", FORMAT_VERSION)]


def log_record(message: Any, stream: str) -> LogRecord:
    """What a message of confluent_kafka says as a record of the log. Foreign records keep their place and get the kind `UNKNOWN`."""
    try:
        found = _headers(message)
    except UNREADABLE:
        found = None
    kind, publish_id = read_headers(found) if found else (UNKNOWN, "")
    return LogRecord(
        stream,
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key() or b"",
        message.value() or b"",
        kind,
        publish_id,
    )


def headers_of(message: Any) -> list[tuple[str, bytes | None]] | None:
    """Headers of a record that others have written; None if they cannot be had. To be called once for each."""
    try:
        return _headers(message) or []
    except UNREADABLE:
        return None


def read_headers(found: list[tuple[str, bytes | None]]) -> tuple[int, str]:
    """Kind and publish id."""
    if len(found) == 3:  # as this build writes them, in that order: half the price of looking for each
        (first, kind), (second, identity), (third, version) = found
        if identity and version == FORMAT_VERSION and first == "kind" and second == "id" and third == "version":
            return KINDS.get(kind, UNKNOWN), identity.decode("utf-8", "replace")
    values = dict(found)
    publish_id = (values.get("id") or b"").decode(errors="replace")
    return (KINDS.get(values.get("kind") or b"", UNKNOWN) if values.get("version") == FORMAT_VERSION else UNKNOWN), publish_id
