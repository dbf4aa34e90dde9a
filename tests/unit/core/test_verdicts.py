"""Every core comes to the same verdict on every record, wherever in the log it began to read.

Logs are generated as writers and brokers make them, only worse: an id comes again after anything from nothing to ten minutes, and each new
leader of the partition has a clock that may lie ten seconds behind the one before. Readers are whole cores, which begin at every position
as a core does at its start; what they accepted past their own floor is what they put into their index.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import fold
from core.events import Looked, Tailed
from core.fold import SKEW_MS, WINDOW_MS, Fold
from core.index import MemoryIndex
from core.log import LogRecord
from core.node import LOOK_BACK_MS, CoreNode
from core.registry import Registry, Streams
from relay.link.frames import Stream
from relay.model.keyring import Keyring
from relay.model.message import Kind

STREAM = Stream("aaaabbbb", 2, (0, 1))
START_MS = 1_800_000_000_000
RECORDS = 40
EDGES_OF_THE_WINDOW = (0, 1, SKEW_MS, WINDOW_MS - SKEW_MS, WINDOW_MS - 1, WINDOW_MS, WINDOW_MS + 1, WINDOW_MS + SKEW_MS, 600_000)

gaps = st.one_of(st.integers(0, 600_000), st.sampled_from(EDGES_OF_THE_WINDOW))
"""From one occurrence of an id to the next, in milliseconds."""
writers = st.tuples(st.integers(0, 1), st.sampled_from([b"shop:a", b"shop:b", b"shop:c"]), st.sampled_from("wxyz"))
"""Partition, channel, id."""
leaders = st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, SKEW_MS)), max_size=6)
"""When one takes over, and how far its clock is behind, in milliseconds."""


@st.composite
def logs(draw: st.DrawFn) -> list[LogRecord]:
    """A log of two partitions, in the order in which it was written."""
    written = []
    for writer in draw(st.lists(writers, min_size=1, max_size=8)):
        times = accumulate([draw(st.integers(0, 400_000)), *draw(st.lists(gaps, max_size=6))])
        written += [(at, *writer) for at in times]
    written = sorted(written, key=lambda record: record[0])[:RECORDS]
    clocks = {partition: sorted(draw(leaders)) for partition in (0, 1)}
    records: list[LogRecord] = []
    offsets = [0, 0]
    for at, partition, key, publish_id in written:
        behind = next((skew for since, skew in reversed(clocks[partition]) if since <= at), 0)
        records.append(
            LogRecord(STREAM.id, partition, offsets[partition], START_MS + at - behind, key, b"\x80", int(Kind.MESSAGE), publish_id)
        )
        offsets[partition] += 1
    return records


def of(records: list[LogRecord], partition: int) -> list[LogRecord]:
    return [record for record in records if record.partition == partition]


def oracle(records: list[LogRecord]) -> dict[tuple[int, int], tuple[bool, int]]:
    """By place: whether it is a duplicate, and the offset of the first of its chain; straight from the definition, in quadratic time."""
    verdicts: dict[tuple[int, int], tuple[bool, int]] = {}
    for n, record in enumerate(records):
        earlier = [
            other
            for other in records[:n]
            if (other.partition, other.key, other.id) == (record.partition, record.key, record.id)
            and record.timestamp - other.timestamp <= WINDOW_MS
        ]
        first = verdicts[record.partition, earlier[0].offset][1] if earlier else record.offset
        verdicts[record.partition, record.offset] = (bool(earlier), first)
    return verdicts


def start_of(records: list[LogRecord], since: int) -> int:
    """The first offset of a partition whose record is not older than `since`, as Kafka answers that question."""
    return next((record.offset for record in records if record.timestamp >= since), len(records))


@pytest.mark.parametrize("bucket_ids", [2, 65_536])
def test_a_fold_that_began_anywhere_agrees_with_the_definition(bucket_ids: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its buckets turn by time or because they are full."""
    monkeypatch.setattr(fold, "_BUCKET_IDS", bucket_ids)

    @settings(max_examples=100)
    @given(logs())
    def law(records: list[LogRecord]) -> None:
        verdicts = oracle(records)
        when = {(record.partition, record.offset): record.timestamp for record in records}
        for partition in (0, 1):
            part = of(records, partition)
            for begin in part:
                since = begin.timestamp
                start = start_of(part, since)
                reader = Fold(1_000_000, b"secret")
                sound = start == 0
                for record in part[start:]:
                    first = reader.see(partition, record.key, record.id, record.timestamp, record.offset)
                    sound = sound or record.timestamp >= since + WINDOW_MS + SKEW_MS
                    if not sound:
                        continue
                    duplicate, origin = verdicts[partition, record.offset]
                    assert (first is not None) == duplicate, (start, record)
                    if first is not None and record.timestamp - when[partition, origin] <= WINDOW_MS:
                        assert first == origin, "every reader acknowledges with the same serial"
                    if first is not None:
                        assert reader.first(partition, record.key, record.id) == first

    law()


@settings(max_examples=100)
@given(logs(), st.integers(1, 7))
def test_cores_that_start_at_every_position_accept_the_same_records(records: list[LogRecord], batch: int) -> None:
    check_every_start(records, batch)


def test_a_leader_whose_clock_is_behind_does_not_bring_an_id_back_that_a_late_starter_has_not_seen() -> None:
    """A core may not trust its verdicts as soon as the window is over: the next record may be ten seconds older than the one before."""
    times = [(0, "x"), (WINDOW_MS + 1, "y"), (WINDOW_MS + 2 - SKEW_MS, "z"), (WINDOW_MS, "x")]
    records = [LogRecord(STREAM.id, 0, n, START_MS + at, b"shop:a", b"\x80", 0, which) for n, (at, which) in enumerate(times)]
    assert oracle(records)[0, 3] == (True, 0)
    check_every_start(records, 1)


def check_every_start(records: list[LogRecord], batch: int) -> None:
    verdicts = oracle(records)
    accepted = {place for place, (duplicate, _) in verdicts.items() if not duplicate}
    parts = {partition: of(records, partition) for partition in (0, 1)}
    for begin in sorted({record.timestamp for record in records}):
        for since in (begin, begin + 1):
            index = MemoryIndex(retention_s=1e6)
            core = CoreNode(
                name="core-1",
                streams=Streams([STREAM]),
                registry=Registry([], Keyring([("k1", b"\1" * 32)])),
                keyring=Keyring([("k1", b"\1" * 32)]),
                index=index,
                random=lambda count: b"\5" * count,
                config_log=False,
            )
            at = since + LOOK_BACK_MS
            starts = {partition: start_of(part, since) for partition, part in parts.items()}
            read = [record for record in records if record.offset >= starts[record.partition]]
            for n in range(0, len(read), batch):
                core.handle(Tailed(read[n : n + batch]), 0.0, at)
            for partition, part in parts.items():
                core.handle(Looked(partition, starts[partition], len(part)), 0.0, at)
            held = {
                (partition, record.offset)
                for partition in (0, 1)
                for key in {record.key for record in records}
                for record in index.read_before(STREAM.id, partition, key, 1 << 62, 1000, 1 << 30).records
            }
            floors = {partition: index.covers_from(STREAM.id, partition) for partition in (0, 1)}
            assert None not in floors.values()
            assert held == {(partition, offset) for partition, offset in accepted if offset >= (floors[partition] or 0)}
            for partition, part in parts.items():
                owed = [record.offset for record in part if record.timestamp >= since + WINDOW_MS + SKEW_MS]
                if owed:
                    assert floors[partition] <= owed[0], "no core holds less than its look-back is for"
