"""Mappings: records of your topics become messages on channels. Pure; `core.kafka.mapping_runner` does the reading and appending."""

from __future__ import annotations

import base64
from typing import Any, Literal, NamedTuple

import msgspec

from core.kept import PREFIX as KEPT
from core.mappings.content import Content, DelayedError, FailedError, FailReason, Format, reader
from core.mappings.schemas import SCHEMA_FORMATS, Schemas
from core.mappings.template import SourceRecord, Template, View
from core.rules.checks import ConfigError, Filter, check_id, compile_filter, topic_fault
from relay.model.channel import check_name, log_key
from relay.model.errors import RelayError
from relay.model.message import Message, RecordBody
from relay.model.publish import settle

ENCODING_HEADER = "com.ably.encoding"
"""Header of a record that sets the message's `encoding`."""
PUSH_HEADER = "com.ably.extras.push"
"""Header of a record with JSON text for `extras.push`."""

MAPPED = "m:"
"""First part of publish ids where the last message of a channel is not kept."""
MAX_TOPICS = 1_000
"""Of one mapping, by name. As many more may its pattern find (`mapping_topics`)."""
MAX_TIME_MS = 2**62
"""Latest time that Kafka can be asked about, in milliseconds since 1970."""

_BODY = msgspec.msgpack.Encoder()


class MappingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mapping. Setting: `[[apps.mappings]]` of core.toml."""

    id: str
    status: Literal["enabled", "disabled"] = "enabled"
    """`disabled`: nothing is read. Enabled again, it goes on where it was."""
    topics: list[str] = []
    """Topics to read, by name."""
    topic_pattern: str = ""
    """RE2 expression for the whole names of further topics to read; empty: none."""
    channel: str
    """Template of the channel name."""
    message_name: str = ""
    """Template of the message name; empty: messages have none."""
    key: Format = "auto"
    """What record keys are."""
    value: Format = "auto"
    """What record values are."""
    start: Literal["latest", "earliest"] | int = msgspec.field(default="latest", name="from")
    """Where a mapping that has never run begins in topics that are already there; a number is a time in milliseconds since 1970."""
    on_failed_record_mapping: Literal["stop", "skip", "dlq"] = "stop"
    """What to do with a record that cannot become a message. `stop`: its partition waits until it can. `skip`: it is counted and logged.
    `dlq`: it is written to `dlq_topic`."""
    dlq_topic: str = ""
    """Where records go that cannot become messages, with `dlq`."""
    keep_last: bool = False
    """Keep the last message of each channel for `rewind`, however old it is: for compacted topics."""


class Mapped(NamedTuple):
    """What to append to the log. `publish_id` makes the append repeatable; `body` is the value of the log record."""

    key: bytes
    publish_id: str
    body: bytes
    channel: str
    message: Message


class Failed(NamedTuple):
    """The record cannot become a message. `reason` is the label of the counter, `detail` is for the log and holds no payload."""

    reason: FailReason
    detail: str


class Delayed(NamedTuple):
    """Schema Registry has not answered yet: map the record again later."""

    schema: int


class Mapping:
    """A checked mapping of one app."""

    __slots__ = ("_channel", "_key", "_max_bytes", "_name", "_pattern", "_prefix", "_value", "app", "config", "id")

    def __init__(
        self,
        app: str,
        config: MappingConfig,
        *,
        prefix: str = "tidegate",
        max_message_bytes: int = 65_536,
        registry: bool = False,
        times: bool = True,
    ) -> None:
        """`prefix` is that of Tidegate's own topics, which no mapping may read. `registry`: there is a Schema Registry; `times`: the broker
        finds records by time. Raises ConfigError."""
        check_id(config.id)
        self.app = app
        self.id = config.id
        self.config = config
        self._prefix = prefix
        self._max_bytes = max_message_bytes
        self._pattern = self._check_topics()
        self._check_policy()
        if isinstance(config.start, int) and not 0 <= config.start <= MAX_TIME_MS:
            raise ConfigError("from", "a time is milliseconds since 1970, and not negative")
        if isinstance(config.start, int) and not times:
            raise ConfigError("from", "the embedded broker finds no records by time")
        for field, form in (("key", config.key), ("value", config.value)):
            if form in SCHEMA_FORMATS and not registry:
                raise ConfigError(field, f"{form} needs [schema_registry] in core.toml")
        self._key = reader("key", config.key)
        self._value = reader("value", config.value)
        self._channel = Template(config.channel, "channel", config.key, config.value)
        self._name = Template(config.message_name, "message_name", config.key, config.value)
        if self._channel.static and (fault := channel_fault(config.channel)):
            raise ConfigError("channel", fault)

    @property
    def needs_registry(self) -> bool:
        return self.config.key in SCHEMA_FORMATS or self.config.value in SCHEMA_FORMATS

    def reads(self, topic: str) -> bool:
        """Whether the records of `topic` are mapped."""
        if topic in self.config.topics:
            return True
        return self._pattern is not None and topic_fault(topic, self._prefix) is None and self._pattern.fullmatch(topic) is not None

    def map(self, record: SourceRecord, now_ms: int, schemas: Schemas | None = None, seek: int = 0) -> Mapped | Failed | Delayed:
        """The append for one record; `now_ms` is the time of receipt, `seek` the number of the last seek of its partition. A record without
        value becomes a message without data."""
        try:
            return self._map(record, now_ms, schemas, seek)
        except FailedError as wrong:
            return Failed(wrong.reason, wrong.detail)
        except DelayedError as waiting:
            return Delayed(waiting.schema)
        except Exception as defect:  # nobody has thought of it: this record's trouble all the same, not that of all that the mapping reads
            return Failed("refused", type(defect).__name__)

    def _map(self, record: SourceRecord, now_ms: int, schemas: Schemas | None, seek: int) -> Mapped:
        if record.headers is None:
            raise FailedError("undecodable", "the name of a header is not UTF-8")
        key = self._key(record.key, schemas)
        value = self._value(record.value, schemas)
        view = View(record, key, value)
        channel, name = self._channel.render(view), self._name.render(view)
        if fault := channel_fault(channel):
            raise FailedError("illegal_channel", fault)
        encoding = value.encoding
        headers = dict(record.headers)
        if ENCODING_HEADER in headers and value.data is not None:
            encoding = _text(headers[ENCODING_HEADER]) or None
        place = f"{record.topic}:{record.partition}:{record.offset}"
        message = Message(id=f"{place}:0", name=name or None, data=value.data, encoding=encoding, extras=self._extras(headers, key))
        try:
            settle([message], client_id=None, connection_id=None, max_bytes=self._max_bytes)  # what holds for publishers holds here
        except RelayError as wrong:
            raise FailedError("oversize" if wrong.code == 40009 else "refused", wrong.info.message) from None
        body = _BODY.encode(RecordBody(id=place, timestamp=now_ms, messages=[message]))
        space = KEPT if self.config.keep_last else MAPPED
        publish_id = f"{space}{self.id}:{place}:{seek}" if seek else f"{space}{self.id}:{place}"
        return Mapped(log_key(self.app, channel), publish_id, body, channel, message)

    def _extras(self, headers: dict[str, bytes | None], key: Content) -> dict[str, Any] | None:
        extras: dict[str, Any] = {}
        texts = {name: _text(value) for name, value in headers.items() if name not in (ENCODING_HEADER, PUSH_HEADER)}
        if texts:
            extras["headers"] = texts
        push = _push(headers.get(PUSH_HEADER))
        if push is not None:
            extras["push"] = push
        text = self._key_text(key)
        if text is not None:
            extras["kafka"] = {"key": text}
        return extras or None

    @staticmethod
    def _key_text(key: Content) -> str | None:
        """A string key as it is, bytes as base64; None for other types."""
        whole = key.whole
        if isinstance(whole, bytes):
            return base64.b64encode(whole).decode()
        return whole if isinstance(whole, str) else None

    def _check_topics(self) -> Filter | None:
        config = self.config
        if not config.topics and not config.topic_pattern:
            raise ConfigError("topics", "name at least one topic, or set topic_pattern")
        if len(config.topics) > MAX_TOPICS:
            raise ConfigError("topics", f"more than {MAX_TOPICS}")
        for topic in config.topics:
            if wrong := topic_fault(topic, self._prefix):
                raise ConfigError("topics", f"{topic!r} cannot be read ({wrong.replace('_', ' ')})")
        return compile_filter(config.topic_pattern, "topic_pattern")

    def _check_policy(self) -> None:
        config = self.config
        if config.on_failed_record_mapping != "dlq":
            if config.dlq_topic:
                raise ConfigError("dlq_topic", "is for on_failed_record_mapping = 'dlq'")
            return
        if not config.dlq_topic:
            raise ConfigError("dlq_topic", "name the topic that records go to")
        if wrong := topic_fault(config.dlq_topic, self._prefix):
            raise ConfigError("dlq_topic", f"cannot be written ({wrong.replace('_', ' ')})")
        if self.reads(config.dlq_topic):
            raise ConfigError("dlq_topic", "is one that this mapping reads")


def channel_fault(name: str) -> str | None:
    """Why no message can be published to a channel of this name; None if one can."""
    if name.startswith((",", "[")) or name[:1].isspace():
        return "a channel name may not start with ',', '[' or white space"
    try:
        check_name(name)  # which is all for names without a qualifier
    except RelayError as wrong:
        return wrong.info.message
    return None


def _text(value: bytes | None) -> str | None:
    """Text of a key or header: UTF-8 as it is, other bytes as base64."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _push(value: bytes | None) -> dict[str, Any] | None:
    """`extras.push` if the header is JSON with `notification.title` and `.body`; anything else is left out."""
    if value is None:
        return None
    try:
        push = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    notification = push.get("notification") if isinstance(push, dict) else None
    return push if isinstance(notification, dict) and {"title", "body"} <= notification.keys() else None
