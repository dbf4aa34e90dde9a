"""A core as a process, in a world without Kafka."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.core_process import core_process


@pytest.fixture(params=["refuses", "says nothing"])
def dead_broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """Nobody listens; somebody listens and never answers, as a stopped broker does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_without_kafka_a_core_lives_says_why_it_is_not_ready_and_ends_at_once_when_asked(dead_broker: str, tmp_path: Path) -> None:
    with core_process(tmp_path, dead_broker) as core:
        core.until(lambda: b"kafka cannot be reached" in core.log.read_bytes())
        assert core.answers("/healthz") == 200
        assert core.answers("/readyz") == 503
        time.sleep(2.5)  # in the middle of the next attempt
        asked = time.monotonic()
        core.process.send_signal(signal.SIGTERM)
        assert core.process.wait(30) == 0, core.log.read_text()
        assert time.monotonic() - asked < 3.0, core.log.read_text()
