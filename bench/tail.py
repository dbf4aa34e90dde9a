"""What a record of the log costs a core that nobody asks anything: read by the tail, judged by the fold, put into the index.

Each turn writes a log of its own with the settings of the product and reads it from its beginning, once by a bare consumer that throws
everything away and once by the parts of a core: its tail, its node and its index on disk, joined as the process joins them.

`python -m bench.tail floor|core BROKERS PREFIX` is one reader, in a process of its own; it prints its figures as JSON when it has read all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import confluent_kafka
import msgspec
import uvloop
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from bench.common import ROUNDS, Child, Figure, broker, report
from core.effects import Effect
from core.events import Event, Looked, Tick
from core.io.index import RocksIndex
from core.kafka import KafkaConfig, Tail, Topics, prepare_topics
from core.kafka.consumer import open_consumer, read_batch
from core.kafka.records import headers
from core.node import CoreNode
from core.registry import Registry, Streams
from relay.link.frames import Stream
from relay.model.channel import log_key, partition_of
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody
from relay.runtime.driver import Driver
from relay.runtime.shutdown import calm_collector

RECORDS = 200_000
CHANNELS = 1_000
MESSAGE_BYTES = 120
TARGET_US = 8.0
BATCH = 512
READ_WITHIN_S = 120.0


def write_log(brokers: str, prefix: str, records: int = RECORDS) -> None:
    """Publishes of many connections on many channels, as the producer of a core hands them over."""
    config = KafkaConfig(brokers=brokers, prefix=prefix)
    log = prepare_topics(config).log
    producer = confluent_kafka.Producer(
        config.client("bench", enable_idempotence=True, acks="all", linger_ms=5, queue_buffering_max_messages=records + 1)
    )
    encode = msgspec.msgpack.Encoder().encode
    keys = [log_key("bench", f"room:{n}") for n in range(CHANNELS)]
    for n in range(records):
        key = keys[n * 7919 % CHANNELS]
        connection = f"c{n % 997:09d}"
        body = RecordBody(
            id=f"{connection}:{n}",
            timestamp=time.time_ns() // 1_000_000,
            connection_id=connection,
            messages=[Message(data="x" * MESSAGE_BYTES)],
        )
        producer.produce(
            log.topic,
            encode(body),
            key,
            partition_of(key, log.partitions),
            headers=headers(int(Kind.MESSAGE), f"c:{connection}:{n}"),
        )
        if n % 1_000 == 0:
            producer.poll(0)
    if producer.flush(READ_WITHIN_S):
        raise RuntimeError("Kafka does not take the records")


def read_bare(config: KafkaConfig, topics: Topics) -> dict[str, float]:
    consumer = open_consumer(config, "bench")
    consumer.assign([TopicPartition(topics.log.topic, partition, OFFSET_BEGINNING) for partition in range(topics.log.partitions)])
    began, cpu, read = time.perf_counter(), time.process_time(), 0
    while read < RECORDS:
        read += sum(message.error() is None for message in read_batch(consumer, BATCH, 0.1))
    found = {"us": 1e6 * (time.process_time() - cpu) / read, "per_s": read / (time.perf_counter() - began)}
    consumer.close()
    return found


async def read_as_core(config: KafkaConfig, topics: Topics, directory: Path) -> dict[str, float]:
    keyring = Keyring([("k1", os.urandom(32))])
    stream = Stream(topics.log.stream, topics.log.partitions, (0, topics.log.partitions - 1))
    index = RocksIndex(directory)
    node = CoreNode(
        name="bench",
        streams=Streams([stream]),
        registry=Registry([], keyring),
        keyring=keyring,
        index=index,
        random=os.urandom,
        config_log=False,
    )

    def perform(effect: Effect) -> None:
        """Nobody is linked, so there is nobody to whom anything could be done."""

    driver: Driver[Event, Effect] = Driver(node, perform, Tick())
    done = asyncio.Event()
    looking = set(range(topics.log.partitions))

    def deliver(events: list[Event]) -> None:
        for each in events:
            driver.post(each)
            if isinstance(each, Looked):
                looking.discard(each.partition)
        if not looking:
            done.set()

    calm_collector()
    tail = Tail(config, [topics.log], CoreLimits(), asyncio.get_running_loop(), deliver)
    began, cpu = time.perf_counter(), time.process_time()
    tail.start()
    await done.wait()
    found = {"us": 1e6 * (time.process_time() - cpu) / RECORDS, "per_s": RECORDS / (time.perf_counter() - began)}
    status = node.status()
    if (status["records"], status["duplicates"], status["indexErrors"]) != (RECORDS, 0, 0):
        raise RuntimeError(f"read {status['records']} of {RECORDS} records, {status['duplicates']} of them duplicates")
    await tail.close()
    driver.close()
    index.close()
    return found


def read(kind: str, brokers: str, prefix: str) -> dict[str, Any]:
    config = KafkaConfig(brokers=brokers, prefix=prefix)
    topics = prepare_topics(config)
    if kind == "floor":
        return read_bare(config, topics)
    with tempfile.TemporaryDirectory() as directory:
        return uvloop.run(read_as_core(config, topics, Path(directory)))


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    if kafka is None:
        print("tail: left out, the embedded broker keeps too little of a log")
        return True
    floors, cores = [], []
    with contextlib.ExitStack() as stack:
        brokers = stack.enter_context(broker(kafka))
        for n in range(rounds):
            prefix = f"bench-{uuid.uuid4().hex[:8]}"
            write_log(brokers, prefix)
            found = {}
            for kind in ("floor", "core") if n % 2 else ("core", "floor"):
                with Child([sys.executable, "-m", "bench.tail", kind, brokers, prefix]) as reader:
                    found[kind] = reader.read(READ_WITHIN_S)
            floors.append(found["floor"]["us"])
            cores.append(found["core"]["us"])
            print(
                f"tail {n + 1}/{rounds}, µs and records a second: "
                + ", ".join(f"{kind} {each['us']:.2f} {each['per_s']:.0f}" for kind, each in sorted(found.items(), reverse=True))
            )
    figure = Figure("CPU per log record", "µs, tail + fold + index", floors, cores, TARGET_US, alone=True, digits=2)
    return report("tail", [figure], "bare confluent-kafka consumer")


if __name__ == "__main__":
    print(json.dumps(read(*sys.argv[1:])), flush=True)
