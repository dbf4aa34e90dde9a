"""Tells the node when the bulk lane of a link is filling up, and when it has room again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.events import Congested

CHECK_S = 0.02
"""How often a congested link is asked whether it has room again, in seconds."""


class Congestion:
    """`queued` says how many bytes wait on the bulk lane of a link (0 for one that is lost). A link is congested from `bound` bytes on,
    until they are less than half of that. One timer, only while some link is congested; it ends at `close`."""

    def __init__(self, queued: Callable[[int], int], post: Callable[[Congested], None], bound: int) -> None:
        self._queued = queued
        self._post = post
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self._links: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def sent(self, link: int) -> None:
        """Something was queued for this link."""
        if link not in self._links and self._queued(link) >= self._bound:
            self._links.add(link)
            self._post(Congested(link, on=True))
            if self._timer is None:
                self._timer = self._loop.call_later(CHECK_S, self._check)

    def _check(self) -> None:
        for link in [link for link in self._links if self._queued(link) * 2 < self._bound]:
            self._links.remove(link)
            self._post(Congested(link, on=False))
        self._timer = self._loop.call_later(CHECK_S, self._check) if self._links else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
