"""What a TLS connect with a JWT costs edge and core together, beside a TLS WebSocket connect to the floor.

Every connect has a token of its own, as after an outage: nothing that remembers a credential can help.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from bench.common import ROUNDS, Child, Figure, Server, clients, cpu_s, floor, product, report
from tidegate.tokens import mint

CONNECTS = 500
SETTLE_S = 1.0
IDLE_S = 2.0


def tokens(server: Server, count: int, channels: str = "bench") -> list[str]:
    now = int(time.time())
    capability = f'{{"{channels}":["publish","subscribe"]}}'
    return [
        mint(server.key, capability=capability, client_id=f"client-{n}", ttl_s=3600, now_s=now) if server.ably else "" for n in range(count)
    ]


def turn(server: Server, child: Child) -> float:
    """CPU milliseconds per connect, until CONNECTED (the floor: until the upgrade is answered).

    What the processes use when nothing happens (a core tails Kafka all the time) is measured first and taken off.
    """
    fresh = tokens(server, CONNECTS)
    idle = cpu_s(server.all)
    time.sleep(IDLE_S)
    idle = (cpu_s(server.all) - idle) / IDLE_S

    start, cpu = time.perf_counter(), cpu_s(server.all)
    child.ask("connect", tokens=fresh, subscribe=False)
    time.sleep(SETTLE_S)  # what is done after the answer is part of the price
    cpu = cpu_s(server.all) - cpu - idle * (time.perf_counter() - start)
    child.ask("drop")
    time.sleep(SETTLE_S)
    return 1000 * cpu / CONNECTS


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    floors, products = [], []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(floor(directory)), stack.enter_context(product(kafka))]
        children = [stack.enter_context(clients(server)) for server in servers]
        for n in range(-1, rounds):
            found = [turn(server, child) for server, child in zip(servers, children, strict=True)]
            if n < 0:
                continue  # the first turn warms up
            floors.append(found[0])
            products.append(found[1])
            print(f"connect {n + 1}/{rounds}: floor {found[0]:.2f} ms, edge and core {found[1]:.2f} ms")
    figure = Figure("CPU per TLS connect with a JWT", "ms, edge + core", floors, products, 2.5, digits=2)
    return report("connect", [figure], "bare picows over TLS")
