"""A core as a process on a broker that is stopped under it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.core_process import core_process
from tidegate.kafka_local import LocalKafka

pytestmark = pytest.mark.kafka

APPS = [
    {
        "id": "app",
        "rules": [{"id": "r", "source": {"type": "channel.message", "channel_filter": "x"}, "target": {"routing_key": "out:k"}}],
        "mappings": [{"id": "m", "topics": ["in"], "channel": "y"}],
    }
]


def test_with_a_stopped_broker_a_core_is_alive_not_ready_quiet_and_ends_when_asked(tmp_path: Path) -> None:
    broker = LocalKafka(directory=tmp_path / "kafka")
    broker.start()
    try:
        with core_process(tmp_path, broker.address, apps=APPS, dev=True) as core:
            core.until(lambda: core.answers("/readyz") == 200)
            broker.pause()
            core.until(lambda: core.answers("/readyz") == 503, 30)
            assert core.answers("/healthz") == 200
            broker.resume()
            core.until(lambda: core.answers("/readyz") == 200, 60)
            broker.pause()
            time.sleep(12)
            lines = core.log.read_text().count("\n")
            assert lines < 300, core.log.read_text()
            asked = time.monotonic()
            core.process.send_signal(signal.SIGTERM)
            assert core.process.wait(40) == 0, core.log.read_text()
            assert time.monotonic() - asked < 12.0, core.log.read_text()
    finally:
        broker.stop()
