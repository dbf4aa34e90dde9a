"""Replay: what a channel missed since a serial, read from the index in pages and sent on the bulk lane, then live.

A replay runs in two steps. *Gathering* reads forward from the serial to the head and keeps the newest part within the limits; nothing is
sent yet, because only at the end is it known whether something had to be left out (90004). *Sending* gives each link at most
`replay_turn_bytes` a turn, then what came in meanwhile, and ends in the same turn in which it has caught up, so that no record falls
between the replay and the live lane. Links and apps have budgets of bytes a second besides, and a link that does not take what was sent
gets no more of the past until it has.
"""

from __future__ import annotations

from collections import OrderedDict, deque
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

    def congested(self, link: int) -> bool: ...


class Replay:
    """One channel catching up on one link."""

    __slots__ = ("at", "channel", "error", "gathered", "gathering", "sent", "size")

    def __init__(self, channel: OpenChannel, after: int) -> None:
        self.channel = channel
        self.at = after
        self.error: ErrorInfo | None = None
        self.gathered: deque[LogRecord] = deque()
        self.size = 0
        self.gathering = True
        self.sent = 0


class _Budget:
    """Bytes that may be sent: `rate` a second, of which one second's worth can be saved up. One record may overdraw it."""

    __slots__ = ("at", "left", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = self.left = float(rate)
        self.at = now

    def fill(self, now: float) -> float:
        self.left = min(self.rate, self.left + (now - self.at) * self.rate)
        self.at = now
        return self.left

    def next_at(self, worth: int) -> float:
        """When there is something left. Once it is used up: when there are `worth` bytes again, so that a turn is worth its while."""
        return self.at if self.left > 0 else self.at + (min(worth, self.rate) - self.left) / self.rate


class _App:
    """The replays of one app on one link."""

    __slots__ = ("budget", "running", "waiting")

    def __init__(self, rate: int, now: float) -> None:
        self.budget = _Budget(rate, now)
        self.running: deque[Replay] = deque()
        self.waiting: deque[Replay] = deque()


class _Link:
    """The replays of one link. An app that has none stays until its budget is full again, so that coming back gains it nothing."""

    __slots__ = ("apps", "budget", "running")

    def __init__(self, rate: int, now: float) -> None:
        self.budget = _Budget(rate, now)
        self.apps: OrderedDict[str, _App] = OrderedDict()
        """The one to be served next first."""
        self.running = 0


class Replays:
    """All replays of a core. A link and each of its apps have so many running and so many bytes a second; the rest wait without holding
    records. Links have turns of `replay_turn_bytes`, and so have the apps of a link, and the replays of an app."""

    def __init__(self, index: Index, limits: CoreLimits, head: Head) -> None:
        self._index = index
        self._limits = limits
        self._head = head
        self._links: dict[int, _Link] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def start(self, channel: OpenChannel, after: int, now: float) -> bool:
        """False when too many of the app are waiting already."""
        limits = self._limits
        link = self._links.get(channel.link)
        if link is None:
            link = self._links[channel.link] = _Link(limits.link_replay_bytes_per_s, now)
        app = link.apps.get(channel.app)
        if app is None:
            app = link.apps[channel.app] = _App(limits.app_replay_bytes_per_s, now)
        if len(app.waiting) >= limits.app_replays_waiting:
            return False
        app.waiting.append(Replay(channel, after))
        self._count += 1
        return True

    def link_lost(self, link: int) -> None:
        gone = self._links.pop(link, None)
        if gone is not None:
            self._count -= sum(len(app.running) + len(app.waiting) for app in gone.apps.values())

    def shut(self, channel: OpenChannel) -> None:
        link = self._links.get(channel.link)
        app = None if link is None else link.apps.get(channel.app)
        if link is None or app is None:
            return
        for queue in (app.running, app.waiting):
            for replay in queue:
                if replay.channel is channel:
                    queue.remove(replay)
                    self._count -= 1
                    link.running -= queue is app.running
                    return

    def next_at(self, now: float) -> float:
        """When a turn has something to do."""
        at, worth = float("inf"), self._limits.replay_turn_bytes
        for number, link in self._links.items():
            if self._head.congested(number):
                continue
            room = link.running < self._limits.link_replays
            for app in link.apps.values():
                if app.running or (app.waiting and room):
                    at = min(at, max(link.budget.next_at(worth), app.budget.next_at(worth)))
                    if at <= now:
                        return now
        return at

    def turn(self, now: float) -> Iterator[Effect]:
        """One turn of the loop: every link gets its share."""
        for number, link in self._links.items():
            if not self._head.congested(number):
                yield from self._serve(link, now)

    def _serve(self, link: _Link, now: float) -> Iterator[Effect]:
        room = min(self._limits.replay_turn_bytes, link.budget.fill(now))
        pages = _GATHER_PAGES
        for name, app in list(link.apps.items()):
            if room <= 0 or pages <= 0:
                return
            link.apps.move_to_end(name)
            if app.budget.fill(now) >= app.budget.rate and not (app.running or app.waiting):
                del link.apps[name]
            for _ in range(len(app.running) + len(app.waiting)):
                self._promote(link, app)
                if room <= 0 or pages <= 0 or app.budget.left <= 0 or not app.running:
                    break
                replay = app.running.popleft()
                while replay.gathering and pages > 0:
                    pages -= 1
                    self._gather(replay)
                if not replay.gathering:
                    spent, done = yield from self._send(replay, min(room, app.budget.left))
                    room -= spent
                    link.budget.left -= spent
                    app.budget.left -= spent
                    if done:
                        link.running -= 1
                        self._count -= 1
                        continue
                app.running.append(replay)

    def _promote(self, link: _Link, app: _App) -> None:
        while app.waiting and len(app.running) < self._limits.app_replays and link.running < self._limits.link_replays:
            app.running.append(app.waiting.popleft())
            link.running += 1

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

    def _send(self, replay: Replay, budget: float) -> Generator[Effect, None, tuple[int, bool]]:
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
