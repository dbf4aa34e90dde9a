"""One publisher, 1,000 TLS subscribers, 120-byte messages: what a delivery costs the edge, and what an idle client does.

Each turn starts its server afresh, since memory that was once used is not given back.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

from bench.common import ROUNDS, Figure, Server, clients, cpu_s, floor, product, report, rss_bytes

SUBSCRIBERS = 1_000
RATE = 20.0
WARM_CLIENTS = 100
SETTLE_S = 1.5
WINDOW_S = 8.0
ARRIVE_WITHIN_S = 10.0


def turn(starting: AbstractContextManager[Server]) -> tuple[float, float]:
    """CPU microseconds per delivery, KiB per idle client."""
    with starting as server, clients(server) as subscribers, clients(server) as publisher:
        subscribers.ask("connect", tokens=[server.token] * WARM_CLIENTS)  # modules, pools and caches are not a client's memory
        time.sleep(SETTLE_S)
        before = rss_bytes(server.edge)
        subscribers.ask("connect", tokens=[server.token] * SUBSCRIBERS)
        time.sleep(SETTLE_S)
        idle = (rss_bytes(server.edge) - before) / SUBSCRIBERS / 1024

        publisher.tell("publish", token=server.token, rate=RATE, seconds=2 * SETTLE_S + WINDOW_S)
        time.sleep(SETTLE_S)
        messages, cpu = subscribers.ask("count")["messages"], cpu_s(server.edge)
        time.sleep(WINDOW_S)
        messages, cpu = subscribers.ask("count")["messages"] - messages, cpu_s(server.edge) - cpu
        published = publisher.read()["published"]
        due, until = published * (SUBSCRIBERS + WARM_CLIENTS), time.monotonic() + ARRIVE_WITHIN_S
        while (arrived := subscribers.ask("count")["messages"]) < due and time.monotonic() < until:
            time.sleep(0.1)
        if published < round(RATE * (2 * SETTLE_S + WINDOW_S)) or arrived != due:
            raise RuntimeError(f"{arrived} deliveries where {due} were due: not what is to be measured")
        if messages < 0.95 * RATE * WINDOW_S * (SUBSCRIBERS + WARM_CLIENTS):
            print(f"this machine is busy: {messages / WINDOW_S:.0f} deliveries a second in the window")
        return 1e6 * cpu / messages, idle


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    floors, products = [], []
    for n in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            floors.append(turn(floor(Path(directory))))
        products.append(turn(product(kafka)))
        (floor_us, floor_kib), (edge_us, edge_kib) = floors[-1], products[-1]
        print(f"fanout {n + 1}/{rounds}: floor {floor_us:.1f} µs {floor_kib:.1f} KiB, edge {edge_us:.1f} µs {edge_kib:.1f} KiB")
    figures = [
        Figure("Edge CPU per delivery", "µs", [f[0] for f in floors], [p[0] for p in products], 1.4),
        Figure("Memory per idle TLS client", "KiB", [f[1] for f in floors], [p[1] for p in products], 1.3),
    ]
    return report("fanout", figures, "bare picows broadcast")
