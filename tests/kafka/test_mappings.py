"""Mappings on a real broker: what a plain producer writes to a topic reaches the log, all of it, in order per key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from core.events import Tailed
from core.kafka import LogProducer, Tail
from core.kafka.mapping_runner import LogAppends, MappingRunner
from core.log import LogRecord
from core.mappings import Mapping, MappingConfig
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody
from tests.support.kafka import Kafka, kafka

pytestmark = pytest.mark.kafka


def create(world: Kafka, name: str, partitions: int = 3) -> str:
    topic = f"{world.config.prefix}-{name}"
    admin = AdminClient({"bootstrap.servers": world.config.brokers})
    for made in admin.create_topics([NewTopic(topic, partitions)]).values():
        made.result(10)
    return topic


def log_of(world: Kafka) -> LogAppends:
    """A log producer that mappings share, and a tail."""
    appends = LogAppends(world.log.partitions)
    deliver = world.deliver
    world.deliver = appends.sort(deliver)  # type: ignore[method-assign]
    appends.use(world.start(LogProducer))
    world.deliver = deliver  # type: ignore[method-assign]
    world.start(Tail, [world.log])
    return appends


def runner(world: Kafka, appends: LogAppends, topic: str, limits: CoreLimits | None = None, **fields: Any) -> MappingRunner:
    config = msgspec.convert({"id": "m", "topics": [topic], "channel": "#{key}"} | fields, MappingConfig)
    made = MappingRunner(world.config, Mapping("app", config), appends, limits=limits or world.limits, loop=asyncio.get_running_loop())
    made.start()
    return made


async def until(done: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not done():  # noqa: ASYNC110 - counters of a thread
            await asyncio.sleep(0.01)


def produce(brokers: str, topic: str, start: int, count: int, keys: int = 7) -> None:
    producer = Producer({"bootstrap.servers": brokers})
    for number in range(start, start + count):
        producer.produce(topic, str(number).encode(), f"key{number % keys}".encode())
        producer.poll(0)
    assert producer.flush(20) == 0


def logged(world: Kafka) -> list[LogRecord]:
    return [record for batch in world.of(Tailed) for record in batch.records]


def firsts(world: Kafka) -> list[LogRecord]:
    """As every reader of the log sees it: the first of each publish id."""
    return list({record.id: record for record in reversed(logged(world))}.values())[::-1]


def message(record: LogRecord) -> Message:
    (one,) = msgspec.msgpack.decode(record.value, type=RecordBody).messages
    return one


def assert_all_in_order(world: Kafka, count: int) -> None:
    by_key: dict[bytes, list[int]] = {}
    for record in firsts(world):
        by_key.setdefault(record.key, []).append(int(message(record).data))
    assert sorted(number for numbers in by_key.values() for number in numbers) == list(range(count))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


def marks(world: Kafka, group: str, topic: str, partitions: int = 3) -> tuple[list[int], list[int]]:
    """(committed offsets, ends)"""
    consumer = Consumer({"bootstrap.servers": world.config.brokers, "group.id": group})
    places = [TopicPartition(topic, number) for number in range(partitions)]
    committed = [place.offset for place in consumer.committed(places, timeout=10)]
    ends = [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]
    consumer.close()
    return committed, ends


def test_a_record_becomes_a_message_in_the_log(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 1)
            appends = log_of(world)
            mapping = runner(world, appends, topic, channel="#{topic}:#{key}", message_name="update")
            await until(lambda: mapping.ready)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            producer.produce(topic, b'{"a":1}', b"k", headers=[("h", b"1")])
            producer.produce(topic, b"no key")  # skipped: its channel needs one
            producer.produce(topic, None, b"k")
            producer.flush(10)
            await until(lambda: len(logged(world)) == 2)
            first, tombstone = logged(world)
            assert (first.key, first.kind, first.id) == (f"app:{topic}:k".encode(), Kind.MESSAGE, f"m:{topic}:0:0")
            assert message(first) == Message(
                id=f"{topic}:0:0:0", name="update", data='{"a":1}', encoding="json", extras={"headers": {"h": "1"}, "kafka": {"key": "k"}}
            )
            assert (tombstone.id, message(tombstone).data) == (f"m:{topic}:0:2", None)
            assert mapping.skipped == {"no_text": 1}
            await mapping.close()
            assert marks(world, mapping.group, topic, 1) == ([3], [3])

    asyncio.run(story())


@pytest.mark.parametrize(("start", "read"), [("latest", ["2", "3"]), ("earliest", ["0", "1", "2", "3"])])
def test_where_a_new_mapping_begins(kafka_brokers: str, start: str, read: list[str]) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 1)
            appends = log_of(world)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 2)
            mapping = runner(world, appends, topic, **{"from": start})
            await until(lambda: mapping.ready)
            await mapping.close()  # having read nothing new: the beginning is committed
            await asyncio.to_thread(produce, kafka_brokers, topic, 2, 2)
            mapping = runner(world, appends, topic, **{"from": start})
            await until(lambda: len(firsts(world)) == len(read))
            await mapping.close()
            assert sorted(message(record).data for record in firsts(world)) == read

    asyncio.run(story())


def test_nothing_is_lost_through_restarts_and_two_runners(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers, CoreLimits(partition_budget_records=50)) as world:
            topic = create(world, "scores")
            appends = log_of(world)
            limits = CoreLimits(mapping_records=200)
            first = runner(world, appends, topic, limits)
            await until(lambda: first.ready)
            producing = asyncio.create_task(asyncio.to_thread(produce, kafka_brokers, topic, 0, 3_000))
            await until(lambda: first.read > 500)
            await first.close()
            second = runner(world, appends, topic, limits)
            await until(lambda: second.read > 500)
            third = runner(world, appends, topic, limits)
            await until(lambda: third.ready)
            await producing
            await second.close()
            await until(lambda: len(firsts(world)) == 3_000)
            await third.close()
            assert_all_in_order(world, 3_000)
            committed, ends = await asyncio.to_thread(marks, world, third.group, topic)
            assert committed == ends
            assert first.failures == second.failures == third.failures == 0

    asyncio.run(story())


def test_two_runners_share_the_partitions(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 4)
            appends = log_of(world)
            both = [runner(world, appends, topic) for _ in range(2)]
            await until(lambda: all(len(mapping._lanes) == 2 for mapping in both))
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 1_000, 50)
            await until(lambda: len(firsts(world)) == 1_000)
            assert all(mapping.read for mapping in both)
            for mapping in both:
                await mapping.close()
            assert_all_in_order(world, 1_000)

    asyncio.run(story())


def test_a_missing_topic_is_waited_for_and_read_from_its_beginning(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            appends = log_of(world)
            mapping = runner(world, appends, f"{world.config.prefix}-late")
            await asyncio.sleep(2)
            topic = create(world, "late")
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 10)
            await until(lambda: len(firsts(world)) == 10)
            await mapping.close()
            assert mapping.failures == 0

    asyncio.run(story())


def test_a_mapping_holds_no_more_than_its_bound_while_the_log_takes_nothing(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores")
            limits = CoreLimits(mapping_records=100)
            mapping = runner(world, LogAppends(world.log.partitions), topic, limits, **{"from": "earliest"})  # no producer yet: refuses
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 5_000)
            await until(lambda: mapping.read >= 100)
            await asyncio.sleep(1)
            assert mapping.read <= 100 + 500  # one batch beyond
            await mapping.close()
            committed, _ = await asyncio.to_thread(marks, world, mapping.group, topic)
            assert committed == [0, 0, 0]

    asyncio.run(story())
