"""Barriers: what has to wait until the tail has read everything that was acknowledged before.

One question for the end of a partition serves all who came before it was sent. Who comes while it is under way waits for the next: an
answer that was on its way already may not know of what was acknowledged since.
"""

from __future__ import annotations

from collections.abc import Callable

from core.effects import AskEnd, Effect
from relay.model.limits import CoreLimits

Then = Callable[[], None]


class _Partition:
    __slots__ = ("asking", "behind", "next")

    def __init__(self) -> None:
        self.asking: tuple[int, float, list[Then]] | None = None
        """The question under way: its number, until when it may be, and who waits for its answer."""
        self.next: list[Then] = []
        self.behind: list[tuple[int, float, list[Then]]] = []
        """Answered, and not read so far yet: the end, until when to wait for it, and who does."""


class Barriers:
    """`number` gives numbers for questions; `emit` takes them. Whatever happens, `then` is called once: a barrier that Kafka does not
    answer in time lets through, and so does one too many. What it would have waited for can be read by nobody now, and comes as it is read.
    `overdue` counts them."""

    def __init__(self, limits: CoreLimits, *, emit: Callable[[Effect], None], number: Callable[[], int]) -> None:
        self._limits = limits
        self._waiting = 0
        self._emit = emit
        self._number = number
        self._partitions: dict[int, _Partition] = {}
        self.overdue = 0

    def __len__(self) -> int:
        return self._waiting

    def wait(self, partition: int, then: Then, now: float) -> None:
        if self._waiting >= self._limits.barrier_waiters:
            self.overdue += 1
            then()
            return
        state = self._partitions.get(partition)
        if state is None:
            state = self._partitions[partition] = _Partition()
        self._waiting += 1
        state.next.append(then)
        if state.asking is None:
            self._ask(partition, state, now)

    def _ask(self, partition: int, state: _Partition, now: float) -> None:
        ask = self._number()
        state.asking, state.next = (ask, now + self._limits.barrier_s, state.next), []
        self._emit(AskEnd(ask, partition))

    def ended(self, ask: int, partition: int, offset: int | None, position: int, now: float) -> bool:
        """The answer to a question, where the tail has read up to `position`. Whether it was one of these."""
        state = self._partitions.get(partition)
        if state is None or state.asking is None or state.asking[0] != ask:
            return False
        _, until, waiting = state.asking
        state.asking = None
        if state.next:
            self._ask(partition, state, now)
        if offset is not None and offset > position:
            state.behind.append((offset, until, waiting))
        else:
            self.overdue += offset is None
            self._release(waiting)
        self._forget(partition, state)
        return True

    def read(self, partition: int, position: int) -> None:
        """The tail has read up to `position`."""
        state = self._partitions.get(partition)
        if state is None or not state.behind:
            return
        ready = [each for each in state.behind if each[0] <= position]
        state.behind = [each for each in state.behind if each[0] > position]
        self._forget(partition, state)
        for _, _, waiting in ready:
            self._release(waiting)

    def sweep(self, now: float) -> None:
        for partition, state in list(self._partitions.items()):
            late = [each for each in state.behind if each[1] <= now]
            state.behind = [each for each in state.behind if each[1] > now]
            if state.asking is not None and state.asking[1] <= now:
                late.append((0, 0.0, state.asking[2]))
                state.asking = None
                if state.next:
                    self._ask(partition, state, now)
            self._forget(partition, state)
            for _, _, waiting in late:
                self.overdue += 1
                self._release(waiting)

    def _forget(self, partition: int, state: _Partition) -> None:
        if state.asking is None and not state.next and not state.behind:
            self._partitions.pop(partition, None)

    def _release(self, waiting: list[Then]) -> None:
        self._waiting -= len(waiting)
        for then in waiting:
            then()
