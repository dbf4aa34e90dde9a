"""What is read of `tidegate.state`, against a log that is not what it was."""

from __future__ import annotations

import pytest

from core.kafka.state_log import within
from core.ownership import PartitionState
from core.state import Checkpoint


@pytest.mark.parametrize(("end", "offset"), [(7, 7), (10, 10), (11, 10), (-1001, 10)])
def test_a_log_that_has_lost_its_end_is_news_from_there_on(end: int, offset: int) -> None:
    """What comes to lie before the checkpoint would be left out as known otherwise."""
    found = within(PartitionState(Checkpoint(stream="s", offset=10, time=3), {b"k": b"v"}), 0, end)
    assert found.checkpoint == Checkpoint(stream="s", offset=offset, time=3)
    assert found.records == {b"k": b"v"}


def test_without_a_checkpoint_there_is_nothing_to_compare() -> None:
    assert within(PartitionState(None, {}), 0, 0) == PartitionState(None, {})
