"""A steady stream of publishes through the running product, what the log has of it, and what rules have written of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from core.kafka.records import log_record
from relay.model.message import Kind
from relay.model.serials import Serial
from tests.journeys.real import RealWorld
from tests.support.product import Product

CHANNELS = 24

Place = tuple[int, int]
"""Partition and offset in the log."""


def ends_of(brokers: str, topic: str) -> dict[int, int]:
    """Where a topic's partitions end."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "none"})
    try:
        partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        return {number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=5)[1] for number in partitions}
    finally:
        consumer.close()


def records_of(brokers: str, topic: str, begin: dict[int, int]) -> Iterator[Any]:
    """What a `read_committed` consumer sees from there to the present end."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "none", "isolation.level": "read_committed"})
    try:
        for number, high in ends_of(brokers, topic).items():
            place = TopicPartition(topic, number, begin.get(number, 0))
            consumer.assign([place])
            deadline = time.monotonic() + 20
            while place.offset < high and consumer.position([place])[0].offset < high:
                assert time.monotonic() < deadline
                message = consumer.poll(0.2)
                if message is not None and message.error() is None:
                    yield message
    finally:
        consumer.close()


class Stream:
    """Messages on some channels of an app until `stop`; each thread sends one after the other, on channels of its own."""

    def __init__(self, relay: Product, app: str, key: str, *, threads: int = 1) -> None:
        self.relay, self.app, self.key = relay, app, key
        self.asked = 0
        self._began = ends_of(relay.kafka, "tidegate.log")
        self._go_on = True
        self._threads = [threading.Thread(target=self._run, args=(n, threads), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, step: int) -> None:
        world = RealWorld(self.relay)
        while self._go_on:
            number += step
            self.asked += 1
            try:
                world.rest("POST", f"/channels/out:{number % CHANNELS}/messages", {"data": str(number)}, edge=number, credential=self.key)
            except OSError:
                time.sleep(0.1)
        world.close()

    def stop(self) -> None:
        self._go_on = False
        for thread in self._threads:
            thread.join(30)

    def log(self) -> dict[str, list[Place]]:
        """What Kafka has of it, by channel: repeated publishes once, in the order of the log."""
        found: dict[str, dict[str, Place]] = {}
        for message in records_of(self.relay.kafka, "tidegate.log", self._began):
            record = log_record(message, "")
            app, _, channel = record.key.decode().partition(":")
            if app == self.app and record.kind == Kind.MESSAGE and channel.startswith("out:"):
                found.setdefault(channel, {}).setdefault(record.id, (record.partition, record.offset))
        return {channel: list(places.values()) for channel, places in found.items()}


class Ruled:
    """What a topic of the rule has: enveloped single records."""

    def __init__(self, relay: Product, topic: str) -> None:
        self.relay, self.topic = relay, topic

    def written(self) -> dict[str, list[Place]]:
        """By channel."""
        found: dict[str, list[Place]] = {}
        for message in records_of(self.relay.kafka, self.topic, {}):
            envelope = json.loads(message.value())
            serial = Serial.parse(envelope["messages"][0]["serial"].rpartition(":")[0])
            assert serial is not None
            found.setdefault(envelope["channel"], []).append((serial.partition, serial.offset))
        return found

    def partitions(self) -> set[int]:
        """Of the log, of which it has something."""
        return {place[0] for places in self.written().values() for place in places}
