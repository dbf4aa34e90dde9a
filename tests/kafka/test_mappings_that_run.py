"""Mappings that are changed, held and moved while they run, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from core.kafka import mapping_runner, read_state
from core.kafka.lanes import LogAppends
from core.kafka.mapping_runner import MappingRunner
from core.kafka.mapping_set import MappingSet
from core.kafka.records import UNKNOWN, headers_of, log_record
from core.kept import kept
from core.mappings import Mapping, MappingConfig, Schemas, Seek, Steering, Wanted
from relay.model.message import RecordBody
from tests.kafka.test_mappings import create, drained, firsts, log_of, logged, marks, message, produce, raw_log, until
from tests.support.core_process import Core, core_process
from tests.support.kafka import Kafka, a_config, kafka
from tests.support.raw_headers import produce_raw
from tidegate.kafka_local import free_port

pytestmark = pytest.mark.kafka


def mapping(world: Kafka, **fields: Any) -> Mapping:
    return Mapping(
        "app", msgspec.convert({"id": "m", "channel": "#{key}", "from": "earliest"} | fields, MappingConfig), prefix=world.config.prefix
    )


def runner(world: Kafka, appends: LogAppends, made: Mapping, steering: Steering | None = None) -> MappingRunner:
    loop = asyncio.get_running_loop()
    found = MappingRunner(world.config, made, appends, limits=world.limits, loop=loop, steering=steering)
    found.start()
    return found


def seek(number: int = 1, **fields: Any) -> Steering:
    return Steering(seeks=[msgspec.convert({"number": number, "at": 0} | fields, Seek)])


def counts(world: Kafka) -> Counter[str]:
    """How often each record was published, as readers of the log see it."""
    return Counter(str(message(record).data) for record in firsts(world))


def put(brokers: str, topic: str, *values: str, partition: int = 0, **more: Any) -> None:
    producer = Producer({"bootstrap.servers": brokers})
    for value in values:
        producer.produce(topic, value, b"k", partition, **more)
    assert producer.flush(10) == 0


def assert_once_each_in_order(world: Kafka) -> None:
    """In the log itself, whatever readers would leave out."""
    ids = [record.id for record in logged(world)]
    assert len(ids) == len(set(ids))


# --- changes -------------------------------------------------------------------------------------------------------------------------


def test_a_change_of_the_template_holds_for_what_is_read_from_then_on(kafka_brokers: str) -> None:
    """Row M7.1: nothing is lost or doubled, and the group does not notice."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 3)
            appends = log_of(world)
            running = runner(world, appends, mapping(world, topics=[topic], channel="old:#{key}"))
            await until(lambda: len(running._parts) == 3)
            parts = dict(running._parts)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 300)
            await until(lambda: len(logged(world)) == 300)
            running.use(mapping(world, topics=[topic], channel="new:#{key}"), Steering())
            await until(lambda: running._given is None)
            await asyncio.to_thread(produce, kafka_brokers, topic, 300, 300)
            await until(lambda: len(logged(world)) == 600)
            assert running._parts == parts
            await running.close()
            for record in logged(world):
                assert record.key.startswith(b"app:old:" if int(message(record).data) < 300 else b"app:new:")
            assert_once_each_in_order(world)
            committed, ends = await asyncio.to_thread(marks, world, running.group, topic)
            assert committed == ends

    asyncio.run(story())


