"""Rules: which records of the log become which records of your topics. Pure; `core.kafka.owner` does the writing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from core.log import LogRecord
from core.rules.checks import ConfigError, check_id, compile_filter, topic_fault
from core.rules.envelope import Envelope, Format, Headers, enveloped, plain, wire_message
from core.rules.template import Template, TemplateError
from relay.model.message import Kind, Message, RecordBody
from relay.model.serials import Serial, message_serial
from relay.runtime.settings import Secret

MAX_CACHED_CHANNELS = 10_000
"""Channels whose matching rules are remembered. At the bound all are forgotten and matched again as they come."""

_BODY = msgspec.msgpack.Decoder(RecordBody)


# --- configuration -------------------------------------------------------------------------------------------------------------------


SourceType = Literal["channel.message", "channel.presence", "channel.lifecycle", "channel.occupancy"]


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

    mechanism: Literal["plain", "scram-sha-256", "scram-sha-512"]
    username: str
    password: Secret


class RuleAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sasl: Sasl


class RuleTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the record goes, and in which form."""

    routing_key: str
    """Template of `topic:key`; interpolated first, then split at the first colon. Without a colon all of it is the topic."""
    enveloped: bool = True
    """True: a JSON or msgpack envelope around the message. False: the payload alone, the rest in record headers."""
    format: Format = "json"
    """Of the envelope."""
    headers: list[RuleHeader] = []
    """Put behind the rule's own headers, in this order; a name may be there more than once."""
    brokers: list[str] = []
    """`host:port` of another cluster; empty: the core's own, exactly once."""
    auth: RuleAuth | None = None
    """For another cluster."""
    tls: bool = False
    """For another cluster."""


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


class Output(NamedTuple):
    """One record to write. `rule` is the rule's `label`."""

    rule: str
    topic: str
    key: bytes | None
    value: bytes
    headers: Headers


class Drop(NamedTuple):
    """A message that a rule matched and cannot write. `reason` is the label of the counter."""

    rule: str
    reason: Literal["illegal_topic", "reserved_topic", "unencodable", "undecodable"]


class Outcome(NamedTuple):
    outputs: list[Output]
    drops: list[Drop]


def check_supported(config: RuleConfig) -> None:
    """Raises ConfigError for what is described and not there."""
    if config.source.type != "channel.message":
        raise ConfigError("source.type", f"{config.source.type} is not supported")
    if config.request_mode != "single":
        raise ConfigError("request_mode", f"{config.request_mode} is not supported")
    if config.status != "enabled":
        raise ConfigError("status", f"{config.status} is not supported")
    if config.target.headers:
        raise ConfigError("target.headers", "not supported")
    check_cluster(config.target)


def check_cluster(target: RuleTarget) -> None:
    """Raises ConfigError for a cluster other than the core's own."""
    if target.brokers:
        raise ConfigError("target.brokers", "not supported: rules write to the core's own cluster")
    if target.auth is not None:
        raise ConfigError("target.auth", "not supported: rules write to the core's own cluster")
    if target.tls:
        raise ConfigError("target.tls", "not supported: rules write to the core's own cluster")


