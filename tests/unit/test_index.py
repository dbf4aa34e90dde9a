"""The index gives a channel's own records in order, or says that it cannot; on disk and in memory alike."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.index import Index, MemoryIndex, Slice
from core.io import index as on_disk
from core.io.index import RocksIndex
from core.log import LogRecord

MINUTE = 60_000
T0 = 29_000_000 * MINUTE


def record(offset: int, key: bytes = b"app:a", at: int = T0, partition: int = 0, size: int = 10, stream: str = "stream00") -> LogRecord:
    return LogRecord(stream, partition, offset, at, key, b"v" * size, 0, f"s:{offset}")


HELD = {"disk": 1, "disk, later": 1_200, "disk, not yet": on_disk.HELD_BYTES}
"""How much is held in memory before it goes to disk."""


@pytest.fixture(params=["memory", *HELD])
def index(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setattr(on_disk, "HELD_BYTES", HELD.get(request.param, 0))
    made: Index = MemoryIndex() if request.param == "memory" else RocksIndex(tmp_path / "index")
    yield made
    made.close()


def put(index: Index, records: list[LogRecord], befores: list[int] | None = None) -> None:
    index.put(records, befores or [record.offset - 1 for record in records])


def read(index: Index, after: int, key: bytes = b"app:a", records: int = 1_000, size: int = 1_000_000) -> Slice | None:
    return index.read_after("stream00", 0, key, after, records, size)


def read_back(index: Index, before: int, key: bytes = b"app:a", records: int = 1_000, size: int = 1_000_000) -> Slice:
    return index.read_before("stream00", 0, key, before, records, size)


def offsets(found: Slice | None) -> list[int] | None:
    return None if found is None else [record.offset for record in found.records]


def test_a_channel_is_read_forward_and_only_its_own_records_are_given(index: Index) -> None:
    written = [record(offset, b"app:a" if offset % 3 else b"app:b", T0 + offset * 1000) for offset in range(100)]
    put(index, written)
    found = read(index, 49)
    assert found == Slice([r for r in written if r.offset > 49 and r.key == b"app:a"], more=False)
    assert index.head("stream00", 0, b"app:b") == 99
    assert index.head("stream00", 0, b"app:c") is None
    assert offsets(read(index, 98)) == []


def test_a_channel_is_read_backwards_newest_first(index: Index) -> None:
    written = [record(offset, b"app:a" if offset % 3 else b"app:b", T0 + offset * 1000) for offset in range(100)]
    put(index, written)
    assert read_back(index, 50) == Slice([r for r in reversed(written) if r.offset < 50 and r.key == b"app:a"], more=False)
    assert offsets(read_back(index, 1 << 50, b"app:b", records=2)) == [99, 96]
    assert read_back(index, 0) == read_back(index, 50, b"app:c") == Slice([], more=False)
    assert index.read_before("stream09", 0, b"app:a", 9, 1, 1) == Slice([], more=False)


def test_limits_cut_backwards_too(index: Index) -> None:
    put(index, [record(offset, size=100) for offset in range(10)])
    assert read_back(index, 4, records=3) == Slice([record(offset, size=100) for offset in (3, 2, 1)], more=True)
    assert read_back(index, 3, records=3) == Slice([record(offset, size=100) for offset in (2, 1, 0)], more=False)
    assert offsets(read_back(index, 9, size=250)) == [8, 7]
    assert read_back(index, 9, size=1) == Slice([record(8, size=100)], more=True)


def test_reading_backwards_ends_at_a_hole(index: Index) -> None:
    put(index, [record(0), record(1)])
    index.lost("stream00", 0, 5)
    put(index, [record(5), record(6)])
    assert offsets(read_back(index, 100)) == [6, 5]
    assert offsets(read_back(index, 5)) == []


def test_limits_cut_and_say_so_but_one_record_is_always_given(index: Index) -> None:
    put(index, [record(offset, size=100) for offset in range(10)])
    assert read(index, 0, records=3) == Slice([record(offset, size=100) for offset in (1, 2, 3)], more=True)
    assert offsets(read(index, 0, size=250)) == [1, 2]
    assert read(index, 0, size=1) == Slice([record(1, size=100)], more=True)
    assert read(index, 6, records=3) == Slice([record(offset, size=100) for offset in (7, 8, 9)], more=False)


def test_what_is_past_retention_is_expired_not_absent(index: Index) -> None:
    put(index, [record(0), record(1, b"app:b"), record(2)])
    put(index, [record(3, at=T0 + 4 * MINUTE)])
    assert read(index, 0) is None
    assert read(index, 1) is None, "record 2 is gone"
    assert offsets(read(index, 2)) == [3]
    assert index.covers_from("stream00", 0) == 3


def test_nothing_is_past_retention_while_all_is_held(index: Index) -> None:
    index.hold(T0 + 20 * MINUTE)
    put(index, [record(0), record(1, b"app:b")])
    put(index, [record(2, at=T0 + 19 * MINUTE), record(3, b"app:b"), record(4)])  # a partition that lags behind in its look-back
    index.expire(T0 + 19 * MINUTE)
    assert offsets(read(index, 0)) == [2, 4]
    index.expire(T0 + 20 * MINUTE)
    assert read(index, 0) is None


def test_a_position_before_what_is_held_will_do_if_the_next_record_is_held(index: Index) -> None:
    put(index, [record(0), record(1, b"app:b"), record(5, at=T0 + 5 * MINUTE), record(6, b"app:b", T0 + 5 * MINUTE)], [-1, -1, 0, 3])
    assert index.covers_from("stream00", 0) == 2
    assert [offsets(read(index, after)) for after in (0, 4)] == [[5], [5]]
    assert read(index, -1) is None, "record 0 is gone"
    assert read(index, 0, b"app:c") is None, "nothing is known of it"
    assert [offsets(read(index, after, b"app:b")) for after in (-1, 2, 3)] == [None, [6], [6]]
    index.lost("stream00", 0, 6)
    assert read(index, 0) is None
    assert offsets(read(index, 3, b"app:b")) == [6], "of a gap its writer knows"


def test_what_was_written_within_retention_is_held(index: Index) -> None:
    for second in range(400):
        put(index, [record(second, at=T0 + second * 1000)])
        if second > 150:
            assert offsets(read(index, second - 120)) == list(range(second - 119, second + 1))


def test_a_partition_without_traffic_is_covered_from_where_its_tail_began(index: Index) -> None:
    assert read(index, 41) is None
    index.begin("stream00", 0, 42)
    assert offsets(read(index, 41)) == []
    assert read(index, 40) is None
    index.expire(T0 + 60 * MINUTE)
    assert offsets(read(index, 41)) == []


def test_records_that_the_tail_never_read_expire_what_lies_before(index: Index) -> None:
    put(index, [record(0), record(1)])
    index.lost("stream00", 0, 5)
    put(index, [record(5)])
    assert read(index, 1) is None
    assert offsets(read(index, 4)) == [5]


def test_partitions_and_streams_are_apart(index: Index) -> None:
    put(index, [record(5), record(7, partition=1), record(9, stream="stream01")])
    assert offsets(index.read_after("stream00", 1, b"app:a", 6, 10, 1000)) == [7]
    assert offsets(index.read_after("stream01", 0, b"app:a", 8, 10, 1000)) == [9]
    assert offsets(read(index, 4)) == [5]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held in memory."""
    monkeypatch.setattr(on_disk, "HELD_BYTES", 1)


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_disk_and_memory_give_the_same_or_say_expired(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, held: int, data: st.DataObject
) -> None:
    """The disk keeps whole minutes, so it may hold more than memory; where both answer, they agree with what was written."""
    monkeypatch.setattr(on_disk, "HELD_BYTES", held)
    monkeypatch.setattr(on_disk, "BLOCK_RECORDS", data.draw(st.sampled_from([1, 2, 32])))
    memory, disk = MemoryIndex(), RocksIndex(tmp_path_factory.mktemp("index"))
    written: list[LogRecord] = []
    last: dict[bytes, int] = {}
    now = T0
    for _ in range(data.draw(st.integers(1, 12))):
        batch = []
        for _ in range(data.draw(st.integers(1, 8))):
            now += data.draw(st.sampled_from([0, 10, 1_000, 30_000, 90_000]))
            back = data.draw(st.sampled_from([0, 0, 0, 5_000]))  # a new leader's clock
            batch.append(record(len(written) + len(batch), data.draw(st.sampled_from([b"app:a", b"app:b"])), now - back))
        written += batch
        befores = []
        for each in batch:
            befores.append(min(each.offset - 1, last.get(each.key, -1) + data.draw(st.sampled_from([0, 0, 2]))))
            last[each.key] = each.offset
        put(memory, batch, befores)
        put(disk, batch, befores)
        after = data.draw(st.integers(0, len(written)))
        expected = [r for r in written if r.offset > after and r.key == b"app:a"]
        for index in (memory, disk):
            found = read(index, after)
            assert found is None or found.records == expected
            covers = index.covers_from("stream00", 0)
            assert covers is not None
            held = [r for r in reversed(written) if covers <= r.offset < after and r.key == b"app:a"]
            assert read_back(index, after) == Slice(held, more=False)
        recent = max((r.offset for r in written if r.timestamp < now - 140_000), default=-1)
        assert offsets(read(disk, max(recent, 0))) is not None
    assert disk.errors == 0
    disk.close()


