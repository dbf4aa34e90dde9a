"""The rules of one publish, by which the edge refuses early and the core refuses again. Source: Ably protocol docs, 4.1 to 4.6 and 4.9.

In order: `messages_from_wire` (types), then the caller's checks of channel name, capability and mode, then `settle` (clientId, ids,
extras, data, count, size). `settle` leaves what it has settled unchanged, so a core runs it again on what an edge sends.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from relay.model.errors import RelayError
from relay.model.identity import WILDCARD
from relay.model.limits import PROTOCOL
from relay.model.message import Message

EXTRAS: frozenset[str] = frozenset({"headers", "push", "ephemeral", "privileged", "ref", "ai", "kafka"})
"""Keys of `extras` that clients may set."""
SERVER_EXTRAS: frozenset[str] = frozenset({"delta", "userClaim"})
"""Keys of `extras` that only servers set: dropped from what a client sends."""

_INT64 = range(-(2**63), 2**64)
_MUTATIONS = (1, 2, 5)
_TYPES = (str, bytes, type(None))


# --- from a client ---------------------------------------------------------------------------------------------------------------------


def messages_from_wire(items: object, *, json: bool, rest: bool = False) -> list[Message]:
    """One message or a list of them, as decoded from JSON or msgpack, in stored form. About 1 µs a message.

    `json`: the format was JSON, so a last encoding step `base64` is undone. `rest`: objects and arrays are taken as `data` (JSON only).
    Nulls count as absent; unknown fields are left out. Raises RelayError 40000, 40006, 40012, 40013, 40031, 40032, 40034.
    """
    if not isinstance(items, list):
        return [_message(items, json, rest)]
    if not items:
        raise RelayError(40000, "Malformed message; nothing to publish")
    if len(items) > PROTOCOL.max_messages:  # before any work is spent on them
        raise _too_many(len(items))
    return [_message(item, json, rest) for item in items]


def _message(item: object, json: bool, rest: bool) -> Message:
    if not isinstance(item, dict):
        raise RelayError(40000, "Malformed message; must be an object")
    get = item.get
    name, data, encoding = get("name"), get("data"), get("encoding")
    if name is not None and not isinstance(name, str):
        raise RelayError(40000, "Malformed message; name must be a string")
    if encoding is not None and not isinstance(encoding, str):
        raise RelayError(40013, "Invalid encoding; must be a string")
    if not isinstance(data, _TYPES):
        if rest and json and not encoding and isinstance(data, dict | list):
            data, encoding = _json_text(data), "json"
        else:
            raise _bad_data()
    if json and encoding and isinstance(data, str) and (encoding == "base64" or encoding.endswith("/base64")):
        data, encoding = _unbase64(data), encoding[:-7]
    message = Message(name=name, data=data, encoding=encoding or None)
    if (id_ := get("id")) is not None:
        if not isinstance(id_, str):
            raise _bad_id()
        message.id = id_
    if (client_id := get("clientId")) is not None:
        if not isinstance(client_id, str):
            raise _bad_client_id()
        message.client_id = client_id
    if (connection_id := get("connectionId")) is not None:
        if not isinstance(connection_id, str):
            raise _bad_connection()
        message.connection_id = connection_id
    if (extras := get("extras")) is not None:
        if not isinstance(extras, dict):
            raise RelayError(40032, "Message has invalid extras; must be an object")
        message.extras = extras
    if (action := get("action")) is not None:
        # bool is an int to Python, and msgpack allows a negative one
        if type(action) is not int or not 0 <= action <= 5:
            raise RelayError(40000, "Malformed message; invalid action")
        message.action = action
        if action in _MUTATIONS:
            serial, version = get("serial"), get("version")
            if serial is not None and not isinstance(serial, str):
                raise RelayError(40003, "Malformed message; serial must be a string")
            if version is not None and not isinstance(version, dict):
                raise RelayError(40000, "Malformed message; version must be an object")
            message.serial, message.version = serial, version
    return message


def connection_key_of(items: object) -> str | None:
    """The `connectionKey` of a REST publish on a connection's behalf (TM2h). Raises RelayError 40006 if its messages disagree."""
    keys = {item.get("connectionKey") if isinstance(item, dict) else None for item in _hashable(items)}
    if len(keys) > 1:
        raise _bad_connection()
    return keys.pop() if keys else None


def _hashable(items: object) -> list[object]:
    several = items if isinstance(items, list) else [items]
    for item in several:
        if isinstance(item, dict) and not isinstance(item.get("connectionKey"), str | None):
            raise _bad_connection()
    return several


def _json_text(data: object) -> str:
    try:
        return msgspec.json.encode(data).decode()
    except (UnicodeEncodeError, RecursionError, TypeError):
        raise _bad_data() from None


