"""What commits say beside their offsets, and what a look at the log keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.kafka.appended import MAX_METADATA, Committed, _Found, read_metadata, source_of, write_metadata
from core.kafka.topics import StreamInfo


def log(partitions: int, stream: str = "abcdefgh") -> StreamInfo:
    return StreamInfo(stream, "tidegate.log", partitions)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=64), st.integers(1, 10_000), st.integers(0, 10_000))
def test_what_is_written_is_read(floors: list[int], partitions: int, seek: int) -> None:
    """Row M6.1."""
    here = log(len(floors))
    assert read_metadata(write_metadata(here, partitions, floors, seek), here) == Committed(partitions, floors, seek)


def test_before_any_seek_commits_are_what_they_always_were() -> None:
    assert write_metadata(log(2), 3, [1, 2]) == "1:3:abcdefgh:AQI="


def test_400_partitions_fit_and_more_say_no_ends() -> None:
    here = log(400)
    assert read_metadata(write_metadata(here, 3, [2**40] * 400), here) == Committed(3, [2**40] * 400)
    large = log(2_000)
    text = write_metadata(large, 3, [2**40] * 2_000)
    assert len(text) <= MAX_METADATA
    assert read_metadata(text, large) == Committed(3, None)
    assert read_metadata(write_metadata(large, 3, [2**40] * 2_000, 5), large) == Committed(3, None, 5)


def test_a_log_made_anew_has_no_ends() -> None:
    assert read_metadata(write_metadata(log(2), 3, [1, 2]), log(2, "other000")) == Committed(3, None)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        "1",
        "1:x:abcdefgh:AA==",
        "2:3:abcdefgh:AQI=",
        "2:x:3:abcdefgh:AQI=",
        "3:3:abcdefgh:AQI=",
        "1:3:abcdefgh:!",
        "1:3:abcdefgh:gA==",
    ],
)
def test_what_others_commit_says_nothing(text: str | None) -> None:
    assert read_metadata(text, log(2)) is None


@given(st.text(max_size=60))
def test_no_metadata_does_harm(text: str) -> None:
    found = read_metadata(text, log(2))
    assert found is None or found.partitions >= 0


@pytest.mark.parametrize(
    ("publish_id", "source"),
    [
        ("m:in:a.b-c_d:3:42", ("in", ("a.b-c_d", 3), 42, 0)),
        ("m:in:a.b-c_d:3:42:7", ("in", ("a.b-c_d", 3), 42, 7)),
        ("i:in:a:3:42", None),
        ("m:a:3:42", None),
        ("m:in:a:x:1", None),
        ("m:in:a:3:1:x", None),
        ("c:connection:1", None),
    ],
)
def test_publish_ids_say_where_a_record_came_from(publish_id: str, source: object) -> None:
    assert source_of(publish_id) == source


@given(st.lists(st.integers(0, 500), max_size=200), st.integers(0, 200))
def test_a_look_keeps_the_first_offsets_and_not_more(offsets: list[int], mark: int) -> None:
    found = _Found(mark, 10)
    for offset in offsets:
        found.add(offset)
        assert len(found.offsets) <= 20
    wanted = sorted({offset for offset in offsets if offset >= mark})
    assert set(wanted[:10]) <= found.offsets <= set(wanted)
