"""Keys and values in Schema Registry's framing: what each type becomes, and what the registry's answers lead to."""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import fastavro
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.type import date_pb2, timeofday_pb2
from hypothesis import given
from hypothesis import strategies as st

from core.kafka.config import SchemaRegistryConfig
from core.kafka.schema_registry import SchemaRegistry, client_settings
from core.mappings import Delayed, Failed, Mapped, Mapping, MappingConfig, SourceRecord
from core.mappings.decoders import Source, UnusableError, decoder
from core.mappings.schemas import Decoder, SchemaFormat, Unknown
from relay.model.limits import CoreLimits
from relay.model.message import Message
from relay.runtime.settings import Secret
from tests.support.registry import Registered, Registry, framed, schema_registry

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "small", "type": "int"},
        {"name": "ok", "type": "boolean"},
        {"name": "name", "type": "string"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "price", "type": "double"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "micros", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-millis"}},
        {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "uid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
        {
            "name": "lines",
            "type": {
                "type": "array",
                "items": {"type": "record", "name": "Line", "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": "int"}]},
            },
        },
    ],
}
AT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=datetime.UTC)
AT_MS = 1_767_323_045_678
VALUE: dict[str, Any] = {
    "id": 2**40,
    "small": 7,
    "ok": True,
    "name": "é",
    "note": None,
    "price": 1.5,
    "kind": "B",
    "day": datetime.date(1970, 1, 11),
    "at": AT,
    "micros": AT,
    "local": AT.replace(tzinfo=None),
    "time": datetime.time(0, 1, 2, 3000),
    "amount": Decimal("12.30"),
    "uid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "tags": ["x", "y"],
    "counts": {"a": 1},
    "lines": [{"sku": "s1", "n": 2}],
}
AS_JSON: dict[str, Any] = VALUE | {
    "day": 10,
    "at": AT_MS,
    "micros": AT_MS,
    "local": AT_MS,
    "time": 62_003,
    "amount": 12.3,
    "uid": "12345678-1234-5678-1234-567812345678",
}


def avro(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


class Fixed:
    """Schemas that are there."""

    def __init__(self, decoders: dict[int, Decoder | Unknown | None]) -> None:
        self._decoders = decoders

    def find(self, form: SchemaFormat, schema: int) -> Decoder | Unknown | None:
        return self._decoders[schema]


def made(raw: bytes | None, decoders: dict[int, Decoder | Unknown | None], record_key: bytes | None = None, **fields: Any) -> Any:
    base: dict[str, Any] = {"id": "m", "topics": ["t"], "channel": "c"}
    config = msgspec.convert(base | fields, MappingConfig)
    return Mapping("app", config, registry=True).map(SourceRecord("t", 0, 1, record_key, raw, []), 5, Fixed(decoders))


def message(raw: bytes | None, one: Decoder, **fields: Any) -> Message:
    found = made(raw, {7: one}, **fields)
    assert isinstance(found, Mapped), found
    return found.message


def avro_decoder(schema: Any) -> Decoder:
    return decoder("avro", Source(json.dumps(schema)))


# --- Avro ----------------------------------------------------------------------------------------------------------------------------


def test_an_avro_record_is_json_text() -> None:
    """Rows M3.4 (objects), M3.5 (dates, times, decimals, UUIDs), M3.6 (nulls kept)."""
    found = message(framed(7, avro(ORDER, VALUE)), avro_decoder(ORDER), value="avro")
    assert found.encoding == "json"
    assert json.loads(found.data) == AS_JSON
    assert '"amount":12.30' in found.data, "decimals keep their digits"
    assert '"note":null' in found.data


@pytest.mark.parametrize(("schema", "value", "data"), [("string", "a", "a"), ("bytes", b"\xff", b"\xff"), (["null", "string"], None, None)])
def test_avro_strings_bytes_and_null(schema: Any, value: Any, data: Any) -> None:
    """Rows M3.2 and M3.3, with a schema."""
    found = message(framed(7, avro(schema, value)), avro_decoder(schema), value="avro")
    assert (found.data, found.encoding) == (data, None)


BYTES_FIELD = {"type": "record", "name": "R", "fields": [{"name": "b", "type": "bytes"}]}
FLOAT_FIELD = {"type": "record", "name": "R", "fields": [{"name": "f", "type": "double"}]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("int", 1),
        ("boolean", True),
        ("double", 1.5),
        ({"type": "array", "items": "int"}, [1]),
        (BYTES_FIELD, {"b": b"x"}),
        (FLOAT_FIELD, {"f": float("nan")}),
        (FLOAT_FIELD, {"f": float("inf")}),
    ],
)
def test_types_that_no_message_has(schema: Any, value: Any) -> None:
    """Rows M3.7 (bytes within an object) and M3.8 (other types)."""
    found = made(framed(7, avro(schema, value)), {7: avro_decoder(schema)}, value="avro")
    assert isinstance(found, Failed)
    assert found.reason == "unsupported_type"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *(("id", str(2**40)), ("small", "7"), ("ok", "true"), ("name", "é"), ("kind", "B"), ("day", "10"), ("at", str(AT_MS))),
        *(("uid", AS_JSON["uid"]), ("tags[1]", "y"), ("lines[0].sku", "s1"), ("lines[0].n", "2"), ("counts.a", "1")),
    ],
)
def test_fields_in_templates(path: str, text: str) -> None:
    """Rows M2.5, M2.6 and M2.9: fields of values, elements of arrays, and what has a text form."""
    found = made(framed(7, avro(ORDER, VALUE)), {7: avro_decoder(ORDER)}, value="avro", channel=f"c:#{{value.{path}}}")
    assert isinstance(found, Mapped)
    assert found.channel == f"c:{text}"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *(("note", "no_text"), ("price", "no_text"), ("tags", "no_text"), ("lines[0]", "no_text"), ("counts", "no_text")),
        *(("amount", "no_text"), ("nope", "missing_field"), ("name.x", "missing_field"), ("tags[2]", "missing_field")),
        *(("name[0]", "missing_field"), ("lines.sku", "missing_field"), ("note.x", "missing_field")),
    ],
)
def test_fields_without_text(path: str, reason: str) -> None:
    """Rows M2.10 (no text form) and M2.11 (fields that are not there)."""
    found = made(framed(7, avro(ORDER, VALUE)), {7: avro_decoder(ORDER)}, value="avro", message_name=f"#{{value.{path}}}")
    assert isinstance(found, Failed)
    assert found.reason == reason


