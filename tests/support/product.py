"""The product as its users run it: `tidegate dev --json` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.kafka import skip_or_fail

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / ".cache" / "node" / "node_modules"


def need_node() -> None:
    if not shutil.which("node"):
        skip_or_fail("Node.js is missing")
    if not (NODE_MODULES / "ably").is_dir():
        skip_or_fail("the ably package of npm is missing: make .cache/node/.installed")


class Product:
    """A running `tidegate dev`. Attributes are the members of its JSON line."""

    def __init__(self, *options: str, ready_within_s: float = 90.0) -> None:
        self.log_path = Path(os.environ.get("TMPDIR", "/tmp")) / f"tidegate-dev-{os.getpid()}-{id(self):x}.log"
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "dev", "--json", "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
        )
        lines: queue.Queue[bytes] = queue.Queue()
        assert self.process.stdout
        threading.Thread(target=lambda: lines.put(self.process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
        try:
            line = lines.get(timeout=ready_within_s)
        except queue.Empty:
            line = b""
        if not line:
            self.stop()
            raise AssertionError(f"tidegate dev did not come up:\n{self.log()}")
        self.found: dict[str, Any] = json.loads(line)
        self.url: str = self.found["url"]
        self.rest: str = self.found["rest"]
        self.edges: list[str] = self.found["edges"]
        self.ca: str = self.found["ca"]
        self.key: str = self.found["key"]
        self.token: str = self.found["token"]
        self.kafka: str = self.found["kafka"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def log(self) -> str:
        if not self._log.closed:
            self._log.flush()
        return self.log_path.read_text(errors="replace")[-8000:]

    def pids(self, role: str) -> list[int]:
        """Processes as they are now, those started again included."""
        return list(json.loads((Path(self.found["state"]) / "processes.json").read_text())[role])

    def kill(self, role: str, number: int, how: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a core or edge (counted from 0). Returns its pid."""
        pid = self.pids(role)[number]
        os.kill(pid, how)
        return pid

    def wait_restarted(self, role: str, number: int, old: int, within_s: float = 20.0) -> int:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            pid = self.pids(role)[number]
            if pid != old:
                return pid
            time.sleep(0.1)
        raise AssertionError(f"{role} {number} was not started again:\n{self.log()}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._log.close()


@contextlib.contextmanager
def product(*options: str) -> Iterator[Product]:
    running = Product(*options)
    try:
        yield running
    finally:
        running.stop()


class NodeScript:
    """A Node.js program of tests/e2e/node that prints one JSON object a line."""

    def __init__(self, name: str, product: Product, **settings: object) -> None:
        need_node()
        environment = {
            **os.environ,
            "NODE_PATH": str(NODE_MODULES),
            "NODE_EXTRA_CA_CERTS": product.ca,
            "SETTINGS": json.dumps({"host": "127.0.0.1", "port": product.port, "key": product.key, "token": product.token, **settings}),
        }
        self.lines: list[dict[str, Any]] = []
        self.arrived = threading.Condition()
        self.process = subprocess.Popen(
            ["node", str(ROOT / "tests" / "e2e" / "node" / f"{name}.cjs")], env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self.arrived:
                self.lines.append(json.loads(line))
                self.arrived.notify_all()

    def wait_for(self, what: str, timeout_s: float = 60.0, **match: object) -> dict[str, Any]:
        """The first line whose `what` is that (and whose other members match)."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self.arrived:
            while True:
                for line in self.lines[seen:]:
                    if line["what"] == what and all(line.get(k) == v for k, v in match.items()):
                        return line
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self.reader.is_alive()):
                    raise AssertionError(f"no line {what!r} {match}; last lines: {self.lines[-5:]}")
                self.arrived.wait(min(left, 0.5))

    def every(self, what: str) -> list[dict[str, Any]]:
        with self.arrived:
            return [line for line in self.lines if line["what"] == what]

    def tell(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
