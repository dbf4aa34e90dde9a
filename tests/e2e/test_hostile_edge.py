"""Who may link: a core and an edge as processes, and everybody that either of them must turn away, under its own reason.

What an edge with a good certificate may not do once it is linked: `tests/journeys/test_hostile_edge.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import secrets
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from certs.authority import Authority, Issued
from certs.policy import Policy
from tests.support import bad_certs
from tidegate.kafka_local import free_port

pytestmark = pytest.mark.kafka

DOMAIN = "relay.test"
UPGRADE = (
    b"GET /link HTTP/1.1\r\nHost: core\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

EDGES_REFUSED: dict[str, tuple[str, Callable[[Authority], Issued | None]]] = {
    "no certificate": ("no_certificate", lambda authority: None),
    "another CA": ("unknown_ca", lambda authority: bad_certs.by_another_ca(DOMAIN)),
    "expired": ("expired", bad_certs.expired),
    "not yet valid": ("not_yet_valid", bad_certs.not_yet_valid),
    "a core's certificate": ("wrong_role", lambda authority: authority.core("core-1")),
    "an edge that calls itself a core": ("wrong_role", bad_certs.edge_usage_core_name),
    "two URI SANs": ("two_uri_sans", bad_certs.two_uri_sans),
    "another trust domain": ("wrong_trust_domain", bad_certs.foreign_trust_domain),
    "no SPIFFE id": ("not_spiffe", bad_certs.without_spiffe_id),
}
CORES_REFUSED: dict[str, tuple[str, Callable[[Authority], Issued]]] = {
    "another CA": ("unknown_ca", lambda authority: bad_certs.core_by_another_ca(DOMAIN)),
    "expired": ("expired", bad_certs.expired_core),
    "an edge's certificate": ("wrong_role", lambda authority: authority.edge("eu", "edge-1")),
    "two URI SANs": ("two_uri_sans", bad_certs.core_with_two_uri_sans),
    "a web server": ("not_spiffe", bad_certs.web_server_as_core),
}


class Places:
    """Files and free ports of one deployment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create(Policy(DOMAIN, ("localhost",)))
        self.ca = self.write("ca.pem", self.authority.root.certificate_pem())

    def write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return str(path)

    def pair(self, name: str, issued: Issued) -> dict[str, str]:
        return {
            "certificate": self.write(f"{name}.pem", issued.certificate_pem()),
            "private_key": self.write(f"{name}.key", issued.private_key_pem()),
        }

    def identity(self, name: str, issued: Issued) -> dict[str, str]:
        return {"trust_domain": DOMAIN, "ca": self.ca, **self.pair(name, issued)}

    def context(self, issued: Issued | None, *, server: bool = False) -> ssl.SSLContext:
        """Without the care of the product: it presents whatever it is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        if issued is not None:
            pair = self.pair(secrets.token_hex(4), issued)
            context.load_cert_chain(pair["certificate"], pair["private_key"])
        return context


@contextlib.contextmanager
def process(role: str, places: Places, settings: dict[str, Any]) -> Iterator[None]:
    path = places.write(f"{settings['node']}.toml", tomli_w.dumps(settings).encode())
    running = subprocess.Popen([sys.executable, "-m", "tidegate", role, "-c", path], stderr=subprocess.DEVNULL)
    try:
        yield
        assert running.poll() is None
    finally:
        running.terminate()
        running.wait(20)


@dataclass
class Node:
    """A process that runs, and its metrics."""

    port: int
    metrics: int

    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as page:
            return str(page.read().decode())

    def refused(self) -> Counter[str]:
        found = re.findall(r'^tidegate_link_refused_total\{reason="([^"]+)"\} (\S+)', self.page(), re.MULTILINE)
        return Counter({reason: int(float(count)) for reason, count in found})

    def value(self, name: str) -> float:
        found = re.search(rf"^tidegate_{name} (\S+)", self.page(), re.MULTILINE)
        return float(found.group(1)) if found else 0.0


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def core(places: Places, kafka_brokers: str) -> Iterator[Node]:
    node = Node(free_port(), free_port())
    settings = {
        "node": "core-1",
        "link": {"port": node.port, **places.identity("core-1", places.authority.core("core-1"))},
        "admin": {"port": free_port()},
        "metrics": {"port": node.metrics},
        "kafka": {"brokers": kafka_brokers, "prefix": f"refusals-{secrets.token_hex(4)}", "partitions": 4},
        "keyring": [{"id": "k1", "secret_file": places.write("ring", base64.b64encode(secrets.token_bytes(32)))}],
    }
    with process("core", places, settings):
        until(lambda: node.value("core_ready") == 1.0, 60.0)
        yield node


@contextlib.contextmanager
def an_edge(places: Places, *cores: int) -> Iterator[Node]:
    node = Node(free_port(), free_port())
    settings = {
        "site": "eu",
        "node": "edge-1",
        "listen": {"host": "127.0.0.1", "port": node.port, **places.pair("server", places.authority.server(["localhost"]))},
        "metrics": {"port": node.metrics},
        "link": {"cores": [f"127.0.0.1:{port}" for port in cores], **places.identity("edge-1", places.authority.edge("eu", "edge-1"))},
    }
    with process("edge", places, settings):
        yield node


def dial(core: Node, context: ssl.SSLContext) -> bytes:
    """What a core answers to an upgrade at /link; nothing if it ends the connection."""
    with (
        socket.create_connection(("127.0.0.1", core.port), timeout=10) as plain,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(plain) as tls,
    ):
        tls.sendall(UPGRADE)
        return tls.recv(4_096)
    return b""


def test_a_core_refuses_whoever_is_no_edge_and_counts_the_reason(places: Places, core: Node) -> None:
    with an_edge(places, core.port) as edge:
        until(lambda: edge.value("edge_links") == 1.0)
        for case, (reason, make) in EDGES_REFUSED.items():
            before = core.refused()
            answer = dial(core, places.context(make(places.authority)))
            assert answer == b"" or answer.startswith(b"HTTP/1.1 403 "), case
            until(lambda counted=before: core.refused() != counted)
            assert core.refused() - before == Counter([reason]), case
        assert edge.value("edge_links") == 1.0
        assert edge.value("edge_link_losses_total") == 0.0
        assert edge.refused() == Counter()


def test_an_edge_refuses_whoever_is_no_core_and_counts_the_reason(places: Places, core: Node) -> None:
    """One edge, told to dial a core and several impostors at once. It sends them nothing."""
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            received.append(await reader.read(1_000))
        writer.close()

    async def scenario() -> None:
        servers = [
            await asyncio.start_server(listen, "127.0.0.1", 0, ssl=places.context(make(places.authority), server=True))
            for _, make in CORES_REFUSED.values()
        ]
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # handshakes that fail are what this is about
        impostors = [server.sockets[0].getsockname()[1] for server in servers]
        with an_edge(places, core.port, *impostors) as edge:
            reasons = {reason for reason, _ in CORES_REFUSED.values()}
            await asyncio.to_thread(until, lambda: edge.value("edge_links") == 1.0 and set(edge.refused()) == reasons)
        for server in servers:
            server.close()

    asyncio.run(scenario())
    assert b"".join(received) == b""
