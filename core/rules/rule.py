"""Rules: which records of the log become which records of your topics. Pure; `core.kafka.owner` does the writing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from core.lifecycle import OPENED, LifecycleBody
from core.log import LogRecord
from core.occupancy_log import OccupancyBody
from core.presence import Change
from core.rules.batch import Batched, Output
from core.rules.checks import ConfigError, check_id, compile_filter, static_headers, topic_fault
from core.rules.envelope import PRESENCE_ACTIONS, Event, Format, Headers, SourceType, batch_item, enveloped, headers_of, plain
from core.rules.schema import RuleSchema, check_schema
from core.rules.template import Template, TemplateError
from relay.model.message import Kind, Message, RecordBody
from relay.model.occupancy import METRICS, metrics
from relay.model.serials import Serial, message_serial
from relay.runtime.settings import Secret

MAX_CACHED_CHANNELS = 10_000
"""Channels whose matching rules are remembered. At the bound all are forgotten and matched again as they come."""

MAX_BROKERS = 32
MAX_NAME = 256
MAX_CA = 65_536
"""In characters, like `MAX_NAME`."""
EVENT_ID = "x-tidegate-event-id"
"""Header of records for other clusters: the event's place in the log. Who gets one twice knows it by that."""
PROTOCOLS = {(False, False): "plaintext", (False, True): "ssl", (True, False): "sasl_plaintext", (True, True): "sasl_ssl"}
"""By whether there is SASL, and TLS."""
_LEGAL_BROKER = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

_MESSAGE = int(Kind.MESSAGE)
_BODY = msgspec.msgpack.Decoder(RecordBody)


# --- configuration -------------------------------------------------------------------------------------------------------------------


class RuleSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What triggers a record."""

    type: SourceType = "channel.message"
    """The events that the rule is for; in single mode each makes one record. A publish of three messages is three events."""
    channel_filter: str = ""
    """RE2 expression, searched (unanchored) in the channel name; empty takes every channel."""


class RuleHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A header that every record of the rule carries."""

    name: str
    value: str


class Sasl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the rule names itself to its brokers."""

    mechanism: Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]
    username: str
    """With `oauthbearer` the client's id (OAuth client credentials grant)."""
    password: Secret
    """With `oauthbearer` the client's secret."""
    token_endpoint: str = ""
    """`https://…`: where tokens are asked for. Of `oauthbearer`, like what follows."""
    token_ca: str = ""
    """Certificates in PEM that the token endpoint's is checked against; empty: those that the machine trusts."""
    scope: str = ""
    extensions: str = ""
    """SASL extensions that brokers ask for: `key=value,key=value`."""


class RuleAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sasl: Sasl


class RuleTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the record goes, and in which form."""

    routing_key: str
    """Template of `topic:key`; interpolated first, then split at the first colon. Without a colon all of it is the topic."""
    enveloped: bool = True
    """True: a JSON or msgpack envelope around the message. False: the payload alone, the rest in record headers. Batch records have
    a form of their own, whatever this says."""
    format: Format = "json"
    """Of the envelope, and of batch records."""
    headers: list[RuleHeader] = []
    """Put behind the rule's own headers, in this order; a name may be there more than once."""
    brokers: list[str] = []
    """`host:port` of another cluster, at least once; empty: the core's own, exactly once."""
    auth: RuleAuth | None = None
    """For another cluster."""
    tls: bool | None = None
    """For another cluster. Left out: if there is `auth`, whose passwords would otherwise cross the network in clear."""
    ca: str = ""
    """Certificates in PEM that the other cluster's are checked against; empty: those that the machine trusts."""
    schema: RuleSchema | None = None
    """Of Schema Registry, by which payloads are checked and encoded; of plain records."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. Setting: `[[apps.rules]]` of core.toml."""

    id: str
    status: Literal["enabled", "disabled"] = "enabled"
    """A disabled rule is checked like the others, and writes nothing."""
    request_mode: Literal["single", "batch"] = "single"
    """Batch: events that go to the same topic with the same key share a record."""
    source: RuleSource = msgspec.field(default_factory=RuleSource)
    target: RuleTarget


# --- rules ---------------------------------------------------------------------------------------------------------------------------


class Drop(NamedTuple):
    """An event that a rule matched and cannot write. `reason` is the label of the counter."""

    rule: str
    reason: Literal["illegal_topic", "reserved_topic", "unencodable", "undecodable"]


class Outcome(NamedTuple):
    """What becomes of one record of the log. `batched` are the events of rules in batch mode, for the span's `Batcher`."""

    outputs: list[Output]
    batched: list[Batched]
    drops: list[Drop]


