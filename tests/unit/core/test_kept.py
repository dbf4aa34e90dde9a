"""The last message of a channel, kept for whoever comes later: what the state says, what cores hold, what a rewind gives."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import state
from core.events import StateRead, Tailed
from core.kept import OVERHEAD, PREFIX, KeptMessages, KeptToWrite, is_tombstone, kept
from core.metachannel import MESSAGES
from core.quiet import QUIET_MS, Changes
from core.state import KeptState
from relay.link import calls
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from tests.unit.core.test_history import Reader, data_of

CHANNELS = [b"app:%d" % number for number in range(5)]


def body(data: str | bytes | None, at: int = 0) -> bytes:
    return msgspec.msgpack.encode(RecordBody("t:0:1", at, None, [Message(id="t:0:1:0", data=data)]))


def test_nothing_on_a_metachannel_is_kept() -> None:
    assert PREFIX not in MESSAGES


STEPS = st.lists(
    st.tuples(st.sampled_from(["record", "record", "tombstone", "sweep", "restart"]), st.integers(0, 4), st.integers(0, QUIET_MS)),
    max_size=60,
)


@given(STEPS, st.sampled_from([1, 200, 100_000]))
def test_state_and_log_say_the_last_message_of_every_channel(steps: list[tuple[str, int, int]], limit: int) -> None:
    """Row M1.13: whoever reads the state, and the log from four minutes before its checkpoint, holds what was last on each channel."""
    log: list[tuple[bytes, int, int, bytes]] = []
    written: dict[bytes, bytes] = {}
    truth: dict[bytes, tuple[int, bytes]] = {}
    now = 1_000_000
    owner = KeptToWrite(limit)
    for step, number, passed in steps:
        now += passed
        changes: Changes = {}
        key, offset = CHANNELS[number], len(log)
        if step in ("record", "tombstone"):
            value = body(None if step == "tombstone" else f"{offset}")
            log.append((key, offset, now, value))
            owner.saw(key, offset, now, value, changes)
            truth.pop(key, None)
            if step == "record":
                truth[key] = (offset, value)
        elif step == "sweep":
            owner.sweep(now, changes)
        else:
            owner.sweep(now, changes)
            written = applied(written, changes)
            owner, changes = KeptToWrite(limit), {}
            for record_key, at_offset, at, value in log:
                if at > now - 4 * QUIET_MS:
                    owner.saw(record_key, at_offset, at, value, changes)
        written = applied(written, changes)
        # A core that starts after a checkpoint, which comes with a sweep
        swept: Changes = {}
        owner.sweep(now, swept)
        written = applied(written, swept)
        core = KeptMessages(1_000_000)
        core.restore(kept(written))
        for record_key, at_offset, at, value in log:
            if at > now - 4 * QUIET_MS:
                core.saw(record_key, at_offset, value)
        assert {each: core.get(each) for each in CHANNELS if core.get(each)} == truth


def applied(written: dict[bytes, bytes], changes: Changes) -> dict[bytes, bytes]:
    together: dict[bytes, bytes | None] = {**written, **changes}
    return {key: value for key, value in together.items() if value is not None}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300)), max_size=60), st.integers(0, 2_000))
def test_what_a_core_holds_is_bounded(steps: list[tuple[int, int]], limit: int) -> None:
    core = KeptMessages(limit)
    for offset, (number, size) in enumerate(steps):
        core.saw(CHANNELS[number], offset, body("x" * size))
        assert core.size <= limit
        held = [(key, found[1]) for key in CHANNELS if (found := core.get(key))]
        assert core.size == sum(OVERHEAD + len(key) + len(value) for key, value in held)


@pytest.mark.parametrize(("data", "tombstone"), [("x", False), ("", False), (b"", False), (b"x", False), (None, True)])
def test_only_a_message_without_data_is_a_tombstone(data: str | bytes | None, tombstone: bool) -> None:
    assert is_tombstone(body(data)) is tombstone


def test_what_cannot_be_read_keeps_nothing() -> None:
    assert is_tombstone(b"")
    assert is_tombstone(b"\x93")


def rewind(**query: Any) -> calls.Rewind:
    return calls.Rewind(**{"channel": "c", "limit": 1, **query})


def mapped(reader: Reader, data: str | None, number: int) -> None:
    record = reader.core.record("c", body(data, reader.core.now_ms), f"k:in:t:0:{number}", ts=reader.core.now_ms)
    reader.core.happens(Tailed([record]))


def test_a_rewind_gives_the_last_message_however_old_it_is() -> None:
    """Row M1.13: by count; within the window of history what is there counts, whoever published it."""
    reader = Reader()
    mapped(reader, "first", 0)
    mapped(reader, "last", 1)
    assert data_of(reader.past(rewind())) == ["last"]
    later(reader)
    assert data_of(reader.past(rewind())) == ["last"]
    assert data_of(reader.past(rewind(limit=5))) == ["last"]
    assert data_of(reader.past(rewind(period_ms=60_000))) == []
    assert reader.history() == [], "history is what was published lately"
    assert data_of(reader.past(rewind(channel="other"))) == []
    reader.logs("live")
    assert data_of(reader.past(rewind())) == ["live"]
    mapped(reader, None, 2)
    later(reader)
    assert data_of(reader.past(rewind())) == [], "a tombstone ends it"


def later(reader: Reader) -> None:
    """What was published is history no more, and the session's grant still counts."""
    assert CoreLimits().history_s < 130
    reader.core.now += 130
    reader.core.now_ms += 130_000


def test_a_core_that_starts_has_it_from_the_state() -> None:
    """Row M1.13."""
    reader = Reader()
    core = reader.core
    first = core.record("c", b"", "s:x")
    key, number = first.key, first.partition
    value = body("kept long ago")
    core.happens(StateRead(number, 1, {state.kept_key(key): state.encode(KeptState(offset=0, at=1, value=value))}))
    reader.logs("of a client")
    later(reader)
    past = reader.past(rewind())
    assert data_of(past) == ["kept long ago"]
    assert (past.items[0].offset, past.cursor) == (0, None)
