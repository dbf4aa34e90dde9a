"""The verdict on duplicates. Its one law: readers that started early enough agree, wherever they started."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.fold import SKEW_MS, WINDOW_MS, Fold

KEY = b"shop:chat"


def verdicts(log: list[tuple[int, str]], start: int = 0) -> dict[int, bool]:
    """Offset → duplicate?, for a reader that begins at `start`."""
    fold = Fold(1_000_000, b"secret")
    return {offset: fold.see(0, KEY, log[offset][1], log[offset][0], offset) is not None for offset in range(start, len(log))}


def test_the_first_is_accepted_and_repetitions_name_it():
    fold = Fold(100, b"s")
    assert fold.see(0, KEY, "a", 1000, 7) is None
    assert fold.see(0, KEY, "a", 1500, 9) == 7
    assert fold.see(0, KEY, "b", 1500, 10) is None
    assert fold.first(0, KEY, "a") == 7


def test_ids_belong_to_their_channel_and_partition():
    fold = Fold(100, b"s")
    assert fold.see(0, KEY, "a", 1000, 0) is None
    assert fold.see(0, b"shop:other", "a", 1000, 1) is None
    assert fold.see(1, KEY, "a", 1000, 0) is None


def test_the_window_is_inclusive_and_ends():
    fold = Fold(100, b"s")
    assert fold.see(0, KEY, "a", 0, 0) is None
    assert fold.see(0, KEY, "a", WINDOW_MS, 1) == 0
    assert fold.see(0, KEY, "a", 2 * WINDOW_MS + 1, 2) is None


def test_a_refused_occurrence_counts_too():
    """Otherwise the third would be accepted by a reader that began after the first, and refused by one that saw it."""
    fold = Fold(100, b"s")
    fold.see(0, KEY, "a", 0, 0)
    assert fold.see(0, KEY, "a", 200_000, 1) == 0
    assert fold.see(0, KEY, "a", 400_000, 2) == 0


STEPS = st.integers(-SKEW_MS // 2, 90_000)
LOGS = st.lists(st.tuples(STEPS, st.sampled_from("abcd")), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(LOGS)
def test_readers_that_started_early_enough_agree(steps):
    log, highest, base = [], 1_000_000, 1_000_000
    for step, publish_id in steps:
        base = max(base + step, highest - SKEW_MS)  # broker time may step back, no further than the skew
        highest = max(highest, base)
        log.append((base, publish_id))
    everything = verdicts(log)
    # The oracle: any earlier occurrence within the window.
    for offset, (at, publish_id) in enumerate(log):
        assert everything[offset] == any(other == publish_id and at - then <= WINDOW_MS for then, other in log[:offset])
    for start in range(len(log)):
        sound_from = max(then for then, _ in log[:start] or [(0, "")]) + WINDOW_MS + SKEW_MS
        for offset, duplicate in verdicts(log, start).items():
            if start == 0 or log[offset][0] > sound_from:
                assert duplicate == everything[offset]


def test_what_is_old_is_forgotten():
    fold = Fold(1_000_000, b"s")
    for n in range(10_000):
        fold.see(0, KEY, f"id-{n}", n * 1000, n)
    assert fold.ids <= (WINDOW_MS + SKEW_MS) / 1000 + 30
    assert fold.forgotten_early == 0


def test_an_id_seen_again_outlives_its_first_bucket():
    fold = Fold(1_000_000, b"s")
    fold.see(0, KEY, "a", 0, 0)
    fold.see(0, KEY, "a", 200_000, 1)
    for n in range(20):
        fold.see(0, KEY, f"x{n}", 200_000 + n * 10_000, 2 + n)
    assert fold.see(0, KEY, "a", 430_000, 30) == 0


def test_the_bound_holds_and_says_so():
    fold = Fold(1_000, b"s")
    for n in range(5_000):
        fold.see(n % 3, KEY, f"id-{n}", n, n)
    assert fold.ids <= 1_000
    assert fold.forgotten_early > 0
    assert fold.ids == sum(len(window.table) for window in fold._windows.values())
