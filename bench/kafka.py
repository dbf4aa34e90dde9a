"""Both ways through Kafka: records that a mapping delivers to subscribers, publishes that are durable, records that a rule writes.

Each beside the same done with confluent-kafka alone and the same settings, in a process of its own, in turns:

* a mapping beside a relay: read the topic, append to another topic (`acks=all`, idempotent), read that;
* publishes beside a producer with as many of them un-acknowledged;
* a rule beside a transaction for every thousand records that are read, with the records and the position in it.

`python -m bench.kafka produce|relay|produce-alone|rule|transact ARGUMENTS` is one of these processes; it prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import confluent_kafka
import msgspec
import uvloop
from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.clients import CHANNEL, MESSAGE_BYTES
from bench.common import ROUNDS, Child, Figure, Server, broker, clients, cpu_s, product, report
from bench.tail import write_log
from core.kafka import KafkaConfig, OwnerRunner, Topics, prepare_topics
from core.kafka.consumer import open_consumer, read_batch
from core.rules import Rule, RuleConfig
from relay.model.limits import CoreLimits
from relay.runtime.shutdown import calm_collector

CHANNELS = 1_000
"""With one TLS subscriber each."""
RATE = 5_000.0
SECONDS = 8.0
RECORDS = round(RATE * SECONDS)
"""Of a turn of the mapping, at that rate and at once."""
PARTITIONS = 4
PUBLISHERS = 40
WINDOW = 25
"""Publishes of one publisher without acknowledgement."""
PUBLISHES = 500
"""Of one publisher in a turn: edges let a connection have that many a second."""
RULED = 100_000
"""Log records of a turn of the rule."""
BATCH = 1_000
ARRIVE_WITHIN_S = 60.0
SETTLE_S = 1.0
PRODUCER = {"enable_idempotence": True, "acks": "all"}

Found = dict[str, Any]


# --- processes of their own ----------------------------------------------------------------------------------------------------------


def produce(brokers: str, topic: str, rate: float, count: int) -> Found:
    """`count` records that begin with the time, in even distances, or all at once when `rate` is 0."""
    config = KafkaConfig(brokers=brokers)
    producer = confluent_kafka.Producer(
        config.client("bench", linger_ms=0 if rate else 5, queue_buffering_max_messages=count + 1, **PRODUCER)
    )
    producer.list_topics(topic, timeout=10)
    began, sent = time.perf_counter(), 0
    while sent < count:
        due = min(count, int((time.perf_counter() - began) * rate) + 1) if rate else count
        for n in range(sent, due):
            producer.produce(topic, f"{time.perf_counter():<24.9f}".ljust(MESSAGE_BYTES, "x"), str(n * 7919 % CHANNELS))
            if not rate and n % BATCH == 0:
                producer.poll(0)
        sent = due
        producer.poll(0)
        time.sleep(0.001)
    if producer.flush(ARRIVE_WITHIN_S):
        raise RuntimeError("Kafka does not take the records")
    return {"began": began, "seconds": time.perf_counter() - began}


def relay(brokers: str, topic: str, count: int) -> Iterator[Found]:
    """What a mapping does in Kafka and nothing else: read, append, read. Says `{}` when it is there, its figures at the end."""
    config = KafkaConfig(brokers=brokers)
    log = f"{topic}-relay-{uuid.uuid4().hex[:8]}"
    make_topic(brokers, log)
    source, tail = open_consumer(config, "bench"), open_consumer(config, "bench")
    producer = confluent_kafka.Producer(config.client("bench", linger_ms=0, queue_buffering_max_messages=count + 1, **PRODUCER))
    for consumer, name in ((source, topic), (tail, log)):
        ends = {n: consumer.get_watermark_offsets(TopicPartition(name, n), timeout=10)[1] for n in range(PARTITIONS)}
        consumer.assign([TopicPartition(name, n, end) for n, end in ends.items()])
        read_batch(consumer, 1, 1.0)
    over = threading.Event()

    def append() -> None:
        while not over.is_set():
            for record in read_batch(source, 500, 0.1):
                if record.error() is None:
                    producer.produce(log, record.value(), record.key(), on_delivery=lambda *_: None)
            producer.poll(0)

    thread = threading.Thread(target=append)
    thread.start()
    yield {}
    latencies: list[float] = []
    cpu = last = 0.0
    while len(latencies) < count:
        for record in read_batch(tail, 500, 0.1):
            if record.error() is None:
                if not latencies:
                    cpu = time.process_time()
                last = time.perf_counter()
                latencies.append(last - float((record.value() or b"")[:24]))
    cpu = time.process_time() - cpu
    over.set()
    thread.join()
    latencies.sort()
    yield {
        "us": 1e6 * cpu / count,
        "last": last,
        "p50": 1000 * latencies[count // 2],
        "p99": 1000 * latencies[count * 99 // 100],
    }
    producer.flush(1.0)
    source.close()
    tail.close()


def produce_alone(brokers: str, topic: str, count: int, window: int) -> Found:
    """`count` publishes, `window` of them un-acknowledged at most."""
    config = KafkaConfig(brokers=brokers)
    producer = confluent_kafka.Producer(config.client("bench", linger_ms=0, **PRODUCER))
    producer.list_topics(topic, timeout=10)
    acked = 0

    def delivered(error: object, _message: object) -> None:
        nonlocal acked
        acked += error is None

    value = "x" * MESSAGE_BYTES
    began, cpu = time.perf_counter(), time.process_time()
    for sent in range(count):
        while sent - acked >= window:
            producer.poll(0.01)
        producer.produce(topic, value, str(sent % PUBLISHERS), on_delivery=delivered)
        producer.poll(0)
    producer.flush(ARRIVE_WITHIN_S)
    seconds = time.perf_counter() - began
    return {"us": 1e6 * (time.process_time() - cpu) / acked, "per_s": acked / seconds}


def a_rule(topic: str) -> Rule:
    config = {"id": "bench", "source": {"type": "channel.message"}, "target": {"routing_key": f"{topic}:#{{channelName}}"}}
    return Rule("bench", msgspec.convert(config, RuleConfig))


async def rule(config: KafkaConfig, topics: Topics, rules: list[Rule], count: int) -> Found:
    """The owner of all partitions, until it has written `count` records. 0: until its positions are known, which is where rules begin."""
    calm_collector()
    owner = OwnerRunner(
        config,
        topics.log,
        topics.state,
        rules,
        core="bench",
        limits=CoreLimits(),
        loop=asyncio.get_running_loop(),
        deliver=lambda _: None,
    )
    owner.start()
    while not owner.ready:  # noqa: ASYNC110 (its thread knows no loop)
        await asyncio.sleep(0.05)
    label, found = "bench/bench", {}
    if count:
        while not (before := owner.written[label]):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        began, cpu = time.perf_counter(), time.process_time()
        while (written := owner.written[label]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        used, seconds = time.process_time() - cpu, time.perf_counter() - began
        found = {"us": 1e6 * used / (written - before), "per_s": (written - before) / seconds, "commits": owner.commits}
        if written != count or owner.dropped or owner.failures:
            raise RuntimeError(f"{written} records of {count}, {owner.failures} failures, dropped: {dict(owner.dropped)}")
    await owner.close()
    return found


def transact(config: KafkaConfig, topics: Topics, topic: str, count: int) -> Found:
    """The same records into `topic`, a thousand and their positions a transaction, with nothing made of them."""
    consumer = open_consumer(config, "bench", f"{config.prefix}-bench", isolation_level="read_committed")
    producer = confluent_kafka.Producer(
        config.client("bench", transactional_id=f"{config.prefix}-bench", linger_ms=1, queue_buffering_max_messages=2 * BATCH)
    )
    producer.init_transactions(10)
    consumer.assign([TopicPartition(topics.log.topic, n, OFFSET_BEGINNING) for n in range(topics.log.partitions)])
    cpu = began = 0.0
    written = 0
    while written < count:
        batch = [each for each in read_batch(consumer, BATCH, 0.1) if each.error() is None]
        if not batch:
            continue
        began, cpu = began or time.perf_counter(), cpu or time.process_time()
        producer.begin_transaction()
        positions = {}
        for record in batch:
            producer.produce(topic, record.value(), record.key(), headers=record.headers())
            positions[record.partition()] = record.offset() + 1
        offsets = [TopicPartition(topics.log.topic, n, at) for n, at in positions.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10)
        producer.commit_transaction(10)
        written += len(batch)
    found = {"us": 1e6 * (time.process_time() - cpu) / written, "per_s": written / (time.perf_counter() - began)}
    consumer.close()
    return found


def be(what: str, brokers: str, *arguments: str) -> Iterator[Found]:
    match what, *arguments:
        case "produce", topic, rate, count:
            yield produce(brokers, topic, float(rate), int(count))
        case "relay", topic, count:
            yield from relay(brokers, topic, int(count))
        case "produce-alone", topic, count, window:
            yield produce_alone(brokers, topic, int(count), int(window))
        case (("rule" | "transact"), prefix, topic, count):
            config = KafkaConfig(brokers=brokers, prefix=prefix)
            topics = prepare_topics(config)
            if what == "rule":
                yield uvloop.run(rule(config, topics, [a_rule(topic)], int(count)))
            else:
                yield transact(config, topics, topic, int(count))


# --- turns ---------------------------------------------------------------------------------------------------------------------------


def child(*arguments: object) -> Child:
    return Child([sys.executable, "-m", "bench.kafka", *map(str, arguments)])


def make_topic(brokers: str, topic: str, partitions: int = PARTITIONS) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    with contextlib.suppress(KafkaException):  # it is there
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(10)


def raw_turn(brokers: str, topic: str, rate: float) -> Found:
    with child("relay", brokers, topic, RECORDS) as raw:
        raw.read()
        with child("produce", brokers, topic, rate, RECORDS) as producing:
            began = producing.read()["began"]
        found = raw.read()
    return found | {"per_s": RECORDS / (found["last"] - began)}


def mapped_turn(server: Server, subscribers: Child, topic: str, rate: float) -> Found:
    subscribers.ask("watch")
    core, edge = cpu_s(server.core), cpu_s(server.edge)
    with child("produce", server.kafka, topic, rate, RECORDS) as producing:
        began = producing.read()["began"]
    until = time.monotonic() + ARRIVE_WITHIN_S
    while subscribers.ask("count")["messages"] < RECORDS and time.monotonic() < until:
        time.sleep(0.1)
    core, edge = cpu_s(server.core) - core, cpu_s(server.edge) - edge
    time.sleep(SETTLE_S)  # for one too many
    found = subscribers.ask("watched")
    if found["messages"] != RECORDS:
        raise RuntimeError(f"{found['messages']} deliveries where {RECORDS} were due")
    return found | {
        "core": 1e6 * core / RECORDS,
        "edge": 1e6 * edge / RECORDS,
        "us": 1e6 * (core + edge) / RECORDS,
        "per_s": RECORDS / (found["last"] - began),
    }


def publish_turn(server: Server) -> Found:
    with clients(server, "spread") as publishers:
        before = cpu_s(server.all)
        found = publishers.ask("flood", tokens=[server.token] * PUBLISHERS, count=PUBLISHES, window=WINDOW)
        cpu = cpu_s(server.all) - before
        publishers.ask("drop")
    published = found["published"]
    if published != PUBLISHERS * PUBLISHES:
        raise RuntimeError(f"{published} publishes were acknowledged of {PUBLISHERS * PUBLISHES}")
    return {"per_s": published / found["seconds"], "us": 1e6 * cpu / published}


def rule_turn(brokers: str) -> tuple[Found, Found]:
    """(raw, rule). What the rule has written is read again, and counted."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    ruled, copied = f"{prefix}-ruled", f"{prefix}-copied"
    for topic in (ruled, copied):
        make_topic(brokers, topic)
    with child("rule", brokers, prefix, ruled, 0) as first:
        first.read()
    write_log(brokers, prefix, RULED)
    with child("rule", brokers, prefix, ruled, RULED) as ours:
        found = ours.read()
    with child("transact", brokers, prefix, copied, RULED) as raw:
        beside = raw.read()
    if (once := committed(brokers, ruled)) != (RULED, RULED):
        raise RuntimeError(f"{once[0]} records of {once[1]} messages, where {RULED} were published")
    return beside, found


