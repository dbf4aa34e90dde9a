"""The log on a real broker: what is appended is reported, tailed and counted as design promises publishers."""

from __future__ import annotations

import asyncio
import threading
import time

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from core.events import EndOffset, Gap, Looked, Overfull, Reported, Tailed
from core.kafka import EndOffsets, KafkaConfig, LogProducer, StreamInfo, Tail, Topics
from core.kafka.records import UNKNOWN, headers
from core.log import LogRecord
from relay.model.limits import CoreLimits
from relay.model.message import Kind
from tests.support.kafka import Kafka, kafka
from tidegate.kafka_local import LocalKafka

pytestmark = pytest.mark.kafka


def tailed(world: Kafka) -> list[LogRecord]:
    return [record for batch in world.of(Tailed) for record in batch.records]


def reported(world: Kafka) -> dict[int, int | None]:
    return {report.ticket: report.offset for report in world.of(Reported)}


def answered(world: Kafka, base: int) -> int:
    """How many appends with a higher ticket have their answer."""
    return sum(event.ticket > base for event in [*world.of(Reported), *world.of(Overfull)])


def tail(world: Kafka) -> Tail:
    return world.start(Tail, [world.log])


def test_what_is_appended_is_reported_and_tailed_with_its_position_kind_and_id(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            producer.append(7, 2, b"app:channel", b"\x81\xa2id\xa1x", Kind.PRESENCE, "c:connection:0")
            await world.until(lambda: tailed(world) and world.of(Reported))
            (record,) = tailed(world)
            said = (world.log.stream, 2, 0, record.timestamp, b"app:channel", b"\x81\xa2id\xa1x", Kind.PRESENCE, "c:connection:0")
            assert record == LogRecord(*said)
            assert world.of(Reported) == [Reported(7, 2, 0)]
            assert producer.unreported == 0

    asyncio.run(story())


def test_ten_thousand_records_keep_their_order_per_partition_and_each_is_answered_once(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers, CoreLimits(partition_budget_records=10_000)) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            for number in range(10_000):
                producer.append(number, number % 4, b"k", str(number).encode(), Kind.MESSAGE, f"s:{number}")
            await world.until(lambda: len(tailed(world)) == len(world.of(Reported)) == 10_000)
            for partition in range(4):
                values = [int(record.value) for record in tailed(world) if record.partition == partition]
                assert values == list(range(partition, 10_000, 4))
            by_ticket = reported(world)
            assert all(by_ticket[int(record.value)] == record.offset for record in tailed(world))

    asyncio.run(story())


def test_a_tail_looks_back_and_says_for_each_partition_when_it_has_caught_up(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            for number in range(100):
                producer.append(number, 1, b"k", b"v", Kind.MESSAGE, f"s:{number}")
            await world.until(lambda: len(reported(world)) == 100)
            tail(world)
            await world.until(lambda: len(world.of(Looked)) == 4)
            assert sorted((looked.partition, looked.start, looked.position) for looked in world.of(Looked)) == [
                (0, 0, 0), (1, 0, 100), (2, 0, 0), (3, 0, 0),
            ]  # fmt: skip
            before = world.events[: next(at for at, event in enumerate(world.events) if isinstance(event, Looked) and event.partition == 1)]
            assert sum(len(batch.records) for batch in before if isinstance(batch, Tailed)) == 100

    asyncio.run(story())


def test_an_end_offset_covers_everything_acknowledged_before_and_lone_asks_share_requests(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            ends: EndOffsets = world.start(EndOffsets)
            for number in range(50):
                producer.append(number, 3, b"k", b"v", Kind.MESSAGE, f"s:{number}")
            await world.until(lambda: len(reported(world)) == 50)
            for ask in range(200):
                ends.ask(ask, 3 if ask % 2 else 0)
            await world.until(lambda: len(world.of(EndOffset)) == 200)
            assert {(answer.partition, answer.offset) for answer in world.of(EndOffset)} == {(3, 50), (0, 0)}
            assert sorted(answer.ask for answer in world.of(EndOffset)) == list(range(200))
            assert ends.answered_at is not None

    asyncio.run(story())


def test_records_of_others_keep_their_place_with_an_unknown_kind(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            tail(world)
            stranger = confluent_kafka.Producer({"bootstrap.servers": kafka_brokers})
            stranger.produce(world.log.topic, None, None, 0)
            stranger.produce(world.log.topic, b"x", b"k", 0, headers=[("kind", b"nonsense"), ("id", None), ("version", b"1")])
            stranger.produce(world.log.topic, b"x", b"k", 0, headers=[*headers(Kind.MESSAGE, "i:1")[:2], ("version", b"99")])
            stranger.flush(10)
            await world.until(lambda: len(tailed(world)) == 3)
            assert [(record.offset, record.kind) for record in tailed(world)] == [(0, UNKNOWN), (1, UNKNOWN), (2, UNKNOWN)]

    asyncio.run(story())


def test_a_core_that_is_slow_makes_the_tail_wait_and_misses_nothing(kafka_brokers: str) -> None:
    async def story() -> None:
        limits = CoreLimits(tail_queue_records=100, tail_queue_bytes=1_000_000)
        async with kafka(kafka_brokers, limits) as world:
            producer: LogProducer = world.start(LogProducer, limits=CoreLimits(partition_budget_records=10_000))
            for number in range(5_000):
                producer.append(number, 0, b"k", b"v", Kind.MESSAGE, f"s:{number}")
            await world.until(lambda: len(reported(world)) == 5_000)
            part = tail(world)
            time.sleep(1.0)  # noqa: ASYNC251 - the loop is stuck: the tail may read two batches ahead, and no more
            assert part.records <= 100 + 2 * 512
            await world.until(lambda: len(tailed(world)) == 5_000)
            assert [record.offset for record in tailed(world)] == list(range(5_000))

    asyncio.run(story())


def test_what_retention_took_before_it_was_read_is_reported_as_a_gap(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            for number in range(10):
                producer.append(number, 0, b"k", b"v", Kind.MESSAGE, f"s:{number}")
            await world.until(lambda: len(reported(world)) == 10)
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            part = Tail(world.config, [world.log], world.limits, asyncio.get_running_loop(), world.deliver)
            # As if it had been away: it knows where it was, and that is gone.
            part._positions = {(world.log.topic, partition): 0 for partition in range(4)}
            for future in admin.delete_records([TopicPartition(world.log.topic, 0, 6)]).values():
                await asyncio.to_thread(future.result, 10)
            part.start()
            await world.until(lambda: len(tailed(world)) == 4)
            await part.close()
            assert world.of(Gap) == [Gap(world.log.stream, 0, 0, 6)]
            assert [record.offset for record in tailed(world)] == [6, 7, 8, 9]

    asyncio.run(story())


# --- publishing discipline --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [CoreLimits(partition_budget_records=100), CoreLimits(partition_budget_bytes=100 * 201)])
def test_beyond_a_partitions_budget_records_are_refused_and_never_appear(kafka_brokers: str, limits: CoreLimits) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers, limits) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            for number in range(300):  # in one turn of the loop, so that no report can free budget meanwhile
                producer.append(number, 0, b"k", b"%100d" % number, Kind.MESSAGE, f"s:{number}")
            producer.append(1_000, 1, b"k", b"another partition", Kind.MESSAGE, "s:1000")
            await world.until(lambda: len(world.of(Reported)) == 101 and len(world.of(Overfull)) == 200)
            assert {refusal.ticket for refusal in world.of(Overfull)} == set(range(100, 300))
            producer.append(2_000, 0, b"k", b"budget is back", Kind.MESSAGE, "s:2000")
            await world.until(lambda: reported(world).get(2_000) == 100)
            await world.until(lambda: len(tailed(world)) == 102)

    asyncio.run(story())


def test_a_stopped_broker_makes_fates_unknown_never_refusals_and_order_survives(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The broker hangs for longer than the time-out. What was handed over may be in the log afterwards, so none of it may be refused."""
    broker = LocalKafka(directory=tmp_path_factory.mktemp("kafka"))

    async def story() -> None:
        async with kafka(broker.address, CoreLimits(publish_timeout_s=3.0)) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            producer.append(0, 0, b"k", b"0", Kind.MESSAGE, "s:0")
            await world.until(lambda: reported(world).get(0) == 0)
            broker.pause()
            for number in range(1, 21):
                producer.append(number, 0, b"k", str(number).encode(), Kind.MESSAGE, f"s:{number}")
                await asyncio.sleep(0.05)
            await world.until(lambda: len(reported(world)) == 21)
            assert not world.of(Overfull)
            assert [offset for ticket, offset in reported(world).items() if ticket] == [None] * 20
            # As a client would, on resume: the same again, under the same ids, then something new
            broker.resume()
            for base in range(100, 600, 100):  # the broker may take a while to come to itself
                await asyncio.sleep(1.0)
                assert producer.replaced
                for number in range(1, 31):
                    producer.append(base + number, 0, b"k", str(number).encode(), Kind.MESSAGE, f"s:{number}")
                await world.until(lambda base=base: answered(world, base) == 30)
                if all(reported(world).get(base + number) is not None for number in range(1, 31)):
                    break
            else:
                pytest.fail("the broker takes nothing")
            await world.until(lambda: tailed(world)[-1:] and tailed(world)[-1].value == b"30")
            first = list(dict.fromkeys(record.id for record in tailed(world)))
            assert first == [f"s:{number}" for number in range(31)]

    broker.start()
    try:
        asyncio.run(story())
    finally:
        broker.stop()


def test_a_broker_that_dies_and_comes_back_costs_nothing_but_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    broker = LocalKafka(directory=tmp_path_factory.mktemp("kafka"))

    async def story() -> None:
        async with kafka(broker.address) as world:
            producer: LogProducer = world.start(LogProducer)
            ends: EndOffsets = world.start(EndOffsets)
            tail(world)

            async def publish() -> None:
                for number in range(400):
                    producer.append(number, number % 2, b"k", str(number).encode(), Kind.MESSAGE, f"s:{number}")
                    await asyncio.sleep(0.01)

            publishing = asyncio.create_task(publish())
            await world.until(lambda: len(reported(world)) >= 50)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            await publishing
            await world.until(lambda: len(reported(world)) == 400, 30)
            assert None not in reported(world).values()
            await world.until(lambda: len({record.id for record in tailed(world)}) == 400, 30)
            for partition in range(2):
                first = list(dict.fromkeys(int(record.value) for record in tailed(world) if record.partition == partition))
                assert first == list(range(partition, 400, 2))
            ends.ask(1, 0)
            await world.until(lambda: world.of(EndOffset))
            assert world.of(EndOffset)[0].offset is not None

    broker.start()
    try:
        asyncio.run(story())
    finally:
        broker.stop()


def test_after_a_fatal_error_a_new_producer_appends_again_in_order_before_anything_new(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers, CoreLimits(partition_budget_records=10_000)) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            for number in range(4_000):
                producer.append(number, number % 4, b"k", str(number).encode(), Kind.MESSAGE, f"s:{number}")
            producer._on_error(KafkaError(KafkaError._FATAL, "lost its state", fatal=True))
            await world.until(lambda: len(world.of(Reported)) == 4_000)
            producer.append(4_000, 0, b"k", b"4000", Kind.MESSAGE, "s:4000")
            await world.until(lambda: len(world.of(Reported)) + len(world.of(Overfull)) == 4_001)
            await world.until(lambda: producer.replaced == 1)
            assert None not in reported(world).values()
            await world.until(lambda: len({record.id for record in tailed(world)}) == 4_000 + len(world.of(Reported)) - 4_000)
            for partition in range(4):
                first = list(dict.fromkeys(int(record.value) for record in tailed(world) if record.partition == partition))
                assert first == sorted(first)

    asyncio.run(story())


def test_while_the_producer_is_being_replaced_records_are_refused_not_handed_over(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            producer._shut()
            producer.append(1, 0, b"k", b"v", Kind.MESSAGE, "s:1")
            await world.until(lambda: world.of(Overfull))
            assert world.of(Overfull) == [Overfull(1, "producer is being replaced")]

    asyncio.run(story())


def test_closing_answers_everything_and_ends_every_thread(kafka_brokers: str) -> None:
    async def story() -> None:
        before = set(threading.enumerate())
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            tail(world)
            world.start(EndOffsets)
            for number in range(1_000):
                producer.append(number, 0, b"k", b"v", Kind.MESSAGE, f"s:{number}")
            await producer.close()
            assert len(reported(world)) == 1_000
            assert None not in reported(world).values()
            producer.append(1_001, 0, b"k", b"v", Kind.MESSAGE, "s:1001")
        ours = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("tidegate")]
        assert ours == []

    asyncio.run(story())


def test_without_a_broker_publishes_wait_and_end_as_unknown_when_the_core_stops() -> None:
    async def story() -> None:
        config = KafkaConfig(brokers="127.0.0.1:1")
        stream = StreamInfo("abcdefgh", "tidegate.log", 4)
        world = Kafka(config, Topics(stream, stream, stream, stream, []), CoreLimits(publish_timeout_s=2.0, end_timeout_s=0.5))
        producer: LogProducer = world.start(LogProducer)
        ends: EndOffsets = world.start(EndOffsets)
        tail(world)
        producer.append(1, 0, b"k", b"v", Kind.MESSAGE, "s:1")
        ends.ask(1, 0)
        await world.until(lambda: world.of(Reported) and world.of(EndOffset))
        assert world.of(Reported) == [Reported(1, 0, None)]
        assert world.of(EndOffset) == [EndOffset(1, 0, None)]
        await world.close()

    asyncio.run(story())
