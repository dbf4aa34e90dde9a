"""Mappings from a record to a message (Ably protocol docs, Kafka Connector): template grammar and record → message, one row each."""

from __future__ import annotations

import json
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
    return Mapping("app", config(**fields), registry=True)


def source(value: bytes | None = b"x", key: bytes | None = None, headers: list[tuple[str, bytes | None]] | None = None) -> SourceRecord:
    return SourceRecord("scores", 3, 42, key, value, headers or [])


def mapped(record: SourceRecord, **fields: Any) -> tuple[str, Message]:
    """(channel, message)"""
    made = mapping(**fields).map(record, 1000)
    assert isinstance(made, Mapped), made
    body = msgspec.msgpack.decode(made.body, type=RecordBody)
    assert made.publish_id == "m:m1:scores:3:42"
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
    """Rows M1.3 (the channel), M2.1, M2.2, M2.3 and M2.4."""
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
        "value.a]",
        "value.a[0]b",
    ],
)
@pytest.mark.parametrize("field", ["channel", "message_name"])
def test_other_placeholders_are_config_errors(placeholder: str, field: str) -> None:
    """Rows M2.3 (no white space, filters or escapes) and M2.8."""
    with pytest.raises(ConfigError) as refused:
        mapping(**{field: "x#{" + placeholder + "}"})
    assert refused.value.field == field


@pytest.mark.parametrize(("form", "what"), [("bytes", "value"), ("string", "value"), ("bytes", "key"), ("string", "key")])
def test_fields_of_formats_without_fields_are_config_errors(form: str, what: str) -> None:
    """Row M2.8."""
    with pytest.raises(ConfigError) as refused:
        mapping(**{what: form, "message_name": "#{" + what + ".a}"})
    assert refused.value.field == "message_name"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        *(("#{value.s}", "é"), ("#{value.n}", "-5"), ("#{value.t}", "true"), ("#{value.o.i}", "1"), ("#{value.l[1]}", "b")),
        *(("#{value.m[0][1]}", "2"), ("#{value.l[2].x}", "y"), ("#{value.a b}", "blank"), ("#{key.k}", "kk")),
        *(("#{headers.h}", "last"), ("#{headers.com.example.x-y}", "dots"), ("#{value.o.i}-#{value.n}", "1--5")),
    ],
)
@pytest.mark.parametrize("form", ["auto", "json"])
def test_fields_elements_and_headers(form: str, template: str, text: str) -> None:
    """Rows M2.5, M2.6, M2.7 and M2.9, without a schema."""
    value = '{"s":"é","n":-5,"t":true,"o":{"i":1},"l":["a","b",{"x":"y"}],"m":[[1,2]],"a b":"blank"}'.encode()
    headers: list[tuple[str, bytes | None]] = [("h", b"first"), ("h", b"last"), ("com.example.x-y", b"dots")]
    record = source(value, b'{"k":"kk"}', headers)
    assert mapped(record, value=form, key=form, channel=f"c:{template}")[0] == f"c:{text}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        *(("#{value.f}", "no_text"), ("#{value.z}", "no_text"), ("#{value.o}", "no_text"), ("#{value.l}", "no_text")),
        *(("#{value.big}", "no_text"), ("#{headers.nul}", "no_text"), ("#{headers.bin}", "no_text")),
        *(("#{value.nope}", "missing_field"), ("#{value.l[9]}", "missing_field"), ("#{value.o[0]}", "missing_field")),
        *(("#{value.l.x}", "missing_field"), ("#{value.f.x}", "missing_field"), ("#{headers.nope}", "missing_field")),
        ("#{key.k}", "missing_field"),  # of a key that is no JSON
    ],
)
def test_what_has_no_text_or_is_not_there(template: str, reason: str) -> None:
    """Rows M2.10 and M2.11."""
    value = b'{"f":1.0,"z":null,"o":{"i":1},"l":[1],"big":9223372036854775808}'
    record = source(value, b"plain", [("nul", None), ("bin", b"\xff")])
    assert failed(record, message_name=template) == reason


def test_fields_of_a_tombstone_are_not_there() -> None:
    assert failed(source(None), channel="c:#{value.a}") == "missing_field"


def test_the_whole_key_is_its_text_beside_its_fields() -> None:
    """Row M2.4: `auto` does not take the key apart for `#{key}`, `json` does."""
    record = source(key=b'{"a":"x"}')
    assert mapped(record, message_name="#{key.a} #{key}")[1].name == 'x {"a":"x"}'
    assert failed(record, message_name="#{key}", key="json") == "no_text"
    assert mapped(source(key=b'"x"'), message_name="#{key}", key="json")[1].name == "x"
    assert mapped(source(key=b"7"), message_name="#{key}", key="json")[1].name == "7"


@pytest.mark.parametrize("text", ["$1\\0", "$&", "\\", "#{topic}", "#{", "}", "{0}", "%s"])
def test_replacement_text_is_taken_literally(text: str) -> None:
    """Row M2.12."""
    record = source(msgspec.json.encode({"a": text}), text.encode(), [("h", text.encode())])
    for template in ("#{key}", "#{value.a}", "#{headers.h}"):
        assert mapped(record, message_name=template)[1].name == text