CHANNELS = [b"app:a", b"app:b", b"app:c"]
WAITS = [0, 10, 1_000, 20_000, 70_000, -40_000]
"""The last is that of a new leader's clock."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_disk_agrees_with_what_was_written_wherever_it_is_held(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Partitions that lag, channels of equal hash, small blocks, writes that fail: all that `covers_from` claims is there, once and in
    order, and it claims all that is young enough and that no failed write took."""
    monkeypatch.setattr(on_disk, "HELD_BYTES", data.draw(st.sampled_from([1, 1_500, 6_000, 1 << 23])))
    monkeypatch.setattr(on_disk, "BLOCK_RECORDS", data.draw(st.sampled_from([1, 2, 5, 32])))
    monkeypatch.setattr(on_disk, "BLOCK_BYTES", data.draw(st.sampled_from([1, 150, 1 << 15])))
    hashes = data.draw(st.sampled_from([1, 2, 1 << 60]))
    monkeypatch.setattr(on_disk, "channel_hash", lambda key: hash(key) % hashes)
    index = RocksIndex(tmp_path_factory.mktemp("index"))
    partitions = range(data.draw(st.integers(1, 2)))
    written: list[list[LogRecord]] = [[] for _ in partitions]
    befores: dict[tuple[int, bytes], int] = {}
    clocks = [T0 - data.draw(st.sampled_from([0, 0, 50_000, 200_000])) for _ in partitions]
    failed = False
    for _ in range(data.draw(st.integers(1, 25))):
        batch, before = [], []
        for _ in range(data.draw(st.sampled_from([1, 1, 3]))):
            partition, key = data.draw(st.sampled_from(partitions)), data.draw(st.sampled_from(CHANNELS))
            clocks[partition] += data.draw(st.sampled_from(WAITS))
            for _ in range(data.draw(st.sampled_from([1, 2, 12]))):
                log = written[partition]
                offset = log[-1].offset + data.draw(st.sampled_from([1, 1, 3])) if log else 5
                log.append(record(offset, key, clocks[partition], partition, data.draw(st.sampled_from([1, 100]))))
                batch.append(log[-1])
                before.append(befores.get((partition, key), 4))
                befores[partition, key] = offset
        with monkeypatch.context() as full:
            if data.draw(st.sampled_from([False, False, False, True])):
                full.setattr(index, "_write", "no options: the driver raises")
            errors = index.errors
            put(index, batch, before)
            failed = failed or index.errors > errors
        newest = max(r.timestamp for log in written for r in log)
        for partition in partitions:
            log = written[partition]
            covers = index.covers_from("stream00", partition)
            if not log:
                assert covers is None
                continue
            assert covers is not None
            if not failed:  # but for a lagging partition, whatever was read within retention
                kept = [r.offset for r in log if r.timestamp >= newest - 150_000]
                assert covers <= min(kept, default=log[-1].offset + 1)
            assert covers <= log[-1].offset + 1
            key = data.draw(st.sampled_from(CHANNELS))
            at, limit = data.draw(st.integers(3, log[-1].offset + 2)), data.draw(st.sampled_from([1, 3, 1_000]))
            ours = [r for r in log if r.key == key]
            behind = [r for r in ours if r.offset > at]
            found = index.read_after("stream00", partition, key, at, limit, 1 << 30)
            if found is not None or at + 1 >= covers:
                assert found == Slice(behind[:limit], more=len(behind) > limit)
            behind = [r for r in reversed(ours) if covers <= r.offset < at]
            assert index.read_before("stream00", partition, key, at, limit, 1 << 30) == Slice(behind[:limit], more=len(behind) > limit)
            held = [r.offset for r in ours if r.offset >= covers]
            assert index.head("stream00", partition, key) in (held[-1:] or [None, *(r.offset for r in ours)])
    index.close()


