"""Rules on presence, on channels that open and close, in batches: from the log, by the owner's own fold, to records of topics."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.lifecycle import CLOSED, OPENED, LifecycleBody
from core.log import LogRecord
from core.occupancy_log import OccupancyBody
from core.ownership import OwnedPartition, PartitionState
from core.rules import Batcher, ConfigError, Output, Rule, RuleConfig, RuleSet
from core.rules.batch import Batched
from core.rules.envelope import batch_of
from core.state import Checkpoint
from relay.model.message import Kind, Message, PresenceAction, PresenceItem, RecordBody
from relay.model.occupancy import METRICS
from relay.model.serials import Serial, message_serial

ENTER, UPDATE, LEAVE = PresenceAction.ENTER, PresenceAction.UPDATE, PresenceAction.LEAVE


def rule(source: str, routing_key: str = "out:#{channelName}", *, id: str = "r1", mode: str = "single", **target: Any) -> Rule:
    fields = {"id": id, "request_mode": mode, "source": {"type": source}, "target": {"routing_key": routing_key} | target}
    return Rule("app", msgspec.convert(fields, RuleConfig))


class Log:
    """One partition, read by its owner."""

    def __init__(self, *rules: Rule, events: int = 1_000, size: int = 1 << 20) -> None:
        self.rules = RuleSet(rules, site="core-1")
        self.owned = OwnedPartition(
            3, PartitionState(Checkpoint(stream="stream00", offset=0), {}), stream="stream00", core="core-1", low=0, first=0, rules_from=0,
            time=0, channels=100, now=0.0, batcher=Batcher(events, size),
        )  # fmt: skip
        self.offset = 0
        self.drops: list[Any] = []

    def append(self, kind: int, value: bytes, channel: str = "room", *, duplicate: bool = False) -> int:
        key = f"app:{channel}".encode()
        record = LogRecord("stream00", 3, self.offset, 5_000 + self.offset, key, value, kind, f"x:{self.offset}")
        self.drops += self.owned.take(record, duplicate=duplicate, rules=self.rules, now=1.0)
        self.offset += 1
        return record.offset

    def body(self, kind: int, channel: str = "room", *, connection: str | None = "conn", **fields: Any) -> int:
        body = RecordBody(id=f"{connection}:{self.offset}", timestamp=1_000, connection_id=connection, **fields)
        return self.append(kind, msgspec.msgpack.encode(body), channel)

    def presence(self, action: PresenceAction, client: str = "bob", **item: Any) -> int:
        items = [PresenceItem(action=action, client_id=client, **item)]
        return self.body(Kind.PRESENCE, presence=items, incarnation=1, edge="boot")

    def message(self, *messages: Message, channel: str = "room") -> int:
        return self.body(Kind.MESSAGE, channel, messages=list(messages))

    def lifecycle(self, name: str, number: int = 1, counts: tuple[int, ...] = (), **options: Any) -> int:
        body = LifecycleBody(id=f"{name}:{number}", timestamp=1_000, name=name, n=number, counts=counts)
        return self.append(Kind.LIFECYCLE, msgspec.msgpack.encode(body), **options)

    def occupancy(self, number: int, counts: tuple[int, ...], **options: Any) -> int:
        body = OccupancyBody(id=f"room:{number}", timestamp=1_000, n=number, counts=counts)
        return self.append(Kind.OCCUPANCY, msgspec.msgpack.encode(body), **options)

    def span(self) -> list[Output]:
        """What the owner writes when it commits now."""
        self.owned.combine()
        made = self.owned.outputs
        self.owned.done()
        return made

    def values(self) -> list[Any]:
        return [json.loads(output.value) for output in self.span()]


def actions(values: list[Any]) -> list[tuple[int, str]]:
    return [(item["action"], item["clientId"]) for value in values for item in value["presence"]]


# --- presence ------------------------------------------------------------------------------------------------------------------------


def test_a_change_of_presence_is_one_enveloped_record() -> None:
    """R1.3, R3.2, R3.4"""
    log = Log(rule("channel.presence"))
    log.presence(ENTER, data=b"\x00\xff", extras={"headers": {"a": 1}, "privileged": {"skipRule": "*"}})
    (output,) = log.span()
    assert (output.topic, output.key) == ("out", b"room")
    assert output.headers == [("content-type", b"application/json"), ("x-ably-version", b"1.2")]
    assert json.loads(output.value) == {
        "source": "channel.presence", "appId": "app", "channel": "room", "site": "core-1", "ruleId": "r1", "timestamp": 5_000,
        "presence": [
            {
                "id": "conn:0:0", "connectionId": "conn", "clientId": "bob", "timestamp": 1_000, "data": "AP8=", "encoding": "base64",
                "extras": {"headers": {"a": 1}}, "action": 2,
            }
        ],
    }  # fmt: skip


def test_each_change_of_a_record_is_an_event_and_only_of_presence_rules() -> None:
    """R1.3: enter, update and leave; messages and the other records of presence are none."""
    log = Log(rule("channel.presence"))
    items = [PresenceItem(action=ENTER, client_id=client) for client in ("ann", "bob")]
    log.body(Kind.PRESENCE, presence=items, incarnation=1, edge="boot")
    log.presence(UPDATE, "ann", data="x")
    log.presence(LEAVE)
    log.message(Message(data="x"))
    log.lifecycle(OPENED)
    log.body(Kind.GONE, incarnation=1)
    assert actions(log.values()) == [(2, "ann"), (2, "bob"), (4, "ann"), (3, "bob")]
    assert not log.drops


def test_a_leave_that_the_core_makes_is_an_event_with_the_members_data() -> None:
    """R1.4"""
    log = Log(rule("channel.presence"))
    log.presence(ENTER, data="last words")
    gone = log.body(Kind.GONE, incarnation=1)
    log.body(Kind.PRESENCE, presence=[PresenceItem(action=LEAVE, client_id="bob")], cause=gone)
    entered, left = log.values()
    assert actions([entered, left]) == [(2, "bob"), (3, "bob")]
    assert left["presence"][0]["data"] == "last words"


def test_what_changes_nothing_is_no_event() -> None:
    """R1.5: who is not there cannot leave; a leave whose reason is over; an old entry after a leave; a repetition."""
    log = Log(rule("channel.presence"))
    log.presence(LEAVE, "nobody")
    log.presence(ENTER)
    log.span()
    gone = log.body(Kind.GONE, incarnation=1)
    log.body(Kind.BACK, incarnation=2, edge="boot")
    log.body(Kind.PRESENCE, presence=[PresenceItem(action=LEAVE, client_id="bob")], cause=gone)
    assert log.span() == []
    log.presence(LEAVE)
    log.presence(ENTER, id="conn:0:0")
    value = msgspec.msgpack.encode(
        RecordBody(id="c:9", timestamp=1, connection_id="c", presence=[PresenceItem(action=ENTER, client_id="ann")])
    )
    log.append(Kind.PRESENCE, value, duplicate=True)
    assert actions(log.values()) == [(3, "bob")]


def test_presence_and_lifecycle_cannot_be_left_out() -> None:
    """R1.13"""
    log = Log(rule("channel.presence"), rule("channel.lifecycle", id="r2"))
    log.presence(ENTER, extras={"ephemeral": True, "privileged": {"skipRule": "*"}})
    log.lifecycle(OPENED)
    assert len(log.span()) == 2


def test_routing_by_presence() -> None:
    """R2.13"""
    key = "#{message.name}:#{message.clientId}/#{message.id}/#{message.extras.headers['team']}"
    log = Log(rule("channel.presence", key))
    log.presence(ENTER, extras={"headers": {"team": "red"}})
    log.presence(UPDATE)
    log.presence(LEAVE)
    assert [(output.topic, output.key) for output in log.span()] == [
        ("enter", b"bob/conn:0:0/red"),
        ("update", b"bob/conn:1:0/"),
        ("leave", b"bob/conn:2:0/"),
    ]


@pytest.mark.parametrize(
    ("action", "name"),
    [(ENTER, b"enter"), (UPDATE, b"update"), (LEAVE, b"leave")],
)
def test_plain_presence(action: PresenceAction, name: bytes) -> None:
    """R4.1, R4.9"""
    log = Log(rule("channel.presence", enveloped=False))
    log.presence(ENTER)
    log.span()
    log.presence(action, data='{"a":1}', encoding="json", extras={"headers": {"a": 1}})
    (output,) = log.span()
    assert output.value == b'{"a":1}'
    assert dict(output.headers) == {
        "content-type": b"application/json",
        "x-ably-version": b"1.2",
        "x-ably-envelope-appid": b"app",
        "x-ably-envelope-channel": b"room",
        "x-ably-envelope-rule-id": b"r1",
        "x-ably-envelope-site": b"core-1",
        "x-ably-envelope-source": b"channel.presence",
        "x-ably-message-id": b"conn:1:0",
        "x-ably-message-timestamp": b"1000",
        "x-ably-message-client-id": b"bob",
        "x-ably-message-connection-id": b"conn",
        "x-ably-message-action": name,
        "x-ably-message-extras": b'{"headers":{"a":1}}',
    }


# --- channels open and close ---------------------------------------------------------------------------------------------------------


def test_lifecycle_events_each_once() -> None:
    """R1.6, R3.5: what the fold lets pass; a second opening of an open channel and a repetition are nothing."""
    log = Log(rule("channel.lifecycle"))
    counts = (2, 1, 2, 0, 1, 0, 0, 3)
    log.lifecycle(OPENED, counts=counts)
    log.lifecycle(OPENED, 2)
    log.lifecycle(CLOSED, 1, duplicate=True)
    log.lifecycle(CLOSED, 1)
    log.lifecycle(CLOSED, 1)
    log.message(Message(data="x"))
    opened, closed = log.values()
    assert opened == {
        "source": "channel.lifecycle", "appId": "app", "channel": "room", "site": "core-1", "ruleId": "r1", "timestamp": 5_000,
        "name": "channel.opened",
        "data": {
            "channelId": "room",
            "name": "room",
            "status": {"isActive": True, "occupancy": {"metrics": dict(zip(METRICS, counts, strict=True))}},
        },
    }  # fmt: skip
    assert (closed["name"], closed["data"]["status"]) == ("channel.closed", {"isActive": False})


def test_routing_by_lifecycle_knows_the_channel_only() -> None:
    """R2.14"""
    log = Log(rule("channel.lifecycle", "out:#{channelName}|#{message.name}#{message.id}#{message.clientId}#{message.extras.headers['a']}"))
    log.lifecycle(OPENED)
    assert log.span()[0].key == b"room|"


def test_plain_lifecycle() -> None:
    """R4.8, R4.12"""
    log = Log(rule("channel.lifecycle", enveloped=False))
    log.lifecycle(OPENED)
    (output,) = log.span()
    assert json.loads(output.value) == {"channelId": "room", "name": "room", "status": {"isActive": True}}
    headers = dict(output.headers)
    assert headers["content-type"] == b"application/json"
    assert headers["x-ably-message-name"] == b"channel.opened"
    assert headers["x-ably-message-id"] == b"channel.opened:1"
    assert "x-ably-message-encoding" not in headers


# --- occupancy -----------------------------------------------------------------------------------------------------------------------


def test_occupancy_events_each_once() -> None:
    """R1.7, R3.5, R5.4: what the fold lets pass; a number that was there already, and a repetition, are nothing."""
    log = Log(rule("channel.occupancy"), rule("channel.occupancy", id="batches", mode="batch"), rule("channel.lifecycle", id="other"))
    counts = (2, 1, 2, 0, 1, 0, 0, 3)
    log.occupancy(1, counts)
    log.occupancy(1, (9,) * 8)
    log.occupancy(2, (9,) * 8, duplicate=True)
    log.occupancy(2, (0,) * 8)
    log.occupancy(3, (1,) * 7)
    log.append(Kind.OCCUPANCY, b"\xc1")
    first, second, batch = log.values()
    about = {
        "channelId": "room",
        "name": "room",
        "status": {"isActive": True, "occupancy": {"metrics": dict(zip(METRICS, counts, strict=True))}},
    }
    assert first == {
        "source": "channel.occupancy", "appId": "app", "channel": "room", "site": "core-1", "ruleId": "r1", "timestamp": 5_000,
        "name": "channel.occupancy", "data": about,
    }  # fmt: skip
    assert set(second["data"]["status"]["occupancy"]["metrics"].values()) == {0}
    assert [(item["name"], item["source"]) for item in batch["items"]] == [("channel.occupancy", "channel.occupancy")] * 2
    assert batch["items"][0]["data"] == about


def test_the_state_of_occupancy_is_what_the_records_add_up_to() -> None:
    log = Log(rule("channel.occupancy"))
    log.occupancy(1, (1,) * 8)
    assert len(log.owned.changes) == 1
    before = dict(log.owned.changes)
    log.span()
    log.occupancy(2, (0,) * 8)
    assert log.owned.changes.keys() == before.keys()
    log.owned.time += 700_000
    log.owned.sweep(2.0)
    assert list(log.owned.changes.values()) == [None]


# --- several rules, disabled rules, headers ------------------------------------------------------------------------------------------


def test_a_disabled_rule_writes_nothing_and_is_still_checked() -> None:
    """R1.15"""
    disabled = Rule("app", msgspec.convert({"id": "off", "status": "disabled", "target": {"routing_key": "out"}}, RuleConfig))
    log = Log(disabled, rule("channel.message", id="on"))
    log.message(Message(data="x"))
    assert [output.rule for output in log.span()] == ["app/on"]
    with pytest.raises(ConfigError):
        Rule("app", msgspec.convert({"id": "off", "status": "disabled", "target": {"routing_key": "#{"}}, RuleConfig))


def test_several_rules_on_one_event_do_not_touch_each_other() -> None:
    """R1.14: one is left out, one has no legal topic, one batches."""
    log = Log(
        rule("channel.message", id="skipped"),
        rule("channel.message", "not a topic#{channelName}", id="bad"),
        rule("channel.message", id="plain", enveloped=False),
        rule("channel.message", id="batch", mode="batch"),
    )
    log.message(Message(data="x", extras={"privileged": {"skipRule": ["skipped"]}}))
    assert sorted(output.rule for output in log.span()) == ["app/batch", "app/plain"]
    assert [(drop.rule, drop.reason) for drop in log.drops] == [("app/bad", "illegal_topic")]


@pytest.mark.parametrize("shape", [{}, {"enveloped": False}, {"mode": "batch"}])
def test_static_headers(shape: dict[str, Any]) -> None:
    """R3.8: behind the rule's own, in every form, in the order given; a name twice is two headers."""
    headers = [{"name": "team", "value": "rot"}, {"name": "team", "value": "grün"}]
    log = Log(rule("channel.message", headers=headers, **shape))
    for _ in range(2):
        log.message(Message(data="x"))
        made = log.span()[0].headers
        assert made[-2:] == [("team", b"rot"), ("team", "grün".encode())]
        assert [name for name, _ in made].count("team") == 2


