"""Mappings on a real broker: what a plain producer writes to a topic reaches the log, all of it, in order per key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from core.events import Tailed
from core.kafka import KafkaConfig, LogProducer, Tail, mapping_runner
from core.kafka import schema_registry as schema_registry_module
from core.kafka.config import SchemaRegistryConfig
from core.kafka.lanes import LogAppends
from core.kafka.mapping_runner import MappingRunner
from core.kafka.schema_registry import SchemaRegistry
from core.log import LogRecord
from core.mappings import Mapping, MappingConfig, Schemas
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody
from tests.support.core_process import Core, core_process
from tests.support.kafka import Kafka, a_config, kafka
from tests.support.registry import Registered, Registry, framed, schema_registry
from tidegate.kafka_local import free_port

pytestmark = pytest.mark.kafka


def create(world: Kafka, name: str, partitions: int = 3) -> str:
    topic = f"{world.config.prefix}-{name}"
    admin = AdminClient({"bootstrap.servers": world.config.brokers})
    for made in admin.create_topics([NewTopic(topic, partitions)]).values():
        made.result(10)
    return topic


def log_of(world: Kafka) -> LogAppends:
    """A log producer that mappings share, and a tail."""
    appends = LogAppends(world.log)
    deliver = world.deliver
    world.deliver = appends.sort(deliver)  # type: ignore[method-assign]
    appends.use(world.start(LogProducer))
    world.deliver = deliver  # type: ignore[method-assign]
    world.start(Tail, [world.log])
    return appends


def runner(
    world: Kafka, appends: LogAppends, topic: str, limits: CoreLimits | None = None, schemas: Schemas | None = None, **fields: Any
) -> MappingRunner:
    config = msgspec.convert({"id": "m", "topics": [topic] if topic else [], "channel": "#{key}"} | fields, MappingConfig)
    mapping = Mapping("app", config, prefix=world.config.prefix, registry=schemas is not None)
    loop = asyncio.get_running_loop()
    made = MappingRunner(world.config, mapping, appends, limits=limits or world.limits, loop=loop, schemas=schemas)
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
    """Rows M1.1, M1.7 and M3.12."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 1)
            appends = log_of(world)
            mapping = runner(world, appends, topic, channel="#{topic}:#{key}", message_name="update", on_failed_record_mapping="skip")
            await until(lambda: mapping.ready)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            producer.produce(topic, b'{"a":1}', b"k", headers=[("h", b"1")])
            producer.produce(topic, b"no key")  # skipped: its channel needs one
            producer.produce(topic, None, b"k")
            producer.flush(10)
            await until(lambda: len(logged(world)) == 2)
            first, tombstone = logged(world)
            assert (first.key, first.kind, first.id) == (f"app:{topic}:k".encode(), Kind.MESSAGE, f"m:m:{topic}:0:0")
            assert message(first) == Message(
                id=f"{topic}:0:0:0", name="update", data='{"a":1}', encoding="json", extras={"headers": {"h": "1"}, "kafka": {"key": "k"}}
            )
            assert (tombstone.id, message(tombstone).data) == (f"m:m:{topic}:0:2", None)
            assert mapping.skipped == {"no_text": 1}
            await mapping.close()
            assert marks(world, mapping.group, topic, 1) == ([3], [3])

    asyncio.run(story())


@pytest.mark.parametrize(("start", "read"), [("latest", ["2", "3"]), ("earliest", ["0", "1", "2", "3"])])
def test_where_a_new_mapping_begins(kafka_brokers: str, start: str, read: list[str]) -> None:
    """Row M1.10."""

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
    """Rows M5.1 and M6.1: nor is anything appended twice."""

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
            # it may have to find what the second could not commit; until it has all partitions, its lag does not tell of that
            await until(lambda: len(firsts(world)) == 3_000 and third.status()["partitions"] == 3 and third.lag == 0)
            await third.close()
            assert_all_in_order(world, 3_000)
            committed, ends = await asyncio.to_thread(marks, world, third.group, topic)
            assert committed == ends
            assert len(logged(world)) == 3_000
            assert first.failures == second.failures == third.failures == 0

    asyncio.run(story())


