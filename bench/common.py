"""What every benchmark here does: starts servers and clients as processes of their own, reads their CPU and memory, shows medians.

The machine that runs this is not quiet, so every figure is a ratio: product and floor take turns in one run, and the table, the JSON and
the chart show the median of the turns.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tidegate.kafka_local import LocalKafka

ROUNDS = 5
START_WITHIN_S = 180.0  # the first start of a real Kafka fetches it
ANSWER_WITHIN_S = 120.0
CHARTS = Path(__file__).parents[1] / "docs" / "bench"
RESULTS = Path(__file__).parents[1] / ".cache" / "bench"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


# --- processes ------------------------------------------------------------------------------------------------------------------------


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time that the processes have used so far, in seconds (resolution 10 ms)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def rss_bytes(pids: Sequence[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in pids)


class Child:
    """A process that is told what to do by JSON lines on stdin, and answers by JSON lines on stdout. Ends with its `with`."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._name = " ".join(argv[1:4])

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, within_s: float = ANSWER_WITHIN_S) -> dict[str, Any]:
        """The next line. Raises RuntimeError when the process ended or took too long."""
        assert self._process.stdout
        timer = threading.Timer(within_s, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise RuntimeError(f"{self._name}: no answer (exit {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.tell(do, **arguments)
        return self.read()

    def tell(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Server(NamedTuple):
    """A server under test. Its paths are for clients that speak to the floor; to the product, `key` and `token` open the door."""

    url: str
    ca: str
    pids: dict[str, list[int]]
    """Process ids by role; the floor has the role `edge` only."""
    ably: bool
    key: str = ""
    token: str = ""
    kafka: str = ""
    urls: tuple[str, ...] = ()
    """Of every edge."""
    state: str = ""
    """Directory that holds `processes.json`."""

    @property
    def edge(self) -> list[int]:
        return self._pids_now()["edge"]

    @property
    def core(self) -> list[int]:
        return self._pids_now().get("core", [])

    def _pids_now(self) -> dict[str, list[int]]:
        """Those of processes that were started again included."""
        if not self.state:
            return self.pids
        found: dict[str, list[int]] = json.loads((Path(self.state) / "processes.json").read_text())
        return found

    def kill(self, edge: int) -> None:
        os.kill(self.edge[edge], signal.SIGKILL)

    def wait_restarted(self, edge: int, old: int, within_s: float) -> None:
        """Until another process is in the place of that edge, and lets clients in."""
        deadline = time.monotonic() + within_s
        url = self.urls[edge].replace("wss:", "https:") + "/readyz"
        while self.edge[edge] == old or not _answers(url, self.ca):
            if time.monotonic() > deadline:
                raise RuntimeError("the edge was not started again")
            time.sleep(0.1)

    @property
    def all(self) -> list[int]:
        return [pid for role in ("edge", "core") for pid in self._pids_now().get(role, [])]


@contextlib.contextmanager
def floor(directory: Path) -> Iterator[Server]:
    """The bare server: what the sockets, TLS and WebSocket framing cost alone."""
    certificate, key = self_signed(directory)
    with Child([sys.executable, "-m", "bench.floor_picows", str(certificate), str(key)]) as child:
        yield Server(url=child.read()["url"], ca=str(certificate), pids={"edge": [child.pid]}, ably=False)


@contextlib.contextmanager
def product(kafka: str | None, *options: str) -> Iterator[Server]:
    """One edge and one core by `tidegate dev`. `kafka`: `local`, brokers, or None for the embedded broker."""
    argv = [sys.executable, "-m", "tidegate", "dev", "--json", "--port", "0", *options]
    with Child(argv + (["--kafka", kafka] if kafka else [])) as child:
        up = child.read(START_WITHIN_S)
        yield Server(
            url=up["url"],
            ca=up["ca"],
            pids=up["processes"],
            ably=True,
            key=up["key"],
            token=up["token"],
            kafka=up["kafka"],
            urls=tuple(up["edges"]),
            state=up["state"],
        )


def _answers(url: str, ca: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2, context=ssl.create_default_context(cafile=ca)) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def broker(kafka: str) -> Iterator[str]:
    """host:port of a real Kafka; `local` is one of our own."""
    if kafka != "local":
        yield kafka
        return
    local = LocalKafka(fast_start=False)
    try:
        yield local.start()
    finally:
        local.stop()


def clients(server: Server, kind: str = "ably", edge: int = 0) -> Child:
    """A process of clients for `server`: see `bench.clients` for the kinds, and what they can be asked."""
    url = server.urls[edge] if server.urls else server.url
    return Child([sys.executable, "-m", "bench.clients", url, server.ca, kind if server.ably else "bare"])


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Files: a certificate for 127.0.0.1, and its key, of the kind that Tidegate uses (ECDSA P-256) so that handshakes cost the same."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "floor")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "floor.pem", directory / "floor.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


# --- results --------------------------------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """One quantity, measured on floor and product in turns. `target` bounds product ÷ floor, or product − floor where `difference`, or the
    product `alone`, whatever the floor needs."""

    name: str
    unit: str
    floor: list[float]
    product: list[float]
    target: float | None = None
    difference: bool = False
    digits: int = 1
    alone: bool = False

    @property
    def found(self) -> float:
        floor, product = statistics.median(self.floor), statistics.median(self.product)
        return product - floor if self.difference else product / floor

    @property
    def met(self) -> bool:
        return self.target is None or (statistics.median(self.product) if self.alone else self.found) <= self.target

    def row(self) -> list[str]:
        sign = "+" if self.difference else "×"
        of = "" if self.alone else sign
        bound = "" if self.target is None else f"≤ {of}{self.target:g} {'met' if self.met else 'MISSED'}"
        middle = [f"{statistics.median(values):.{self.digits}f}" for values in (self.floor, self.product)]
        return [f"{self.name}, {self.unit}", *middle, f"{sign}{self.found:.2f}", bound]


def report(benchmark: str, figures: Sequence[Figure], floor_is: str) -> bool:
    """Table to stdout, JSON to `.cache/bench`, chart to `docs/bench`. Whether every target was met."""
    rows = [
        [f"{benchmark}: median of {len(figures[0].floor)}", f"floor ({floor_is})", "Tidegate", "", "target"],
        *(f.row() for f in figures),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = [{**f._asdict(), "found": f.found, "met": f.met} for f in figures]
    (RESULTS / f"{benchmark}.json").write_text(json.dumps({"at": int(time.time()), "floor": floor_is, "figures": found}, indent=1))
    CHARTS.mkdir(parents=True, exist_ok=True)
    (CHARTS / f"{benchmark}.svg").write_text(chart(figures, floor_is))
    return all(figure.met for figure in figures)


WIDTH, LABEL, ROW, HEAD = 720, 230, 62, 34
BARS = WIDTH - LABEL - 150


def chart(figures: Sequence[Figure], floor_is: str) -> str:
    """Two bars a figure, floor and product, each pair to its own scale; a line where the target is; a whisker from least to most."""
    body: list[str] = []
    for n, figure in enumerate(figures):
        top = HEAD + n * ROW
        base = statistics.median(figure.floor)
        bound = figure.target
        if bound is not None and not figure.alone:
            bound = base + bound if figure.difference else base * bound
        scale = BARS / (1.05 * max(*figure.floor, *figure.product, bound or 0))
        body.append(f'<text x="0" y="{top + 19}">{figure.name}</text><text class="quiet" x="0" y="{top + 36}">{figure.unit}</text>')
        for y, kind, values in ((top + 4, "floor", figure.floor), (top + 25, "product", figure.product)):
            middle = statistics.median(values)
            end, low, high = (LABEL + scale * value for value in (middle, min(values), max(values)))
            sign = "+" if figure.difference else "×"
            beside = "" if kind == "floor" else f" ({sign}{figure.found:.2f})"
            body.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{end - LABEL:.1f}" height="17" rx="2"/>')
            body.append(f'<path class="spread" d="M{low:.1f} {y + 8.5}H{high:.1f}"/>')
            body.append(f'<text x="{LABEL + BARS + 12}" y="{y + 13}">{middle:.{figure.digits}f}{beside}</text>')
        if bound is not None:
            x = LABEL + scale * bound
            body.append(f'<path class="target" d="M{x:.1f} {top}v46"><title>target</title></path>')
    legend = (
        f'<rect class="floor" x="{LABEL}" y="6" width="12" height="12"/><text x="{LABEL + 18}" y="16">floor: {floor_is}</text>'
        f'<rect class="product" x="{LABEL + 270}" y="6" width="12" height="12"/><text x="{LABEL + 288}" y="16">Tidegate</text>'
        f'<path class="target" d="M{LABEL + 376} 4v16"/><text x="{LABEL + 384}" y="16">target</text>'
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEAD + len(figures) * ROW}" role="img">
<title>Tidegate beside its floor: {", ".join(figure.name for figure in figures)}</title>
<style>
  text {{ font: 13px system-ui, sans-serif; fill: #14202b }} .quiet {{ fill: #526272; font-size: 12px }}
  .floor {{ fill: #9fb3c2 }} .product {{ fill: #1477ad }}
  .spread {{ stroke: #14202b; stroke-width: 1.5 }} .target {{ stroke: #a3341f; stroke-width: 2; stroke-dasharray: 4 3 }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e8eef3 }} .quiet {{ fill: #9bacbb }} .spread {{ stroke: #e8eef3 }} .floor {{ fill: #5d7283 }}
  }}
</style>
{legend}
{chr(10).join(body)}
</svg>
"""
