"""Channel params of ATTACH: which are recognised, and which modes they ask for. Source: specification RTL4k, TB2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edge.ably.protocol import DEFAULT_MODES, MODE_MASK, MODE_NAMES
from relay.model.errors import RelayError

_REWIND = re.compile(r"[0-9]{1,9}[sm]?\Z")
_RECOGNISED = frozenset({"modes", "rewind", "rewindLimit", "delta", "occupancy", "echo", "appendMode"})


def attach_params(asked: Any, qualifier: Mapping[str, str]) -> dict[str, str]:
    """The recognised params, unchanged, as ATTACHED repeats them; those of the message win over those in the channel's name.

    Unknown names are dropped. Raises 40003 when a recognised one has a value that cannot be meant.
    """
    params = {name: value for name, value in qualifier.items() if name in _RECOGNISED}
    if asked is not None:
        if not isinstance(asked, dict):
            raise RelayError(40003, "params is not a map")
        for name, value in asked.items():
            if name in _RECOGNISED and value is not None:
                if not isinstance(value, str):
                    raise RelayError(40003, f"invalid value of channel param {name}: not a string")
                params[name] = value
    for name in ("rewind", "rewindLimit"):
        if name in params and not _REWIND.match(params[name]):
            raise RelayError(40003, f"invalid value of channel param {name}")
    return params


def modes_asked(params: Mapping[str, str], flags: int | None) -> int:
    """`params.modes`, else the mode bits of `flags`, else the default set. Names nobody knows are ignored."""
    names = params.get("modes")
    if names is not None:
        bits = 0
        for name in names.split(","):
            bits |= MODE_NAMES.get(name.strip().lower(), 0)
        return bits
    return ((flags or 0) & MODE_MASK) or DEFAULT_MODES


def publish_params(asked: Any) -> dict[str, str]:
    """`params` of a MESSAGE (RTL6k) as text; whatever is no map counts as none."""
    if not isinstance(asked, dict):
        return {}
    return {name: value if isinstance(value, str) else str(value).lower() for name, value in asked.items() if value is not None}
