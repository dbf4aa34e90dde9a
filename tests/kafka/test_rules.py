"""Rules on a real broker: what is in the log reaches your topics exactly once, whatever happens to the runner."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from core.kafka import LogProducer, OwnerRunner
from core.rules import Rule, RuleConfig
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind, Message, RecordBody
from tests.support.kafka import Kafka, kafka

pytestmark = pytest.mark.kafka


def create(world: Kafka, name: str, partitions: int = 2) -> str:
    """A topic of this test's own."""
    topic = f"{world.config.prefix}-{name}"  # the prefix is reserved up to a dot
    admin = AdminClient({"bootstrap.servers": world.config.brokers})
    for made in admin.create_topics([NewTopic(topic, partitions)]).values():
        made.result(10)
    return topic


def rule(name: str, routing_key: str, channel_filter: str = "", **target: Any) -> Rule:
    fields = {"id": name, "source": {"channel_filter": channel_filter}, "target": {"routing_key": routing_key} | target}
    return Rule("app", msgspec.convert(fields, RuleConfig))


def runner(world: Kafka, *rules: Rule, **options: Any) -> OwnerRunner:
    return world.owner(rules, core="eu", **options)


async def until(done: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not done():  # noqa: ASYNC110 - counters of a thread
            await asyncio.sleep(0.01)


def publish(world: Kafka, producer: LogProducer, number: int, channel: str = "chat:lobby", **message: Any) -> None:
    key = log_key("app", channel)
    body = RecordBody(id=f"conn:{number}", timestamp=1000, connection_id="conn", messages=[Message(**({"data": str(number)} | message))])
    value = msgspec.msgpack.encode(body)
    producer.append(number, partition_of(key, world.log.partitions), key, value, Kind.MESSAGE, f"c:conn:{number}")


def committed(brokers: str, topic: str, partitions: int = 2) -> list[Any]:
    """Everything that a `read_committed` consumer sees up to the end, by partition and offset."""
    settings = {"group.id": f"{topic}-reader", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer({"bootstrap.servers": brokers, **settings})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found, ended, until = [], 0, time.monotonic() + 20
    while ended < partitions and time.monotonic() < until:
        message = consumer.poll(0.1)
        if message is not None:
            if message.error() is None:
                found.append(message)
            else:
                ended += message.error().code() == KafkaError._PARTITION_EOF
    consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def numbers(messages: list[Any]) -> list[int]:
    return [int(json.loads(message.value())["messages"][0]["data"]) for message in messages]


def test_enveloped_and_plain_records_with_key_and_headers(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out, plain = create(world, "out"), create(world, "plain")
            producer: LogProducer = world.start(LogProducer)
            publish(world, producer, 1)  # before the rules: a new rule starts now
            await until(lambda: not producer.unreported)
            rules = runner(
                world,
                rule("enveloped", f"{out}:#{{channelName}}", "^chat:"),
                rule("plain", f"{plain}:#{{message.name}}", "^chat:", enveloped=False),
            )
            await until(lambda: rules.ready)
            publish(world, producer, 2, name="greet", data="hello", client_id="bob")
            publish(world, producer, 3, channel="other:room")
            publish(world, producer, 4, data='{"a":1}', encoding="json", extras={"ephemeral": True})
            await until(lambda: rules.written.total() == 2)
            await rules.close()
            (message,) = await asyncio.to_thread(committed, kafka_brokers, out)
            assert message.key() == b"chat:lobby"
            assert message.headers() == [("content-type", b"application/json"), ("x-ably-version", b"1.2")]
            envelope = json.loads(message.value())
            serial = envelope["messages"][0].pop("serial")
            assert serial.startswith(world.log.stream)
            assert envelope.pop("timestamp") == pytest.approx(time.time() * 1000, abs=60_000)
            assert envelope == {
                "source": "channel.message", "appId": "app", "channel": "chat:lobby", "site": "eu", "ruleId": "enveloped",
                "messages": [
                    {
                        "id": "conn:2:0", "connectionId": "conn", "clientId": "bob", "timestamp": 1000, "name": "greet", "data": "hello",
                        "action": 0,
                    }
                ],
            }  # fmt: skip
            (message,) = await asyncio.to_thread(committed, kafka_brokers, plain)
            assert (message.key(), message.value()) == (b"greet", b"hello")
            assert dict(message.headers())["content-type"] == b"text/plain"
            assert dict(message.headers())["x-ably-message-client-id"] == b"bob"

    asyncio.run(story())


def test_duplicates_in_the_log_are_written_once_also_across_a_restart(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out = create(world, "out", 1)
            producer: LogProducer = world.start(LogProducer)
            rules = runner(world, rule("r", out))
            await until(lambda: rules.ready)
            for number in (1, 2, 1, 2, 3):
                publish(world, producer, number)
            await until(lambda: rules.written.total() == 3)
            assert rules.duplicates == 2
            await rules.close()
            for number in (3, 1, 4):  # the look-back knows 3 and 1
                publish(world, producer, number)
            await until(lambda: not producer.unreported)
            rules = runner(world, rule("r", out))
            await until(lambda: rules.written.total() == 1)
            assert rules.duplicates == 2
            await rules.close()
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, out, 1)) == [1, 2, 3, 4]

    asyncio.run(story())


def test_a_rule_with_a_missing_topic_does_not_hold_up_the_others(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out = create(world, "out")
            late = f"{world.config.prefix}-late"
            producer: LogProducer = world.start(LogProducer)
            rules = runner(world, rule("late", late), rule("good", out))
            await until(lambda: rules.ready)
            for number in range(10):
                publish(world, producer, number)
            await until(lambda: rules.written["app/good"] == 10)
            assert not rules.dropped
            create(world, "late")
            publish(world, producer, 10)
            await until(lambda: rules.written["app/late"] == 11)
            await rules.close()
            assert rules.failures == 0
            assert sorted(numbers(await asyncio.to_thread(committed, kafka_brokers, late))) == list(range(11))

    asyncio.run(story())


def test_a_topic_deleted_under_way(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out, doomed = create(world, "out", 1), create(world, "doomed")
            producer: LogProducer = world.start(LogProducer)
            rules = runner(world, rule("doomed", doomed), rule("good", out))
            await until(lambda: rules.ready)
            publish(world, producer, 0)
            await until(lambda: rules.written.total() == 2)
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            for gone in admin.delete_topics([doomed]).values():
                gone.result(10)
            publish(world, producer, 1)
            await until(lambda: rules.written["app/good"] == 2, 40)
            await until(lambda: [each["rule"] for each in rules.parked_rules()] == ["app/doomed"])
            create(world, "doomed")
            await until(lambda: rules.written["app/doomed"] == 2, 40)
            await rules.close()
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, doomed)) == [1]
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, out, 1)) == [0, 1]

    asyncio.run(story())


