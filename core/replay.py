"""Replay: what a channel missed since a serial, read from the index in pages and sent on the bulk lane, then live.

A replay runs in two steps. *Gathering* reads forward from the serial to the head and keeps the newest part within the limits; nothing is
sent yet, because only at the end is it known whether something had to be left out (90004). *Sending* gives each link at most
`replay_turn_bytes` a turn, then what came in meanwhile, and ends in the same turn in which it has caught up, so that no record falls
between the replay and the live lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Protocol

from core.channel import OpenChannel
from core.effects import Effect, LinkSend
from core.index import Index
from core.log import LogRecord
from relay.link.frames import Lane, Opened, Record
from relay.model.errors import ErrorInfo
from relay.model.limits import CoreLimits

EXPIRED = ErrorInfo.of(90003, "Unable to recover channel (messages expired)")
TOO_MANY = ErrorInfo.of(90004, "Unable to recover channel (message limit exceeded)")
OTHER_SITE = ErrorInfo.of(90005, "Unable to recover channel (serial of another stream)")

_PAGE_RECORDS = 250
_GATHER_PAGES = 8
_SENT_LIMIT = 4
"""A replay that has sent this many times `replay_bytes` and still not caught up ends with 90004: its channel is faster than its link."""


class Head(Protocol):
    """What a replay asks of the node."""

    def head_serial(self, channel: OpenChannel) -> str: ...

    def members(self, channel: OpenChannel) -> int: ...

    def go_live(self, channel: OpenChannel) -> None: ...


class Replay:
    """One channel catching up on one link."""

    __slots__ = ("at", "channel", "error", "gathered", "gathering", "sent", "size")

    def __init__(self, channel: OpenChannel, after: int, error: ErrorInfo | None) -> None:
        self.channel = channel
        self.at = after
        self.error = error
        self.gathered: deque[LogRecord] = deque()
        self.size = 0
        self.gathering = True
        self.sent = 0


class Replays:
    """All replays of a core. Each link has `link_replays` running at once, served in rotation; the rest wait without holding records."""

    def __init__(self, index: Index, limits: CoreLimits, head: Head) -> None:
        self._index = index
        self._limits = limits
        self._head = head
        self._links: dict[int, tuple[deque[Replay], deque[Replay]]] = {}

    def __bool__(self) -> bool:
        return bool(self._links)

    def __len__(self) -> int:
        return sum(len(running) + len(waiting) for running, waiting in self._links.values())

    def start(self, channel: OpenChannel, after: int, error: ErrorInfo | None) -> None:
        running, waiting = self._links.setdefault(channel.link, (deque(), deque()))
        (running if len(running) < self._limits.link_replays else waiting).append(Replay(channel, after, error))

    def link_lost(self, link: int) -> None:
        self._links.pop(link, None)

    def shut(self, channel: OpenChannel) -> None:
        for queue in self._links.get(channel.link, ()):
            for replay in queue:
                if replay.channel is channel:
                    queue.remove(replay)
                    return

    def turn(self) -> Iterator[Effect]:
        """One turn of the loop: every link gets its share."""
        for link in list(self._links):
            yield from self._serve(link)

    def _serve(self, link: int) -> Iterator[Effect]:
        running, waiting = self._links[link]
        budget = self._limits.replay_turn_bytes
        pages = _GATHER_PAGES
        for _ in range(len(running) + len(waiting)):
            if budget <= 0 or pages <= 0 or not running:
                break
            replay = running.popleft()
            while replay.gathering and pages > 0:
                pages -= 1
                self._gather(replay)
            if not replay.gathering:
                spent, done = yield from self._send(replay, budget)
                budget -= spent
                if done:
                    if waiting:
                        running.append(waiting.popleft())
                    continue
            running.append(replay)
        if not running:
            del self._links[link]

    def _gather(self, replay: Replay) -> None:
        """Read one page; at the head, gathering is over."""
        records, more = self._read(replay)
        for record in records:
            replay.gathered.append(record)
            replay.size += len(record.value)
        kept = replay.gathered
        while len(kept) > self._limits.replay_records or (replay.size > self._limits.replay_bytes and len(kept) > 1):
            replay.size -= len(kept.popleft().value)
            replay.error = TOO_MANY
        replay.gathering = more

    def _send(self, replay: Replay, budget: int) -> Generator[Effect, None, tuple[int, bool]]:
        """Send until the budget is spent or the channel has caught up. Returns (bytes sent, whether the replay is over)."""
        channel, spent = replay.channel, 0
        while True:
            while replay.gathered:
                if spent >= budget:
                    return spent, False
                record = replay.gathered.popleft()
                spent += len(record.value)
                replay.sent += len(record.value)
                yield LinkSend(channel.link, Record(channel.ref, record.offset, record.kind, record.value), Lane.BULK)
            if replay.sent > _SENT_LIMIT * self._limits.replay_bytes:
                replay.error = TOO_MANY
                break
            records, _ = self._read(replay)
            if not records:
                break
            replay.gathered.extend(records)
        self._head.go_live(channel)
        yield LinkSend(
            channel.link, Opened(channel.ref, self._head.head_serial(channel), replay.error, self._head.members(channel)), Lane.BULK
        )
        return spent, True

    def _read(self, replay: Replay) -> tuple[list[LogRecord], bool]:
        """The next page after `replay.at`. What the index no longer holds is skipped, and told (90003)."""
        channel, limits = replay.channel, self._limits
        page = self._index.read_after(channel.stream.id, channel.partition, channel.key, replay.at, _PAGE_RECORDS, limits.replay_turn_bytes)
        if page is None:
            replay.error = EXPIRED
            covers = self._index.covers_from(channel.stream.id, channel.partition)
            if covers is None or covers - 1 <= replay.at:
                return [], False
            replay.at = covers - 1
            return [], True
        if page.records:
            replay.at = page.records[-1].offset
        return page.records, page.more
