"""Routing keys: templates that are parsed once and evaluated per message.

    template   := ( text | "#{" ws expr ws "}" )*
    expr       := operand ( ws "|" ws filter )?
    operand    := variable | "(" variable ( "," variable )* ")"      # a tuple needs a filter
    variable   := "channelName" | "message.name" | "message.id" | "message.clientId" | "message.extras.headers['" name "']"
    filter     := "hash" [ "(" base ")" ] | "moduloHash" "(" buckets [ "," base ] ")"

Missing values are the empty string. Source: Ably protocol docs, Kafka rules, routing key.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from relay.model.message import Message

Value = Callable[[str, Message], str]
"""(channel name, message) → text."""

MAX_TEMPLATE = 4_096
"""Longest template, in characters."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TUPLE_SEPARATOR = "\x1f"
"""Joins the members of a tuple before they are hashed, so that ("a", "bc") and ("ab", "c") differ."""


class TemplateError(ValueError):
    """The template does not follow the grammar. The text says what, and at which character (counted from 1)."""


class Template:
    """A parsed template. `text` is its source."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        """Raises TemplateError."""
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"longer than {MAX_TEMPLATE} characters")
        self.text = text
        self._parts = _Parser(text).template()

    @property
    def static_prefix(self) -> str:
        """The text before the first placeholder: all of a template that has none."""
        return self._parts[0] if self._parts and isinstance(self._parts[0], str) else ""

    @property
    def static(self) -> bool:
        return all(isinstance(part, str) for part in self._parts)

    def render(self, channel: str, message: Message) -> str:
        return "".join([part if isinstance(part, str) else part(channel, message) for part in self._parts])


# --- values --------------------------------------------------------------------------------------------------------------------------


def _channel_name(channel: str, _message: Message) -> str:
    return channel


def _message_name(_channel: str, message: Message) -> str:
    return message.name or ""


def _message_id(_channel: str, message: Message) -> str:
    return message.id or ""


def _message_client_id(_channel: str, message: Message) -> str:
    return message.client_id or ""


_VARIABLES: dict[str, Value] = {
    "channelName": _channel_name,
    "message.name": _message_name,
    "message.id": _message_id,
    "message.clientId": _message_client_id,
}


def _header(name: str) -> Value:
    def value(_channel: str, message: Message) -> str:
        headers = message.extras.get("headers") if message.extras else None
        return scalar_text(headers.get(name)) if isinstance(headers, dict) else ""

    return value


def scalar_text(value: object) -> str:
    """Text of a header value: strings as they are, numbers and booleans as JSON spells them, everything else empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # JSON knows one kind of number: 1.0 that came by msgpack and 1 that came by JSON give one key.
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return ""


def _joined(members: list[Value]) -> Value:
    def value(channel: str, message: Message) -> str:
        return _TUPLE_SEPARATOR.join([member(channel, message) for member in members])

    return value


# --- filters -------------------------------------------------------------------------------------------------------------------------


def _hashed(operand: Value, buckets: int | None, base: int) -> Value:
    def value(channel: str, message: Message) -> str:
        number = fingerprint(operand(channel, message).encode("utf-8", "surrogatepass"))
        return in_base(number if buckets is None else number % buckets, base)

    return value


def in_base(number: int, base: int) -> str:
    """`number` ≥ 0 in base 2-36, lower case."""
    digits = []
    while True:
        number, digit = divmod(number, base)
        digits.append(_DIGITS[digit])
        if not number:
            return "".join(reversed(digits))


def fingerprint(data: bytes) -> int:
    """MurmurHash3 x86 32 with seed 0. Source: Austin Appleby's description; the rule's hash function is not public, so this is ours."""
    c1, c2, mask = 0xCC9E2D51, 0x1B873593, 0xFFFFFFFF
    h = 0
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = (int.from_bytes(data[at : at + 4], "little") * c1) & mask
        h ^= (((k << 15) | (k >> 17)) * c2) & mask
        h = (((h << 13) | (h >> 19)) * 5 + 0xE6546B64) & mask
    if whole < len(data):
        k = (int.from_bytes(data[whole:], "little") * c1) & mask
        h ^= (((k << 15) | (k >> 17)) * c2) & mask
    h ^= len(data) & mask
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & mask
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & mask
    return h ^ (h >> 16)


# --- parser --------------------------------------------------------------------------------------------------------------------------

_WS = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[A-Za-z]+(?:\.[A-Za-z]+)*")
_HEADER_NAME = re.compile(r"\['([^']+)'\]")
_NUMBER = re.compile(r"[0-9]{1,10}")


class _Parser:
    """Recursive descent over the grammar at the top. One use."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def template(self) -> tuple[str | Value, ...]:
        parts: list[str | Value] = []
        while self._at < len(self._text):
            start = self._text.find("#{", self._at)
            if start < 0:
                parts.append(self._text[self._at :])
                break
            if start > self._at:
                parts.append(self._text[self._at : start])
            self._at = start + 2
            parts.append(self._expression())
        return tuple(parts)

    def _expression(self) -> Value:
        self._skip()
        is_tuple = self._take("(")
        if is_tuple:
            members = [self._variable()]
            while self._take(","):
                members.append(self._variable())
            self._need(")")
            operand = members[0] if len(members) == 1 else _joined(members)
        else:
            operand = self._variable()
        self._skip()
        if self._take("|"):
            operand = self._filter(operand)
        elif is_tuple:
            raise self._error("a tuple needs a filter: hash or moduloHash")
        self._need("}")
        return operand

    def _variable(self) -> Value:
        self._skip()
        start = self._at
        word = self._match(_WORD)
        if word == "message.extras.headers":
            name = _HEADER_NAME.match(self._text, self._at)
            if name is None:
                raise self._error("expected ['name'] after message.extras.headers")
            self._at = name.end()
            value = _header(name[1])
        elif word in _VARIABLES:
            value = _VARIABLES[word]
        else:
            self._at = start
            known = ", ".join([*_VARIABLES, "message.extras.headers['name']"])
            raise self._error(f"expected one of {known}")
        self._skip()
        return value

    def _filter(self, operand: Value) -> Value:
        self._skip()
        start = self._at
        name = self._match(_WORD)
        if name == "hash":
            base = self._base() if self._take("(") else None
            if base is not None:
                self._need(")")
            value = _hashed(operand, None, 16 if base is None else base)
        elif name == "moduloHash":
            self._need("(")
            buckets = self._number()
            if not 1 <= buckets <= 2**32:
                raise self._error("buckets must lie between 1 and 4294967296")
            self._skip()
            base = self._base() if self._take(",") else 16
            self._need(")")
            value = _hashed(operand, buckets, base)
        else:
            self._at = start
            raise self._error("expected a filter: hash or moduloHash")
        self._skip()
        return value

    def _base(self) -> int:
        base = self._number()
        if not 2 <= base <= 36:
            raise self._error("a base must lie between 2 and 36")
        return base

    def _number(self) -> int:
        self._skip()
        digits = self._match(_NUMBER)
        if not digits:
            raise self._error("expected a number")
        self._skip()
        return int(digits)

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _skip(self) -> None:
        self._match(_WS)

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _need(self, token: str) -> None:
        if not self._take(token):
            raise self._error(f"expected {token}")

    def _error(self, what: str) -> TemplateError:
        return TemplateError(f"{what} at character {self._at + 1}")
