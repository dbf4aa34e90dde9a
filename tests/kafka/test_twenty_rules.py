"""Twenty rules on one partition, of which three cannot write, each for another reason: nobody notices, also while owners are killed."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation

from core.rules import Rule
from tests.kafka.test_clusters import remote
from tests.kafka.test_parked import Publishing, allow, assert_once, parked_cursors, routing, settled, strict_brokers  # noqa: F401 - a fixture
from tests.kafka.test_rules import create, publish, rule, until
from tests.support.kafka import kafka
from tests.support.owner_process import owner_process

pytestmark = pytest.mark.kafka

GOOD = 17
NOBODY = ["127.0.0.1:1"]


class OneChannel(Publishing):
    def some(self, count: int) -> None:
        for _ in range(count):
            publish(self.world, self.producer, self.published)
            self.published += 1


def test_seventeen_stay_under_a_second_and_the_topic_that_comes_gets_everything_once(strict_brokers: str) -> None:  # noqa: F811
    async def story() -> None:
        async with kafka(strict_brokers) as world:
            good = [create(world, f"good{n}") for n in range(GOOD)]
            late, secret = f"{world.config.prefix}-late", create(world, "secret")
            allow(strict_brokers, secret, AclOperation.READ, AclOperation.DESCRIBE)
            topics = {f"good{n}": topic for n, topic in enumerate(good)} | {"late": late, "secret": secret}
            fields: list[dict[str, Any]] = [{"id": name, "target": {"routing_key": routing(topic)}} for name, topic in topics.items()]
            fields.append({"id": "away", "target": {"routing_key": "t", "brokers": NOBODY}})
            rules: list[Rule] = [rule(name, routing(topic)) for name, topic in topics.items()]
            rules.append(remote("away", "t", {"brokers": NOBODY}))
            assert len(rules) == len(fields) == 20
            first = world.owner(rules)
            await settled(first)
            stream = OneChannel(world)
            task = asyncio.create_task(stream.run())

            def not_away() -> list[str]:
                return [each["reason"] for each in first.remote_rules() if each["state"] == "parked"]

            await until(lambda: {each["reason"] for each in first.parked_rules()} == {"missing_topic", "unauthorized_topic"})
            await until(lambda: not_away() == ["unreachable_cluster"])
            waits = []
            for _ in range(20):  # for some seconds, in which each of those who wait is tried again
                before, asked = stream.published, time.monotonic()
                await until(lambda before=before: all(first.written[f"app/good{n}"] >= before for n in range(GOOD)))
                waits.append(time.monotonic() - asked)
                await asyncio.sleep(0.05)
            print(f"slowest of 17 rules: {max(waits) * 1000:.0f} ms, median {sorted(waits)[10] * 1000:.0f} ms")
            assert max(waits) < 1.0
            await first.close()

            with owner_process(world, "core-2", fields) as second:
                await second.until(lambda: len(second.last["owned"]) == 4 and second.last["ready"])
                for _ in range(6):  # one partition takes 2,000 at once, and refuses more
                    stream.some(500)
                    await asyncio.sleep(0.3)
                await second.until(lambda: second.last["by_rule"].get("app/good0", 0) >= 3_000)
                create(world, "late")
                await second.until(lambda: second.last["by_rule"].get("app/late", 0) > 0)
                second.signal(signal.SIGKILL)  # in the middle of catching up, if it can be
                third = world.owner(rules, core="core-3")
                await settled(third)
                await until(lambda: "app/late" not in [each["rule"] for each in third.parked_rules()], 40)
            await stream.stop()
            await task
            await asyncio.sleep(0.5)
            await until(lambda: all(each["rule"] != "app/late" for each in third.parked_rules()), 20)
            assert {each["rule"] for each in third.parked_rules()} == {"app/secret"}
            await third.close()
            for topic in (good[0], good[-1], late):
                await assert_once(strict_brokers, topic, stream.published)
            cursors = {label for _, label, _ in await asyncio.to_thread(parked_cursors, world)}
            assert cursors == {"app/secret", "app/away"}, "a rule into another cluster always has one"

    asyncio.run(story())
