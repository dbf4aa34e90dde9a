"""A rule that changes again and again while the cores that run it are killed, frozen and asked to end: `python -m tests.chaos.live_rules`.

It is never disabled, but sent from topic to topic, one of which takes nothing at times, so that it is parked. At the end each message of
the log must be in one of the topics, once, and those of a channel in order within each. Figures go to standard output.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter
from typing import Any

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tests.e2e.test_control import Api, until
from tests.support.product import Product, product
from tests.support.ruled import Place, Ruled, Stream
from tidegate.kafka_local import LocalKafka

FROZEN_S = 8.0
"""Longer than a member of the group may be silent."""
HOW = ("kill", "kill", "end", "freeze", "nothing")


class Run:
    def __init__(self, relay: Product, seed: int) -> None:
        self.relay = relay
        self.chance = random.Random(seed)
        self.api = Api(relay)
        self.app = str(self.api.made("/accounts/tidegate/apps", {"name": "chaos"})["id"])
        key = self.api.made(f"/apps/{self.app}/keys", {"name": "k", "capability": {"*": ["*"]}})["key"]
        self.admin = AdminClient({"bootstrap.servers": relay.kafka})
        self.topics = [self.create(f"chaos-{n}") for n in range(2)]
        body = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": "^out:", "type": "channel.message"}}
        self.rule = self.api.made(f"/apps/{self.app}/rules", body | {"target": {"routingKey": self.routing(self.topics[0])}})["id"]
        until(lambda: all(self.ask(core)["running"] for core in (0, 1)), 10.0)
        self.stream = Stream(relay, self.app, key, threads=4)
        self.done: Counter[str] = Counter()
        self.took: list[float] = []

    def create(self, topic: str, replicas: int = 1) -> str:
        """With more replicas in sync asked for than there are brokers, it takes nothing until `release`."""
        for made in self.admin.create_topics([NewTopic(topic, 2, config={"min.insync.replicas": str(replicas)})]).values():
            made.result(10)
        return topic

    def release(self, topic: str) -> None:
        entry = ConfigEntry("min.insync.replicas", "1", incremental_operation=AlterConfigOpType.SET)
        asked = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        for changed in self.admin.incremental_alter_configs([asked]).values():
            changed.result(10)

    @staticmethod
    def routing(topic: str) -> str:
        return f"{topic}:#{{channelName}}"

    def ask(self, core: int) -> Any:
        return self.api.ask("GET", f"/apps/{self.app}/rules/{self.rule}", core=core)[1]

    def change(self, topic: str, core: int) -> None:
        asked = time.monotonic()
        while True:
            try:
                status, answer = self.api.ask(
                    "PATCH",
                    f"/apps/{self.app}/rules/{self.rule}",
                    {"ruleType": "kafka", "target": {"routingKey": self.routing(topic)}},
                    core=core,
                )
            except OSError:
                status, answer = 0, None
            if status == 200:
                break
            assert time.monotonic() < asked + 30, answer
            time.sleep(0.2)
        self.done["changes"] += 1
        asked = time.monotonic()
        until(lambda: self.ask(core)["running"], 30.0)
        self.took.append(time.monotonic() - asked)

    def round(self, number: int) -> None:
        """One core is harmed, and about then the rule changes through the other, two or three times, often to a topic that takes nothing:
        there it waits until the topic does, or until it is sent elsewhere."""
        harmed = self.chance.randrange(2)
        other, how = 1 - harmed, self.chance.choice(HOW)
        pid = self.relay.pids("core")[harmed]
        plan, closed = self.chance.sample(self.topics, k=2), ""
        if self.chance.random() < 0.7:
            closed = self.create(f"chaos-{number}-closed", replicas=2)
            plan.append(closed)
        at = self.chance.randrange(len(plan) + 1)
        for step, topic in enumerate([*plan, ""]):
            time.sleep(self.chance.random() * 0.3)
            if step == at:
                self.harm(pid, how)
            if topic:
                self.change(topic, other)
            if topic == closed != "":
                until(lambda: self.ask(other)["live"]["state"] != "running", 60.0)
                self.done["parked"] += 1
        if closed:
            if self.chance.random() < 0.5:
                self.change(self.chance.choice(self.topics), other)
                self.done["moved"] += 1
            self.topics.append(closed)
            self.release(closed)
        if how == "freeze":
            time.sleep(FROZEN_S)
            os.kill(pid, signal.SIGCONT)
        elif how != "nothing":
            self.relay.wait_restarted("core", harmed, pid, within_s=30)
        until(self.settled, 90.0)

    def harm(self, pid: int, how: str) -> None:
        if how != "nothing":
            os.kill(pid, {"kill": signal.SIGKILL, "end": signal.SIGTERM, "freeze": signal.SIGSTOP}[how])
        self.done[how] += 1

    def settled(self) -> bool:
        try:
            found = [self.api.ask("GET", "/status", core=core)[1] for core in (0, 1)]
            owned = [sum(each["owned"] for each in status["partitions"]) for status in found]
            return (
                all(status["ready"] and not status["parkedRules"] for status in found)
                and min(owned) > 0
                and sum(owned) == len(found[0]["partitions"])
            )
        except (OSError, KeyError, TypeError):
            return False

    def check(self) -> None:
        self.stream.stop()
        until(self.settled, 60.0)
        time.sleep(2.0)
        log = self.stream.log()
        found: Counter[tuple[str, Place]] = Counter()
        for topic in self.topics:
            for channel, places in Ruled(self.relay, topic).written().items():
                assert places == sorted(places), f"{channel} in {topic} is in its order"
                found.update((channel, place) for place in places)
        meant = {(channel, place) for channel, places in log.items() for place in places}
        twice = [each for each, count in found.items() if count > 1]
        missing = meant - found.keys()
        print(
            f"{dict(self.done)}: {len(meant)} messages in the log, {len(missing)} missing, {len(twice)} twice, in {len(self.topics)} topics"
        )
        took = sorted(self.took)
        print(f"in force on the core that took it after {took[-1]:.2f} s at most, median {took[len(took) // 2]:.2f} s")
        assert not missing, sorted(missing)[:10]
        assert not twice, twice[:10]
        assert found.keys() == meant


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.live_rules")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    broker = LocalKafka()
    address = broker.start()
    try:
        with product("--edges", "1", "--cores", "2", "--kafka", address) as relay:
            try:
                run = Run(relay, asked.seed)
                for number in range(asked.rounds):
                    run.round(number)
                run.check()
            except BaseException:
                print(relay.log())
                raise
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
