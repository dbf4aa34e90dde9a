"""Who may do what through the Control API: access tokens and client certificates, each with scopes.

| scope | permits |
|---|---|
| `reader` | to read everything but secrets, the audit and the list of access tokens |
| `operator` | the same, and to change namespaces, rules and mappings |
| `security` | what `reader` permits, and to change apps, keys and access tokens, and to read the audit |
| `secrets` | to be shown secrets where the other scopes permit to read what they belong to; each showing is in the audit |

An access token is `<id>.<secret>`. The topic holds the SHA-256 of the secret, which is 32 random bytes: there is nothing to guess.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

from core.control.ledger import Entry, Ledger
from relay.model.errors import RelayError

Scope = Literal["reader", "operator", "security", "secrets"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
READ: tuple[Scope, ...] = ("reader", "operator", "security")
"""Any of these permits reading."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}\.[\x21-\x7e]{1,512}")

CAPABILITIES: dict[Scope, tuple[str, ...]] = {
    "reader": ("read:account", "read:app", "read:key", "read:namespace", "read:rule"),
    "operator": ("read:account", "read:app", "read:key", "read:namespace", "read:rule", "write:namespace", "write:rule"),
    "security": (
        *("read:account", "read:app", "read:key", "read:namespace", "read:rule", "read:audit", "read:token"),
        *("write:app", "write:key", "write:token"),
    ),
    "secrets": ("read:secret",),
}
"""What `GET /me` says of each scope, in the words of the public API."""


class Principal(NamedTuple):
    """Who asks. `type` is `token` or `certificate`."""

    type: str
    id: str
    name: str
    scopes: frozenset[str]
    expires: int | None = None

    @property
    def shown_secrets(self) -> bool:
        return "secrets" in self.scopes

    def require(self, *scopes: Scope) -> None:
        """One of these. Raises: RelayError 40160 as 403."""
        if self.scopes.isdisjoint(scopes):
            raise RelayError(40160, f"Access denied: this needs the scope {' or '.join(scopes)}", 403)

    def capabilities(self) -> list[str]:
        return sorted({word for scope in SCOPES if scope in self.scopes for word in CAPABILITIES[scope]})


class StaticToken(NamedTuple):
    """An access token of core.toml."""

    id: str
    secret: str
    scopes: frozenset[str]


class Access:
    """Knows every access token; pure. `certificates`: name in a client certificate → scopes."""

    def __init__(self, ledger: Ledger, static: Iterable[StaticToken], certificates: dict[str, frozenset[str]]) -> None:
        self._ledger = ledger
        self._static = {one.id: one for one in static}
        self._certificates = certificates

    @property
    def static(self) -> Iterable[StaticToken]:
        return self._static.values()

    def configured(self, now_ms: int) -> bool:
        """Whether there is anybody who could ask. O(access tokens) at worst."""
        return bool(self._static or self._certificates) or any(holds(entry, now_ms) for entry in self._ledger.of("token"))

    def is_static(self, token_id: str) -> bool:
        return token_id in self._static

    def bearer(self, credential: str, now_ms: int) -> Principal | None:
        """Whose token it is; None if it is nobody's, or is revoked or expired."""
        if not _TOKEN.fullmatch(credential):
            return None
        token_id, _, secret = credential.partition(".")
        static = self._static.get(token_id)
        if static is not None:
            return Principal("token", token_id, token_id, static.scopes) if _same(digest(secret), digest(static.secret)) else None
        entry = self._ledger.get("token", token_id)
        if entry is None or not _same(digest(secret), str(entry.data.get("hash", ""))) or not holds(entry, now_ms):
            return None
        data = entry.data
        return Principal("token", token_id, str(data.get("name", "")), frozenset(data.get("scopes", ())), data.get("expires"))

    def certificate(self, names: Iterable[str]) -> Principal | None:
        """Who presents a certificate of the configured authority with these names (subject alternative names)."""
        for name in names:
            scopes = self._certificates.get(name)
            if scopes is not None:
                return Principal("certificate", name, name, scopes)
        return None


def holds(entry: Entry, now_ms: int) -> bool:
    """Whether an access token is neither revoked nor expired."""
    expires = entry.data.get("expires")
    return entry.data.get("status", 0) == 0 and (expires is None or now_ms < expires)


def digest(secret: str) -> str:
    return base64.b64encode(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()).decode()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def token_view(entry: Entry, now_ms: int) -> dict[str, Any]:
    """An access token as it is listed: never its secret, nor the hash."""
    data = entry.data
    return {
        "id": entry.name,
        "name": data.get("name", ""),
        "scopes": data.get("scopes", []),
        "status": data.get("status", 0),
        "active": holds(entry, now_ms),
        "created": data.get("created", 0),
        "modified": data.get("modified", 0),
        "expires": data.get("expires"),
        "token": None,
    }


def new_id(random: Callable[[int], bytes], length: int) -> str:
    """Letters and digits: an id that begins with `-` would be an option to command lines."""
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"
    found = ""
    while len(found) < length:
        found += "".join(alphabet[byte % 64] for byte in random(length * 2) if byte % 64 < len(alphabet))
    return found[:length]
