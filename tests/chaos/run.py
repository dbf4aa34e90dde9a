"""Clients of the official SDK on a product whose processes are killed and frozen all the time: nothing lost, doubled, out of order.

Three edges behind a balancer and two cores, as processes, on a real Kafka. Chance (seeded) chooses what is done to whom and when; how the
processes interleave is up to the machine. Of each kind at least one process is left alone at any time, so that there is always a way.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import signal
import ssl
import statistics
import time
import tomllib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.chaos.balancer import Balancer
from tests.support.product import NodeScript, Product, product

EDGES, CORES = 3, 2
CHANNELS = 20
CLIENTS, WORKERS = 200, 4
DYING = 20
"""Clients of one more process, which is killed with the last fault: their members must leave by themselves."""
PUBLISHES_PER_S = 0.4
"""Of each client."""
TOGGLE_MS = 15_000
"""Between two times that a client enters or leaves."""
STOP_S = 20.0
BETWEEN_S = (2.0, 6.0)
CUT = 15
PRESENCE_WITHIN_S = 35.0
READY_WITHIN_S = 120.0
SETTLE_WITHIN_S = 150.0
ARRIVE_WITHIN_S = 20.0


@dataclass
class Fault:
    role: str
    number: int
    kind: str
    until: float
    """A stopped process goes on then; a killed one is asked from then on whether it is ready."""


@dataclass
class Figures:
    seed: int
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    publishes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: int = 0
    disordered: int = 0
    discontinuities: int = 0
    """Attachments that the server did not resume."""
    timeouts: int = 0
    """Attachments that clients gave up by themselves, since a process that stood still held their ATTACH for longer than they wait."""
    connections_replaced: int = 0
    resumes: int = 0
    publish_to_ack_ms: dict[str, int] = field(default_factory=dict)
    members: int = 0
    presence_right_after_s: float | None = None
    presence_wrong: list[str] = field(default_factory=list)
    presence_asked: Counter[str] = field(default_factory=Counter)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """The first things that clients said which they should not have had to say."""

    def __str__(self) -> str:
        return json.dumps(self.__dict__, indent=1)

    def take_notes(self, workers: list[NodeScript]) -> None:
        for worker in workers:
            for what in ("gap", "doubled", "disordered", "lapse", "replaced", "connection", "refused", "unsure", "crashed"):
                self.notes += worker.every(what)[:5]

    @property
    def right(self) -> bool:
        return not (self.lost or self.doubled or self.disordered or self.discontinuities or self.presence_wrong)


class Faults:
    """Who is out of order now, and what is done next."""

    def __init__(self, relay: Product, balancer: Balancer, chance: random.Random, figures: Figures, say: Callable[[str], None]) -> None:
        self._relay, self._balancer, self._chance, self._figures, self._say = relay, balancer, chance, figures, say
        self._open: list[Fault] = []
        self.last_at = time.monotonic()

    def turn(self) -> None:
        """Something happens, if anything may."""
        self.mend()
        what = self._chance.choice(["kill", "kill", "stop", "cut"])
        if what == "cut":
            cut = self._balancer.cut(CUT, self._chance)
            self._note(f"cut {cut} connections", "connections cut", cut)
            return
        role = self._chance.choice(["edge", "core"])
        number = self._chance.randrange(EDGES if role == "edge" else CORES)
        if any(fault.role == role for fault in self._open):
            return
        self._relay.kill(role, number, signal.SIGSTOP if what == "stop" else signal.SIGKILL)
        self._open.append(Fault(role, number, what, time.monotonic() + (STOP_S if what == "stop" else 1.0)))
        self._note(f"{what} {role} {number + 1}", f"{role} {'SIGSTOP' if what == 'stop' else 'SIGKILL'}", 1)

    def mend(self) -> None:
        for fault in list(self._open):
            if time.monotonic() < fault.until:
                continue
            if fault.kind == "stop":
                self._relay.kill(fault.role, fault.number, signal.SIGCONT)
                self._note(f"continue {fault.role} {fault.number + 1}", "", 0)
                fault.kind = "stopped"
            if self._ready(fault):
                self._open.remove(fault)
                self._say(f"{fault.role} {fault.number + 1} is ready")

    def mend_all(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while self._open:
            assert time.monotonic() < deadline, f"not ready again: {self._open}"
            self.mend()
            time.sleep(0.2)

    def _note(self, text: str, kind: str, count: int) -> None:
        if kind:
            self._figures.faults[kind] += count
        self.last_at = time.monotonic()
        self._say(text)

    def _ready(self, fault: Fault) -> bool:
        if fault.role == "edge":
            return edge_answers(self._relay, fault.number, "/readyz")[0] == 200
        return answers(f"http://127.0.0.1:{settings_of(self._relay, 'core', fault.number)['metrics']['port']}/readyz")[0] == 200


def settings_of(relay: Product, role: str, number: int) -> dict[str, Any]:
    return tomllib.loads((Path(relay.found["state"]) / f"{role}-{number + 1}.toml").read_text())


def answers(url: str, key: str = "", ca: str | None = None) -> tuple[int, Any]:
    """Status (0: none) and body."""
    headers = {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"} if key else {}
    context = ssl.create_default_context(cafile=ca) if ca else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def edge_answers(relay: Product, number: int, path: str) -> tuple[int, Any]:
    return answers(relay.edges[number].replace("wss:", "https:") + path, relay.key, relay.ca)


def names(count: int, prefix: str) -> list[str]:
    return [f"{prefix}{n:03d}" for n in range(count)]


def places(clients: list[str], channels: list[str]) -> list[tuple[str, list[str]]]:
    """Two channels for each client, so that every channel has the same number of them."""
    count = len(channels)
    return [(name, [channels[n % count], channels[(n + 1 + n // count) % count]]) for n, name in enumerate(clients)]


@contextlib.contextmanager
def swarms(relay: Product, port: int, assigned: list[list[tuple[str, list[str]]]], **settings: Any) -> Iterator[list[NodeScript]]:
    everybody = [name for group in assigned for name, _ in group]
    running = [NodeScript("swarm", relay, port=port, clients=group, everybody=everybody, **settings) for group in assigned]
    try:
        yield running
    finally:
        for each in running:
            each.stop()


def chaos(seconds: float, seed: int, kafka: str, say: Callable[[str], None] = print, *, presence: bool = True) -> Figures:
    """One run; `kafka` is host:port. Figures say what was found; the checks are `Figures.right` and the caller's.

    Raises: AssertionError when clients or processes do not come to rest, after saying what is known."""
    figures = Figures(seed)
    try:
        _chaos(figures, seconds, kafka, say, presence=presence)
    except AssertionError:
        say(str(figures))
        raise
    return figures


def _chaos(figures: Figures, seconds: float, kafka: str, say: Callable[[str], None], *, presence: bool) -> None:
    seed = figures.seed
    chance = random.Random(seed)
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {text}")

    channels = [f"chaos:{seed}:{int(time.time())}:{n}" for n in range(CHANNELS)]
    with contextlib.ExitStack() as stack:
        tell("starting")
        relay = stack.enter_context(product("--edges", str(EDGES), "--cores", str(CORES), "--kafka", kafka))
        tell("the product is up")
        balancer = Balancer(relay.edges, relay.ca)
        stack.callback(balancer.close)
        living = places(names(CLIENTS, "c"), channels)
        dying = places(names(DYING, "d"), channels)
        assigned = [living[n::WORKERS] for n in range(WORKERS)] + [dying]
        workers = stack.enter_context(swarms(relay, balancer.port, assigned, rate=PUBLISHES_PER_S, toggleMs=TOGGLE_MS, presence=presence))
        stack.callback(lambda: figures.take_notes(workers))
        for worker in workers:
            worker.wait_for("ready", READY_WITHIN_S)
        tell(f"{CLIENTS + DYING} clients are attached, by edge: {balancer.connections}")
        for worker in workers:
            worker.tell("go")

        faults = Faults(relay, balancer, chance, figures, tell)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            at = time.monotonic() + chance.uniform(*BETWEEN_S)
            faults.turn()
            while time.monotonic() < at:
                faults.mend()
                time.sleep(0.2)
        faults.mend_all()

        *alive, doomed = workers
        for worker in workers:
            worker.tell("quiet")
        settled = [worker.wait_for("quiet", SETTLE_WITHIN_S) for worker in workers]
        doomed.tell("stop")
        doomed.wait_for("stopped", SETTLE_WITHIN_S)
        doomed.tell("report")
        doomed.wait_for("reported")
        doomed.stop()
        relay.kill("edge", chance.randrange(EDGES))
        faults._note("kill the clients that may die, and an edge", "edge SIGKILL", 1)
        if presence:
            expected: dict[str, set[str]] = {channel: set() for channel in channels}
            for line in settled[:-1]:
                for channel, name in line["present"]:
                    expected[channel].add(name)
            figures.members = sum(map(len, expected.values()))
            check_presence(relay, alive, expected, faults.last_at, figures, tell)

        for worker in alive:
            worker.tell("stop")
        for worker in alive:
            worker.wait_for("stopped", SETTLE_WITHIN_S)
        time.sleep(2)
        reports = collect(alive, doomed)
        figures.seconds = round(time.monotonic() - began, 1)
        judge(figures, reports, workers)
        tell("lost nothing" if not figures.lost else f"lost {len(figures.lost)}")


def check_presence(
    relay: Product, alive: list[NodeScript], expected: dict[str, set[str]], fault_at: float, figures: Figures, say: Callable[[str], None]
) -> None:
    """Asks clients, edges and cores, until all say the same or it is too late. What counts is when a look began, since it takes a while;
    the last one begins when everything has to be right."""
    while True:
        after = time.monotonic() - fault_at
        wrong = wrong_members(relay, alive, expected, figures)
        took = time.monotonic() - fault_at - after
        if not wrong:
            figures.presence_right_after_s = round(after, 1)
            say(f"presence is right everywhere {after:.1f} s after the last fault")
            return
        if after >= PRESENCE_WITHIN_S:
            figures.presence_wrong = wrong[:20]
            say(f"presence is wrong in {len(wrong)} places {after:.1f} s after the last fault")
            return
        left = PRESENCE_WITHIN_S - (time.monotonic() - fault_at)
        time.sleep(max(0.0, left if left < took + 1 else 1.0))


def wrong_members(relay: Product, alive: list[NodeScript], expected: dict[str, set[str]], figures: Figures) -> list[str]:
    """Who gives another list of members than they should, in words."""
    wrong: list[str] = []

    def compare(who: str, kind: str, channel: str, found: list[str] | None) -> None:
        figures.presence_asked[kind] += 1
        if found is None:
            wrong.append(f"{who} does not answer for {channel}")
        elif sorted(found) != sorted(expected[channel]):
            ghosts, missing = Counter(found) - Counter(expected[channel]), expected[channel] - set(found)
            wrong.append(f"{who}, {channel}: too many {sorted(ghosts)}, too few {sorted(missing)}")

    for worker in alive:
        before = len(worker.every("asked"))
        seen = len(worker.every("members"))
        worker.tell("presence")
        deadline = time.monotonic() + PRESENCE_WITHIN_S
        while len(worker.every("asked")) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        for line in worker.every("members")[seen:]:
            compare(f"client {line['client']}", "clients", line["channel"], line.get("members"))
    for edge in range(EDGES):
        for channel in expected:
            status, body = edge_answers(relay, edge, f"/channels/{quote(channel, safe='')}/presence?limit=1000")
            compare(f"edge {edge + 1}", "edges", channel, [m["clientId"] for m in json.loads(body)] if status == 200 else None)
    for core in range(CORES):
        for channel in expected:
            compare(f"core {core + 1}", "cores", channel, members_on_core(relay, core, channel))
    return wrong


def members_on_core(relay: Product, core: int, channel: str) -> list[str] | None:
    """ClientIds as one core, asked by itself, has them."""
    admin = settings_of(relay, "core", core)["admin"]
    status, body = answers(f"http://127.0.0.1:{admin['port']}/v1/members?app=dev&channel={quote(channel, safe='')}")
    return [member["clientId"] for member in json.loads(body)["members"]] if status == 200 else None


def collect(alive: list[NodeScript], doomed: NodeScript) -> list[dict[str, Any]]:
    """The last report of each client, when deliveries have come to rest."""
    deadline = time.monotonic() + ARRIVE_WITHIN_S
    while True:
        reports: list[dict[str, Any]] = [*doomed.every("place"), *doomed.every("client")]
        for worker in alive:
            rounds = len(worker.every("reported"))
            places_before, clients_before = len(worker.every("place")), len(worker.every("client"))
            worker.tell("report")
            while len(worker.every("reported")) == rounds:
                time.sleep(0.05)
            reports += worker.every("place")[places_before:] + worker.every("client")[clients_before:]
        if not missing_of(reports) or time.monotonic() > deadline:
            return reports
        time.sleep(1)


def missing_of(reports: list[dict[str, Any]]) -> list[str]:
    """Every acknowledged publish that a subscriber has not got, though nobody told it of a gap."""
    spots = [line for line in reports if line["what"] == "place"]
    sent = {(spot["channel"], spot["client"]): spot for spot in spots}
    missing = []
    for spot in spots:
        if spot["client"].startswith("d"):
            continue  # it was killed before the last messages came
        for (channel, publisher), source in sent.items():
            if channel != spot["channel"]:
                continue
            following = spot["next"].get(publisher, 0)
            owed = set(spot["missed"].get(publisher, [])) | (set() if following is None else set(range(following, source["sent"])))
            owed -= set(source["failed"]) | set(source["unanswered"])
            missing += [f"{channel} {publisher}:{n} at {spot['client']}" for n in sorted(owed)]
    return missing


def judge(figures: Figures, reports: list[dict[str, Any]], workers: list[NodeScript]) -> None:
    spots = [line for line in reports if line["what"] == "place"]
    clients = [line for line in reports if line["what"] == "client"]
    figures.publishes = sum(spot["acked"] for spot in spots)
    figures.deliveries = sum(spot["deliveries"] for spot in spots)
    figures.doubled = sum(spot["doubled"] for spot in spots)
    figures.disordered = sum(spot["disordered"] for spot in spots)
    figures.discontinuities = sum(spot["lapses"] for spot in spots)
    figures.timeouts = sum(spot["timeouts"] for spot in spots)
    figures.resumes = sum(client["resumes"] for client in clients)
    figures.lost = missing_of(reports)[:50]
    waits = sorted(wait for client in clients for wait in client["waits"])
    if waits:
        figures.publish_to_ack_ms = {"p50": round(statistics.median(waits)), "p99": waits[len(waits) * 99 // 100], "max": waits[-1]}
    for worker in workers:
        figures.connections_replaced += len(worker.every("replaced"))
        for line in worker.every("refused"):
            figures.refused[str(line["code"])] += 1