class Cluster(NamedTuple):
    """Another cluster, and who a rule is there. Rules that say the same share what writes to it."""

    brokers: tuple[str, ...]
    tls: bool
    ca: str
    sasl: Sasl | None

    @property
    def name(self) -> str:
        return ",".join(self.brokers)

    @property
    def properties(self) -> dict[str, str]:
        """Of librdkafka."""
        made = {"security.protocol": PROTOCOLS[self.sasl is not None, self.tls]}
        if self.ca:
            made["ssl.ca.pem"] = self.ca
        sasl = self.sasl
        if sasl is None:
            return made
        made["sasl.mechanism"] = sasl.mechanism.upper()
        if sasl.mechanism != "oauthbearer":
            return made | {"sasl.username": sasl.username, "sasl.password": sasl.password.reveal()}
        made |= {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": sasl.username,
            "sasl.oauthbearer.client.secret": sasl.password.reveal(),
            "sasl.oauthbearer.token.endpoint.url": sasl.token_endpoint,
        }
        made |= {"https.ca.pem": sasl.token_ca} if sasl.token_ca else {}
        made |= {"sasl.oauthbearer.scope": sasl.scope} if sasl.scope else {}
        return made | ({"sasl.oauthbearer.extensions": sasl.extensions} if sasl.extensions else {})


def cluster_of(target: RuleTarget) -> Cluster | None:
    """None: the core's own. Raises ConfigError."""
    if not target.brokers:
        for field, value in (("auth", target.auth), ("tls", target.tls), ("ca", target.ca or None)):
            if value:
                raise ConfigError(f"target.{field}", "is for another cluster, whose target.brokers are missing")
        return None
    if len(target.brokers) > MAX_BROKERS:
        raise ConfigError("target.brokers", f"more than {MAX_BROKERS}")
    if not all(_LEGAL_BROKER.fullmatch(broker) for broker in target.brokers):
        raise ConfigError("target.brokers", "must be host:port each")
    sasl = None if target.auth is None else target.auth.sasl
    tls = sasl is not None if target.tls is None else target.tls
    if target.ca and not tls:
        raise ConfigError("target.ca", "is for TLS, which is off")
    check_ca("target.ca", target.ca)
    if sasl is not None:
        check_sasl(sasl)
    return Cluster(tuple(target.brokers), tls, target.ca, sasl)


def check_ca(field: str, pem: str) -> None:
    """Raises ConfigError."""
    if pem and (len(pem) > MAX_CA or "-----BEGIN CERTIFICATE-----" not in pem or "PRIVATE KEY" in pem):
        raise ConfigError(field, f"must be certificates in PEM, of at most {MAX_CA} characters")


def check_sasl(sasl: Sasl) -> None:
    """Raises ConfigError."""
    where = "target.auth.sasl."
    if not sasl.username or len(sasl.username) > MAX_NAME:
        raise ConfigError(f"{where}username", f"must be 1-{MAX_NAME} characters")
    if not sasl.password.reveal():
        raise ConfigError(f"{where}password", "is required")
    if sasl.mechanism == "oauthbearer":
        if not sasl.token_endpoint.startswith("https://"):
            raise ConfigError(f"{where}token_endpoint", "must begin with https://: the client's secret is sent there")
        check_ca(f"{where}token_ca", sasl.token_ca)
        return
    for name in ("token_endpoint", "token_ca", "scope", "extensions"):
        if getattr(sasl, name):
            raise ConfigError(f"{where}{name}", "is for oauthbearer")


