"""A timer wheel: many deadlines, one timer.

An edge keeps a heartbeat deadline for each of its clients and moves it whenever something is written to that client. A heap would sift
20,000 entries for that, and `call_later` would allocate a handle each time; here scheduling, moving and cancelling are O(1), at the
price of firing up to one tick late. The wheel reads no clock: it is told the time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Wheel(Generic[Key]):
    """Deadlines by key, in slots of `tick` seconds. Never fires early; fires at most one tick late."""

    __slots__ = ("_order", "_slot_of", "_slots", "tick")

    def __init__(self, tick: float) -> None:
        if not tick > 0:
            raise ValueError("tick must be positive")
        self.tick = tick
        self._slots: dict[int, dict[Key, None]] = {}  # insertion order within a slot, so that runs repeat
        self._slot_of: dict[Key, int] = {}
        self._order: list[int] = []  # heap of the slots that exist: one entry per slot, not per key

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, key: Key) -> bool:
        return key in self._slot_of

    def schedule(self, key: Key, at: float) -> None:
        """Let `key` become due at `at` (seconds of the caller's clock), instead of any earlier appointment of it. O(1)."""
        slot = math.ceil(at / self.tick)
        before = self._slot_of.get(key)
        if before == slot:
            return
        if before is not None:
            del self._slots[before][key]
        keys = self._slots.get(slot)
        if keys is None:
            keys = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
        keys[key] = None
        self._slot_of[key] = slot

    def cancel(self, key: Key) -> None:
        """Forget `key`; nothing happens if it has no appointment. O(1)."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._slots[slot][key]

    def due(self, now: float) -> list[Key]:
        """Every key whose time has come, earliest slot first; they are forgotten. O(keys returned)."""
        last = math.floor(now / self.tick)
        ready: list[Key] = []
        while self._order and self._order[0] <= last:
            keys = self._slots.pop(heapq.heappop(self._order))
            for key in keys:
                del self._slot_of[key]
            ready.extend(keys)
        return ready

    def next_at(self) -> float | None:
        """When to call `due` next; None while nothing is scheduled. Amortised O(1)."""
        while self._order:
            slot = self._order[0]
            if self._slots[slot]:
                return slot * self.tick
            heapq.heappop(self._order)  # all its keys were moved or cancelled
            del self._slots[slot]
        return None
