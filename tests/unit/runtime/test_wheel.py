"""The wheel against a model that sorts: never early, at most a tick late, each appointment once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.runtime.wheel import Wheel

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("schedule"), st.integers(0, 5), st.floats(0, 20, allow_nan=False)),
        st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0, 5, allow_nan=False)),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([0.1, 0.25, 1.0]))
def test_never_early_and_at_most_a_tick_late(steps: list[tuple[str, int, float]], tick: float) -> None:
    wheel: Wheel[int] = Wheel(tick)
    appointments: dict[int, float] = {}
    now = 0.0
    for step, key, amount in steps:
        if step == "schedule":
            wheel.schedule(key, now + amount)
            appointments[key] = now + amount
        elif step == "cancel":
            wheel.cancel(key)
            appointments.pop(key, None)
        else:
            now += amount
            due = wheel.due(now)
            assert len(due) == len(set(due))
            for each in due:
                assert appointments.pop(each) <= now + 1e-9
            assert all(at > now - tick - 1e-9 for at in appointments.values())
        assert len(wheel) == len(appointments)
        assert all(key in wheel for key in appointments)
        first = min(appointments.values(), default=None)
        following = wheel.next_at()
        assert (following is None) == (first is None)
        if first is not None and following is not None:
            assert first - 1e-9 <= following <= first + tick + 1e-9


def test_moving_an_appointment_forgets_the_earlier_one() -> None:
    wheel: Wheel[str] = Wheel(0.5)
    wheel.schedule("a", 1.0)
    wheel.schedule("b", 1.0)
    wheel.schedule("a", 9.0)
    assert wheel.due(1.0) == ["b"]
    assert wheel.next_at() == 9.0
    assert wheel.due(8.99) == []
    assert wheel.due(9.0) == ["a"]
    assert wheel.next_at() is None


def test_twenty_thousand_heartbeats_use_few_slots() -> None:
    wheel: Wheel[int] = Wheel(0.1)
    for key in range(20_000):
        wheel.schedule(key, 10.0 + key / 4_000)  # within five seconds
    for key in range(20_000):
        wheel.schedule(key, 20.0 + key / 4_000)
    assert wheel.next_at() == 20.0
    assert len(wheel._slots) <= 52  # the slots that were left empty are gone
    assert len(wheel.due(30.0)) == 20_000