@pytest.mark.parametrize(
    "header",
    [
        {"name": "", "value": ""},
        {"name": "two words", "value": ""},
        {"name": "ümlaut", "value": ""},
        {"name": "Content-Type", "value": "x"},
        {"name": "X-Ably-Message-Id", "value": "x"},
        {"name": "x" * 129, "value": ""},
        {"name": "x", "value": "y" * 4_097},
    ],
)
def test_headers_that_are_refused(header: dict[str, str]) -> None:
    """R3.8"""
    with pytest.raises(ConfigError) as refused:
        rule("channel.message", headers=[header])
    assert refused.value.field == "target.headers"
    with pytest.raises(ConfigError):
        rule("channel.message", headers=[{"name": "x", "value": ""}] * 33)


# --- batches -------------------------------------------------------------------------------------------------------------------------


def test_a_batch_of_messages() -> None:
    """R5.1, R5.2, R5.3: one item for each message."""
    log = Log(rule("channel.message", mode="batch"))
    offset = log.message(Message(name="greet", data="hello", client_id="bob"), Message(data=b"\x00"))
    at = Serial("stream00", 3, offset).text
    (output,) = log.span()
    assert (output.rule, output.topic, output.key) == ("app/r1", "out", b"room")
    assert output.headers == [("content-type", b"application/json"), ("x-ably-version", b"1.2")]
    first, second = json.loads(output.value)["items"]
    assert first == {
        "webhookId": "r1", "source": "channel.message", "serial": message_serial(at, 0), "timestamp": 5_000, "name": "channel.message",
        "data": {
            "channelId": "room", "site": "core-1",
            "messages": [
                {
                    "id": "conn:0:0", "connectionId": "conn", "clientId": "bob", "timestamp": 1_000, "name": "greet", "data": "hello",
                    "action": 0, "serial": message_serial(at, 0),
                }
            ],
        },
    }  # fmt: skip
    assert second["serial"] == message_serial(at, 1)
    assert second["data"]["messages"][0]["data"] == "AA=="
    assert second["data"]["messages"][0]["encoding"] == "base64"


