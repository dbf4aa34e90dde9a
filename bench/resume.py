"""2,000 clients on one edge that is killed: all of them resume on another, at once, as SDKs do. What that costs, and how long it takes.

Meanwhile a publisher goes on, and every client sees for itself that nothing is missing or doubled. Beside it, what 2,000 TLS WebSocket
connects cost the floor when they come at once.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from bench.common import ROUNDS, Child, Figure, Server, clients, cpu_s, floor, product, report
from bench.connect import tokens

CLIENTS = 2_000
RATE = 40.0
"""Messages a second over all channels: every client gets two of them."""
BASE_S = 4.0
SETTLE_S = 2.0
ARRIVE_WITHIN_S = 20.0
RESTART_WITHIN_S = 30.0


def floor_turn(server: Server, child: Child) -> tuple[float, float]:
    """Seconds for all connects, CPU milliseconds of the server for each."""
    start, cpu = time.perf_counter(), cpu_s(server.edge)
    child.ask("connect", tokens=[""] * CLIENTS, subscribe=False, at_once=CLIENTS)
    seconds = time.perf_counter() - start
    time.sleep(SETTLE_S)
    cpu = cpu_s(server.edge) - cpu
    child.ask("drop")
    return seconds, 1000 * cpu / CLIENTS


def product_turn(server: Server, returning: Child, publisher: Child) -> dict[str, float]:
    """Figures of one killed edge: seconds until the last client is back, CPU milliseconds a client of the other edge and of the core."""
    dies, lives = server.edge
    returning.ask("connect", tokens=tokens(server, CLIENTS, "bench:*"), at_once=50)
    returning.ask("expect_end", url=server.urls[1])
    publisher.ask("number", token=server.token, rate=RATE)
    time.sleep(SETTLE_S)
    base = cpu_s([dies, lives]), cpu_s(server.core)
    time.sleep(BASE_S)
    base = (cpu_s([dies, lives]) - base[0]) / BASE_S, (cpu_s(server.core) - base[1]) / BASE_S

    start, before = time.perf_counter(), (cpu_s([lives]), cpu_s(server.core))
    server.kill(0)
    back = returning.ask("returned")
    time.sleep(SETTLE_S)  # what is done after the answer is part of the price
    took = time.perf_counter() - start
    used = cpu_s([lives]) - before[0] - base[0] * took, cpu_s(server.core) - before[1] - base[1] * took

    published = publisher.ask("number_end")["published"]
    due, until = published // 20 * CLIENTS, time.monotonic() + ARRIVE_WITHIN_S
    while (got := returning.ask("check"))["messages"] < due and time.monotonic() < until:
        time.sleep(0.2)
    if got["messages"] < due or got["lost"] or got["doubled"] or back["replaced"] or back["lapses"]:
        raise RuntimeError(f"not every client went on as if nothing had been: {got}, {back}, {due} deliveries were due")
    returning.ask("drop")
    publisher.ask("drop")
    server.wait_restarted(0, dies, RESTART_WITHIN_S)
    again = back["put_off"] + back["refused"]
    return {
        "again": again,
        "seconds": back["seconds"],
        "median": back["median"],
        "edge": 1000 * used[0] / CLIENTS,
        "core": 1000 * used[1] / CLIENTS,
    }


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    floors, products = [], []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(floor(directory))
        server = stack.enter_context(product(kafka, "--edges", "2"))
        connecting = stack.enter_context(clients(bare))
        for n in range(rounds):
            with clients(server, "returning") as returning, clients(server, "returning", edge=1) as publisher:
                floors.append(floor_turn(bare, connecting))
                products.append(product_turn(server, returning, publisher))
            found = products[-1]
            print(
                f"resume {n + 1}/{rounds}: all {CLIENTS} back after {found['seconds']:.1f} s (half after {found['median']:.1f} s), "
                f"{CLIENTS / found['seconds']:.0f} a second; edge {found['edge']:.2f} ms, core {found['core']:.2f} ms each; "
                f"{found['again']} told to try again; "
                f"floor {floors[-1][0]:.1f} s, {floors[-1][1]:.2f} ms"
            )
    seconds, costs = [each[0] for each in floors], [each[1] for each in floors]
    figures = [
        Figure("Last of 2,000 clients is back", "s", seconds, [each["seconds"] for each in products]),
        Figure("CPU per resume, edge", "ms", costs, [each["edge"] for each in products], digits=2),
        Figure("CPU per resume, core", "ms", costs, [each["core"] for each in products], digits=2),
    ]
    return report("resume", figures, "bare picows, TLS connect")
