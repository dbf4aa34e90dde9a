"""What the state says of quiet channels is true, and says all that a core does not read at its start."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core import state
from core.quiet import QUIET_MS, RETAINED_MS, Changes, QuietChannels
from core.state import LastState


def apply(kept: dict[bytes, LastState], changes: Changes) -> None:
    for key, value in changes.items():
        read = None if value is None else state.decode(key, value)
        if read is None:
            kept.pop(key, None)
        else:
            assert isinstance(read[1], LastState)
            kept[key] = read[1]


def by_channel(kept: dict[bytes, LastState]) -> dict[bytes, LastState]:
    names = {state.last_key(key): key for key in CHANNELS}
    return {names[key]: last for key, last in kept.items()}


CHANNELS = [b"app:%d" % number for number in range(6)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["record", "record", "record", "sweep", "restart"]), st.integers(0, 5), st.integers(0, QUIET_MS)), max_size=60
)


@given(STEPS, st.integers(1, 8), st.integers(0, 3))
def test_against_the_whole_log(steps: list[tuple[str, int, int]], limit: int, low: int) -> None:
    """A channel's last record is in the state, or recent enough to be read, or before `known_from`; whatever the limit, also by restarts
    that see the records of the last minutes again."""
    log: list[tuple[bytes, int, int]] = []
    kept: dict[bytes, LastState] = {}
    now, offset = 1_000_000, low
    table = QuietChannels(limit, low)
    for step, number, passed in steps:
        now += passed
        changes: Changes = {}
        if step == "record":
            log.append((CHANNELS[number], offset, now))
            table.saw(CHANNELS[number], offset, now, changes)
            offset += 1
        elif step == "sweep":
            table.sweep(now, changes)
        else:
            table, known_from = QuietChannels(limit, table.known_from), table.known_from
            assert table.known_from == known_from
            table.restore(by_channel(kept))
            for key, at_offset, at in log:
                if at > now - 4 * QUIET_MS:
                    table.saw(key, at_offset, at, changes)
            table.sweep(now, changes)
        apply(kept, changes)
        assert len(table) <= limit
        if step == "record":
            continue
        told = by_channel(kept)
        for key in CHANNELS:
            mine = [(at_offset, at) for name, at_offset, at in log if name == key]
            if key in told:
                assert (told[key].offset, told[key].at) in mine
            if mine and mine[-1][1] <= now - QUIET_MS and mine[-1][0] >= table.known_from:
                assert told[key].offset == mine[-1][0]


def test_one_record_for_each_quiet_period_and_a_tombstone_when_the_log_has_forgotten() -> None:
    table = QuietChannels(10, 0)
    changes: Changes = {}
    table.saw(b"a", 5, 1_000, changes)
    table.sweep(1_000 + QUIET_MS - 1, changes)
    assert changes == {}
    table.sweep(1_000 + QUIET_MS, changes)
    assert changes == {state.last_key(b"a"): state.encode(LastState(offset=5, at=1_000))}
    changes.clear()
    table.sweep(1_000 + 2 * QUIET_MS, changes)
    assert changes == {}
    table.sweep(1_000 + RETAINED_MS, changes)
    assert changes == {state.last_key(b"a"): None}
    assert table.known_from == 6
    assert len(table) == 0
