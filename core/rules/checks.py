"""What configuration of rules and mappings is checked against, by both."""

from __future__ import annotations

import re
from typing import Any, Literal, Protocol

import re2

MAX_FILTER = 1_024
"""Longest channel filter, in characters."""

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_LEGAL_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

TopicFault = Literal["illegal_topic", "reserved_topic"]


class ConfigError(ValueError):
    """A rule or mapping that cannot run. `field` is the path below the rule or mapping, `reason` what to do about it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Filter(Protocol):
    """A compiled filter; None from `search` and `fullmatch` means no match."""

    def search(self, text: str) -> Any: ...

    def fullmatch(self, text: str) -> Any: ...


def check_id(value: str) -> None:
    """Ids become Kafka headers, group names and metric labels. Raises ConfigError."""
    if not _LEGAL_ID.fullmatch(value):
        raise ConfigError("id", "must be 1-128 characters of A-Z, a-z, 0-9, '.', '_' and '-'")


def compile_filter(pattern: str, field: str = "source.channel_filter") -> Filter | None:
    """RE2: linear time whatever the expression. None for the empty pattern, which filters nothing. Raises ConfigError for `field`."""
    if not pattern:
        return None
    if len(pattern) > MAX_FILTER:
        raise ConfigError(field, f"longer than {MAX_FILTER} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled: Filter = re2.compile(pattern, options)
    except re2.error as wrong:
        why = wrong.args[0] if wrong.args else "does not compile"
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise ConfigError(field, f"not an RE2 expression: {text}") from wrong
    return compiled


def topic_fault(topic: str, prefix: str) -> TopicFault | None:
    """Why `topic` may not be used: not a Kafka name, or one of Tidegate's (`prefix`) or Kafka's own, which no channel name may choose."""
    if not _LEGAL_TOPIC.fullmatch(topic) or topic in (".", ".."):
        return "illegal_topic"
    if topic.startswith(("__", prefix + ".")) or topic == prefix:
        return "reserved_topic"
    return None
