"""What configuration of rules and mappings is checked against, by both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import re2

MAX_FILTER = 1_024
"""Longest channel filter, in characters."""
MAX_PROGRAM = 2_000
"""Largest channel filter, in instructions of its compiled form. A pass over a name costs at most so many steps for each byte (RE2
without its cache), and a search is two; `x{1000}` makes a thousand of six characters, `\\p{L}` 1,200."""
MAX_HEADERS = 32
"""Headers of a rule's own."""
MAX_HEADER_NAME = 128
MAX_HEADER_VALUE = 4_096
"""In characters."""

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_LEGAL_HEADER = re.compile(rf"[!-~]{{1,{MAX_HEADER_NAME}}}")
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
    """RE2: linear time whatever the expression, and little of it (`MAX_PROGRAM`). None for the empty pattern, which filters nothing.

    Raises ConfigError for `field`.
    """
    if not pattern:
        return None
    if len(pattern) > MAX_FILTER:
        raise ConfigError(field, f"longer than {MAX_FILTER} characters")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True  # only whether it matches is asked for, and groups cost another pass
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as wrong:
        why = wrong.args[0] if wrong.args else "does not compile"
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise ConfigError(field, f"not an RE2 expression: {text}") from wrong
    if compiled.programsize > MAX_PROGRAM:
        raise ConfigError(field, f"too costly: {compiled.programsize} instructions, at most {MAX_PROGRAM}")
    made: Filter = compiled
    return made


def static_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Headers that a rule adds to its records, as (name, value). Raises ConfigError."""
    made = []
    for name, value in headers:
        if not _LEGAL_HEADER.fullmatch(name):
            raise ConfigError("target.headers", f"a name must be 1-{MAX_HEADER_NAME} visible ASCII characters")
        if name.lower() == "content-type" or name.lower().startswith(("x-ably-", "x-tidegate-")):
            raise ConfigError("target.headers", f"{name} is written by every rule itself")
        if len(value) > MAX_HEADER_VALUE:
            raise ConfigError("target.headers", f"the value of {name} is longer than {MAX_HEADER_VALUE} characters")
        made.append((name, value.encode("utf-8", "surrogatepass")))
    if len(made) > MAX_HEADERS:
        raise ConfigError("target.headers", f"more than {MAX_HEADERS}")
    return made


def topic_fault(topic: str, prefix: str) -> TopicFault | None:
    """Why `topic` may not be used: not a Kafka name, or one of Tidegate's (`prefix`) or Kafka's own, which no channel name may choose."""
    if not _LEGAL_TOPIC.fullmatch(topic) or topic in (".", ".."):
        return "illegal_topic"
    if topic.startswith(("__", prefix + ".")) or topic == prefix:
        return "reserved_topic"
    return None
