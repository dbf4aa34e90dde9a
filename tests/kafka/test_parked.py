"""Rules that cannot write, on a real broker: the others go on without them, and they catch up exactly once, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType

from core import state
from core.kafka import LogProducer, OwnerRunner, read_state
from core.rules import Rule, RuleConfig
from relay.model.channel import log_key, partition_of
from tests.kafka.test_owner import enter
from tests.kafka.test_rules import committed, create, numbers, publish, rule, until
from tests.support.kafka import Kafka, kafka, own_broker
from tests.support.owner_process import owner_process

pytestmark = pytest.mark.kafka

CHANNELS = 12


class Publishing:
    """A steady stream over some channels, one message every 5 ms or so."""

    def __init__(self, world: Kafka) -> None:
        self.world = world
        self.producer: LogProducer = world.start(LogProducer)
        self.published = 0
        self._go_on = True

    def some(self, count: int) -> None:
        for _ in range(count):
            publish(self.world, self.producer, self.published, channel=f"chat:{self.published % CHANNELS}")
            self.published += 1

    async def run(self) -> None:
        while self._go_on:
            self.some(1)
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._go_on = False
        await until(lambda: not self.producer.unreported)


@contextlib.asynccontextmanager
async def publishing(world: Kafka) -> AsyncIterator[Publishing]:
    made = Publishing(world)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        await made.stop()
        await task


async def settled(*owners: OwnerRunner) -> None:
    await until(lambda: all(owner.ready for owner in owners) and sum(len(owner.owned) for owner in owners) == 4)


async def assert_once(brokers: str, topic: str, published: int) -> None:
    """Each publish is there once, and those of a channel are in order."""
    found = await asyncio.to_thread(committed, brokers, topic)
    assert sorted(numbers(found)) == list(range(published))
    by_channel: dict[str, list[int]] = {}
    for message, number in zip(found, numbers(found), strict=True):
        by_channel.setdefault(json.loads(message.value())["channel"], []).append(number)
    assert all(each == sorted(each) for each in by_channel.values())


def parked_cursors(world: Kafka) -> dict[tuple[int, str, str], int]:
    """(partition, rule, topic) → offset, as the state has it."""
    found = {}
    for number, partition in read_state(world.config, world.topics.state, world.topics.log).items():
        for key, value in partition.records.items():
            match state.decode(key, value):
                case ([_, str(label), str(topic)], state.ParkedState() as at):
                    found[number, label, topic] = at.offset
    return found


def routing(topic: str) -> str:
    return f"{topic}:#{{channelName}}"


def test_the_others_go_on_and_a_topic_that_is_created_gets_everything_once(kafka_brokers: str) -> None:
    """Nine rules on every partition, one without its topic, one that computes its topics and lacks one of them."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good = [create(world, f"good{n}") for n in range(7)]
            late, some = f"{world.config.prefix}-late", f"{world.config.prefix}-some"
            create(world, "some-chat-0")
            rules = [rule(f"good{n}", routing(topic)) for n, topic in enumerate(good)]
            rules += [rule("late", routing(late)), rule("some", f"{some}-#{{message.name}}:#{{channelName}}", "^chat:1$")]
            owner = world.owner(rules)
            await settled(owner)
            async with publishing(world) as stream:
                publish(world, stream.producer, 10**6, channel="chat:1", name="chat-0")
                publish(world, stream.producer, 10**6 + 1, channel="chat:1", name="none")
                await until(lambda: owner.written["app/good6"] >= 100)
                publish(world, stream.producer, 10**6 + 2, channel="chat:1", name="chat-0")
                await until(lambda: owner.written["app/some"] == 2)
                asked, before = time.monotonic(), stream.published
                await until(lambda: all(owner.written[f"app/good{n}"] >= before for n in range(7)))
                assert time.monotonic() - asked < 1.0
                assert {(each["rule"], each["topic"], each["reason"]) for each in owner.parked_rules()} >= {
                    ("app/late", "", "missing_topic"),
                    ("app/some", f"{some}-none", "missing_topic"),
                }
                assert sum(each["behind"] for each in owner.parked_rules()) > 0
                assert not owner.dropped
                assert {(label, topic) for _, label, topic in await asyncio.to_thread(parked_cursors, world)} >= {("app/late", "")}
                create(world, "late")
                await until(lambda: "app/late" not in [each["rule"] for each in owner.parked_rules()], 40)
                written = owner.written["app/late"]
                await until(lambda: owner.written["app/late"] > written + 50)  # with the others again
            published = stream.published
            await until(lambda: owner.written["app/late"] == owner.written["app/good0"] == published + 3)
            await owner.close()
            assert owner.failures == 0
            assert {label for _, label, _ in await asyncio.to_thread(parked_cursors, world)} == {"app/some"}
            found = numbers(await asyncio.to_thread(committed, kafka_brokers, late))
            assert sorted(each for each in found if each < 10**6) == list(range(published))
            assert len(found) == published + 3

    asyncio.run(story())


