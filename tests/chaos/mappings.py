"""Records through a mapping while cores are killed, with one long outage of all of them: every subscriber has each once, in order per key.

`python -m tests.chaos.mappings --records 100000 --seed 7 --outage 360`: one run on a real Kafka, with what is done to whom as it happens,
and its figures as JSON at the end. Two edges and two cores, as processes; a plain producer of Kafka; subscribers that speak the clients'
protocol and, after each loss of their connection, attach where they were (`resume`, `channelSerial`).

For the outage the cores are killed and stay dead, edges and clients stay; 40 % of the records are produced meanwhile. It is longer than
readers of the log remember the ids of publishes, and longer than clients' rights last without a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.chaos.run import answers, settings_of
from tests.support.kafka import delete_topic
from tests.support.loop import LoopThread
from tests.support.product import Product, product
from tidegate.kafka_local import LocalKafka

EDGES, CORES = 2, 2
SUBSCRIBERS = 4
CHANNELS = 100
PARTITIONS = 8
BEFORE, MEANWHILE = 0.3, 0.4
"""Shares of the records that are produced before the outage and during it; the rest comes after."""
RATE = 400.0
"""Records a second while cores are killed."""
BETWEEN_S = (6.0, 15.0)
"""Between two kills."""
BOTH = 0.2
"""How often both cores are killed at once."""
READY_WITHIN_S = 120.0
ARRIVE_WITHIN_S = 180.0
DIAL_AGAIN_S = 1.0

HEARTBEAT, CONNECTED, DISCONNECTED, ATTACH, ATTACHED, DETACHED, MESSAGE = 0, 4, 6, 10, 11, 13, 15
RESUMED = 1 << 2


@dataclass
class Figures:
    seed: int
    records: int
    channels: int = CHANNELS
    subscribers: int = SUBSCRIBERS
    seconds: float = 0.0
    kills: int = 0
    outage_s: float = 0.0
    produced_meanwhile: int = 0
    deliveries: int = 0
    lost: list[str] = field(default_factory=list)
    lost_count: int = 0
    doubled: int = 0
    disordered: int = 0
    connections: int = 0
    """Made by all subscribers, the first of each included."""
    attachments: int = 0
    lapses: Counter[str] = field(default_factory=Counter)
    """Attachments to a channel where a subscriber had been that the server did not resume, by code."""
    endings: Counter[str] = field(default_factory=Counter)
    """Of connections, by what the server said."""
    serving_after_s: float = 0.0
    """From the end of the outage until a core was ready."""
    caught_up_after_s: float = 0.0
    """From the end of the outage until every subscriber had all that was produced until then."""
    found: int = 0
    """Records that a core which took a partition over found in the log, as the cores that live at the end count them."""

    def __str__(self) -> str:
        return json.dumps(self.__dict__, indent=1)

    @property
    def right(self) -> bool:
        return (
            not (self.lost_count or self.doubled or self.disordered or self.lapses) and self.deliveries == self.records * self.subscribers
        )


class Subscriber:
    """One client on all channels. Belongs to the loop of its thread; its lists are read from outside."""

    def __init__(self, relay: Product, channels: list[str], chance: random.Random, figures: Figures) -> None:
        self._relay = relay
        self._trust = ssl.create_default_context(cafile=relay.ca)
        self._chance = chance
        self._figures = figures
        self.got: dict[str, list[int]] = {channel: [] for channel in channels}
        self.count = 0
        self.attached: set[str] = set()
        self._serials: dict[str, str] = {}
        self._key = ""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError, WebSocketException, asyncio.IncompleteReadError):
                await self._connection()
            self.attached.clear()
            await asyncio.sleep(DIAL_AGAIN_S * self._chance.uniform(0.5, 1.5))

    async def _connection(self) -> None:
        params = {"v": "6", "format": "msgpack", "key": self._relay.key} | ({"resume": self._key} if self._key else {})
        url = f"{self._chance.choice(self._relay.edges)}/?{urlencode(params)}"
        async with connect(url, ssl=self._trust, max_size=None, open_timeout=20, max_queue=1024) as socket:
            async for data in socket:
                assert isinstance(data, bytes)
                frame = msgspec.msgpack.decode(data)
                match frame["action"]:
                    case 15:
                        self._message(frame)
                    case 4:
                        await self._connected(socket, frame)
                    case 11:
                        self._attached(frame)
                    case 13:
                        await self._attach(socket, frame["channel"])
                    case 6 | 9:
                        code = str((frame.get("error") or {}).get("code"))
                        self._figures.endings[code] += 1
                        if frame["action"] == 9:
                            self._key = ""
                        return

    async def _connected(self, socket: ClientConnection, frame: dict[str, Any]) -> None:
        self._figures.connections += 1
        self._key = frame["connectionDetails"]["connectionKey"]
        for channel in self.got:
            await self._attach(socket, channel)

    async def _attach(self, socket: ClientConnection, channel: str) -> None:
        serial = self._serials.get(channel)
        ask = {"action": ATTACH, "channel": channel} | ({"channelSerial": serial} if serial else {})
        await socket.send(msgspec.msgpack.encode(ask))

    def _attached(self, frame: dict[str, Any]) -> None:
        channel = frame["channel"]
        self._figures.attachments += 1
        if channel in self._serials and not frame.get("flags", 0) & RESUMED:
            self._figures.lapses[str((frame.get("error") or {}).get("code"))] += 1
        self._serials[channel] = frame["channelSerial"]
        self.attached.add(channel)

    def _message(self, frame: dict[str, Any]) -> None:
        self._serials[frame["channel"]] = frame["channelSerial"]
        got = self.got[frame["channel"]]
        for message in frame["messages"]:
            got.append(int(message["data"]))
            self.count += 1


class Producing:
    """A plain producer on a thread of its own."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._topic = topic
        self._producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 5})
        self.sent = 0

    def over(self, count: int, seconds: float) -> threading.Thread:
        thread = threading.Thread(target=self._produce, args=(count, seconds))
        thread.start()
        return thread

    def _produce(self, count: int, seconds: float) -> None:
        began = time.monotonic()
        for number in range(count):
            self._producer.produce(self._topic, str(self.sent), key_of(self.sent))
            self.sent += 1
            self._producer.poll(0)
            early = began + number * seconds / count - time.monotonic()
            if early > 0.01:
                time.sleep(early)
        assert self._producer.flush(60) == 0


