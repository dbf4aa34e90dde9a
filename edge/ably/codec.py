"""ProtocolMessages on the wire, JSON and msgpack. Whatever bytes come in, the outcome is a `ProtocolMessage` or `Malformed`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.ably.protocol import Action
from edge.ably.websocket import binary_frame, text_frame
from relay.model.errors import ErrorInfo
from relay.model.message import Message, PresenceAction, RecordBody
from relay.model.publish import relayed_extras
from relay.model.serials import message_serial

if TYPE_CHECKING:
    from edge.members import Member, Shown
    from relay.link.calls import MemberItem


class Malformed(Exception):  # noqa: N818 - as in "malformed message"
    """What came in is no ProtocolMessage. The text says what is wrong with its shape, never what it holds."""


class ProtocolMessage(msgspec.Struct, rename="camel"):
    """What a client sends. Unknown fields are skipped; `None` and absent are the same. Source: specification TR4.

    `messages`, `presence`, `params` and `auth` are checked by those who read them: a wrong shape there costs one operation, not the
    connection.
    """

    action: int
    id: str | None = None
    channel: str | None = None
    channel_serial: str | None = None
    msg_serial: int | None = None
    flags: int | None = None
    params: Any = None
    messages: Any = None
    presence: Any = None
    auth: Any = None


_json = msgspec.json.Decoder(ProtocolMessage)
_msgpack = msgspec.msgpack.Decoder(ProtocolMessage)
_MAX_SAFE = (1 << 53) - 1
"""The largest integer that every client can hold (JavaScript's `Number.MAX_SAFE_INTEGER`)."""


def decode(data: bytes, *, msgpack: bool) -> ProtocolMessage:
    """Raises `Malformed`, and nothing else, for any input."""
    try:
        message = (_msgpack if msgpack else _json).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        # msgspec's text may quote a field name or a type, and never a value.
        raise Malformed(str(error) if isinstance(error, msgspec.ValidationError) else "not decodable") from None
    serial = message.msg_serial
    if serial is not None and not 0 <= serial <= _MAX_SAFE:
        raise Malformed("msgSerial out of range")
    if message.flags is not None and not 0 <= message.flags <= _MAX_SAFE:
        raise Malformed("flags out of range")
    return message


def decode_body(data: bytes, *, msgpack: bool) -> Any:
    """A REST body as plain values. Raises `Malformed`."""
    try:
        return msgspec.msgpack.decode(data) if msgpack else msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError):
        raise Malformed("not decodable") from None


def encode_body(value: Any, *, msgpack: bool) -> bytes:
    return _encode_msgpack(value) if msgpack else _encode_json(value)


# --- what the server sends -----------------------------------------------------------------------------------------------------------


def error_shape(error: ErrorInfo) -> dict[str, Any]:
    shape: dict[str, Any] = {"code": error.code, "statusCode": error.status_code, "message": error.message}
    if error.href is not None:
        shape["href"] = error.href
    return shape


_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


class Wire:
    """One of the two formats: turns what the server says into whole WebSocket frames."""

    __slots__ = ("_encode", "_frame", "msgpack")

    def __init__(self, *, msgpack: bool) -> None:
        self.msgpack = msgpack
        self._encode: Callable[[Any], bytes] = _encode_msgpack if msgpack else _encode_json
        self._frame = binary_frame if msgpack else text_frame

    def frame(self, action: Action, /, **fields: Any) -> bytes:
        """A frame of `action` with the fields that are not None; an ErrorInfo becomes its wire form."""
        body: dict[str, Any] = {"action": int(action)}
        for name, value in fields.items():
            if value is not None:
                body[name] = error_shape(value) if isinstance(value, ErrorInfo) else value
        return self._frame(self._encode(body))

    def delivery(self, body: RecordBody, channel: str, channel_serial: str, only: Sequence[int] | None = None) -> bytes:
        """The MESSAGE that subscribers of `channel` (in their spelling) get for one record; `only`: its messages with these indices.

        Source: specification TM2, RSL6.
        """
        if only is None or len(only) == len(body.messages):
            messages = [_outbound(each, message_serial(channel_serial, index), self.msgpack) for index, each in enumerate(body.messages)]
        else:
            messages = [_outbound(body.messages[index], message_serial(channel_serial, index), self.msgpack) for index in only]
            for index, message in zip(only, messages, strict=True):
                message.id = message.id or f"{body.id}:{index}"  # a client would count from the first that it gets
        return self._frame(
            self._encode(
                _Delivery(
                    action=15,
                    id=body.id,
                    channel=channel,
                    channel_serial=channel_serial,
                    timestamp=body.timestamp,
                    connection_id=body.connection_id,
                    messages=messages,
                )
            )
        )

    def presence(self, body: RecordBody, shown: list[Shown], channel: str, channel_serial: str) -> bytes:
        """The PRESENCE that tells of changes which one record has made. Source: specification TP3."""
        items = []
        for change in shown:
            data, encoding = _carried(change.data, change.encoding, self.msgpack)
            item = _PresenceItem(int(change.action), change.id, change.client_id, data=data, encoding=encoding)
            item.extras = relayed_extras(change.extras)
            items.append(item)
        return self._frame(
            self._encode(
                _PresenceDelivery(
                    action=14,
                    id=body.id,
                    channel=channel,
                    channel_serial=channel_serial,
                    timestamp=body.timestamp,
                    connection_id=body.connection_id,
                    presence=items,
                )
            )
        )

    def members(self, members: Iterable[Member]) -> bytes:
        """The `presence` array of a SYNC message."""
        return self._encode([member_shape(member, msgpack=self.msgpack) for member in members])

    def sync(self, channel: str, channel_serial: str, members: bytes) -> bytes:
        """One SYNC message around what `members` has made. Source: specification RTP18."""
        return self._frame(
            self._encode({"action": 16, "channel": channel, "channelSerial": channel_serial, "presence": msgspec.Raw(members)})
        )