def _unbase64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text.replace("\n", "").replace("\r", "").encode(), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise RelayError(40013, "Invalid data; not base64 as its encoding says") from None


# --- at both tiers ---------------------------------------------------------------------------------------------------------------------


def settle(
    messages: list[Message],
    *,
    client_id: str | None,
    connection_id: str | None,
    max_bytes: int,
    privileged: bool = False,
    mutable: bool = False,
    extras_allowed: Collection[str] = EXTRAS,
) -> str | None:
    """Check one publish and bring it into the form that is stored: clientId filled in, server-set fields cleared. In place, idempotent.

    `client_id` is the publisher's identity (None, `*` or a name), `connection_id` the connection it publishes on (None for REST without a
    connectionKey), `privileged` whether it has `privileged-headers` on the channel, `mutable` whether the namespace has mutable messages.
    Answers the base of the ids that the client supplied, or None if it supplied none.
    Raises RelayError 40000, 40006, 40009, 40012, 40013, 40031, 40032, 40034, 40160, 93002.
    """
    if not messages:
        raise RelayError(40000, "Malformed message; nothing to publish")
    for message in messages:
        _settle_identity(message, client_id, connection_id)
        if message.action:
            _check_action(message, mutable)
        else:
            message.serial = message.version = None
        message.timestamp = None
    base = _base_id(messages)
    ephemeral = False
    for index, message in enumerate(messages):
        if message.extras is not None:
            _settle_extras(message, privileged, extras_allowed)
        wants = message.extras is not None and message.extras.get("ephemeral") is True
        if index and wants != ephemeral:
            raise RelayError(40032, "All messages of one publish must agree on extras.ephemeral")
        ephemeral = wants
    for message in messages:
        _check_data(message)
    if len(messages) > PROTOCOL.max_messages:
        raise _too_many(len(messages))
    check_size(messages, max_bytes, count_client_id=client_id in (None, WILDCARD))
    return base


def recheck(
    messages: list[Message],
    *,
    client_id: str | None,
    connection_id: str | None,
    max_bytes: int,
    privileged: bool = False,
    mutable: bool = False,
    extras_allowed: Collection[str] = EXTRAS,
) -> str | None:
    """`settle`, run by a core on what an edge has settled: an honest edge's publish passes unchanged, any other is refused or settled."""
    return settle(
        messages,
        client_id=client_id,
        connection_id=connection_id,
        max_bytes=max_bytes,
        privileged=privileged,
        mutable=mutable,
        extras_allowed=extras_allowed,
    )


def is_ephemeral(messages: Sequence[Message]) -> bool:
    """Whether settled messages ask to be delivered only to those attached now: they all say the same, so the first speaks for all."""
    extras = messages[0].extras
    return extras is not None and extras.get("ephemeral") is True


def relayed_extras(extras: dict[str, Any] | None) -> dict[str, Any] | None:
    """What subscribers see of `extras`: `privileged` is for rules only."""
    if extras is None or "privileged" not in extras:
        return extras
    return {key: value for key, value in extras.items() if key != "privileged"} or None


def _settle_identity(message: Message, client_id: str | None, connection_id: str | None) -> None:
    own = message.client_id
    if own is None:
        if client_id is not None and client_id != WILDCARD:
            message.client_id = client_id
    elif own in ("", WILDCARD) or client_id not in (WILDCARD, own):
        raise _bad_client_id()
    if message.connection_id is not None:
        if message.connection_id != connection_id:
            raise _bad_connection()
        message.connection_id = None  # the record says it once, for all of its messages


def _check_action(message: Message, mutable: bool) -> None:
    if message.action not in _MUTATIONS:
        raise RelayError(40000, "Malformed message; invalid action")
    if not mutable:
        raise RelayError(93002, "Messages can be updated, deleted or appended to only in a namespace with mutableMessages")
    if not message.serial or not _is_json(message.serial, 0):
        raise RelayError(40003, "Malformed message; the serial of the message to change is missing")
    if not _is_json(message.version, PROTOCOL.max_extras_depth):
        raise RelayError(40000, "Malformed message; version must be what JSON can express")


def _base_id(messages: list[Message]) -> str | None:
    """One message may have any id; several have `{base}:{index}` each, or none has."""
    first = messages[0].id
    if first is None:
        if any(message.id is not None for message in messages):
            raise _bad_id()
        return None
    if not first or _utf8_length(first) > PROTOCOL.max_message_id_bytes:
        raise _bad_id()
    if len(messages) == 1:
        return first
    base = first[:-2]
    if not base or any(message.id != f"{base}:{index}" for index, message in enumerate(messages)):
        raise _bad_id()
    return base


