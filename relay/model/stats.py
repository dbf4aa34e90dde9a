"""Statistics of an app: what is counted, in which intervals, and how it is shown. Source: specification TS12; Ably protocol docs, 8.5.

Several processes count for one app at the same time. What each has counted in an interval is a list of numbers (`GAUGES`, then `SUMS`),
and the list of an interval only grows. So two lists of one process and interval are joined by taking the later of each number, in
whichever order they come (`join`), and those of several processes are added up (`merge`).

Two things have a level rather than a number of events: connections and channels. Each core sees all of them, so theirs are not added: the
highest peak and the lowest low of any core count, and the mean is that of what all cores have seen.
"""

from __future__ import annotations

import operator
import re
from calendar import monthrange
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from relay.model.errors import RelayError

UNITS = ("minute", "hour", "day", "month")
_UNIT_BY_LENGTH = {16: "minute", 13: "hour", 10: "day", 7: "month"}
_LENGTH = {unit: length for length, unit in _UNIT_BY_LENGTH.items()}
MINUTE_MS = 60_000
APP_SCHEMA = "https://schemas.ably.com/json/app-stats-0.0.5.json"
ACCOUNT_SCHEMA = "https://schemas.ably.com/json/account-stats-0.0.3.json"

LEVELS = ("connections.all", "channels")
CONNECTIONS, CHANNELS = range(2)
GAUGES: tuple[str, ...] = tuple(f"{level}.{what}" for level in LEVELS for what in ("area", "ms", "peak", "min"))
"""Of each level: its integral over the time in which it was seen, that time (milliseconds), its highest and its lowest."""
SUMS: tuple[str, ...] = (
    *(
        f"messages.{direction}.{transport}.{kind}.{what}"
        for direction in ("inbound", "outbound")
        for transport in ("realtime", "rest")
        for kind in ("messages", "presence")
        for what in ("count", "data")
    ),
    *(f"messages.persisted.{kind}.{what}" for kind in ("messages", "presence") for what in ("count", "data")),
    *("connections.all.opened", "channels.opened"),
    *(f"apiRequests.{kind}.{what}" for kind in ("other", "tokenRequests") for what in ("succeeded", "failed", "refused")),
)
"""Numbers of events. New ones go to the end: a list is read by a core of another version."""
IN_REALTIME = SUMS.index("messages.inbound.realtime.messages.count")
"""Each of these is a count; its bytes (`data`) are the next one."""
IN_REALTIME_PRESENCE = SUMS.index("messages.inbound.realtime.presence.count")
IN_REST = SUMS.index("messages.inbound.rest.messages.count")
OUT_REALTIME = SUMS.index("messages.outbound.realtime.messages.count")
OUT_REALTIME_PRESENCE = SUMS.index("messages.outbound.realtime.presence.count")
OUT_REST = SUMS.index("messages.outbound.rest.messages.count")
OUT_REST_PRESENCE = SUMS.index("messages.outbound.rest.presence.count")
CONNECTIONS_OPENED, CHANNELS_OPENED = SUMS.index("connections.all.opened"), SUMS.index("channels.opened")
SUCCEEDED, FAILED, REFUSED = (SUMS.index(f"apiRequests.other.{what}") for what in ("succeeded", "failed", "refused"))
TOKEN_SUCCEEDED, TOKEN_REFUSED = (SUMS.index(f"apiRequests.tokenRequests.{what}") for what in ("succeeded", "refused"))

SIZE = len(GAUGES) + len(SUMS)
MOST = (1 << 53) - 1
"""Largest number of a list."""
_REPEATED = 3
"""How often an interval that is over is reported: a link, or the core behind it, may be lost on the way."""
_ENDED = 240
"""Intervals over and not reported as often, while there is no link. Above it: the oldest are dropped."""

Values = Sequence[int]
Interval = tuple[str, list[int]]
"""Its id, and what was counted in it."""


# --- intervals -----------------------------------------------------------------------------------------------------------------------


