"""`python -m tests.chaos.occupancy --clients 500 --seed 7`: how soon everybody is told the true numbers of who is on a channel.

Two edges and two cores, as processes, on a real Kafka. A crowd attaches, enters, leaves, detaches, closes and drops at random, then stands
still, and whoever can be asked is asked until all give the numbers that the crowd knows of itself: subscribers in band (each edge has one
of each channel), each edge by REST, and the last event of each channel in Kafka. Then the same while an edge or a core is killed or frozen.
In the end everybody leaves, channels close, and the events of their lifecycle are paired up, in Kafka and on the metachannel.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import random
import secrets
import signal
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from relay.model.occupancy import METRICS
from tests.chaos.crowd import GRACE_S, MODES, SOME_MODES, Client, Crowd, Lost
from tests.support.product import Product, product
from tidegate.kafka_local import LocalKafka

CHANNELS = 10
BRIEF = 20
"""Channels that are used for a moment only, so that some close, and some open again, while everything else goes on."""
CHURN_S = 8.0
SETTLE_S = 5.0
"""Without faults: how soon after the last change the numbers are true."""
FAULT_SETTLE_S = 20.0
FAULT_MEMBERS_S = 35.0
FROZEN_S = 40.0
CLOSE_S = 60.0
FAULTS = ("kill edge", "freeze edge", "kill core", "freeze core")
METACHANNEL = "[meta]channel.lifecycle"
OPENED, CLOSED = "channel.opened", "channel.closed"


@dataclass
class Figures:
    seed: int
    clients: int
    settled_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """By what was done: by whom was asked, how long after it the numbers were true. Members have a figure of their own."""
    wrong: list[str] = field(default_factory=list)
    did: dict[str, int] = field(default_factory=dict)
    events: int = 0
    """Of channels that opened or closed, in Kafka."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return json.dumps(self.__dict__, indent=1)


class Topics(threading.Thread):
    """Reads topics of rules as consumers of them should: committed records only."""

    def __init__(self, brokers: str, topics: list[str]) -> None:
        super().__init__(daemon=True)
        self._consumer = Consumer({"bootstrap.servers": brokers, "group.id": "none", "isolation.level": "read_committed"})
        self._topics = topics
        self._assigned: list[TopicPartition] = []
        self.occupancy: dict[str, dict[str, int]] = {}
        """The last event of each channel."""
        self.events: dict[str, list[str]] = defaultdict(list)
        """Lifecycle: names, in order."""
        self.over = False
        self.start()

    def run(self) -> None:
        looked = 0.0
        while not self.over:
            if time.monotonic() - looked > 1 and len({each.topic for each in self._assigned}) < len(self._topics):
                looked = time.monotonic()
                known = self._consumer.list_topics(timeout=10).topics
                found = [TopicPartition(t, p, OFFSET_BEGINNING) for t in self._topics if t in known for p in known[t].partitions]
                if len(found) > len(self._assigned):
                    self._assigned = found
                    self._consumer.assign(found)
            record = self._consumer.poll(0.2)
            if record is None or record.error() is not None:
                continue
            body = json.loads(record.value())
            if body["source"] == "channel.occupancy":
                self.occupancy[body["channel"]] = body["data"]["status"]["occupancy"]["metrics"]
            else:
                self.events[body["channel"]].append(body["name"])
        self._consumer.close()

    def stop(self) -> None:
        self.over = True
        self.join(15)


