"""What a rule writes: values and headers of enveloped, plain and batch records. Source: Ably protocol docs, Kafka rules."""

from __future__ import annotations

import base64
from typing import Any, Literal, NamedTuple

import msgspec

from relay.model.message import Message, PresenceAction
from relay.model.publish import relayed_extras

Format = Literal["json", "msgpack"]
SourceType = Literal["channel.message", "channel.presence", "channel.lifecycle", "channel.occupancy"]
Headers = list[tuple[str, str | bytes | None]]
"""Of a record, as the driver takes them; all values here are bytes."""

VERSION = b"1.2"
"""`x-ably-version` of every record, whatever version the publisher spoke."""

_JSON = msgspec.json.Encoder()
_MSGPACK = msgspec.msgpack.Encoder()

_ITEMS = b"\x81" + _MSGPACK.encode("items")
"""How a batch record begins in msgpack: a map of one, and its key."""

CONTENT_TYPE: dict[Format, bytes] = {"json": b"application/json", "msgpack": b"application/x-msgpack"}


PRESENCE_ACTIONS = {int(PresenceAction.ENTER): "enter", int(PresenceAction.UPDATE): "update", int(PresenceAction.LEAVE): "leave"}
"""As plain records and routing keys name them."""


class Event(NamedTuple):
    """What a rule makes one record of: a message, a change of presence, or a channel that opened or closed."""

    source: SourceType
    channel: str
    name: str
    """In a batch: `channel.message`, `presence.message`, `channel.opened`, `channel.closed`."""
    serial: str
    timestamp: int
    """Broker time of the log record in ms, so that a repeated run writes the same bytes."""
    message: Message
    """What `message.…` means in routing keys. The message; the presence item, its name that of its action; for a channel that opens or
    closes without any field."""
    action: int | None = None
    """Of presence: `PresenceAction`."""
    about: Message | None = None
    """Of a channel that opened or closed: id, time and name of the event."""
    details: dict[str, Any] | None = None
    """Of a channel that opened or closed: its ChannelDetails."""


class Envelope(msgspec.Struct, rename="camel", omit_defaults=True):
    """The value of an enveloped record. Which of the last four are there depends on the source."""

    source: str
    app_id: str
    channel: str
    site: str
    rule_id: str
    timestamp: int
    messages: list[dict[str, Any]] | None = None
    presence: list[dict[str, Any]] | None = None
    name: str | None = None
    data: dict[str, Any] | None = None


class BatchItem(msgspec.Struct, rename="camel"):
    """One event of a batch record."""

    webhook_id: str
    source: str
    serial: str
    timestamp: int
    name: str
    data: dict[str, Any]


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


def wire_presence(event: Event, format: Format) -> dict[str, Any]:
    """The presence item as clients decode it: a message without name, serial and version, and with the action of presence."""
    wire = wire_message(event.message, format)
    del wire["name"]
    wire["action"] = event.action
    return wire


def enveloped(event: Event, app: str, site: str, rule_id: str, format: Format) -> bytes:
    """The value. Raises what the codec raises on values that it cannot carry (integers beyond 64 bits)."""
    envelope = Envelope(event.source, app, event.channel, site, rule_id, event.timestamp)
    if event.details is not None:
        envelope.name, envelope.data = event.name, event.details
    elif event.action is not None:
        envelope.presence = [wire_presence(event, format)]
    else:
        envelope.messages = [wire_message(event.message, format)]
    return encoded(envelope, format)


def batch_item(event: Event, site: str, rule_id: str, format: Format) -> bytes:
    """One element of the `items` of a batch record. Raises as `enveloped` does."""
    if event.details is not None:
        data = event.details
    elif event.action is not None:
        data = {"channelId": event.channel, "site": site, "presence": [wire_presence(event, format)]}
    else:
        data = {"channelId": event.channel, "site": site, "messages": [wire_message(event.message, format)]}
    return encoded(BatchItem(rule_id, event.source, event.serial, event.timestamp, event.name, data), format)


def batch_of(items: list[bytes], format: Format) -> bytes:
    """The value of a batch record: a map of `items` alone."""
    if format == "json":
        return b'{"items":[' + b",".join(items) + b"]}"
    count = len(items)
    head = (
        bytes([0x90 | count])
        if count < 16
        else b"\xdc" + count.to_bytes(2, "big")
        if count < 65_536
        else b"\xdd" + count.to_bytes(4, "big")
    )
    return b"".join([_ITEMS, head, *items])


def encoded(value: object, format: Format) -> bytes:
    return _JSON.encode(value) if format == "json" else _MSGPACK.encode(value)


def headers_of(format: Format) -> Headers:
    """Of enveloped and batch records."""
    return [("content-type", CONTENT_TYPE[format]), ("x-ably-version", VERSION)]


def plain(event: Event, app: str, site: str, rule_id: str) -> tuple[bytes, Headers]:
    """(value, headers): the payload alone, everything else in headers. The payload of a channel that opened or closed is its details.

    No data is an empty value, never null: null would be a tombstone in a compacted topic.
    """
    message = event.message
    if event.about is not None:
        message = msgspec.structs.replace(event.about, data=_JSON.encode(event.details).decode(), encoding="json")
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
        ("x-ably-envelope-channel", event.channel.encode("utf-8", "surrogatepass")),
        ("x-ably-envelope-rule-id", rule_id.encode()),
        ("x-ably-envelope-site", site.encode()),
        ("x-ably-envelope-source", event.source.encode()),
    ]
    known: tuple[tuple[str, str | None], ...] = (
        ("x-ably-message-id", message.id),
        ("x-ably-message-timestamp", None if message.timestamp is None else str(message.timestamp)),
        ("x-ably-message-client-id", message.client_id),
        ("x-ably-message-connection-id", message.connection_id),
        ("x-ably-message-name", message.name if event.action is None else None),
        ("x-ably-message-action", None if event.action is None else PRESENCE_ACTIONS[event.action]),
        ("x-ably-message-encoding", remaining),
    )
    headers += [(name, text.encode("utf-8", "surrogatepass")) for name, text in known if text]
    extras = relayed_extras(message.extras)
    if extras:
        headers.append(("x-ably-message-extras", _JSON.encode(extras)))
    return value, headers
