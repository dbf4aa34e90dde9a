"""Mappings from a record to a message (Ably protocol docs, Kafka Connector): template grammar and record → message, one row each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.mappings import Failed, Mapped, Mapping, MappingConfig, SourceRecord
from core.rules import ConfigError
from relay.model.message import Message, RecordBody


def config(**fields: Any) -> MappingConfig:
    base: dict[str, Any] = {"id": "m1", "topics": ["scores"], "channel": "#{topic}"}
    return msgspec.convert(base | fields, MappingConfig)


def mapping(**fields: Any) -> Mapping:
    return Mapping("app", config(**fields))


def source(value: bytes | None = b"x", key: bytes | None = None, headers: list[tuple[str, bytes | None]] | None = None) -> SourceRecord:
    return SourceRecord("scores", 3, 42, key, value, headers or [])


def mapped(record: SourceRecord, **fields: Any) -> tuple[str, Message]:
    """(channel, message)"""
    made = mapping(**fields).map(record, 1000)
    assert isinstance(made, Mapped), made
    body = msgspec.msgpack.decode(made.body, type=RecordBody)
    assert made.publish_id == "m:scores:3:42"
    assert (body.timestamp, body.connection_id, len(body.messages)) == (1000, None, 1)
    app, _, channel = made.key.decode().partition(":")
    assert app == "app"
    return channel, body.messages[0]


def failed(record: SourceRecord, **fields: Any) -> str:
    made = mapping(**fields).map(record, 1000)
    assert isinstance(made, Failed), made
    return made.reason


# --- templates -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "channel"),
    [
        ("leaderboard", "leaderboard"),
        ("#{topic}", "scores"),
        ("#{topic.name}", "scores"),
        ("#{topic.partition}", "3"),
        ("user:#{key}", "user:k1"),
        ("#{topic}:#{topic.partition}:#{key}", "scores:3:k1"),
        ("a # { } #}", "a # { } #}"),
        ("#{}x", "#{}x"),  # a placeholder has at least one character
        ("x#{key", "x#{key"),
    ],
)
def test_channel_template(template: str, channel: str) -> None:
    assert mapped(source(key=b"k1"), channel=template)[0] == channel


@pytest.mark.parametrize(
    "placeholder",
    [
        "value",
        "topic.field",
        " topic ",
        "key ",
        "nope",
        "key|hash",
        "headers",
        "headers.",
        "key.",
        "value..a",
        "value[0]",
        "value.a[",
        "value.a[-1]",
        "value.a[x]",
        "value.[0]",
    ],
)
@pytest.mark.parametrize("field", ["channel", "message_name"])
def test_other_placeholders_are_config_errors(placeholder: str, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mapping(**{field: "x#{" + placeholder + "}"})
    assert refused.value.field == field


def test_replacement_text_is_literal() -> None:
    assert mapped(source(key=b"$1\\0#{topic}"), channel="c:#{key}")[0] == "c:$1\\0#{topic}"


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "no_text"), (b"\xff\xfe", "no_text"), (b"", "illegal_channel"), (b":x", "illegal_channel")]
)
def test_keys_without_a_channel_are_failed(key: bytes | None, reason: str) -> None:
    assert failed(source(key=key), channel="#{key}") == reason


@pytest.mark.parametrize("key", [b",x", b" x", b"[meta]x", b"[x", b"[?rewind=1]x", b"a\nb"])
def test_illegal_channel_from_a_key_is_failed(key: bytes) -> None:
    assert failed(source(key=key), channel="#{key}") == "illegal_channel"


@pytest.mark.parametrize("channel", ["", ":x", ",x", " x", "[x", "[meta]log"])
def test_illegal_static_channel_is_a_config_error(channel: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mapping(channel=channel)
    assert refused.value.field == "channel"


@pytest.mark.parametrize(("template", "name"), [("", None), ("update", "update"), ("#{key}", "k1")])
def test_message_name(template: str, name: str | None) -> None:
    assert mapped(source(key=b"k1"), message_name=template)[1].name == name


def test_message_name_without_text_is_failed() -> None:
    assert failed(source(), message_name="#{key}") == "no_text"


# --- values --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value_as", "value", "data", "encoding"),
    [
        ("auto", b'{"a": null}', '{"a": null}', "json"),
        ("auto", b" [1, 2]\n", " [1, 2]\n", "json"),
        ("auto", b"{not json", "{not json", None),
        ("auto", b"[" * 5000, "[" * 5000, None),
        ("auto", b"5", "5", None),
        ("auto", "héllo".encode(), "héllo", None),
        ("auto", b"", "", None),
        ("auto", b"\xff\x00", b"\xff\x00", None),
        ("auto", b'{"a":"\xff"}', b'{"a":"\xff"}', None),
        ("bytes", b'{"a":1}', b'{"a":1}', None),
        ("string", b'{"a":1}', '{"a":1}', None),
        ("json", b"5", "5", "json"),
        ("json", b'"x"', '"x"', "json"),
        ("auto", None, None, None),
        ("bytes", None, None, None),
        ("string", None, None, None),
        ("json", None, None, None),
    ],
)
def test_values(value_as: str, value: bytes | None, data: Any, encoding: str | None) -> None:
    message = mapped(source(value), value=value_as)[1]
    assert (message.data, message.encoding) == (data, encoding)


@pytest.mark.parametrize(("value_as", "value"), [("string", b"\xff"), ("json", b"{"), ("json", b""), ("json", b'"\xff"')])
def test_values_that_are_not_what_the_setting_says_are_failed(value_as: str, value: bytes) -> None:
    assert failed(source(value), value=value_as) == "undecodable"


def test_oversize_is_failed() -> None:
    assert failed(source(b"x" * 70_000)) == "oversize"
    assert mapped(source(b"x" * 65_536))[1].data == "x" * 65_536


@pytest.mark.parametrize(
    ("headers", "extras"),
    [
        ([], None),
        ([("a", b"1"), ("b", "é".encode())], {"headers": {"a": "1", "b": "é"}}),
        ([("a", b"1"), ("a", b"2")], {"headers": {"a": "2"}}),
        ([("a", None)], {"headers": {"a": None}}),
        ([("a", b"\xff")], {"headers": {"a": "/w=="}}),
        ([("com.ably.extras.push", b'{"notification":{"title":"t","body":"b"}}')], {"push": {"notification": {"title": "t", "body": "b"}}}),
        ([("com.ably.extras.push", b'{"notification":{}}')], None),
        ([("com.ably.extras.push", b"[")], None),
    ],
)
def test_headers(headers: list[tuple[str, bytes | None]], extras: dict[str, Any] | None) -> None:
    assert mapped(source(headers=headers))[1].extras == extras


def test_encoding_header() -> None:
    message = mapped(source(b"\x00\xff", headers=[("com.ably.encoding", b"json")]))[1]
    assert (message.data, message.encoding, message.extras) == (b"\x00\xff", "json", None)
    assert mapped(source(None, headers=[("com.ably.encoding", b"json")]))[1].encoding is None


@pytest.mark.parametrize(("key", "text"), [(b"k", "k"), (b"", ""), (b"\xff", "/w==")])
def test_key_in_extras(key: bytes, text: str) -> None:
    assert mapped(source(key=key))[1].extras == {"kafka": {"key": text}}


# --- configuration -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"topics": []}, "topics"),
        ({"topics": ["a b"]}, "topics"),
        ({"topics": ["tidegate.log"]}, "topics"),
        ({"topics": ["__consumer_offsets"]}, "topics"),
        ({"id": "a b"}, "id"),
    ],
)
def test_config_errors(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mapping(**fields)
    assert refused.value.field == field


def test_from() -> None:
    assert config(**{"from": "earliest"}).start == "earliest"
    with pytest.raises(msgspec.ValidationError):
        config(**{"from": "yesterday"})


@given(
    value=st.none() | st.binary(max_size=60) | st.text(max_size=20).map(str.encode),
    key=st.none() | st.binary(max_size=10),
    headers=st.lists(st.tuples(st.text(max_size=6), st.none() | st.binary(max_size=8)), max_size=3),
    value_as=st.sampled_from(["auto", "bytes", "string", "json"]),
    channel=st.sampled_from(["c", "c:#{key}", "#{key}", "#{topic.partition}"]),
)
def test_every_record_is_mapped_or_failed(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], value_as: str, channel: str
) -> None:
    made = mapping(value=value_as, channel=channel).map(source(value, key, headers), 5)
    if isinstance(made, Failed):
        return
    data = msgspec.msgpack.decode(made.body, type=RecordBody).messages[0].data
    assert (data.encode() if isinstance(data, str) else data) == value


@given(st.text(max_size=40))
def test_any_template_parses_or_is_refused(text: str) -> None:
    try:
        made = mapping(channel="c" + text).map(source(key=b"k"), 5)
    except ConfigError:
        return
    if isinstance(made, Mapped) and "#{" not in text:
        assert made.key == f"app:c{text}".encode()