def test_what_was_appended_before_a_change_is_not_appended_after_it(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows M6.1 and M7.1: a core dies with appends that are not committed, and the next one has another template."""
    monkeypatch.setattr(mapping_runner, "COMMIT_S", 3600.0)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 2)
            appends = log_of(world)
            first = runner(world, appends, mapping(world, topics=[topic], channel="old"))
            await until(lambda: first.ready)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 200)
            await until(lambda: len(logged(world)) == 200)
            with monkeypatch.context() as killed:
                killed.setattr(MappingRunner, "_settle", lambda self, places: None)
                await first.close()
            # Of another app, and of another mapping, with the same place: nobody takes it for theirs
            second = runner(world, appends, mapping(world, topics=[topic], channel="new"))
            other = MappingRunner(
                world.config,
                Mapping("else", mapping(world, topics=[topic]).config),
                appends,
                limits=world.limits,
                loop=asyncio.get_running_loop(),
            )
            other.start()
            await until(lambda: second.found == 200 and len(logged(world)) == 400)
            await asyncio.sleep(0.5)
            await second.close()
            await other.close()
            assert Counter(record.key.partition(b":")[0] for record in logged(world)) == {b"app": 200, b"else": 200}

    asyncio.run(story())


def test_topics_that_come_and_go_keep_their_positions(kafka_brokers: str) -> None:
    """Row M7.1: one that is added begins where `from` says, one that comes back where it was."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            one, two = create(world, "one", 1), create(world, "two", 1)
            appends = log_of(world)
            put(kafka_brokers, two, "before")

            def reading(*topics: str) -> Mapping:
                return mapping(world, topics=list(topics), **{"from": "latest"})

            running = runner(world, appends, reading(one))
            await until(lambda: running._parts)
            put(kafka_brokers, one, "1")
            await until(lambda: len(logged(world)) == 1)
            running.use(reading(one, two), Steering())
            await until(lambda: (two, 0) in running._parts)
            put(kafka_brokers, two, "2")
            await until(lambda: len(logged(world)) == 2)
            running.use(reading(two), Steering())
            await until(lambda: running._given is None)
            put(kafka_brokers, one, "3")
            put(kafka_brokers, two, "4")
            await until(lambda: len(logged(world)) == 3 and (one, 0) not in running._parts)
            running.use(reading(one, two), Steering())
            await until(lambda: len(logged(world)) == 4)
            await running.close()
            assert [message(record).data for record in logged(world)] == ["1", "2", "4", "3"]
            assert running.failures == 0

    asyncio.run(story())


def test_a_change_of_the_policy_lets_a_stopped_partition_go(kafka_brokers: str) -> None:
    """Rows M6.4 and M7.1: to a dead letter topic; and from one that takes nothing to leaving such records out."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic, dead = create(world, "in", 1), create(world, "dead", 1)
            appends = log_of(world)
            fields: dict[str, Any] = {"topics": [topic], "channel": "c:#{value.a}"}
            put(kafka_brokers, topic, "poison", '{"a":1}')
            running = runner(world, appends, mapping(world, **fields))
            await until(lambda: running.stopped)
            running.use(mapping(world, **fields, on_failed_record_mapping="dlq", dlq_topic=dead), Steering())
            await until(lambda: len(logged(world)) == 1)
            assert [letter.value() for letter in await asyncio.to_thread(drained, kafka_brokers, dead, 1)] == [b"poison"]
            absent = f"{world.config.prefix}-absent"
            running.use(mapping(world, **fields, on_failed_record_mapping="dlq", dlq_topic=absent), Steering())
            await until(lambda: running._given is None)
            put(kafka_brokers, topic, "poison", '{"a":2}')
            await until(lambda: len(logged(world)) == 2)
            await until(lambda: running.lag == 2)
            running.use(mapping(world, **fields, on_failed_record_mapping="skip"), Steering())
            await until(lambda: running.skipped.total() == 1 and running.lag == 0)
            await running.close()
            assert (await asyncio.to_thread(marks, world, running.group, topic, 1))[0] == [4]
            assert len(logged(world)) == 2
            assert running.failures == 0

    asyncio.run(story())


def test_a_header_whose_name_is_no_text_is_the_trouble_of_its_record(kafka_brokers: str) -> None:
    """Rows M4.3 and M4.6: the partition waits, others go on; then it is a dead letter. Values of headers may be any bytes."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic, dead = create(world, "in", 2), create(world, "dead", 1)
            appends = log_of(world)
            running = runner(world, appends, mapping(world, topics=[topic], channel="c:#{topic.partition}"))
            put(kafka_brokers, topic, "before")
            produce_raw(kafka_brokers, topic, 0, b"poison", [(b"fine", b"1"), (b"\xff\xfe", b"2"), (b"last", b"3")])
            produce_raw(kafka_brokers, topic, 0, b"after", [("näme".encode(), b"\xff")])
            put(kafka_brokers, topic, "beside", partition=1)
            await until(lambda: running.stopped and len(logged(world)) == 2)
            assert [(each.partition, each.offset, each.reason) for each in running.stopped] == [(0, 1, "undecodable")]
            running.use(mapping(world, topics=[topic], channel="c", on_failed_record_mapping="dlq", dlq_topic=dead), Steering())
            await until(lambda: len(logged(world)) == 3)
            (letter,) = await asyncio.to_thread(drained, kafka_brokers, dead, 1)
            headers = dict(letter.headers())
            assert (letter.key(), letter.value(), headers["tidegate.dlq.reason"]) == (b"k", b"poison", b"undecodable")
            assert {name.rpartition(".")[0] for name in headers} == {"tidegate.dlq"}
            await running.close()
            assert running.failures == 0
            assert {message(record).data for record in logged(world)} == {"before", "beside", "after"}
            (extras,) = [found.extras for record in logged(world) if (found := message(record)).data == "after"]
            assert extras is not None
            assert extras["headers"] == {"näme": "/w=="}

    asyncio.run(story())


def test_a_foreign_record_of_the_log_with_such_a_header_keeps_its_place(kafka_brokers: str) -> None:
    """Nobody is to write there. Who does all the same stops neither tails nor owners."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            produce_raw(kafka_brokers, world.log.topic, 0, b"x", [(b"\xff", b"1")])
            topic = create(world, "in", 1)
            running = runner(world, log_of(world), mapping(world, topics=[topic]))
            owner = world.owner()
            await until(lambda: owner.ready and len(owner.owned) == 4)
            put(kafka_brokers, topic, "one")
            await until(lambda: any(record.key == b"app:k" for record in logged(world)))
            await until(lambda: sum(each.committed or 0 for each in owner.partitions) >= 2)
            await running.close()
            await owner.close()
            assert (running.failures, owner.failures) == (0, 0)

    asyncio.run(story())


def test_such_a_header_is_noticed_also_where_the_interpreter_has_specialised_what_reads_it(kafka_brokers: str) -> None:
    """Touched, it would end the process."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 1)
            put(kafka_brokers, topic, *map(str, range(200)))
            for _ in range(2):
                produce_raw(kafka_brokers, topic, 0, b"poison", [(b"\xff", b"1")])
            consumer = Consumer({"bootstrap.servers": kafka_brokers, "group.id": "none"})
            consumer.assign([TopicPartition(topic, 0, 0)])
            read: list[Any] = []
            while len(read) < 202:
                read += await asyncio.to_thread(consumer.consume, 202, 1.0)
            found = [headers_of(each) for each in read[:100] + read[200:201]]
            kinds = [log_record(each, "s").kind for each in read[100:200] + read[201:]]
            consumer.close()
            assert (found, kinds) == ([[]] * 100 + [None], [UNKNOWN] * 101)

    asyncio.run(story())


# --- pause and resume ----------------------------------------------------------------------------------------------------------------


def test_a_mapping_that_is_held_reads_nothing_and_goes_on_where_it_was(kafka_brokers: str) -> None:
    """Row M7.2."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 3)
            appends = log_of(world)
            made = mapping(world, topics=[topic])
            running = runner(world, appends, made)
            await until(lambda: running._parts)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 100)
            await until(lambda: len(logged(world)) == 100)
            running.use(made, Steering(paused=True))
            await until(lambda: running.paused)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(produce, kafka_brokers, topic, 100, 200)
            await until(lambda: running.lag == 200)
            assert len(logged(world)) == 100
            await running.close()
            late = runner(world, appends, made, Steering(paused=True))  # the next core holds it too
            await until(lambda: late.lag == 200)
            await asyncio.sleep(0.5)
            assert (late.read, len(logged(world))) == (0, 100)
            late.use(made, Steering())
            await until(lambda: len(logged(world)) == 300)
            await late.close()
            assert set(counts(world).values()) == {1}
            assert_once_each_in_order(world)

    asyncio.run(story())


# --- seek ----------------------------------------------------------------------------------------------------------------------------


def test_a_seek_to_the_beginning_publishes_everything_again_once(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row M7.3: readers do not take it for duplicates, though it is the same minute; a core that dies on the way doubles nothing."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 3)
            appends = log_of(world)
            made = mapping(world, topics=[topic])
            first = runner(world, appends, made)
            await until(lambda: first._parts)
            await asyncio.to_thread(produce, kafka_brokers, topic, 0, 600)
            await until(lambda: len(logged(world)) == 600 and first.lag == 0)
            with monkeypatch.context() as killed:
                killed.setattr(mapping_runner, "COMMIT_S", 3600.0)
                killed.setattr(MappingRunner, "_settle", lambda self, places: None)
                steering = seek(to="earliest", topics=[topic])
                first.use(made, steering)
                await until(lambda: len(logged(world)) > 700)
                await first.close()
            second = runner(world, appends, made, steering)
            await until(lambda: len(logged(world)) >= 1_200)
            await until(lambda: second.lag == 0)
            assert second.seeks_due == 0
            await asyncio.to_thread(produce, kafka_brokers, topic, 600, 60)
            await until(lambda: len(logged(world)) >= 1_260)
            await second.close()
            third = runner(world, appends, made, steering)  # done is done
            await until(lambda: third.ready)
            await asyncio.sleep(0.5)
            await third.close()
            found = counts(world)
            assert {found[str(number)] for number in range(600)} == {2}
            assert {found[str(number)] for number in range(600, 660)} == {1}
            assert len(logged(world)) == 1_260
            assert_once_each_in_order(world)
            seen: dict[tuple[bytes, int], list[int]] = {}
            for record in logged(world):
                epoch = len(record.id.split(":")) - 5
                seen.setdefault((record.key, epoch), []).append(int(message(record).data))
            assert all(numbers == sorted(numbers) for numbers in seen.values())
            ids = {message(record).id for record in logged(world)}
            assert len(ids) == 660, "a message that comes again has the id that it had"

    asyncio.run(story())


@pytest.mark.parametrize("running", [True, False])
def test_seeks_to_the_end_a_time_and_an_offset(kafka_brokers: str, running: bool) -> None:
    """Row M7.3: on whichever core has the partition, now or when one runs again."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 4)
            appends = log_of(world)
            made = mapping(world, topics=[topic], channel="p#{topic.partition}")
            held = Steering(paused=True)
            cores = [runner(world, appends, made, held) for _ in range(2)]
            await until(lambda: all(len(core._parts) == 2 for core in cores))
            for partition in range(4):
                for number in range(6):
                    put(kafka_brokers, topic, f"{partition}.{number}", partition=partition, timestamp=1_000 + number)
            if not running:
                for core in cores:
                    await core.close()
            steering = Steering()
            for number, fields in enumerate(
                (
                    {"to": "earliest", "topics": [topic]},  # of all; for partition 0 this one counts
                    {"to": "latest", "topics": [topic], "partition": 1},
                    {"to": 1_004, "topics": [topic], "partition": 2},
                    {"offset": 5, "topics": [topic], "partition": 3},
                ),
                1,
            ):
                steering = steering.then(msgspec.convert({"number": number, "at": 0} | fields, Seek), 100)
            if running:
                for core in cores:
                    core.use(made, steering)
            else:
                cores = [runner(world, appends, made, steering)]
            wanted = [*(f"0.{number}" for number in range(6)), "2.4", "2.5", "3.5"]
            await until(lambda: len(logged(world)) >= len(wanted) and not any(core.seeks_due for core in cores))
            put(kafka_brokers, topic, "1.new", partition=1)
            await until(lambda: len(logged(world)) > len(wanted))
            await asyncio.sleep(0.5)
            assert sorted(counts(world)) == sorted([*wanted, "1.new"])
            assert_once_each_in_order(world)
            for core in cores:
                await core.close()

    asyncio.run(story())


def test_an_offset_beyond_the_end_is_the_end_and_a_stopped_partition_can_be_moved_on(kafka_brokers: str) -> None:
    """Rows M6.4 and M7.3."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "in", 1)
            appends = log_of(world)
            made = mapping(world, topics=[topic], channel="c:#{value.a}")
            put(kafka_brokers, topic, "poison", '{"a":1}', '{"a":2}')
            running = runner(world, appends, made)
            await until(lambda: running.stopped)
            running.use(made, seek(offset=1, topics=[topic], partition=0))
            await until(lambda: len(logged(world)) == 2)
            assert not running.stopped
            running.use(made, seek(2, offset=1_000, topics=[topic], partition=0))
            await until(lambda: running.seeks_due == 0)
            put(kafka_brokers, topic, '{"a":3}')
            await until(lambda: len(logged(world)) == 3)
            await running.close()
            assert sorted(record.key for record in logged(world)) == [b"app:c:1", b"app:c:2", b"app:c:3"]

    asyncio.run(story())


# --- initial state -------------------------------------------------------------------------------------------------------------------


def test_the_last_message_of_each_channel_is_in_the_state(kafka_brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row M1.13: of a compacted topic, as any core that starts later reads it; without those whose last record is a tombstone."""
    monkeypatch.setattr("core.kept.QUIET_MS", 200)

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topic = create(world, "prices", 3)
            appends = log_of(world)
            producer = Producer({"bootstrap.servers": kafka_brokers})
            for number in range(200):
                producer.produce(topic, str(number), f"k{number % 20}")
            producer.produce(topic, None, "k7")
            assert producer.flush(10) == 0
            world.owner()
            running = runner(world, appends, mapping(world, topics=[topic], channel="price:#{key}", keep_last=True))
            await until(lambda: len(logged(world)) == 201)

            def held() -> dict[bytes, str]:
                found = read_state(world.config, world.topics.state, world.log)
                ones = {key: one for partition in found.values() for key, one in kept(partition.records).items()}
                bodies = {key: msgspec.msgpack.decode(one.value, type=RecordBody) for key, one in ones.items()}
                return {key: str(body.messages[0].data) for key, body in bodies.items()}

            wanted = {f"app:price:k{number}".encode(): str(180 + number) for number in range(20) if number != 7}
            end = time.monotonic() + 10
            while await asyncio.to_thread(held) != wanted:
                assert time.monotonic() < end
                await asyncio.sleep(0.2)
            put(kafka_brokers, topic, "new")  # of the key k
            while b"app:price:k" not in await asyncio.to_thread(held):
                assert time.monotonic() < end
                await asyncio.sleep(0.2)
            await running.close()

    asyncio.run(story())


# --- the set of a core, and cores --------------------------------------------------------------------------------------------------------


def test_a_core_starts_and_ends_what_is_wanted(kafka_brokers: str) -> None:
    """Row M7.1: also when a mapping is wanted again while it ends."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            one, two = create(world, "one", 1), create(world, "two", 1)
            appends = log_of(world)

            async def no_schemas() -> Schemas:
                raise AssertionError

            mappings = MappingSet(world.config, appends, limits=world.limits, loop=asyncio.get_running_loop(), schemas=no_schemas)
            assert not mappings.ready
            first, second = Wanted(mapping(world, topics=[one])), Wanted(mapping(world, id="n", topics=[two]))
            mappings.want([first])
            await until(lambda: mappings.ready)
            (running,) = mappings
            mappings.want([first, second])
            assert mappings.ready, "what comes later makes no core unready"
            put(kafka_brokers, one, "1")
            put(kafka_brokers, two, "2")
            await until(lambda: len(logged(world)) == 2)
            assert [each["id"] for each in mappings.status()] == ["m", "n"]
            assert next(iter(mappings)) is running
            mappings.want([second])
            mappings.want([second, first])
            assert len(list(mappings)) == 1, "it ends first"
            put(kafka_brokers, one, "3")
            await until(lambda: len(logged(world)) == 3)
            mappings.want([])
            await until(lambda: running.closing.is_set() and not list(mappings))
            await mappings.close()
            put(kafka_brokers, one, "4")
            assert (await asyncio.to_thread(marks, world, running.group, one, 1)) == ([2], [3])

    asyncio.run(story())


SCOPES = ["reader", "operator", "security", "secrets"]


class Operator:
    """Someone with a token, at any core."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def ask(self, core: Core, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer first.{self._secret}", "content-type": "application/json"}
        data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{core.admin}/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if content else None


