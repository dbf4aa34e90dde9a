"""What `tidegate.config` says, record by record, and which of two conflicting writes counts.

Any core may write, and none is the master: two may change the same record at once. So every record carries `rev`, one more than that of
the record it was made from, and `change`, the id of the change it belongs to. Readers take a record only if its `rev` is higher than what
they have: **of two records with the same `rev` the first in the log counts**, for every reader. Its writer reads its own records back
before it answers, sees that it came second, and plans again from what is there now.

The topic is compacted, which keeps the *last* record of a key: the one that did not count. So what does count is written once more behind
it, at once by the writer that came second, and after `OVERLAID_S` by any core that still sees it so. A deletion is a record too
(`deleted`): a tombstone has no `rev`, and whoever changed the record meanwhile would bring it back to life. Tombstones are written when
a deleted, revoked or expired record is `KEPT_MS` old.

Records without `rev` (those of sandbox apps, and revocations by holders of API keys) and tombstones always count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

KINDS = ("app", "key", "namespace", "rule", "mapping", "steering", "token", "revocation")
"""Kinds of records that are kept here: what stands before the first colon of their keys."""
KEPT_MS = 30 * 86_400_000
"""How long a deleted, revoked or expired record stays, in milliseconds."""
OVERLAID_S = 5.0
"""How long the writer of a record that came second has to put it right, in seconds, before other cores do."""


class Entry:
    """One record as it counts now. `data` is its JSON object; `raw` the bytes."""

    __slots__ = ("change", "data", "deleted", "kind", "name", "raw", "rev")

    def __init__(self, kind: str, name: str, raw: bytes, data: dict[str, Any]) -> None:
        self.kind = kind
        self.name = name
        self.raw = raw
        self.data = data
        self.rev = _whole(data.get("rev"))
        self.change = str(data.get("change", ""))
        self.deleted = data.get("deleted") is True

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name}"


class Ledger:
    """Pure. `read` takes every record of the topic in its order."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._overlaid: dict[str, float] = {}
        """Keys whose last record in the topic is one that did not count, and since when."""
        self._mine: dict[str, bool | None] = {}
        """Changes of this core that are being written: whether their record counted, None before it was read."""

    def read(self, key: str, value: bytes | None, now: float) -> bool:
        """Whether the record counts. One that this ledger does not keep, or cannot read, does: others judge it."""
        kind, _, name = key.partition(":")
        entries = self._entries.get(kind)
        if entries is None:
            return True
        if value is None:
            entries.pop(name, None)
            self._overlaid.pop(key, None)
            return True
        try:
            data = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return True
        if not isinstance(data, dict):
            return True
        entry, known = Entry(kind, name, value, data), entries.get(name)
        counts = known is None or entry.rev == 0 or entry.rev > known.rev
        if counts:
            entries[name] = entry
            self._overlaid.pop(key, None)
        elif known is not None and known.raw == value:
            self._overlaid.pop(key, None)  # what counts, written once more
            return False
        else:
            self._overlaid.setdefault(key, now)
        if entry.change in self._mine:
            self._mine[entry.change] = counts
        return counts

    # --- reading -----------------------------------------------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Entry | None:
        """The record, if it is there and not deleted."""
        entry = self._entries[kind].get(name)
        return None if entry is None or entry.deleted else entry

    def rev(self, key: str) -> int:
        """That of the record as it counts, deleted or not; 0 if there is none."""
        kind, _, name = key.partition(":")
        entry = self._entries[kind].get(name)
        return 0 if entry is None else entry.rev

    def exists(self, kind: str, name: str) -> bool:
        """Whether there is such a record, deleted ones included: their ids are not used again."""
        return name in self._entries[kind]

    def of(self, kind: str, prefix: str = "") -> Iterator[Entry]:
        """Records of a kind whose name begins so, without the deleted, in the order in which they came to be. O(records of the kind)."""
        for name, entry in self._entries[kind].items():
            if not entry.deleted and name.startswith(prefix):
                yield entry

    # --- writing -----------------------------------------------------------------------------------------------------------------------

    def next(self, key: str, data: dict[str, Any], change: str) -> bytes:
        """The record that replaces what is there now."""
        return msgspec.json.encode({**data, "rev": self.rev(key) + 1, "change": change})

    def begin(self, change: str) -> None:
        self._mine[change] = None

    def end(self, change: str) -> bool | None:
        """Whether the record of a change counted; None if it has not been read back."""
        return self._mine.pop(change)

    # --- upkeep ------------------------------------------------------------------------------------------------------------------------

    def repairs(self, now: float, *, at_once: bool = False) -> list[tuple[str, bytes]]:
        """What counts, to be written once more behind what does not; without `at_once` where the writer had its time to do so."""
        found = []
        for key, since in self._overlaid.items():
            kind, _, name = key.partition(":")
            entry = self._entries[kind].get(name)
            if entry is not None and (at_once or now - since >= OVERLAID_S):
                found.append((key, entry.raw))
        return found

    def outdated(self, now_ms: int) -> list[str]:
        """Keys of records that have been deleted, revoked or expired for so long that a tombstone takes their place, and of those that
        belong to an app that is deleted."""
        found = []
        gone = {name for name, entry in self._entries["app"].items() if entry.deleted}
        for kind, entries in self._entries.items():
            for name, entry in entries.items():
                modified = _whole(entry.data.get("modified"))
                over = entry.deleted or (kind in ("key", "token") and entry.data.get("status") == 1)
                expires = _whole(entry.data.get("expires")) if kind == "token" else 0
                steered = self._entries["mapping"].get(name) if kind == "steering" else None
                if (
                    (over and modified and now_ms - modified >= KEPT_MS)
                    or (expires and now_ms - expires >= KEPT_MS)
                    or (kind not in ("app", "token") and _app(kind, name) in gone)
                    or (steered is not None and steered.deleted)
                ):
                    found.append(entry.key)
        return found


def _app(kind: str, name: str) -> str:
    return name.partition("." if kind in ("key", "revocation") else ":")[0]


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
