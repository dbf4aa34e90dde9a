"""Refusals as values, for tests whose input may or may not be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.model.errors import RelayError


def code_or(call: Callable[[], Any]) -> Any:
    """What `call` answers, or the code of the RelayError that it raises. Any other exception passes through."""
    try:
        return call()
    except RelayError as error:
        return error.code
