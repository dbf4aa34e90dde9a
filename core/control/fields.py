"""Reading request bodies: each field is checked for itself, and all that is wrong with a body is said at once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec

from relay.model.capability import Capability
from relay.model.errors import RelayError

T = TypeVar("T")

MAX_TEXT = 2_048
"""Longest text field, in characters."""


class Invalid(RelayError):  # noqa: N818 - it says what happened
    """HTTP 422. `details`: field → what is wrong with it."""

    def __init__(self, details: dict[str, list[str]]) -> None:
        super().__init__(40000, "Invalid body: " + "; ".join(f"{field}: {', '.join(why)}" for field, why in details.items()), 422)
        self.details = details


def object_of(body: bytes) -> dict[str, Any]:
    """Raises: RelayError 40001; Invalid."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RelayError(40001, "Invalid body: not JSON") from None
    if not isinstance(found, dict):
        raise Invalid({"body": ["must be an object"]})
    return found


class Fields:
    """`patch`: fields that are not there stay as they are. Unknown fields are ignored: clients send more than the schema has."""

    def __init__(self, body: dict[str, Any], *, patch: bool = False) -> None:
        self._body = body
        self._patch = patch
        self.details: dict[str, list[str]] = {}

    def wrong(self, field: str, why: str) -> None:
        self.details.setdefault(field, []).append(why)

    def done(self) -> None:
        """Raises: Invalid."""
        if self.details:
            raise Invalid(self.details)

    def has(self, *fields: str) -> bool:
        return any(field in self._body for field in fields)

    def _take(self, fields: tuple[str, ...], default: T, known: Any, check: Callable[[Any], str | None]) -> Any:
        """Null is the default; what is not there stays, or is the default too. Of two spellings that say different things the one counts
        that is a change: clients send back what they were shown, with one of them changed."""
        given = [field for field in fields if field in self._body]
        for field in given:
            if self._body[field] is not None and (fault := check(self._body[field])):
                self.wrong(field, fault)
                return default
        if not given:
            return known if self._patch else default
        values = [default if self._body[field] is None else self._body[field] for field in given]
        return next((value for value in values if value != known), values[0])

    def text(self, *fields: str, default: str | None = None, known: Any = None, required: bool = False) -> Any:
        """Empty text counts as not given: Go clients send it so."""
        value = self._take(fields, default, known, _text_fault) or default
        if required and not value and fields[0] not in self.details:
            self.wrong(fields[0], "is required")
        return value

    def flag(self, *fields: str, known: Any = False) -> Any:
        return self._take(fields, False, known, lambda value: None if isinstance(value, bool) else "must be true or false")

    def number(self, *fields: str, low: int, high: int, default: int | None = None, known: Any = None) -> Any:
        def check(value: Any) -> str | None:
            return None if type(value) is int and low <= value <= high else f"must be a whole number from {low} to {high}"

        return self._take(fields, default, known, check)

    def choice(self, field: str, choices: Collection[str], *, default: str, known: Any = None) -> Any:
        def check(value: Any) -> str | None:
            return None if isinstance(value, str) and (value in choices or not value) else f"must be one of {', '.join(choices)}"

        return self._take((field,), default, known, check) or default

    def capability(self, field: str, *, known: Any = None) -> Any:
        """As it was sent, once it is known to be one: an object of resource → operations, or the same as JSON text. There is no default:
        a slip of the pen must not make a key that may do everything."""
        value = self._take((field,), None, known, _capability_fault)
        if value is None and field not in self.details:
            self.wrong(field, "is required")
        return msgspec.json.decode(value) if isinstance(value, str) else value

    def unsupported(self, *fields: str, why: str) -> None:
        """Fields that are refused rather than lost, unless they say nothing."""
        for field in fields:
            if self._body.get(field) not in (None, "", False):
                self.wrong(field, why)


def capability_of(asked: dict[str, Any]) -> Capability:
    """What the data plane makes of it. The public tools call the operation `stats` `statistics`. Raises: RelayError 40000."""
    return Capability.parse(
        {
            resource: ["stats" if one == "statistics" else one for one in operations] if isinstance(operations, list) else operations
            for resource, operations in asked.items()
        }
    )


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return f"must be text of at most {MAX_TEXT} characters"
    return None if value.isprintable() else "must not have control characters"


def _capability_fault(value: Any) -> str | None:
    try:
        asked = msgspec.json.decode(value) if isinstance(value, str) else value
        if not isinstance(asked, dict) or not asked:
            return "must be an object of resource and list of operations"
        capability_of(asked)
    except (msgspec.MsgspecError, RecursionError):
        return "must be an object of resource and list of operations"
    except RelayError as error:
        return error.info.message.removeprefix("Invalid capability: ")
    return None
