"""`tidegate.config`: read from its beginning, in one order, with a barrier and read-back."""

from __future__ import annotations

import asyncio

import pytest

from core.events import ConfigRead, ConfigWritten, EndOffset
from core.kafka import ConfigLog, KafkaConfig, StreamInfo, TopicMisconfigured, Topics
from relay.model.limits import CoreLimits
from tests.support.kafka import Kafka, kafka

pytestmark = pytest.mark.kafka


def test_a_write_is_answered_after_it_has_been_read_back(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            log: ConfigLog = world.start(ConfigLog, world.topics.config)
            await log.ready()
            log.write(1, "app:a", b"one")
            log.write(2, "app:a", None)
            await world.until(lambda: len(world.of(ConfigWritten)) == 2)
            events = world.events
            assert world.of(ConfigRead) == [ConfigRead("app:a", b"one"), ConfigRead("app:a", None)]
            assert world.of(ConfigWritten) == [ConfigWritten(1, ok=True), ConfigWritten(2, ok=True)]
            assert events.index(ConfigRead("app:a", None)) < events.index(ConfigWritten(2, ok=True))

    asyncio.run(story())


def test_a_second_core_is_ready_when_it_has_read_all_that_was_there(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            first: ConfigLog = world.start(ConfigLog, world.topics.config)
            for number in range(200):
                first.write(number, f"key:{number}", b"%d" % number)
            await world.until(lambda: len(world.of(ConfigWritten)) == 200)
            async with kafka(kafka_brokers, config=world.config) as other:
                second: ConfigLog = other.start(ConfigLog, other.topics.config)
                await asyncio.wait_for(second.ready(), 10)
                assert other.events == [ConfigRead(f"key:{number}", b"%d" % number) for number in range(200)]

    asyncio.run(story())


def test_the_barrier_is_answered_when_everything_written_before_it_anywhere_has_been_delivered(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world, kafka(kafka_brokers, config=world.config) as other:
            writer: ConfigLog = world.start(ConfigLog, world.topics.config)
            reader: ConfigLog = other.start(ConfigLog, other.topics.config)
            for turn in range(20):
                writer.write(turn, f"key:{turn}", b"v")
                await world.until(lambda turn=turn: len(world.of(ConfigWritten)) == turn + 1)
                reader.ask_end(turn)
                await other.until(lambda turn=turn: len(other.of(EndOffset)) == turn + 1)
                assert ConfigRead(f"key:{turn}", b"v") in other.events
            assert {answer.partition for answer in other.of(EndOffset)} == {-1}

    asyncio.run(story())


def test_a_stream_keeps_the_partition_count_it_began_with(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            log: ConfigLog = world.start(ConfigLog, world.topics.config)
            await log.ready()
            await log.claim_stream(world.topics.log)
            await log.claim_stream(world.topics.log)
            assert not world.of(ConfigWritten), "nobody else asked for it"
            async with kafka(kafka_brokers, config=world.config) as other:
                again: ConfigLog = other.start(ConfigLog, other.topics.config)
                await again.ready()
                await again.claim_stream(other.topics.log)
                with pytest.raises(TopicMisconfigured, match="partition count is 9, but it must be 4 as when the topic was first used"):
                    await again.claim_stream(other.topics.log._replace(partitions=9))
            assert len(world.of(ConfigRead)) == 1

    asyncio.run(story())


def test_without_a_broker_barriers_and_writes_fail_and_closing_answers_the_rest() -> None:
    async def story() -> None:
        stream = StreamInfo("abcdefgh", "tidegate.config", 1)
        limits = CoreLimits(end_timeout_s=0.5, config_writes=1)
        world = Kafka(KafkaConfig(brokers="127.0.0.1:1"), Topics(stream, stream, stream, stream, []), limits)
        log: ConfigLog = world.start(ConfigLog, stream)
        log.ask_end(1)
        log.write(1, "key", b"v")
        log.write(2, "key", b"one too many")
        await world.until(lambda: world.of(EndOffset) and world.of(ConfigWritten))
        assert world.of(EndOffset) == [EndOffset(1, -1, None)]
        assert world.of(ConfigWritten) == [ConfigWritten(2, ok=False)]
        await world.close()
        assert world.of(ConfigWritten)[1:] == [ConfigWritten(1, ok=False)]

    asyncio.run(story())
