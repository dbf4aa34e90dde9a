"""The audit: who changed what, when, from where, what it was before and is now; and who was shown secrets. Without the secrets.

Records of `tidegate.config` under `audit:c:<id>` (changes), `audit:r:<id>` (readings of secrets) and `audit:k:<id>` (what holders of API
keys did: they revoke tokens), so that none crowds out another: to whoever has some API key the audit of the operators is out of reach.
The record of a change is written *before* the change, as `pending`, and once more when the change has been read back, as `applied`, or as
`lost` when another change of the same record came first. One that stays `pending` tells that a core died or Kafka went away in between:
compare it with what is there.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

CHANGE = "audit:c:"
READING = "audit:r:"
BY_KEY = "audit:k:"
Outcome = Literal["pending", "applied", "lost", "shown"]

MAX_SIDE_BYTES = 32_768
"""Most that `before` or `after` of one entry may take as JSON. Above it: the entry says that it was left out, and how large it was."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`id` begins with the time in milliseconds, so that text order is about the order of time."""

    id: str
    at: int
    by: dict[str, str]
    """`type` (`token`, `certificate`, or `key` for an API key), `id`, `name`."""
    source: str = ""
    """The address that the request came from; with an API key the edge that it came through."""
    core: str = ""
    action: str
    target: dict[str, str]
    before: Any = None
    after: Any = None
    outcome: Outcome


class AuditTrail:
    """The newest entries, in the order of the log; bounded by number and by bytes, each kind for itself."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: dict[str, dict[str, tuple[int, AuditEntry]]] = {CHANGE: {}, READING: {}, BY_KEY: {}}
        self._bytes = dict.fromkeys(self._kept, 0)
        self.unreadable = 0

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def read(self, key: str, value: bytes | None) -> None:
        prefix = key[: len(CHANGE)]
        kept = self._kept.get(prefix)
        if kept is None:
            return
        size, _ = kept.pop(key, (0, None))
        self._bytes[prefix] -= size
        if value is None:
            return
        try:
            kept[key] = (len(value), msgspec.json.decode(value, type=AuditEntry))
            self._bytes[prefix] += len(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.unreadable += 1

    def surplus(self) -> list[str]:
        """Keys of the oldest entries beyond the bounds: they get tombstones."""
        found = []
        for prefix, kept in self._kept.items():
            number, size = len(kept), self._bytes[prefix]
            for key, (each, _) in kept.items():
                if number <= self._most and size <= self._most_bytes:
                    break
                found.append(key)
                number, size = number - 1, size - each
        return found

    def newest(self, limit: int, *, before: str = "", app: str = "", action: str = "") -> list[AuditEntry]:
        """Newest first; `before` is the id of the last entry of the page before. O(entries)."""
        entries = [entry for kept in self._kept.values() for _, entry in kept.values()]
        entries.sort(key=lambda entry: entry.id, reverse=True)
        return [
            entry
            for entry in entries
            if (not before or entry.id < before)
            and (not app or entry.target.get("app") == app)
            and (not action or entry.action.startswith(action))
        ][:limit]


def record_of(prefix: str, entry: AuditEntry) -> tuple[str, bytes]:
    """The record (key, value) of an entry: what it says of before and after within its bounds."""
    entry = msgspec.structs.replace(entry, before=side(entry.before), after=side(entry.after))
    return f"{prefix}{entry.id}", msgspec.json.encode(entry)


def side(value: Any) -> Any:
    """`before` or `after` as it is kept."""
    size = len(msgspec.json.encode(value))
    return value if size <= MAX_SIDE_BYTES else {"leftOut": f"{size} bytes of JSON"}
