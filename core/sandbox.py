"""`POST /apps` and `DELETE /apps/{id}` for client test suites: apps that live in `tidegate.config`, so that every core knows them.

Source: Ably protocol docs, 14. Never outside `dev`. Fixture channels are echoed; their members come with presence.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from core.registry import App, AppRecord, Key, Namespace, Registry, key_record
from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.keyring import Keyring

MAX_KEYS = 50
"""Keys of one sandbox app. Above it: 40000."""
MAX_NAMESPACES = 50
"""Namespaces of one sandbox app. Above it: 40000."""
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
    # Last, so that whoever knows the app knows its keys.
    records.append((f"app:{app_id}", msgspec.json.encode(AppRecord(name=str(name), sandbox=True, created=now_ms))))
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
