"""Tidegate's own topics: created with the right settings, or checked, so that a promise cannot be broken by a setting."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from core.kafka.config import KafkaConfig
from core.kafka.consumer import answer
from core.kafka.embedded import incarnation_of
from core.kafka.errors import TopicMisconfigured, Unreachable

HOUR_MS = 3_600_000
MAX_RECORD_BYTES = 1_048_576
"""A record of the log holds one publish: at most `max_message_bytes` of payload, names and extras beside it."""
REPLICAS = 3
MAX_PARTITIONS = 10_000
"""A serial has four digits for the partition."""
SERIAL_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class StreamInfo(NamedTuple):
    """One incarnation of a topic. `stream` is 8 characters [a-z0-9], the same on every core, another one if the topic is made anew."""

    stream: str
    topic: str
    partitions: int


class Topics(NamedTuple):
    """`warnings` are sentences for the operator, such as that anybody may write Tidegate's topics."""

    log: StreamInfo
    config: StreamInfo
    sessions: StreamInfo
    state: StreamInfo
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a topic: what it is created with, and which values of an existing topic will do."""

    name: str
    value: str
    wanted: str
    fits: Callable[[str], bool]


def exactly(name: str, value: str) -> Setting:
    return Setting(name, value, value, lambda found: found == value)


def at_least(name: str, value: int) -> Setting:
    return Setting(name, str(value), f"{value} or more", lambda found: int(found) >= value)


def at_most(name: str, value: int) -> Setting:
    return Setting(name, str(value), f"{value} or less", lambda found: int(found) <= value)


def kept_for(hours: int) -> Setting:
    """Retention: -1 is for ever."""
    least = hours * HOUR_MS
    return Setting("retention.ms", str(least), f"{least} or more, or -1", lambda found: int(found) == -1 or int(found) >= least)


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What Tidegate wants of one of its topics; a new topic of Tidegate is one more of these."""

    name: str
    partitions: int
    """When it is created; an existing topic keeps its own."""
    settings: tuple[Setting, ...]
    one_partition: bool = False
    partitions_of: str = ""
    """The topic whose partition count this one must have, which is `partitions`."""


COMMON = (
    # The window in which a publish id may repeat is measured by the brokers' clock, which every reader sees the same.
    exactly("message.timestamp.type", "LogAppendTime"),
    # An unclean leader forgets acknowledged records and gives their offsets, which are our serials, to others.
    exactly("unclean.leader.election.enable", "false"),
    at_least("max.message.bytes", MAX_RECORD_BYTES),
)


def plans(config: KafkaConfig) -> tuple[TopicPlan, TopicPlan, TopicPlan]:
    """The log of all channels, the configuration, and the sessions. That of the state follows from the log: `state_plan`."""
    log = TopicPlan(
        f"{config.prefix}.log",
        config.partitions,
        (
            *COMMON,
            exactly("cleanup.policy", "delete"),  # compaction would leave holes in channels
            kept_for(24),
            at_most("segment.ms", HOUR_MS),  # what is past retention goes by whole segments
        ),
    )
    configuration = TopicPlan(
        f"{config.prefix}.config",
        1,
        (*COMMON, exactly("cleanup.policy", "compact"), at_most("segment.ms", 24 * HOUR_MS)),
        one_partition=True,
    )
    sessions = TopicPlan(
        f"{config.prefix}.sessions",
        1,
        # Short segments: most of its records are outlived within minutes, and a core reads at its start what is left of them.
        (*COMMON, exactly("cleanup.policy", "compact"), at_most("segment.ms", HOUR_MS)),
        one_partition=True,
    )
    return log, configuration, sessions


def state_plan(config: KafkaConfig, log: StreamInfo) -> TopicPlan:
    """What the log adds up to, partition by partition."""
    return TopicPlan(
        f"{config.prefix}.state",
        log.partitions,
        # Short segments: its checkpoints are outlived within seconds, and a core reads at its start what is left of them.
        (*COMMON, exactly("cleanup.policy", "compact"), at_most("segment.ms", HOUR_MS)),
        partitions_of=log.topic,
    )


def prepare_topics(config: KafkaConfig, timeout_s: float = 10.0) -> Topics:
    """Create what is missing and check what is there. Blocks for a few round trips, at most some multiples of `timeout_s`.

    Raises Unreachable if no broker answers (again later, please), TopicMisconfigured if a topic has a setting that would break a promise.
    """
    admin = AdminClient(config.client("admin", socket_timeout_ms=int(timeout_s * 1000)))
    try:
        found = [_prepare(admin, config, plan, timeout_s) for plan in plans(config)]
        found.append(_prepare(admin, config, state_plan(config, found[0]), timeout_s))
        warnings = [] if config.embedded else _without_acls(admin, config, timeout_s)
    except KafkaException as error:
        raise Unreachable(f"Kafka at {config.brokers}: {_reason(error)}") from error
    finally:
        admin.poll(0)
    return Topics(found[0], found[1], found[2], found[3], warnings)


def stream_id(incarnation: str) -> str:
    """8 characters [a-z0-9] (41 bits) of what identifies one incarnation of a topic."""
    number = int.from_bytes(hashlib.sha256(incarnation.encode()).digest()[:16])
    characters = []
    for _ in range(8):
        number, digit = divmod(number, len(SERIAL_ALPHABET))
        characters.append(SERIAL_ALPHABET[digit])
    return "".join(characters)