class Rule:
    """A checked rule of one app."""

    __slots__ = (
        *("_filter", "_headers", "_own_headers", "_reserved", "_routing"),
        *("app", "begun", "cluster", "config", "enabled", "id", "label", "topic"),
    )

    def __init__(self, app: str, config: RuleConfig, *, prefix: str = "tidegate", begun: int = 0, registry: bool = False) -> None:
        """`prefix` is that of Tidegate's own topics, which no rule may write to. `begun` tells a rule from itself before it was disabled:
        the revision of its record since which it is enabled; 0 for those of core.toml. `registry`: there is a Schema Registry. Raises
        ConfigError."""
        check_id(config.id)
        try:
            self._routing = Template(config.target.routing_key)
        except TemplateError as wrong:
            raise ConfigError("target.routing_key", str(wrong)) from wrong
        self.app = app
        self.id = config.id
        self.begun = begun
        self.label = f"{app}/{config.id}"
        """For counters and logs; ids are unique within an app only."""
        self.config = config
        self.enabled = config.status == "enabled"
        self._reserved = prefix
        self._filter = compile_filter(config.source.channel_filter)
        self.cluster: Cluster | None = cluster_of(config.target)
        """The cluster that is written to, unless it is the core's own."""
        own = static_headers((header.name, header.value) for header in config.target.headers)
        self._headers: Headers = [*headers_of(config.target.format), *own]
        """Of enveloped and batch records."""
        self._own_headers: Headers = [*own]
        self.topic: str | None = None
        """The topic, if it is always the same one."""
        static = self._routing.static_prefix
        if self._routing.static or ":" in static:
            self.topic = topic = static.partition(":")[0]
            if wrong_topic := topic_fault(topic, prefix):
                raise ConfigError("target.routing_key", f"{topic!r} cannot be written to ({wrong_topic.replace('_', ' ')})")

        if config.target.schema is not None:
            plainly = not config.target.enveloped and config.request_mode == "single"
            check_schema(config.target.schema, prefix, registry=registry, plain=plainly, topic=self.topic)

    @property
    def routing(self) -> str:
        return self.config.target.routing_key

    def matches(self, app: str, channel: str) -> bool:
        """Whether events of the channel are this rule's. Metachannels and other qualified names never are."""
        return app == self.app and not channel.startswith("[") and (self._filter is None or self._filter.search(channel) is not None)

    def skips(self, event: Event) -> bool:
        """Whether the publisher asked that this rule leave the message out (`extras.ephemeral`, `extras.privileged.skipRule`). Other events
        cannot be left out."""
        extras = event.message.extras
        if not extras or event.source != "channel.message":
            return False
        if extras.get("ephemeral") is True:
            return True
        privileged = extras.get("privileged")
        skip = privileged.get("skipRule") if isinstance(privileged, dict) else None
        return skip == "*" or (isinstance(skip, list) and self.id in skip)

    def make(self, event: Event, site: str) -> Output | Batched | Drop:
        """What the rule makes of an event that it matches and does not skip."""
        topic, _, key_text = self._routing.render(event.channel, event.message).partition(":")
        if self.topic is None and (fault := topic_fault(topic, self._reserved)):
            return Drop(self.label, fault)
        key = key_text.encode("utf-8", "surrogatepass") or None
        target = self.config.target
        try:
            if self.config.request_mode == "batch":
                item = batch_item(event, site, self.id, target.format)
                return Batched(self.label, topic, key, item, target.format, self._headers)
            if target.enveloped:
                value, headers = enveloped(event, self.app, site, self.id, target.format), self._headers
            else:
                value, headers = plain(event, self.app, site, self.id)
                headers += self._own_headers
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
            return Drop(self.label, "unencodable")
        if self.cluster is not None:
            headers = [*headers, (EVENT_ID, event.serial.encode())]
        return Output(self.label, topic, key, value, headers, target.schema)


# --- events --------------------------------------------------------------------------------------------------------------------------


def message_events(channel: str, body: RecordBody, serial: Serial, timestamp: int) -> list[Event]:
    """One for each message, with what it inherits from its publish filled in: id, connectionId, timestamp, serial. `timestamp` is broker
    time in ms. The messages of `body` are taken over, not copied."""
    at = serial.text
    events = []
    for index, message in enumerate(body.messages):
        place = message_serial(at, index)
        message.id = message.id or f"{body.id}:{index}"
        message.connection_id = message.connection_id or body.connection_id
        message.timestamp = body.timestamp if message.timestamp is None else message.timestamp
        message.serial = message.serial or place
        events.append(Event("channel.message", channel, "channel.message", place, timestamp, message))
    return events


def presence_events(channel: str, changes: Sequence[Change], serial: Serial, timestamp: int) -> list[Event]:
    """One for each change of the presence set that a record has made, however many items it had."""
    at = serial.text
    return [
        Event(
            "channel.presence",
            channel,
            "presence.message",
            message_serial(at, index),
            timestamp,
            Message(
                id=change.state.id,
                name=PRESENCE_ACTIONS[int(change.action)],
                data=change.state.data,
                encoding=change.state.encoding,
                client_id=change.client_id,
                connection_id=change.connection,
                timestamp=change.state.timestamp,
                extras=change.state.extras,
            ),
            action=int(change.action),
        )
        for index, change in enumerate(changes)
    ]


def lifecycle_event(channel: str, happened: LifecycleBody, serial: Serial, timestamp: int) -> Event:
    """A channel that opened or closed."""
    status: dict[str, Any] = {"isActive": happened.name == OPENED}
    if len(happened.counts) == len(METRICS):
        status["occupancy"] = {"metrics": metrics(happened.counts)}
    return Event(
        "channel.lifecycle",
        channel,
        happened.name,
        message_serial(serial.text, 0),
        timestamp,
        Message(),
        about=Message(id=happened.id, timestamp=happened.timestamp, name=happened.name),
        details={"channelId": channel, "name": channel, "status": status},
    )


def occupancy_event(channel: str, happened: OccupancyBody, serial: Serial, timestamp: int) -> Event:
    """How many there are on a channel, after a change. It is active: somebody has just come or gone."""
    return Event(
        "channel.occupancy",
        channel,
        "channel.occupancy",
        message_serial(serial.text, 0),
        timestamp,
        Message(),
        about=Message(id=happened.id, timestamp=happened.timestamp, name="channel.occupancy"),
        details={"channelId": channel, "name": channel, "status": {"isActive": True, "occupancy": {"metrics": metrics(happened.counts)}}},
    )


