"""Three minutes of it, with every run of the tests. `python -m tests.chaos --minutes 30 --seed N` by hand."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.chaos.run import chaos
from tests.support.kafka import skip_or_fail
from tidegate.kafka_local import KafkaUnavailable, LocalKafka

pytestmark = [pytest.mark.kafka, pytest.mark.node, pytest.mark.timeout(900)]
SECONDS = 180.0


def test_clients_notice_nothing_while_edges_and_cores_are_killed_and_frozen(tmp_path: Path) -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    broker = LocalKafka(directory=tmp_path / "kafka")
    try:
        brokers = broker.start()
    except KafkaUnavailable as missing:
        skip_or_fail(str(missing))
    try:
        figures = chaos(SECONDS, seed, brokers)
    finally:
        broker.stop()
    print(figures)
    assert figures.publishes > 100 * SECONDS / 10
    assert figures.faults.total() > SECONDS / 10
    assert figures.lost == []
    assert figures.doubled == 0
    assert figures.disordered == 0
    assert figures.discontinuities == 0
    assert figures.connections_replaced == 0
    assert figures.presence_wrong == []
    assert figures.presence_right_after_s is not None