def _prepare(admin: AdminClient, config: KafkaConfig, plan: TopicPlan, timeout_s: float) -> StreamInfo:
    if not config.capabilities.create_topics:
        topic = admin.list_topics(plan.name, timeout=timeout_s).topics[plan.name]  # asking for it makes it
        return StreamInfo(stream_id(f"{incarnation_of(config, timeout_s)}/{plan.name}"), plan.name, len(topic.partitions))
    brokers = len(admin.list_topics(timeout=timeout_s).brokers)
    topic = _describe(admin, plan.name, timeout_s)
    if topic is None:
        _create(admin, plan, brokers, timeout_s)
        # Another core may have created it meanwhile, by another plan: it is checked like any other.
        topic = _describe(admin, plan.name, timeout_s, patience_s=timeout_s)
    if topic is None:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    _check(admin, plan, topic, brokers, timeout_s)
    return StreamInfo(stream_id(str(topic.topic_id)), plan.name, len(topic.partitions))


def _describe(admin: AdminClient, name: str, timeout_s: float, patience_s: float = 0.0) -> Any:
    """The description of a topic whose partitions all have a leader, or None if there is no such topic. A topic just created takes a moment
    to be known: `patience_s`."""
    until = time.monotonic() + patience_s
    while True:
        future = admin.describe_topics(TopicCollection([name]), request_timeout=timeout_s)[name]
        try:
            return answer(future, timeout_s + 5)
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                raise
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def _create(admin: AdminClient, plan: TopicPlan, brokers: int, timeout_s: float) -> None:
    settings = {setting.name: setting.value for setting in plan.settings}
    if brokers >= REPLICAS:
        settings["min.insync.replicas"] = "2"
    topic = NewTopic(plan.name, num_partitions=plan.partitions, replication_factor=min(brokers, REPLICAS), config=settings)
    try:
        answer(admin.create_topics([topic], operation_timeout=timeout_s, request_timeout=timeout_s)[plan.name], timeout_s + 5)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _check(admin: AdminClient, plan: TopicPlan, topic: Any, brokers: int, timeout_s: float) -> None:
    count = len(topic.partitions)
    if count > (1 if plan.one_partition else MAX_PARTITIONS):
        raise TopicMisconfigured(plan.name, "partition count", count, "1" if plan.one_partition else f"{MAX_PARTITIONS} or less")
    if plan.partitions_of and count != plan.partitions:
        raise TopicMisconfigured(plan.name, "partition count", count, f"{plan.partitions}, as that of {plan.partitions_of}")
    resource = ConfigResource(ConfigResource.Type.TOPIC, plan.name)
    found = answer(admin.describe_configs([resource], request_timeout=timeout_s)[resource], timeout_s + 5)
    for setting in plan.settings:
        value = found[setting.name].value
        if not setting.fits(value):
            raise TopicMisconfigured(plan.name, setting.name, value, setting.wanted)
    if brokers >= REPLICAS:
        replicas = min(len(partition.replicas) for partition in topic.partitions)
        if replicas < REPLICAS:
            raise TopicMisconfigured(plan.name, "replication factor", replicas, f"{REPLICAS} or more, as there are {brokers} brokers")
        if int(found["min.insync.replicas"].value) < 2:
            raise TopicMisconfigured(plan.name, "min.insync.replicas", found["min.insync.replicas"].value, "2 or more")


def _without_acls(admin: AdminClient, config: KafkaConfig, timeout_s: float) -> list[str]:
    """Who may write Tidegate's topics owns the system: say so where the brokers have no authorizer. (DescribeAcls cannot tell that from a
    cluster with an authorizer and no ACLs; the brokers' configuration can.)"""
    broker = next(iter(admin.list_topics(timeout=timeout_s).brokers))
    resource = ConfigResource(ConfigResource.Type.BROKER, str(broker))
    try:
        found = answer(admin.describe_configs([resource], request_timeout=timeout_s)[resource], timeout_s + 5)
    except KafkaException:
        return []  # not for us to see, so somebody decides who sees what
    authorizer = found.get("authorizer.class.name")
    if authorizer is None or authorizer.value:
        return []
    return [f"the brokers have no authorizer: whoever reaches them may write {config.prefix}.* and thereby owns this system"]


def _reason(error: KafkaException) -> str:
    reason: KafkaError = error.args[0]
    return str(reason.str())


def create_missing(brokers: str, topics: Iterable[str], partitions: int = 4, timeout_s: float = 10.0) -> None:
    """Make those of `topics` that do not exist, with the broker's defaults: for the topics of rules and mappings in `dev`.

    Raises Unreachable.
    """
    config = KafkaConfig(brokers=brokers)
    admin = AdminClient(config.client("admin"))
    try:
        for name in topics:
            found = admin.list_topics(name, timeout=timeout_s).topics[name]  # the embedded broker makes what it is asked for
            if found.error is not None:
                nodes = len(admin.list_topics(timeout=timeout_s).brokers)
                _create(admin, TopicPlan(name, partitions, ()), nodes, timeout_s)
                _describe(admin, name, timeout_s, patience_s=timeout_s)
    except KafkaException as error:
        raise Unreachable(f"Kafka at {brokers}: {_reason(error)}") from error
