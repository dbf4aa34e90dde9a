"""Reads of the past: history, rewind and single messages, all from the index, none of them from Kafka; and of a presence set, where it has
to include all that was acknowledged.

    ASKED ──end of the partition──▶ BEHIND ──the tail has passed it──▶ READY ──turns──▶ Page or Refused

The end is asked for so that a read on any core sees all that any core has acknowledged before it. Then each link's reads have turns of
`read_turn_records`, so that nothing else waits long behind a channel with much to skip. Pages leave no faster than `read_bytes_per_s`, and
not at all towards a link that does not take what was sent before. A page that has looked at `read_records`, or holds `read_bytes`, ends
there, with a cursor to go on from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import msgspec

from core.effects import Effect, LinkSend
from core.fold import SKEW_MS
from core.index import Index, Slice
from core.log import LogRecord
from relay.link.calls import History, Item, Members, OneMessage, Past, Read, Rewind, encode_past
from relay.link.frames import Lane, Page, Refused
from relay.model.errors import ErrorInfo, RelayError
from relay.model.limits import CoreLimits
from relay.model.message import Kind
from relay.model.serials import Serial, message_serial, parse_message_serial

_LATE = ErrorInfo.of(50003, "The core has not read that far; try again", 503)
_NO_ANSWER = ErrorInfo.of(50003, "Kafka did not answer; try again", 503)


class _Message(msgspec.Struct):
    """A message or a change of presence, counted and not looked into."""


class _Outline(msgspec.Struct):
    """As much of a record's value as a read has to know: what the messages hold is skipped."""

    timestamp: int
    messages: list[_Message] = []
    presence: list[_Message] = []


_outline = msgspec.msgpack.Decoder(_Outline).decode


class Tails(Protocol):
    """What reads ask of the node."""

    def tail_position(self, partition: int) -> int: ...

    def congested(self, link: int) -> bool: ...

    def member_page(self, partition: int, key: bytes, call: Members) -> bytes: ...

    def kept_message(self, partition: int, key: bytes) -> tuple[int, bytes] | None: ...


