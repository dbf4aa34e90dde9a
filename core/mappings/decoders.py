"""Decoders made of schemas: Avro by fastavro, Protobuf by descriptors, JSON Schema by jsonschema. Pure.

Apart from `core.mappings.schemas`, so that a core without such mappings does not load the three libraries.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import importlib
import io
import json
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import fastavro
import jsonschema
import msgspec
import referencing
import referencing.jsonschema
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from core.mappings.schemas import Decoder, SchemaFormat, UndecodableError, read_indexes

T = TypeVar("T")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_FIRST_DAY = datetime.date(1970, 1, 1)


class Source(NamedTuple):
    """A schema as the registry has it. `references` are (name, text), those first that others refer to; Protobuf texts are file
    descriptors in base64, what the registry gives for `format=serialized`."""

    text: str
    references: tuple[tuple[str, str], ...] = ()


class UnusableError(ValueError):
    """No decoder can be made of the schema. The text says why."""


def decoder(form: SchemaFormat, source: Source) -> Decoder:
    """Raises UnusableError."""
    return made({"avro": _avro, "protobuf": _protobuf, "json_schema": _json_schema}, form, source)


def made(make: Mapping[SchemaFormat, Callable[[Source], T]], form: SchemaFormat, source: Source) -> T:
    """Raises UnusableError."""
    try:
        return make[form](source)
    except UnusableError:
        raise
    except Exception as wrong:  # three libraries, each with errors of its own
        raise UnusableError(f"the registry's schema cannot be used ({type(wrong).__name__})") from wrong


# --- Avro ----------------------------------------------------------------------------------------------------------------------------


def avro_schema(source: Source) -> Any:
    """As fastavro takes it, with what it refers to."""
    named: dict[str, Any] = {}
    for _, text in source.references:
        fastavro.parse_schema(json.loads(text), named_schemas=named)
    return fastavro.parse_schema(json.loads(source.text), named_schemas=named)


def _avro(source: Source) -> Decoder:
    schema = avro_schema(source)

    def decode(payload: bytes) -> Any:
        stream = io.BytesIO(payload)
        try:
            value = _plain(fastavro.schemaless_reader(stream, schema, None))
        except Exception as wrong:  # it has no base class for what damaged bytes make it raise
            raise UndecodableError(type(wrong).__name__) from None
        if stream.read(1):
            raise UndecodableError("too long")
        return value

    return decode


def _plain(value: Any) -> Any:
    """Avro's logical types as numbers and strings."""
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case datetime.datetime():
            at = value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
            return (at - _EPOCH) // datetime.timedelta(milliseconds=1)
        case datetime.date():
            return (value - _FIRST_DAY).days
        case datetime.time():
            return ((value.hour * 60 + value.minute) * 60 + value.second) * 1000 + value.microsecond // 1000
        case uuid.UUID():
            return str(value)
        case _:
            return value


# --- JSON Schema ---------------------------------------------------------------------------------------------------------------------


def _json_schema(source: Source) -> Decoder:
    schema = json.loads(source.text)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft7Validator)
    kind.check_schema(schema)
    # No retrieval: a schema cannot make a core fetch what it names.
    registry: Any = referencing.Registry().with_resources(
        (name, referencing.Resource.from_contents(json.loads(text), default_specification=referencing.jsonschema.DRAFT7))
        for name, text in source.references
    )
    validator = kind(schema, registry=registry)

    def decode(payload: bytes) -> Any:
        try:
            value = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UndecodableError("not JSON") from None
        try:
            valid = validator.is_valid(value)
        except Exception as wrong:  # a reference that leads nowhere, nesting without end
            raise UndecodableError(type(wrong).__name__) from None
        if not valid:
            raise UndecodableError("not valid by it")
        return value

    return decode


# --- Protobuf ------------------------------------------------------------------------------------------------------------------------

_COMMON = ("google.protobuf", "google.type")
"""Packages of files that schemas import without registering them."""


