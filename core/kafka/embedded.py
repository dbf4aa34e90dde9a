"""A broker for `tidegate dev`: librdkafka's mock cluster, reachable by TCP."""

from __future__ import annotations

import secrets

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from core.kafka.config import KafkaConfig
from core.kafka.consumer import open_consumer
from core.kafka.errors import Unreachable
from core.kafka.logs import log

MARK = "embedded.incarnation"
"""A topic whose first record is a random value. Topics have no ids here, and the cluster id is a memory address, which may well come again
in the next life; serials of an earlier one must not be taken for ours."""


class EmbeddedBroker:
    """One broker inside this process; other processes reach it at the address that `start` gives.

    Measured with librdkafka 2.16: topics appear when first asked for, always with 4 partitions; each keeps 5 MB; no CreateTopics,
    DescribeConfigs, topic ids, offsets by time, LogAppendTime, compaction or fencing; consumer groups and transactions work, unfenced.
    Everything is forgotten on `stop`. The port is the kernel's choice.
    """

    __slots__ = ("_producer",)

    def __init__(self) -> None:
        self._producer: confluent_kafka.Producer | None = None

    def start(self, timeout_s: float = 5.0) -> str:
        """Returns `host:port`. Raises Unreachable if librdkafka could not open a port."""
        self._producer = confluent_kafka.Producer(
            {"test.mock.num.brokers": 1, "bootstrap.servers": "embedded", "client.id": "tidegate-embedded", "logger": log}
        )
        self._producer.produce(MARK, secrets.token_hex(16), partition=0)
        # The mock cluster replaces bootstrap.servers by its own address, which no property tells: its metadata does.
        brokers = list(self._producer.list_topics(timeout=timeout_s).brokers.values())
        if self._producer.flush(timeout_s) or not brokers:
            raise Unreachable("the embedded broker did not start")
        return f"{brokers[0].host}:{brokers[0].port}"

    def stop(self) -> None:
        """May be called twice."""
        if self._producer is not None:
            self._producer.close()
            self._producer = None


def incarnation_of(config: KafkaConfig, timeout_s: float) -> str:
    """What tells one life of an embedded broker from another: the same for all who ask it. Raises KafkaException."""
    consumer = open_consumer(config, "incarnation")
    try:
        consumer.assign([TopicPartition(MARK, 0, 0)])
        message = consumer.poll(timeout_s)
    finally:
        consumer.close()
    if message is None or message.error() is not None:
        raise KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT) if message is None else message.error())
    return (message.value() or b"").decode()