def test_two_runners_share_the_partitions(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 4)
            appends = log_of(world)
            both = [runner(world, appends, topic) for _ in range(2)]
            await until(lambda: all(len(mapping._parts) == 2 for mapping in both))
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 1_000, 50)
            await until(lambda: len(firsts(world)) == 1_000)
            assert all(mapping.read for mapping in both)
            for mapping in both:
                await mapping.close()
            assert_all_in_order(world, 1_000)

    asyncio.run(story())


def test_a_missing_topic_is_waited_for_and_read_from_its_beginning(kafka_brokers: str) -> None:
    """Row M6.7."""

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


def test_where_partitions_begin_is_committed_once_the_group_is_at_rest(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group may change again before a member has told where its partitions begin."""
    commit, refused = MappingRunner._commit_positions, []

    def refuse_once(self: MappingRunner, *arguments: Any, **options: Any) -> Any:
        if not refused:
            refused.append(self.ready)
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
        return commit(self, *arguments, **options)

    monkeypatch.setattr(MappingRunner, "_commit_positions", refuse_once)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores")
            mapping = runner(world, log_of(world), topic)
            await until(lambda: mapping.ready)
            committed, _ = await asyncio.to_thread(marks, world, mapping.group, topic)
            assert (refused, committed, mapping.failures) == ([False], [0, 0, 0], 0)
            await mapping.close()

    asyncio.run(story())


def test_a_mapping_holds_no_more_than_its_bound_while_the_log_takes_nothing(kafka_brokers: str) -> None:
    """Row M6.6."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores")
            limits = CoreLimits(mapping_records=100)
            mapping = runner(world, LogAppends(world.log), topic, limits, **{"from": "earliest"})  # no producer yet: refuses
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 5_000)
            await until(lambda: mapping.read >= 100)
            assert not mapping._paused  # or a fast mapping would throw away what the driver has read ahead, again and again
            await until(lambda: len(mapping._paused) == 3)
            assert mapping.read <= 100 + 500  # one batch beyond
            await mapping.close()
            committed, _ = await asyncio.to_thread(marks, world, mapping.group, topic)
            assert committed == [0, 0, 0]

    asyncio.run(story())


# --- exactly once --------------------------------------------------------------------------------------------------------------------


