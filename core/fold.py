"""No duplicates, without coordination: a verdict on each record that every reader of the log reaches by itself.

A record is a duplicate if *any* earlier record of its channel, accepted or not, carries the same publish id and lies at most `WINDOW_MS`
before it by broker time. So the verdict depends on nothing older than the window, and any two readers that started `WINDOW_MS` and
`SKEW_MS` before a record agree on it. Counting refused occurrences too is what makes that hold: otherwise the verdict on the third of
three would depend on the verdict on the second, and so on back to the beginning of the log.

No writer repeats an id further apart than the window: 20 s until an edge gives a publish up, 120 s to resume, 60 s inside a producer.
"""

from __future__ import annotations

from collections import deque

import msgspec

WINDOW_MS = 240_000
"""How far back an occurrence counts, in milliseconds of broker time."""
SKEW_MS = 10_000
"""How far broker time may step back when a partition changes its leader, in milliseconds."""

_BUCKET_MS = 10_000
_BUCKET_IDS = 65_536


class _Seen(msgspec.Struct, gc=False):
    """An id: when it was last seen, and where first."""

    last: int
    first: int


class _Window:
    """The ids of one partition. `buckets` holds their hashes by time of last sight, so that forgetting needs no scan of the table."""

    __slots__ = ("bucket", "bucket_end", "buckets", "table")

    def __init__(self) -> None:
        self.table: dict[int, _Seen] = {}
        self.bucket: list[int] = []
        self.bucket_end = 0
        self.buckets: deque[tuple[int, list[int]]] = deque()


class Fold:
    """One table of recent publish ids for each partition: keyed 64-bit hash of (channel, id) → (last timestamp, first offset).

    The hash is Python's own, of a tuple of a secret, the channel and the id: 0.1 µs against 0.9 µs for keyed BLAKE2b. Its parts are SipHash
    under a seed that is random per process, so a client cannot aim a collision at somebody else's id. One id costs about 200 bytes.
    """

    def __init__(self, max_ids: int, secret: bytes) -> None:
        self._max = max_ids
        self._secret = secret
        self._windows: dict[int, _Window] = {}
        self.ids = 0
        """Ids remembered now: the table's fill."""
        self.forgotten_early = 0
        """Ids dropped at the bound before their window was over. Above zero, duplicates may get through."""

    def see(self, partition: int, key: bytes, publish_id: str, timestamp: int, offset: int) -> int | None:
        """The verdict on the next record of a partition: None if it is the first of its id, otherwise the offset of the first.

        Records of one partition come in offset order, each once. O(1); about 1 µs.
        """
        window = self._windows.get(partition)
        if window is None:
            window = self._windows[partition] = _Window()
        if timestamp >= window.bucket_end or len(window.bucket) >= _BUCKET_IDS:
            self._turn(window, timestamp)
        digest = hash((self._secret, key, publish_id))
        table = window.table
        known = table.get(digest)
        window.bucket.append(digest)
        if known is None:
            table[digest] = _Seen(timestamp, offset)
            self.ids += 1
            if self.ids > self._max:
                self._forget_early()
            return None
        if timestamp - known.last > WINDOW_MS:
            known.last, known.first = timestamp, offset
            return None
        known.last = max(timestamp, known.last)
        return known.first

    def first(self, partition: int, key: bytes, publish_id: str) -> int | None:
        """The offset of the first occurrence of an id that has been seen, None if it is not remembered."""
        window = self._windows.get(partition)
        if window is None:
            return None
        known = window.table.get(hash((self._secret, key, publish_id)))
        return None if known is None else known.first

    def forget(self, partition: int) -> None:
        """The partition is read no further, or from elsewhere."""
        window = self._windows.pop(partition, None)
        if window is not None:
            self.ids -= len(window.table)

    def _turn(self, window: _Window, timestamp: int) -> None:
        """Begin a new bucket, and forget those that no later record can look at."""
        if window.bucket:
            window.buckets.append((window.bucket_end, window.bucket))
            window.bucket = []
        window.bucket_end = max(window.bucket_end, timestamp + _BUCKET_MS)
        horizon = timestamp - WINDOW_MS - SKEW_MS
        while window.buckets and window.buckets[0][0] <= horizon:
            self._drop(window)

    def _drop(self, window: _Window) -> int:
        """Forget the oldest bucket, except ids seen again since. Returns how many were forgotten."""
        end, digests = window.buckets.popleft()
        table, dropped = window.table, 0
        for digest in digests:
            known = table.get(digest)
            if known is not None and known.last < end:
                del table[digest]
                dropped += 1
        self.ids -= dropped
        return dropped

    def _forget_early(self) -> None:
        """The bound is reached: the largest partition loses its oldest bucket."""
        window = max(self._windows.values(), key=lambda w: len(w.table))
        if not window.buckets:
            window.buckets.append((window.bucket_end, window.bucket))
            window.bucket = []
        self.forgotten_early += self._drop(window)
