"""Channel and message names from records. Source: Ably protocol docs, Kafka Connector, template grammar.

A placeholder is `#{`, one or more characters other than `}`, `}`: no white space, filters or escapes. `topic`, `topic.name`,
`topic.partition` and `key` are known here; fields of structured keys and values need a schema and are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

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
    headers: list[tuple[str, bytes | None]]


class NoTextError(Exception):
    """A value that a template refers to has no text form: null, or bytes that are not UTF-8."""


Value = Callable[[SourceRecord], str]

_PLACEHOLDER = re.compile(r"#\{([^}]+)\}")
_FIELD = re.compile(r"(key|value)(\.[^.]+)+")


def _topic(record: SourceRecord) -> str:
    return record.topic


def _partition(record: SourceRecord) -> str:
    return str(record.partition)


def _key(record: SourceRecord) -> str:
    if record.key is None:
        raise NoTextError("the record has no key")
    try:
        return record.key.decode()
    except UnicodeDecodeError as wrong:
        raise NoTextError("the key is not UTF-8") from wrong


VALUES: dict[str, Value] = {"topic": _topic, "topic.name": _topic, "topic.partition": _partition, "key": _key}
"""Every placeholder and how it is evaluated."""


class Template:
    """A parsed template. `field` names the setting in errors."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str, field: str) -> None:
        """Raises ConfigError."""
        if len(text) > MAX_TEMPLATE:
            raise ConfigError(field, f"longer than {MAX_TEMPLATE} characters")
        self.text = text
        parts: list[str | Value] = []
        at = 0
        for found in _PLACEHOLDER.finditer(text):
            if found.start() > at:
                parts.append(text[at : found.start()])
            parts.append(_value(found[1], field))
            at = found.end()
        if at < len(text):
            parts.append(text[at:])
        self._parts = tuple(parts)

    @property
    def static(self) -> bool:
        return all(isinstance(part, str) for part in self._parts)

    def render(self, record: SourceRecord) -> str:
        """Raises NoTextError."""
        return "".join([part if isinstance(part, str) else part(record) for part in self._parts])


def _value(name: str, field: str) -> Value:
    value = VALUES.get(name)
    if value is not None:
        return value
    if _FIELD.fullmatch(name):
        raise ConfigError(field, f"#{{{name}}} refers to a field, which needs a schema; this version knows {_known()}")
    raise ConfigError(field, f"#{{{name}}} is not a placeholder; known are {_known()}")


def _known() -> str:
    return ", ".join(f"#{{{name}}}" for name in VALUES)