def test_what_was_appended_and_not_committed_is_found_in_the_log(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row M6.1, without the help of readers: the log itself has each record once, whenever the mapping goes on."""
    monkeypatch.setattr(mapping_runner, "COMMIT_S", 3600.0)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores")
            appends = log_of(world)
            first = runner(world, appends, topic)
            await until(lambda: first.ready)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 500)
            await until(lambda: len(logged(world)) == 500)
            with monkeypatch.context() as killed:
                killed.setattr(MappingRunner, "_settle", lambda self, places: None)  # as if killed: nothing is committed at the end
                await first.close()
            assert sum((await asyncio.to_thread(marks, world, first.group, topic))[0]) == 0
            await asyncio.to_thread(produce, kafka_brokers, topic, 500, 500)
            second = runner(world, appends, topic)
            await until(lambda: len(logged(world)) >= 1_000)
            await until(lambda: second.lag == 0)
            await second.close()
            assert second.found == 500
            assert len(logged(world)) == 1_000
            assert_all_in_order(world, 1_000)
            committed, ends = await asyncio.to_thread(marks, world, second.group, topic)
            assert committed == ends
            third = runner(world, appends, topic)
            await until(lambda: third.ready)
            await asyncio.sleep(0.5)
            await third.close()
            assert (third.found, third.read, len(logged(world))) == (0, 0, 1_000)

    asyncio.run(story())


def test_a_second_death_on_the_way_through_what_was_found(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row M6.1: until all that was found is passed, the commit still leads to it."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "scores", 1)
            appends = log_of(world)
            with monkeypatch.context() as killed:
                killed.setattr(mapping_runner, "COMMIT_S", 3600.0)
                killed.setattr(MappingRunner, "_settle", lambda self, places: None)
                first = runner(world, appends, topic, **{"from": "earliest"})
                await until(lambda: first.ready)
                await asyncio.to_thread(produce, kafka_brokers, topic, 0, 300)
                await until(lambda: len(logged(world)) == 300)
                await first.close()
            with monkeypatch.context() as halfway:
                passed = 0
                entry = MappingRunner._entry

                def only_some(self: MappingRunner, part: Any, record: Any, made: Any) -> Any:
                    nonlocal passed
                    passed += 1
                    return None if passed > 100 else entry(self, part, record, made)

                halfway.setattr(MappingRunner, "_entry", only_some)
                second = runner(world, appends, topic)
                await until(lambda: passed > 100)
                await asyncio.sleep(1.5)
                await second.close()
            assert (await asyncio.to_thread(marks, world, second.group, topic, 1))[0] == [0]
            third = runner(world, appends, topic)
            await until(lambda: third.found == 300)
            await asyncio.sleep(0.5)
            await third.close()
            assert len(logged(world)) == 300

    asyncio.run(story())


# --- topics --------------------------------------------------------------------------------------------------------------------------


def test_topics_by_pattern_and_those_that_come_later(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows M1.2 and M6.7."""
    monkeypatch.setattr(mapping_runner, "PATTERN_S", 0.5)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            prefix = world.config.prefix
            old = create(world, "orders-old", 1)
            await asyncio.to_thread(produce, kafka_brokers, old, 0, 3)
            appends = log_of(world)
            mapping = runner(world, appends, "", topic_pattern=f"{prefix}(-orders-.*|.log)", channel="#{topic}")
            await until(lambda: mapping._parts)
            await asyncio.to_thread(produce, kafka_brokers, old, 3, 1)
            new = create(world, "orders-new", 1)
            await asyncio.to_thread(produce, kafka_brokers, new, 4, 2)
            create(world, "others", 1)
            await until(lambda: len(logged(world)) == 3)
            await asyncio.sleep(1)
            assert sorted(mapping._parts) == [(new, 0), (old, 0)]
            await mapping.close()
            assert sorted((record.key.decode(), message(record).data) for record in logged(world)) == [
                (f"app:{new}", "4"),
                (f"app:{new}", "5"),
                (f"app:{old}", "3"),
            ]

    asyncio.run(story())


def test_a_partition_that_is_added_is_read_from_its_beginning(kafka_brokers: str) -> None:
    """Row M6.7."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "grows", 1)
            appends = log_of(world)
            mapping = runner(world, appends, topic)
            await until(lambda: mapping._parts)
            await mapping.close()
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            await until(lambda: len(admin.list_topics(topic, timeout=5).topics[topic].partitions) == 3)
            for partition in range(3):
                producer.produce(topic, str(partition).encode(), b"k", partition)
            assert producer.flush(10) == 0
            mapping = runner(world, appends, topic)
            await until(lambda: len(logged(world)) == 3)
            await mapping.close()

    asyncio.run(story())


def test_a_mapping_that_begins_at_a_time(kafka_brokers: str) -> None:
    """Row M1.10."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "times", 2)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            for number in range(6):  # one of the partitions has nothing that late
                producer.produce(topic, str(number).encode(), b"k", 0, timestamp=1_000 + number)
            producer.produce(topic, b"early", b"k", 1, timestamp=900)
            assert producer.flush(10) == 0
            mapping = runner(world, log_of(world), topic, **{"from": 1_003})
            await until(lambda: len(logged(world)) == 3)
            await asyncio.sleep(0.3)
            await mapping.close()
            assert [message(record).data for record in logged(world)] == ["3", "4", "5"]

    asyncio.run(story())


# --- records that cannot become messages ---------------------------------------------------------------------------------------------


def registered(registry: Registry) -> SchemaRegistry:
    client = SchemaRegistry(SchemaRegistryConfig(url=registry.url), CoreLimits(schema_timeout_s=1.0))
    client.start()
    return client


POISON: list[tuple[str, bytes | None, bytes, bytes | None]] = [
    ("undecodable", b"k", b"plain", b"1"),
    ("unknown_schema", b"k", framed(9, b"\x02a"), b"1"),
    ("missing_field", b"k", framed(8, b"\x02a"), None),
    ("oversize", b"k", framed(7, b"\x80\x80\x20" + b"x" * 262_144), b"1"),
    ("no_text", None, framed(7, b"\x02a"), b"1"),
    ("illegal_channel", b"k", framed(7, b"\x02a"), b"a\nb"),
]
"""(reason, key, value, header `n`)"""
RECORD = '{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}'


@pytest.mark.parametrize("policy", ["dlq", "skip"])
def test_every_failure_ends_as_the_policy_says(kafka_brokers: str, policy: str) -> None:
    """Rows M1.7, M1.8, M3.9, M3.10, M3.12, M3.13, M3.14 and M6.3."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic, dead = create(world, "in", 1), create(world, "dead", 2)
            appends = log_of(world)
            with schema_registry() as registry:
                registry.add(7, Registered("AVRO", '"string"'))
                registry.add(8, Registered("AVRO", RECORD))
                schemas = registered(registry)
                fields: dict[str, Any] = {"value": "avro", "message_name": "#{key}", "channel": "c:#{headers.n}:#{key}"}
                if policy == "dlq":
                    fields["dlq_topic"] = dead
                producer = Producer({"bootstrap.servers": kafka_brokers})
                producer.produce(topic, framed(7, b"\x02a"), b"k", 0, headers=[("n", b"1")])
                for _, key, value, n in POISON:
                    named = [] if n is None else [("n", n)]
                    producer.produce(topic, value, key, 0, headers=[*named, ("h", b"\xff"), ("h", None)])
                producer.produce(topic, None, b"k", 0, headers=[("n", b"1")])
                producer.produce(topic, framed(7, b"\x02z"), b"k", 0, headers=[("n", b"1")])
                assert producer.flush(10) == 0
                mapping = runner(world, appends, topic, schemas=schemas, on_failed_record_mapping=policy, **fields, **{"from": "earliest"})
                await until(lambda: len(logged(world)) >= 3 and mapping.lag == 0)
                reasons = {reason: 1 for reason, _, _, _ in POISON}
                await mapping.close()
                await schemas.close()
                assert [message(record).data for record in logged(world)] == ["a", None, "z"]
                counted = mapping.dead if policy == "dlq" else mapping.skipped
                assert counted == reasons
                committed, ends = await asyncio.to_thread(marks, world, mapping.group, topic, 1)
                assert committed == ends
                letters = await asyncio.to_thread(drained, kafka_brokers, dead, 2)
                if policy == "skip":
                    assert letters == []
                    return
                letters.sort(key=lambda letter: int(dict(letter.headers())["tidegate.dlq.offset"]))
                for offset, ((reason, key, value, _), letter) in enumerate(zip(POISON, letters, strict=True), 1):
                    assert (letter.key(), letter.value()) == (key, value)
                    added = {name: text.decode() for name, text in letter.headers() if name.startswith("tidegate.dlq.")}
                    assert added.pop("tidegate.dlq.detail")
                    assert added == {
                        "tidegate.dlq.reason": reason,
                        "tidegate.dlq.mapping": "m",
                        "tidegate.dlq.topic": topic,
                        "tidegate.dlq.partition": "0",
                        "tidegate.dlq.offset": str(offset),
                    }
                    kept = [header for header in letter.headers() if not header[0].startswith("tidegate.dlq.")]
                    assert kept[-2:] == [("h", b"\xff"), ("h", None)]

    asyncio.run(story())


def drained(brokers: str, topic: str, partitions: int) -> list[Any]:
    """All records of a topic."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "auto.offset.reset": "earliest"})
    places = [TopicPartition(topic, number, 0) for number in range(partitions)]
    wanted = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    consumer.assign(places)
    found: list[Any] = []
    while len(found) < wanted:
        found += consumer.consume(wanted - len(found), 5)
    consumer.close()
    return found


def test_a_dead_letter_topic_that_is_missing_holds_up_the_partition_until_it_is_there(kafka_brokers: str) -> None:
    """Rows M6.3 and M6.4: nothing is committed beyond a record whose letter nobody has."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 1)
            dead = f"{world.config.prefix}-dead"
            appends = log_of(world)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 1)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            producer.produce(topic, b"poison", None)
            producer.flush(10)
            await asyncio.to_thread(produce, kafka_brokers, topic, 1, 5)
            mapping = runner(world, appends, topic, on_failed_record_mapping="dlq", dlq_topic=dead, **{"from": "earliest"})
            await until(lambda: len(logged(world)) == 6)
            await asyncio.sleep(1.5)
            assert (await asyncio.to_thread(marks, world, mapping.group, topic, 1))[0] == [1]
            assert mapping.lag == 6
            create(world, "dead", 1)
            await until(lambda: mapping.lag == 0)
            await mapping.close()
            (letter,) = await asyncio.to_thread(drained, kafka_brokers, dead, 1)
            assert letter.value() == b"poison"
            assert (await asyncio.to_thread(marks, world, mapping.group, topic, 1))[0] == [7]
            assert len(logged(world)) == 6

    asyncio.run(story())


def test_a_partition_stops_at_a_record_and_goes_on_when_the_cause_is_gone(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows M1.6, M3.10, M6.4 and M6.5: with more behind the record than is read at once, and another partition that goes on."""
    monkeypatch.setattr(mapping_runner, "STOPPED_S", 0.3)
    monkeypatch.setattr(schema_registry_module, "UNKNOWN_S", 0.3)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 2)
            appends = log_of(world)
            with schema_registry() as registry:
                registry.add(7, Registered("AVRO", '"string"'))
                schemas = registered(registry)
                producer = Producer({"bootstrap.servers": kafka_brokers})

                def put(partition: int, schema: int, number: int) -> None:
                    text = str(number).encode()
                    producer.produce(topic, framed(schema, bytes([2 * len(text)]) + text), b"k%d" % partition, partition)

                for number in range(2_000):
                    put(0, 8 if number == 10 else 7, number)
                    put(1, 7, number)
                    producer.poll(0)
                assert producer.flush(20) == 0
                mapping = runner(world, appends, topic, schemas=schemas, value="avro", **{"from": "earliest"})
                await until(lambda: len(logged(world)) == 2_010)
                await asyncio.sleep(1)
                # Now and then the registry is asked again, and it waits for that
                await until(lambda: [stopped[:4] for stopped in mapping.stopped] == [(topic, 0, 10, "unknown_schema")])
                await until(lambda: mapping.lag == 1_990)
                assert mapping.status()["stopped"][0]["offset"] == 10
                assert sum(len(part.held) for part in mapping._parts.values()) == 1
                registry.add(8, Registered("AVRO", '"string"'))
                await until(lambda: len(logged(world)) == 4_000)
                await until(lambda: mapping.lag == 0 and not mapping.stopped)
                await mapping.close()
                await schemas.close()
                by_key: dict[bytes, list[int]] = {}
                for record in logged(world):
                    by_key.setdefault(record.key, []).append(int(message(record).data))
                assert list(by_key.values()) == [list(range(2_000))] * 2
                assert mapping.failures == 0

    asyncio.run(story())