def test_bytes_fields_in_templates_are_text_if_they_are_utf8() -> None:
    """Row M2.9."""
    schema = {"type": "record", "name": "K", "fields": [{"name": "b", "type": "bytes"}]}
    for raw, text in ((b"abc", "abc"), (b"\xff", None)):
        found = made(None, {7: avro_decoder(schema)}, framed(7, avro(schema, {"b": raw})), key="avro", channel="c:#{key.b}")
        assert (found.channel == f"c:{text}") if text else found.reason == "no_text"


@pytest.mark.parametrize(
    ("schema", "key", "channel", "extras"),
    [
        ("string", "k1", "k1", {"kafka": {"key": "k1"}}),
        ("bytes", b"k2", "k2", {"kafka": {"key": base64.b64encode(b"k2").decode()}}),
        ("long", 12, "12", None),
    ],
)
def test_keys_with_a_schema(schema: Any, key: Any, channel: str, extras: Any) -> None:
    """Rows M2.4 and M4.4 (string and bytes keys reach extras), M4.5 (others do not)."""
    found = made(b"v", {7: avro_decoder(schema)}, framed(7, avro(schema, key)), key="avro", channel="#{key}")
    assert isinstance(found, Mapped)
    assert (found.channel, found.message.extras) == (channel, extras)


def test_avro_references() -> None:
    line = {"type": "record", "name": "shop.Line", "fields": [{"name": "sku", "type": "string"}]}
    order = {"type": "record", "name": "shop.Order", "fields": [{"name": "line", "type": "shop.Line"}]}
    one = decoder("avro", Source(json.dumps(order), (("shop.Line", json.dumps(line)),)))
    payload = avro({**order, "fields": [{"name": "line", "type": line}]}, {"line": {"sku": "x"}})
    assert one(payload) == {"line": {"sku": "x"}}


# --- damaged ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw", [b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\7x", b"plain", framed(7, b"\xff" * 20), framed(7, avro("string", "a") + b"x")]
)
def test_what_is_not_in_the_format_fails(raw: bytes) -> None:
    """Row M3.9: poison."""
    found = made(raw, {7: avro_decoder("string")}, value="avro")
    assert isinstance(found, Failed)
    assert found.reason == "undecodable"


@given(st.binary(max_size=60), st.sampled_from(["avro", "protobuf", "json_schema"]))
def test_no_payload_does_worse_than_fail(payload: bytes, form: SchemaFormat) -> None:
    """Row M3.9."""
    found = made(framed(7, payload), {7: DECODERS[form]}, value=form, message_name="#{value.name}")
    assert isinstance(found, Mapped | Failed)