class Rule:
    """A checked rule of one app."""

    __slots__ = ("_filter", "_reserved", "_routing", "app", "config", "id", "label")

    def __init__(self, app: str, config: RuleConfig, *, prefix: str = "tidegate") -> None:
        """`prefix` is that of Tidegate's own topics, which no rule may write to. Raises ConfigError."""
        check_id(config.id)
        try:
            self._routing = Template(config.target.routing_key)
        except TemplateError as wrong:
            raise ConfigError("target.routing_key", str(wrong)) from wrong
        self.app = app
        self.id = config.id
        self.label = f"{app}/{config.id}"
        """For counters and logs; ids are unique within an app only."""
        self.config = config
        self._reserved = prefix
        self._filter = compile_filter(config.source.channel_filter)
        check_supported(config)
        static = self._routing.static_prefix
        if self._routing.static or ":" in static:
            topic = static.partition(":")[0]
            if wrong_topic := topic_fault(topic, prefix):
                raise ConfigError("target.routing_key", f"{topic!r} cannot be written to ({wrong_topic.replace('_', ' ')})")

    def matches(self, app: str, channel: str) -> bool:
        """Whether messages of the channel are this rule's. Metachannels and other qualified names never are."""
        return app == self.app and not channel.startswith("[") and (self._filter is None or self._filter.search(channel) is not None)

    def skips(self, message: Message) -> bool:
        """Whether the publisher asked that this rule leave the message out (`extras.ephemeral`, `extras.privileged.skipRule`)."""
        extras = message.extras
        if not extras:
            return False
        if extras.get("ephemeral") is True:
            return True
        privileged = extras.get("privileged")
        skip = privileged.get("skipRule") if isinstance(privileged, dict) else None
        return skip == "*" or (isinstance(skip, list) and self.id in skip)

    def output(self, channel: str, message: Message, site: str, timestamp: int) -> Output | Drop:
        """The record for one complete message (`complete`); `timestamp` is broker time in ms."""
        topic, _, key = self._routing.render(channel, message).partition(":")
        if fault := topic_fault(topic, self._reserved):
            return Drop(self.label, fault)
        target, source = self.config.target, self.config.source.type
        try:
            if target.enveloped:
                wire = [wire_message(message, target.format)]
                value, headers = enveloped(Envelope(source, self.app, channel, site, self.id, timestamp, wire), target.format)
            else:
                value, headers = plain(source, self.app, channel, site, self.id, message)
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
            return Drop(self.label, "unencodable")
        return Output(self.label, topic, key.encode("utf-8", "surrogatepass") or None, value, headers)


def complete(body: RecordBody, serial: Serial) -> list[Message]:
    """The messages of one publish with what they inherit from it filled in: id, connectionId, timestamp, serial."""
    channel_serial = serial.text
    return [
        msgspec.structs.replace(
            message,
            id=message.id or f"{body.id}:{index}",
            connection_id=message.connection_id or body.connection_id,
            timestamp=body.timestamp if message.timestamp is None else message.timestamp,
            serial=message.serial or message_serial(channel_serial, index),
        )
        for index, message in enumerate(body.messages)
    ]


class RuleSet:
    """All rules of a core. Not thread-safe: it belongs to the thread of its runner."""

    __slots__ = ("_cache", "_site", "rules")

    def __init__(self, rules: Iterable[Rule], *, site: str) -> None:
        """`site` is what records carry as their place of origin. Raises ConfigError when two rules of an app share an id."""
        self.rules = tuple(rules)
        seen: set[tuple[str, str]] = set()
        for rule in self.rules:
            if (rule.app, rule.id) in seen:
                raise ConfigError("id", f"two rules of app {rule.app} are called {rule.id}")
            seen.add((rule.app, rule.id))
        self._site = site
        self._cache: dict[bytes, tuple[str, tuple[Rule, ...]]] = {}

    def outcome(self, record: LogRecord) -> Outcome:
        """What the rules make of one record of the log. The caller has left out duplicates."""
        outcome = Outcome([], [])
        if record.kind != Kind.MESSAGE:
            return outcome
        channel, rules = self._cache.get(record.key) or self._match(record.key)
        if not rules:
            return outcome
        try:
            body = _BODY.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            outcome.drops.extend(Drop(rule.label, "undecodable") for rule in rules)
            return outcome
        if body.ephemeral:
            return outcome
        messages = complete(body, Serial(record.stream, record.partition, record.offset))
        for rule in rules:
            for message in messages:
                if rule.skips(message):
                    continue
                made = rule.output(channel, message, self._site, record.timestamp)
                if isinstance(made, Output):
                    outcome.outputs.append(made)
                else:
                    outcome.drops.append(made)
        return outcome

    def _match(self, key: bytes) -> tuple[str, tuple[Rule, ...]]:
        app, _, channel = key.decode("utf-8", "replace").partition(":")
        found = channel, tuple(rule for rule in self.rules if rule.matches(app, channel))
        if len(self._cache) >= MAX_CACHED_CHANNELS:
            self._cache.clear()
        self._cache[key] = found
        return found
