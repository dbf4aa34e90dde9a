"""`tidegate.sessions`: the table of connections, shared by cores."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from core.events import EndOffset, SessionRead, SessionWritten
from core.kafka import EmbeddedBroker, KafkaConfig, SessionsLog
from relay.model.limits import CoreLimits
from tests.support.kafka import Kafka, kafka

pytestmark = pytest.mark.kafka


async def writes_and_reads(world: Kafka, other: Kafka) -> None:
    one: SessionsLog = world.start(SessionsLog, world.topics.sessions)
    two: SessionsLog = other.start(SessionsLog, other.topics.sessions)
    await one.ready()
    one.write(1, "connection:a", b"one")
    one.write(2, "connection:a", None)
    await world.until(lambda: len(world.of(SessionWritten)) == 2)
    two.ask_end(7)
    await other.until(lambda: other.of(EndOffset))
    read = [SessionRead("connection:a", b"one"), SessionRead("connection:a", None)]
    assert other.events[:2] == read, "before the barrier"
    assert other.of(EndOffset)[0].partition == -2
    assert world.of(SessionRead) == read
    assert world.of(SessionWritten) == [SessionWritten(1, ok=True), SessionWritten(2, ok=True)]
    two.write(1, "connection:b", b"two")
    await world.until(lambda: SessionRead("connection:b", b"two") in world.events)


def test_what_one_core_writes_another_has_read_at_the_barrier(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world, kafka(kafka_brokers, config=world.config) as other:
            await writes_and_reads(world, other)
            resource = ConfigResource(ConfigResource.Type.TOPIC, world.topics.sessions.topic)
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            found = admin.describe_configs([resource])[resource].result(10)
            assert (found["cleanup.policy"].value, found["segment.ms"].value) == ("compact", "3600000")

    asyncio.run(story())


def test_the_same_on_the_embedded_broker() -> None:
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)

    async def story() -> None:
        async with kafka("", config=config) as world, kafka("", config=config) as other:
            await writes_and_reads(world, other)

    try:
        asyncio.run(story())
    finally:
        broker.stop()


def test_more_writes_than_may_be_under_way_fail_at_once(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers, CoreLimits(session_writes=1)) as world:
            log: SessionsLog = world.start(SessionsLog, world.topics.sessions)
            log.write(1, "connection:a", b"one")
            log.write(2, "connection:b", b"two")
            await world.until(lambda: len(world.of(SessionWritten)) == 2)
            assert SessionWritten(2, ok=False) in world.events
            assert SessionWritten(1, ok=True) in world.events

    asyncio.run(story())
