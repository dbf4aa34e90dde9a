"""The broker of `tidegate dev`: enough of Kafka for the parts that a core runs, and honest about the rest."""

from __future__ import annotations

import asyncio

from core.events import ConfigRead, ConfigWritten, EndOffset, Looked, Reported, Tailed
from core.kafka import ConfigLog, EmbeddedBroker, EndOffsets, KafkaConfig, LogProducer, Tail, prepare_topics
from core.kafka.topics import create_missing
from relay.model.message import Kind
from tests.support.kafka import kafka


def test_two_cores_share_it_agree_on_the_stream_and_read_each_other() -> None:
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)
    assert not config.capabilities.durable

    async def story() -> None:
        async with kafka("", config=config) as one, kafka("", config=config) as two:
            assert one.topics == two.topics
            assert one.log.partitions == 4
            producer: LogProducer = one.start(LogProducer)
            ends: EndOffsets = two.start(EndOffsets)
            two.start(Tail, [two.log])
            await two.until(lambda: len(two.of(Looked)) == 4)
            producer.append(1, 3, b"k", b"v", Kind.MESSAGE, "s:1")
            await one.until(lambda: one.of(Reported))
            assert one.of(Reported) == [Reported(1, 3, 0)]
            ends.ask(5, 3)
            await two.until(lambda: two.of(Tailed) and two.of(EndOffset))
            assert two.of(EndOffset) == [EndOffset(5, 3, 1)]
            assert two.of(Tailed)[0].records[0].id == "s:1"
            log: ConfigLog = one.start(ConfigLog, one.topics.config)
            await asyncio.wait_for(log.ready(), 10)
            log.write(1, "key", b"value")
            await one.until(lambda: one.of(ConfigWritten))
            assert one.of(ConfigRead) == [ConfigRead("key", b"value")]
            late = prepare_topics(config)
            assert late == one.topics

    asyncio.run(story())
    broker.stop()


def test_topics_of_rules_and_mappings_appear_when_asked_for() -> None:
    broker = EmbeddedBroker()
    create_missing(broker.start(), ["one", "two"])
    broker.stop()


def test_each_life_of_it_is_another_stream() -> None:
    streams = set()
    for _ in range(2):
        broker = EmbeddedBroker()
        streams.add(prepare_topics(KafkaConfig(brokers=broker.start(), embedded=True)).log.stream)
        broker.stop()
    assert len(streams) == 2
