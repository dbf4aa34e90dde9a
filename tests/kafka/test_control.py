"""The Control API of two cores over one configuration topic of a real broker."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest

from core.events import ConfigRead, ConfigWritten, EndOffset, Event
from core.kafka import ConfigLog
from tests.support.kafka import Kafka, a_config, kafka
from tests.unit.control.cores import OneCore, Topic

pytestmark = pytest.mark.kafka


class OnKafka(OneCore):
    """What the topic in memory does for a core, a `ConfigLog` does for this one."""

    def __init__(self, name: str) -> None:
        super().__init__(Topic(), name)
        self.log: ConfigLog

    async def begin(self, world: Kafka) -> None:
        self.log = world.start(ConfigLog, world.topics.config)
        self.writer.use(self.log)
        await self.log.ready()

    def deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ConfigRead):
                self.reads(event.key, event.value)
            elif isinstance(event, ConfigWritten | EndOffset):
                self.writer.took(event)


@asynccontextmanager
async def cores(brokers: str, *names: str, config: Any = None) -> Any:
    config = config or a_config(brokers)
    found = []
    worlds = []
    for name in names:
        core = OnKafka(name)
        manager = kafka(brokers, config=config)
        world = await manager.__aenter__()
        worlds.append(manager)
        world.deliver = core.deliver
        await core.begin(world)
        found.append(core)
    try:
        yield found
    finally:
        for manager in worlds:
            await manager.__aexit__(None, None, None)


def state(core: OneCore) -> dict[str, bytes]:
    return {entry.key: entry.raw for kind in ("app", "key", "namespace", "token") for entry in core.control.ledger.of(kind)}


def test_a_key_of_one_core_is_known_to_the_other_within_two_seconds(kafka_brokers: str) -> None:
    async def story() -> None:
        async with cores(kafka_brokers, "core-1", "core-2") as (one, two):
            app = (await one.asks("POST", "/accounts/tidegate/apps", {"name": "web"})).json()["id"]
            took = []
            for _ in range(20):
                made = (await one.asks("POST", f"/apps/{app}/keys", {"capability": {"*": ["*"]}})).json()
                start = time.monotonic()
                while two.registry.key(f"{app}.{made['id']}") is None:
                    await asyncio.sleep(0.002)
                    assert time.monotonic() - start < 2.0
                took.append(time.monotonic() - start)
            print(f"known to the other core after {max(took) * 1000:.0f} ms at most")
            assert two.registry.key(f"{app}.{made['id']}").secret == made["key"].partition(":")[2]

    asyncio.run(story())


def test_cores_that_write_at_once_agree_and_so_does_one_that_comes_later(kafka_brokers: str) -> None:
    async def story() -> None:
        config = a_config(kafka_brokers)
        async with cores(kafka_brokers, "core-1", "core-2", config=config) as (one, two):
            app = (await one.asks("POST", "/accounts/tidegate/apps", {"name": "web"})).json()["id"]
            key = (await one.asks("POST", f"/apps/{app}/keys", {"capability": {"*": ["*"]}})).json()["id"]
            chance = random.Random(7)
            wanted: dict[str, Any] = {}
            for number in range(25):
                wanted = {"name": f"n{number}", "capability": {f"c{number}": ["publish"]}, "revocableTokens": bool(number % 2)}
                answers = await asyncio.gather(
                    *(
                        chance.choice((one, two)).asks("PATCH", f"/apps/{app}/keys/{key}", {field: value})
                        for field, value in wanted.items()
                    ),
                    two.asks("POST", f"/apps/{app}/namespaces", {"id": f"n{number}"}),
                    one.asks("POST", f"/apps/{app}/namespaces", {"id": f"n{number}"}),
                )
                assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201, 422]
                listed = (await chance.choice((one, two)).asks("GET", f"/apps/{app}/keys")).json()[0]
                assert {field: listed[field] for field in wanted} == wanted
            for core in (one, two):
                await core.writer.catch_up()
            async with cores(kafka_brokers, "late", config=config) as (late,):
                assert state(late) == state(one) == state(two)
                lost = [e for e in (await late.asks("GET", "/audit", params={"limit": "1000"})).json() if e["outcome"] == "lost"]
                print(f"{len(lost)} changes came second and were planned again")
                assert not [e for e in (await one.asks("GET", "/audit", params={"limit": "1000"})).json() if e["outcome"] == "pending"]

    asyncio.run(story())


def test_nothing_in_the_topic_tells_a_secret(kafka_brokers: str) -> None:
    async def story() -> None:
        async with cores(kafka_brokers, "core-1", "core-2") as (one, two):
            seen: list[str] = []
            before = two.deliver
            two.reads = lambda key, value: seen.append(f"{key} {value!r}")  # type: ignore[method-assign]
            assert before
            app = (await one.asks("POST", "/accounts/tidegate/apps", {"name": "web"})).json()["id"]
            key = (await one.asks("POST", f"/apps/{app}/keys", {"capability": {"*": ["*"]}})).json()
            token = (await one.asks("POST", "/tokens", {"name": "t", "scopes": ["reader"]})).json()["token"]
            rotated = (await one.asks("POST", f"/apps/{app}/keys/{key['id']}/rotate")).json()
            await asyncio.sleep(0.5)
            whole = json.dumps(seen)
            assert f"key:{app}" in whole
            for secret in (key["key"], rotated["key"], token):
                assert secret.replace(":", ".").split(".")[-1] not in whole

    asyncio.run(story())
