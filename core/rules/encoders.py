"""Encoders made of schemas: what a client sent as JSON, in Avro, Protobuf, or as it is once JSON Schema has found it valid. Pure.

Apart from `core.rules.schema`, so that a core without such rules does not load the libraries.
"""

from __future__ import annotations

import io
from typing import Any

import fastavro
import msgspec
from google.protobuf import json_format, message_factory

from core.mappings.decoders import Source, UnusableError, avro_schema, decoder, made, protobuf_file
from core.mappings.schemas import SchemaFormat, UndecodableError
from core.rules.schema import Encoder, InvalidError

_FIRST_MESSAGE = b"\0"
"""Place of the message within its file: the first one."""


def encoder(form: SchemaFormat, source: Source) -> Encoder:
    """Raises UnusableError."""
    return made({"avro": _avro, "protobuf": _protobuf, "json_schema": _json_schema}, form, source)


def _json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidError("not JSON") from None


def _avro(source: Source) -> Encoder:
    schema = avro_schema(source)

    def encode(payload: bytes) -> bytes:
        value = _json(payload)
        stream = io.BytesIO()
        try:
            fastavro.schemaless_writer(stream, schema, value, strict_allow_default=True)
        except Exception as wrong:  # it has no base class for what values make it raise
            raise InvalidError(type(wrong).__name__) from None
        return stream.getvalue()

    return encode


def _json_schema(source: Source) -> Encoder:
    check = decoder("json_schema", source)

    def encode(payload: bytes) -> bytes:
        try:
            check(payload)
        except UndecodableError as wrong:
            raise InvalidError(str(wrong)) from None
        return payload

    return encode


def _protobuf(source: Source) -> Encoder:
    pool, main = protobuf_file(source)
    if not main.message_type:
        raise UnusableError("it has no message")
    name = ".".join(part for part in (main.package, main.message_type[0].name) if part)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

    def encode(payload: bytes) -> bytes:
        value = _json(payload)
        if not isinstance(value, dict):
            raise InvalidError("not an object")
        try:
            message = json_format.ParseDict(value, kind(), descriptor_pool=pool)
            found: bytes = message.SerializeToString()
        except Exception as wrong:  # of two modules, neither of which names them all: a required field that is not there, for one
            raise InvalidError(type(wrong).__name__) from None
        return _FIRST_MESSAGE + found

    return encode
