"""Mappings: records of your topics become messages on channels. Pure; `core.kafka.mapping_runner` does the reading and appending."""

from __future__ import annotations

import base64
from typing import Any, Literal, NamedTuple

import msgspec

from core.mappings.template import NoTextError, SourceRecord, Template
from core.rules.checks import ConfigError, check_id, topic_fault
from relay.model.channel import log_key, parse_channel
from relay.model.errors import RelayError
from relay.model.message import Message, RecordBody
from relay.model.publish import settle

ENCODING_HEADER = "com.ably.encoding"
"""Header of a record that sets the message's `encoding`."""
PUSH_HEADER = "com.ably.extras.push"
"""Header of a record with JSON text for `extras.push`."""

_BODY = msgspec.msgpack.Encoder()

Format = Literal["auto", "bytes", "string", "json", "avro", "protobuf", "json_schema"]
"""What keys or values are. `auto`: a JSON object or array is data with encoding `json`, other UTF-8 a string, everything else binary. The
last three are in Schema Registry's framing."""


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
    on_failed_record_mapping: Literal["skip", "stop", "dlq"] = "skip"
    """What to do with a record that cannot become a message. `skip`: count and log it. `stop`: wait at it. `dlq`: write it to
    `dlq_topic`."""
    dlq_topic: str = ""
    """Where records go that cannot become messages, with `dlq`."""


SkipReason = Literal["no_text", "illegal_channel", "undecodable", "oversize", "refused"]


class Mapped(NamedTuple):
    """What to append to the log. `publish_id` makes the append repeatable; `body` is the value of the log record."""

    key: bytes
    publish_id: str
    body: bytes


class Skipped(NamedTuple):
    """The record cannot become a message. `reason` is the label of the counter, `detail` is for the log and holds no payload."""

    reason: SkipReason
    detail: str


class Mapping:
    """A checked mapping of one app."""

    __slots__ = ("_channel", "_max_bytes", "_name", "app", "config", "id")

    def __init__(self, app: str, config: MappingConfig, *, prefix: str = "tidegate", max_message_bytes: int = 65_536) -> None:
        """`prefix` is that of Tidegate's own topics, which no mapping may read. Raises ConfigError."""
        check_id(config.id)
        if not config.topics:
            raise ConfigError("topics", "name at least one topic")
        for topic in config.topics:
            if wrong := topic_fault(topic, prefix):
                raise ConfigError("topics", f"{topic!r} cannot be read ({wrong.replace('_', ' ')})")
        _refuse_unsupported(config)
        self.app = app
        self.id = config.id
        self.config = config
        self._max_bytes = max_message_bytes
        self._channel = Template(config.channel, "channel")
        self._name = Template(config.message_name, "message_name")
        if self._channel.static and (fault := channel_fault(config.channel)):
            raise ConfigError("channel", fault)

    def map(self, record: SourceRecord, now_ms: int) -> Mapped | Skipped:
        """The append for one record; `now_ms` is the time of receipt. A record without value becomes a message without data."""
        try:
            channel, name = self._channel.render(record), self._name.render(record)
        except NoTextError as wrong:
            return Skipped("no_text", str(wrong))
        if fault := channel_fault(channel):
            return Skipped("illegal_channel", fault)
        try:
            data, encoding = self._data(record.value)
        except ValueError:
            return Skipped("undecodable", f"the value is not {self.config.value}")
        headers = dict(record.headers)
        if ENCODING_HEADER in headers and data is not None:
            encoding = _text(headers[ENCODING_HEADER]) or None
        place = f"{record.topic}:{record.partition}:{record.offset}"
        message = Message(id=f"{place}:0", name=name or None, data=data, encoding=encoding, extras=_extras(headers, record.key))
        try:
            settle([message], client_id=None, connection_id=None, max_bytes=self._max_bytes)  # what holds for publishers holds here
        except RelayError as wrong:
            return Skipped("oversize" if wrong.code == 40009 else "refused", wrong.info.message)
        body = _BODY.encode(RecordBody(id=place, timestamp=now_ms, messages=[message]))
        return Mapped(log_key(self.app, channel), f"m:{place}", body)

    def _data(self, value: bytes | None) -> tuple[str | bytes | None, str | None]:
        """(data, encoding). Raises ValueError when the value is not what the setting says."""
        wanted = self.config.value
        if value is None:
            return None, None
        if wanted == "bytes":
            return value, None
        if wanted == "string":
            return value.decode(), None
        if wanted == "json":
            return _json_text(value), "json"
        try:
            if value.lstrip()[:1] in (b"{", b"["):
                return _json_text(value), "json"
        except ValueError:
            pass
        try:
            return value.decode(), None
        except UnicodeDecodeError:
            return value, None


def _refuse_unsupported(config: MappingConfig) -> None:
    """Raises ConfigError."""
    if config.on_failed_record_mapping != "skip":
        raise ConfigError("on_failed_record_mapping", "not supported; this version knows 'skip' only")
    if config.topic_pattern:
        raise ConfigError("topic_pattern", "not supported")
    if isinstance(config.start, int):
        raise ConfigError("from", "a time is not supported")
    if config.key != "auto":
        raise ConfigError("key", "not supported; this version knows 'auto' only")
    if config.value in ("avro", "protobuf", "json_schema"):
        raise ConfigError("value", "Schema Registry is not supported")
    if config.status != "enabled":
        raise ConfigError("status", "not supported")


def channel_fault(name: str) -> str | None:
    """Why no message can be published to a channel of this name; None if one can."""
    if name.startswith((",", "[")) or name[:1].isspace():
        return "a channel name may not start with ',', '[' or white space"
    try:
        parse_channel(name)
    except RelayError as wrong:
        return wrong.info.message
    return None


def _json_text(value: bytes) -> str:
    """`value` as text, unchanged, if it is one JSON value. Raises ValueError."""
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError) as wrong:
        raise ValueError("not JSON") from wrong
    return value.decode()


def _extras(headers: dict[str, bytes | None], key: bytes | None) -> dict[str, Any] | None:
    extras: dict[str, Any] = {}
    texts = {name: _text(value) for name, value in headers.items() if name not in (ENCODING_HEADER, PUSH_HEADER)}
    if texts:
        extras["headers"] = texts
    push = _push(headers.get(PUSH_HEADER))
    if push is not None:
        extras["push"] = push
    if key is not None:
        extras["kafka"] = {"key": _text(key)}
    return extras or None


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
