"""Tidegate's topics: made right, or refused with the setting that is wrong."""

from __future__ import annotations

import re

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from core.kafka import KafkaConfig, TopicMisconfigured, Unreachable, prepare_topics
from core.kafka.topics import create_missing
from tests.support.kafka import a_config, delete_topic

GOOD = {
    "message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
    "max.message.bytes": "2000000",
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "segment.ms": "3600000",
}


def make(config: KafkaConfig, settings: dict[str, str], name: str = "log", partitions: int = 3) -> None:
    admin = AdminClient({"bootstrap.servers": config.brokers})
    for future in admin.create_topics([NewTopic(f"{config.prefix}.{name}", partitions, 1, config=settings)]).values():
        future.result(10)


@pytest.mark.kafka
def test_missing_topics_are_created_and_found_again_under_the_same_stream_id(kafka_brokers: str) -> None:
    config = a_config(kafka_brokers, partitions=5)
    topics = prepare_topics(config)
    assert (topics.log.topic, topics.log.partitions) == (f"{config.prefix}.log", 5)
    assert (topics.config.topic, topics.config.partitions) == (f"{config.prefix}.config", 1)
    assert re.fullmatch("[a-z0-9]{8}", topics.log.stream)
    assert topics.log.stream != topics.config.stream
    assert prepare_topics(config) == topics, "another core, or the next start"
    assert any("no authorizer" in warning for warning in topics.warnings)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topics.log.topic)
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    found = admin.describe_configs([resource])[resource].result(10)
    assert found["message.timestamp.type"].value == "LogAppendTime"
    assert found["retention.ms"].value == str(24 * 3_600_000)
    assert found["cleanup.policy"].value == "delete"


@pytest.mark.kafka
def test_a_topic_made_anew_is_another_stream(kafka_brokers: str) -> None:
    config = a_config(kafka_brokers)
    before = prepare_topics(config)
    delete_topic(kafka_brokers, before.log.topic)
    assert prepare_topics(config).log.stream != before.log.stream


@pytest.mark.kafka
def test_a_topic_of_the_operators_own_is_taken_if_its_settings_will_do(kafka_brokers: str) -> None:
    config = a_config(kafka_brokers)
    make(config, GOOD)
    assert prepare_topics(config).log.partitions == 3


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("message.timestamp.type", "CreateTime"),
        ("unclean.leader.election.enable", "true"),
        ("max.message.bytes", "100000"),
        ("cleanup.policy", "compact"),
        ("retention.ms", "60000"),
        ("segment.ms", "604800000"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(kafka_brokers: str, setting: str, value: str) -> None:
    config = a_config(kafka_brokers)
    make(config, GOOD | {setting: value})
    with pytest.raises(TopicMisconfigured, match=rf"{config.prefix}\.log: {re.escape(setting)} is {value}, but it must be") as refused:
        prepare_topics(config)
    assert refused.value.setting == setting


@pytest.mark.kafka
def test_the_configuration_topic_has_one_partition(kafka_brokers: str) -> None:
    config = a_config(kafka_brokers)
    make(config, GOOD | {"cleanup.policy": "compact"}, "config", partitions=2)
    with pytest.raises(TopicMisconfigured, match="partition count is 2, but it must be 1"):
        prepare_topics(config)


@pytest.mark.kafka
def test_the_state_has_the_partitions_of_the_log_and_is_compacted(kafka_brokers: str) -> None:
    config = a_config(kafka_brokers, partitions=5)
    make(config, GOOD, partitions=3)
    topics = prepare_topics(config)
    assert (topics.state.topic, topics.state.partitions) == (f"{config.prefix}.state", 3)
    for settings, partitions, wrong in (
        (GOOD | {"cleanup.policy": "compact"}, 2, "partition count is 2, but it must be 3, as that of {0}.log"),
        (GOOD, 3, "cleanup.policy is delete, but it must be compact"),
    ):
        other = a_config(kafka_brokers)
        make(other, GOOD)
        make(other, settings, "state", partitions)
        with pytest.raises(TopicMisconfigured, match=re.escape(f"topic {other.prefix}.state: {wrong.format(other.prefix)}")):
            prepare_topics(other)


@pytest.mark.kafka
def test_topics_of_rules_are_made_when_missing(kafka_brokers: str) -> None:
    name = a_config("").prefix
    create_missing(kafka_brokers, [name])
    create_missing(kafka_brokers, [name])
    assert len(AdminClient({"bootstrap.servers": kafka_brokers}).list_topics(name, timeout=5).topics[name].partitions) == 4


def test_kafka_out_of_reach_is_said_as_such() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        prepare_topics(KafkaConfig(brokers="127.0.0.1:1"), timeout_s=0.5)


def test_a_configuration_does_not_show_its_properties() -> None:
    assert "hunter2" not in repr(KafkaConfig(brokers="b:1", properties={"sasl.password": "hunter2"}))
