"""Statistics of apps: what every core and edge has counted, kept in `tidegate.sessions`, summed up here. Source: Ably protocol docs, 8.5.

    stats:<app>:<process>               what it has counted in the minute, hour, day and month that run: overwritten every few seconds
    stats:<app>:<process>:<interval>    the same of one that is over

A process is a core or an edge from its start to its end. A record says everything that its process has counted in the interval so far, so
that it may be written twice, late, or by another core (an edge's, after the loss of a link), and nothing counts twice. Numbers of one
process and interval are joined, those of several added (`relay.model.stats`).

Nobody adds minutes up to hours: each process counts all four at once, so that nothing has to be done at the end of one that a core which
dies could leave undone. Records go when their time is over, by the owner of the partition that the app's `[meta]stats:minute` is in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nlargest, nsmallest

import msgspec

from core.effects import Effect, WriteSession
from relay.link.frames import Counted
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from relay.model.stats import (
    GAUGES,
    MINUTE_MS,
    UNITS,
    Interval,
    Query,
    Usage,
    Values,
    checked,
    given,
    interval_id,
    join,
    merge,
    span,
    trimmed,
    unit_of,
)

PREFIX = "stats"
RECORD_VERSION = 1
SHOWN_AFTER_MS = 15_000
"""How long after its end a minute is shown on its metachannel: by then every process has reported it."""
_SKEW_MS = 600_000
"""How far from this core's clock the intervals that an edge reports as running may be; those that are over, an hour more."""
_EXPIRED_PER_SWEEP = 1_000
_MONTH = UNITS.index("month")
_UNIT = {unit: index for index, unit in enumerate(UNITS)}
MAX_POSTED = 1_000
"""Intervals of one `POST /stats`. Above it: 40000."""

Records = list[tuple[str, bytes]]


class StatsRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    v: int = RECORD_VERSION
    intervals: dict[str, list[int]]
    """Zeros at the end left out."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StatsRecord).decode


class _Entry:
    """What one process has counted in one interval."""

    __slots__ = ("at_ms", "ended", "values")

    def __init__(self) -> None:
        self.values: tuple[int, ...] = ()
        self.at_ms = 0
        """When it was written last, broker time."""
        self.ended = False
        """It has a record of its own."""


_Sources = dict[str, _Entry]
_Table = tuple[dict[str, _Sources], ...]
"""Of one app, by unit: by interval, by process."""


class Statistics:
    """`source` is a name that no other process ever has. `emit` takes effects, `number` gives tickets. `owns(app)`: whether it is for this
    core to take out the records of an app."""

    def __init__(
        self,
        source: str,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        emit: Callable[[Effect], None],
        number: Callable[[], int],
        owns: Callable[[str], bool],
    ) -> None:
        self._source = source
        self._limits = limits
        self._counters = counters
        self._emit = emit
        self._number = number
        self._owns = owns
        self._retention_ms = tuple(
            int(seconds * 1000) for seconds in (limits.stats_minutes_s, limits.stats_hours_s, limits.stats_days_s, limits.stats_days_s)
        )
        self._usages: dict[str, Usage] = {}
        self._uncounted = Usage(0)
        self._begun_ms: int | None = None
        self._table: dict[str, _Table] = {}
        self._size = 0
        self._by_age: tuple[deque[tuple[int, str, str, str]], ...] = tuple(deque() for _ in UNITS)
        """Of each unit: when it was written, app, interval, process; about the oldest first."""
        self._reported: dict[str, set[str]] = {}
        """The apps that an edge process has reported, by its boot id."""
        self._flying: dict[int, tuple[str, bytes]] = {}
        self._again: dict[str, bytes] = {}
        """Records that could not be written."""
        self._flush_at_ms = 0
        self._minute = 0
        self._shown = 0
        """The last minute (since 1970) that was on the metachannels."""

    def __len__(self) -> int:
        return self._size

    # --- counting --------------------------------------------------------------------------------------------------------------------

    def of(self, app: str, now_ms: int) -> Usage:
        """Where to count for an app."""
        usage = self._usages.get(app)
        if usage is None:
            if len(self._usages) >= self._limits.stats_apps:
                self._counters["stats.full"] += 1
                return self._uncounted
            since_ms = now_ms if self._begun_ms is None else self._begun_ms
            usage = self._usages[app] = Usage(now_ms, since_ms)
        return usage

    def begin(self, now_ms: int) -> None:
        """What happened before this core started has been read: from now on it sees how many there are."""
        self._begun_ms = now_ms
        self._shown = (now_ms - SHOWN_AFTER_MS) // MINUTE_MS - 1
        for usage in self._usages.values():
            usage.begin(now_ms)

    # --- what edges report -----------------------------------------------------------------------------------------------------------

    def knows(self, boot: str, app: str) -> bool:
        """Whether that edge process has been believed about that app, by whichever core."""
        table = self._table.get(app)
        return app in self._reported.get(boot, ()) or (table is not None and any(boot in sources for sources in table[_MONTH].values()))

    def reported(self, boot: str, frame: Counted, now_ms: int) -> None:
        """An edge that is linked here has counted. Levels are no business of edges."""
        apps = self._reported.setdefault(boot, set())
        if ":" in boot or (frame.app not in apps and len(apps) >= self._limits.stats_apps):
            self._counters["stats.refused"] += 1
            return
        apps.add(frame.app)
        current = self._of_edge(frame.current, now_ms, _SKEW_MS)
        ended = self._of_edge(frame.ended, now_ms, _SKEW_MS + 60 * MINUTE_MS)
        if current is None or ended is None:
            self._counters["stats.refused"] += 1
        else:
            self._write(frame.app, boot, current, ended)

    def _of_edge(self, intervals: Sequence[Interval], now_ms: int, late_ms: int) -> list[Interval] | None:
        found = []
        for interval, given_values in intervals:
            values = checked(given_values)
            try:
                first_ms, last_ms = span(interval)
            except ValueError:
                return None
            if values is None or first_ms > now_ms + _SKEW_MS or last_ms < now_ms - late_ms:
                return None
            found.append((interval, [0] * len(GAUGES) + values[len(GAUGES) :]))
        return found

    def forget(self, boot: str) -> None:
        """That edge process has no link here any more."""
        self._reported.pop(boot, None)

    # --- writing ---------------------------------------------------------------------------------------------------------------------

    def _write(self, app: str, source: str, current: Sequence[Interval], ended: Sequence[Interval]) -> None:
        for interval, values in ended:
            known = self._entry(app, interval, source)
            if known is None or not known.ended or join(_padded(known.values), values) != _padded(known.values):
                self._put(f"{PREFIX}:{app}:{source}:{interval}", _record([(interval, values)]))
        if current:
            self._put(f"{PREFIX}:{app}:{source}", _record(current))

    def _put(self, key: str, value: bytes | None) -> None:
        ticket = self._number()
        if value is not None:
            self._again.pop(key, None)
            self._flying[ticket] = (key, value)
        self._emit(WriteSession(ticket, key, value))

    def settled(self, ticket: int, ok: bool) -> bool:
        """The record of this ticket was written, or failed to be. False: it is not one of these."""
        flown = self._flying.pop(ticket, None)
        if flown is None:
            return False
        if not ok:
            self._counters["stats.write_failed"] += 1
            if len(self._again) < self._limits.stats_apps:
                self._again.setdefault(*flown)
        return True

    def posted(self, app: str, items: object, source: str) -> Records:
        """Records for minutes that a client suite makes up, and the hours, days and months they are in. Raises RelayError 40000."""
        if not isinstance(items, list) or len(items) > MAX_POSTED:
            raise RelayError(40000, f"invalid statistics: must be a list of at most {MAX_POSTED}")
        sums: dict[str, list[int]] = {}
        for item in items:
            first_ms = _minute(item.get("intervalId")) if isinstance(item, dict) else None
            if first_ms is None:
                raise RelayError(40000, "invalid statistics: intervalId must be a minute")
            values = given(item)
            for unit in UNITS:
                interval = interval_id(first_ms, unit)
                sums[interval] = merge((sums[interval], values)) if interval in sums else values
        return [(f"{PREFIX}:{app}:{source}:{interval}", _record([(interval, values)])) for interval, values in sums.items()]

    # --- what every core reads -------------------------------------------------------------------------------------------------------

    def read(self, name: str, value: bytes | None, at_ms: int) -> None:
        """One record. `name` is its key without `stats:`; `at_ms` broker time."""
        if value is None:
            return  # everybody forgets by the same clock
        app, _, rest = name.partition(":")
        source, _, interval = rest.partition(":")
        try:
            intervals = _decode(value).intervals
            for each in intervals:
                span(each)
        except (msgspec.MsgspecError, ValueError):
            self._counters["sessions.unreadable"] += 1
            return
        for each, given_values in intervals.items():
            values = checked(given_values)
            if values is not None:
                self._take(app, source, each, values, at_ms, ended=bool(interval))

    def _take(self, app: str, source: str, interval: str, values: list[int], at_ms: int, *, ended: bool) -> None:
        entry = self._entry(app, interval, source)
        unit = _UNIT[unit_of(interval)]
        if entry is None:
            if self._size >= self._limits.stats_entries:
                self._counters["stats.full"] += 1
                return
            table = self._table.get(app)
            if table is None:
                table = self._table[app] = tuple({} for _ in UNITS)
            entry = table[unit].setdefault(interval, {})[source] = _Entry()
            self._size += 1
            self._by_age[unit].append((at_ms, app, interval, source))
        entry.values = tuple(trimmed(join(_padded(entry.values), values)))
        entry.at_ms = max(entry.at_ms, at_ms)
        entry.ended = entry.ended or ended

    def _entry(self, app: str, interval: str, source: str) -> _Entry | None:
        table = self._table.get(app)
        sources = None if table is None else table[_UNIT[unit_of(interval)]].get(interval)
        return None if sources is None else sources.get(source)

    # --- what is asked ---------------------------------------------------------------------------------------------------------------

    def find(self, apps: Iterable[str], query: Query) -> tuple[list[tuple[str, list[tuple[int, ...]]]], bool]:
        """The intervals that a query finds, each with the lists to be merged (`totals`), and whether there are more."""
        unit = _UNIT[query.unit]
        tables = [table[unit] for app in apps if (table := self._table.get(app)) is not None]
        start, end, after = query.start, query.end, query.after
        if after is not None:
            # A cursor is the last interval that was shown: what is between the bounds on its far side is left.
            start, end = (start, min(end, after)) if query.backwards else (max(start, after), end)
        ids = {interval for table in tables for interval in table if start <= interval <= end and interval != after}
        first = (nlargest if query.backwards else nsmallest)(query.limit, ids)
        found = [
            (interval, [entry.values for table in tables if interval in table for entry in table[interval].values()]) for interval in first
        ]
        return found, len(ids) > len(first)

    def page(self, app: str, query: Query) -> tuple[list[Interval], bool]:
        found, more = self.find((app,), query)
        return [(interval, trimmed(totals(lists))) for interval, lists in found], more

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def sweep(self, now_ms: int) -> None:
        """Once a second or so."""
        if self._begun_ms is None:
            return
        minute = now_ms // MINUTE_MS
        if minute != self._minute or now_ms >= self._flush_at_ms:
            self._minute, self._flush_at_ms = minute, now_ms + int(self._limits.stats_interval_s * 1000)
            self.flush(now_ms)
        self._forget(now_ms)

    def flush(self, now_ms: int) -> None:
        """Write what was counted here, and what could not be written before."""
        again, self._again = self._again, {}
        for key, value in again.items():
            self._put(key, value)
        for app, usage in self._usages.items():
            usage.turn(now_ms)
            report = usage.report()
            if report is not None:
                self._write(app, self._source, *report)

    def over(self, now_ms: int) -> Iterator[tuple[str, str]]:
        """Apps, and a minute that can be shown now: each minute once."""
        minute = (now_ms - SHOWN_AFTER_MS) // MINUTE_MS - 1
        if self._begun_ms is None or minute <= self._shown:
            return
        self._shown = minute
        interval = interval_id(minute * MINUTE_MS)
        for app, table in self._table.items():
            if interval in table[0]:
                yield app, interval

    def minute(self, app: str, interval: str) -> list[int]:
        """What is known of it now."""
        table = self._table.get(app)
        return totals(entry.values for entry in (table[0].get(interval, {}) if table is not None else {}).values())

    def _forget(self, now_ms: int) -> None:
        left = _EXPIRED_PER_SWEEP
        for unit, retention_ms in enumerate(self._retention_ms):
            ages = self._by_age[unit]
            while left and ages and ages[0][0] + retention_ms < now_ms:
                left -= 1
                _, app, interval, source = ages.popleft()
                entry = self._entry(app, interval, source)
                if entry is None:
                    continue
                if entry.at_ms + retention_ms >= now_ms:
                    ages.append((entry.at_ms, app, interval, source))
                else:
                    self._expire(app, interval, source, entry, unit)

    def _expire(self, app: str, interval: str, source: str, entry: _Entry, unit: int) -> None:
        table = self._table[app]
        del table[unit][interval][source]
        self._size -= 1
        if not table[unit][interval]:
            del table[unit][interval]
        if not any(table):
            del self._table[app]
        if self._owns(app):
            if entry.ended:
                self._put(f"{PREFIX}:{app}:{source}:{interval}", None)
            elif unit == _MONTH:  # the last that the process has said: what else is in that record was forgotten before
                self._put(f"{PREFIX}:{app}:{source}", None)


def _minute(interval: object) -> int | None:
    """When it begins; None for what is no minute."""
    try:
        return span(interval)[0] if isinstance(interval, str) and len(interval) == len(interval_id(0)) else None
    except ValueError:
        return None


def totals(lists: Iterable[Values]) -> list[int]:
    return merge(map(_padded, lists))


def _padded(values: Values) -> list[int]:
    return checked(values) or []


def _record(intervals: Iterable[Interval]) -> bytes:
    return _encode(StatsRecord(intervals={interval: trimmed(values) for interval, values in intervals}))