def committed(brokers: str, topic: str) -> tuple[int, int]:
    """How many committed records a topic has, and how many messages they are about."""
    consumer = open_consumer(KafkaConfig(brokers=brokers), "bench", isolation_level="read_committed", enable_partition_eof=True)
    consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(PARTITIONS)])
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    records, ended, seen = 0, 0, set()
    while ended < PARTITIONS:
        for record in read_batch(consumer, BATCH, 0.5):
            if record.error() is not None:
                ended += 1
                continue
            records += 1
            seen.add(decode(record.value() or b"")["messages"][0]["serial"])
    consumer.close()
    return records, len(seen)


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    if kafka is None:
        print("kafka: left out, the embedded broker keeps too little, and fences nobody")
        return True
    flows: dict[str, list[tuple[Found, Found]]] = {"rate": [], "once": []}
    publishes: list[tuple[Found, Found]] = []
    ruled: list[tuple[Found, Found]] = []
    with contextlib.ExitStack() as stack:
        brokers = stack.enter_context(broker(kafka))
        topic, alone = (f"bench-{name}-{uuid.uuid4().hex[:8]}" for name in ("orders", "alone"))
        for each in (topic, alone):
            make_topic(brokers, each)
        with product(brokers, "--mapping", f"{topic}={CHANNEL}:#{{key}}") as server, clients(server, "spread") as subscribers:
            subscribers.ask("connect", tokens=[server.token] * CHANNELS)
            for n in range(-1, rounds):  # the first turn warms up
                for name, rate in (("rate", RATE), ("once", 0.0)):
                    turn = raw_turn(brokers, alone, rate), mapped_turn(server, subscribers, topic, rate)
                    if n >= 0:
                        flows[name].append(turn)
                        say(f"mapping {'at 5,000 a second' if rate else 'at once'} {n + 1}/{rounds}", *turn)
            subscribers.ask("drop")
            for n in range(-1, rounds):
                with child("produce-alone", brokers, alone, PUBLISHERS * PUBLISHES, PUBLISHERS * WINDOW) as raw:
                    turn = raw.read(), publish_turn(server)
                if n >= 0:
                    publishes.append(turn)
                    say(f"publishes {n + 1}/{rounds}", *turn)
        for n in range(rounds):
            ruled.append(rule_turn(brokers))
            say(f"rule {n + 1}/{rounds}", *ruled[-1])
    return report("kafka", figures(flows, publishes, ruled), "raw confluent-kafka")