def test_batches_of_presence_and_lifecycle() -> None:
    """R5.2, R5.3, R5.4"""
    log = Log(rule("channel.presence", mode="batch"), rule("channel.lifecycle", id="r2", mode="batch"))
    log.lifecycle(OPENED)
    log.presence(ENTER, data="x")
    log.lifecycle(CLOSED)
    by_rule = {output.rule: json.loads(output.value)["items"] for output in log.span()}
    (entered,) = by_rule["app/r1"]
    assert (entered["name"], entered["source"]) == ("presence.message", "channel.presence")
    (item,) = entered["data"].pop("presence")
    assert (item["action"], item["clientId"], item["data"]) == (2, "bob", "x")
    assert entered["data"] == {"channelId": "room", "site": "core-1"}
    assert [item["name"] for item in by_rule["app/r2"]] == ["channel.opened", "channel.closed"]
    assert [item["data"] for item in by_rule["app/r2"]] == [
        {"channelId": "room", "name": "room", "status": {"isActive": active}} for active in (True, False)
    ]


def test_only_events_of_one_rule_topic_and_key_share_a_record() -> None:
    """R5.5"""
    by_name = "t#{message.extras.headers['t']}:#{message.name}"
    log = Log(rule("channel.message", by_name, mode="batch"), rule("channel.message", by_name, id="r2", mode="batch"))
    for name, topic in (("a", 1), ("b", 1), ("a", 2), ("a", 1), (None, 1)):
        log.message(Message(name=name, data=f"{name}{topic}", extras={"headers": {"t": topic}}))
    found: dict[Any, list[str]] = {}
    for output in log.span():
        items = json.loads(output.value)["items"]
        assert {"app/" + item["webhookId"] for item in items} == {output.rule}
        assert found.setdefault((output.rule, output.topic, output.key), []) == []
        found[output.rule, output.topic, output.key] += [item["data"]["messages"][0]["data"] for item in items]
    one = {("t1", b"a"): ["a1", "a1"], ("t1", b"b"): ["b1"], ("t2", b"a"): ["a2"], ("t1", None): ["None1"]}
    assert found == {("app/" + each, *place): data for each in ("r1", "r2") for place, data in one.items()}


