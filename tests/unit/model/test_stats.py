"""Statistics: intervals, lists of numbers and what they add up to. Specification TS12; Ably protocol docs, 8.5."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model import stats
from relay.model.errors import RelayError
from relay.model.stats import CHANNELS, CONNECTIONS, GAUGES, IN_REALTIME, IN_REST, OUT_REALTIME, SIZE, SUMS, UNITS, Usage

START_MS = int(datetime(2026, 11, 23, 22, 58, 30, tzinfo=UTC).timestamp()) * 1000


def values(**named: int) -> list[int]:
    """A list with these numbers, by their names with `_` for `.`."""
    names = [name.replace(".", "_") for name in (*GAUGES, *SUMS)]
    found = [0] * SIZE
    for name, value in named.items():
        found[names.index(name)] = value
    return found


# --- intervals


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2099, 12, 31)), st.sampled_from(UNITS))
def test_an_interval_holds_the_times_that_it_is_named_after(at: datetime, unit: str) -> None:
    at_ms = int(at.replace(tzinfo=UTC, microsecond=0).timestamp()) * 1000
    interval = stats.interval_id(at_ms, unit)
    first, last = stats.span(interval)
    assert stats.unit_of(interval) == unit
    assert first <= at_ms <= last
    assert {stats.interval_id(first, unit), stats.interval_id(last, unit)} == {interval}
    assert stats.interval_id(first - 1, unit) < interval < stats.interval_id(last + 1, unit)


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-02-30", "2026-02-03:24", "2026-02-03:15:60", "2026-2-3", "٢٠٢٦-02", "x"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        stats.span(text)


def test_rsc6b_a_query_is_of_whole_intervals_both_bounds_inclusive() -> None:
    query = stats.asked({"start": "2026-02-03:15:03", "end": "2026-02-03:15:05", "direction": "forwards"}, 10, START_MS)
    assert query == ("minute", "2026-02-03:15:03", "2026-02-03:15:05", False, 10, None)
    query = stats.asked({"start": "2026-02-03:15", "end": "2026-02", "by": "hour"}, 10, START_MS)
    assert query == ("hour", "2026-02-03:15", "2026-02-28:23", True, 10, None)
    query = stats.asked({"end": str(START_MS)}, 10, 0)
    assert (query.start, query.end) == ("1970-01-01:00:00", "2026-11-23:22:58")
    assert stats.asked({}, 10, START_MS).end == "2026-11-23:22:58"
    assert stats.asked({"end": "9" * 16}, 10, START_MS).end.startswith("2099-")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"unit": "week"}, 40003),
        ({"direction": "up"}, 40003),
        ({"start": "yesterday"}, 40003),
        ({"start": "2026-02", "end": "2026-01"}, 40000),
        ({"cursor": "2026-02"}, 40011),
        ({"cursor": "2026-02-03:15:0x"}, 40011),
    ],
)
def test_a_query_that_means_nothing_is_refused(params: dict[str, str], code: int) -> None:
    with pytest.raises(RelayError) as refused:
        stats.asked(params, 10, START_MS)
    assert refused.value.code == code


# --- what is shown


def test_entries_have_their_sums_and_no_zeros() -> None:
    found = stats.entries(values(messages_inbound_realtime_messages_count=5, messages_inbound_rest_messages_count=2))
    assert found == {
        "messages.inbound.realtime.messages.count": 5,
        "messages.inbound.rest.messages.count": 2,
        "messages.inbound.realtime.all.count": 5,
        "messages.inbound.rest.all.count": 2,
        "messages.inbound.all.messages.count": 7,
        "messages.inbound.all.all.count": 7,
        "messages.all.messages.count": 7,
        "messages.all.all.count": 7,
    }


def test_levels_are_shown_with_their_mean() -> None:
    found = stats.entries(values(connections_all_area=90_000, connections_all_ms=60_000, connections_all_peak=3, channels_peak=1))
    assert found == {"connections.all.peak": 3, "connections.all.mean": 1.5, "channels.peak": 1}


def test_ts12_the_running_interval_says_so() -> None:
    shown = stats.shape({"appId": "shop"}, "2026-11-23:22", values(), START_MS)
    assert shown == {
        "intervalId": "2026-11-23:22",
        "unit": "hour",
        "appId": "shop",
        "schema": stats.APP_SCHEMA,
        "entries": {},
        "inProgress": "2026-11-23:22:58",
    }
    assert "inProgress" not in stats.shape({"appId": "shop"}, "2026-11-23:21", values(), START_MS)


def test_what_a_suite_posts_comes_back_in_the_form_of_version_2() -> None:
    posted = {
        "inbound": {"realtime": {"messages": {"count": 70, "data": 7000}}},
        "outbound": {"realtime": {"messages": {"count": 40, "data": 4000}}},
        "persisted": {"presence": {"count": 20, "data": 2000}},
        "connections": {"tls": {"peak": 20, "opened": 10}},
        "channels": {"peak": 50, "opened": 30},
        "apiRequests": {"succeeded": 50, "failed": 10},
        "tokenRequests": {"succeeded": 60, "failed": 20},
    }
    shown = stats.shape_2("2026-02-03:15:05", stats.given(posted))
    assert shown["inbound"]["all"]["messages"] == {"count": 70, "data": 7000}
    assert shown["all"]["messages"] == {"count": 110, "data": 11000}
    assert shown["persisted"]["presence"] == shown["persisted"]["all"] == {"count": 20, "data": 2000}
    assert shown["connections"] == {"all": {"peak": 20, "opened": 10}}
    assert {name: shown[name] for name in ("channels", "apiRequests", "tokenRequests")} == {
        name: posted[name] for name in ("channels", "apiRequests", "tokenRequests")
    }


@pytest.mark.parametrize("count", [-1, 1.5, "7", True, 1 << 50])
def test_a_number_that_is_none_is_refused(count: object) -> None:
    with pytest.raises(RelayError):
        stats.given({"inbound": {"rest": {"messages": {"count": count}}}})


# --- counting


def reports(usage: Usage, now_ms: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    usage.turn(now_ms)
    current, ended = usage.report() or ([], [])
    return dict(current), dict(ended)


def test_a_minute_that_is_over_is_said_three_times_and_then_no_more() -> None:
    usage = Usage(START_MS)
    usage.counts[IN_REST] += 3
    current, ended = reports(usage, START_MS + 5_000)
    one = values(messages_inbound_rest_messages_count=3)
    assert (ended, current) == ({}, dict.fromkeys(("2026-11-23:22:58", "2026-11-23:22", "2026-11-23", "2026-11"), one))
    assert usage.report() is None, "nothing new"
    current, ended = reports(usage, START_MS + 30_000)
    assert ended == {"2026-11-23:22:58": one}
    assert current == dict.fromkeys(("2026-11-23:22", "2026-11-23", "2026-11"), one), "of the new minute there is nothing yet"
    assert usage.report() == usage.report() == ([], [("2026-11-23:22:58", one)])
    assert usage.report() is None


def test_at_the_end_of_an_hour_both_are_over() -> None:
    usage = Usage(START_MS)
    usage.counts[IN_REST] += 1
    _, ended = reports(usage, START_MS + 90_000)
    assert set(ended) == {"2026-11-23:22:58", "2026-11-23:22"}


def test_levels_are_weighed_by_time() -> None:
    usage = Usage(START_MS, since_ms=START_MS - 3_600_000)
    usage.move(CONNECTIONS, +2, START_MS)  # half a minute of none
    usage.move(CONNECTIONS, +2, START_MS + 15_000)
    current, _ = reports(usage, START_MS + 29_999)
    found = stats.entries(current["2026-11-23:22:58"])
    assert (found["connections.all.peak"], found.get("connections.all.min")) == (4, None)
    assert found["connections.all.mean"] == pytest.approx(1.5, abs=0.01)
    _, ended = reports(usage, START_MS + 30_000)
    assert ended
    usage.move(CONNECTIONS, -3, START_MS + 60_000)
    _, ended = reports(usage, START_MS + 90_000)
    found = stats.entries(ended["2026-11-23:22:59"])
    assert (found["connections.all.peak"], found["connections.all.min"], found["connections.all.mean"]) == (4, 1, 2.5)


def test_what_was_there_before_a_core_looked_has_no_low_of_zero() -> None:
    usage = Usage(START_MS, since_ms=START_MS)
    usage.move(CHANNELS, +5, START_MS)
    usage.begin(START_MS + 1_000)
    current, _ = reports(usage, START_MS + 11_000)
    assert stats.entries(current["2026-11-23:22"]) == {"channels.peak": 5, "channels.min": 5, "channels.mean": 5.0}


def test_nothing_counted_while_there_is_no_link_is_lost_within_bounds() -> None:
    usage = Usage(START_MS)
    for minute in range(1_000):
        usage.counts[OUT_REALTIME] += 1
        usage.turn(START_MS + minute * 60_000)
    _, ended = usage.report() or ([], [])
    assert 200 <= len(ended) <= 240


# --- adding up

_lists = st.lists(st.integers(0, 1_000), min_size=SIZE, max_size=SIZE)


@given(_lists, _lists, _lists)
def test_to_add_up_needs_no_order(one: list[int], two: list[int], three: list[int]) -> None:
    assert stats.merge((one, two, three)) == stats.merge((three, stats.merge((two, one))))


@given(st.data())
@settings(max_examples=50)
def test_whatever_is_lost_or_late_on_the_way_the_last_word_counts(data: st.DataObject) -> None:
    """Reports of two processes, each written any number of times in any order, but for the last: they add up to what was counted."""
    table: dict[tuple[int, str], list[int]] = {}
    counted: dict[str, int] = {}
    written: list[tuple[int, str, list[int]]] = []
    for process in range(2):
        now_ms, usage = START_MS, Usage(START_MS)
        for step_s, count in data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=12)):
            now_ms += step_s * 1000
            usage.turn(now_ms)
            usage.counts[IN_REALTIME] += count
            for unit in UNITS:
                interval = stats.interval_id(now_ms, unit)
                counted[interval] = counted.get(interval, 0) + count
            if data.draw(st.booleans()):
                current, ended = usage.report() or ([], [])
                written += [(process, *each) for each in (*current, *ended)]
        current, ended = reports(usage, now_ms)
        late = data.draw(st.permutations(written))
        for source, interval, numbers in (*late, *((process, *each) for each in (*current.items(), *ended.items()))):
            known = table.get((source, interval), [0] * SIZE)
            table[source, interval] = stats.join(known, numbers)
    for interval, count in counted.items():
        found = stats.merge(numbers for (_, each), numbers in table.items() if each == interval)
        assert found[len(GAUGES) + IN_REALTIME] == count, interval


def test_lists_of_another_version_are_read() -> None:
    assert stats.checked([1, 2]) == [1, 2] + [0] * (SIZE - 2)
    assert stats.checked([0] * SIZE + [7]) == [0] * SIZE
    assert stats.checked([-1]) is None