def say(what: str, raw: Found, found: Found) -> None:
    print(f"{what}: " + "; ".join(
        f"{name} " + ", ".join(f"{key} {value:.1f}" for key, value in each.items() if key not in ("messages", "last"))
        for name, each in (("raw", raw), ("Tidegate", found))
    ))  # fmt: skip


def figures(
    flows: dict[str, list[tuple[Found, Found]]], publishes: list[tuple[Found, Found]], ruled: list[tuple[Found, Found]]
) -> list[Figure]:
    def figure(name: str, unit: str, turns: list[tuple[Found, Found]], key: str, **options: Any) -> Figure:
        return Figure(name, unit, [raw[key] for raw, _ in turns], [found[key] for _, found in turns], **options)

    rate, once = flows["rate"], flows["once"]
    return [
        figure("Mapped, 5,000/s: CPU per record", "µs, core and edge", rate, "us"),
        figure("Mapped, 5,000/s: latency p50", "ms, produced to delivered", rate, "p50", difference=True),
        figure("Mapped, 5,000/s: latency p99", "ms, produced to delivered", rate, "p99", difference=True),
        figure("Mapped, all at once: CPU per record", "µs, core and edge", once, "us"),
        figure("Mapped, all at once", "records a second", once, "per_s", digits=0),
        figure("Durable publishes: CPU each", "µs, core and edge", publishes, "us"),
        figure("Durable publishes", "a second", publishes, "per_s", digits=0),
        figure("Rule, exactly once: CPU per record", "µs, the owner", ruled, "us"),
        figure("Rule, exactly once", "records a second", ruled, "per_s", digits=0),
    ]


if __name__ == "__main__":
    for told in be(*sys.argv[1:]):
        print(json.dumps(told), flush=True)