def _settle_extras(message: Message, privileged: bool, allowed: Collection[str]) -> None:
    extras = message.extras
    assert extras is not None, "asked only for messages with extras"
    if not SERVER_EXTRAS.isdisjoint(extras):
        extras = message.extras = {key: value for key, value in extras.items() if key not in SERVER_EXTRAS} or None
        if extras is None:
            return
    for key, value in extras.items():
        if key not in allowed:
            raise RelayError(40032, f"Message has impermissible extras fields: {str(key)[:64]}")
        if key == "headers":
            if not isinstance(value, dict) or not all(
                isinstance(k, str) and isinstance(v, str | bool | int | float | None) for k, v in value.items()
            ):
                raise RelayError(40032, "extras.headers if present must be a map<string, string|number|boolean|null>")
        elif key == "ephemeral":
            if not isinstance(value, bool):
                raise RelayError(40032, "extras.ephemeral if present must be a boolean")
        elif key == "privileged":
            if not privileged:
                raise RelayError(40160, "operation not permitted with provided capability: extras.privileged needs privileged-headers")
        elif key in ("ref", "ai", "kafka") and not isinstance(value, dict):
            raise RelayError(40032, f"extras.{key} if present must be an object")
        if not _is_json(value, PROTOCOL.max_extras_depth):
            raise RelayError(40032, f"extras.{key} must be what JSON can express, at most {PROTOCOL.max_extras_depth} levels deep")


def _is_json(value: object, depth: int) -> bool:
    """msgpack can carry bytes, other keys than text, extension types and NaN, which no JSON subscriber could be shown unchanged."""
    if isinstance(value, str):
        return value.isascii() or _is_unicode(value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return value in _INT64  # the range of msgpack, in which records are stored
    if isinstance(value, float):
        return math.isfinite(value)
    if depth == 0:
        return False
    if isinstance(value, dict):
        for key, inner in value.items():
            if not (isinstance(key, str) and (key.isascii() or _is_unicode(key)) and _is_json(inner, depth - 1)):
                return False
        return True
    return isinstance(value, list) and all(_is_json(inner, depth - 1) for inner in value)


def _is_unicode(text: str) -> bool:
    """False if there are lone surrogates, which could neither be stored nor delivered."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_data(message: Message) -> None:
    if not isinstance(message.data, _TYPES):
        raise _bad_data()
    encoding = message.encoding
    if encoding is not None:
        if _utf8_length(encoding) > PROTOCOL.max_encoding_bytes:
            raise RelayError(40013, f"Invalid encoding; longer than {PROTOCOL.max_encoding_bytes} bytes")
        if not encoding:
            message.encoding = None


# --- size ------------------------------------------------------------------------------------------------------------------------------


def size_of(message: Message) -> int:
    """Bytes of name, clientId, data and extras (as JSON), once decoded, of a settled message. Source: specification TM6."""
    return _size_without_client_id(message) + (_utf8_length(message.client_id) if message.client_id else 0)


def check_size(messages: Sequence[Message], max_bytes: int, *, count_client_id: bool = True) -> None:
    """Raises RelayError 40009 if the sizes add up to more than `max_bytes`.

    With `count_client_id` False the clientId is left out: where it is the publisher's own, a client that leaves it for us to fill in has
    not counted it, and must not be refused for it at the boundary.
    """
    measure, size = size_of if count_client_id else _size_without_client_id, 0
    for message in messages:
        size += measure(message)
    if size > max_bytes:
        raise RelayError(40009, f"Maximum message length exceeded (size was {size} bytes, limit is {max_bytes} bytes)")


def _size_without_client_id(message: Message) -> int:
    data = message.data
    size = 0 if data is None else len(data) if isinstance(data, bytes) else _utf8_length(data)
    if message.name:
        size += _utf8_length(message.name)
    if message.extras is not None:
        size += len(msgspec.json.encode(message.extras))
    return size


def _utf8_length(text: str) -> int:
    if text.isascii():
        return len(text)
    if not _is_unicode(text):
        raise RelayError(40013, "Malformed message; not Unicode text")
    return len(text.encode())


# --- refusals --------------------------------------------------------------------------------------------------------------------------


def _bad_data() -> RelayError:
    return RelayError(40013, "Invalid data; must be a string, binary, or JSON in text form with encoding 'json'")


def _bad_id() -> RelayError:
    return RelayError(
        40031, "Invalid message id; must be a non-empty string, and of the form <base>:<index> when there are several messages"
    )


def _bad_client_id() -> RelayError:
    return RelayError(40012, "invalid clientId")


def _bad_connection() -> RelayError:
    return RelayError(40006, "Malformed message; invalid connectionId")


def _too_many(count: int) -> RelayError:
    return RelayError(40034, f"Too many messages in one publish ({count}, limit is {PROTOCOL.max_messages})")
