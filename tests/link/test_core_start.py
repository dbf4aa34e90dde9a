"""A core as a process, in a world without Kafka."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.core_process import core_process
from tests.support.product import ROOT
from tidegate.kafka_local import free_port


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


def test_operators_of_a_core_with_access_tokens_need_one(tmp_path: Path) -> None:
    """`tidegate status` and `tail` say so, and take it from a file or the environment, also while the core has no Kafka."""
    secret = "s" * 40
    (tmp_path / "token").write_text(f"ops.{secret}\n")

    def said(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tidegate", *arguments, "--core", f"http://127.0.0.1:{core.admin}"]
        outside = {name: value for name, value in os.environ.items() if name != "TIDEGATE_ACCESS_TOKEN"}
        return subprocess.run(command, check=False, capture_output=True, cwd=ROOT, timeout=60, text=True, env=outside | environment)

    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o600)
    port = free_port()
    tokens = [{"id": "ops", "secret_file": "secret", "scopes": ["reader"]}]
    with core_process(tmp_path, "127.0.0.1:1", admin={"port": port, "tokens": tokens}) as core:
        core.admin = port
        core.until(lambda: core.answers("/healthz") == 200)
        assert [core.answers(path) for path in ("/v1/status", "/v1/members", "/v1/tail", "/readyz")] == [401, 401, 401, 503]
        refused = said("status")
        assert refused.returncode == 1
        assert "TIDEGATE_ACCESS_TOKEN" in refused.stdout
        for shown in (said("status", "--token-file", str(tmp_path / "token")), said("status", TIDEGATE_ACCESS_TOKEN=f"ops.{secret}")):
            assert "core-1" in shown.stdout, shown
        assert "TIDEGATE_ACCESS_TOKEN" in said("tail", "room").stderr
        assert "starting" in said("tail", "room", "--token-file", str(tmp_path / "token")).stderr
        assert secret not in core.log.read_text()