@pytest.mark.parametrize("minutes_of_clock", [0, 300], ids=["a long look-back", "a start that does not end"])
def test_however_long_all_is_held_few_databases_are_open(tmp_path: Path, minutes_of_clock: int) -> None:
    """Each has eight files, memory, and takes 10 ms to open. What a look-back brings that is past retention needs but one."""
    index = RocksIndex(tmp_path)
    index.hold(math.inf)
    for minute in range(300):
        index.expire(T0 + (minute if minutes_of_clock else 1_000) * MINUTE)
        put(index, [record(minute, at=T0 + minute * MINUTE)])
        assert len(index._buckets) <= (on_disk.MOST_BUCKETS if minutes_of_clock else 1)
    covers = index.covers_from("stream00", 0)
    assert covers == (300 - on_disk.MOST_BUCKETS if minutes_of_clock else 0)
    assert offsets(read(index, covers - 1)) == list(range(covers, 300))
    put(index, [record(300, at=T0 + 1_001 * MINUTE)])
    index.hold(T0 + 1_002 * MINUTE)
    index.expire(T0 + 1_002 * MINUTE + 200_000)
    assert offsets(read_back(index, 301)) == [], "and it goes as all else does"
    assert index.errors == 0
    index.close()


def test_a_database_that_nobody_needs_goes_on_the_thread_that_opened_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long as 80 ms, in which the loop would stand still."""
    dropped: list[str] = []
    drop = on_disk._Bucket.drop
    monkeypatch.setattr(on_disk._Bucket, "drop", lambda bucket: (dropped.append(threading.current_thread().name), drop(bucket)))
    index = RocksIndex(tmp_path)
    put(index, [record(0)])
    assert index._next is not None
    index._next[1].result()
    put(index, [record(1, at=T0 + 2 * MINUTE)])  # nothing was written in the minute between
    index.close()
    assert len(dropped) == 4
    assert {name.rpartition("_")[0] for name in dropped} == {"tidegate-index"}


# --- the disk ---------------------------------------------------------------------------------------------------------------------------


def test_a_restart_begins_empty_and_is_filled_by_the_look_back(tmp_path: Path) -> None:
    first = RocksIndex(tmp_path)
    put(first, [record(0), record(1)])
    with pytest.raises(OSError, match="in use by another core"):
        RocksIndex(tmp_path)
    first.close()
    again = RocksIndex(tmp_path)
    assert read(again, 0) is None
    put(again, [record(0), record(1)])
    assert offsets(read(again, 0)) == [1]
    again.close()
    assert not list(tmp_path.glob("minute-*"))


def test_channels_of_equal_hash_do_not_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "channel_hash", lambda key: -7)
    monkeypatch.setattr(on_disk, "HELD_BYTES", 1)
    index = RocksIndex(tmp_path)
    put(index, [record(offset, b"app:%d" % (offset % 2)) for offset in range(10)])
    assert [offsets(read_back(index, before, b"app:0", records=2)) for before in range(8)] == [
        [], [0], [0], [2, 0], [2, 0], [4, 2], [4, 2], [6, 4],
    ]  # fmt: skip
    assert offsets(read(index, 0, b"app:0")) == [2, 4, 6, 8]
    assert offsets(read_back(index, 6, b"app:0")) == [4, 2, 0]
    assert index.head("stream00", 0, b"app:0") == 8
    index.close()


@pytest.mark.parametrize(
    ("channels", "name", "size", "batch"),
    [(1, 10, 200, 20), (1, 10, 65_536, 1), (30, 10, 10, 50), (10_000, 10, 10, 50), (10_000, 2_000, 10, 5)],
    ids=["one channel", "large values", "few channels", "many channels", "long names"],
)
def test_what_is_held_is_bounded_and_leaves_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, name: int, size: int, batch: int
) -> None:
    held_bytes = 400_000
    monkeypatch.setattr(on_disk, "HELD_BYTES", held_bytes)
    index = RocksIndex(tmp_path)
    keys = [b"app:%0*d" % (name, n) for n in range(channels)]
    for start in range(0, 6 * held_bytes // (size + name + 300), batch):
        before = index._size
        records = [record(offset, keys[offset % channels], size=size) for offset in range(start, start + batch)]
        put(index, records)
        came = batch * (size + name + 600)
        assert index._size - before <= 2 * came + on_disk.BLOCK_BYTES, "about as much leaves as comes"
        [bucket] = index._buckets.values()
        held = [r for half in (bucket.fresh, bucket.leaving) for names in half.values() for rs in names.values() for r in rs]
        names = [key for half in (bucket.fresh, bucket.leaving) for names in half.values() for key in names]
        after = max(0, start - 200 * channels)
        assert offsets(read(index, after, keys[0], 1 << 30, 1 << 40)) == [n for n in range(after + 1, start + batch) if n % channels == 0]
        assert sum(len(r.value) + 300 for r in held) + sum(map(len, names)) <= 2 * (held_bytes + came)
    assert bucket.size > 3 * held_bytes * size // (size + name + 600)
    assert bucket.fresh
    assert len(read_back(index, 1 << 50, keys[0], 1 << 30, 1 << 40).records) == -(-(start + batch) // channels)
    index.close()


def test_whoever_wants_a_large_record_reads_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "HELD_BYTES", 1)
    index = RocksIndex(tmp_path)
    put(index, [record(offset, size=10 if offset < 50 else 60_000) for offset in range(100)])
    decoded: list[int] = []
    decode = on_disk._decode
    monkeypatch.setattr(on_disk, "_decode", lambda block: decoded.append(len(block)) or decode(block))
    assert offsets(read(index, 69, records=2)) == [70, 71]
    assert offsets(read_back(index, 71, records=2)) == [70, 69]
    assert max(decoded) < 70_000
    index.close()


def damage_files(index: RocksIndex) -> None:
    for bucket in index._buckets.values():
        bucket.db.flush()
        for file in bucket.path.glob("*.sst"):
            file.write_bytes(random.Random(1).randbytes(file.stat().st_size))


def close_files(index: RocksIndex) -> None:
    for bucket in index._buckets.values():
        bucket.db.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("spoil", [damage_files, close_files])
def test_a_damaged_disk_costs_the_index_not_an_answer(tmp_path: Path, spoil: Callable[[RocksIndex], None]) -> None:
    index = RocksIndex(tmp_path)
    put(index, [record(offset, size=5_000) for offset in range(1_000)])
    spoil(index)
    assert read(index, 0) is None
    assert index.errors == 1
    put(index, [record(1_000)])
    assert offsets(read(index, 999)) == [1_000]
    assert read(index, 500) is None
    index.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("spoil", [damage_files, close_files])
def test_a_damaged_disk_shortens_what_is_read_backwards(tmp_path: Path, spoil: Callable[[RocksIndex], None]) -> None:
    index = RocksIndex(tmp_path)
    put(index, [record(offset, size=5_000) for offset in range(1_000)])
    spoil(index)
    put(index, [record(1_000, at=T0 + MINUTE)])
    assert offsets(read_back(index, 2_000)) == [1_000]
    assert index.errors == 1
    assert index.covers_from("stream00", 0) == 1_000
    index.close()


@pytest.mark.usefixtures("at_once")
def test_a_write_that_fails_expires_what_it_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = RocksIndex(tmp_path)
    put(index, [record(0), record(1)])
    with monkeypatch.context() as full:
        full.setattr(index, "_write", "no options: the driver raises")
        put(index, [record(2)])
    put(index, [record(3)])
    assert index.errors == 1
    assert read(index, 0) is None
    assert offsets(read(index, 2)) == offsets(read_back(index, 9)) == [3]
    index.close()


def test_databases_that_cannot_be_opened_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _: object) -> None:
        Path(path).mkdir()
        raise OSError("too many open files")

    index = RocksIndex(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(on_disk, "Rdict", refuse)
        for offset in range(5):
            put(index, [record(offset)])
    assert index.errors == 5
    assert not list(tmp_path.glob("minute-*"))
    put(index, [record(5)])
    assert offsets(read(index, 4)) == [5]
    index.close()


@pytest.mark.usefixtures("at_once")
def test_above_its_size_the_oldest_minutes_go_early(tmp_path: Path) -> None:
    index = RocksIndex(tmp_path, max_bytes=1_000_000)
    for minute in range(3):
        put(index, [record(minute * 100 + n, at=T0 + minute * MINUTE, size=4_500) for n in range(100)])
    assert read(index, 0) is None
    assert offsets(read(index, 99)) == list(range(100, 300))
    index.close()
