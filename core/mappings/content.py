"""What a key or a value says: data of a message, and fields that templates refer to. Source: Ably protocol docs, Kafka Connector."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec

from core.mappings.schemas import SCHEMA_FORMATS, Decoder, Framed, SchemaFormat, Schemas, UndecodableError, Unknown

Format = Literal["auto", "bytes", "string", "json", "avro", "protobuf", "json_schema"]
"""What keys or values are. `auto`: a JSON object or array is data with encoding `json`, other UTF-8 a string, everything else binary. The
last three are in Schema Registry's framing."""
FIELDS: frozenset[Format] = frozenset({"auto", "json", *SCHEMA_FORMATS})
"""Formats whose fields a template can refer to."""

FailReason = Literal[
    "no_text", "missing_field", "illegal_channel", "undecodable", "unknown_schema", "unsupported_type", "oversize", "refused"
]


class FailedError(Exception):
    """The record cannot become a message. `reason` is the label of the counter, `detail` is for the log and holds no payload."""

    def __init__(self, reason: FailReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: FailReason = reason
        self.detail = detail


class DelayedError(Exception):
    """Schema Registry has not answered yet, for the schema of this id."""

    def __init__(self, schema: int) -> None:
        super().__init__(f"waiting for schema {schema}")
        self.schema = schema


class _Unread:
    pass


_UNREAD = _Unread()
_OPENING = (b"{", b"[")
_ANY = msgspec.json.Decoder(msgspec.Raw)
_JSON = msgspec.json.Encoder(decimal_format="number")
_LEAST, _MOST = -(2**63), 2**63 - 1


class Content:
    """One key or value. `data` and `encoding` are those of a message."""

    __slots__ = ("_structured", "_tree", "data", "encoding", "what")

    def __init__(
        self, what: str, data: str | bytes | None, encoding: str | None = None, *, structured: bool = False, tree: Any = _UNREAD
    ) -> None:
        """`tree`: dicts, lists and scalars; left out, they are read from `data` when first asked for. `structured`: the text of the whole
        is that of the tree, not of `data`."""
        self.what = what
        self.data = data
        self.encoding = encoding
        self._structured = structured
        self._tree = tree

    @property
    def tree(self) -> Any:
        """Raises FailedError if the content has no fields."""
        if self._tree is _UNREAD:
            try:
                self._tree = msgspec.json.decode(self.data or "")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise FailedError("missing_field", f"the {self.what} has no fields: it is no JSON") from None
        return self._tree

    @property
    def whole(self) -> Any:
        """What the content is when it is not taken apart. Raises FailedError."""
        return self.tree if self._structured else self.data

    def text(self) -> str:
        """The text of the whole: what `#{key}` stands for. Raises FailedError."""
        return text_of(self.whole, f"the {self.what}")

    def field(self, path: Sequence[str | int], name: str) -> str:
        """The text of the field at `path`; `name` is how a template spells it. Raises FailedError."""
        at = self.tree
        for step in path:
            if isinstance(step, int):
                if not isinstance(at, list) or step >= len(at):
                    raise FailedError("missing_field", f"#{{{name}}} is not there")
                at = at[step]
            else:
                if not isinstance(at, dict) or step not in at:
                    raise FailedError("missing_field", f"#{{{name}}} is not there")
                at = at[step]
        return text_of(at, f"#{{{name}}}")


def text_of(value: Any, name: str) -> str:
    """Strings as they are, integers of 64 bits and booleans as JSON spells them, bytes that are UTF-8. Raises FailedError."""
    if type(value) is str:
        return value
    match value:
        case bool():
            return "true" if value else "false"
        case int() if _LEAST <= value <= _MOST:
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise FailedError("no_text", f"{name} is not UTF-8") from None
        case None:
            raise FailedError("no_text", f"{name} is null")
        case _:
            raise FailedError("no_text", f"{name} has no text form")


Reader = Callable[[bytes | None, Schemas | None], Content]
"""Raises FailedError, DelayedError."""


def reader(what: str, form: Format) -> Reader:
    """How keys or values of a format are read; `what` is "key" or "value". One function for each: every record comes through here."""
    match form:
        case "auto":
            read: Callable[[str, bytes, Schemas | None], Content] = _auto
        case "bytes":
            read = _binary
        case "string":
            read = _string
        case "json":
            read = _json
        case "avro" | "protobuf" | "json_schema":
            read = functools.partial(_framed, form)

    def read_or_none(raw: bytes | None, schemas: Schemas | None) -> Content:
        return Content(what, None, tree=None) if raw is None else read(what, raw, schemas)

    return read_or_none


def _auto(what: str, raw: bytes, _: Schemas | None) -> Content:
    if raw[:1] in _OPENING or raw.lstrip()[:1] in _OPENING:
        try:
            return Content(what, _json_text(raw, what), "json")
        except FailedError:
            pass
    try:
        return Content(what, raw.decode())
    except UnicodeDecodeError:
        return Content(what, raw)


def _binary(what: str, raw: bytes, _: Schemas | None) -> Content:
    return Content(what, raw)


def _string(what: str, raw: bytes, _: Schemas | None) -> Content:
    try:
        return Content(what, raw.decode())
    except UnicodeDecodeError:
        raise FailedError("undecodable", f"the {what} is not UTF-8") from None


def _json(what: str, raw: bytes, _: Schemas | None) -> Content:
    return Content(what, _json_text(raw, what), "json", structured=True)


def _json_text(raw: bytes, what: str) -> str:
    """`raw` as text, unchanged, if it is one JSON value. Raises FailedError."""
    try:
        _ANY.decode(raw)
        text = raw.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FailedError("undecodable", f"the {what} is not JSON") from None
    return text


def _framed(form: SchemaFormat, what: str, raw: bytes, schemas: Schemas | None) -> Content:
    """Objects become JSON text, strings and bytes stay what they are, null is no data; other types are not mapped."""
    try:
        framed = Framed.parse(raw)
    except UndecodableError as wrong:
        raise FailedError("undecodable", f"the {what} {wrong}") from None
    found = None if schemas is None else schemas.find(form, framed.schema)
    match found:
        case None:
            raise DelayedError(framed.schema)
        case Unknown(why):
            raise FailedError("unknown_schema", f"the {what} has schema {framed.schema}: {why}")
        case decode:
            tree = _decoded(decode, framed.payload, what, framed.schema)
    if what == "key":  # only text is made of it, by templates
        return Content(what, None, structured=True, tree=tree)
    match tree:
        case dict():
            return Content(what, struct_json(tree, what), "json", structured=True, tree=tree)
        case str() | bytes() | None:
            return Content(what, tree, tree=tree)
        case _:
            raise FailedError("unsupported_type", f"the {what} is neither an object nor a string nor bytes")


def _decoded(decode: Decoder, payload: bytes, what: str, schema: int) -> Any:
    try:
        return decode(payload)
    except UndecodableError as wrong:
        raise FailedError("undecodable", f"the {what} is not what its schema {schema} says ({wrong})") from None


def struct_json(tree: dict[str, Any], what: str) -> str:
    """JSON text, nulls kept. Raises FailedError for bytes and for numbers that JSON does not have."""
    try:
        _check_json(tree, what)
        return _JSON.encode(tree).decode()
    except RecursionError:
        raise FailedError("unsupported_type", f"the {what} is nested too deeply") from None


def _check_json(value: Any, what: str) -> None:
    match value:
        case dict():
            for inner in value.values():
                _check_json(inner, what)
        case list():
            for inner in value:
                _check_json(inner, what)
        case bytes():
            raise FailedError("unsupported_type", f"the {what} has a field of bytes, which JSON has no form for")
        case float() if not math.isfinite(value):
            raise FailedError("unsupported_type", f"the {what} has a number that JSON has no form for")
        case Decimal() if not value.is_finite():
            raise FailedError("unsupported_type", f"the {what} has a number that JSON has no form for")
        case _:
            return
