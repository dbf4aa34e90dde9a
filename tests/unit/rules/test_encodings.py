"""Payloads by their registered schema: what comes out can be read back by it, and what is not valid goes where the rule says."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from core.kafka.config import SchemaRegistryConfig
from core.kafka.schema_registry import SchemaRegistry
from core.mappings.decoders import Source, UnusableError, decoder
from core.mappings.schemas import Framed, SchemaFormat, Unknown
from core.rules import ConfigError, Output, Rule, RuleConfig
from core.rules.encoders import encoder
from core.rules.schema import REASON, Encoding, InvalidError, RuleSchema, encoded
from relay.model.limits import CoreLimits
from relay.runtime.settings import Secret
from tests.support.registry import Registered, Registry, schema_registry
from tests.unit.mappings.test_schemas import serialized

AVRO = json.dumps(
    {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "note", "type": ["null", "string"], "default": None},
            {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        ],
    }
)
JSON_SCHEMA = json.dumps(
    {
        "type": "object",
        "required": ["id"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            "note": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    }
)


def proto() -> str:
    file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Order")
    field = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind, label) in enumerate(
        (
            ("id", field.TYPE_INT64, field.LABEL_OPTIONAL),
            ("note", field.TYPE_STRING, field.LABEL_OPTIONAL),
            ("tags", field.TYPE_STRING, field.LABEL_REPEATED),
        ),
        1,
    ):
        message.field.add(name=name, number=number, type=kind, label=label)
    file.message_type.add(name="Other")
    return serialized(file)


SOURCES: dict[SchemaFormat, Source] = {"avro": Source(AVRO), "protobuf": Source(proto()), "json_schema": Source(JSON_SCHEMA)}
KINDS: dict[SchemaFormat, str] = {"avro": "AVRO", "protobuf": "PROTOBUF", "json_schema": "JSON"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ORDERS = st.fixed_dictionaries({"id": st.integers(-(2**63), 2**63 - 1)}, optional={"note": TEXT, "tags": st.lists(TEXT, max_size=3)})


@given(st.sampled_from(sorted(SOURCES)), ORDERS)
def test_what_is_encoded_is_read_back_by_the_same_schema(form: Any, order: dict[str, Any]) -> None:
    """R8.1, R8.3"""
    framed = Encoding(7, encoder(form, SOURCES[form])).framed(json.dumps(order).encode())
    schema, payload = Framed.parse(framed)
    found = decoder(form, SOURCES[form])(payload)
    assert schema == 7
    assert {name: found[name] for name in order} == order


@pytest.mark.parametrize("form", sorted(SOURCES))
@pytest.mark.parametrize(
    "payload",
    [
        b"no JSON", b"", b"[" * 5_000, b"[]", b'"text"', b'{"id": "x"}', b'{"id": 1, "other": 1}', b"\xff\xfe",
        b'{"id": 9223372036854775808}', b'{"id": 1, "tags": 3}',
    ],
)  # fmt: skip
def test_what_is_not_valid_is_said_to_be_so(form: Any, payload: bytes) -> None:
    """R8.2"""
    with pytest.raises(InvalidError) as wrong:
        encoder(form, SOURCES[form])(payload)
    assert "other" not in str(wrong.value)


def test_a_required_field_of_proto2_that_is_not_there_is_no_end_of_the_owner() -> None:
    """R8.2: the library says so with an error of another module."""
    file = descriptor_pb2.FileDescriptorProto(name="old.proto", package="shop", syntax="proto2")
    field = descriptor_pb2.FieldDescriptorProto
    file.message_type.add(name="Old").field.add(name="id", number=1, type=field.TYPE_INT64, label=field.LABEL_REQUIRED)
    encode = encoder("protobuf", Source(serialized(file)))
    assert encode(b'{"id": 1}')
    with pytest.raises(InvalidError):
        encode(b"{}")


def test_schemas_that_cannot_be_used() -> None:
    for form, text in (("avro", "{"), ("avro", '"nothing"'), ("json_schema", '{"type": 7}'), ("protobuf", "text")):
        with pytest.raises(UnusableError):
            encoder(form, Source(text))  # type: ignore[arg-type]
    with pytest.raises(UnusableError):
        encoder("protobuf", Source(serialized(descriptor_pb2.FileDescriptorProto(name="e.proto", syntax="proto3"))))


class Settled:
    def __init__(self, found: Encoding | Unknown | None) -> None:
        self.found = found

    def find_subject(self, form: str, subject: str, version: int) -> Encoding | Unknown | None:
        return self.found


def an_output(value: bytes, **schema: Any) -> Output:
    made = RuleSchema(format="avro", subject="orders-value", **schema)
    return Output("app/r", "orders", b"k", value, [("content-type", b"application/json"), ("x", b"y")], made)


def test_what_becomes_of_a_record() -> None:
    """R8.2, R8.4, R8.5"""
    good, bad = an_output(b'{"id": 1}'), an_output(b'{"id": "x"}')
    known = Settled(Encoding(9, encoder("avro", SOURCES["avro"])))
    made = encoded(good, known)
    assert isinstance(made, Output)
    assert (made.topic, made.key, made.schema) == ("orders", b"k", None)
    assert made.value == b"\0\0\0\0\x09" + bytes([2, 0, 0])
    assert made.headers == [("content-type", b"application/avro"), ("x", b"y")]
    assert encoded(bad, known) is None
    dead = encoded(an_output(b'{"id": "x"}', on_invalid="dlq", dlq_topic="dead"), known)
    assert isinstance(dead, Output)
    assert (dead.topic, dead.key, dead.value, dead.schema) == ("dead", b"k", b'{"id": "x"}', None)
    assert dict(dead.headers).keys() == {"content-type", "x", REASON}
    assert encoded(good, Settled(None)) == encoded(good, None) == "unavailable_schema"
    assert encoded(good, Settled(Unknown("why"))) == "unknown_schema"


def configured(registry: bool = True, schema: dict[str, Any] | None = None, **fields: Any) -> Rule:
    target = {"routing_key": "orders:#{channelName}", "enveloped": False, "schema": {"format": "avro", "subject": "s"} | (schema or {})}
    made = {"id": "r", "target": target | fields.pop("target", {})} | fields
    return Rule("app", msgspec.convert(made, RuleConfig, dec_hook=lambda _, value: Secret(value)), registry=registry)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"registry": False}, "schema"),
        ({"target": {"enveloped": True}}, "schema"),
        ({"request_mode": "batch"}, "schema"),
        ({"target": {"routing_key": "#{channelName}"}}, "schema"),
        ({"schema": {"subject": ""}}, "schema.subject"),
        ({"schema": {"version": -1}}, "schema.version"),
        ({"schema": {"on_invalid": "dlq"}}, "schema.dlq_topic"),
        ({"schema": {"dlq_topic": "dead"}}, "schema.dlq_topic"),
        ({"schema": {"on_invalid": "dlq", "dlq_topic": "orders"}}, "schema.dlq_topic"),
        ({"schema": {"on_invalid": "dlq", "dlq_topic": "tidegate.log"}}, "schema.dlq_topic"),
    ],
)
def test_schemas_that_no_rule_can_have(fields: dict[str, Any], field: str) -> None:
    """R8.1"""
    with pytest.raises(ConfigError) as refused:
        configured(**fields)
    assert refused.value.field == f"target.{field}"


def found_in(schemas: SchemaRegistry, form: SchemaFormat, version: int = 0) -> Encoding | Unknown:
    until = time.monotonic() + 10
    while (found := schemas.find_subject(form, f"{form}-value", version)) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def registered(registry: Registry) -> None:
    for number, form in enumerate(sorted(SOURCES), 1):
        source = SOURCES[form]
        text = "text" if form == "protobuf" else source.text
        registry.add(number, Registered(KINDS[form], text, source.text if form == "protobuf" else ""), f"{form}-value")


def test_the_latest_version_is_looked_up_and_an_outage_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """R8.4, R8.5"""
    monkeypatch.setattr("core.kafka.schema_registry.LATEST_S", 0.2)
    monkeypatch.setattr("core.kafka.schema_registry.RETRY_S", 0.1)
    with schema_registry() as registry:
        registered(registry)
        schemas = SchemaRegistry(SchemaRegistryConfig(url=registry.url), CoreLimits())
        schemas.start()
        try:
            for number, form in enumerate(sorted(SOURCES), 1):
                found = found_in(schemas, form)
                assert isinstance(found, Encoding)
                assert found.id == number
            assert isinstance(found_in(schemas, "avro", 3), Unknown), "no such version"
            registry.add(9, Registered("AVRO", AVRO), "avro-value", 2)
            until = time.monotonic() + 10
            while getattr(found_in(schemas, "avro"), "id", 0) != 9:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert getattr(found_in(schemas, "avro", 1), "id", 0) == 1
            registry.down()
            time.sleep(0.5)
            assert getattr(schemas.find_subject("avro", "avro-value", 0), "id", 0) == 9
            assert schemas.find_subject("avro", "another", 0) is None
            registry.add(10, Registered("JSON", "{}"), "another")
            registry.up()
            until = time.monotonic() + 10
            while not isinstance(schemas.find_subject("avro", "another", 0), Unknown):
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            schemas._closing.set()
            schemas._queue.put(None)
