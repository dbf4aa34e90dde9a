"""The public tier runs where nothing of Kafka is installed, and says that it lives and is not ready while no core answers."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from certs.authority import Authority
from certs.policy import Policy
from tests.support.product import ROOT
from tidegate.kafka_local import free_port

FORBIDDEN = ("confluent_kafka", "rocksdict", "re2")


def test_an_edge_starts_and_serves_without_the_kafka_library(tmp_path: Path) -> None:
    for module in FORBIDDEN:
        (tmp_path / "without" / module).mkdir(parents=True)
        (tmp_path / "without" / module / "__init__.py").write_text(f"raise ModuleNotFoundError({module!r})")
    authority = Authority.create(Policy("relay.test", ("127.0.0.1",)))
    (tmp_path / "ca.pem").write_bytes(authority.root.certificate_pem())
    for name, leaf in {"server": authority.server(["127.0.0.1"]), "edge": authority.edge("eu", "edge-1")}.items():
        (tmp_path / f"{name}.pem").write_bytes(leaf.certificate_pem())
        (tmp_path / f"{name}.key").write_bytes(leaf.private_key_pem())
        (tmp_path / f"{name}.key").chmod(0o600)
    port = free_port()
    (tmp_path / "edge.toml").write_text(f"""
        site = "eu"
        node = "edge-1"
        [listen]
        host = "127.0.0.1"
        port = {port}
        certificate = "server.pem"
        private_key = "server.key"
        [link]
        cores = ["127.0.0.1:{free_port()}"]
        trust_domain = "relay.test"
        certificate = "edge.pem"
        private_key = "edge.key"
        ca = "ca.pem"
    """)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}"}
    edge = subprocess.Popen([sys.executable, "-m", "tidegate", "edge", "-c", str(tmp_path / "edge.toml")], env=environment, cwd=tmp_path)
    try:
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        assert status(f"https://127.0.0.1:{port}/healthz", trust) == 200
        assert status(f"https://127.0.0.1:{port}/time", trust) == 200
        assert status(f"https://127.0.0.1:{port}/readyz", trust) == 503
    finally:
        edge.terminate()
        assert edge.wait(15) == 0


def status(url: str, trust: ssl.SSLContext) -> int:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5, context=trust) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as answer:
            return answer.code
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
