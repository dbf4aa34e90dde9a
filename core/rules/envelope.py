"""What a rule writes: values and headers of enveloped and plain records. Source: Ably protocol docs, Kafka rules."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from relay.model.message import Message
from relay.model.publish import relayed_extras

Format = Literal["json", "msgpack"]
Headers = list[tuple[str, str | bytes | None]]
"""Of a record, as the driver takes them; all values here are bytes."""

VERSION = b"1.2"
"""`x-ably-version` of every record, whatever version the publisher spoke."""

_JSON = msgspec.json.Encoder()
_MSGPACK = msgspec.msgpack.Encoder()

CONTENT_TYPE: dict[Format, bytes] = {"json": b"application/json", "msgpack": b"application/x-msgpack"}


class Envelope(msgspec.Struct, rename="camel"):
    """The value of an enveloped record. `timestamp` is the broker time of the log record, so that a repeated run writes the same bytes."""

    source: str
    app_id: str
    channel: str
    site: str
    rule_id: str
    timestamp: int
    messages: Sequence[dict[str, Any]]


def wire_message(message: Message, format: Format) -> dict[str, Any]:
    """`message` as clients decode it: numeric action, absent fields left out, binary as base64 in JSON and as bin in msgpack."""
    wire: dict[str, Any] = {"id": message.id} if message.id else {}
    if message.connection_id:
        wire["connectionId"] = message.connection_id
    if message.client_id:
        wire["clientId"] = message.client_id
    if message.timestamp is not None:
        wire["timestamp"] = message.timestamp
    if message.name is not None:
        wire["name"] = message.name
    encoding = message.encoding
    if message.data is not None:
        data = message.data
        if format == "json" and isinstance(data, bytes):
            data = base64.b64encode(data).decode()
            encoding = f"{encoding}/base64" if encoding else "base64"
        wire["data"] = data
    if encoding:
        wire["encoding"] = encoding
    extras = relayed_extras(message.extras)
    if extras:
        wire["extras"] = extras
    wire["action"] = message.action
    if message.serial:
        wire["serial"] = message.serial
    if message.version:
        wire["version"] = message.version
    return wire


def enveloped(envelope: Envelope, format: Format) -> tuple[bytes, Headers]:
    """(value, headers). Raises what the codec raises on values that it cannot carry (integers beyond 64 bits)."""
    value = _JSON.encode(envelope) if format == "json" else _MSGPACK.encode(envelope)
    return value, [("content-type", CONTENT_TYPE[format]), ("x-ably-version", VERSION)]


def plain(source: str, app: str, channel: str, site: str, rule_id: str, message: Message) -> tuple[bytes, Headers]:
    """(value, headers): the payload alone, everything else in headers.

    No data is an empty value, never null: null would be a tombstone in a compacted topic.
    """
    data, remaining = message.data, message.encoding
    if isinstance(data, bytes):
        value, content_type = data, b"application/octet-stream"
    else:
        value, content_type = ("" if data is None else str(data)).encode("utf-8", "surrogatepass"), b"text/plain"
        if remaining == "json":
            content_type, remaining = b"application/json", None
    headers: Headers = [
        ("content-type", content_type),
        ("x-ably-version", VERSION),
        ("x-ably-envelope-appid", app.encode()),
        ("x-ably-envelope-channel", channel.encode()),
        ("x-ably-envelope-rule-id", rule_id.encode()),
        ("x-ably-envelope-site", site.encode()),
        ("x-ably-envelope-source", source.encode()),
    ]
    known: tuple[tuple[str, str | None], ...] = (
        ("x-ably-message-id", message.id),
        ("x-ably-message-timestamp", None if message.timestamp is None else str(message.timestamp)),
        ("x-ably-message-client-id", message.client_id),
        ("x-ably-message-connection-id", message.connection_id),
        ("x-ably-message-name", message.name),
        ("x-ably-message-encoding", remaining),
    )
    headers += [(name, text.encode("utf-8", "surrogatepass")) for name, text in known if text]
    extras = relayed_extras(message.extras)
    if extras:
        headers.append(("x-ably-message-extras", _JSON.encode(extras)))
    return value, headers
