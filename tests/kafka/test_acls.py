"""A core whose principal may do what the table of docs/kafka.md says, and nothing else, on a broker that allows nothing by itself."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, NewTopic, ResourcePatternType, ResourceType

from tests.support.core_process import Core, core_process, edge_of
from tests.support.kafka import own_broker
from tidegate.tokens import mint

pytestmark = pytest.mark.kafka

PAGE = Path(__file__).parents[2] / "docs" / "kafka.md"
ROW = re.compile(
    r"^\| (topic|group|transactional id) \| ([^|]+) \| ((?:Create|DescribeConfigs|Read|Write)(?:, [A-Za-z]+)*) \|", re.MULTILINE
)
TYPES = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "transactional id": ResourceType.TRANSACTIONAL_ID}
OPERATIONS = {
    "Create": AclOperation.CREATE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
}
MEANT = {
    "each that rules write to": ["chat-messages", "late"],
    "each that mappings read": ["orders"],
    "each dead letter topic": ["orders-dead"],
}
"""Rows about your topics, by what the table calls them: those of `APPS`."""

ACLS = """\
listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="admin" password="for-tests" user_admin="for-tests" user_core="for-tests";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""
"""Nobody but the controller's own connections is ANONYMOUS: its listener is none of ours."""

KEY = "key:for-tests-only-000000"
APPS = [
    {
        "id": "shop",
        "keys": [{"id": "key", "secret": KEY.partition(":")[2], "capability": '{"*":["*"],"[*]*":["*"]}'}],
        "rules": [
            {"id": name, "source": {"channel_filter": "^chat:"}, "target": {"routing_key": f"{topic}:#{{channelName}}"}}
            for name, topic in (("chat-out", "chat-messages"), ("late-out", "late"))
        ],
        "mappings": [
            {
                "id": "orders-in",
                "topics": ["orders"],
                "channel": "orders:#{key}",
                "on_failed_record_mapping": "dlq",
                "dlq_topic": "orders-dead",
            }
        ],
    }
]


def as_user(brokers: str, name: str) -> dict[str, str | int | float | bool]:
    return {
        "bootstrap.servers": brokers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": name,
        "sasl.password": "for-tests",
    }


@pytest.fixture
def strict() -> Iterator[str]:
    with own_broker(extra=ACLS) as address:
        yield address


def bindings() -> list[AclBinding]:
    """What the table says, as Kafka is told."""
    found = []
    for kind, names, operations in ROW.findall(PAGE.read_text()):
        if names.startswith("`"):
            name, prefixed, more = names.partition("` (prefixed)")
            assert prefixed, names
            assert not more, names
            meant = [(name.strip("`"), ResourcePatternType.PREFIXED)]
        else:
            meant = [(name, ResourcePatternType.LITERAL) for name in MEANT[names]]
        found += [
            AclBinding(TYPES[kind], name, pattern, "User:core", "*", OPERATIONS[operation], AclPermissionType.ALLOW)
            for name, pattern in meant
            for operation in operations.split(", ")
        ]
    return found


def bearer() -> str:
    """A token: outside of development cores take no keys without TLS."""
    token = mint(f"shop.{KEY}", capability='{"*":["*"],"[*]*":["*"]}', client_id=None, ttl_s=600, now_s=int(time.time()))
    return "Bearer " + b64encode(token.encode()).decode()


def publish(edge: str, channel: str, data: str) -> None:
    request = urllib.request.Request(
        f"http://{edge}/channels/{channel}/messages",
        json.dumps({"data": data}).encode(),
        {"authorization": bearer(), "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201


def history(edge: str, channel: str, field: str = "data") -> list[str]:
    request = urllib.request.Request(f"http://{edge}/channels/{quote(channel)}/messages", headers={"authorization": bearer()})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return [item[field] for item in json.load(answer)]


def values(brokers: str, topic: str, count: int, within_s: float = 30.0) -> list[bytes]:
    consumer = Consumer(as_user(brokers, "admin") | {"group.id": "test", "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(4)])
    found: list[bytes] = []
    end = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < end:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            found.append(message.value() or b"")
    consumer.close()
    return found


def status(core: Core) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{core.admin}/v1/status", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_a_core_needs_no_permission_that_the_table_does_not_name(strict: str, tmp_path: Path) -> None:
    """It makes its own topics, takes its partitions, keeps state, publishes, runs a rule, parks one whose topic is not there and lets it
    catch up, reads a mapped topic, commits, and writes a dead letter."""
    admin = AdminClient(as_user(strict, "admin"))
    wanted = bindings()
    assert {binding.restype for binding in wanted} == set(TYPES.values()), "the page has its table"
    for done in admin.create_acls(wanted).values():
        done.result(10)
    for topic in ("chat-messages", "orders", "orders-dead"):
        admin.create_topics([NewTopic(topic, 4, 1)])[topic].result(10)

    properties = {name: value for name, value in as_user(strict, "core").items() if name != "bootstrap.servers"}
    with core_process(tmp_path, strict, kafka={"brokers": strict, "properties": properties}, apps=APPS) as core:
        core.until(lambda: core.answers("/readyz") == 200, 60)
        producer = Producer(as_user(strict, "admin"))
        producer.produce("orders", b"paid", b"42")
        producer.produce("orders", b"has no key")
        producer.flush(10)
        with edge_of(core) as edge:
            publish(edge, "chat:lobby", "hello")
            assert [json.loads(value)["messages"][0]["data"] for value in values(strict, "chat-messages", 1)] == ["hello"]
            core.until(lambda: history(edge, "orders:42") == ["paid"])
            assert values(strict, "orders-dead", 1) == [b"has no key"]
            core.until(lambda: [each["rule"] for each in status(core)["parkedRules"]] == ["shop/late-out"])
            core.until(lambda: history(edge, "[meta]log", "name") == ["rule.parked"])
            admin.create_topics([NewTopic("late", 4, 1)])["late"].result(10)
            core.until(lambda: status(core)["parkedRules"] == [])
            assert len(values(strict, "late", 1)) == 1
        said = core.log.read_text().lower()
        assert "authorization" not in said
        assert "denied" not in said
        assert status(core)["mappings"][0]["stopped"] == []
