"""The last message of each channel that a mapping with `keep_last` fills, however old: what `rewind=1` gives when the index holds nothing
of the channel any more. So a compacted topic is the initial state of the channels that it is mapped to.

The owner of a partition writes it to the state once the channel has been quiet for a while, as it does with the place of every channel's
last record (`core.quiet`), and every core reads the state when it starts and the log from then on. Whether a record is to be kept is said
by its publish id, so that nobody needs to know the mappings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from core import state
from core.quiet import QUIET_MS, Changes
from core.state import KeptState

PREFIX = "k:"
"""First part of the publish ids of what is kept; that of other mapped records is `m:`."""
OVERHEAD = 200
"""Bytes that one entry takes beside its key and value, roughly."""


class _Message(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()
    """Without it the message is what a tombstone became."""


class _Outline(msgspec.Struct):
    messages: list[_Message] = []


_outline = msgspec.msgpack.Decoder(_Outline).decode
_NULL = b"\xc0"


def is_tombstone(value: bytes) -> bool:
    """Whether the body of a mapped record has no data."""
    try:
        messages = _outline(value).messages
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True
    return not messages or bytes(messages[-1].data) in (b"", _NULL)


class KeptMessages:
    """Those of one partition, for readers: at most `limit` bytes, the one whose last message is oldest goes first."""

    __slots__ = ("_entries", "_limit", "dropped", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        """Log key → offset and value, in the order of the offsets as far as they came in it."""
        self.size = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[int, bytes] | None:
        """Offset and body of the last message."""
        return self._entries.get(key)

    def saw(self, key: bytes, offset: int, value: bytes) -> None:
        """The tail has read the next one. Offsets rise."""
        self._forget(key)
        if not is_tombstone(value):
            self._put(key, offset, value)

    def restore(self, kept: Mapping[bytes, KeptState]) -> None:
        """What the state says, by log key, before the tail has read anything, or after: the newer one counts."""
        for key, one in sorted(kept.items(), key=lambda each: each[1].offset):
            known = self._entries.get(key)
            if known is None or known[0] < one.offset:
                self._forget(key)
                self._put(key, one.offset, one.value)

    def _put(self, key: bytes, offset: int, value: bytes) -> None:
        self._entries[key] = (offset, value)
        self.size += OVERHEAD + len(key) + len(value)
        while self.size > self._limit and self._entries:
            self._forget(next(iter(self._entries)))
            self.dropped += 1

    def _forget(self, key: bytes) -> None:
        known = self._entries.pop(key, None)
        if known is not None:
            self.size -= OVERHEAD + len(key) + len(known[1])


class KeptToWrite:
    """Those of one partition that its owner has not written yet: at most `limit` bytes, beyond which they are written before they are
    quiet."""

    __slots__ = ("_limit", "_size", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[bytes, tuple[int, int, bytes]] = OrderedDict()
        """Log key → offset, broker time, value; in the order of their offsets."""
        self._size = 0

    def saw(self, key: bytes, offset: int, at: int, value: bytes, changes: Changes) -> None:
        """The partition's next one. `at` is broker time in milliseconds."""
        self._take(key)
        if is_tombstone(value):
            changes[state.kept_key(key)] = None
            return
        self._waiting[key] = (offset, at, value)
        self._size += len(key) + len(value)
        while self._size > self._limit and self._waiting:
            self._write(changes)

    def sweep(self, now_ms: int, changes: Changes) -> None:
        """Add to `changes` those that are quiet by now. `now_ms` is broker time."""
        while self._waiting and next(iter(self._waiting.values()))[1] <= now_ms - QUIET_MS:
            self._write(changes)

    def _write(self, changes: Changes) -> None:
        key = next(iter(self._waiting))
        offset, at, value = self._take(key)
        changes[state.kept_key(key)] = state.encode(KeptState(offset=offset, at=at, value=value))

    def _take(self, key: bytes) -> tuple[int, int, bytes]:
        found = self._waiting.pop(key, None)
        if found is None:
            return 0, 0, b""
        self._size -= len(key) + len(found[2])
        return found


def kept(records: Mapping[bytes, bytes]) -> dict[bytes, KeptState]:
    """The kept messages among records of the state, by log key."""
    found: dict[bytes, KeptState] = {}
    for key, value in records.items():
        if not state.is_kept(key):
            continue
        match state.decode(key, value):
            case ([_, bytes(log_key)], KeptState() as one):
                found[log_key] = one
    return found