@pytest.mark.parametrize("how", ["killed", "frozen in a transaction", "frozen before a transaction"])
def test_owners_are_killed_and_frozen_while_a_rule_catches_up(kafka_brokers: str, how: str) -> None:
    """An owner of all partitions is stopped in the middle of catching up, and another takes over what it left. Woken up again, its
    transaction is refused."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good, late = create(world, "good"), f"{world.config.prefix}-late"
            fields = [{"id": "good", "target": {"routing_key": routing(good)}}, {"id": "late", "target": {"routing_key": routing(late)}}]
            rules = [rule("good", routing(good)), rule("late", routing(late))]
            freeze = "before" if "before" in how else "open"
            with owner_process(world, "core-1", fields, freeze_at=1, parked=freeze) as first:
                await first.until(lambda: len(first.last["owned"]) == 4 and first.last["ready"])
                async with publishing(world) as stream:
                    stream.some(3_000)
                    await first.until(lambda: first.last["by_rule"].get("app/good", 0) >= 3_000)
                    assert "app/late" not in first.last["by_rule"]
                    create(world, "late")
                    await first.until(lambda: first.stopped)
                    if how == "killed":
                        first.signal(signal.SIGKILL)
                    asked = time.monotonic()
                    second = world.owner(rules, core="core-2")
                    await settled(second)
                    await until(lambda: second.written["app/late"] > 1_000, 40)
                    print("caught up after", time.monotonic() - asked)
                    if how != "killed":
                        first.signal(signal.SIGCONT)
                        await first.until(lambda: len(first.last["owned"]) == 2, 60)
                    await until(lambda: not second.parked_rules(), 40)
                if how != "killed":
                    await first.until(lambda: not first.last["parked"], 60)
                    await asyncio.sleep(1.0)
                    first.signal(signal.SIGTERM)
                    await asyncio.to_thread(first.process.wait, 20)
                    await settled(second)
                await asyncio.sleep(1.0)
                await until(lambda: not second.parked_rules(), 40)
                await second.close()
                await assert_once(kafka_brokers, good, stream.published)
                await assert_once(kafka_brokers, late, stream.published)
                assert await asyncio.to_thread(parked_cursors, world) == {}

    asyncio.run(story())


def test_partitions_change_hands_while_rules_are_parked(kafka_brokers: str) -> None:
    """Two cores join and leave in turn; the topic comes only then. What joined has the cursors of those before."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            late = f"{world.config.prefix}-late"
            rules = [rule("late", routing(late))]
            first = world.owner(rules)
            await settled(first)
            async with publishing(world) as stream:
                await until(lambda: {each for _, owned in first.parked for each in [owned.number]} == {0, 1, 2, 3})
                second = world.owner(rules, core="core-2")
                await until(lambda: len(first.owned) == len(second.owned) == 2)
                await until(lambda: len(second.parked) == 2)
                create(world, "late")
                await until(lambda: first.written.total() > 50 and second.written.total() > 50, 40)
                third = world.owner(rules, core="core-3")  # the group has another generation now
                await settled(first, second, third)
                await first.close()
                await settled(second, third)
                await until(lambda: not second.parked and not third.parked, 60)
            await asyncio.sleep(1.0)
            await second.close()
            await third.close()
            assert second.failures == third.failures == 0
            await assert_once(kafka_brokers, late, stream.published)
            assert await asyncio.to_thread(parked_cursors, world) == {}

    asyncio.run(story())


def test_what_retention_takes_from_a_parked_rule_is_counted(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good, late = create(world, "good"), f"{world.config.prefix}-late"
            producer: LogProducer = world.start(LogProducer)
            owner = world.owner([rule("good", good), rule("late", routing(late))])
            await settled(owner)
            for number in range(10):
                publish(world, producer, number)
            await until(lambda: owner.written["app/good"] == 10)
            partition = partition_of(log_key("app", "chat:lobby"), world.log.partitions)
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            for done in admin.delete_records([TopicPartition(world.log.topic, partition, 6)]).values():
                done.result(10)
            await until(lambda: owner.missed["app/late"] == 6, 40)
            create(world, "late")
            await until(lambda: owner.written["app/late"] == 4, 40)
            await until(lambda: not owner.parked)
            await owner.close()
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, late)) == [6, 7, 8, 9]

    asyncio.run(story())


