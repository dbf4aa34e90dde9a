"""Channel and message names from records. Source: Ably protocol docs, Kafka Connector, template grammar.

    template    := ( text | "#{" placeholder "}" )*
    placeholder := "topic" | "topic.name" | "topic.partition" | "key" | ( "key" | "value" ) path | "headers." name
    path        := ( "." field ( "[" index "]" )* )+          # a field has no '.', '[' or ']' in its name
    name        := what follows, dots included

What stands between the braces is taken as it is: no white space around it, no filters, no escapes; what replaces it is taken literally.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from core.mappings.content import FIELDS, Content, FailedError, Format, text_of
from core.rules.checks import ConfigError

MAX_TEMPLATE = 4_096
"""Longest template, in characters."""


class SourceRecord(NamedTuple):
    """One record of a mapped topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] | None
    """None: they cannot be had, as one of them has a name that is not UTF-8."""


class View(NamedTuple):
    """What templates see of a record."""

    record: SourceRecord
    key: Content
    value: Content


Value = Callable[[View], str]
"""Raises FailedError."""

_PLACEHOLDER = re.compile(r"#\{([^}]+)\}")
_PATH = re.compile(r"(key|value)((?:\.[^.\[\]]+(?:\[[0-9]{1,9}\])*)+)", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([0-9]+)\]", re.DOTALL)
_HEADER = "headers."


def _topic(view: View) -> str:
    return view.record.topic


def _partition(view: View) -> str:
    return str(view.record.partition)


def _key(view: View) -> str:
    return view.key.text()


VALUES: dict[str, Value] = {"topic": _topic, "topic.name": _topic, "topic.partition": _partition, "key": _key}
"""The placeholders that are single words, and how they are evaluated."""
KNOWN = (*VALUES, "key.FIELD", "value.FIELD", "headers.NAME")


class Template:
    """A parsed template. `field` names the setting in errors; `key` and `value` are the formats of the mapping."""

    __slots__ = ("_key", "_parts", "_value", "text")

    def __init__(self, text: str, field: str, key: Format = "auto", value: Format = "auto") -> None:
        """Raises ConfigError."""
        if len(text) > MAX_TEMPLATE:
            raise ConfigError(field, f"longer than {MAX_TEMPLATE} characters")
        self.text = text
        self._key = key
        self._value = value
        parts: list[str | Value] = []
        at = 0
        for found in _PLACEHOLDER.finditer(text):
            if found.start() > at:
                parts.append(text[at : found.start()])
            parts.append(self._placeholder(found[1], field))
            at = found.end()
        if at < len(text):
            parts.append(text[at:])
        self._parts = tuple(parts)

    @property
    def static(self) -> bool:
        return all(isinstance(part, str) for part in self._parts)

    def render(self, view: View) -> str:
        """Raises FailedError."""
        return "".join([part if isinstance(part, str) else part(view) for part in self._parts])

    def _placeholder(self, name: str, field: str) -> Value:
        value = VALUES.get(name)
        if value is not None:
            return value
        if name.startswith(_HEADER) and len(name) > len(_HEADER):
            return _header(name)
        if path := _PATH.fullmatch(name):
            form = self._key if path[1] == "key" else self._value
            if form not in FIELDS:
                raise ConfigError(field, f"#{{{name}}} refers to a field, which a {path[1]} of format {form!r} has none of")
            return _field(path[1], path[2], name)
        raise ConfigError(field, f"#{{{name}}} is not a placeholder; known are {', '.join(f'#{{{known}}}' for known in KNOWN)}")


def _field(what: str, path: str, name: str) -> Value:
    steps: list[str | int] = [step[1] if step[1] is not None else int(step[2]) for step in _STEP.finditer(path)]
    if what == "key":
        return lambda view: view.key.field(steps, name)
    return lambda view: view.value.field(steps, name)


def _header(name: str) -> Value:
    wanted = name.removeprefix(_HEADER)

    def value(view: View) -> str:
        for header, content in reversed(view.record.headers or ()):
            if header == wanted:
                return text_of(content, f"#{{{name}}}")
        raise FailedError("missing_field", f"#{{{name}}} is not there")

    return value
