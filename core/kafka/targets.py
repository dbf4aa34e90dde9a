"""Which topics of yours exist, so that one rule with a missing topic cannot hold up the others."""

from __future__ import annotations

import time

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, NewTopic

from core.kafka.config import KafkaConfig
from core.kafka.consumer import answer
from core.kafka.logs import log
from core.parked import Fault

PRESENT_S = 5.0
"""How long a topic is taken to exist, in seconds. Should it be deleted meanwhile, a transaction waits for it until it times out."""
ABSENT_S = 1.0
"""How long a topic is taken not to exist, in seconds."""
REFUSED_SIZE_S = 60.0
"""How long the size of a record that a topic refused counts as too large, in seconds."""
SINGLE_LOOKUPS = 8
"""Unknown topics of one span that are asked for one by one, where a broker cannot describe several; more of them are one question for all
topics of the cluster."""
MAX_REMEMBERED = 20_000
"""Topics remembered, present or not. At the bound all are forgotten and asked for again."""


class TargetTopics:
    """Existence of topics by cached metadata. Belongs to one thread; look-ups wait for the broker, at most `timeout_s` each."""

    __slots__ = ("_admin", "_client", "_config", "_create", "_known", "_sizes", "_timeout_s", "_written")

    def __init__(
        self, config: KafkaConfig, client: confluent_kafka.Consumer | None, *, create: bool, written: bool = False, timeout_s: float = 10.0
    ) -> None:
        """`client` may be left out where topics can be described. It must not create topics by asking for them, which a consumer does not;
        nor may it be the one whose callback this is used in. `create`: missing topics are made (dev). `written`: they must be there to be
        written to, not only to be seen."""
        self._config = config
        self._client = client
        self._admin: AdminClient | None = None
        self._create = create
        self._written = written
        self._timeout_s = timeout_s
        self._known: dict[str, tuple[float, Fault | None]] = {}
        self._sizes: dict[str, tuple[float, int]] = {}

    def faults(self, topics: set[str]) -> dict[str, Fault]:
        """Which of `topics` cannot be written to, and why. Raises KafkaException when no broker answers."""
        now = time.monotonic()
        ask = sorted(topic for topic in topics if topic not in self._known or self._known[topic][0] <= now)
        if ask:
            if len(self._known) + len(ask) > MAX_REMEMBERED:
                self._known.clear()
                ask = sorted(topics)
            self._look_up(ask)
        return {topic: fault for topic in topics if (fault := self._known[topic][1]) is not None}

    def forget(self, topics: set[str]) -> None:
        """Something was wrong with one of them: they are asked for again."""
        for topic in topics:
            self._known.pop(topic, None)

    def mark(self, topic: str, fault: Fault) -> None:
        """A write has shown that the topic is gone, or not ours to write."""
        self._known[topic] = (time.monotonic() + ABSENT_S, fault)

    def refuse_size(self, topic: str, size: int) -> None:
        """A record of this size, alone in its batch, was too large for the topic."""
        if len(self._sizes) >= MAX_REMEMBERED:
            self._sizes.clear()
        self._sizes[topic] = (time.monotonic() + REFUSED_SIZE_S, size)

    def too_large(self, topic: str, size: int) -> bool:
        until, refused = self._sizes.get(topic, (0.0, 0))
        return size >= refused and time.monotonic() < until

    def _look_up(self, topics: list[str]) -> None:
        found = self._metadata(topics)
        if self._create and (missing := [topic for topic in topics if found[topic] == "missing_topic"]):
            self._make(missing)
            found |= self._metadata(missing)
        now = time.monotonic()
        for topic, fault in found.items():
            self._known[topic] = (now + (PRESENT_S if fault is None else ABSENT_S), fault)

    def _metadata(self, topics: list[str]) -> dict[str, Fault | None]:
        if self._written and self._config.capabilities.describe_topics:
            return self._described(topics)
        assert self._client is not None, "topics cannot be described"
        if len(topics) > SINGLE_LOOKUPS:
            there = self._client.list_topics(timeout=self._timeout_s).topics
            return {topic: None if topic in there else "missing_topic" for topic in topics}
        found: dict[str, Fault | None] = {}
        for topic in topics:
            about = self._client.list_topics(topic, timeout=self._timeout_s).topics.get(topic)
            found[topic] = "missing_topic" if about is None else fault_of(about.error)
        return found

    def _described(self, topics: list[str]) -> dict[str, Fault | None]:
        """All of them in one request, with what we may do with each."""
        if self._admin is None:
            self._admin = AdminClient(self._config.client("targets"))
        wait = self._timeout_s
        self._admin.poll(0)  # what it has to say; it keeps that until somebody asks
        asked = self._admin.describe_topics(TopicCollection(topics), include_authorized_operations=True, request_timeout=wait)
        found: dict[str, Fault | None] = {}
        for topic, future in asked.items():
            try:
                about = answer(future, wait + 1.0)
            except KafkaException as failed:
                found[topic] = fault_of(failed.args[0])
                if found[topic] is None:
                    raise
                continue
            if about.authorized_operations is not None and not {AclOperation.WRITE, AclOperation.ALL} & set(about.authorized_operations):
                found[topic] = "unauthorized_topic"
            elif any(each.leader is None or each.leader.id < 0 for each in about.partitions):
                found[topic] = "unavailable_topic"
            else:
                found[topic] = None
        return found

    def _make(self, topics: list[str]) -> None:
        """Create topics with the broker's defaults. Failures are logged; the topics stay missing."""
        admin = AdminClient(self._config.client("targets"))
        if not self._config.capabilities.create_topics:
            for topic in topics:  # the embedded broker makes a topic when a producer's client asks for it
                admin.list_topics(topic, timeout=self._timeout_s)
            return
        made = admin.create_topics([NewTopic(topic, num_partitions=-1, replication_factor=-1) for topic in topics])
        for topic, future in made.items():
            try:
                answer(future, self._timeout_s)
                log.info("created topic %s", topic)
            except confluent_kafka.KafkaException as failed:
                if failed.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    log.warning("topic %s could not be created: %s", topic, failed.args[0].name())


def fault_of(error: KafkaError | None) -> Fault | None:
    """What an error of a topic's metadata or of a delivery says about the topic; None if the topic is not to blame."""
    code = None if error is None else error.code()
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return "missing_topic"
    if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return "unauthorized_topic"
    if code in (KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_ENOUGH_REPLICAS):
        return "unavailable_topic"
    return None