def protobuf_file(source: Source) -> tuple[descriptor_pool.DescriptorPool, descriptor_pb2.FileDescriptorProto]:
    """The file of the schema, in a pool with all that it imports. Raises UnusableError, and what the library raises."""
    pool = descriptor_pool.DescriptorPool()
    files = {name: _file(name, text) for name, text in source.references}
    main = _file("main.proto", source.text)
    added: set[str] = set()

    def add(file: descriptor_pb2.FileDescriptorProto) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for name in file.dependency:
            add(files[name] if name in files else _common_file(name))
        pool.Add(file)

    add(main)
    pool.FindFileByName(main.name)  # raises what is wrong with it now, not at the first record
    return pool, main


def _protobuf(source: Source) -> Decoder:
    pool, main = protobuf_file(source)
    classes: dict[tuple[int, ...], Any] = {}

    def decode(payload: bytes) -> Any:
        indexes, body = read_indexes(payload)
        kind = classes.get(tuple(indexes))
        if kind is None:
            descriptor = pool.FindMessageTypeByName(_full_name(main, indexes))
            kind = classes[tuple(indexes)] = message_factory.GetMessageClass(descriptor)
        message = kind()
        try:
            message.ParseFromString(body)
            return _message(message)
        except Exception as wrong:  # the library's own, and values that no date or number can be made of
            raise UndecodableError(type(wrong).__name__) from None

    return decode


def _file(name: str, text: str) -> descriptor_pb2.FileDescriptorProto:
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        raise UnusableError("the registry gives no file descriptor (format=serialized) of the Protobuf schema") from None
    file.name = name
    return file


def _common_file(name: str) -> descriptor_pb2.FileDescriptorProto:
    module = name.removesuffix(".proto").replace("/", ".")
    if module.rpartition(".")[0] not in _COMMON:
        raise UnusableError("a file that the Protobuf schema imports is not among its references")
    file = descriptor_pb2.FileDescriptorProto()
    try:
        importlib.import_module(module + "_pb2").DESCRIPTOR.CopyToProto(file)
    except ImportError:
        raise UnusableError("the Protobuf schema imports a file that there is not") from None
    return file


def _full_name(file: descriptor_pb2.FileDescriptorProto, indexes: list[int]) -> str:
    """Raises UndecodableError."""
    names = [file.package] if file.package else []
    level: Any = file.message_type
    for index in indexes:
        if not 0 <= index < len(level):
            raise UndecodableError("message indexes")
        names.append(level[index].name)
        level = level[index].nested_type
    return ".".join(names)


def _message(message: Message) -> Any:
    """Fields by their names, all of them: a field that has presence and is not set is None."""
    special = _SPECIAL.get(message.DESCRIPTOR.full_name)
    if special is not None:
        return special(message)
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: FieldDescriptor) -> Any:
    if field.is_repeated:
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            return _map(value, kind)
        return [_scalar(one, field) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _scalar(getattr(message, field.name), field)


def _map(value: Any, entry: Descriptor) -> dict[str, Any]:
    key, inner = entry.fields_by_name["key"], entry.fields_by_name["value"]
    if key.type == FieldDescriptor.TYPE_BOOL:
        return {"true" if name else "false": _scalar(value[name], inner) for name in value}
    return {str(name): _scalar(value[name], inner) for name in value}


def _scalar(value: Any, field: FieldDescriptor) -> Any:
    if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP):
        return _message(value)
    if field.type == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value


def _date(message: Any) -> int:
    return (datetime.date(message.year, message.month, message.day) - _FIRST_DAY).days


def _wrapped(message: Any) -> Any:
    return message.value


def _decimal(message: Any) -> Decimal:
    """`confluent.type.Decimal`: an unscaled number in two's complement, and a scale."""
    return Decimal(int.from_bytes(message.value, "big", signed=True)).scaleb(-message.scale)


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": lambda message: message.seconds * 1000 + message.nanos // 1_000_000,
    "google.type.Date": _date,
    "google.type.TimeOfDay": lambda m: ((m.hours * 60 + m.minutes) * 60 + m.seconds) * 1000 + m.nanos // 1_000_000,
    "confluent.type.Decimal": _decimal,
    **{
        f"google.protobuf.{kind}Value": _wrapped
        for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
    },
}
"""Messages that stand for scalars, by full name."""
