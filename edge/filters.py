"""Filters of derived channels: `[filter=BASE64]name` gives of `name` only the messages for which a JMESPath expression is true.

The expression is asked of an object with the message's `name` and its `headers` (`extras.headers`; `{}` if there are none). It comes from
whoever may subscribe, and runs in the loop that serves everybody: so it is short, and of the language only that is taken whose cost does
not grow faster than the expression and the headers do. Left out are lists, hashes, projections, slices, and functions over them; they have
little to do on flat headers. Source: jmespath.org, Specification; Ably protocol docs, 3.2.
"""

from __future__ import annotations

import base64
import binascii
import operator
import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from jmespath.exceptions import JMESPathError
from jmespath.lexer import Lexer
from jmespath.parser import Parser

from edge.turn import Stats
from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL
from relay.model.message import Message

Evaluate = Callable[[Any], Any]
Node = dict[str, Any]

_MAX_NUMBER = 64
"""Characters of a text that `to_number` looks at: all of any number that there is."""
_NUMBER = re.compile(r"([+-]?[0-9]+)|[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
"""Asked first: `int` and `float`, which refuse by exceptions, would be dearer than all else that there is."""
_URL_SAFE = str.maketrans("-_", "+/")


class Unfit(Exception):  # noqa: N818 - as in "unfit for the function"
    """A value is not of the type that a function takes."""


class Filter:
    """One expression on one channel. Equal expressions share it, however their attachments spell the channel."""

    __slots__ = ("__weakref__", "_evaluate", "_stats", "tokens")

    def __init__(self, expression: str, stats: Stats) -> None:
        """Raises RelayError 40010. `stats` counts messages for which it could not be evaluated: they do not match."""
        self.tokens, self._evaluate = _compiled(expression)
        """How many names, values, operators and brackets: about what it costs to ask it of a message."""
        self._stats = stats

    def matching(self, messages: Sequence[Message]) -> Sequence[int]:
        """The indices of those that match, in their order. About 1 µs a message for two comparisons."""
        evaluate = self._evaluate
        kept = []
        for index, message in enumerate(messages):
            headers = message.extras.get("headers") if message.extras is not None else None
            try:
                found = evaluate({"name": message.name, "headers": headers or {}})
            except Unfit:
                self._stats.filter_errors += 1
                continue
            if _true(found):
                kept.append(index)
        return kept


def expression_of(encoded: str) -> str:
    """What stands, in Base64 (either alphabet, padded or not), after `filter=`. Raises RelayError 40010."""
    try:
        text = base64.b64decode(encoded.rstrip("=").translate(_URL_SAFE) + "=" * (-len(encoded.rstrip("=")) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        raise RelayError(40010, "Invalid filter: not Base64 of UTF-8 text") from None
    if len(text) > PROTOCOL.max_filter_chars:
        raise RelayError(40010, f"Invalid filter: longer than {PROTOCOL.max_filter_chars} characters")
    return text


def _compiled(expression: str) -> tuple[int, Evaluate]:
    number = 0
    try:
        for number, _ in enumerate(Lexer().tokenize(expression)):
            if number > PROTOCOL.max_filter_tokens:  # the last one is the end
                raise RelayError(40010, f"Invalid filter: more than {PROTOCOL.max_filter_tokens} names, values, operators and brackets")
        tree = Parser().parse(expression).parsed
    except (JMESPathError, ValueError, LookupError, RecursionError):
        raise RelayError(40010, "Invalid filter: not a JMESPath expression") from None
    finally:
        Parser.purge()  # it would remember the last 512, however large
    return number, _evaluator(tree)


# --- the language ----------------------------------------------------------------------------------------------------------------------


def _evaluator(node: Node) -> Evaluate:
    """Raises RelayError 40010 for what is not taken."""
    match node["type"]:
        case "field":
            return _field(node["value"])
        case "literal":
            value = node["value"]
            return lambda _: value
        case "current" | "identity":
            return lambda given: given
        case "subexpression" | "pipe":  # of `a.b.c` the parser makes one with three children
            return reduce(_then, map(_evaluator, node["children"]))
        case "and_expression":
            one, other = map(_evaluator, node["children"])
            return lambda given: other(given) if _true(found := one(given)) else found
        case "or_expression":
            one, other = map(_evaluator, node["children"])
            return lambda given: found if _true(found := one(given)) else other(given)
        case "not_expression":
            (negated,) = map(_evaluator, node["children"])
            return lambda given: not _true(negated(given))
        case "comparator":
            return _comparison(node["value"], *node["children"])
        case "function_expression":
            return _function(node["value"], node["children"])
    raise RelayError(
        40010, "Invalid filter: lists, hashes, projections, slices and `&` are not supported here; a literal list is: `[1, 2]`"
    )


def _then(first: Evaluate, then: Evaluate) -> Evaluate:
    return lambda given: then(first(given))


def _true(value: Any) -> bool:
    """0 is true; so is all that is neither empty nor null nor false."""
    return value is True or not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


def _field(name: str) -> Evaluate:
    return lambda given: given.get(name) if isinstance(given, dict) else None


def _comparison(name: str, left: Node, right: Node) -> Evaluate:
    one, other = _evaluator(left), _evaluator(right)
    if name == "eq" and right["type"] == "literal" and isinstance(right["value"], str):  # what most are: in half the time
        text = right["value"]
        return lambda given: bool(one(given) == text)
    if name == "eq":
        return lambda given: _equal(one(given), other(given))
    if name == "ne":
        return lambda given: not _equal(one(given), other(given))
    compare = _ORDER[name]

    def ordered(given: Any) -> Any:
        a, b = one(given), other(given)
        comparable = (_number(a) and _number(b)) or (isinstance(a, str) and isinstance(b, str))
        return compare(a, b) if comparable else None

    return ordered


_ORDER: dict[str, Callable[[Any, Any], Any]] = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


def _equal(a: Any, b: Any) -> bool:
    """1 is not true."""
    return isinstance(a, bool) is isinstance(b, bool) and bool(a == b)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- functions -------------------------------------------------------------------------------------------------------------------------


def _function(name: str, children: list[Node]) -> Evaluate:
    takes = _TAKES.get(name)
    if takes is None:
        raise RelayError(40010, f"Invalid filter: the functions that are supported here are {', '.join(sorted(_TAKES))}")
    if not takes[0] <= len(children) <= takes[1]:
        raise RelayError(40010, f"Invalid filter: wrong number of arguments of {name}()")
    if name == "contains":
        return _contains(*children)
    arguments = [_evaluator(child) for child in children]
    if name == "not_null":
        return lambda given: next((found for each in arguments if (found := each(given)) is not None), None)
    if len(arguments) == 1:
        (argument,), unary = arguments, _UNARY[name]
        return lambda given: unary(argument(given))
    (text, part), ends = arguments, _ENDS[name]
    return lambda given: ends(_text(text(given)), _text(part(given)))


def _contains(subject: Node, search: Node) -> Evaluate:
    """One of the two is a literal: the text that is looked for, so that a search can be made of it that takes linear time (Python's `in`
    does not below 2,500 characters), or the list that is looked in."""
    among = subject["value"] if subject["type"] == "literal" else None
    if isinstance(among, list):
        sought = _evaluator(search)
        return lambda given: any(_equal(each, found) for found in (sought(given),) for each in among)
    part = search["value"] if search["type"] == "literal" else None
    if isinstance(part, str):
        text, find = _evaluator(subject), re.compile(re.escape(part)).search
        return lambda given: find(_text(text(given))) is not None
    raise RelayError(40010, "Invalid filter: contains() needs a literal text to look for, or a literal list to look in")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit
    return value


def _length(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise Unfit
    return len(value)


def _to_number(value: Any) -> Any:
    if _number(value):
        return value
    if not isinstance(value, str) or len(value) > _MAX_NUMBER:
        return None
    number = _NUMBER(value)
    return None if number is None else int(value) if number[1] else float(value)


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    return "number" if _number(value) else "array" if isinstance(value, list) else "object"


_UNARY: dict[str, Callable[[Any], Any]] = {"length": _length, "to_number": _to_number, "type": _type}
_ENDS: dict[str, Callable[[str, str], bool]] = {"starts_with": str.startswith, "ends_with": str.endswith}
_TAKES = {
    **dict.fromkeys(_UNARY, (1, 1)),
    **dict.fromkeys(_ENDS, (2, 2)),
    "contains": (2, 2),
    "not_null": (1, PROTOCOL.max_filter_tokens),
}
"""How many arguments, at least and at most."""
