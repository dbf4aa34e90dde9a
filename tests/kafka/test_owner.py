"""Owners on a real broker: each partition has one at a time, whatever is closed, killed or frozen; nothing is written twice, and what the
state says is what the log adds up to."""

from __future__ import annotations

import asyncio
import signal
import time

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from core import state
from core.events import Looked, Owned, Tailed
from core.kafka import LogProducer, OwnerRunner, Tail, prepare_topics, read_state
from core.kafka import tail as tail_module
from core.kafka.state_log import told
from core.log import LogRecord
from core.ownership import PartitionState
from core.presence import PartitionPresence
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind, PresenceAction, PresenceItem, RecordBody
from tests.kafka.test_rules import committed, create, numbers, publish, rule, until
from tests.support.kafka import Kafka, delete_topic, kafka
from tests.support.owner_process import owner_process

pytestmark = pytest.mark.kafka

LOBBY = log_key("app", "chat:lobby")


def enter(world: Kafka, producer: LogProducer, number: int, client: str, action: PresenceAction = PresenceAction.ENTER) -> None:
    """A presence record of connection `conn`, on channel chat:lobby."""
    item = PresenceItem(action=action, client_id=client, data=f"data of {client}")
    body = RecordBody(id=f"conn:{number}", timestamp=1000, connection_id="conn", presence=[item], incarnation=1, edge="edge-boot")
    value = msgspec.msgpack.encode(body)
    producer.append(number, partition_of(LOBBY, world.log.partitions), LOBBY, value, Kind.PRESENCE, f"c:conn:{number}")


async def the_state(world: Kafka) -> dict[int, PartitionState]:
    return await asyncio.to_thread(read_state, world.config, world.topics.state, world.topics.log)


def members(found: dict[int, PartitionState]) -> set[str]:
    parts = [state.decode(key, value) for partition in found.values() for key, value in partition.records.items()]
    return {each[0][3] for each in parts if each is not None and each[0][0] == "member"}


async def settled(*owners: OwnerRunner) -> None:
    """Every partition has one of them, and each is ready."""
    await until(lambda: all(owner.ready for owner in owners) and sum(len(owner.owned) for owner in owners) == 4)


def test_the_state_outlives_its_owner(kafka_brokers: str) -> None:
    """Members entered under one owner are known to the next, which goes on where the first ended; a core that starts has the same."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            first = world.owner()
            await settled(first)
            await world.until(lambda: world.of(Owned))
            assert world.of(Owned)[-1].partitions == frozenset(range(4))
            for number, client in enumerate(("ann", "bob", "cid")):
                enter(world, producer, number, client)
            await until(lambda: first.states >= 4)  # three members and their connection
            assert members(await the_state(world)) == {"ann", "bob", "cid"}
            enter(world, producer, 3, "bob", PresenceAction.LEAVE)
            await until(lambda: not producer.unreported)
            asked = time.monotonic()
            await first.close()
            assert time.monotonic() - asked < 3
            second = world.owner(core="core-2")
            await settled(second)
            assert second.records <= 1, "what the first one committed is not read again"
            enter(world, producer, 4, "ann", PresenceAction.LEAVE)
            enter(world, producer, 2, "cid")  # a repetition, within the look-back
            await until(lambda: second.duplicates == 1)
            await second.close()
            found = await the_state(world)
            assert members(found) == {"cid"}, "a leave is only written by who knew the member"
            number = partition_of(LOBBY, 4)
            (told_of,) = [each for each in told(found) if each.partition == number]
            assert told_of.checkpoint == 6
            checkpoint = found[number].checkpoint
            assert checkpoint is not None
            assert (checkpoint.core, checkpoint.stream, checkpoint.quiet_from) == ("core-2", world.log.stream, 0)
            assert abs(checkpoint.time - time.time() * 1000) < 60_000
            presence = PartitionPresence()
            presence.restore(told_of.records, 0.0)
            assert [member.client_id for member in presence.channels[LOBBY].after(0)] == ["cid"]

    asyncio.run(story())


def test_presence_of_a_log_without_state_is_folded_from_its_beginning_and_rules_begin_now(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out = create(world, "out", 1)
            producer: LogProducer = world.start(LogProducer)
            enter(world, producer, 0, "ann")
            publish(world, producer, 1)
            await until(lambda: not producer.unreported)
            assert all(each.checkpoint is None for each in (await the_state(world)).values())
            owner = world.owner([rule("r", out)])
            await settled(owner)
            assert members(await the_state(world)) == {"ann"}
            publish(world, producer, 2)
            await until(lambda: owner.written.total() == 1)
            await owner.close()
            assert numbers(await asyncio.to_thread(committed, kafka_brokers, out, 1)) == [2]

    asyncio.run(story())


def test_what_retention_took_before_its_owner_is_said_and_a_log_made_anew_voids_the_state(kafka_brokers: str) -> None:
    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            admin = AdminClient({"bootstrap.servers": kafka_brokers})
            number = partition_of(LOBBY, 4)
            first = world.owner()
            await settled(first)
            enter(world, producer, 0, "ann")
            await until(lambda: first.states >= 2)
            await first.close()
            for each in range(1, 11):
                publish(world, producer, each)
            await until(lambda: not producer.unreported)
            for done in admin.delete_records([TopicPartition(world.log.topic, number, 8)]).values():
                done.result(10)
            second = world.owner()
            await settled(second)
            await until(lambda: second.records == 3)
            assert second.lost == 7
            await second.close()
            assert members(await the_state(world)) == {"ann"}

            await asyncio.to_thread(delete_topic, kafka_brokers, world.log.topic)
            world.topics = await asyncio.to_thread(prepare_topics, world.config)
            assert told(await the_state(world))[number].checkpoint is None
            third = world.owner()
            await settled(third)
            await third.close()
            found = await the_state(world)
            assert all(each.checkpoint is not None and each.checkpoint.offset == 0 for each in found.values())
            assert members(found) == set()

    asyncio.run(story())


def test_a_tail_begins_where_the_checkpoint_needs_it(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a checkpoint at the beginning; with an old one a look-back before it; with a recent one where the look-back begins."""
    monkeypatch.setattr(tail_module, "LOOK_BACK_S", 0.0)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            producer: LogProducer = world.start(LogProducer)
            for each in range(10):
                producer.append(each, 1, b"k", b"v", Kind.MESSAGE, f"s:{each}")
                await until(lambda: not producer.unreported)
            everything = world.start(Tail, [world.log])
            await world.until(lambda: len(world.of(Looked)) == 4)
            await everything.close()
            assert [(looked.start, looked.position) for looked in world.of(Looked) if looked.partition == 1] == [(10, 10)]
            times = await asyncio.to_thread(_times, world)
            checkpoint = state.Checkpoint(stream=world.log.stream, offset=5, time=times[4])
            expected = {None: 0, checkpoint: times.index(times[4])}
            for given, start in expected.items():
                world.events.clear()
                tail = world.start(Tail, [world.log], checkpoints={(world.log.topic, number): given for number in range(4)})
                await world.until(lambda: len(world.of(Looked)) == 4)
                await tail.close()
                assert [looked.start for looked in world.of(Looked) if looked.partition == 1] == [start]
                records: list[LogRecord] = [record for batch in world.of(Tailed) for record in batch.records]
                assert [record.offset for record in records] == list(range(start, 10))

    asyncio.run(story())