class _Reading:
    """One read. `at` is where looking goes on: every offset below it (backwards) or above it (forwards)."""

    __slots__ = (
        *(
            "ask",
            "at",
            "backwards",
            "call",
            "cursor",
            "deadline",
            "end",
            "end_ms",
            "from_index",
            "from_offset",
            "horizon",
            "items",
            "key",
            "kind",
        ),
        *("left", "link", "looked", "more", "partition", "req", "serial", "size", "start_ms", "started", "stream", "upper"),
    )

    def __init__(self, ask: int, link: int, req: int, call: Read, stream: str, partition: int, key: bytes, deadline: float) -> None:
        """Raises: RelayError 40011, 90008, 40400 for a serial of another channel's partition; 40003."""
        self.ask = ask
        self.link = link
        self.req = req
        self.call = call
        self.stream = stream
        self.partition = partition
        self.key = key
        self.deadline = deadline
        self.end = 0
        """The partition's end: known once it is BEHIND."""
        self.started = False
        self.items: list[Item] = []
        self.size = 0
        self.looked = 0
        self.more = False
        self.cursor: tuple[int, int] | None = None
        """(offset, index) of the last message taken, or passed over."""
        self.serial = ""
        self.at = self.upper = self.horizon = 0
        self.start_ms: int | None = None
        self.end_ms: int | None = None
        self.backwards = True
        self.from_offset, self.from_index = -1, -1
        """Where an earlier page ended."""
        self.kind = Kind.PRESENCE if isinstance(call, History) and call.presence else Kind.MESSAGE
        match call:
            case History():
                self.backwards, self.left, self.start_ms, self.end_ms = call.backwards, call.limit, call.start, call.end
                self._position(call.upto, 90008, "attach point not found")
                self._position(call.until, 40011, "pagination sequence no longer valid")
                if call.cursor is not None:
                    self.from_offset, self.from_index = self._message(call.cursor, 40011, "pagination sequence no longer valid")
            case OneMessage():
                self.backwards, self.left = False, 1
                self.from_offset, index = self._message(call.serial, 40400, "not found: no such message")
                self.from_index = index - 1
            case Rewind() | Members():
                self.left = call.limit
        if self.left < 1:
            raise RelayError(40003, "invalid limit")

    def _position(self, text: str | None, code: int, why: str) -> int | None:
        """The offset that a channelSerial names."""
        if text is None:
            return None
        serial = Serial.parse(text)
        if serial is None or (serial.stream, serial.partition) != (self.stream, self.partition):
            raise RelayError(code, why)
        return serial.offset

    def _message(self, text: str, code: int, why: str) -> tuple[int, int]:
        parsed = parse_message_serial(text)
        if parsed is None or (parsed[0].stream, parsed[0].partition) != (self.stream, self.partition):
            raise RelayError(code, why)
        return parsed[0].offset, parsed[1]

    def begin(self, position: int, now_ms: int, history_ms: int) -> None:
        """The tail has read up to `position` (exclusive). Raises: RelayError for a serial beyond it."""
        self.started = True
        self.horizon = now_ms - history_ms
        call, upper = self.call, position
        if isinstance(call, Rewind) and call.period_ms is not None:
            self.start_ms = now_ms - call.period_ms
        if isinstance(call, History):
            for text, code, why in (
                (call.upto, 90008, "attach point not found"),
                (call.until, 40011, "pagination sequence no longer valid"),
            ):
                offset = self._position(text, code, why)
                if offset is not None:
                    if offset >= position:
                        raise RelayError(code, why)
                    upper = min(upper, offset + 1)
        if self.from_offset >= position:
            if isinstance(call, OneMessage):
                raise RelayError(40400, "not found: no such message")
            raise RelayError(40011, "pagination sequence no longer valid")
        self.upper = upper
        self.serial = Serial(self.stream, self.partition, upper - 1).text
        if self.backwards:
            self.at = upper if self.from_offset < 0 else min(upper, self.from_offset + 1)
        else:
            self.at = self.from_offset - 1

    def take(self, record: LogRecord, max_bytes: int) -> bool:
        """Take of a record what was asked for. False: the page is full, or nothing further on can be wanted."""
        if record.timestamp < self.horizon:
            return not self.backwards
        if self.backwards:
            if self.start_ms is not None and record.timestamp < self.start_ms - SKEW_MS:
                return False
        elif record.offset >= self.upper or (isinstance(self.call, OneMessage) and record.offset > self.from_offset):
            return False
        if record.kind != self.kind:
            return True
        try:
            outline = _outline(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return True
        at = outline.timestamp
        if (self.start_ms is not None and at < self.start_ms) or (self.end_ms is not None and at > self.end_ms):
            return True
        low, high = 0, len(outline.presence if self.kind is Kind.PRESENCE else outline.messages)
        if record.offset == self.from_offset:
            if self.backwards:
                high = min(high, self.from_index)
            else:
                low = self.from_index + 1
        if low >= high:
            return True
        if not self.left or (self.items and self.size + len(record.value) > max_bytes):
            self.more = True
            return False
        count = min(self.left, high - low)
        self.more = count < high - low
        low, high = (high - count, high) if self.backwards else (low, low + count)
        self.left -= count
        self.size += len(record.value)
        self.items.append(Item(record.offset, low, high - 1, record.value))
        self.cursor = (record.offset, low if self.backwards else high - 1)
        return not self.more

    def page(self) -> Page | Refused:
        if isinstance(self.call, OneMessage) and not self.items:
            return Refused(self.req, ErrorInfo.of(40400, "not found: no such message, or no longer held"))
        cursor = None
        if self.more and self.cursor is not None and not isinstance(self.call, OneMessage):
            offset, index = self.cursor
            cursor = message_serial(Serial(self.stream, self.partition, offset).text, index)
        return Page(self.req, 200, encode_past(Past(self.serial, self.items, cursor)))


class _Link:
    __slots__ = ("allowance", "at", "count", "queue")

    def __init__(self, allowance: float, now: float) -> None:
        self.queue: deque[_Reading] = deque()
        """Those that are READY; a `_Reading` that was given up meanwhile is no longer in the table."""
        self.count = 0
        self.allowance = allowance
        self.at = now


class Reads:
    """All reads of a core."""

    def __init__(self, index: Index, limits: CoreLimits, tails: Tails) -> None:
        self._index = index
        self._limits = limits
        self._tails = tails
        self._links: dict[int, _Link] = {}
        self._reads: dict[int, _Reading] = {}
        """By the number of their question for the end; the oldest first."""
        self.behind: dict[int, list[_Reading]] = {}
        """By partition: reads that wait for the tail."""

    def __len__(self) -> int:
        return len(self._reads)

    def start(self, ask: int, link: int, req: int, call: Read, stream: str, partition: int, key: bytes, now: float) -> None:
        """The node asks for the end of the partition under the number `ask`. Raises: RelayError."""
        known = self._links.get(link)
        if known is not None and known.count >= self._limits.link_reads:
            raise RelayError(42910, "Too many reads at once; try again")
        reading = _Reading(ask, link, req, call, stream, partition, key, now + self._limits.read_wait_s)
        if known is None:
            known = self._links[link] = _Link(self._limits.read_bytes_per_s, now)
        known.count += 1
        self._reads[ask] = reading

    def link_lost(self, link: int) -> None:
        if self._links.pop(link, None) is not None:
            for ask in [ask for ask, reading in self._reads.items() if reading.link == link]:
                del self._reads[ask]

    def ended(self, ask: int, offset: int | None) -> Iterator[Effect]:
        """Kafka's answer: the partition ends at `offset`."""
        reading = self._reads.get(ask)
        if reading is None:
            return
        if offset is None:
            yield self._answer(reading, Refused(reading.req, _NO_ANSWER))
            return
        reading.end = offset
        if self._tails.tail_position(reading.partition) >= offset:
            self._links[reading.link].queue.append(reading)
        else:
            self.behind.setdefault(reading.partition, []).append(reading)

    def catch_up(self) -> None:
        """The tail has moved on."""
        for partition, waiting in list(self.behind.items()):
            position = self._tails.tail_position(partition)
            still = []
            for reading in waiting:
                if self._reads.get(reading.ask) is not reading:
                    continue
                if reading.end <= position:
                    self._links[reading.link].queue.append(reading)
                else:
                    still.append(reading)
            if still:
                self.behind[partition] = still
            else:
                del self.behind[partition]

    def next_at(self, now: float) -> float:
        """When a turn has something to do."""
        at = float("inf")
        for number, link in self._links.items():
            if link.queue and not self._tails.congested(number):
                if link.allowance > 0:
                    return now
                at = min(at, link.at - link.allowance / self._limits.read_bytes_per_s)
        return at

    def turn(self, now: float, now_ms: int) -> Iterator[Effect]:
        """One turn of the loop: every link gets its share."""
        most = float(self._limits.read_bytes_per_s)
        for number, link in self._links.items():
            if not link.queue or self._tails.congested(number):
                continue
            link.allowance = min(most, link.allowance + (now - link.at) * most)
            link.at = now
            records = self._limits.read_turn_records
            while link.queue and records > 0 and link.allowance > 0:
                reading = link.queue.popleft()
                if self._reads.get(reading.ask) is not reading:
                    continue
                before = reading.looked
                answer = self._step(reading, records, now_ms)
                records -= max(1, reading.looked - before)
                if answer is None:
                    link.queue.append(reading)
                else:
                    link.allowance -= reading.size
                    yield self._answer(reading, answer)

    def _step(self, reading: _Reading, records: int, now_ms: int) -> Page | Refused | None:
        """Look at some more records. None: not done yet."""
        limits = self._limits
        if isinstance(reading.call, Members):
            return self._members(reading, reading.call)
        if not reading.started:
            try:
                reading.begin(self._tails.tail_position(reading.partition), now_ms, limits.history_s * 1000)
            except RelayError as error:
                return Refused(reading.req, error.info)
        page = self._read(reading, min(records, reading.left + 2))
        if page is None:
            # The disk of the index has just failed. What it still holds begins further on; a page has no hole in it.
            reading.looked += 1
            reading.more = bool(reading.items)
            return reading.page() if reading.items else None
        for record in page.records:
            reading.looked += 1
            if not reading.take(record, limits.read_bytes):
                self._keep(reading)
                return reading.page()
            reading.at = record.offset
        if not page.more:
            self._keep(reading)
            return reading.page()
        if reading.looked >= limits.read_records:
            reading.more = True
            reading.cursor = (reading.at, 0 if reading.backwards else 999)
            return reading.page()
        return None

    def _keep(self, reading: _Reading) -> None:
        """A rewind by count that has found nothing gets the last message of the channel if that is kept."""
        if not isinstance(reading.call, Rewind) or reading.call.period_ms is not None or reading.items or reading.more:
            return
        found = self._tails.kept_message(reading.partition, reading.key)
        if found is not None and found[0] < reading.upper:
            reading.items.append(Item(found[0], 0, 0, found[1]))
            reading.size += len(found[1])

    def _members(self, reading: _Reading, call: Members) -> Page | Refused:
        """The tail has read what was acknowledged: the set as it is by now."""
        try:
            body = self._tails.member_page(reading.partition, reading.key, call)
        except RelayError as error:
            return Refused(reading.req, error.info)
        reading.looked, reading.size = min(call.limit, self._limits.members_page), len(body)
        return Page(reading.req, 200, body)

    def _read(self, reading: _Reading, records: int) -> Slice | None:
        index, stream, partition = self._index, reading.stream, reading.partition
        if reading.backwards:
            return index.read_before(stream, partition, reading.key, reading.at, records, self._limits.read_bytes)
        covers = index.covers_from(stream, partition)
        if covers is None:
            return Slice([], more=False)
        return index.read_after(stream, partition, reading.key, max(reading.at, covers - 1), records, self._limits.read_bytes)

    def sweep(self, now: float) -> Iterator[Effect]:
        """Give up those that have waited too long."""
        for reading in list(self._reads.values()):
            if reading.deadline > now:
                return
            yield self._answer(reading, Refused(reading.req, _LATE))

    def _answer(self, reading: _Reading, answer: Page | Refused) -> Effect:
        del self._reads[reading.ask]
        self._links[reading.link].count -= 1
        return LinkSend(reading.link, answer, Lane.BULK)