def test_a_record_has_at_most_so_many_events_and_bytes() -> None:
    """R5.6: beyond, the next record begins; a larger event has one to itself. Nothing is lost, nothing changes places."""
    log = Log(rule("channel.message", mode="batch"), events=10)
    for number in range(25):
        log.message(Message(data=str(number)))
    batches = [[item["data"]["messages"][0]["data"] for item in value["items"]] for value in log.values()]
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert [data for batch in batches for data in batch] == [str(number) for number in range(25)]
    log = Log(rule("channel.message", mode="batch"), size=2_000)
    for size in (10, 10, 5_000, 10, 1_000, 1_000):
        log.message(Message(data="x" * size))
    sizes = [[len(item["data"]["messages"][0]["data"]) for item in value["items"]] for value in log.values()]
    assert sizes == [[10, 10], [5_000], [10, 1_000], [1_000]]


def test_a_batch_ends_with_its_span_and_counts_for_its_size() -> None:
    """R5.7: what is not committed is in no later record; a span with nothing but batched events is worth a transaction."""
    log = Log(rule("channel.message", mode="batch"))
    log.message(Message(data="x" * 1_000))
    assert log.owned.writes
    assert log.owned.size > 1_000
    log.owned.combine()
    log.owned.combine()  # the transaction was refused once, and is tried again
    assert len(log.owned.outputs) == 1
    log.owned.done()
    assert log.span() == []
    log.message(Message(data="y"))
    assert [len(value["items"]) for value in log.values()] == [1]


