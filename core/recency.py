"""Recency: the offset of the last record of each channel of one partition, so that a channel on which nothing has happened since a client
was there can be told from one whose records are no longer held.

A table is *complete from* an offset: each channel with a record at or after it is in the table. A channel that is not in it has its last
record before that offset. What is dropped for want of room moves the offset up; nothing is ever wrong, only unknown.
"""

from __future__ import annotations

from collections import OrderedDict


class Recency:
    """One partition's table of at most `limit` channels; the one whose last record was seen longest ago goes first."""

    __slots__ = ("_begins", "_dropped", "_last", "_limit", "_read_from")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._begins: int | None = None
        """The offset from which the sources of the table leave nothing out; None until one has said so."""
        self._read_from: int | None = None
        """The same of the tail alone."""
        self._dropped = 0
        """One more than the highest offset that was in the table and is not any longer."""

    def __len__(self) -> int:
        return len(self._last)

    @property
    def begins(self) -> int | None:
        """The offset from which the table is complete. None: nothing is known of the partition yet."""
        return None if self._begins is None else max(self._begins, self._dropped)

    def saw(self, key: bytes, offset: int) -> int:
        """The tail has read a record of the channel with this log key. Offsets rise. Returns an offset: the channel certainly has no
        record after that one and before this."""
        last = self._last
        before = last.pop(key, -1)
        last[key] = offset
        if self._read_from is None:
            self._read_from = offset
        if before < 0:
            before = max(self._dropped, self._read_from) - 1
            if len(last) > self._limit:
                _, oldest = last.popitem(last=False)
                self._dropped = max(self._dropped, oldest + 1)
        elif before < self._read_from:  # from what was kept, which need not be the record next to this one
            before = self._read_from - 1
        return before

    def restore(self, key: bytes, offset: int) -> None:
        """The same from what was kept over a restart, in any order, before or after the tail has passed `offset`."""
        known = self._last.get(key)
        if known is not None:
            self._last[key] = max(known, offset)
        elif len(self._last) < self._limit:
            self._last[key] = offset
            self._last.move_to_end(key, last=False)
        else:
            self._dropped = max(self._dropped, offset + 1)

    def read_from(self, offset: int) -> None:
        """The tail has read every record at or after `offset`, or will."""
        self._read_from = offset if self._read_from is None else min(self._read_from, offset)
        self.complete_from(offset)

    def complete_from(self, offset: int) -> None:
        """Every channel with a record at or after `offset` is seen or restored before anybody asks. Of several the lowest counts."""
        self._begins = offset if self._begins is None else min(self._begins, offset)

    def gap(self, offset: int) -> None:
        """Records before `offset` were never read: any channel may have had one."""
        self._last.clear()
        self._begins = self._read_from = self._dropped = offset

    def quiet_since(self, key: bytes, offset: int) -> bool:
        """Whether the channel certainly has no record after `offset`."""
        last, begins = self._last.get(key), self._begins
        if begins is None:
            return False
        # Of the time before the table begins it may know an earlier record than the last one.
        return (max(begins, self._dropped) if last is None else max(begins, last + 1)) <= offset + 1
