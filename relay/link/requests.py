"""Requests in flight on one link."""

from __future__ import annotations

from typing import Generic, TypeVar

Waiting = TypeVar("Waiting")


class TooManyRequests(Exception):  # noqa: N818 - a bound, not a fault
    """As many requests are in flight as may be: refuse this one before it is sent."""


class Requests(Generic[Waiting]):
    """Numbers requests and holds what each answer is for. Numbers are never used twice on a link, so that a late answer finds nothing."""

    __slots__ = ("_last", "_limit", "_pending")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last = 0
        self._pending: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, waiting: Waiting) -> int:
        """The number for a new request. Raises `TooManyRequests`. O(1)."""
        if len(self._pending) >= self._limit:
            raise TooManyRequests
        self._last += 1
        self._pending[self._last] = waiting
        return self._last

    def get(self, req: int) -> Waiting | None:
        """What `req` is for, while more answers are expected (an open channel)."""
        return self._pending.get(req)

    def take(self, req: int) -> Waiting | None:
        """What `req` is for; it is answered now. None for a number never given, or answered before: such an answer means nothing."""
        return self._pending.pop(req, None)

    def drain(self) -> list[tuple[int, Waiting]]:
        """All that is unanswered, oldest first, and forget it: the link is lost."""
        pending = list(self._pending.items())
        self._pending.clear()
        return pending
