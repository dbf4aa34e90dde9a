"""Publish to deliver through edge, link, core and Kafka, beside raw produce to consume on the same broker with the same settings."""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
import time
import uuid

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.clients import MESSAGE_BYTES
from bench.common import ROUNDS, Figure, clients, product, report
from core.kafka.config import KafkaConfig
from core.kafka.consumer import open_consumer, read_batch

RATE = 100.0
SECONDS = 8.0
LAST_RECORDS_S = 2.0
START_WITHIN_S = 20.0
PRODUCER = {"enable.idempotence": True, "acks": "all", "linger.ms": 0}


class RawKafka:
    """A producer and a consumer as a core has them, with nothing between."""

    def __init__(self, brokers: str) -> None:
        self._topic = f"bench-raw-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": brokers})
        with contextlib.suppress(KafkaException):  # the embedded broker has topics come into being by themselves
            admin.create_topics([NewTopic(self._topic, 1, 1)])[self._topic].result()
        self._producer = Producer({"bootstrap.servers": brokers, **PRODUCER})
        self._consumer = open_consumer(KafkaConfig(brokers=brokers), "bench")  # as the tail of a core reads
        self._producer.produce(self._topic, "first", partition=0)
        if self._producer.flush(START_WITHIN_S):
            raise RuntimeError("Kafka takes no record")
        self._latencies: list[float] = []
        self._stopping = threading.Event()

    def turn(self) -> list[float]:
        """Milliseconds, one a record."""
        self._latencies, self._stopping = [], threading.Event()
        _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=START_WITHIN_S)
        self._consumer.assign([TopicPartition(self._topic, 0, end)])
        consuming = threading.Thread(target=self._consume)
        consuming.start()
        count = round(RATE * SECONDS)
        for _ in range(count):
            time.sleep(random.expovariate(RATE))
            self._producer.produce(self._topic, f"{time.perf_counter():<24.9f}".ljust(MESSAGE_BYTES, "x"), partition=0)
            self._producer.poll(0)
        self._producer.flush(LAST_RECORDS_S)
        deadline = time.perf_counter() + LAST_RECORDS_S
        while len(self._latencies) < count and time.perf_counter() < deadline:
            time.sleep(0.02)
        self._stopping.set()
        consuming.join()
        return self._latencies

    def _consume(self) -> None:
        while not self._stopping.is_set():
            for record in read_batch(self._consumer, 500, 0.1):
                if record.error() is None:
                    self._latencies.append(1000 * (time.perf_counter() - float((record.value() or b"")[:24])))

    def close(self) -> None:
        self._consumer.close()


def percentiles(latencies: list[float]) -> tuple[float, float]:
    if len(latencies) < RATE * SECONDS:
        raise RuntimeError(f"{len(latencies)} messages arrived of {RATE * SECONDS:.0f}")
    return statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]


def main(kafka: str | None, rounds: int = ROUNDS) -> bool:
    raws, products = [], []
    with product(kafka) as server, clients(server) as child:
        raw = RawKafka(server.kafka)
        for n in range(-1, rounds):
            found = [percentiles(raw.turn())]
            found.append(percentiles(child.ask("latency", token=server.token, rate=RATE, seconds=SECONDS)["ms"]))
            child.ask("drop")
            if n < 0:
                continue  # the first turn warms up
            raws.append(found[0])
            products.append(found[1])
            print(f"latency {n + 1}/{rounds}, p50 and p99 in ms: " + ", ".join(f"{p50:.2f} {p99:.2f}" for p50, p99 in found))
        raw.close()
    figures = [
        Figure("Publish to deliver, p50", "ms", [r[0] for r in raws], [p[0] for p in products], 4.0, difference=True, digits=2),
        Figure("Publish to deliver, p99", "ms", [r[1] for r in raws], [p[1] for p in products], difference=True, digits=2),
    ]
    return report("latency", figures, "raw Kafka produce to consume")
