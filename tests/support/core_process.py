"""One core as a process of its own, without edges or with one."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from certs.authority import Authority
from certs.policy import Policy
from tidegate.kafka_local import free_port


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0


@dataclass
class Core:
    process: subprocess.Popen[bytes]
    admin: int
    log: Path
    link: int
    directory: Path

    def until(self, condition: Callable[[], object], within_s: float = 40.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def answers(self, path: str) -> int:
        return status_of(self.admin, path)


@contextlib.contextmanager
def core_process(directory: Path, brokers: str, **settings: Any) -> Iterator[Core]:
    """`settings` are further ones of core.toml."""
    authority = Authority.create(Policy("relay.test"))
    issued, edge = authority.core("core-1"), authority.edge("here", "edge-1")
    (directory / "ca.pem").write_bytes(authority.root.certificate_pem())
    (directory / "core.pem").write_bytes(issued.certificate_pem())
    (directory / "edge.pem").write_bytes(edge.certificate_pem())
    keys = (("core.key", issued.private_key_pem()), ("edge.key", edge.private_key_pem()), ("ring", secrets.token_hex(32).encode()))
    for name, content in keys:
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    admin, link = free_port(), free_port()
    config = {
        "node": "core-1",
        "link": {"port": link, "trust_domain": "relay.test"} | {"certificate": "core.pem", "private_key": "core.key", "ca": "ca.pem"},
        "admin": {"port": admin},
        "metrics": {"port": free_port()},
        "kafka": {"brokers": brokers},
        "keyring": [{"id": "one", "secret_file": "ring"}],
    } | settings
    (directory / "core.toml").write_text(tomli_w.dumps(config))
    log = directory / "core.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tidegate", "core", "-c", "core.toml"]
        process = subprocess.Popen(command, cwd=directory, stderr=out, stdout=out)
    try:
        yield Core(process, admin, log, link, directory)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def edge_of(core: Core) -> Iterator[str]:
    """An edge linked to it, without TLS towards clients. Yields `host:port`."""
    port, metrics = free_port(), free_port()
    config = {
        "site": "here",
        "node": "edge-1",
        "dev": True,
        "basic_auth": "all",
        "listen": {"host": "127.0.0.1", "port": port, "plain": True},
        "metrics": {"port": metrics},
        "link": {"cores": [f"127.0.0.1:{core.link}"], "trust_domain": "relay.test"}
        | {"certificate": "edge.pem", "private_key": "edge.key", "ca": "ca.pem"},
    }
    (core.directory / "edge.toml").write_text(tomli_w.dumps(config))
    with (core.directory / "edge.log").open("wb") as out:
        command = [sys.executable, "-m", "tidegate", "edge", "-c", "edge.toml"]
        process = subprocess.Popen(command, cwd=core.directory, stderr=out, stdout=out)
    try:
        core.until(lambda: status_of(port, "/readyz") == 200)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
