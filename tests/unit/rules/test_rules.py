"""Rules from a record of the log to records of topics (Ably protocol docs, Kafka rules)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import confluent_kafka
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.log import LogRecord
from core.rules import ConfigError, Outcome, Rule, RuleConfig, RuleSet
from relay.model.message import Kind, Message, RecordBody
from relay.model.serials import Serial, message_serial
from relay.runtime.settings import build

SERIAL = Serial("abcdefgh", 3, 42)


def config(**fields: Any) -> RuleConfig:
    base: dict[str, Any] = {"id": "r1", "target": {"routing_key": "out:#{channelName}"}}
    return msgspec.convert(base | fields, RuleConfig)


def rule(app: str = "app", **fields: Any) -> Rule:
    return Rule(app, config(**fields))


def record(
    *messages: Message, channel: str = "chat:lobby", kind: int = Kind.MESSAGE, connection: str | None = "conn", **body: Any
) -> LogRecord:
    value = msgspec.msgpack.encode(RecordBody(id="conn:7", timestamp=1000, connection_id=connection, messages=list(messages), **body))
    return LogRecord(SERIAL.stream, SERIAL.partition, SERIAL.offset, 1010, f"app:{channel}".encode(), value, kind, "c:conn:7")


def outcome(record: LogRecord, *rules: Rule) -> Outcome:
    return RuleSet(rules or [rule()], site="eu").outcome(record)


# --- matching ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("", "anything", True),
        ("chat", "my-chat-room", True),  # searched, not anchored
        ("^chat:.*", "chat:lobby", True),
        ("^chat:.*", "xchat:lobby", False),
        ("^chat:.*", "chat:émile", True),
        ("lobby$", "chat:lobby", True),
        ("", "[meta]log", False),
        (r"\Achat:\d+\z", "chat:12", True),
    ],
)
def test_channel_filter(pattern: str, channel: str, matches: bool) -> None:
    """R1.8, R1.10"""
    assert rule(source={"channel_filter": pattern}).matches("app", channel) is matches


def test_other_apps_do_not_match() -> None:
    assert not rule("other").matches("app", "chat")


@pytest.mark.parametrize("pattern", ["(?=a)", "(a", "(a)\\1", "[z-a]", "x" * 2000])
def test_bad_filter_is_a_config_error(pattern: str) -> None:
    """R1.9"""
    with pytest.raises(ConfigError) as refused:
        rule(source={"channel_filter": pattern})
    assert refused.value.field == "source.channel_filter"


@pytest.mark.parametrize(
    ("routing_key", "reason"),
    [
        ("#{nope}", "expected one of"),
        ("", "illegal topic"),
        (":key", "illegal topic"),
        ("sp ace:key", "illegal topic"),
        ("tidegate.log:key", "reserved topic"),
        ("__consumer_offsets", "reserved topic"),
        ("..", "illegal topic"),
        ("é:#{channelName}", "illegal topic"),
    ],
)
def test_bad_routing_key_is_a_config_error(routing_key: str, reason: str) -> None:
    """R2.4, R2.5, R2.15"""
    with pytest.raises(ConfigError) as refused:
        rule(target={"routing_key": routing_key})
    assert refused.value.field == "target.routing_key"
    assert reason in refused.value.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "no spaces"},
        {"id": ""},
    ],
)
def test_bad_id(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        rule(**fields)


def test_unknown_fields_and_sources_are_refused() -> None:
    for wrong in ({"source": {"type": "channel.nonsense"}}, {"source": {"filter": "x"}}, {"target": {"routing_key": "t", "format": "xml"}}):
        with pytest.raises(msgspec.ValidationError):
            config(**wrong)


SASL = {"mechanism": "scram-sha-256", "username": "u", "password_env": "PASSWORD"}
OAUTH = {"mechanism": "oauthbearer", "username": "client", "password_env": "PASSWORD", "token_endpoint": "https://tokens.example/token"}
PEM = "-----BEGIN CERTIFICATE-----\n"


def elsewhere(**target: Any) -> Rule:
    fields = {"id": "r", "target": {"routing_key": "t", "brokers": ["kafka.example:9092"], **target}}
    return Rule("app", build(RuleConfig, fields, file=Path("core.toml"), environ={"PASSWORD": "not to be seen"}))


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ({"brokers": [], "auth": {"sasl": SASL}}, "auth"),
        ({"brokers": [], "tls": True}, "tls"),
        ({"brokers": [], "ca": PEM, "tls": None}, "ca"),
        ({"brokers": ["a b:9092"]}, "brokers"),
        ({"brokers": ["kafka:9092,other:9092"]}, "brokers"),
        ({"brokers": ["kafka:port"]}, "brokers"),
        ({"brokers": ["kafka:9092"] * 33}, "brokers"),
        ({"ca": PEM}, "ca"),
        ({"tls": True, "ca": "no certificate"}, "ca"),
        ({"tls": True, "ca": PEM + "-----BEGIN PRIVATE KEY-----"}, "ca"),
        ({"auth": {"sasl": SASL | {"username": ""}}}, "auth.sasl.username"),
        ({"auth": {"sasl": SASL | {"scope": "write"}}}, "auth.sasl.scope"),
        ({"auth": {"sasl": OAUTH | {"token_endpoint": "http://tokens.example"}}}, "auth.sasl.token_endpoint"),
        ({"auth": {"sasl": OAUTH | {"token_ca": "no certificate"}}}, "auth.sasl.token_ca"),
        ({"auth": {"sasl": SASL | {"token_ca": PEM}}}, "auth.sasl.token_ca"),
    ],
)
def test_another_cluster_that_cannot_be_meant_is_refused(target: dict[str, Any], field: str) -> None:
    """R7.1"""
    with pytest.raises(ConfigError) as refused:
        elsewhere(**target)
    assert refused.value.field == f"target.{field}"
    assert "not to be seen" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({}, {"security.protocol": "plaintext"}),
        ({"tls": True}, {"security.protocol": "ssl"}),
        ({"brokers": ["a", "[::1]:9093"], "tls": True, "ca": PEM}, {"security.protocol": "ssl", "ssl.ca.pem": PEM}),
        (
            {"auth": {"sasl": SASL}},
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "SCRAM-SHA-256",
                "sasl.username": "u",
                "sasl.password": "not to be seen",
            },
        ),
        (
            {"auth": {"sasl": SASL | {"mechanism": "plain"}}, "tls": False},
            {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "not to be seen"},
        ),
        (
            {"auth": {"sasl": OAUTH | {"scope": "kafka", "extensions": "logicalCluster=lkc-1", "token_ca": PEM}}},
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.client.id": "client",
                "sasl.oauthbearer.client.secret": "not to be seen",
                "sasl.oauthbearer.token.endpoint.url": "https://tokens.example/token",
                "https.ca.pem": PEM,
                "sasl.oauthbearer.scope": "kafka",
                "sasl.oauthbearer.extensions": "logicalCluster=lkc-1",
            },
        ),
    ],
)
def test_how_a_rule_reaches_another_cluster(target: dict[str, Any], expected: dict[str, str]) -> None:
    """R7.2"""
    made = elsewhere(**target)
    assert made.cluster is not None
    assert made.cluster.properties == expected
    assert "not to be seen" not in f"{made.cluster} {made.config}"
    assert made.cluster == elsewhere(**target).cluster, "rules that say the same share a producer"
    if not made.cluster.ca:  # the driver takes it
        confluent_kafka.Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0, **expected}).close()


def test_records_for_another_cluster_say_which_event_they_are() -> None:
    """R7.5"""
    message = record(Message(data="hello"))
    (single,) = outcome(message, elsewhere()).outputs
    name, value = single.headers[-1]
    assert name == "x-tidegate-event-id"
    assert value == json.loads(single.value)["messages"][0]["serial"].encode()
    (plain,) = outcome(message, elsewhere(enveloped=False)).outputs
    assert plain.headers[-1] == (name, value)
    (own,) = outcome(message, rule()).outputs
    assert name not in dict(own.headers)


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError):
        RuleSet([rule(), rule()], site="eu")
    RuleSet([rule(), rule("other")], site="eu")


# --- routing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routing_key", "channel", "topic", "key"),
    [
        ("out:#{channelName}", "chat:lobby", "out", b"chat:lobby"),
        ("out", "chat:lobby", "out", None),
        ("out:", "chat:lobby", "out", None),
        ("#{channelName}", "chat:lobby", "chat", b"lobby"),  # interpolated first, then split at the first colon
        ("#{channelName}", "chat", "chat", None),
        ("out:#{message.name}", "chat", "out", None),  # missing values are empty; an empty key is none
        ("out:#{channelName}", "é", "out", "é".encode()),
    ],
)
def test_routing(routing_key: str, channel: str, topic: str, key: bytes | None) -> None:
    """R2.1, R2.2, R2.3, R2.6, R2.9"""
    made = outcome(record(Message(data="x"), channel=channel), rule(target={"routing_key": routing_key}))
    assert [(output.topic, output.key) for output in made.outputs] == [(topic, key)]


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        ("white space", "illegal_topic"),
        ("x" * 250, "illegal_topic"),
        (".", "illegal_topic"),
        ("tidegate.log", "reserved_topic"),
        ("tidegate.config:x", "reserved_topic"),
        ("__transaction_state", "reserved_topic"),
    ],
)
def test_topic_from_a_channel_name_is_dropped_when_not_legal(channel: str, reason: str) -> None:
    """R1.17, R2.4, R2.5: whoever published has long had its ACK; the rule is to be told of in the counters."""
    made = outcome(record(Message(data="x"), channel=channel), rule(target={"routing_key": "#{channelName}"}))
    assert not made.outputs
    assert [(drop.rule, drop.reason) for drop in made.drops] == [("app/r1", reason)]


def test_one_record_per_message_and_rule() -> None:
    """R1.1, R1.14"""
    made = outcome(record(Message(data="a"), Message(data="b"), Message(data="c")), rule(), rule(id="r2", target={"routing_key": "other"}))
    assert [(output.rule, json.loads(output.value)["messages"][0]["data"]) for output in made.outputs] == [
        (name, data) for name in ("app/r1", "app/r2") for data in "abc"
    ]


def test_messages_that_change_others_are_events_too() -> None:
    """R1.2"""
    changes = [Message(action=action, serial="older:000", version={"serial": "newer"}, data="x") for action in (1, 2, 5)]
    values = [json.loads(output.value) for output in outcome(record(Message(data="x"), *changes)).outputs]
    assert [value["messages"][0]["action"] for value in values] == [0, 1, 2, 5]
    assert values[1]["messages"][0]["serial"] == "older:000"
    assert values[1]["messages"][0]["version"] == {"serial": "newer"}


# --- skips ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "written"),
    [
        (None, True),
        ({"ephemeral": True}, False),
        ({"ephemeral": False}, True),
        ({"privileged": {"skipRule": "*"}}, False),
        ({"privileged": {"skipRule": ["r1"]}}, False),
        ({"privileged": {"skipRule": ["r2", "r3"]}}, True),
        ({"privileged": {"skipRule": "r1"}}, True),
        ({"privileged": 5}, True),
    ],
)
def test_skips(extras: dict[str, Any] | None, written: bool) -> None:
    """R1.11, R1.12"""
    assert bool(outcome(record(Message(data="x", extras=extras))).outputs) is written


def test_ephemeral_publish_and_other_kinds_are_skipped() -> None:
    """R1.11"""
    assert outcome(record(Message(data="x"), ephemeral=True)) == Outcome([], [], [])
    assert outcome(record(Message(data="x"), kind=Kind.PRESENCE)) == Outcome([], [], [])


# --- enveloped -----------------------------------------------------------------------------------------------------------------------


def test_enveloped_json() -> None:
    """R3.1, R3.2, R3.3"""
    made = outcome(record(Message(name="my message name", data="some message data", client_id="bob"))).outputs[0]
    assert made.headers == [("content-type", b"application/json"), ("x-ably-version", b"1.2")]
    assert json.loads(made.value) == {
        "source": "channel.message",
        "appId": "app",
        "channel": "chat:lobby",
        "site": "eu",
        "ruleId": "r1",
        "timestamp": 1010,
        "messages": [
            {
                "id": "conn:7:0",
                "connectionId": "conn",
                "clientId": "bob",
                "timestamp": 1000,
                "name": "my message name",
                "data": "some message data",
                "action": 0,
                "serial": message_serial(SERIAL.text, 0),
            }
        ],
    }


def test_enveloped_msgpack() -> None:
    """R3.1, R3.6"""
    made = outcome(record(Message(data=b"\x00\xff")), rule(target={"routing_key": "out", "format": "msgpack"})).outputs[0]
    assert made.headers == [("content-type", b"application/x-msgpack"), ("x-ably-version", b"1.2")]
    message = msgspec.msgpack.decode(made.value)["messages"][0]
    assert message["data"] == b"\x00\xff"
    assert "encoding" not in message


@pytest.mark.parametrize(
    ("data", "encoding", "sent", "encoded"),
    [
        ("text", None, "text", None),
        ("", None, "", None),
        ('{"a":1}', "json", '{"a":1}', "json"),
        (b"\x00\xff", None, "AP8=", "base64"),
        (b"\x00\xff", "json/utf-8/cipher+aes-256-cbc", "AP8=", "json/utf-8/cipher+aes-256-cbc/base64"),
        ("x", "nonsense", "x", "nonsense"),
        (None, None, None, None),
    ],
)
def test_enveloped_data_in_json(data: Any, encoding: str | None, sent: str | None, encoded: str | None) -> None:
    """R1.18, R3.3"""
    message = json.loads(outcome(record(Message(data=data, encoding=encoding))).outputs[0].value)["messages"][0]
    assert message.get("data") == sent
    assert message.get("encoding") == encoded
    assert None not in message.values()


def test_own_ids_and_extras_survive_and_privileged_does_not() -> None:
    """R3.7"""
    extras = {"headers": {"a": 1}, "ref": {"x": [1]}, "privileged": {"skipRule": ["other"]}}
    made = outcome(record(Message(id="mine", data="x", extras=extras), connection=None))
    message = json.loads(made.outputs[0].value)["messages"][0]
    assert message["id"] == "mine"
    assert message["extras"] == {"headers": {"a": 1}, "ref": {"x": [1]}}
    assert "connectionId" not in message


# --- plain ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "encoding", "value", "content_type", "remaining"),
    [
        ("héllo", None, "héllo".encode(), b"text/plain", None),
        ('{"a": 1}', "json", b'{"a": 1}', b"application/json", None),
        (b"\x00\xff", None, b"\x00\xff", b"application/octet-stream", None),
        (b"\x00", "utf-8/cipher+aes-128-cbc", b"\x00", b"application/octet-stream", b"utf-8/cipher+aes-128-cbc"),
        ("x", "nonsense", b"x", b"text/plain", b"nonsense"),
        (None, None, b"", b"text/plain", None),
    ],
)
def test_plain_values(data: Any, encoding: str | None, value: bytes, content_type: bytes, remaining: bytes | None) -> None:
    """R4.1, R4.2, R4.3, R4.4, R4.5, R4.10"""
    plain = rule(target={"routing_key": "out", "enveloped": False})
    made = outcome(record(Message(data=data, encoding=encoding)), plain).outputs[0]
    headers = dict(made.headers)
    assert (made.value, headers["content-type"], headers.get("x-ably-message-encoding")) == (value, content_type, remaining)


def test_plain_headers() -> None:
    """R4.5, R4.6, R4.7, R4.8, R4.11"""
    plain = rule(target={"routing_key": "out", "enveloped": False})
    made = outcome(record(Message(name="greet", data="x", client_id="bob", extras={"headers": {"a": 1}})), plain).outputs[0]
    assert dict(made.headers) == {
        "content-type": b"text/plain",
        "x-ably-version": b"1.2",
        "x-ably-envelope-appid": b"app",
        "x-ably-envelope-channel": b"chat:lobby",
        "x-ably-envelope-rule-id": b"r1",
        "x-ably-envelope-site": b"eu",
        "x-ably-envelope-source": b"channel.message",
        "x-ably-message-id": b"conn:7:0",
        "x-ably-message-timestamp": b"1000",
        "x-ably-message-client-id": b"bob",
        "x-ably-message-connection-id": b"conn",
        "x-ably-message-name": b"greet",
        "x-ably-message-extras": b'{"headers":{"a":1}}',
    }
    assert len(made.headers) == len(dict(made.headers))


# --- robustness ----------------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_undecodable_records_are_dropped_and_counted(value: bytes, key: bytes) -> None:
    bad = LogRecord(SERIAL.stream, 0, 0, 0, b"app:" + key, value, Kind.MESSAGE, "x")
    for drop in outcome(bad).drops:
        assert drop.reason == "undecodable"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    data=st.none() | st.text(max_size=20) | st.binary(max_size=20),
    extras=st.none() | st.dictionaries(st.sampled_from(["headers", "privileged", "ephemeral", "ref", "x"]), JSON_VALUES, max_size=4),
    name=st.none() | st.text(max_size=10),
    channel=st.text(min_size=1, max_size=20),
    enveloped=st.booleans(),
    format=st.sampled_from(["json", "msgpack"]),
)
def test_every_message_is_written_skipped_or_dropped(
    data: Any, extras: dict[str, Any] | None, name: str | None, channel: str, enveloped: bool, format: str
) -> None:
    key = "t:#{channelName}#{message.extras.headers['a']}#{(message.name, message.id)|hash}"
    one = rule(target={"routing_key": key, "enveloped": enveloped, "format": format})
    made = outcome(record(Message(data=data, extras=extras, name=name), channel=channel), one)
    assert len(made.outputs) + len(made.drops) <= 1
    assert made == outcome(record(Message(data=data, extras=extras, name=name), channel=channel), one)