def test_replacement_text_is_literal() -> None:
    """Row M2.12."""
    assert mapped(source(key=b"$1\\0#{topic}"), channel="c:#{key}")[0] == "c:$1\\0#{topic}"


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "no_text"), (b"\xff\xfe", "no_text"), (b"", "illegal_channel"), (b":x", "illegal_channel")]
)
def test_keys_without_a_channel_fail(key: bytes | None, reason: str) -> None:
    assert failed(source(key=key), channel="#{key}") == reason


@pytest.mark.parametrize("key", [b",x", b" x", b"[meta]x", b"[x", b"[?rewind=1]x", b"a\nb"])
def test_an_illegal_channel_from_a_key_fails(key: bytes) -> None:
    """Row M3.14."""
    assert failed(source(key=key), channel="#{key}") == "illegal_channel"


@pytest.mark.parametrize("channel", ["", ":x", ",x", " x", "[x", "[meta]log"])
def test_illegal_static_channel_is_a_config_error(channel: str) -> None:
    """Row M1.3."""
    with pytest.raises(ConfigError) as refused:
        mapping(channel=channel)
    assert refused.value.field == "channel"


@pytest.mark.parametrize(("template", "name"), [("", None), ("update", "update"), ("#{key}", "k1")])
def test_message_name(template: str, name: str | None) -> None:
    """Row M1.4."""
    assert mapped(source(key=b"k1"), message_name=template)[1].name == name


def test_a_message_name_without_text_fails() -> None:
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
    """Rows M1.12, M3.1, M3.2, M3.3, M3.4 without a schema, and M3.12."""
    message = mapped(source(value), value=value_as)[1]
    assert (message.data, message.encoding) == (data, encoding)


@pytest.mark.parametrize(("value_as", "value"), [("string", b"\xff"), ("json", b"{"), ("json", b""), ("json", b'"\xff"')])
def test_values_that_are_not_what_the_setting_says_fail(value_as: str, value: bytes) -> None:
    """Rows M3.2 and M3.9."""
    assert failed(source(value), value=value_as) == "undecodable"


def test_oversize_fails() -> None:
    """Row M3.13."""
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
    """Rows M4.2 and M4.3."""
    assert mapped(source(headers=headers))[1].extras == extras


def test_encoding_header() -> None:
    """Row M4.1."""
    message = mapped(source(b"\x00\xff", headers=[("com.ably.encoding", b"json")]))[1]
    assert (message.data, message.encoding, message.extras) == (b"\x00\xff", "json", None)
    assert mapped(source(None, headers=[("com.ably.encoding", b"json")]))[1].encoding is None


@pytest.mark.parametrize(
    ("form", "key", "text"),
    [
        *(("auto", b"k", "k"), ("auto", b"", ""), ("auto", b"\xff", "/w=="), ("auto", b'{"a":1}', '{"a":1}')),
        *(("string", b"k", "k"), ("bytes", b"k", "aw=="), ("json", b'"k"', "k")),
    ],
)
def test_key_in_extras(form: str, key: bytes, text: str) -> None:
    """Row M4.4."""
    assert mapped(source(key=key), key=form)[1].extras == {"kafka": {"key": text}}


@pytest.mark.parametrize("key", [None, b"5", b"true", b"null", b'{"a":1}', b"[1]"])
def test_keys_of_other_types_are_left_out(key: bytes | None) -> None:
    """Row M4.5."""
    assert mapped(source(key=key), key="json")[1].extras is None


@pytest.mark.parametrize(("form", "key"), [("string", b"\xff"), ("json", b"{"), ("avro", b"plain")])
def test_keys_that_are_not_what_the_setting_says_fail(form: str, key: bytes) -> None:
    """Rows M1.12 and M3.9."""
    assert failed(source(key=key), key=form) == "undecodable"


def test_a_mapping_publishes_as_nobody() -> None:
    """Row M1.5."""
    message = mapped(source())[1]
    assert (message.client_id, message.connection_id) == (None, None)


# --- configuration -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"topics": []}, "topics"),
        ({"topics": ["a b"]}, "topics"),
        ({"topics": ["tidegate.log"]}, "topics"),
        ({"topics": ["__consumer_offsets"]}, "topics"),
        ({"id": "a b"}, "id"),
        ({"topics": [], "topic_pattern": "("}, "topic_pattern"),
        ({"topics": [], "topic_pattern": "x" * 2_000}, "topic_pattern"),
        ({"from": -1}, "from"),
        ({"on_failed_record_mapping": "dlq"}, "dlq_topic"),
        ({"dlq_topic": "dead"}, "dlq_topic"),
        ({"on_failed_record_mapping": "dlq", "dlq_topic": "a b"}, "dlq_topic"),
        ({"on_failed_record_mapping": "dlq", "dlq_topic": "tidegate.log"}, "dlq_topic"),
        ({"on_failed_record_mapping": "dlq", "dlq_topic": "scores"}, "dlq_topic"),
        ({"on_failed_record_mapping": "dlq", "dlq_topic": "scores-dead", "topic_pattern": "scores.*"}, "dlq_topic"),
    ],
)
def test_config_errors(fields: dict[str, Any], field: str) -> None:
    """Rows M1.1, M1.2, M1.9 and M1.10: what is refused, by field."""
    with pytest.raises(ConfigError) as refused:
        mapping(**fields)
    assert refused.value.field == field


