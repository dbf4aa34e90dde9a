"""What the parts of an edge share while one event is handled: the time, the effects so far, numbers for requests, and counters."""

from __future__ import annotations

from collections import Counter

from edge.effects import CloseClient, Effect, LinkSend, Note, Write
from relay.link.frames import Lane, ToCore
from relay.model.limits import EdgeLimits
from relay.runtime.wheel import Wheel

TICK = 0.25
"""Resolution of all deadlines, in seconds."""


class Timed:
    """Something with a deadline in the wheel of its turn."""

    __slots__ = ()

    def wake(self) -> None:
        """The deadline has come. Whatever is still to be waited for must be scheduled again."""
        raise NotImplementedError


class Stats:
    """What an edge counts. Read by the metrics page; labels are words of ours."""

    __slots__ = (
        *("connects", "messages_in", "deliveries", "bytes_in", "records", "undecodable", "filter_errors", "rest_requests"),
        *("refusals", "nacks", "closures", "link_losses"),
    )

    def __init__(self) -> None:
        self.connects = 0
        self.messages_in = 0
        self.bytes_in = 0
        self.records = 0
        self.deliveries = 0
        self.undecodable = 0
        self.filter_errors = 0
        self.rest_requests = 0
        self.link_losses = 0
        self.refusals: Counter[int] = Counter()
        self.nacks: Counter[int] = Counter()
        self.closures: Counter[str] = Counter()


class Turn:
    """Handed to every part at its making. `now` (seconds, monotonic) and `now_ms` (wall clock) hold for the event being handled."""

    __slots__ = ("_request", "effects", "limits", "now", "now_ms", "number", "stats", "wheel")

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.number = 0
        """Which event this is."""
        self.now = 0.0
        self.now_ms = 0
        self.effects: list[Effect] = []
        self.wheel: Wheel[Timed] = Wheel(TICK)
        self.stats = Stats()
        self._request = 0

    def request(self) -> int:
        """A number for a frame that will be answered; never used twice."""
        self._request += 1
        return self._request

    def write(self, client: int, frame: bytes) -> None:
        self.effects.append(Write(client, frame))

    def close(self, client: int, code: int, why: str) -> None:
        self.stats.closures[why] += 1
        self.effects.append(CloseClient(client, code, why))

    def send(self, link: int, frame: ToCore, lane: Lane | None = None) -> None:
        self.effects.append(LinkSend(link, frame, lane))

    def note(self, event: str, **fields: str | int | float | bool | None) -> None:
        self.effects.append(Note(event, fields))

    def mono(self, at_ms: int) -> float:
        """A point of wall clock time on the monotonic clock."""
        return self.now + (at_ms - self.now_ms) / 1000
