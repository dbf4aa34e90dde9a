"""Apps, keys and namespaces: the static ones of core.toml, and over them what `tidegate.config` says.

Records of `tidegate.config` that this module reads, by key:

    app:<app>                  AppRecord
    key:<app>.<key>            KeyRecord; its secret is sealed to the record's key
    namespace:<app>:<id>       the namespace's properties

A tombstone takes the record away again, so that a static entry of the same name shows through; a record that says `deleted` does the same
to an app or a namespace, and outlives its deletion (`core.control.ledger` says why). Values are JSON with a version; a record that cannot
be read is counted and left out, and never keeps a core from starting.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from relay.link.frames import Stream
from relay.model.capability import Bars, Capability
from relay.model.errors import RelayError
from relay.model.keyring import Keyring

RECORD_VERSION = 1
"""Schema version of the records of apps, keys and namespaces."""


class _Deletable(msgspec.Struct, frozen=True):
    deleted: bool = False


class AppRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`status` is `enabled` or `disabled` (40120). Times are milliseconds."""

    v: int = RECORD_VERSION
    name: str = ""
    status: str = "enabled"
    tls_only: bool = False
    sandbox: bool = False
    created: int = 0
    presence_members: int | None = None


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`secret` is sealed, then base64. `status`: 0 enabled, 1 revoked."""

    v: int = RECORD_VERSION
    secret: str
    capability: str
    status: int = 0
    expires: int | None = None
    revocable_tokens: bool = False
    created: int = 0


class Namespace(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is special about the channel that is called `<id>`, and those whose names begin with `<id>:`."""

    id: str
    authenticated: bool = False
    """Only clients with a clientId, or that may take any (`*`), may use its channels: 40161 for others."""
    tls_only: bool = False
    """Only clients that came over TLS may: 40311 for others."""
    persisted: bool = False
    push_enabled: bool = False
    mutable_messages: bool = False


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. `name` is `app.key`."""

    app: str
    id: str
    secret: str
    capability: Capability
    status: int = 0
    expires: int | None = None
    revocable_tokens: bool = False

    @property
    def name(self) -> str:
        return f"{self.app}.{self.id}"


class App(msgspec.Struct, kw_only=True):
    """One tenant: its keys by id, its namespaces by id."""

    id: str
    name: str = ""
    status: str = "enabled"
    tls_only: bool = False
    sandbox: bool = False
    presence_members: int | None = None
    """Most members of one channel; None: what the limits say."""
    keys: dict[str, Key] = {}
    namespaces: dict[str, Namespace] = {}


class Streams:
    """Which stream holds a channel. There is one today; apps, namespaces and retention classes may get their own, and only `of` changes."""

    def __init__(self, streams: list[Stream]) -> None:
        if not streams:
            raise ValueError("a core serves at least one stream")
        self.all = list(streams)
        self._default = streams[0]

    def of(self, _app: str, _channel: str) -> Stream:
        return self._default


class Registry:
    """Look-ups by id are O(1); a change rebuilds the one app that it touches."""

    def __init__(self, static: Iterable[App], keyring: Keyring) -> None:
        self._static = {app.id: app for app in static}
        self._keyring = keyring
        self._apps = dict(self._static)
        self._records: dict[str, AppRecord] = {}
        self._keys: dict[str, dict[str, Key]] = {}
        self._namespaces: dict[str, dict[str, Namespace]] = {}
        self._bars: dict[tuple[str, bool, bool], Bars] = {}
        self.unreadable = 0
        """Records of `tidegate.config` that were left out because they could not be read."""

    def __iter__(self) -> Iterator[App]:
        return iter(self._apps.values())

    def __len__(self) -> int:
        return len(self._apps)

    def app(self, app_id: str) -> App | None:
        return self._apps.get(app_id)

    def key(self, name: str) -> Key | None:
        """The key called `app.key`, None if the app or the key is unknown."""
        app_id, _, key_id = name.partition(".")
        app = self._apps.get(app_id)
        return None if app is None else app.keys.get(key_id)

    def bars(self, app_id: str, *, anonymous: bool, plain: bool) -> Bars:
        """The namespaces that are closed to clients without a clientId, or without TLS."""
        found = self._bars.get((app_id, anonymous, plain))
        if found is None:
            app = self._apps.get(app_id)
            found = () if app is None else bars_of(app, anonymous=anonymous, plain=plain)
            if app is not None:  # or made-up names would fill the memory
                self._bars[app_id, anonymous, plain] = found
        return found

    def apply(self, key: str, value: bytes | None) -> str | None:
        """One record of `tidegate.config`, in log order; None is a tombstone. Returns the id of the app it touched, if any."""
        kind, _, name = key.partition(":")
        try:
            if kind in ("app", "namespace") and value is not None and msgspec.json.decode(value, type=_Deletable).deleted:
                value = None
            match kind:
                case "app":
                    app_id = name
                    self._put(self._records, name, None if value is None else msgspec.json.decode(value, type=AppRecord))
                case "key":
                    app_id, _, key_id = name.partition(".")
                    self._put(self._keys.setdefault(app_id, {}), key_id, None if value is None else self._key(name, value))
                case "namespace":
                    app_id, _, namespace_id = name.partition(":")
                    namespace = None if value is None else msgspec.json.decode(value, type=Namespace)
                    self._put(self._namespaces.setdefault(app_id, {}), namespace_id, namespace)
                case _:
                    return None
        except (msgspec.MsgspecError, RelayError, ValueError):
            self.unreadable += 1
            return None
        self._rebuild(app_id)
        return app_id

    @staticmethod
    def _put(table: dict[str, Any], name: str, value: object | None) -> None:
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value

    def _key(self, name: str, value: bytes) -> Key:
        record = msgspec.json.decode(value, type=KeyRecord)
        secret = open_secret(self._keyring, f"key:{name}", record.secret)
        if secret is None and record.status:
            secret = ""  # that it is revoked counts whatever it was sealed under
        if secret is None:
            raise ValueError("sealed under a key that is not in the ring, or for another record")
        app_id, _, key_id = name.partition(".")
        return Key(
            app=app_id,
            id=key_id,
            secret=secret,
            capability=Capability.parse(record.capability),
            status=record.status,
            expires=record.expires,
            revocable_tokens=record.revocable_tokens,
        )

    def _rebuild(self, app_id: str) -> None:
        for anonymous, plain in ((False, False), (False, True), (True, False), (True, True)):
            self._bars.pop((app_id, anonymous, plain), None)
        static, record = self._static.get(app_id), self._records.get(app_id)
        if static is None and record is None:
            self._apps.pop(app_id, None)
            if not self._keys.get(app_id, True):
                del self._keys[app_id]
            if not self._namespaces.get(app_id, True):
                del self._namespaces[app_id]
            return
        base = static or App(id=app_id)
        self._apps[app_id] = App(
            id=app_id,
            name=base.name if record is None else record.name,
            status=base.status if record is None else record.status,
            tls_only=base.tls_only if record is None else record.tls_only,
            sandbox=base.sandbox if record is None else record.sandbox,
            presence_members=base.presence_members if record is None else record.presence_members,
            keys={**base.keys, **self._keys.get(app_id, {})},
            namespaces={**base.namespaces, **self._namespaces.get(app_id, {})},
        )


def bars_of(app: App, *, anonymous: bool, plain: bool) -> Bars:
    """In the order of their names. O(namespaces)."""
    found = {one.id: 40311 for one in app.namespaces.values() if plain and one.tls_only}
    found |= {one.id: 40161 for one in app.namespaces.values() if anonymous and one.authenticated and one.id not in found}
    return tuple(sorted(found.items()))


def app_of(record_key: str) -> str:
    """The id of the app that a record is about; empty if it is about none."""
    kind, _, name = record_key.partition(":")
    match kind:
        case "app":
            return name
        case "key":
            return name.partition(".")[0]
        case "namespace" | "rule" | "mapping":
            return name.partition(":")[0]
    return ""


def key_record(keyring: Keyring, key: Key, *, created: int) -> tuple[str, bytes]:
    """The record (key, value) of `tidegate.config` that makes `key` known to every core."""
    record_key = f"key:{key.name}"
    record = KeyRecord(
        secret=seal_secret(keyring, record_key, key.secret),
        capability=key.capability.canonical(),
        status=key.status,
        expires=key.expires,
        revocable_tokens=key.revocable_tokens,
        created=created,
    )
    return record_key, msgspec.json.encode(record)


def seal_secret(keyring: Keyring, record_key: str, secret: str) -> str:
    """What a record holds in place of a secret: AES-GCM, then base64. It can be opened for this record alone: the sealed secret of one key
    does not pass as another's."""
    return base64.b64encode(keyring.seal(secret.encode(), _associated(record_key))).decode()


def open_secret(keyring: Keyring, record_key: str, sealed: str) -> str | None:
    """The secret; None if it was sealed for another record, or under a key that is not in the ring. Raises: ValueError if not base64."""
    secret = keyring.open(base64.b64decode(sealed, validate=True), _associated(record_key))
    return None if secret is None else secret.decode()


def sealed_under(sealed: str) -> str:
    """The id of the ring's key under which it was sealed. Raises: ValueError."""
    data = base64.b64decode(sealed, validate=True)
    return data[1 : 1 + data[0]].decode("ascii", "replace") if data else ""


def _associated(record_key: str) -> bytes:
    return f"{record_key}|{RECORD_VERSION}".encode()
