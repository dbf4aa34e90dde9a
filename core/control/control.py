"""The state behind the Control API: what there is, and what each change would write. Pure.

A request is planned (`Change`) against what the ledger says now; `core.control.io.writer` has it written and read back, and plans again if
another change of the same record came first. What comes from core.toml is shown, and is changed there only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from core.control.access import SCOPES, Access, Principal, StaticToken, digest, holds, new_id, token_view
from core.control.audit import CHANGE, READING, AuditEntry, AuditTrail, Outcome, record_of
from core.control.can import as_data_plane, closed, granted, within
from core.control.fields import Fields, Invalid, capability_of
from core.control.ledger import Entry, Ledger
from core.registry import App, Key, open_secret, seal_secret, sealed_under
from core.revocations import CREATED, RevocationRecord, asked, view_of
from relay.model.errors import RelayError
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits

_PUSH_SECRETS = ("fcmKey", "fcmServiceAccount", "apnsCertificate", "apnsPrivateKey", "apnsSigningKey")
PUSH_TEXTS = ("fcmProjectId", "apnsAuthType", "apnsIssuerKey", "apnsTopicHeader", "apnsSigningKeyId")
NAMESPACE_FLAGS = (
    *("persisted", "persistLast", "pushEnabled", "tlsOnly", "mutableMessages", "populateChannelRegistry"),
    *("batchingEnabled", "conflationEnabled"),
)
_INTERVALS = {"batchingInterval": "batchingEnabled", "conflationInterval": "conflationEnabled", "conflationKey": "conflationEnabled"}
"""Settings that mean something only while a flag is on. They go when it is switched off: the public tools do not send them then."""
NO_EFFECT = (
    *("persisted", "persistLast", "mutableMessages", "pushEnabled", "populateChannelRegistry", "batchingEnabled", "conflationEnabled"),
)
"""Flags of namespaces that are kept, since the public tools send them all, and that change nothing. Answers name those that are on."""
CLOSING = ("authenticated", "tlsOnly")
"""Flags that close a namespace to some clients."""
MAX_CONFLATION_MS = 86_400_000


class Change(NamedTuple):
    """One record to write. `before` and `after` are for the audit and have no secrets; `answer` is made when it has been written."""

    action: str
    target: dict[str, str]
    before: Any
    after: Any
    key: str
    data: dict[str, Any]
    status: int
    answer: Callable[[], Any]
    shows: dict[str, str] | None = None
    """What the answer shows secrets of, if it does."""


class Control:
    def __init__(
        self,
        *,
        keyring: Keyring,
        limits: CoreLimits,
        random: Callable[[int], bytes],
        core: str,
        account: tuple[str, str] = ("tidegate", "Tidegate"),
        static: Iterable[App] = (),
        tokens: Iterable[StaticToken] = (),
        certificates: dict[str, frozenset[str]] | None = None,
    ) -> None:
        """`account`: id and name of the one account that there is. `static`: the apps of core.toml."""
        self.ledger = Ledger()
        self.audit = AuditTrail(limits.audit_records, limits.audit_bytes)
        self.access = Access(self.ledger, tokens, certificates or {})
        self.account = account
        self.keyring = keyring
        self.limits = limits
        self._random = random
        self._core = core
        self._static = {app.id: app for app in static}
        self._changes = 0

    def read(self, key: str, value: bytes | None, now: float) -> bool:
        """A record of `tidegate.config`, in its order. Whether it counts for others too."""
        if key.startswith("audit:"):
            self.audit.read(key, value)
            return False
        return self.ledger.read(key, value, now)

    # --- me ----------------------------------------------------------------------------------------------------------------------------

    def me(self, who: Principal) -> dict[str, Any]:
        account, name = self.account
        return {
            "token": {
                "id": who.id,
                "name": who.name,
                "capabilities": who.capabilities(),
                "scopes": sorted(who.scopes),
                "expires_at": who.expires,
                "last_used_at": None,
            },
            "user": {"id": 1, "email": f"{who.name or who.id}@{account}"},
            "account": {"id": account, "name": name},
        }

    def check_account(self, account: str) -> None:
        """Raises: RelayError 40400."""
        if account != self.account[0]:
            raise missing("account", account)

    # --- apps --------------------------------------------------------------------------------------------------------------------------

    def apps(self) -> list[dict[str, Any]]:
        found = [self._static_app(app) for app in self._static.values()]
        return found + [self._app_view(entry) for entry in self.ledger.of("app") if entry.name not in self._static]

    def create_app(self, body: dict[str, Any], now_ms: int) -> Change:
        fields = Fields(body)
        data = self._app_fields(fields, {}, None)
        fields.done()
        if sum(1 for _ in self.ledger.of("app")) >= self.limits.control_apps:
            raise too_many("apps", self.limits.control_apps)
        app = self.unused("app", 6)
        return self._app_change("app.create", app, None, {**data, "created": now_ms, "modified": now_ms}, 201)

    def change_app(self, app: str, body: dict[str, Any], now_ms: int) -> Change:
        entry = self.changeable(app)
        fields = Fields(body, patch=True)
        data = self._app_fields(fields, entry.data, app)
        fields.done()
        return self._app_change("app.change", app, entry, {**kept(entry), **data, "modified": now_ms}, 200)

    def delete_app(self, app: str, now_ms: int) -> Change:
        """Its keys, namespaces, rules and mappings are nothing without it; their records go later."""
        entry = self.changeable(app)
        data = {**kept(entry), "deleted": True, "modified": now_ms}
        return Change("app.delete", {"app": app}, self._app_view(entry), None, entry.key, data, 204, lambda: None)

    def _app_fields(self, fields: Fields, known: dict[str, Any], app: str | None) -> dict[str, Any]:
        data: dict[str, Any] = {
            "v": 1,
            "name": fields.text("name", known=known.get("name"), required=True),
            "status": fields.choice("status", ("enabled", "disabled"), default="enabled", known=known.get("status")),
            "tlsOnly": fields.flag("tlsOnly", known=known.get("tlsOnly", False)),
            "apnsUseSandboxEndpoint": fields.flag("apnsUseSandboxEndpoint", known=known.get("apnsUseSandboxEndpoint", False)),
        }
        data |= {name: fields.text(name, known=known.get(name)) for name in PUSH_TEXTS}
        fields.unsupported(*_PUSH_SECRETS, why="push notifications are not supported: their credentials are not kept")
        taken = {one["name"] for one in self.apps() if one["id"] != app}
        if data["name"] in taken:
            fields.wrong("name", "is taken")
        return data

    def _app_change(self, action: str, app: str, entry: Entry | None, data: dict[str, Any], status: int) -> Change:
        before = None if entry is None else self._app_view(entry)
        after = _app_view(app, data, self.account[0])
        return Change(action, {"app": app}, before, after, f"app:{app}", data, status, lambda: self._app_view(self.changeable(app)))

    def _app_view(self, entry: Entry) -> dict[str, Any]:
        return _app_view(entry.name, entry.data, self.account[0])

    def _static_app(self, app: App) -> dict[str, Any]:
        return _app_view(app.id, {"name": app.name, "status": app.status, "tlsOnly": app.tls_only}, self.account[0])

    def changeable(self, app: str) -> Entry:
        """An app that may be changed. Raises: RelayError 40400; 40300 for one of core.toml."""
        if app in self._static:
            raise RelayError(40300, f"The app {app} is configured in core.toml: change it there, on every core")
        entry = self.ledger.get("app", app)
        if entry is None:
            raise missing("app", app)
        return entry

    def check_app(self, app: str) -> None:
        """Raises: RelayError 40400."""
        if app not in self._static and self.ledger.get("app", app) is None:
            raise missing("app", app)

    # --- keys --------------------------------------------------------------------------------------------------------------------------

    def keys(self, app: str, *, secrets: bool) -> list[dict[str, Any]]:
        """Those of core.toml, and those of records: of an app that has moved into core.toml, both count."""
        self.check_app(app)
        static = self._static[app].keys.values() if app in self._static else ()
        found = [_static_key(key, secrets=secrets) for key in static]
        return found + [self._key_view(entry, secrets=secrets) for entry in self.ledger.of("key", f"{app}.")]

    def create_key(self, app: str, body: dict[str, Any], now_ms: int, *, secrets: bool) -> Change:
        self.changeable(app)
        fields = Fields(body)
        data = _key_fields(fields, {})
        fields.done()
        if sum(1 for _ in self.ledger.of("key", f"{app}.")) >= self.limits.control_per_app:
            raise too_many("keys of one app", self.limits.control_per_app)
        name = f"{app}.{self.unused('key', 6, f'{app}.')}"
        data |= {"secret": self._new_secret(f"key:{name}"), "status": 0, "created": now_ms, "modified": now_ms}
        return self._key_change("key.create", name, None, data, 201, secrets)

    def change_key(self, app: str, key: str, body: dict[str, Any], now_ms: int, *, secrets: bool) -> Change:
        entry = self._live_key(app, key)
        fields = Fields(body, patch=True)
        data = {**kept(entry), **_key_fields(fields, entry.data), "modified": now_ms}
        fields.done()
        return self._key_change("key.change", entry.name, entry, data, 200, secrets)

    def rotate_key(self, app: str, key: str, now_ms: int, *, secrets: bool) -> Change:
        """Another secret under the same name; the old one counts no more."""
        entry = self._live_key(app, key)
        data = {**kept(entry), "secret": self._new_secret(entry.key), "rotated": now_ms, "modified": now_ms}
        return self._key_change("key.rotate", entry.name, entry, data, 200, secrets)

    def revoke_key(self, app: str, key: str, now_ms: int) -> Change:
        entry = self._live_key(app, key)
        data = {**kept(entry), "status": 1, "modified": now_ms}
        return self._key_change("key.revoke", entry.name, entry, data, 200, secrets=False)._replace(answer=lambda: None)

    def _key_change(self, action: str, name: str, entry: Entry | None, data: dict[str, Any], status: int, secrets: bool) -> Change:
        app, _, key = name.partition(".")
        target = {"app": app, "key": key}
        before = None if entry is None else self._key_view(entry, secrets=False)
        after = _key_view(name, data, None)
        return Change(
            action,
            target,
            before,
            after,
            f"key:{name}",
            data,
            status,
            lambda: self._key_view(self._key(app, key), secrets=secrets),
            target if secrets else None,
        )

    def _key(self, app: str, key: str) -> Entry:
        """Raises: RelayError 40400, 40300."""
        self.changeable(app)
        entry = self.ledger.get("key", f"{app}.{key}")
        if entry is None:
            raise missing("key", f"{app}.{key}")
        return entry

    def _live_key(self, app: str, key: str) -> Entry:
        """Raises: RelayError 40400, also for a revoked key: it stays what it is."""
        entry = self._key(app, key)
        if entry.data.get("status"):
            raise RelayError(40400, f"The key {app}.{key} is revoked")
        return entry

    def _key_view(self, entry: Entry, *, secrets: bool) -> dict[str, Any]:
        secret = None
        if secrets and not entry.data.get("status"):
            secret = open_secret(self.keyring, entry.key, str(entry.data.get("secret", "")))
        return _key_view(entry.name, entry.data, secret)

    def _new_secret(self, record: str) -> str:
        return seal_secret(self.keyring, record, new_id(self._random, 43))

    def can(self, app: str, key: str, operation: str, channel: str) -> dict[str, Any]:
        """Whether connections with the key may do the operation on the channel, and which line of its capability says so. Raises:
        RelayError 40400; Invalid."""
        view = next((view for view in self.keys(app, secrets=False) if view["id"] == key), None)
        if view is None:
            raise missing("key", f"{app}.{key}")
        if not channel:
            raise Invalid({"channel": ["is required"]})
        try:
            found = granted(f"key {app}.{key}", as_data_plane(view["capability"]), operation, channel)
        except ValueError as error:
            raise Invalid({"operation": [str(error)]}) from None
        dead = "the key is revoked" if view["status"] else "the app is disabled" if self._disabled(app) else None
        because = f"no: {dead}" if dead is not None else found.sentence(operation, channel)
        if found.yes and dead is None:
            shut = [one["id"] for one in self.namespaces(app) if one["authenticated"] and within(channel, one["id"])]
            because = "; ".join([because, *(closed(namespace, nobody=False) for namespace in shut)])
        return {"permitted": found.yes and dead is None, "because": because, "by": found.by, "other": found.other}

    def _disabled(self, app: str) -> bool:
        return any(view["id"] == app and view["status"] == "disabled" for view in self.apps())

    # --- revoked tokens ----------------------------------------------------------------------------------------------------------------

    def revocations(self, app: str, now_ms: int, *, limit: int, before: str = "", target: str = "") -> list[dict[str, Any]]:
        """Newest first, whoever revoked; `before` is the id of the last of the page before. O(revocations of all apps)."""
        self.check_app(app)
        found = [view_of(*one, now_ms) for one in map(_revocation, self.ledger.of("revocation", f"{app}.")) if one is not None]
        found = [one for one in found if (not before or one["id"] < before) and (not target or target in one["targets"])]
        return sorted(found, key=lambda one: one["id"], reverse=True)[:limit]

    def create_revocation(self, app: str, body: dict[str, Any], now_ms: int) -> Change:
        """Of tokens of one key, be they called revocable or not. Raises: RelayError 40400, 42910, 40003; Invalid."""
        key = body.get("key")
        if not isinstance(key, str) or not key:
            raise Invalid({"key": ["is required: the id of the key that issued the tokens"]})
        if not any(view["id"] == key for view in self.keys(app, secrets=False)):
            raise missing("key", f"{app}.{key}")
        found = asked(f"{app}.{key}", msgspec.json.encode(body), self._random, now_ms)
        wrong = [one["error"]["message"] for one in found.results if "error" in one]
        if wrong or found.record is None:
            raise Invalid({"targets": wrong[:1]})
        most = self.limits.revoked_targets
        if found.targets + sum(len(entry.data.get("targets", ())) for entry in self.ledger.of("revocation")) > most:
            raise too_many("targets of revocations of the last 25 hours", most)
        record, value = found.record
        after = view_of(record, msgspec.json.decode(value, type=RevocationRecord), now_ms)
        target = {"app": app, "key": key, "revocation": after["id"]}
        return Change(CREATED, target, None, after, record, msgspec.json.decode(value), 201, lambda: after)

    # --- namespaces --------------------------------------------------------------------------------------------------------------------

    def namespaces(self, app: str) -> list[dict[str, Any]]:
        self.check_app(app)
        static = self._static[app].namespaces.values() if app in self._static else ()
        found = [_namespace_view(app, msgspec.to_builtins(one)) for one in static]
        return found + [_namespace_view(app, entry.data) for entry in self.ledger.of("namespace", f"{app}:")]

    def create_namespace(self, app: str, body: dict[str, Any], now_ms: int) -> Change:
        self.changeable(app)
        fields = Fields(body)
        name = fields.text("id", required=True)
        data = {"v": 1, "id": name, **_namespace_fields(fields, {}), "created": now_ms, "modified": now_ms}
        if name and (name.startswith(("[", ":")) or "/" in name):
            fields.wrong("id", "must not begin with '[' or ':', or contain '/'")
        elif name and self.ledger.get("namespace", f"{app}:{name}") is not None:
            fields.wrong("id", "is taken")
        fields.done()
        if sum(1 for _ in self.ledger.of("namespace", f"{app}:")) >= self.limits.control_per_app:
            raise too_many("namespaces of one app", self.limits.control_per_app)
        return self._namespace_change("namespace.create", app, name, None, data, 201)

    def change_namespace(self, app: str, name: str, body: dict[str, Any], now_ms: int) -> Change:
        entry = self._namespace(app, name)
        fields = Fields(body, patch=True)
        data = {**kept(entry), **_namespace_fields(fields, entry.data), "modified": now_ms}
        fields.done()
        return self._namespace_change("namespace.change", app, name, entry, data, 200)

    def delete_namespace(self, app: str, name: str, now_ms: int) -> Change:
        entry = self._namespace(app, name)
        data = {"v": 1, "id": name, "deleted": True, "modified": now_ms}
        target = {"app": app, "namespace": name}
        return Change("namespace.delete", target, _namespace_view(app, entry.data), None, entry.key, data, 204, lambda: None)

    def _namespace_change(self, action: str, app: str, name: str, entry: Entry | None, data: dict[str, Any], status: int) -> Change:
        before = None if entry is None else _namespace_view(app, entry.data)
        if _closes(data) and not (entry is not None and _closes(entry.data)):
            closed = sum(_closes(one.data) for one in self.ledger.of("namespace", f"{app}:"))
            if closed >= self.limits.control_closed_namespaces:
                raise too_many("namespaces of one app with authenticated or tlsOnly", self.limits.control_closed_namespaces)
        target = {"app": app, "namespace": name}
        after = _namespace_view(app, data)
        return Change(
            action,
            target,
            before,
            after,
            f"namespace:{app}:{name}",
            data,
            status,
            lambda: _namespace_view(app, self._namespace(app, name).data),
        )

    def _namespace(self, app: str, name: str) -> Entry:
        self.changeable(app)
        entry = self.ledger.get("namespace", f"{app}:{name}")
        if entry is None:
            raise missing("namespace", name)
        return entry

    # --- access tokens -----------------------------------------------------------------------------------------------------------------

    def tokens(self, now_ms: int) -> list[dict[str, Any]]:
        found = [
            {"id": one.id, "name": one.id, "scopes": sorted(one.scopes), "status": 0, "active": True}
            | {"created": 0, "modified": 0, "expires": None, "token": None}
            for one in self.access.static
        ]
        return found + [token_view(entry, now_ms) for entry in self.ledger.of("token")]

    def create_token(self, who: Principal, body: dict[str, Any], now_ms: int) -> Change:
        """Nobody gives what they have not. Raises: RelayError 40160."""
        fields = Fields(body)
        name = fields.text("name", required=True)
        expires = fields.number("expires", low=now_ms, high=now_ms + 10 * 365 * 86_400_000)
        asked = body.get("scopes")
        if not isinstance(asked, list) or not asked or not all(isinstance(one, str) and one in SCOPES for one in asked):
            fields.wrong("scopes", f"must be a list of {', '.join(SCOPES)}")
        fields.done()
        scopes = sorted(set(asked or ()))
        if not who.scopes.issuperset(scopes):
            raise RelayError(40160, "Access denied: a token cannot have scopes that whoever makes it has not", 403)
        if sum(1 for _ in self.ledger.of("token")) >= self.limits.control_tokens:
            raise too_many("access tokens", self.limits.control_tokens)
        token, secret = self.unused("token", 8), new_id(self._random, 43)
        data = {"v": 1, "name": name, "hash": digest(secret), "scopes": scopes, "status": 0}
        data |= {"created": now_ms, "modified": now_ms, "expires": expires}
        target = {"token": token}
        after = {"name": name, "scopes": scopes, "expires": expires}

        def answer() -> dict[str, Any]:
            return token_view(self._token(token), now_ms) | {"token": f"{token}.{secret}"}

        return Change("token.create", target, None, after, f"token:{token}", data, 201, answer, target)

    def revoke_token(self, token: str, now_ms: int) -> Change:
        entry = self._token(token)
        before = token_view(entry, now_ms)
        if not holds(entry, now_ms) and entry.data.get("status"):
            raise RelayError(40400, f"The access token {token} is revoked")
        data = {**kept(entry), "status": 1, "modified": now_ms}
        return Change(
            "token.revoke", {"token": token}, before, {**before, "status": 1, "active": False}, entry.key, data, 204, lambda: None
        )

    def _token(self, token: str) -> Entry:
        if self.access.is_static(token):
            raise RelayError(40300, f"The access token {token} is configured in core.toml: change it there, on every core")
        entry = self.ledger.get("token", token)
        if entry is None:
            raise missing("access token", token)
        return entry

    # --- audit -------------------------------------------------------------------------------------------------------------------------

    def change_id(self, now_ms: int) -> str:
        """In the order of time, those of one core in the order in which they were made."""
        self._changes += 1
        return f"{now_ms:013d}-{self._changes % 1_000_000:06d}-{self._random(4).hex()}"

    def entry_of(self, change: Change, who: Principal, source: str, change_id: str, now_ms: int, outcome: Outcome) -> tuple[str, bytes]:
        """The audit record (key, value) of a change."""
        return self._entry(CHANGE, change.action, change.target, who, source, change_id, now_ms, outcome, change.before, change.after)

    def entry_of_reading(self, action: str, target: dict[str, str], who: Principal, source: str, now_ms: int) -> tuple[str, bytes]:
        return self._entry(READING, action, target, who, source, self.change_id(now_ms), now_ms, "shown", None, None)

    def _entry(
        self,
        prefix: str,
        action: str,
        target: dict[str, str],
        who: Principal,
        source: str,
        entry_id: str,
        now_ms: int,
        outcome: Outcome,
        before: Any,
        after: Any,
    ) -> tuple[str, bytes]:
        entry = AuditEntry(
            id=entry_id,
            at=now_ms,
            by={"type": who.type, "id": who.id, "name": who.name},
            source=source,
            core=self._core,
            action=action,
            target=target,
            before=before,
            after=after,
            outcome=outcome,
        )
        return record_of(prefix, entry)

    # --- upkeep ------------------------------------------------------------------------------------------------------------------------

    def upkeep(self, now: float, now_ms: int, most: int) -> list[tuple[str, bytes | None]]:
        """Records to write without anybody asking: what counts over what does not, tombstones for what is long over."""
        found: list[tuple[str, bytes | None]] = [*self.ledger.repairs(now)]
        found += [(key, None) for key in self.ledger.outdated(now_ms)]
        found += [(key, None) for key in self.audit.surplus()]
        return found[:most]

    def reseal(self, most: int) -> Iterator[tuple[str, bytes]]:
        """Records whose secrets are sealed under a key of the ring that no longer signs, sealed anew: key and value. Each follows what is
        there now: a change that is read before it is written stays, and it does not count. Meant for a core's start, so that two cores with
        rings in another order do not do and undo it for ever."""
        for kind, field in (("key", "secret"), ("rule", "password")):
            for entry in [*self.ledger.of(kind)]:
                try:
                    old = str(entry.data.get(field, ""))
                    secret = None if sealed_under(old) == self.keyring.ids[0] else open_secret(self.keyring, entry.key, old)
                except (ValueError, IndexError):
                    continue
                if secret is not None and entry.rev > 0 and most > 0:
                    most -= 1
                    data = {**kept(entry), field: seal_secret(self.keyring, entry.key, secret)}
                    yield entry.key, self.ledger.next(entry.key, data, self._random(6).hex())

    def unused(self, kind: str, length: int, prefix: str = "") -> str:
        while True:
            found = new_id(self._random, length)
            if not self.ledger.exists(kind, prefix + found) and not (kind == "app" and found in self._static):
                return found


def kept(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.data.items() if name not in ("rev", "change")}


def missing(what: str, name: str) -> RelayError:
    return RelayError(40400, f"There is no {what} {name[:64]}")


def too_many(what: str, most: int) -> RelayError:
    return RelayError(42910, f"There may be at most {most} {what}")


def _revocation(entry: Entry) -> tuple[str, RevocationRecord] | None:
    try:
        return entry.key, msgspec.convert(entry.data, RevocationRecord)
    except msgspec.ValidationError:
        return None


def _app_view(app: str, data: dict[str, Any], account: str) -> dict[str, Any]:
    return {
        "accountId": account,
        "id": app,
        "name": data.get("name", ""),
        "status": data.get("status", "enabled"),
        "tlsOnly": data.get("tlsOnly", False),
        "apnsUseSandboxEndpoint": data.get("apnsUseSandboxEndpoint", False),
        "apnsCertificateConfigured": False,
        "apnsSigningKeyConfigured": False,
        "fcmServiceAccountConfigured": False,
        **{name: data.get(name) for name in PUSH_TEXTS},
        "created": data.get("created", 0),
        "modified": data.get("modified", data.get("created", 0)),
        "_links": None,
    }


def _key_fields(fields: Fields, known: dict[str, Any]) -> dict[str, Any]:
    asked = fields.capability("capability", known=known.get("asked"))
    data = {
        "v": 1,
        "name": fields.text("name", known=known.get("name"), default=""),
        "revocableTokens": fields.flag("revocableTokens", known=known.get("revocableTokens", False)),
    }
    if isinstance(asked, dict):  # else it is said what is wrong with it
        data |= {"asked": asked, "capability": capability_of(asked).canonical()}
    return data


def _key_view(name: str, data: dict[str, Any], secret: str | None) -> dict[str, Any]:
    app, _, key = name.partition(".")
    asked = data.get("asked")
    return {
        "appId": app,
        "id": key,
        "name": data.get("name", ""),
        "status": data.get("status", 0),
        "revocableTokens": data.get("revocableTokens", False),
        "key": None if secret is None else f"{name}:{secret}",
        "capability": asked if isinstance(asked, dict) else msgspec.json.decode(str(data.get("capability") or "{}")),
        "created": data.get("created", 0),
        "modified": data.get("modified", data.get("created", 0)),
    }


def _static_key(key: Key, *, secrets: bool) -> dict[str, Any]:
    data = {
        "name": key.id,
        "status": key.status,
        "revocableTokens": key.revocable_tokens,
        "asked": msgspec.json.decode(key.capability.canonical()),
    }
    return _key_view(key.name, data, key.secret if secrets and not key.status else None)


def _namespace_fields(fields: Fields, known: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {name: fields.flag(name, known=known.get(name, False)) for name in NAMESPACE_FLAGS}
    data["authenticated"] = fields.flag("authenticated", "identified", known=known.get("authenticated", False))
    data["exposeTimeserial"] = fields.flag("exposeTimeserial", "exposeTimeSerial", known=known.get("exposeTimeserial", False))
    data["batchingInterval"] = fields.number("batchingInterval", low=20, high=1_000, known=known.get("batchingInterval"))
    data["conflationInterval"] = fields.number("conflationInterval", low=1, high=MAX_CONFLATION_MS, known=known.get("conflationInterval"))
    data["conflationKey"] = fields.text("conflationKey", known=known.get("conflationKey"))
    for name, flag in _INTERVALS.items():
        if not data[flag] and not fields.has(name):
            data[name] = None
    if data["batchingEnabled"] and data["conflationEnabled"]:
        fields.wrong("conflationEnabled", "excludes batchingEnabled")
    return data


def _closes(data: dict[str, Any]) -> bool:
    return any(data.get(name) for name in CLOSING)


def _namespace_view(app: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": data["id"],
        "appId": app,
        "authenticated": data.get("authenticated", False),
        "identified": data.get("authenticated", False),
        **{name: data.get(name, False) for name in NAMESPACE_FLAGS},
        "exposeTimeserial": data.get("exposeTimeserial", False),
        **{name: data.get(name) for name in _INTERVALS},
        "withoutEffect": [name for name in NO_EFFECT if data.get(name)],
        "created": data.get("created", 0),
        "modified": data.get("modified", data.get("created", 0)),
    }
