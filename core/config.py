"""core.toml as types. `relay.runtime.settings.load(CoreConfig, path)` reads it; what cannot be used is refused with field and reason.

node = "core-1"
index_dir = "/var/lib/tidegate/index"

[link]
port = 9001
trust_domain = "relay.example"
certificate = "core-1.pem"
private_key = "core-1.key"
ca = "ca.pem"

[kafka]
brokers = "kafka-1:9092,kafka-2:9092"

[[keyring]]
id = "2026-01"
secret_file = "ring-2026-01.secret"

[[apps]]
id = "shop"

[[apps.keys]]
id = "web"
secret_env = "SHOP_WEB_SECRET"
capability = '{"chat:*": ["publish", "subscribe"]}'
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from core.control.access import Scope, StaticToken
from core.kafka.config import KafkaConfig, SchemaRegistryConfig
from core.mappings import Mapping, MappingConfig
from core.registry import App, Key, Namespace
from core.rules import Rule, RuleConfig
from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.keyring import KEY_BYTES, Keyring
from relay.model.limits import CoreLimits, LinkLimits
from relay.runtime.settings import File, PrivateFile, Secret
from relay.runtime.tls import SpiffeId

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
MIN_SECRET = 16
"""Shortest secret of an API key outside `dev`, in characters. RFC 7518, 3.2 asks for 32 bytes; existing Ably keys have fewer."""
MIN_TOKEN_SECRET = 32
"""Shortest secret of an access token outside `dev`, in characters."""


def _distinct(what: str, ids: list[str]) -> None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise ValueError(f"{what} {one!r} is there twice")
        seen.add(one)


def _checked_id(what: str, value: str) -> None:
    if not _ID.fullmatch(value):
        raise ValueError(f"{what} must be 1 to 64 characters of [A-Za-z0-9_-]")


class LinkListen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where edges dial in. TLS 1.3; a client certificate with an edge's SPIFFE id is required."""

    host: str = "127.0.0.1"
    port: int
    trust_domain: str
    certificate: File
    private_key: PrivateFile
    ca: File
    limits: LinkLimits = LinkLimits()


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plain HTTP listener for the inside: never route it to the public side."""

    host: str = "127.0.0.1"
    port: int


class AdminToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An access token of the Control API that does not come from the Control API: the first one. The token is `<id>.<secret>`."""

    id: str
    secret: Secret
    scopes: list[Scope]

    def __post_init__(self) -> None:
        _checked_id("the id of an access token", self.id)
        if not re.fullmatch(r"[\x21-\x7e]{1,512}", self.secret.reveal()):
            raise ValueError("the secret of an access token must be 1 to 512 printable characters without spaces")
        if not self.scopes:
            raise ValueError("an access token without scopes is of no use")


class AdminClient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who uses the Control API with a client certificate: one of its subject alternative names (URI, DNS or mail), letter for letter."""

    name: str
    scopes: list[Scope]

    def __post_init__(self) -> None:
        if not self.name or SpiffeId.parse(self.name) is not None:
            raise ValueError("name must not be empty, and not that of an edge or a core: they never use the Control API")
        if not self.scopes:
            raise ValueError("a client without scopes is of no use")


class AdminListen(Listen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The console, the Control API, status and tail. With `certificate` and `private_key` over TLS, else in clear."""

    account_id: str = "tidegate"
    account_name: str = "Tidegate"
    """The one account that there is, as the Control API shows it. The same on every core."""
    tokens: list[AdminToken] = []
    certificate: File | None = None
    private_key: PrivateFile | None = None
    client_ca: File | None = None
    """Whose certificates `clients` present. Best an authority of its own, not that of the link."""
    clients: list[AdminClient] = []
    names: list[str] = []
    """Host names under which the listener may be asked, besides `host`, `localhost`, IP addresses and the names of `certificate`. Other
    names are refused (421): a web page could have made them up."""
    peers: list[str] = []
    """Admin addresses of the other cores, `https://HOST:PORT`: what they say of themselves is shown in the console of this one. Its own
    may be among them, so that all cores have the same list."""
    peers_ca: File | None = None
    """Who has signed the certificates of `peers`. Left out: the authorities that the system trusts."""

    def __post_init__(self) -> None:
        _checked_id("account_id", self.account_id)
        _distinct("access token", [token.id for token in self.tokens])
        _distinct("client", [client.name for client in self.clients])
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and private_key: client certificates come over TLS")
        if self.clients and self.client_ca is None:
            raise ValueError("clients needs client_ca: who else would have signed their certificates?")
        for name in self.names:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(f"names: {name!r} is no host name; give it without scheme and port")
        for peer in self.peers:
            if not _ORIGIN.fullmatch(peer):
                raise ValueError(f"peers: {peer!r} is not like https://HOST:PORT")


class RingKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key of the cluster's ring: the first signs, all verify. `secret` is 32 bytes in base64 or hex."""

    id: str
    secret: Secret

    def __post_init__(self) -> None:
        self.bytes_of()

    def bytes_of(self) -> bytes:
        text = self.secret.reveal().strip()
        if len(text) == 2 * KEY_BYTES:
            try:
                return bytes.fromhex(text)
            except ValueError:
                pass
        try:
            decoded = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"the secret must be {KEY_BYTES} bytes in base64 or hex") from None
        if len(decoded) != KEY_BYTES:
            raise ValueError(f"the secret must be {KEY_BYTES} bytes, is {len(decoded)}")
        return decoded


class KeyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key. `capability` is JSON text or a table of resource → operations; left out, the key may do everything."""

    id: str
    secret: Secret
    capability: str | dict[str, list[str]] = '{"*":["*"]}'
    revoked: bool = False
    revocable_tokens: bool = False

    def __post_init__(self) -> None:
        _checked_id("the id of a key", self.id)
        if not self.secret.reveal():
            raise ValueError("the secret is empty")
        self.parsed()

    def parsed(self) -> Capability:
        try:
            return Capability.parse(self.capability)
        except RelayError as error:
            raise ValueError(error.info.message) from None


class NamespaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Properties of the channel that is called `<id>`, and of those whose names begin with `<id>:`. What is not described has no effect."""

    id: str
    authenticated: bool = False
    """Only clients with a clientId, or that may take any (`*`), may use its channels: 40161 for others."""
    tls_only: bool = False
    """Only clients that came over TLS may: 40311 for others."""
    persisted: bool = False
    push_enabled: bool = False
    mutable_messages: bool = False

    def __post_init__(self) -> None:
        if not self.id or ":" in self.id or self.id.startswith("["):
            raise ValueError("the id of a namespace must not be empty, contain ':' or begin with '['")


class AppConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant, with its keys, namespaces, rules and mappings."""

    id: str
    name: str = ""
    tls_only: bool = False
    presence_members: int | None = None
    """Most members of one channel of this app; left out, what `[limits]` says for all."""
    keys: list[KeyConfig] = []
    namespaces: list[NamespaceConfig] = []
    rules: list[RuleConfig] = []
    mappings: list[MappingConfig] = []

    def __post_init__(self) -> None:
        _checked_id("the id of an app", self.id)
        if self.presence_members is not None and self.presence_members < 1:
            raise ValueError("presence_members must be at least 1")
        _distinct("key", [key.id for key in self.keys])
        _distinct("namespace", [namespace.id for namespace in self.namespaces])
        _distinct("rule", [rule.id for rule in self.rules])
        _distinct("mapping", [mapping.id for mapping in self.mappings])

    def app(self) -> App:
        keys = [
            Key(
                app=self.id,
                id=key.id,
                secret=key.secret.reveal(),
                capability=key.parsed(),
                status=int(key.revoked),
                revocable_tokens=key.revocable_tokens,
            )
            for key in self.keys
        ]
        return App(
            id=self.id,
            name=self.name or self.id,
            tls_only=self.tls_only,
            presence_members=self.presence_members,
            keys={key.id: key for key in keys},
            namespaces={
                one.id: Namespace(
                    id=one.id,
                    authenticated=one.authenticated,
                    tls_only=one.tls_only,
                    persisted=one.persisted,
                    push_enabled=one.push_enabled,
                    mutable_messages=one.mutable_messages,
                )
                for one in self.namespaces
            },
        )


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one core."""

    node: str
    """The name in this core's certificate and in logs. No two cores have the same: they would end each other's transactions."""
    dev: bool = False
    """Permits what is unsafe outside a developer's machine: readable secrets, short ones, API keys without TLS, `sandbox`."""
    sandbox: bool = False
    """`POST /apps` and `DELETE /apps/{id}`, so that client test suites provision themselves. Only with `dev`."""
    region: str = "home"
    """Where the cores are, in the words of whoever reads metachannels. The same on every core."""
    connection_lifecycle: bool = True
    """Whether `[meta]connection.lifecycle` is told of every connection that opens and closes: two records of the log for each."""
    index_dir: str = ""
    """Where the index of recent records is kept; emptied at start. Empty: in memory."""
    link: LinkListen
    admin: AdminListen
    metrics: Listen
    kafka: KafkaConfig
    schema_registry: SchemaRegistryConfig | None = None
    limits: CoreLimits = CoreLimits()
    keyring: list[RingKey]
    apps: list[AppConfig] = []

    def __post_init__(self) -> None:
        if not _NODE.fullmatch(self.node):
            raise ValueError("node must be a name of letters, digits, '.' and '-', as in the certificate")
        if not _NODE.fullmatch(self.region):
            raise ValueError("region must be a name of letters, digits, '.' and '-'")
        if self.sandbox and not self.dev:
            raise ValueError("sandbox is for tests: it needs dev = true")
        if not self.keyring:
            raise ValueError("keyring needs at least one key")
        self.ring()
        _distinct("app", [app.id for app in self.apps])
        for app in self.apps:
            self._check_rules(app)
        if not self.dev:
            for app in self.apps:
                for key in app.keys:
                    if len(key.secret.reveal()) < MIN_SECRET:
                        raise ValueError(f"the secret of key {app.id}.{key.id} is shorter than {MIN_SECRET} characters")
            for token in self.admin.tokens:
                if len(token.secret.reveal()) < MIN_TOKEN_SECRET:
                    raise ValueError(f"the secret of access token {token.id} is shorter than {MIN_TOKEN_SECRET} characters")

    def _check_rules(self, app: AppConfig) -> None:
        """Rules and mappings are checked by making them. Raises: ValueError."""
        at = ""
        try:
            for rule in app.rules:
                at = f"rule {rule.id!r} of app {app.id!r}"
                self.rule(app.id, rule)
            for mapping in app.mappings:
                at = f"mapping {mapping.id!r} of app {app.id!r}"
                self.mapping(app.id, mapping)
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None

    def rule(self, app: str, config: RuleConfig, begun: int = 0) -> Rule:
        """Raises: ValueError for a rule that a core could not run."""
        return Rule(app, config, prefix=self.kafka.prefix, begun=begun, registry=self.schema_registry is not None)

    def mapping(self, app: str, config: MappingConfig) -> Mapping:
        """Raises: ValueError for a mapping that a core could not run."""
        return Mapping(
            app,
            config,
            prefix=self.kafka.prefix,
            max_message_bytes=self.limits.max_message_bytes,
            registry=self.schema_registry is not None,
            times=self.kafka.capabilities.offsets_for_times,
        )

    def ring(self) -> Keyring:
        return Keyring((key.id, key.bytes_of()) for key in self.keyring)

    def static_apps(self) -> list[App]:
        return [app.app() for app in self.apps]

    def static_tokens(self) -> list[StaticToken]:
        return [StaticToken(token.id, token.secret.reveal(), frozenset(token.scopes)) for token in self.admin.tokens]

    def admin_clients(self) -> dict[str, frozenset[str]]:
        """Name in a client certificate → scopes."""
        return {client.name: frozenset(client.scopes) for client in self.admin.clients}
