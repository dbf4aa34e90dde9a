"""`tidegate edge --workers`: several processes behind one port, each with its own links, that end together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.product import ROOT, Product
from tidegate.kafka_local import free_port


class Workers:
    """An edge of two processes, with the identity of the product's own edge."""

    def __init__(self, relay: Product, directory: Path) -> None:
        state = Path(relay.found["state"])
        self.port = free_port()
        settings = (state / "edge-1.toml").read_text()
        settings = settings.replace(f"port = {relay.port}", f"port = {self.port}")
        (directory / "edge.toml").write_text(settings)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "edge", "-c", str(directory / "edge.toml"), "--workers", "2"],
            cwd=ROOT,
            env={**os.environ, "TIDEGATE_METRICS__PORT": "0"},
            stderr=subprocess.PIPE,
            process_group=0,
        )
        self.trust = ssl.create_default_context(cafile=relay.ca)

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    async def ask(self, path: str) -> str | None:
        """The first line of the answer, on a connection of its own; None while nobody answers."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            return answer.decode().partition("\r\n")[0]
        return None

    def until_linked(self) -> None:
        """Both workers answer: of 30 connections, all find a core (the kernel spreads them)."""

        async def main() -> None:
            deadline = time.monotonic() + 30
            while True:
                answers = [await self.ask("/readyz") for _ in range(30)]
                if all(answer is not None and " 200 " in answer for answer in answers):
                    return
                assert time.monotonic() < deadline, answers[-1]
                await asyncio.sleep(0.2)

        asyncio.run(main())


@pytest.fixture
def workers(relay: Product, tmp_path: Path) -> Iterator[Workers]:
    running = Workers(relay, tmp_path)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        assert running.process.stderr
        running.process.stderr.close()


def test_both_workers_serve_and_link_and_a_sigterm_ends_all(workers: Workers) -> None:
    workers.until_linked()
    children = workers.children()
    assert len(children) == 2
    listening = subprocess.run(["ss", "-Hltn", f"sport = :{workers.port}"], capture_output=True, text=True, check=False)
    if listening.returncode == 0:
        assert len(listening.stdout.splitlines()) == 2
    workers.process.send_signal(signal.SIGTERM)
    assert workers.process.wait(15) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_ctrl_c_in_a_terminal_ends_the_workers_in_order(workers: Workers) -> None:
    workers.until_linked()
    os.killpg(workers.process.pid, signal.SIGINT)  # as the terminal does: to every process of the foreground group
    assert workers.process.wait(15) == 0
    assert workers.process.stderr
    assert b"second signal" not in workers.process.stderr.read()


def test_a_worker_that_dies_ends_the_others(workers: Workers) -> None:
    workers.until_linked()
    children = workers.children()
    os.kill(children[0], signal.SIGKILL)
    assert workers.process.wait(15) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_clients_of_both_workers_meet_on_a_channel(workers: Workers, relay: Product) -> None:
    workers.until_linked()
    key = relay.key
    body = json.dumps({"name": "x", "data": "y"})

    async def main() -> None:
        for _ in range(10):  # over either worker
            reader, writer = await asyncio.open_connection("127.0.0.1", workers.port, ssl=workers.trust)
            head = f"POST /channels/c/messages?key={key} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            assert b" 201 " in answer.partition(b"\r\n")[0], answer

    asyncio.run(main())