class _Outbound(msgspec.Struct, rename="camel", omit_defaults=True):
    """One message as subscribers get it. `action` has no default so that it is always written."""

    action: int
    serial: str
    id: str | None = None
    name: str | None = None
    data: Any = None
    encoding: str | None = None
    client_id: str | None = None
    connection_id: str | None = None
    timestamp: int | None = None
    extras: dict[str, Any] | None = None
    version: dict[str, Any] | None = None


class _Delivery(msgspec.Struct, rename="camel", omit_defaults=True):
    action: int
    id: str
    channel: str
    channel_serial: str
    timestamp: int
    messages: list[_Outbound]
    connection_id: str | None = None


def stored_messages(body: RecordBody, channel_serial: str, first: int, last: int, *, msgpack: bool) -> list[_Outbound]:
    """Messages `first` to `last` (inclusive) of one record, each whole in itself, as REST shows them. Source: specification TM2."""
    messages = []
    for index in range(first, min(last + 1, len(body.messages))):
        message = _outbound(body.messages[index], message_serial(channel_serial, index), msgpack)
        message.id = message.id or f"{body.id}:{index}"
        message.timestamp = message.timestamp or body.timestamp
        message.connection_id = message.connection_id or body.connection_id
        message.version = message.version or {"serial": message.serial, "timestamp": message.timestamp}
        messages.append(message)
    return messages


class _PresenceItem(msgspec.Struct, rename="camel", omit_defaults=True):
    action: int
    id: str
    client_id: str
    connection_id: str | None = None
    timestamp: int | None = None
    data: Any = None
    encoding: str | None = None
    extras: dict[str, Any] | None = None


class _PresenceDelivery(msgspec.Struct, rename="camel", omit_defaults=True):
    action: int
    id: str
    channel: str
    channel_serial: str
    timestamp: int
    presence: list[_PresenceItem]
    connection_id: str | None = None


def member_shape(member: Member | MemberItem, *, msgpack: bool) -> _PresenceItem:
    """A member as one who is present (TP2), whole in itself."""
    data, encoding = _carried(member.data, member.encoding, msgpack)
    return _PresenceItem(
        action=int(PresenceAction.PRESENT),
        id=member.id,
        client_id=member.client_id,
        connection_id=member.connection_id,
        timestamp=member.timestamp,
        data=data,
        encoding=encoding,
        extras=relayed_extras(member.extras),
    )


def stored_presence(body: RecordBody, first: int, last: int, *, msgpack: bool) -> list[_PresenceItem]:
    """Changes `first` to `last` (inclusive) of one PRESENCE record, each whole in itself, as history shows them."""
    items = []
    for index in range(first, min(last + 1, len(body.presence))):
        change = body.presence[index]
        data, encoding = _carried(change.data, change.encoding, msgpack)
        items.append(
            _PresenceItem(
                action=int(change.action),
                id=change.id or f"{body.id}:{index}",
                client_id=change.client_id,
                connection_id=body.connection_id,
                timestamp=body.timestamp,
                data=data,
                encoding=encoding,
                extras=relayed_extras(change.extras),
            )
        )
    return items


def _carried(data: Any, encoding: str | None, msgpack: bool) -> tuple[Any, str | None]:
    """Data and encoding as the format can carry them: JSON has no binary."""
    if not msgpack and isinstance(data, bytes):
        data = base64.b64encode(data).decode("ascii")
        encoding = f"{encoding}/base64" if encoding else "base64"
    return data, encoding or None


def _outbound(message: Message, serial: str, msgpack: bool) -> _Outbound:
    data, encoding = _carried(message.data, message.encoding, msgpack)
    return _Outbound(
        action=message.action,
        serial=message.serial or serial,
        id=message.id,
        name=message.name,
        data=data,
        encoding=encoding,
        client_id=message.client_id,
        connection_id=message.connection_id,
        timestamp=message.timestamp,
        extras=relayed_extras(message.extras),
        version=message.version,
    )


JSON = Wire(msgpack=False)
MSGPACK = Wire(msgpack=True)
