"""`POST /apps` and `DELETE /apps/{id}` for client test suites: apps that live in `tidegate.config`, so that every core knows them.

Source: Ably protocol docs, 14. Never outside `dev`. Members of fixture channels are entered into the log, by a connection that never was.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from core.registry import App, AppRecord, Key, Namespace, Registry, key_record
from relay.model.capability import Capability
from relay.model.channel import ChannelName, parse_channel
from relay.model.errors import RelayError
from relay.model.identity import WILDCARD
from relay.model.keyring import Keyring
from relay.model.message import PresenceAction, PresenceItem
from relay.model.presence import presence_from_wire, settle_presence

MAX_KEYS = 50
"""Keys of one sandbox app. Above it: 40000."""
MAX_NAMESPACES = 50
"""Namespaces of one sandbox app. Above it: 40000."""
MAX_CHANNELS = 50
"""Fixture channels of one sandbox app. Above it: 40000."""
MAX_MEMBERS = 20_000
"""Most members of one channel that a sandbox app may ask for. Above it: 40000."""
MAX_FIXTURE_BYTES = 131_072
"""Members of one fixture channel, in bytes. Above it: 40009."""
ACCOUNT = "sandbox"

_EVERYTHING = '{"*":["*"]}'

Records = list[tuple[str, bytes | None]]
"""Keys and values to write to `tidegate.config`, in this order."""


def create_app(body: bytes, keyring: Keyring, random: Callable[[int], bytes], now_ms: int) -> tuple[Records, dict[str, Any]]:
    """The records that make the app, and the answer for once they are written. Unknown members of `body` are ignored.

    Raises: RelayError 40000, 40001.
    """
    asked = _object(body)
    app_id = _text(random(6))
    keys, answers = [], []
    for number, spec in enumerate(_list(asked, "keys", MAX_KEYS)):
        key, answer = _key(app_id, number, {} if spec is None else spec, random, now_ms)
        keys.append(key)
        answers.append(answer)
    namespaces = [_namespace(spec) for spec in _list(asked, "namespaces", MAX_NAMESPACES)]
    name = asked.get("name") if isinstance(asked.get("name"), str) else f"sandbox {app_id}"
    records: Records = [key_record(keyring, key, created=now_ms) for key in keys]
    records += [(f"namespace:{app_id}:{one.id}", msgspec.json.encode(one)) for one in namespaces]
    record = AppRecord(name=str(name), sandbox=True, created=now_ms, presence_members=_most_members(asked))
    # Last, so that whoever knows the app knows its keys.
    records.append((f"app:{app_id}", msgspec.json.encode(record)))
    return records, {
        "appId": app_id,
        "id": f"{ACCOUNT}:{app_id}",
        "accountId": ACCOUNT,
        "name": name,
        "status": 1,
        "created": now_ms,
        "modified": now_ms,
        "tlsOnly": False,
        "labels": "autocreated",
        "keys": answers,
        "namespaces": [
            {**spec, "created": now_ms, "modified": now_ms} for spec in _list(asked, "namespaces", MAX_NAMESPACES) if isinstance(spec, dict)
        ],
        "connections": [{"name": "sole", "key": answers[0]["keyStr"]}] if answers else [],
        "channels": asked.get("channels", []),
    }


def fixtures(body: bytes, connection_id: str) -> list[tuple[ChannelName, list[PresenceItem]]]:
    """The members that `channels` of the app asks for, as they enter. Raises: RelayError 40000, 40010 and those of a change of presence."""
    found = []
    for spec in _list(_object(body), "channels", MAX_CHANNELS):
        if not isinstance(spec, dict) or not isinstance(spec.get("presence", []), list):
            raise RelayError(40000, "Invalid app: a channel must be an object, its presence a list")
        members = [{**one, "action": PresenceAction.ENTER.value} if isinstance(one, dict) else one for one in spec.get("presence", [])]
        if members:
            items = presence_from_wire(members, json=True)
            settle_presence(items, client_id=WILDCARD, connection_id=connection_id, max_bytes=MAX_FIXTURE_BYTES)
            found.append((parse_channel(spec.get("name", "")), items))
    return found


def delete_app(app: App) -> Records:
    """The records that end a sandbox app: the app first, so that nothing of it counts any more."""
    return [
        (f"app:{app.id}", None),
        *((f"key:{app.id}.{key_id}", None) for key_id in app.keys),
        *((f"namespace:{app.id}:{namespace_id}", None) for namespace_id in app.namespaces),
    ]


def sandbox_app(registry: Registry, app_id: str) -> App:
    """Raises: RelayError 40400 for what `create_app` did not make: configured apps are never deleted this way."""
    app = registry.app(app_id)
    if app is None or not app.sandbox:
        raise RelayError(40400, f"No application found with id {app_id[:64]}")
    return app


def count(registry: Registry) -> int:
    """How many sandbox apps there are. O(apps)."""
    return sum(app.sandbox for app in registry)


def _key(app_id: str, number: int, spec: object, random: Callable[[int], bytes], now_ms: int) -> tuple[Key, dict[str, Any]]:
    if not isinstance(spec, dict):
        raise RelayError(40000, "Invalid app: a key must be an object")
    asked = spec.get("capability")
    capability = Capability.parse(asked if asked not in (None, "", "{}", {}) else _EVERYTHING)
    # The number keeps ids apart, whatever the random part.
    key = Key(
        app=app_id,
        id=f"k{number}{_text(random(3))}",
        secret=_text(random(32)),
        capability=capability,
        revocable_tokens=spec.get("revocableTokens") is True,
    )
    return key, {
        "id": key.id,
        "value": key.secret,
        "keyName": key.name,
        "keySecret": key.secret,
        "keyStr": f"{key.name}:{key.secret}",
        "capability": capability.canonical(),
        "status": 0,
        "type": 0,
        "created": now_ms,
        "modified": now_ms,
        "expires": 0,
        "privileged": spec.get("privileged") is True,
        "revocableTokens": key.revocable_tokens,
        "scopeId": f"app:{app_id}",
    }


def _most_members(asked: dict[str, Any]) -> int | None:
    """`limits.presence.maxMembers`; None if it is not there."""
    value: Any = asked
    for name in ("limits", "presence", "maxMembers"):
        value = value.get(name) if isinstance(value, dict) else None
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_MEMBERS):
        raise RelayError(40000, f"Invalid app: limits.presence.maxMembers must be 1 to {MAX_MEMBERS}")
    return value


def _namespace(spec: object) -> Namespace:
    try:
        return msgspec.convert(spec, Namespace)
    except msgspec.ValidationError as error:
        raise RelayError(40000, f"Invalid app: a namespace is malformed ({error})") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = msgspec.json.decode(body) if body else {}
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RelayError(40001, "Invalid body; not JSON") from None
    if not isinstance(asked, dict):
        raise RelayError(40000, "Invalid app: must be an object")
    return asked


def _list(asked: dict[str, Any], name: str, bound: int) -> list[object]:
    items = asked.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or len(items) > bound:
        raise RelayError(40000, f"Invalid app: {name} must be a list of at most {bound}")
    return items


def _text(random: bytes) -> str:
    return base64.urlsafe_b64encode(random).rstrip(b"=").decode()