def key_of(number: int) -> str:
    """Scattered, and the same in each run."""
    return f"k{number * 7919 % CHANNELS:03d}"


def chaos(records: int, seed: int, outage_s: float, brokers: str, say: Callable[[str], None]) -> Figures:
    """Raises: AssertionError when processes or subscribers do not come to rest."""
    figures = Figures(seed, records)
    chance = random.Random(seed)
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {text}")

    topic = f"chaos-in-{seed}-{int(time.time())}"
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, PARTITIONS)])[topic].result(10)
    channels = [f"chaos:{topic}:{key}" for key in sorted({key_of(number) for number in range(CHANNELS)})]
    with contextlib.ExitStack() as stack:
        stack.callback(delete_topic, brokers, topic)
        tell("starting")
        mapping = f"{topic}=chaos:#{{topic}}:#{{key}}"
        relay = stack.enter_context(product("--edges", str(EDGES), "--cores", str(CORES), "--kafka", brokers, "--mapping", mapping))
        loop = LoopThread()
        stack.callback(loop.close)
        subscribers = [Subscriber(relay, channels, random.Random(f"{seed}:{n}"), figures) for n in range(SUBSCRIBERS)]
        tasks = loop.run(_begin(subscribers))
        stack.callback(lambda: loop.run(_end(tasks), 10))
        until(lambda: all(len(each.attached) == CHANNELS for each in subscribers), 60, "subscribers are not attached")
        tell(f"{SUBSCRIBERS} subscribers are attached to {CHANNELS} channels each")

        producing = Producing(brokers, topic)
        before, meanwhile = int(records * BEFORE), int(records * MEANWHILE)
        kill_cores_while(producing.over(before, before / RATE), relay, chance, figures, tell)

        if outage_s:
            outage(relay, producing, meanwhile, outage_s, subscribers, figures, tell)
        else:
            producing.over(meanwhile, meanwhile / RATE).join()
        after = records - before - meanwhile
        kill_cores_while(producing.over(after, after / RATE), relay, chance, figures, tell)
        until_ready(relay, range(CORES))
        until(
            lambda: all(each.count >= records for each in subscribers),
            ARRIVE_WITHIN_S,
            lambda: f"{[each.count for each in subscribers]} of {records}",
            fail=False,
        )
        time.sleep(3)  # for what should not come
        for number in range(CORES):
            _, shown = answers(f"http://127.0.0.1:{settings_of(relay, 'core', number)['metrics']['port']}/metrics")
            figures.found += sum(
                int(float(line.rpartition(" ")[2]))
                for line in shown.decode().splitlines()
                if line.startswith("tidegate_mapping_found_total{")
            )
        judge(figures, subscribers, channels)
        figures.seconds = round(time.monotonic() - began, 1)
        tell("right" if figures.right else "WRONG")
    return figures