def test_batches_in_msgpack_and_whatever_enveloped_says() -> None:
    """R5.8"""
    log = Log(rule("channel.message", mode="batch", enveloped=False, format="msgpack"))
    for _ in range(3):
        log.message(Message(data=b"\x00\xff"))
    (output,) = log.span()
    assert output.headers == [("content-type", b"application/x-msgpack"), ("x-ably-version", b"1.2")]
    items = msgspec.msgpack.decode(output.value)["items"]
    assert [item["data"]["messages"][0]["data"] for item in items] == [b"\x00\xff"] * 3


@given(st.lists(st.integers(0, 2**40), max_size=40) | st.integers(0, 70_000).map(lambda count: [7] * count))
def test_batch_values_are_what_the_codec_reads(numbers: list[int]) -> None:
    """R5.8"""
    assert msgspec.msgpack.decode(batch_of([msgspec.msgpack.encode(n) for n in numbers], "msgpack")) == {"items": numbers}
    assert msgspec.json.decode(batch_of([msgspec.json.encode(n) for n in numbers], "json")) == {"items": numbers}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.none() | st.just(b"k"), st.integers(1, 60)), max_size=60),
    st.integers(1, 8),
    st.integers(1, 120),
)
def test_batching_loses_nothing_and_keeps_the_order_of_a_key(events: list[Any], most: int, size: int) -> None:
    """R5.5, R5.6"""
    batcher = Batcher(most, size)
    outputs: list[Output] = []
    for number, (rule_id, topic, key, length) in enumerate(events):
        item = msgspec.json.encode([number, "x" * length])
        full = batcher.add(Batched(rule_id, topic, key, item, "json", []))
        if full is not None:
            outputs.append(full)
    outputs += batcher.flush()
    assert batcher.flush() == []
    found: dict[Any, list[int]] = {}
    for output in outputs:
        items = json.loads(output.value)["items"]
        assert 1 <= len(items) <= most
        assert len(items) == 1 or sum(len(json.dumps(item, separators=(",", ":"))) for item in items) <= size
        found.setdefault(output[:3], []).extend(number for number, _ in items)
    wanted: dict[Any, list[int]] = {}
    for number, (rule_id, topic, key, _) in enumerate(events):
        wanted.setdefault((rule_id, topic, key), []).append(number)
    assert found == wanted