class Rest:
    """One connection to each edge, made anew when it is lost."""

    def __init__(self, relay: Product, key: str) -> None:
        self._trust = ssl.create_default_context(cafile=relay.ca)
        self._places = [urlsplit(edge) for edge in relay.edges]
        self._headers = {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}
        self._open: dict[int, http.client.HTTPSConnection] = {}

    def counts(self, edge: int, channel: str) -> dict[str, int] | None:
        answer = self.ask(edge, f"/channels/{quote(channel, safe='')}")
        return None if answer is None else answer["status"]["occupancy"]["metrics"]

    def ask(self, edge: int, path: str) -> Any:
        place = self._places[edge]
        for _ in range(2):
            connection = self._open.get(edge) or http.client.HTTPSConnection(
                place.hostname or "", place.port, timeout=3, context=self._trust
            )
            self._open[edge] = connection
            try:
                connection.request("GET", path, headers=self._headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                self._open.pop(edge).close()
                continue
            return json.loads(body) if answer.status == 200 else None
        return None


class Api:
    """What is needed of the Control API."""

    def __init__(self, relay: Product) -> None:
        self._relay = relay

    def ask(self, method: str, path: str, body: Any = None, core: int = 0) -> Any:
        headers = {"authorization": f"Bearer {self._relay.found['accessToken']}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._relay.found['admins'][core]}/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def runs(self, app: str, rules: list[str], core: int) -> bool:
        try:
            return all(self.ask("GET", f"/apps/{app}/rules/{rule}", core=core).get("running") for rule in rules)
        except (OSError, urllib.error.HTTPError):
            return False


def prepare(relay: Product, say: Callable[[str], None], *more: tuple[str, str, str]) -> tuple[str, list[str]]:
    """An app with rules for occupancy and lifecycle, and `more` (source, channel filter, routing key), that all cores run. Its key, and the
    topics of the first two."""
    api = Api(relay)
    app = api.ask("POST", "/accounts/tidegate/apps", {"name": f"occupancy {time.time_ns()}"})["id"]
    key: str = api.ask("POST", f"/apps/{app}/keys", {"name": "crowd", "capability": {"[*]*": ["*"]}})["key"]
    topics = [f"{app}-occupancy", f"{app}-lifecycle"]
    rules = []
    for source, pattern, routing in (
        ("channel.occupancy", "", f"{topics[0]}:#{{channelName}}"),
        ("channel.lifecycle", "", f"{topics[1]}:#{{channelName}}"),
        *more,
    ):
        target = {"routingKey": routing, "enveloped": True, "format": "json"}
        rule = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": pattern, "type": source}, "target": target}
        rules.append(api.ask("POST", f"/apps/{app}/rules", rule)["id"])
    cores = range(len(relay.found["admins"]))
    deadline = time.monotonic() + 3
    while not all(api.runs(app, rules, core) for core in cores):
        if time.monotonic() > deadline:
            say("cores are started again, so that they run the rules")
            for core in cores:
                relay.wait_restarted("core", core, relay.kill("core", core, signal.SIGTERM), 40)
            deadline = time.monotonic() + 60
        time.sleep(0.2)
    wait_ready(relay)
    return key, topics


def wait_ready(relay: Product, within_s: float = 90.0) -> None:
    trust = ssl.create_default_context(cafile=relay.ca)
    places = [(f"{admin}/readyz", None) for admin in relay.found["admins"]]
    places += [(edge.replace("wss:", "https:") + "/readyz", trust) for edge in relay.edges]
    deadline = time.monotonic() + within_s
    while places:
        assert time.monotonic() < deadline, f"not ready: {[url for url, _ in places]}"
        with suppress(OSError):
            with urllib.request.urlopen(places[0][0], timeout=3, context=places[0][1]):
                places.pop(0)
            continue
        time.sleep(0.2)


class Run:
    def __init__(self, relay: Product, key: str, topics: Topics, figures: Figures, say: Callable[[str], None], rate: float) -> None:
        self.relay, self.topics, self.figures, self.say, self.rate = relay, topics, figures, say, rate
        self.chance = random.Random(figures.seed)
        self.crowd = Crowd(relay.edges, relay.ca, key, self.chance)
        self.rest = Rest(relay, key)
        self.channels = [f"room:{figures.seed}:{n}" for n in range(CHANNELS)]
        self.brief = [f"brief:{figures.seed}:{n}" for n in range(BRIEF)]
        self.told: dict[tuple[int, str], dict[str, int]] = {}
        """What was heard in band, last: by edge and channel."""
        self.metachannel: dict[str, list[str]] = defaultdict(list)
        self.seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._names = iter(range(1_000_000))

    # --- the crowd ---------------------------------------------------------------------------------------------------------------------

    async def arrive(self, count: int) -> None:
        listener = self.crowd.add("listener", heard=self._happened)
        await listener.connects()
        await listener.attaches(METACHANNEL)
        for edge in range(len(self.relay.edges)):
            watcher = self.crowd.add(f"watcher-{edge}", edge=edge, heard=lambda frame, edge=edge: self._in_band(edge, frame))  # type: ignore[misc]
            await watcher.connects()
            for channel in self.channels:
                await watcher.attaches(channel, occupancy="metrics")
        gate = asyncio.Semaphore(20)

        async def come() -> None:
            async with gate:
                client = self.crowd.add(f"c{next(self._names)}")
                await client.connects()
                channel = self.chance.choice(self.channels)
                await client.attaches(channel, self.chance.choice(SOME_MODES))
                if client.places[channel].granted & MODES["presenceConnections"] and self.chance.random() < 0.6:
                    await client.enters(channel)

        await asyncio.gather(*(come() for _ in range(count)))

    @property
    def movers(self) -> list[Client]:
        return [client for client in self.crowd.clients if client.name.startswith("c")]

    def _in_band(self, edge: int, frame: dict[str, Any]) -> None:
        for message in frame["messages"]:
            if message.get("name") == "[meta]occupancy":
                self.told[edge, frame["channel"]] = json.loads(message["data"])["metrics"]

    def _happened(self, frame: dict[str, Any]) -> None:
        for index, message in enumerate(frame["messages"]):
            number = f"{frame['id']}:{index}"
            if number in self.seen:
                self.figures.wrong.append(f"{METACHANNEL}: {number} twice")
            self.seen.add(number)
            if message["name"] in (OPENED, CLOSED):
                self.metachannel[json.loads(message["data"])["channelId"]].append(message["name"])

    async def _moves(self, client: Client) -> None:
        """One thing that a client may do now."""
        with suppress(Lost, KeyError):
            if client.socket is None:
                if not client.back:
                    client.back = True
                    await client.connects()
                return
            here = [channel for channel in client.places if channel in self.channels]
            away = [channel for channel in self.channels if channel not in client.places]
            match self.chance.choices(
                ["attach", "detach", "enter", "leave", "brief", "drop", "vanish", "close"], [20, 12, 30, 12, 2, 10, 5, 5]
            )[0]:
                case "attach" if len(here) < 3:
                    await client.attaches(self.chance.choice(away), self.chance.choice(SOME_MODES))
                case "detach" if here:
                    await client.detaches(self.chance.choice(here))
                case "enter":
                    free = [channel for channel in here if client.places[channel].granted & MODES["presenceConnections"]]
                    if free:
                        await client.enters(self.chance.choice(free))
                case "leave":
                    inside = [channel for channel in here if client.places[channel].present]
                    if inside:
                        await client.leaves(self.chance.choice(inside))
                case "brief":
                    channel = self.chance.choice(self.brief)
                    if channel not in client.places:
                        await client.attaches(channel)
                        await asyncio.sleep(self.chance.random())
                        await client.detaches(channel)
                case "drop":
                    await client.drops(back=True)
                case "vanish":
                    await client.drops(back=False)
                case "close":
                    await client.closes()

    async def churn(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        busy: set[Client] = set()

        async def move(client: Client) -> None:
            busy.add(client)
            try:
                await self._moves(client)
            finally:
                busy.discard(client)

        while time.monotonic() < until:
            client = self.chance.choice(self.movers)
            if client not in busy and client.at_rest:
                task = asyncio.create_task(move(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(self.chance.expovariate(self.rate))

    async def rest_all(self, within_s: float = 60.0) -> None:
        """Until nobody waits for anything."""
        deadline = time.monotonic() + within_s
        while not self.still():
            if time.monotonic() >= deadline:
                restless = [client.name for client in self.crowd.clients if not client.at_rest]
                raise AssertionError(f"still under way: {len(self._tasks)} moves, {restless[:10]}")
            await asyncio.sleep(0.02)

    def still(self) -> bool:
        shut = self.crowd.shut
        return not self._tasks and all(client.at_rest or client.home in shut for client in self.crowd.clients)

    # --- what everybody says -----------------------------------------------------------------------------------------------------------

    def _wrong(self) -> Iterator[tuple[str, str, bool]]:
        """Who (`in band`, `REST`, `Kafka`) says something else than the crowd, in words, and whether only the members are wrong."""
        for channel in [*self.channels, *self.brief]:
            true = self.crowd.counts(channel)
            said: list[tuple[str, str, dict[str, int] | None]] = []
            for edge in range(len(self.relay.edges)):
                if edge in self.crowd.shut:
                    continue
                if channel in self.channels:
                    said.append(("in band", f"edge {edge + 1}", self.told.get((edge, channel))))
                    said.append(("REST", f"edge {edge + 1}", self.rest.counts(edge, channel)))
            if channel in self.topics.occupancy or any(true.values()):
                said.append(("Kafka", "the topic", self.topics.occupancy.get(channel)))
            for kind, who, counts in said:
                if counts != true:
                    shown = {name: (counts or {}).get(name) for name in METRICS if (counts or {}).get(name) != true[name]}
                    other = {name: true[name] for name in shown}
                    yield kind, f"{kind}, {who}, {channel}: {shown} for {other}", set(shown) == {"presenceMembers"}

    async def settle(self, what: str, since: float, within_s: float, members_within_s: float) -> None:
        """Asks until all is right, or it is too late."""
        found: dict[str, float] = {}
        kinds = ("in band", "REST", "Kafka")
        while True:
            await self.rest_all()
            looked = time.monotonic() - since
            wrong = await asyncio.to_thread(lambda: list(self._wrong()))
            if not self.still():
                continue
            for kind in kinds:
                others = [text for named, text, members in wrong if named == kind and not members]
                if not others:
                    found.setdefault(kind, round(looked, 1))
                elif kind in found:
                    del found[kind]
                    self.say(f"{kind} was right and is wrong again: {others[0]}")
                if not any(named == kind for named, _, _ in wrong):
                    found.setdefault(f"{kind}, members", round(looked, 1))
                else:
                    found.pop(f"{kind}, members", None)
            late = [text for _, text, members in wrong if looked > (members_within_s if members else within_s)]
            if not wrong or looked > members_within_s + 15:
                break
            if late:
                self.say(f"late, {looked:.1f} s after: {len(late)} wrong, as {late[0]}")
            await asyncio.sleep(0.2)
        self.figures.settled_s[what] = found
        for kind in kinds:
            for name, limit in ((kind, within_s), (f"{kind}, members", members_within_s)):
                if found.get(name, 1e9) > limit:
                    self.figures.wrong.append(f"{what}: {name} after {found.get(name)} s, {limit:g} s permitted")
        self.figures.wrong += [f"{what}: {text}" for _, text, _ in wrong][:10]
        self.say(f"{what}: {found}")

    # --- the parts of a run ------------------------------------------------------------------------------------------------------------

    async def without_faults(self, churn_s: float) -> None:
        await self.churn(churn_s)
        await self.rest_all()
        await self.settle("no faults", time.monotonic(), SETTLE_S, GRACE_S + SETTLE_S)

    async def with_fault(self, fault: str) -> None:
        kind, _, role = fault.partition(" ")
        await asyncio.to_thread(wait_ready, self.relay)
        churning = asyncio.create_task(self.churn(CHURN_S))
        await asyncio.sleep(CHURN_S - 1)
        number = self.chance.randrange(2)
        since = time.monotonic()
        old = self.relay.kill(role, number, signal.SIGSTOP if kind == "freeze" else signal.SIGKILL)
        self.say(f"{fault} {number + 1}")
        thawing = None
        if role == "edge":
            await self._move_on(number)
        if kind == "freeze":
            thawing = asyncio.create_task(asyncio.sleep(FROZEN_S))
        await churning
        if role == "edge" and kind == "kill":
            await asyncio.to_thread(self.relay.wait_restarted, role, number, old, 30)
            await asyncio.to_thread(wait_ready, self.relay)
            self.crowd.shut.discard(number)
        await self.settle(fault, since, FAULT_SETTLE_S, FAULT_MEMBERS_S)
        if thawing is not None:
            await thawing
            self.relay.kill(role, number, signal.SIGCONT)
            self.say("it goes on")
            since = time.monotonic()
            await asyncio.to_thread(wait_ready, self.relay)
            self.crowd.shut.discard(number)
            await self.settle(f"{fault}, and goes on", since, FAULT_SETTLE_S, FAULT_MEMBERS_S)

    async def _move_on(self, edge: int) -> None:
        """What becomes of those on an edge that is no more: every other one goes away for good, the others come back on another."""
        self.crowd.shut.add(edge)
        for index, client in enumerate(self.crowd.on(edge)):
            await client.drops(back=not client.name.startswith("c") or index % 2 == 0)

    async def leave(self) -> None:
        """Everybody but the listener goes; what they opened closes."""
        for client in self.crowd.clients:
            if client.name != "listener":
                await client.closes() if self.chance.random() < 0.5 else await client.drops(back=False)
        emptied = time.monotonic()
        self.say("everybody has left")
        pairs: dict[str, list[str]] = {}
        while time.monotonic() - emptied < CLOSE_S + GRACE_S + 45:
            await asyncio.sleep(1)
            pairs = {channel: list(names) for channel, names in self.topics.events.items()}
            if pairs and all(names[-1] == CLOSED for names in pairs.values()) and pairs == dict(self.metachannel):
                break
        self.figures.events = sum(map(len, pairs.values()))
        self.say(f"{self.figures.events} events of {len(pairs)} channels, {time.monotonic() - emptied:.1f} s after")
        for channel in self.channels:
            if channel not in pairs:
                self.figures.wrong.append(f"{channel} has no events")
        for channel, names in pairs.items():
            if names != [OPENED, CLOSED] * (len(names) // 2):
                self.figures.wrong.append(f"{channel} in Kafka: {names}")
        for channel in pairs.keys() | self.metachannel.keys():
            if pairs.get(channel) != self.metachannel.get(channel):
                self.figures.wrong.append(f"{channel} on the metachannel: {self.metachannel.get(channel)}, in Kafka: {pairs.get(channel)}")

    async def end(self) -> None:
        for client in self.crowd.clients:
            await client.drops(back=False)
        await asyncio.sleep(0.2)
        self.figures.wrong += self.crowd.wrong[:20]
        self.figures.did = dict(self.crowd.did)


@contextmanager
def reading(brokers: str, topics: list[str]) -> Iterator[Topics]:
    reader = Topics(brokers, topics)
    try:
        yield reader
    finally:
        reader.stop()


def occupancy(
    relay: Product,
    clients: int,
    seed: int,
    faults: tuple[str, ...] = FAULTS,
    *,
    rate: float = 100.0,
    churn_s: float = CHURN_S,
    lifecycle: bool = True,
    prepared: tuple[str, list[str]] | None = None,
    say: Callable[[str], None] = print,
) -> Figures:
    """One run. `rate`: what the crowd does in a second. Figures say what was found, `wrong` what should not have been."""
    figures = Figures(seed, clients)
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {text}")

    async def run(topics: Topics, key: str) -> None:
        crowd = Run(relay, key, topics, figures, tell, rate)
        try:
            await crowd.arrive(clients)
            tell(f"{clients} clients are attached")
            await crowd.without_faults(churn_s)
            for fault in faults:
                await crowd.with_fault(fault)
            if lifecycle:
                await crowd.leave()
        finally:
            await crowd.end()

    key, names = prepared or prepare(relay, tell)
    with reading(relay.kafka, names) as topics:
        asyncio.run(run(topics, key))
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.occupancy", description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--rate", type=float, default=100.0, help="what the crowd does in a second")
    parser.add_argument("--kafka", default="local", help="`local` starts a real one; else host:port,…")
    parser.add_argument("--faults", default=",".join(FAULTS), help="comma-separated; empty: none")
    parser.add_argument("--no-lifecycle", action="store_true", help="do not wait for channels to close")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with ExitStack() as stack:
        brokers = options.kafka
        if brokers == "local":
            broker = LocalKafka()
            brokers = broker.start()
            stack.callback(broker.stop)
        relay = stack.enter_context(product("--edges", "2", "--cores", "2", "--kafka", brokers))
        figures = occupancy(
            relay,
            options.clients,
            options.seed,
            tuple(filter(None, options.faults.split(","))),
            rate=options.rate,
            lifecycle=not options.no_lifecycle,
            say=lambda text: print(text, flush=True),
        )
    print(figures)
    return 1 if figures.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
