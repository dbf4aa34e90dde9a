"""The broker of `tidegate dev`: enough of Kafka for the parts that a core runs, and honest about the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from core.events import ConfigRead, ConfigWritten, EndOffset, Looked, Reported, Tailed
from core.kafka import ConfigLog, EmbeddedBroker, EndOffsets, KafkaConfig, LogProducer, Tail, prepare_topics, read_state
from core.kafka.dead_letters import DeadLetters
from core.kafka.state_log import told
from core.kafka.topics import create_missing
from core.mappings import Failed, SourceRecord, Steering
from core.presence import PartitionPresence
from core.rules import Rule, RuleConfig
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind, Message, PresenceItem, RecordBody
from tests.kafka.test_mappings import log_of, logged, produce
from tests.kafka.test_mappings_that_run import mapping, runner, seek
from tests.kafka.test_rules import committed, numbers, publish, rule, until
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


def test_its_owner_runs_rules_and_keeps_state() -> None:
    """What one has written the next goes on from."""
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)
    create_missing(config.brokers, ["out"])
    key = log_key("app", "room")
    number = partition_of(key, 4)

    async def story() -> None:
        async with kafka("", config=config) as world:
            producer: LogProducer = world.start(LogProducer)
            rule = Rule("app", msgspec.convert({"id": "r", "target": {"routing_key": "out:key"}}, RuleConfig))

            async def until(done: Callable[[], object]) -> None:
                async with asyncio.timeout(30):
                    while not done():  # noqa: ASYNC110 - counters of a thread
                        await asyncio.sleep(0.02)

            owner = world.owner([rule])
            await until(lambda: owner.ready and len(owner.owned) == 4)
            said = RecordBody(id="c:0", timestamp=1, connection_id="c", messages=[Message(data="x")])
            here = RecordBody(id="c:1", timestamp=1, connection_id="c", presence=[PresenceItem(action=2, client_id="ann")], edge="boot")
            producer.append(1, number, key, msgspec.msgpack.encode(said), Kind.MESSAGE, "c:c:0")
            producer.append(2, number, key, msgspec.msgpack.encode(here), Kind.PRESENCE, "c:c:1")
            await until(lambda: owner.written.total() == 1 and owner.states == 2)
            await owner.close()
            second = world.owner([rule], core="core-2")
            await until(lambda: second.ready and len(second.owned) == 4)
            assert second.records == 0, "what the first one committed is not read again"
            producer.append(3, number, key, msgspec.msgpack.encode(said), Kind.MESSAGE, "c:c:2")
            await until(lambda: second.written.total() == 1)
            await second.close()
            assert (owner.failures, second.failures) == (0, 0)
            (found,) = [each for each in told(read_state(config, world.topics.state, world.log)) if each.partition == number]
            assert found.checkpoint == 3
            presence = PartitionPresence()
            presence.restore(found.records, 0.0)
            assert [member.client_id for member in presence.channels[key].after(0)] == ["ann"]

    asyncio.run(story())
    broker.stop()


def test_a_rule_without_its_topic_is_parked_and_catches_up_while_others_go_on() -> None:
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)
    create_missing(config.brokers, ["good"])

    async def story() -> None:
        async with kafka("", config=config) as world:
            owner = world.owner([rule("good", "good:#{channelName}"), rule("late", "late:#{channelName}")])
            await until(lambda: owner.ready and len(owner.owned) == 4)
            producer: LogProducer = world.start(LogProducer)
            published = 0

            async def publish_until(done: Callable[[], object]) -> None:
                nonlocal published
                async with asyncio.timeout(40):
                    while not done():
                        publish(world, producer, published, channel=f"chat:{published % 12}")
                        published += 1
                        await asyncio.sleep(0.005)

            await publish_until(lambda: owner.written["app/good"] > 200)
            (parked,) = owner.parked_rules()
            assert (parked["rule"], parked["reason"], parked["partitions"]) == ("app/late", "missing_topic", [0, 1, 2, 3])
            assert parked["behind"] > 100
            assert "app/late" not in owner.written
            await asyncio.to_thread(create_missing, config.brokers, ["late"])
            await publish_until(lambda: not owner.parked)
            back = owner.written["app/late"]
            await publish_until(lambda: owner.written["app/late"] > back + 20)
            await until(lambda: owner.written["app/late"] == owner.written["app/good"] == published)
            await owner.close()
            assert owner.failures == 0
            assert sorted(numbers(await asyncio.to_thread(committed, config.brokers, "late", 4))) == list(range(published))

    asyncio.run(story())
    broker.stop()


def test_its_mappings_are_held_and_moved() -> None:
    """Rows M7.2 and M7.3, as far as it goes."""
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)
    create_missing(config.brokers, ["in"])

    async def story() -> None:
        async with kafka("", config=config) as world:
            appends = log_of(world)
            made = mapping(world, topics=["in"])
            running = runner(world, appends, made)
            await until(lambda: len(running._parts) == 4)
            await asyncio.to_thread(produce, config.brokers, "in", 0, 100)
            await until(lambda: len(logged(world)) == 100)
            running.use(made, Steering(paused=True))
            await until(lambda: running.paused)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(produce, config.brokers, "in", 100, 50)
            running.use(made, seek(to="earliest", topics=["in"]))
            await until(lambda: len(logged(world)) == 250)
            await running.close()
            again = runner(world, appends, made, seek(to="earliest", topics=["in"]))
            await until(lambda: again.ready)
            await asyncio.sleep(0.5)
            await again.close()
            assert len({record.id for record in logged(world)}) == len(logged(world)) == 250
            assert running.failures == again.failures == 0

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


def test_how_large_a_dead_letter_may_be_is_for_its_topic_to_say() -> None:
    """Row M6.3: the driver's own limit, a million bytes, would hold up the partition for good."""
    broker = EmbeddedBroker()
    config = KafkaConfig(brokers=broker.start(), embedded=True)
    topics: Any = SimpleNamespace(faults=lambda _: {})
    written: list[int] = []
    troubles: list[str] = []
    letters = DeadLetters(config, "dead", "m", topics, troubles.append)
    letters.bury(SourceRecord("t", 0, 7, None, bytes(1_500_000), []), Failed("oversize", "too large"), lambda: written.append(7))
    until_s = time.monotonic() + 10.0
    while not written and time.monotonic() < until_s:
        letters.poll()
        time.sleep(0.02)
    letters.close()
    broker.stop()
    assert written == [7]
    assert troubles == []
