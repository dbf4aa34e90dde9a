"""Channel params of ATTACH: which are recognised, and which modes they ask for. Source: specification RTL4k, TB2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge.ably.protocol import DEFAULT_MODES, MODE_MASK, MODE_NAMES
from relay.model.errors import RelayError
from relay.model.occupancy import METRICS

_VALUES = {"rewind": re.compile(r"([0-9]{1,9})([sm]?)\Z"), "rewindLimit": re.compile(r"[0-9]{1,9}\Z")}
METRICS_PARAM = "occupancy"
_OCCUPANCY = frozenset({"metrics", *(f"metrics.{category}" for category in METRICS)})
_RECOGNISED = frozenset({"modes", "rewind", "rewindLimit", "delta", "occupancy", "echo", "appendMode"})


_NOT_DERIVED = frozenset({"rewind", "rewindLimit", "delta"})
"""What a derived channel has not got."""


def attach_params(asked: Any, qualifier: Mapping[str, str], *, derived: bool = False) -> dict[str, str]:
    """The recognised params, unchanged, as ATTACHED repeats them; those of the message win over those in the channel's name.

    Unknown names are dropped, an `occupancy` that there is not, and what a `derived` channel has not got. Raises 40003 when a recognised
    one has a value that cannot be meant.
    """
    params = {name: value for name, value in qualifier.items() if name in _RECOGNISED}
    if asked is not None:
        if not isinstance(asked, dict):
            raise RelayError(40003, "params is not a map")
        for name, value in asked.items():
            if name in _RECOGNISED and value is not None:
                params[name] = _text(name, value)
    for name, value in _VALUES.items():
        if name in params and not value.match(params[name]):
            raise RelayError(40003, f"invalid value of channel param {name}")
    if params.get(METRICS_PARAM) not in _OCCUPANCY:
        params.pop(METRICS_PARAM, None)
    return {name: value for name, value in params.items() if name not in _NOT_DERIVED} if derived else params


def _text(name: str, value: Any) -> str:
    """SDKs send what the application gave them, and `{rewind: 1}` is as good as `{rewind: "1"}`. Raises RelayError 40003."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _:
            raise RelayError(40003, f"invalid value of channel param {name}: not a string")


def modes_asked(params: Mapping[str, str], flags: int | None) -> int:
    """`params.modes`, else the mode bits of `flags`, else the default set. Names nobody knows are ignored."""
    names = params.get("modes")
    if names is not None:
        bits = 0
        for name in names.split(","):
            bits |= MODE_NAMES.get(name.strip().lower(), 0)
        return bits
    return ((flags or 0) & MODE_MASK) or DEFAULT_MODES


class Backlog(NamedTuple):
    """What a rewind asks for: the newest `messages` (None: as many as there are) of the last `period_ms` (None: however old)."""

    messages: int | None
    period_ms: int | None


def rewind_asked(params: Mapping[str, str]) -> Backlog | None:
    """The backlog that checked params ask for, if any. Source: Ably protocol docs, 3.3."""
    asked = _VALUES["rewind"].match(params.get("rewind", ""))
    if asked is None or not int(asked[1]):
        return None
    number, unit = int(asked[1]), asked[2]
    if not unit:
        return Backlog(number, None)
    limit = params.get("rewindLimit")
    messages = None if limit is None else int(limit)
    return None if messages == 0 else Backlog(messages, number * (60_000 if unit == "m" else 1_000))


def publish_params(asked: Any) -> dict[str, str]:
    """`params` of a MESSAGE (RTL6k) as text; whatever is no map counts as none."""
    if not isinstance(asked, dict):
        return {}
    return {name: value if isinstance(value, str) else str(value).lower() for name, value in asked.items() if value is not None}