@pytest.mark.parametrize(("topic", "read"), [("scores", True), ("orders-eu", True), ("orders", False), ("my-orders-eu", False)])
def test_topics_by_name_and_by_pattern(topic: str, read: bool) -> None:
    """Rows M1.1 and M1.2: a pattern is for the whole name."""
    assert mapping(topic_pattern="orders-.+").reads(topic) is read


@pytest.mark.parametrize("topic", ["tidegate.log", "tidegate", "__consumer_offsets"])
def test_a_pattern_never_finds_reserved_topics(topic: str) -> None:
    """Row M1.2."""
    assert not mapping(topics=[], topic_pattern=".*").reads(topic)


def test_defaults() -> None:
    """Rows M1.6, M1.10, M1.11 and M1.12."""
    made = config()
    assert (made.on_failed_record_mapping, made.start, made.status, made.key, made.value) == ("stop", "latest", "enabled", "auto", "auto")


def test_from() -> None:
    """Row M1.10."""
    assert config(**{"from": "earliest"}).start == "earliest"
    assert config(**{"from": 1_700_000_000_000}).start == 1_700_000_000_000
    with pytest.raises(msgspec.ValidationError):
        config(**{"from": "yesterday"})
    with pytest.raises(ConfigError) as refused:
        Mapping("app", config(**{"from": 5}), times=False)
    assert refused.value.field == "from"


@pytest.mark.parametrize("form", ["avro", "protobuf", "json_schema"])
@pytest.mark.parametrize("field", ["key", "value"])
def test_schema_formats_need_a_registry(form: str, field: str) -> None:
    """Row M1.12."""
    with pytest.raises(ConfigError) as refused:
        Mapping("app", config(**{field: form}))
    assert refused.value.field == field


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


NAMES = st.text(st.characters(blacklist_characters=".[]}", blacklist_categories=("Cs",)), min_size=1, max_size=5)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def paths(draw: st.DrawFn, tree: Any) -> tuple[str, Any]:
    """A path into the tree, sometimes beyond it, and what is there: `...` for nothing."""
    path, at = "", tree
    for depth in range(4):
        if depth and draw(st.booleans()):
            break
        if isinstance(at, list) and depth:
            index = draw(st.integers(0, 3))
            path += f"[{index}]"
            at = at[index] if index < len(at) else ...
        else:
            known = sorted(at) if isinstance(at, dict) else []
            name = draw(st.sampled_from(known) | NAMES if known else NAMES)
            path += f".{name}"
            at = at.get(name, ...) if isinstance(at, dict) else ...
    return path, at


def oracle(value: Any) -> str | None:
    """Text of a leaf, said in another way than the code does."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return f"{value:d}"
    return None


@given(st.data())
def test_templates_by_chance(data: st.DataObject) -> None:
    """Rows M2.1 to M2.12: random text, random JSON, random paths into it and beyond, against an oracle."""
    tree = data.draw(st.dictionaries(NAMES, TREES, max_size=4))
    try:
        value = json.dumps(tree, allow_nan=False).encode()
    except ValueError:  # not-a-number is no JSON
        value, tree = b"{}", {}
    tree = json.loads(value)
    headers = data.draw(st.dictionaries(NAMES, st.text(max_size=5), max_size=2))
    record = source(value, b"kk", [(name, text.encode()) for name, text in headers.items()])
    template, expected = "", ""
    whole = True
    for _ in range(data.draw(st.integers(0, 4))):
        match data.draw(st.sampled_from(["text", "word", "path", "header"])):
            case "text":
                text = data.draw(st.text(max_size=5)).replace("#{", "")
                if not text.endswith("#"):
                    template += text
                    expected += text
            case "word":
                name, word = data.draw(st.sampled_from([("topic", "scores"), ("topic.partition", "3"), ("key", "kk")]))
                template += f"#{{{name}}}"
                expected += word
            case "path":
                path, at = data.draw(paths(tree))
                template += f"#{{value{path}}}"
                text_there = None if at is ... else oracle(at)
                whole = whole and text_there is not None
                expected += text_there or ""
            case _:
                name = data.draw(st.sampled_from(sorted(headers)) if headers else NAMES)
                template += f"#{{headers.{name}}}"
                whole = whole and name in headers
                expected += headers.get(name, "")
    made = mapping(message_name=template, channel="c").map(record, 5)
    if whole:
        assert isinstance(made, Mapped), made
        assert made.message.name == (expected or None)
    else:
        assert isinstance(made, Failed), made
        assert made.reason in ("no_text", "missing_field")
