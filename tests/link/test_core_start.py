"""A core as a process, in a world without Kafka."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from certs.authority import Authority
from certs.policy import Policy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0


@contextlib.contextmanager
def core(directory: Path, brokers: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """The process, its admin port, and its log."""
    authority = Authority.create(Policy("relay.test"))
    issued = authority.core("core-1")
    (directory / "ca.pem").write_bytes(authority.root.certificate_pem())
    (directory / "core.pem").write_bytes(issued.certificate_pem())
    for name, content in (("core.key", issued.private_key_pem()), ("ring", secrets.token_hex(32).encode())):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    admin = free_port()
    config = {
        "node": "core-1",
        "link": {"port": free_port(), "trust_domain": "relay.test"}
        | {"certificate": "core.pem", "private_key": "core.key", "ca": "ca.pem"},
        "admin": {"port": admin},
        "metrics": {"port": free_port()},
        "kafka": {"brokers": brokers},
        "keyring": [{"id": "one", "secret_file": "ring"}],
    }
    (directory / "core.toml").write_text(tomli_w.dumps(config))
    log = directory / "core.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tidegate", "core", "-c", "core.toml"]
        process = subprocess.Popen(command, cwd=directory, stderr=out, stdout=out)
    try:
        yield process, admin, log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(params=["refuses", "says nothing"])
def dead_broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """Nobody listens; somebody listens and never answers, as a stopped broker does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_without_kafka_a_core_lives_says_why_it_is_not_ready_and_ends_at_once_when_asked(dead_broker: str, tmp_path: Path) -> None:
    with core(tmp_path, dead_broker) as (process, admin, log):
        end = time.monotonic() + 40
        while b"kafka cannot be reached" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        assert status_of(admin, "/healthz") == 200
        assert status_of(admin, "/readyz") == 503
        time.sleep(2.5)  # in the middle of the next attempt
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert time.monotonic() - asked < 3.0, log.read_text()
