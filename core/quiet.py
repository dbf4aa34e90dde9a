"""What the owner of a partition keeps of channels that have gone quiet: the place of their last record, one state record (`LastState`) per
quiet period. With it a core that starts knows what it will not read: that nothing has happened on a channel since a client was there.

Only records count that a replay would bring: no duplicates, nothing ephemeral, nothing that is shown to nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from core import state
from core.state import LastState

QUIET_MS = 60_000
"""A channel is quiet once its last record is this old by broker time, in milliseconds: well within what every core reads at its start."""
RETAINED_MS = 24 * 3_600_000
"""How long the log keeps records at least, in milliseconds. Of what is older nobody asks for more than that it is gone."""

Changes = dict[bytes, bytes | None]
"""State records by key; None is a tombstone."""


class QuietChannels:
    """The channels of one partition, at most `limit` of them.

    `known_from`: every channel with a record at or after this offset is in the table, so one that is not had its last record before it.
    """

    __slots__ = ("_kept", "_limit", "_recent", "known_from")

    def __init__(self, limit: int, known_from: int) -> None:
        self._limit = max(1, limit)
        self._recent: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """Log key → (offset, broker time) of channels that are not yet quiet, in the order of their last records."""
        self._kept: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """The same of those that the state has."""
        self.known_from = known_from

    def __len__(self) -> int:
        return len(self._recent) + len(self._kept)

    def saw(self, key: bytes, offset: int, at: int, changes: Changes) -> None:
        """The partition's next record that counts. `at` is broker time in milliseconds."""
        recent = self._recent
        recent[key] = (offset, at)
        recent.move_to_end(key)
        # What the state says of it is no longer the last, which does no harm: who reads the state reads this record too.
        self._kept.pop(key, None)
        if len(recent) + len(self._kept) > self._limit:
            if not self._kept:
                self._keep(changes)
            self._drop(changes)

    def restore(self, lasts: dict[bytes, LastState]) -> None:
        """What the state says, by log key, before anything else is done."""
        for key, last in sorted(lasts.items(), key=lambda each: each[1].offset):
            self._kept[key] = (last.offset, last.at)

    def sweep(self, now_ms: int, changes: Changes) -> None:
        """Add to `changes` what the passing of time makes of the state. `now_ms` is broker time."""
        while self._recent and next(iter(self._recent.values()))[1] <= now_ms - QUIET_MS:
            self._keep(changes)
        while self._kept and next(iter(self._kept.values()))[1] <= now_ms - RETAINED_MS:
            self._drop(changes)

    def _keep(self, changes: Changes) -> None:
        key, (offset, at) = self._recent.popitem(last=False)
        self._kept[key] = (offset, at)
        changes[state.last_key(key)] = state.encode(LastState(offset=offset, at=at))

    def _drop(self, changes: Changes) -> None:
        """Forget the channel that has been quiet for longest."""
        key, (offset, _) = self._kept.popitem(last=False)
        changes[state.last_key(key)] = None
        self.known_from = max(self.known_from, offset + 1)


def lasts(records: Mapping[bytes, bytes]) -> dict[bytes, LastState]:
    """The last records among records of the state, by log key."""
    found: dict[bytes, LastState] = {}
    for key, value in records.items():
        match state.decode(key, value):
            case ([_, bytes(log_key)], LastState() as last):
                found[log_key] = last
    return found