def _times(world: Kafka) -> list[int]:
    return [message.timestamp()[1] for message in committed(world.config.brokers, world.log.topic, 4)]


def test_exactly_once_while_owners_are_closed_killed_and_frozen(kafka_brokers: str) -> None:
    """3,000 publishes on 40 channels. Two owners share the partitions; then one is closed, a third is killed with SIGKILL within a
    transaction, a fourth frozen within one until others have taken over, and woken: its transaction is refused, and it joins again."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            out = create(world, "out")
            producer: LogProducer = world.start(LogProducer)
            routing = f"{out}:#{{channelName}}"
            rules = [rule("r", routing)]
            fields = [{"id": "r", "target": {"routing_key": routing}}]
            published = 0
            go_on = True

            async def publishing() -> None:
                nonlocal published
                while go_on:
                    publish(world, producer, published, channel=f"chat:{published % 40}")
                    published += 1
                    await asyncio.sleep(0.01)

            first = world.owner(rules)
            await settled(first)
            task = asyncio.create_task(publishing())

            # Another one joins, and has its share.
            second = world.owner(rules, core="core-2")
            await until(lambda: len(first.owned) == len(second.owned) == 2)
            await until(lambda: second.written.total() > 30)

            # One is closed: the other takes over at once.
            asked = time.monotonic()
            await second.close()
            await settled(first)
            assert time.monotonic() - asked < 5

            # One is killed, within a transaction that it leaves open: taken over within 10 s.
            with owner_process(world, "core-3", fields, freeze_at=30) as killed:
                await killed.until(lambda: killed.stopped)
                asked = time.monotonic()
                killed.signal(signal.SIGKILL)
                await until(lambda: len(first.owned) == 4)
                print("taken over within", time.monotonic() - asked)
                await caught_up(first)
                assert time.monotonic() - asked < 10.0
            assert first.refused == 0
            assert first.failures == 0

            # One is frozen within a transaction, and wakes up when others have gone on.
            with owner_process(world, "core-4", fields, freeze_at=30) as zombie:
                await zombie.until(lambda: zombie.stopped)
                await until(lambda: len(first.owned) == 4)
                await caught_up(first)
                zombie.signal(signal.SIGCONT)
                await zombie.until(lambda: zombie.last["refused"] == 1)
                (line,) = [line for line in zombie.errors if "transaction refused: another core owns these partitions" in line]
                assert "records for topics" in line
                await zombie.until(lambda: zombie.last["owned"])  # it has joined again, and does its share
                written = zombie.last["written"]
                await zombie.until(lambda: zombie.last["written"] > written)
                await until(lambda: len(first.owned) == 2)
                zombie.signal(signal.SIGTERM)
                await asyncio.to_thread(zombie.process.wait, 15)
            await settled(first)
            go_on = False
            await task
            await until(lambda: not producer.unreported)
            async with asyncio.timeout(30):
                while len(await asyncio.to_thread(committed, kafka_brokers, out)) < published:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            await first.close()
            found = await asyncio.to_thread(committed, kafka_brokers, out)
            assert sorted(numbers(found)) == list(range(published))
            by_key: dict[bytes, list[int]] = {}
            for message, number in zip(found, numbers(found), strict=True):
                by_key.setdefault(message.key(), []).append(number)
            assert all(each == sorted(each) for each in by_key.values()), "the order of a channel holds"

    asyncio.run(story())


async def caught_up(owner: OwnerRunner) -> None:
    """It writes what is published now."""
    before = owner.written.total()
    await until(lambda: owner.written.total() > before + 10)
