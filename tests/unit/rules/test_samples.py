"""`tidegate rules test` and the preview behind it: what an event would become, by the code that writes, with nothing sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from core.rules import Rule, RuleConfig
from core.rules.preview import Preview, preview, read_sample
from tidegate.cli import app

RULES = """
node = "core-9"
[link]
certificate = "not-on-this-machine.pem"
[[apps]]
id = "empty"
[[apps]]
id = "shop"
[[apps.rules]]
id = "chat"
source = { channel_filter = "^chat:" }
target = { routing_key = "chat-messages:#{channelName}", headers = [{ name = "team", value = "web" }] }
[[apps.rules]]
id = "who"
source = { type = "channel.presence" }
target = { routing_key = "who:#{message.clientId}", enveloped = false }
[[apps.rules]]
id = "together"
request_mode = "batch"
target = { routing_key = "all:#{message.name}", format = "msgpack" }
[[apps.rules]]
id = "off"
status = "disabled"
target = { routing_key = "off" }
[[apps.rules]]
id = "lives"
source = { type = "channel.lifecycle" }
target = { routing_key = "#{channelName}" }
"""


def look(sample: Any, *rules: dict[str, Any]) -> list[Preview]:
    made = [
        Rule("shop", msgspec.convert({"id": f"r{n}", "target": {"routing_key": "t"}} | fields, RuleConfig))
        for n, fields in enumerate(rules)
    ]
    return preview(made, read_sample(json.dumps(sample)), site="core-1", now_ms=1_000)


def run(directory: Path, event: Any, *options: str, stdin: str | None = None) -> Any:
    config = directory / "core.toml"
    config.write_text(RULES)
    text = event if isinstance(event, str) else json.dumps(event)
    return CliRunner().invoke(app, ["rules", "test", "-c", str(config), text, *options], input=stdin)


def results(done: Any) -> dict[str, list[Any]]:
    assert done.exit_code == 0, done.output
    found: dict[str, list[Any]] = {}
    for each in json.loads(done.stdout)["results"]:
        found.setdefault(each.pop("rule"), []).append(each)
    return found


def test_messages_under_every_rule_of_the_app(tmp_path: Path) -> None:
    messages = [
        {"name": "greet", "data": "hello", "clientId": "bob"},
        {"name": "greet", "data": {"a": 1}},
        {"name": "bye", "data": "AP8=", "encoding": "base64", "extras": {"privileged": {"skipRule": ["chat"]}}},
    ]
    found = results(run(tmp_path, {"channel": "chat:lobby", "messages": messages}, "--json"))
    first, second, third = found["chat"]
    assert (first["topic"], first["key"]) == ("chat-messages", "chat:lobby")
    assert {"name": "team", "value": "web"} in first["headers"]
    envelope = json.loads(first["value"])
    assert (envelope["site"], envelope["ruleId"], envelope["messages"][0]["clientId"]) == ("core-9", "chat", "bob")
    assert json.loads(second["value"])["messages"][0]["data"] == '{"a":1}'
    assert third == {"result": "none", "reason": "left out as the publisher asks (extras)"}
    assert [each["key"] for each in found["together"]] == ["greet", "bye"]
    assert "valueBase64" in found["together"][0]
    assert found["who"] == [{"result": "none", "reason": "the rule is for channel.presence"}]
    assert found["off"] == [{"result": "none", "reason": "the rule is disabled"}]


def test_presence_and_lifecycle(tmp_path: Path) -> None:
    item = {"action": "leave", "clientId": "bob", "data": "bye"}
    found = results(run(tmp_path, {"channel": "x", "presence": item}, "--json", "--rule", "who"))
    assert list(found) == ["who"]
    assert (found["who"][0]["topic"], found["who"][0]["key"], found["who"][0]["value"]) == ("who", "bob", "bye")
    assert {"name": "x-ably-message-action", "value": "leave"} in found["who"][0]["headers"]
    found = results(run(tmp_path, {"channel": "not a topic", "lifecycle": "channel.opened"}, "--json"))
    assert found["lives"] == [{"result": "none", "reason": "dropped: illegal topic"}]
    assert found["chat"] == [{"result": "none", "reason": "the rule is for channel.message"}]


def test_occupancy() -> None:
    sample = {"channel": "x", "occupancy": {"connections": 3}}
    (found,) = look(sample, {"source": {"type": "channel.occupancy"}, "target": {"routing_key": "t", "enveloped": False}})
    assert found.output is not None
    metrics = json.loads(found.output.value)["status"]["occupancy"]["metrics"]
    assert (metrics["connections"], metrics["presenceMembers"]) == (3, 0)
    with pytest.raises(ValueError, match="occupancy has no nobody"):
        look({"channel": "x", "occupancy": {"nobody": 1}}, {})


def test_the_table_is_for_people_and_their_terminals(tmp_path: Path) -> None:
    done = run(tmp_path, {"channel": "chat:lobby", "messages": {"name": "\x1b[2Jgreet", "data": "\x1b[31mhello [bold]"}})
    assert done.exit_code == 0
    assert "chat-messages" in done.stdout
    assert "the rule is for channel.presence" in done.stdout
    assert "[bold]" in done.stdout, "what is in an event is no markup"
    assert "\x1b[2J" not in done.stdout


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_the_event_may_come_from_elsewhere(tmp_path: Path, way: str) -> None:
    event = json.dumps({"channel": "chat:a", "app": "shop", "messages": {"data": "x"}})
    file = tmp_path / "event.json"
    file.write_text(event)
    done = run(tmp_path, str(file), "--json") if way == "file" else run(tmp_path, "-", "--json", stdin=event)
    assert results(done)["chat"][0]["result"] == "record"


@pytest.mark.parametrize(
    ("event", "options", "reason"),
    [
        ({"channel": "x"}, (), "give one of messages, presence, lifecycle and occupancy"),
        ({"channel": "x", "messages": {}, "lifecycle": "channel.opened"}, (), "give one of"),
        ({"channel": ":x", "messages": {}}, (), "Invalid channel name"),
        ({"chanel": "x"}, (), "chanel"),
        ({"channel": "x", "presence": {"action": "hop", "clientId": "a"}}, (), "action must be"),
        ({"channel": "x", "messages": {"data": 5}}, (), "data"),
        ({"channel": "x", "lifecycle": "channel.region.active"}, (), "enum"),
        ({"channel": "x", "messages": {}}, ("--rule", "nope"), "no rule 'nope'"),
        ({"channel": "x", "messages": {}}, ("--app", "nope"), "no app 'nope'"),
        ("{", (), "truncated"),
        ("/no/such/file", (), "No such file"),
    ],
)
def test_what_cannot_be_looked_at_is_said_in_a_line(tmp_path: Path, event: Any, options: tuple[str, ...], reason: str) -> None:
    done = run(tmp_path, event, *options)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rule_that_cannot_run_is_named(tmp_path: Path) -> None:
    config = tmp_path / "core.toml"
    config.write_text('[[apps]]\nid="a"\n[[apps.rules]]\nid="bad"\ntarget={routing_key="#{nope}"}\n')
    done = CliRunner().invoke(app, ["rules", "test", "-c", str(config), '{"channel":"x","messages":{}}'])
    assert done.exit_code == 2
    assert "rule 'bad' of app 'a': target.routing_key" in done.stderr


def test_params_of_a_channel_are_no_part_of_its_name() -> None:
    """R1.10"""
    (found,) = look({"channel": "[?rewind=1]room", "messages": {"data": "x"}}, {"source": {"channel_filter": "^room$"}})
    assert found.output is not None
    assert json.loads(found.output.value)["channel"] == "room"
    (found,) = look({"channel": "[meta]room", "messages": {"data": "x"}}, {})
    assert found == Preview("r0", None, "the channel filter does not match")


def test_times_and_connections_of_a_sample() -> None:
    sample = {
        "channel": "c",
        "timestamp": 5,
        "connectionId": "abc",
        "messages": [{"data": "x"}, {"data": "y", "extras": {"ephemeral": False}}],
    }
    values = [json.loads(each.output.value) for each in look(sample, {}) if each.output]
    assert [(value["timestamp"], value["messages"][0]["id"]) for value in values] == [(5, "abc:0:0"), (5, "abc:0:1")]


def test_a_rule_with_a_schema_is_shown_before_its_payload_is_encoded(tmp_path: Path) -> None:
    """The registry of the core may be out of reach from here."""
    config = tmp_path / "core.toml"
    config.write_text("""
[schema_registry]
url = "https://not-from-here"
username = "u"
password_file = "not-on-this-machine"
[[apps]]
id = "shop"
[[apps.rules]]
id = "orders"
target = { routing_key = "orders:#{channelName}", enveloped = false, schema = { format = "avro", subject = "orders-value" } }
""")
    event = json.dumps({"channel": "a", "messages": {"data": {"id": 1}}})
    found = CliRunner().invoke(app, ["rules", "test", "-c", str(config), event, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(json.loads(found.stdout)["results"][0]["value"]) == {"id": 1}