def within(seconds: float, done: Callable[[], object]) -> float:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_what_is_said_to_one_core_holds_on_all_within_two_seconds(tmp_path: Path, kafka_brokers: str) -> None:
    """Rows M7.1, M7.2 and M7.3, with two cores as processes and no restart: made, changed, held, moved, let go, deleted."""
    config = a_config(kafka_brokers)
    topic = f"{config.prefix}-in"
    admin_client = AdminClient({"bootstrap.servers": kafka_brokers})
    admin_client.create_topics([NewTopic(topic, 4)])[topic].result(10)
    operator = Operator("s" * 40)
    for file, content in (("token", "s" * 40), ("ring", "ab" * 32)):
        (tmp_path / file).write_text(content)
        (tmp_path / file).chmod(0o600)
    with contextlib.ExitStack() as stack:
        cores = []
        for name in ("core-1", "core-2"):
            (tmp_path / name).mkdir()
            admin = free_port()
            settings: dict[str, Any] = {
                "kafka": {"brokers": kafka_brokers, "prefix": config.prefix, "partitions": 4},
                "keyring": [{"id": "one", "secret_file": str(tmp_path / "ring")}],
                "admin": {"port": admin, "tokens": [{"id": "first", "secret_file": str(tmp_path / "token"), "scopes": SCOPES}]},
            }
            core = stack.enter_context(core_process(tmp_path / name, kafka_brokers, node=name, **settings))
            core.admin = admin
            cores.append(core)
        one, two = cores
        for core in cores:
            core.until(lambda core=core: core.answers("/readyz") == 200)  # type: ignore[misc]

        def runs(core: Core) -> dict[str, Any]:
            return {each["id"]: each for each in operator.ask(core, "GET", "/status")["mappings"]}

        app = operator.ask(one, "POST", "/accounts/tidegate/apps", {"name": "shop"})["id"]
        path = f"/apps/{app}/mappings"
        took: dict[str, float] = {}
        made = operator.ask(one, "POST", path, {"topics": [topic], "channel": "old:#{key}", "from": "earliest"})
        name = made["id"]
        assert made["running"] is True
        took["made"] = within(2, lambda: all(name in runs(core) for core in cores))
        within(10, lambda: [runs(core)[name]["partitions"] for core in cores] == [2, 2])

        def published() -> dict[bytes, int]:
            return {key: len(ids) for key, ids in raw_log(config, 4).items()}

        produce(kafka_brokers, topic, 0, 100, 10)
        within(10, lambda: sum(published().values()) == 100)
        operator.ask(two, "POST", f"{path}/{name}/pause")
        took["held"] = within(2, lambda: all(runs(core)[name]["paused"] for core in cores))
        operator.ask(one, "PATCH", f"{path}/{name}", {"channel": "new:#{key}"})
        took["changed"] = within(2, lambda: all(operator.ask(core, "GET", f"{path}/{name}")["running"] for core in cores))
        produce(kafka_brokers, topic, 100, 100, 10)
        time.sleep(1)
        assert sum(published().values()) == 100
        operator.ask(two, "POST", f"{path}/{name}/seek", {"to": "earliest"})
        within(5, lambda: sum(runs(core)[name]["lag"] for core in cores) == 200)
        operator.ask(two, "POST", f"{path}/{name}/resume")
        within(10, lambda: sum(published().values()) == 300)
        assert {key: count for key, count in published().items() if b":new:" in key}.keys() == {
            f"{app}:new:key{number}".encode() for number in range(10)
        }
        operator.ask(one, "DELETE", f"{path}/{name}")
        took["deleted"] = within(2, lambda: not any(name in runs(core) for core in cores))
        produce(kafka_brokers, topic, 200, 10, 10)
        time.sleep(1)
        assert sum(published().values()) == 300
        actions = [entry["action"] for entry in operator.ask(two, "GET", f"/audit?app={app}&action=mapping.")]
        assert actions == [f"mapping.{what}" for what in ("delete", "resume", "seek", "change", "pause", "create")]
        print({what: f"{1000 * seconds:.0f} ms" for what, seconds in took.items()})