def test_a_record_too_large_for_its_topic_takes_no_other_with_it(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out, small = create(world, "out"), f"{world.config.prefix}-small"
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            for made in admin.create_topics([NewTopic(small, 1, config={"max.message.bytes": "2000"})]).values():
                made.result(10)
            producer: LogProducer = world.start(LogProducer)
            rules = runner(world, rule("good", out), rule("small", small))
            await until(lambda: rules.ready)
            for number in range(20):
                publish(world, producer, number, name="x" * (3_000 + number if number % 5 == 2 else 5))
            await until(lambda: rules.written["app/good"] == 20 and rules.written["app/small"] == 16, 40)
            await rules.close()
            assert rules.dropped == {("app/small", "too_large"): 4}
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, small, 1)) == [n for n in range(20) if n % 5 != 2]
            assert sorted(numbers(await asyncio.to_thread(committed, kafka_brokers, out))) == list(range(20))

    asyncio.run(story())


def test_dev_creates_missing_topics(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out = f"{world.config.prefix}-made"
            producer: LogProducer = world.start(LogProducer)
            rules = runner(world, rule("r", out), create_topics=True)
            await until(lambda: rules.ready)
            publish(world, producer, 1)
            await until(lambda: rules.written.total() == 1)
            await rules.close()

    asyncio.run(story())
