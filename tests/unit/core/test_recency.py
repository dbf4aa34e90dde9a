"""What is known of channels whose records are no longer held: never wrong, at most unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.recency import Recency


def test_a_channel_is_quiet_from_its_last_record_on() -> None:
    table = Recency(10)
    table.complete_from(100)
    table.saw(b"a", 105)
    table.saw(b"a", 110)
    assert [table.quiet_since(b"a", offset) for offset in (105, 109, 110, 111)] == [False, False, True, True]


def test_a_channel_without_a_record_is_quiet_as_far_back_as_the_table_is_complete() -> None:
    table = Recency(10)
    assert not table.quiet_since(b"a", 500), "nothing is known yet"
    table.complete_from(100)
    assert [table.quiet_since(b"a", offset) for offset in (98, 99, 100)] == [False, True, True]
    table.complete_from(40)
    table.complete_from(70)
    assert table.begins == 40


def test_what_is_dropped_for_want_of_room_moves_the_beginning_up() -> None:
    table = Recency(2)
    table.complete_from(0)
    for offset, key in enumerate((b"a", b"b", b"a", b"c")):
        table.saw(key, offset)
    assert (len(table), table.begins) == (2, 2), "b went, whose last record was at 1"
    assert [table.quiet_since(b"b", offset) for offset in (0, 1)] == [False, True]
    assert table.quiet_since(b"a", 2)
    table.complete_from(0)
    assert table.begins == 2, "what was dropped stays dropped"


def test_what_is_restored_makes_the_table_reach_further_back() -> None:
    table = Recency(3)
    table.complete_from(100)
    table.saw(b"a", 105)
    table.restore(b"a", 20)
    table.restore(b"b", 30)
    table.complete_from(0)
    assert not table.quiet_since(b"a", 104)
    assert [table.quiet_since(b"b", offset) for offset in (29, 30)] == [False, True]
    assert table.quiet_since(b"never", 0)
    table.restore(b"b", 110)
    assert not table.quiet_since(b"b", 109), "another core has read further"
    table.restore(b"c", 50)
    table.restore(b"d", 60)
    assert (len(table), table.begins) == (3, 61)


def test_after_a_gap_nothing_before_it_counts() -> None:
    table = Recency(10)
    table.complete_from(0)
    table.saw(b"a", 5)
    table.gap(50)
    table.complete_from(0)
    assert [table.quiet_since(b"a", offset) for offset in (5, 48, 49)] == [False, False, True]


def test_it_tells_how_long_the_channel_was_quiet_before_a_record() -> None:
    table = Recency(2)
    table.restore(b"old", 7)
    table.complete_from(3)
    table.read_from(100)
    assert [table.saw(key, offset) for key, offset in ((b"a", 105), (b"a", 110), (b"old", 111))] == [99, 105, 99]
    assert table.saw(b"b", 112) == 99
    assert table.saw(b"a", 113) == 110, "it was dropped, for want of room"
    table.gap(120)
    assert table.saw(b"a", 125) == 119


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60),
    st.integers(1, 4),
    st.integers(0, 60),
    st.sets(st.integers(0, 60)),
)
def test_it_never_calls_a_channel_quiet_that_is_not(written: list[tuple[int, bool]], limit: int, start: int, restored: set[int]) -> None:
    """The tail begins at `start`; of what was before, some was kept, and only if all of it was does the table say so."""
    log = [f"c{number}".encode() for number, _ in written]
    start = min(start, len(log))
    table = Recency(limit)
    for offset in sorted(restored, reverse=True):
        if offset < start:
            table.restore(log[offset], offset)
    table.complete_from(0 if restored >= set(range(start)) else start)
    table.read_from(start)
    for offset in range(start, len(log)):
        before = table.saw(log[offset], offset)
        assert log[offset] not in log[before + 1 : offset]
    assert len(table) <= limit
    for key in {*log, b"c9"}:
        last = max((offset for offset, each in enumerate(log) if each == key), default=-1)
        for offset in range(-1, len(log)):
            if table.quiet_since(key, offset):
                assert last <= offset