# --- all of them ---------------------------------------------------------------------------------------------------------------------


Happened = Sequence[Change] | LifecycleBody | OccupancyBody


class _Matched(NamedTuple):
    """The enabled rules for a channel, by source."""

    channel: str
    messages: tuple[Rule, ...]
    presence: tuple[Rule, ...]
    lifecycle: tuple[Rule, ...]
    occupancy: tuple[Rule, ...]


class Version(NamedTuple):
    """How new a set of rules is: it has all that `tidegate.config`, in this incarnation of the topic, says before `position`. Every core
    that has read so far has the same set. Those of core.toml alone have no stream."""

    stream: str = ""
    position: int = 0

    def reaches(self, other: Version) -> bool:
        """Whether everything that `other` knows of is known here. What another incarnation of the topic said is over."""
        return self.stream != other.stream or self.position >= other.position


class RuleSet:
    """All rules of a core, as of one version of the configuration. Not thread-safe: it belongs to the thread of its runner."""

    __slots__ = ("_cache", "_site", "by_label", "enabled", "own", "remote", "rules", "version")

    def __init__(self, rules: Iterable[Rule], *, site: str, version: Version = Version()) -> None:  # noqa: B008 - immutable
        """`site` is what records carry as their place of origin. Raises ConfigError when two rules of an app share an id."""
        self.rules = tuple(rules)
        self.version = version
        self.enabled = tuple(rule for rule in self.rules if rule.enabled)
        self.by_label = {rule.label: rule for rule in self.enabled}
        """Those that are enabled, as in the next two: those into the core's own cluster, and into others."""
        self.own = {label: rule for label, rule in self.by_label.items() if rule.cluster is None}
        self.remote = {label: rule for label, rule in self.by_label.items() if rule.cluster is not None}
        seen: set[tuple[str, str]] = set()
        for rule in self.rules:
            if (rule.app, rule.id) in seen:
                raise ConfigError("id", f"two rules of app {rule.app} are called {rule.id}")
            seen.add((rule.app, rule.id))
        self._site = site
        self._cache: dict[bytes, _Matched] = {}

    def outcome(self, record: LogRecord, happened: Happened | None = None) -> Outcome:
        """What the rules make of one record of the log. The caller has left out duplicates, and says what the record has changed by the
        fold over its partition: `apply` of `PartitionPresence`, `PartitionLifecycle`, `PartitionOccupancy`. A message stands for itself."""
        outcome = Outcome([], [], [])
        matched = self._cache.get(record.key) or self._match(record.key)
        channel, stamp = matched.channel, record.timestamp
        if record.kind == _MESSAGE:
            rules = matched.messages
            if not rules:
                return outcome
            try:
                body = _BODY.decode(record.value)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                outcome.drops.extend(Drop(rule.label, "undecodable") for rule in rules)
                return outcome
            if body.ephemeral:
                return outcome
            events = message_events(channel, body, Serial(record.stream, record.partition, record.offset), stamp)
            for rule in rules:
                self._apply(rule, events, outcome)
        elif happened and (matched.lifecycle or matched.presence or matched.occupancy):
            serial = Serial(record.stream, record.partition, record.offset)
            if isinstance(happened, LifecycleBody):
                rules, events = matched.lifecycle, [lifecycle_event(channel, happened, serial, stamp)]
            elif isinstance(happened, OccupancyBody):
                rules, events = matched.occupancy, [occupancy_event(channel, happened, serial, stamp)]
            else:
                rules, events = matched.presence, presence_events(channel, happened, serial, stamp)
            for rule in rules:
                self._apply(rule, events, outcome)
        return outcome

    def _apply(self, rule: Rule, events: list[Event], outcome: Outcome) -> None:
        for event in events:
            if rule.skips(event):
                continue
            made = rule.make(event, self._site)
            if isinstance(made, Output):
                outcome.outputs.append(made)
            elif isinstance(made, Batched):
                outcome.batched.append(made)
            else:
                outcome.drops.append(made)

    def _match(self, key: bytes) -> _Matched:
        app, _, channel = key.decode("utf-8", "replace").partition(":")
        by_source: dict[str, list[Rule]] = {}
        for rule in self.enabled:
            if rule.matches(app, channel):
                by_source.setdefault(rule.config.source.type, []).append(rule)
        found = _Matched(
            channel, *(tuple(by_source.get(f"channel.{kind}", ())) for kind in ("message", "presence", "lifecycle", "occupancy"))
        )
        if len(self._cache) >= MAX_CACHED_CHANNELS:
            self._cache.clear()
        self._cache[key] = found
        return found