def outage(
    relay: Product,
    producing: Producing,
    count: int,
    seconds: float,
    subscribers: list[Subscriber],
    figures: Figures,
    say: Callable[[str], None],
) -> None:
    """All cores die, and nobody starts them again for so long."""
    supervisor = relay.process.pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        for number in range(CORES):
            with contextlib.suppress(ProcessLookupError):
                relay.kill("core", number)
        figures.kills += CORES
        began = time.monotonic()
        say(f"all cores are dead, for {seconds:.0f} s")
        thread = producing.over(count, seconds - 5)
        thread.join()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    finally:
        os.kill(supervisor, signal.SIGCONT)
    over = time.monotonic()
    figures.outage_s = round(over - began, 1)
    figures.produced_meanwhile = count
    say("cores are started again")
    until(lambda: any(ready(relay, number) for number in range(CORES)), READY_WITHIN_S, "no core is ready")
    figures.serving_after_s = round(time.monotonic() - over, 1)
    say("a core is ready")
    until(
        lambda: all(each.count >= producing.sent for each in subscribers),
        ARRIVE_WITHIN_S,
        lambda: f"{[each.count for each in subscribers]} of {producing.sent}",
        fail=False,
    )
    figures.caught_up_after_s = round(time.monotonic() - over, 1)
    say(f"subscribers have {[each.count for each in subscribers]} of {producing.sent}")
    until_ready(relay, range(CORES))


def kill_cores_while(thread: threading.Thread, relay: Product, chance: random.Random, figures: Figures, say: Callable[[str], None]) -> None:
    while thread.is_alive():
        thread.join(chance.uniform(*BETWEEN_S))
        if not thread.is_alive():
            return
        if not all(ready(relay, number) for number in range(CORES)):
            continue
        chosen = list(range(CORES)) if chance.random() < BOTH else [chance.randrange(CORES)]
        for number in chosen:
            relay.kill("core", number)
        figures.kills += len(chosen)
        say(f"kill core {' and '.join(str(number + 1) for number in chosen)}")


def ready(relay: Product, number: int) -> bool:
    return answers(f"http://127.0.0.1:{settings_of(relay, 'core', number)['metrics']['port']}/readyz")[0] == 200


def until_ready(relay: Product, numbers: range) -> None:
    until(lambda: all(ready(relay, number) for number in numbers), READY_WITHIN_S, "cores are not ready")


def until(done: Callable[[], bool], seconds: float, why: str | Callable[[], str], *, fail: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            text = why if isinstance(why, str) else why()
            assert not fail, text
            print(f"not within {seconds:.0f} s: {text}", flush=True)
            return
        time.sleep(0.2)


async def _begin(subscribers: list[Subscriber]) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(each.run()) for each in subscribers]


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def judge(figures: Figures, subscribers: list[Subscriber], channels: list[str]) -> None:
    expected: dict[str, list[int]] = {channel: [] for channel in channels}
    by_key = {channel.rpartition(":")[2]: channel for channel in channels}
    for number in range(figures.records):
        expected[by_key[key_of(number)]].append(number)
    for at, each in enumerate(subscribers):
        figures.deliveries += each.count
        for channel, numbers in expected.items():
            got = each.got[channel]
            times = Counter(got)
            figures.doubled += sum(count - 1 for count in times.values())
            missing = [number for number in numbers if number not in times]
            figures.lost_count += len(missing)
            figures.lost += [f"{channel} {number} at {at}" for number in missing[: 20 - len(figures.lost)]]
            firsts = list(dict.fromkeys(got))
            figures.disordered += sum(1 for one, two in itertools.pairwise(firsts) if one > two)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mappings", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--outage", type=float, default=360.0, help="seconds without any core; 0: none")
    parser.add_argument("--kafka", default="local", help="`local` starts a real one; else host:port,…")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        brokers = options.kafka
        if brokers == "local":
            broker = LocalKafka()
            brokers = broker.start()
            stack.callback(broker.stop)
        figures = chaos(options.records, options.seed, options.outage, brokers, lambda text: print(text, flush=True))
    print(figures)
    return 0 if figures.right else 1


if __name__ == "__main__":
    sys.exit(main())
