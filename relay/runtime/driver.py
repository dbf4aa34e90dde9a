"""The loop around a pure node: events go in one at a time, effects come out and are performed, one timer is kept armed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

Event = TypeVar("Event")
Effect = TypeVar("Effect")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Node(Protocol[In_contra, Out_co]):
    def handle(self, event: In_contra, now: float, now_ms: int) -> Iterable[Out_co]: ...

    def next_deadline(self) -> float | None: ...


class Driver(Generic[Event, Effect]):
    """Owns the node's clock. `now` is the event loop's (monotonic, seconds), `now_ms` the wall clock's (milliseconds since the epoch).

    `perform` may post events itself; they are handled after the effects of the present one, so that a node is never re-entered.

    `failed` is told of an event that the node (or `perform`) did not survive; the events after it are handled all the same. Without it the
    exception goes to whoever posted the first event of the turn.
    """

    def __init__(
        self,
        node: Node[Event, Effect],
        perform: Callable[[Effect], None],
        tick: Event,
        failed: Callable[[Event, Exception], None] | None = None,
    ) -> None:
        self._node = node
        self._perform = perform
        self._tick = tick
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def post(self, event: Event) -> None:
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                event = self._waiting.popleft()
                try:
                    for effect in self._node.handle(event, self._loop.time(), time.time_ns() // 1_000_000):
                        self._perform(effect)
                except Exception as error:
                    if self._failed is None:
                        raise
                    self._failed(event, error)
        finally:
            self._busy = False
            self._arm()

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        at = self._node.next_deadline()
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return  # an early wake-up finds nothing due and arms again: cheaper than re-arming for every frame
            self.close()
        if at is not None:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.post(self._tick)
