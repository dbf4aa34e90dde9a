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

MAX_CACHED_CHANNELS = 10_000
"""Channels whose matching rules are remembered. At the bound all are forgotten and matched again as they come."""

_BODY = msgspec.msgpack.Decoder(RecordBody)


# --- configuration -------------------------------------------------------------------------------------------------------------------


class RuleSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What triggers a record."""

    type: Literal["channel.message"] = "channel.message"
    """One record per message published; a publish of three messages gives three records."""
    channel_filter: str = ""
    """RE2 expression, searched (unanchored) in the channel name; empty takes every channel."""


class RuleTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the record goes, and in which form."""

    routing_key: str
    """Template of `topic:key`; interpolated first, then split at the first colon. Without a colon all of it is the topic."""
    enveloped: bool = True
    """True: a JSON or msgpack envelope around the message. False: the payload alone, the rest in record headers."""
    format: Format = "json"
    """Of the envelope."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. Setting: `[[apps.rules]]` of core.toml."""

    id: str
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
