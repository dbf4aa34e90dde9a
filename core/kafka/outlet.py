"""From driver threads to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from core.events import Event

Deliver = Callable[[list[Event]], None]
"""Takes a batch of events on the event loop."""


class Outlet:
    """Hands events of one thread to `deliver` on the loop, in order, one batch per loop turn, so that a flood of records cannot hold the
    loop for longer than one batch takes.

    Bounded by `max_size` and `max_events`, in whatever units `put` is told: `put` then waits for the loop (`wait=True`, for readers, which
    thereby stop reading), or lets the batch through (for answers, whose number is bounded where they are asked for).
    """

    __slots__ = ("_batches", "_closed", "_count", "_deliver", "_loop", "_max_count", "_max_size", "_room", "_scheduled", "_size")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[list[Any]], None], max_size: int = 0, max_count: int = 0
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._max_size = max_size
        self._max_count = max_count
        self._size = 0
        self._count = 0
        self._batches: deque[tuple[list[Any], int, int]] = deque()
        self._scheduled = False
        self._closed = False
        self._room = threading.Condition()

    def put(self, events: list[Any], size: int = 0, count: int = 0, *, wait: bool = False) -> None:
        """Any thread. `wait` blocks while the bound is reached, until the loop has caught up or `close`."""
        with self._room:
            while wait and not self._closed and (self._size >= self._max_size or self._count >= self._max_count):
                self._room.wait(1.0)
            if self._closed:
                return
            self._batches.append((events, size, count))
            self._size += size
            self._count += count
            if self._scheduled:
                return
            self._scheduled = True
        with suppress(RuntimeError):  # the loop was closed first: nobody is left to tell
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._room:
            if self._closed or not self._batches:
                self._scheduled = False
                return
            events, size, count = self._batches.popleft()
            self._size -= size
            self._count -= count
            self._scheduled = bool(self._batches)
            again = self._scheduled
            self._room.notify_all()
        if again:
            self._loop.call_soon(self._drain)
        self._deliver(events)

    def flush(self) -> None:
        """On the loop: deliver all that waits, now."""
        while True:
            with self._room:
                if self._closed or not self._batches:
                    return
                events, size, count = self._batches.popleft()
                self._size -= size
                self._count -= count
            self._deliver(events)

    def close(self) -> None:
        """What has not been delivered is dropped; waiting threads go on."""
        with self._room:
            self._closed = True
            self._batches.clear()
            self._room.notify_all()