def test_changed_removed_disabled_and_new_rules(kafka_brokers: str) -> None:
    """A parked rule with another topic writes what waits there; one that is removed or disabled gives it up, and begins now when it comes
    back."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good, other = create(world, "good"), create(world, "other")
            missing = f"{world.config.prefix}-missing"
            producer: LogProducer = world.start(LogProducer)
            owner = world.owner([rule(name, missing) for name in ("changed", "removed")] + [rule("good", good)])
            await settled(owner)
            for number in range(3):
                publish(world, producer, number)
            await until(lambda: owner.written["app/good"] == 3)
            await owner.close()
            assert {label for _, label, _ in await asyncio.to_thread(parked_cursors, world)} == {"app/changed", "app/removed"}
            owner = world.owner([rule("changed", other), rule("good", good)])
            await settled(owner)
            await until(lambda: owner.written["app/changed"] == 3 and not owner.parked)
            publish(world, producer, 3)
            await until(lambda: owner.written["app/good"] == owner.written["app/changed"] - 3 == 1)
            await owner.close()
            assert await asyncio.to_thread(parked_cursors, world) == {}
            assert sorted(numbers(await asyncio.to_thread(committed, kafka_brokers, other))) == [0, 1, 2, 3]
            create(world, "missing")
            owner = world.owner([rule("removed", missing)])
            await settled(owner)
            publish(world, producer, 4)
            await until(lambda: owner.written["app/removed"] == 1)
            await owner.close()
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, missing)) == [4]

    asyncio.run(story())


def test_presence_and_batches_catch_up_too(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            presence, batch = f"{world.config.prefix}-presence", f"{world.config.prefix}-batch"
            producer: LogProducer = world.start(LogProducer)
            rules = [
                make("p", routing(presence), source={"type": "channel.presence"}),
                make("b", batch, request_mode="batch"),
            ]
            owner = world.owner(rules)
            await settled(owner)
            enter(world, producer, 0, "ann")
            enter(world, producer, 1, "bob")
            for number in range(20):
                publish(world, producer, 100 + number)
            await until(lambda: {each.rule for each, _ in owner.parked} == {"app/p", "app/b"})
            await until(lambda: not producer.unreported)
            create(world, "presence")
            create(world, "batch")
            await until(lambda: not owner.parked, 40)
            enter(world, producer, 2, "cid")
            await until(lambda: owner.written["app/p"] == 3)
            await owner.close()
            found = [json.loads(message.value()) for message in await asyncio.to_thread(committed, kafka_brokers, presence)]
            assert [each["presence"][0]["clientId"] for each in found] == ["ann", "bob", "cid"]
            items = [item for message in await asyncio.to_thread(committed, kafka_brokers, batch) for item in batch_items(message)]
            assert len(items) == 20

    asyncio.run(story())


def make(name: str, routing_key: str, **fields: Any) -> Rule:
    return Rule("app", msgspec.convert({"id": name, "target": {"routing_key": routing_key}, **fields}, RuleConfig))


def batch_items(message: Any) -> list[Any]:
    items: list[Any] = json.loads(message.value())["items"]
    return items


# --- permissions -------------------------------------------------------------------------------------------------------------------------

ACLS = """\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
"""


@pytest.fixture
def strict_brokers() -> Iterator[str]:
    """A broker that has ACLs. Whoever comes is `User:ANONYMOUS`, and may do everything with what has none."""
    with own_broker(extra=ACLS) as address:
        yield address


def allow(brokers: str, topic: str, *operations: AclOperation) -> None:
    bindings = [
        AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
    admin = AdminClient({"bootstrap.servers": brokers})  # its answers go with it
    for done in admin.create_acls(bindings).values():
        done.result(10)


@pytest.mark.parametrize(
    "operations", [(AclOperation.READ, AclOperation.DESCRIBE), (AclOperation.ALTER,)], ids=["to be read", "not even seen"]
)
def test_a_rule_that_may_not_write_holds_up_nobody_and_catches_up_when_it_may(
    strict_brokers: str, operations: tuple[AclOperation, ...]
) -> None:
    async def story() -> None:
        async with kafka(strict_brokers) as world:
            good, secret = create(world, "good"), create(world, "secret")
            allow(strict_brokers, secret, *operations)
            owner = world.owner([rule("good", routing(good)), rule("secret", routing(secret))])
            await settled(owner)
            async with publishing(world) as stream:
                await until(lambda: owner.written["app/good"] > 200)
                assert {(each["rule"], each["reason"]) for each in owner.parked_rules()} == {("app/secret", "unauthorized_topic")}
                assert owner.failures == 0
                allow(strict_brokers, secret, AclOperation.WRITE)
                await until(lambda: owner.written["app/secret"] > 200 and not owner.parked, 40)
            await until(lambda: owner.written["app/secret"] == stream.published)
            await owner.close()
            allow(strict_brokers, secret, AclOperation.READ)
            await assert_once(strict_brokers, secret, stream.published)

    asyncio.run(story())