def test_an_outage_of_the_registry_delays_and_loses_nothing(kafka_brokers: str) -> None:
    """Row M3.11: whatever the policy, here `skip`, and with bounded buffers."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 2)
            appends = log_of(world)
            limits = CoreLimits(mapping_records=300)
            with schema_registry() as registry:
                registry.add(7, Registered("AVRO", '"string"'))
                registry.add(8, Registered("AVRO", '"string"'))
                schemas = registered(registry)
                mapping = runner(world, appends, topic, limits, schemas, value="avro", on_failed_record_mapping="skip")
                await until(lambda: mapping._parts)
                producer = Producer({"bootstrap.servers": kafka_brokers})

                def put(start: int, count: int, schema: int) -> None:
                    for number in range(start, start + count):
                        text = str(number).encode()
                        producer.produce(topic, framed(schema, bytes([2 * len(text)]) + text), b"key%d" % (number % 7))
                        producer.poll(0)
                    assert producer.flush(20) == 0

                await asyncio.to_thread(put, 0, 1_000, 7)
                await until(lambda: len(logged(world)) == 1_000)
                registry.down()
                await asyncio.to_thread(put, 1_000, 2_000, 8)
                await until(lambda: schemas.failures >= 2)
                assert len(logged(world)) == 1_000
                assert all(stopped.delayed for stopped in mapping.stopped)
                assert sum(len(part.held) for part in mapping._parts.values()) <= 300 + 500
                await asyncio.to_thread(put, 3_000, 10, 7)
                registry.up()
                await until(lambda: len(logged(world)) == 3_010)
                await mapping.close()
                await schemas.close()
                assert_all_in_order(world, 3_010)
                assert not mapping.skipped

    asyncio.run(story())


# --- cores that are killed and frozen ------------------------------------------------------------------------------------------------


def raw_log(config: KafkaConfig, partitions: int) -> dict[bytes, list[str]]:
    """Publish ids of mapped records by log key, as they stand in the log: also what readers would leave out."""
    by_key: dict[bytes, list[str]] = {}
    for record in drained(config.brokers, f"{config.prefix}.log", partitions):
        publish_id = dict(record.headers())["id"].decode()
        if publish_id.startswith("m:"):
            by_key.setdefault(record.key(), []).append(publish_id)
    return by_key


def assert_each_once_in_order(log: dict[bytes, list[str]], count: int) -> None:
    ids = [publish_id for run in log.values() for publish_id in run]
    assert (len(ids), len(set(ids))) == (count, count)
    for run in log.values():
        offsets = [int(publish_id.rpartition(":")[2]) for publish_id in run]
        assert offsets == sorted(offsets)


@pytest.mark.parametrize("signals", [("KILL",), ("STOP", "CONT")])
def test_cores_killed_or_frozen_give_each_record_once_and_in_order(tmp_path: Path, kafka_brokers: str, signals: tuple[str, ...]) -> None:
    """Rows M6.1, M6.2, M6.5 and M1.11: two cores, records all the while, and what stands in the log at the end."""
    config = a_config(kafka_brokers)
    topic = f"{config.prefix}-in"
    mappings = [
        {"id": "m", "topics": [topic], "channel": "c:#{key}", "from": "earliest"},
        {"id": "off", "topics": [topic], "channel": "off", "from": "earliest", "status": "disabled"},
    ]
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    admin.create_topics([NewTopic(topic, 6)])[topic].result(10)
    count = 20_000

    def start(stack: contextlib.ExitStack, name: str) -> tuple[Core, int]:
        (tmp_path / name).mkdir(exist_ok=True)
        port = free_port()
        kafka_settings = {"brokers": kafka_brokers, "prefix": config.prefix, "partitions": 4}
        settings = {"kafka": kafka_settings, "metrics": {"port": port}, "apps": [{"id": "app", "mappings": mappings}]}
        core = stack.enter_context(core_process(tmp_path / name, kafka_brokers, node=name, **settings))
        return core, port

    def lag(core: Core) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{core.admin}/v1/status", timeout=5) as answer:
            (only,) = json.loads(answer.read())["mappings"]
        return int(only["lag"])

    with contextlib.ExitStack() as stack:
        first, _ = start(stack, "core-1")
        second, metrics = start(stack, "core-2")
        for core in (first, second):
            core.until(lambda core=core: core.answers("/readyz") == 200)  # type: ignore[misc]
        producer = Producer({"bootstrap.servers": kafka_brokers})
        for number in range(count):
            producer.produce(topic, str(number).encode(), b"key%d" % (number % 50))
            if number % 100 == 0:
                producer.poll(0)
                time.sleep(0.01)
            if number == count // 2:
                os.kill(first.process.pid, getattr(signal, f"SIG{signals[0]}"))
        assert producer.flush(20) == 0
        if "CONT" in signals:
            time.sleep(12)  # longer than the session: the other core has the partitions
            os.kill(first.process.pid, signal.SIGCONT)
        else:
            first, _ = start(stack, "core-1")
            first.until(lambda: first.answers("/readyz") == 200)
        end = time.monotonic() + 60
        while lag(first) + lag(second) or sum(map(len, raw_log(config, 4).values())) < count:
            assert time.monotonic() < end, first.log.read_text() + second.log.read_text()
            time.sleep(1)
        time.sleep(2)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as answer:
            shown = answer.read().decode()
        assert f'tidegate_mapping_lag{{group="{config.prefix}.mapping.app.m"}} 0.0' in shown
        assert f'tidegate_mapping_stopped{{group="{config.prefix}.mapping.app.m"}} 0.0' in shown
        assert ".mapping.app.off" not in shown
    log = raw_log(config, 4)
    if "CONT" in signals:
        # What the driver of the frozen core had in hand goes out when it wakes up; readers leave out the second of an id
        log = {key: list(dict.fromkeys(run)) for key, run in log.items()}
    assert b"app:off" not in log
    assert_each_once_in_order(log, count)
