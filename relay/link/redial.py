"""When to dial again."""

from __future__ import annotations


class Backoff:
    """Waits between the dials of one address: the first redial goes at once, later ones after `low` to `high` seconds.

    Chance is an argument: `random` is uniform in [0, 1). The whole range is used from the first wait on, because what makes redialling
    dangerous is many edges at the same moment, and that is as likely after one failure as after five.
    """

    __slots__ = ("_at_once", "high", "low")

    def __init__(self, low: float = 1.0, high: float = 5.0) -> None:
        self.low = low
        self.high = high
        self._at_once = True

    def next(self, random: float) -> float:
        """Seconds to wait before the next dial."""
        if self._at_once:
            self._at_once = False
            return 0.0
        return self.low + random * (self.high - self.low)

    def lost(self, held: float, *, slow: bool = False) -> None:
        """A link that had come up is lost after `held` seconds.

        Only a link that held longer than `high` earns another redial at once, so that a core which welcomes and drops is not hammered;
        nor does one that was closed as slow, so that the peer gets air.
        """
        self._at_once = held > self.high and not slow