def interval_id(at_ms: int, unit: str = "minute") -> str:
    """The interval that a time lies in: `2026-02-03:15:04`, and shorter ones for longer units. UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d:%H:%M")[: _LENGTH[unit]]


def unit_of(interval: str) -> str:
    return _UNIT_BY_LENGTH[len(interval)]


def span(interval: str) -> tuple[int, int]:
    """First and last millisecond of an interval. Raises ValueError for what is no id of one."""
    match = _INTERVAL.fullmatch(interval)
    if match is None:
        raise ValueError("not an interval")
    year, month, day, hour, minute = (None if part is None else int(part) for part in match.groups())
    assert year is not None, "the pattern has one"
    assert month is not None, "the pattern has one"
    start = datetime(year, month, day or 1, hour or 0, minute or 0, tzinfo=UTC)
    hours = 24 * monthrange(year, month)[1] if day is None else 24
    length_ms = hours * 3_600_000 if hour is None else 3_600_000 if minute is None else MINUTE_MS
    start_ms = int(start.timestamp()) * 1000
    return start_ms, start_ms + length_ms - 1


_INTERVAL = re.compile(r"(19[789]\d|20\d\d)-(\d\d)(?:-(\d\d)(?::(\d\d)(?::(\d\d))?)?)?", re.ASCII)


class Query(NamedTuple):
    """Intervals of one unit between two, both inclusive, in the order of their ids; behind `after` in the direction asked for."""

    unit: str
    start: str
    end: str
    backwards: bool
    limit: int
    after: str | None


def asked(params: Mapping[str, str], limit: int, now_ms: int) -> Query:
    """What `start`, `end`, `direction`, `unit` (or `by`) and `cursor` of a request ask for. Raises RelayError 40000, 40003."""
    unit = params.get("unit") or params.get("by") or "minute"
    if unit not in UNITS:
        raise RelayError(40003, f"invalid unit: {', '.join(UNITS)}")
    direction = params.get("direction") or "backwards"
    if direction not in ("backwards", "forwards"):
        raise RelayError(40003, "invalid direction: backwards or forwards")
    start_ms, end_ms = _bound(params, "start", 0)[0], _bound(params, "end", now_ms)[1]
    if start_ms > end_ms:
        raise RelayError(40000, "invalid range: start is after end")
    after = params.get("cursor") or None
    if after is not None and (len(after) != _LENGTH[unit] or _INTERVAL.fullmatch(after) is None):
        raise RelayError(40011, "invalid cursor")
    return Query(unit, interval_id(start_ms, unit), interval_id(end_ms, unit), direction == "backwards", limit, after)


_LATEST_MS = 4_102_444_799_999
"""The end of 2099: later bounds mean the same."""


def _bound(params: Mapping[str, str], name: str, default: int) -> tuple[int, int]:
    text = params.get(name)
    if not text:
        return default, default
    if text.isascii() and text.isdigit() and len(text) <= 16:
        at_ms = min(int(text), _LATEST_MS)
        return at_ms, at_ms
    try:
        return span(text)
    except ValueError:
        raise RelayError(40003, f"invalid {name}: milliseconds since 1970, or an interval like 2026-02-03:15:04") from None


# --- lists of numbers ----------------------------------------------------------------------------------------------------------------


def checked(values: Sequence[int]) -> list[int] | None:
    """A list that another process has sent, as long as ours are; None for what cannot be one."""
    if not all(0 <= value <= MOST for value in values):
        return None
    return [*values[:SIZE], *(0,) * (SIZE - len(values))]


def trimmed(values: Values) -> list[int]:
    """Without the zeros at its end."""
    end = len(values)
    while end and not values[end - 1]:
        end -= 1
    return list(values[:end])


def join(known: Values, other: Values) -> list[int]:
    """Two lists of one process for one interval: what is known after both, whichever came first."""
    joined = list(map(max, known, other))
    for level in range(len(LEVELS)):
        at = 4 * level
        if known[at + 1] and other[at + 1]:  # both have seen it
            joined[at + 3] = min(known[at + 3], other[at + 3])
    return joined


def merge(lists: Iterable[Values]) -> list[int]:
    """Those of all processes for one interval; each as long as ours."""
    merged, levels = [0] * SIZE, [0] * len(GAUGES)
    seen = [False] * len(LEVELS)
    for values in lists:
        merged = list(map(operator.add, merged, values))
        for level in range(len(LEVELS)):
            at = 4 * level
            area, ms, peak, low = values[at : at + 4]
            if ms or peak:
                low = min(levels[at + 3], low) if seen[level] else low
                levels[at : at + 4] = levels[at] + area, levels[at + 1] + ms, max(levels[at + 2], peak), low
                seen[level] = True
    return [*levels, *merged[len(GAUGES) :]]


# --- what clients read ---------------------------------------------------------------------------------------------------------------


def _contributes(name: str) -> tuple[str, ...]:
    """The entries that a number is part of."""
    path = name.split(".")
    match path:
        case ["messages", "persisted", _, what]:
            return name, f"messages.persisted.all.{what}"
        case ["messages", direction, transport, kind, what]:
            return (
                name,
                f"messages.{direction}.{transport}.all.{what}",
                f"messages.{direction}.all.{kind}.{what}",
                f"messages.{direction}.all.all.{what}",
                f"messages.all.{kind}.{what}",
                f"messages.all.all.{what}",
            )
        case ["apiRequests", _, what]:
            return name, f"apiRequests.all.{what}"
    return (name,)


_CONTRIBUTES = [_contributes(name) for name in SUMS]


def entries(values: Values) -> dict[str, int | float]:
    """By their names, with the sums over transports and kinds; only what is not zero."""
    found: dict[str, int | float] = {}
    for index, value in enumerate(values[len(GAUGES) :]):
        if value:
            for name in _CONTRIBUTES[index]:
                found[name] = found.get(name, 0) + value
    for level, name in enumerate(LEVELS):
        area, ms, peak, low = values[4 * level : 4 * level + 4]
        if peak:
            found[f"{name}.peak"] = peak
        if low:
            found[f"{name}.min"] = low
        if ms and area:
            found[f"{name}.mean"] = round(area / ms, 3)
    return found


def nested(values: Values) -> dict[str, Any]:
    """The same in the form of protocol version 2."""
    found: dict[str, Any] = {}
    for name, value in entries(values).items():
        path = name.split(".")
        match path:
            case ["messages", *rest]:
                path = rest
            case ["apiRequests", "all", _]:
                continue
            case ["apiRequests", "other", what]:
                path = ["apiRequests", what]
            case ["apiRequests", "tokenRequests", what]:
                path = ["tokenRequests", what]
        place = found
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return found


def shape(owner: Mapping[str, str], interval: str, values: Values, now_ms: int, *, schema: str = APP_SCHEMA) -> dict[str, Any]:
    """One interval as protocol version 3 and later show it. `owner`: whose it is (`appId`)."""
    found: dict[str, Any] = {"intervalId": interval, "unit": unit_of(interval), **owner, "schema": schema, "entries": entries(values)}
    now = interval_id(now_ms)
    if now.startswith(interval):
        found["inProgress"] = now
    return found


def shape_2(interval: str, values: Values) -> dict[str, Any]:
    return {"intervalId": interval, "unit": unit_of(interval), **nested(values)}


_OUTCOMES = ("succeeded", "failed", "refused")
_LEVEL = ("opened", "peak", "min")
_GIVEN = {
    **{name.removeprefix("messages."): name for name in SUMS if name.startswith("messages.")},
    **{f"apiRequests.{what}": f"apiRequests.other.{what}" for what in _OUTCOMES},
    **{f"tokenRequests.{what}": f"apiRequests.tokenRequests.{what}" for what in _OUTCOMES},
    **{f"connections.{way}.{what}": f"connections.all.{what}" for way in ("tls", "plain", "all") for what in _LEVEL},
    **{f"channels.{what}": f"channels.{what}" for what in _LEVEL},
}
_INDEX = {name: index for index, name in enumerate((*GAUGES, *SUMS))}


def given(item: Mapping[str, Any]) -> list[int]:
    """A list from an interval in the form of protocol version 2, as test suites post it. What is not known is left out; what is shown
    as a sum of others counts as if it were not there. Raises RelayError 40000."""
    values = [0] * SIZE
    for path, name in _GIVEN.items():
        place: Any = item
        for part in path.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        if place is None:
            continue
        if type(place) is not int or not 0 <= place <= 1 << 40:
            raise RelayError(40000, f"invalid statistics: {path} must be a whole number")
        values[_INDEX[name]] += place
    return values


# --- counting ------------------------------------------------------------------------------------------------------------------------


class _Running:
    """An interval that is not over: where the numbers stood when it began."""

    __slots__ = ("areas", "counts", "interval", "lows", "observed", "peaks")

    def __init__(self, interval: str, counts: Values, areas: Values, observed: int, levels: Values) -> None:
        self.interval = interval
        self.counts = list(counts)
        self.areas = list(areas)
        self.observed = observed
        self.peaks = list(levels)
        self.lows = list(levels)


class Usage:
    """What one process counts of one app. To count is to add to `counts`, in the order of `SUMS`: nothing else is done for a message.

    `since_ms`: from when on this process would have seen levels; None if it does not look.
    """

    __slots__ = ("_areas", "_at_ms", "_changed", "_ended", "_levels", "_minute", "_running", "_since_ms", "_told", "counts")

    def __init__(self, now_ms: int, since_ms: int | None = None) -> None:
        self.counts = [0] * len(SUMS)
        self._levels = [0] * len(LEVELS)
        self._areas = [0] * len(LEVELS)
        self._since_ms = since_ms
        self._at_ms = now_ms
        self._minute = now_ms // MINUTE_MS
        self._running: list[_Running] = []
        self._ended: list[tuple[int, str, list[int]]] = []
        self._told: list[int] = list(self.counts)
        self._changed = False
        for unit in UNITS:
            interval = interval_id(now_ms, unit)
            seen = 0 if since_ms is None else max(0, span(interval)[0] - since_ms)
            self._running.append(_Running(interval, self.counts, self._areas, seen, self._levels))

    def begin(self, now_ms: int) -> None:
        """Levels are known from now on: what was heard before was of the past."""
        self._at_ms = self._since_ms = now_ms
        self._minute = now_ms // MINUTE_MS
        self._areas = [0] * len(LEVELS)
        self._running = [_Running(interval_id(now_ms, unit), self.counts, self._areas, 0, self._levels) for unit in UNITS]

    def move(self, level: int, by: int, now_ms: int) -> None:
        """A level has changed."""
        self._advance(now_ms)
        now = self._levels[level] = max(0, self._levels[level] + by)
        for running in self._running:
            running.peaks[level] = max(running.peaks[level], now)
            running.lows[level] = min(running.lows[level], now)
        self._changed = True

    def _advance(self, now_ms: int) -> None:
        passed = max(0, now_ms - self._at_ms)
        self._at_ms += passed
        for level, height in enumerate(self._levels):
            self._areas[level] += height * passed

    def turn(self, now_ms: int) -> bool:
        """Once a second or so, and when an interval ends: whether one has."""
        self._advance(now_ms)
        if self._at_ms // MINUTE_MS == self._minute:
            return False
        self._minute = self._at_ms // MINUTE_MS
        minute = interval_id(self._at_ms)
        for index, running in enumerate(self._running):
            interval = minute[: len(running.interval)]
            if interval == running.interval:
                continue
            values = self._values(running)
            if any(values):
                self._ended.append((_REPEATED, running.interval, values))
                self._changed = True
            self._running[index] = _Running(interval, self.counts, self._areas, self._observed, self._levels)
        del self._ended[:-_ENDED]
        return True

    def report(self) -> tuple[list[Interval], list[Interval]] | None:
        """The running intervals and those that are over; None if there is nothing new to say."""
        current: list[Interval] = []
        if self._changed or self._told != self.counts:
            self._changed, self._told = False, list(self.counts)
            current = [(each.interval, values) for each in self._running if any(values := self._values(each))]
        ended = [(interval, values) for _, interval, values in self._ended]
        self._ended = [(times - 1, interval, values) for times, interval, values in self._ended if times > 1]
        return (current, ended) if current or ended else None

    @property
    def _observed(self) -> int:
        return 0 if self._since_ms is None else max(0, self._at_ms - self._since_ms)

    def _values(self, running: _Running) -> list[int]:
        values: list[int] = []
        for level in range(len(LEVELS)):
            area, seen = self._areas[level] - running.areas[level], self._observed - running.observed
            values += (area, seen, running.peaks[level], running.lows[level]) if running.peaks[level] else (0, 0, 0, 0)
        values += map(operator.sub, self.counts, running.counts)
        return values
