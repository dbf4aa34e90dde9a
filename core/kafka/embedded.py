"""A broker for `tidegate dev`: librdkafka's mock cluster, reachable by TCP."""

from __future__ import annotations

import confluent_kafka

from core.kafka.config import log
from core.kafka.errors import Unreachable


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
        # The mock cluster replaces bootstrap.servers by its own address, which no property tells: its metadata does.
        brokers = self._producer.list_topics(timeout=timeout_s).brokers.values()
        for broker in brokers:
            return f"{broker.host}:{broker.port}"
        raise Unreachable("the embedded broker did not start")

    def stop(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None