def test_an_unknown_schema_fails_and_one_that_is_not_there_yet_delays() -> None:
    """Rows M3.10 and M3.11."""
    assert made(framed(9, b""), {9: Unknown("no such schema")}, value="avro").reason == "unknown_schema"
    assert made(framed(9, b""), {9: None}, value="avro") == Delayed(9)
    assert made(b"v", {9: None}, framed(9, b""), key="avro") == Delayed(9)


# --- JSON Schema -----------------------------------------------------------------------------------------------------------------------

PERSON = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": ["object", "string", "array"],
    "properties": {"name": {"type": "string"}, "home": {"$ref": "address.json"}},
    "required": ["name"],
}
ADDRESS = {"type": "object", "properties": {"zip": {"type": "string"}}, "required": ["zip"]}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"name":"a","home":{"zip":"1"}}', '{"name":"a","home":{"zip":"1"}}'),
        ('"just text"', "just text"),
        ('{"name":5}', "undecodable"),
        ('{"home":{"zip":"1"}}', "undecodable"),
        ('{"name":"a","home":{}}', "undecodable"),
        ('{"name":', "undecodable"),
        ("[1]", "unsupported_type"),
    ],
)
def test_json_schema(text: str, outcome: str) -> None:
    """Rows M3.4 and M3.9 with JSON Schema: what is not valid is not mapped."""
    found = made(framed(7, text.encode()), {7: DECODERS["json_schema"]}, value="json_schema")
    if isinstance(found, Failed):
        assert found.reason == outcome
        assert "name" not in found.detail, "no payload in what is logged"
    else:
        assert found.message.data == outcome


def test_a_json_schema_cannot_make_a_core_fetch_anything() -> None:
    one = decoder("json_schema", Source(json.dumps({"$ref": "http://127.0.0.1:1/x.json"})))
    assert made(framed(7, b"{}"), {7: one}, value="json_schema").reason == "undecodable"


# --- Protobuf --------------------------------------------------------------------------------------------------------------------------

Field = descriptor_pb2.FieldDescriptorProto


def proto_file() -> descriptor_pb2.FileDescriptorProto:
    """As protoc makes it of a file with a message `Order`, a nested `Order.Line` and an import of a registered and a common file."""
    file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    file.dependency.extend(
        ["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto", "google/type/date.proto", "google/type/timeofday.proto"]
    )
    file.dependency.append("common.proto")
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="NONE", number=0)
    kind.value.add(name="NEW", number=1)
    other = file.message_type.add(name="Other")
    other.field.add(name="x", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    order = file.message_type.add(name="Order")
    line = order.nested_type.add(name="Line")
    line.field.add(name="sku", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    entry = order.nested_type.add(name="CountsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    for number, (name, what, label, of) in enumerate(
        [
            ("name", Field.TYPE_STRING, 1, ""),
            ("id", Field.TYPE_INT64, 1, ""),
            ("ok", Field.TYPE_BOOL, 1, ""),
            ("kind", Field.TYPE_ENUM, 1, ".shop.Kind"),
            ("lines", Field.TYPE_MESSAGE, 3, ".shop.Order.Line"),
            ("counts", Field.TYPE_MESSAGE, 3, ".shop.Order.CountsEntry"),
            ("at", Field.TYPE_MESSAGE, 1, ".google.protobuf.Timestamp"),
            ("day", Field.TYPE_MESSAGE, 1, ".google.type.Date"),
            ("time", Field.TYPE_MESSAGE, 1, ".google.type.TimeOfDay"),
            ("note", Field.TYPE_MESSAGE, 1, ".google.protobuf.StringValue"),
            ("amount", Field.TYPE_MESSAGE, 1, ".confluent.type.Decimal"),
            ("raw", Field.TYPE_BYTES, 1, ""),
        ],
        1,
    ):
        order.field.add(name=name, number=number, type=what, label=label, type_name=of or None)
    return file


def common_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="common.proto", package="confluent.type", syntax="proto3")
    number = file.message_type.add(name="Decimal")
    number.field.add(name="value", number=1, type=Field.TYPE_BYTES, label=Field.LABEL_OPTIONAL)
    number.field.add(name="precision", number=2, type=Field.TYPE_UINT32, label=Field.LABEL_OPTIONAL)
    number.field.add(name="scale", number=3, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL)
    return file


def serialized(file: descriptor_pb2.FileDescriptorProto) -> str:
    return base64.b64encode(file.SerializeToString()).decode()


PROTO = Source(serialized(proto_file()), (("common.proto", serialized(common_file())),))
DECODERS: dict[SchemaFormat, Decoder] = {
    "avro": avro_decoder(ORDER),
    "protobuf": decoder("protobuf", PROTO),
    "json_schema": decoder("json_schema", Source(json.dumps(PERSON), (("address.json", json.dumps(ADDRESS)),))),
}


def proto_class(name: str) -> Any:
    """The class that a producer has."""
    pool = descriptor_pool.DescriptorPool()
    for module in ("timestamp", "wrappers"):
        file = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(f"google/protobuf/{module}.proto").CopyToProto(file)
        pool.Add(file)
    for common in (date_pb2, timeofday_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        common.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
    pool.Add(common_file())
    pool.Add(proto_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def proto_order() -> bytes:
    order = proto_class("shop.Order")(name="n", id=2**40, ok=True, kind=1, counts={3: "c"})
    order.lines.add(sku="s")
    order.at.ParseFromString(timestamp_pb2.Timestamp(seconds=10, nanos=5_000_000).SerializeToString())
    order.day.ParseFromString(date_pb2.Date(year=1970, month=1, day=11).SerializeToString())
    order.time.ParseFromString(timeofday_pb2.TimeOfDay(hours=1, nanos=2_000_000).SerializeToString())
    order.amount.value, order.amount.scale = (1230).to_bytes(2, "big"), 2
    return bytes(order.SerializeToString())


def test_a_protobuf_message_is_an_object() -> None:
    """Rows M3.4 and M3.5 with Protobuf; message indexes 2, 1 and 2.0 of the file."""
    tree = DECODERS["protobuf"](b"\x02\x02" + proto_order())
    assert tree == {
        "name": "n",
        "id": 2**40,
        "ok": True,
        "kind": "NEW",
        "lines": [{"sku": "s"}],
        "counts": {"3": "c"},
        "at": 10_005,
        "day": 10,
        "time": 3_600_002,
        "note": None,
        "amount": Decimal("12.30"),
        "raw": b"",
    }
    line = proto_class("shop.Order.Line")(sku="z").SerializeToString()
    assert DECODERS["protobuf"](b"\x04\x02\x00" + line) == {"sku": "z"}
    other = proto_class("shop.Other")(x="first").SerializeToString()
    assert message(framed(7, b"\x00" + other), DECODERS["protobuf"], value="protobuf").data == '{"x":"first"}'
    found = made(framed(7, b"\x02\x02" + proto_order()), {7: DECODERS["protobuf"]}, value="protobuf")
    assert found.reason == "unsupported_type", "its field of bytes has no form in JSON"


def test_a_date_that_is_none_is_the_records_trouble_alone() -> None:
    """Row M3.9: Google's type allows a year without month and day."""
    order = proto_class("shop.Order")()
    order.day.ParseFromString(date_pb2.Date(year=2026).SerializeToString())
    found = made(framed(7, b"\x02\x02" + order.SerializeToString()), {7: DECODERS["protobuf"]}, value="protobuf")
    assert isinstance(found, Failed)
    assert found.reason == "undecodable"


def test_what_nobody_has_thought_of_is_the_records_trouble_too() -> None:
    """Row M3.15: not that of all that the mapping reads, over and over."""

    def decode(_payload: bytes) -> Any:
        raise LookupError("with something of the payload")

    assert made(framed(7, b""), {7: decode}, value="protobuf") == Failed("refused", "LookupError")


@pytest.mark.parametrize(
    ("form", "source"),
    [
        ("avro", Source('{"type":"record"}')),
        ("avro", Source("not json")),
        ("protobuf", Source('syntax = "proto3";')),
        ("protobuf", Source(PROTO.text)),
        ("json_schema", Source('{"type": 5}')),
    ],
)
def test_schemas_that_cannot_be_used(form: SchemaFormat, source: Source) -> None:
    """Row M3.10."""
    with pytest.raises(UnusableError):
        decoder(form, source)


# --- the registry ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[Registry]:
    with schema_registry() as double:
        yield double


def asked(registry: Registry, form: SchemaFormat, schema: int, wait_s: float = 10.0, **config: Any) -> Decoder | Unknown | None:
    client = SchemaRegistry(SchemaRegistryConfig(url=registry.url, **config), CoreLimits(schema_timeout_s=1.0))
    client.start()
    try:
        return client.wait(form, schema, wait_s)
    finally:
        asyncio.run(client.close())


def test_schemas_of_all_kinds_come_from_the_registry(registry: Registry) -> None:
    registry.add(1, Registered("AVRO", json.dumps(ORDER)))
    registry.add(2, Registered("PROTOBUF", "text", serialized(common_file())), "common")
    registry.add(3, Registered("PROTOBUF", "text", serialized(proto_file()), [("common.proto", "common", 1)]))
    registry.add(4, Registered("JSON", json.dumps(ADDRESS)), "address")
    registry.add(5, Registered("JSON", json.dumps(PERSON), references=[("address.json", "address", 1)]))
    cases: list[tuple[SchemaFormat, int, bytes]] = [
        ("avro", 1, avro(ORDER, VALUE)),
        ("protobuf", 3, b"\x02\x02" + proto_order()),
        ("json_schema", 5, b'{"name":"a","home":{"zip":"1"}}'),
    ]
    for form, schema, payload in cases:
        found = asked(registry, form, schema)
        assert callable(found), found
        assert isinstance(found(payload), dict)


def test_the_registry_is_asked_once(registry: Registry) -> None:
    registry.add(1, Registered("AVRO", '"string"'))
    client = SchemaRegistry(SchemaRegistryConfig(url=registry.url), CoreLimits())
    client.start()
    assert callable(client.wait("avro", 1, 10))
    for _ in range(100):
        assert callable(client.find("avro", 1))
    asyncio.run(client.close())
    assert registry.requests == ["/schemas/ids/1"]


@pytest.mark.parametrize(("form", "schema"), [("avro", 9), ("protobuf", 1), ("avro", 6), ("avro", 8)])
def test_unknown_and_unusable_schemas(registry: Registry, form: SchemaFormat, schema: int) -> None:
    """Row M3.10: not there, of another type, with a reference that is not there, no Avro."""
    registry.add(1, Registered("AVRO", '"string"'))
    registry.add(6, Registered("AVRO", '"string"', references=[("x", "nowhere", 1)]))
    registry.add(8, Registered("AVRO", '{"type":"nonsense"}'))
    assert isinstance(asked(registry, form, schema), Unknown)


@pytest.mark.parametrize("trouble", ["down", 500, 503, 429, 401])
def test_an_outage_settles_nothing_and_ends_when_it_ends(registry: Registry, trouble: str | int) -> None:
    """Row M3.11."""
    registry.add(1, Registered("AVRO", '"string"'))
    client = SchemaRegistry(
        SchemaRegistryConfig(url=registry.url, username="u", password=Secret("right")), CoreLimits(schema_timeout_s=1.0)
    )
    client.start()
    match trouble:
        case "down":
            registry.down()
        case 401:
            registry.password = "u:other"
        case int():
            registry.failing = trouble
    assert client.wait("avro", 1, 1.5) is None
    assert client.failures
    match trouble:
        case "down":
            registry.up()
        case 401:
            registry.password = "u:right"
        case _:
            registry.failing = 0
    assert callable(client.wait("avro", 1, 10))
    asyncio.run(client.close())


def test_a_schema_that_is_registered_later_is_found(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kafka.schema_registry.UNKNOWN_S", 0.2)
    client = SchemaRegistry(SchemaRegistryConfig(url=registry.url), CoreLimits())
    client.start()
    assert isinstance(client.wait("avro", 1, 10), Unknown)
    registry.add(1, Registered("AVRO", '"string"'))

    async def found() -> None:
        async with asyncio.timeout(10):
            while not callable(client.find("avro", 1)):  # noqa: ASYNC110 - a thread's work
                await asyncio.sleep(0.05)

    asyncio.run(found())
    asyncio.run(client.close())


def test_client_settings() -> None:
    config = SchemaRegistryConfig(url="https://r1:8081,https://r2:8081", username="u", password=Secret("p:w"))
    assert client_settings(config, CoreLimits()) == {
        "cache.latest.ttl.sec": 1,
        "url": "https://r1:8081,https://r2:8081",
        "timeout": 5.0,
        "max.retries": 0,
        "cache.capacity": 1000,
        "basic.auth.user.info": "u:p:w",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "localhost:8081"},
        {"url": "http://u:p@localhost:8081"},
        {"url": "http://localhost", "username": "u"},
        {"url": "http://localhost", "password": Secret("p")},
    ],
)
def test_settings_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"url must|go together"):
        SchemaRegistryConfig(**fields)
