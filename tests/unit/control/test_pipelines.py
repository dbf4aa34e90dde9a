"""Rules and mappings through the Control API."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest

from core.mappings import Mapping, MappingConfig, Steering, Wanted
from core.registry import seal_secret
from core.rules import RuleConfig
from tests.unit.control.cores import OneCore, Topic

RULE: dict[str, Any] = {
    "ruleType": "kafka",
    "requestMode": "single",
    "status": "enabled",
    "source": {"channelFilter": "^chat:.*", "type": "channel.message"},
    "target": {"routingKey": "topic:#{channelName}", "brokers": [], "auth": None, "enveloped": False, "format": "json"},
}
FOREIGN = {
    **RULE,
    "target": {
        **RULE["target"],
        "brokers": ["b:9092", "a.example"],
        "auth": {"sasl": {"mechanism": "scram-sha-256", "username": "u", "password": "hush-hush"}},
    },
}


@pytest.fixture
def core() -> OneCore:
    return OneCore(Topic())


@pytest.fixture
def app(core) -> str:
    return core.an_app()


def test_a_rule_comes_back_letter_for_letter(core, app):
    made = core.made(f"/apps/{app}/rules", {**RULE, "unknown": 1})
    assert {name: made[name] for name in RULE} == RULE
    assert (made["appId"], made["version"], made["_links"], made["running"]) == (app, "1.2", None, False)
    assert core.ask("GET", f"/apps/{app}/rules/{made['id']}").json() == made
    assert core.ask("GET", f"/apps/{app}/rules").json() == [made]

    core.now_ms += 3
    changed = core.ask("PATCH", f"/apps/{app}/rules/{made['id']}", {"ruleType": "kafka", "target": {"routingKey": "other"}}).json()
    assert changed == {**made, "target": {**made["target"], "routingKey": "other"}, "modified": made["modified"] + 3}
    assert core.ask("DELETE", f"/apps/{app}/rules/{made['id']}").status_code == 204
    for method in ("GET", "DELETE", "PATCH"):
        assert core.ask(method, f"/apps/{app}/rules/{made['id']}", RULE).status_code == 404


def test_what_the_public_tools_leave_out_has_defaults(core, app):
    sparse = {"ruleType": "kafka", "requestMode": "single", "status": "", "source": {"channelFilter": "", "type": "channel.message"}}
    made = core.made(f"/apps/{app}/rules", {**sparse, "target": {"routingKey": "t", "format": "", "auth": {"sasl": {"mechanism": ""}}}})
    assert (made["status"], made["source"]["channelFilter"]) == ("enabled", "")
    assert made["target"] == {"routingKey": "t", "brokers": [], "auth": None, "enveloped": True, "format": "json"}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("ruleType",), "http", "ruleType"),
        (("requestMode",), "many", "requestMode"),
        (("status",), "asleep", "status"),
        (("source",), [], "source"),
        (("source", "type"), "channel.other", "source.type"),
        (("source", "channelFilter"), "(", "source.channelFilter"),
        (("source", "channelFilter"), 7, "source.channelFilter"),
        (("target", "routingKey"), "#{", "target.routingKey"),
        (("target", "routingKey"), "tidegate.log:x", "target.routingKey"),
        (("target", "routingKey"), None, "target.routingKey"),
        (("target", "brokers"), "a:1", "target.brokers"),
        (("target", "format"), "xml", "target.format"),
        (("target", "schema"), {"subject": "orders-value", "format": "xml"}, "target.schema.format"),
        (("target", "schema"), {"subject": "orders-value", "format": "avro"}, "target.schema"),
        (("target", "enveloped"), "yes", "target.enveloped"),
        (("target", "headers"), [{"name": 1}], "target.headers[0].name"),
        (("target", "auth"), {"sasl": {"mechanism": "gssapi", "username": "u", "password": "p"}}, "target.auth.sasl.mechanism"),
    ],
)
def test_what_a_core_would_not_run_is_refused_with_its_field(core, app, path, value, field):
    body = copy.deepcopy(RULE)
    place = body
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    answer = core.ask("POST", f"/apps/{app}/rules", body)
    assert (answer.status_code, list(answer.json()["details"])) == (422, [field])
    assert core.topic.text().count("rule:") == 0


def test_a_rule_into_the_cores_own_cluster_may_come_with_what_names_it_to_others(core, app, monkeypatch):
    """The public Terraform provider cannot leave `auth` out, and leaves empty texts out of it."""
    run: list[RuleConfig] = []
    make = core.pipelines._make_rule
    monkeypatch.setattr(core.pipelines, "_make_rule", lambda app, config, **more: run.append(config) or make(app, config, **more))
    for sent, shown in (
        ({"mechanism": "plain"}, {"mechanism": "plain", "username": None, "password": None}),
        ({"mechanism": "plain", "username": "-", "password": "-"}, {"mechanism": "plain", "username": "-", "password": "-"}),
    ):
        made = core.made(f"/apps/{app}/rules", RULE | {"target": RULE["target"] | {"auth": {"sasl": sent}}})
        assert made["target"]["auth"] == {"sasl": shown}
        assert core.ask("GET", f"/apps/{app}/rules/{made['id']}").json() == made
    assert run
    assert all(config.target.auth is None for config in run)


def test_a_password_is_sealed_hidden_kept_and_changed(core, app):
    made = core.made(f"/apps/{app}/rules", FOREIGN)
    assert made["target"]["auth"]["sasl"]["password"] == "hush-hush"
    path = f"/apps/{app}/rules/{made['id']}"
    hidden = core.ask("GET", path, token="reader").json()
    assert hidden["target"]["auth"] == {"sasl": {"mechanism": "scram-sha-256", "username": "u", "password": None}}
    assert [one["action"] for one in core.audit(action="rule.")] == ["rule.create.secret", "rule.create"]

    # A client without the scope sends back what it was shown: the password stays.
    back = core.ask("PATCH", path, {"ruleType": "kafka", "target": hidden["target"] | {"routingKey": "t"}}, token="operator").json()
    assert (back["target"]["routingKey"], back["target"]["auth"]["sasl"]["password"]) == ("t", None)
    assert core.ask("GET", path).json()["target"]["auth"]["sasl"]["password"] == "hush-hush"
    assert core.audit()[0]["action"] == "rule.read"

    sasl = {"mechanism": "plain", "username": "u", "password": "other-secret"}
    core.ask("PATCH", path, {"ruleType": "kafka", "target": {"auth": {"sasl": sasl}}})
    change = next(one for one in core.audit(action="rule.change") if one["outcome"] == "applied")
    assert change["after"]["secretsChanged"] == ["target.auth.sasl.password"]
    assert core.ask("GET", path).json()["target"]["auth"] == {"sasl": sasl}
    everything = core.topic.text() + json.dumps(core.audit(limit="1000"))
    assert "hush-hush" not in everything
    assert "other-secret" not in everything
    assert core.ask("PATCH", path, {"ruleType": "kafka", "target": {"auth": None}}).json()["target"]["auth"] is None
    assert core.control.ledger.get("rule", f"{app}:{made['id']}").data.get("password") is None


def test_another_cluster_comes_back_letter_for_letter_and_wrong_ones_with_their_field(core, app):
    sasl = {
        "mechanism": "oauthbearer",
        "username": "client",
        "password": "hush-hush",
        "tokenEndpoint": "https://t.example",
        "tokenCa": "-----BEGIN CERTIFICATE-----",
        "scope": "kafka",
    }
    target = {"routingKey": "t", "brokers": ["b:9092"], "tls": True, "ca": "-----BEGIN CERTIFICATE-----", "auth": {"sasl": sasl}}
    made = core.made(f"/apps/{app}/rules", {**RULE, "target": target})
    assert {name: made["target"][name] for name in target} == target
    for change, field in (
        ({"brokers": ["b 9092"]}, "target.brokers"),
        ({"brokers": []}, "target.tls"),
        ({"auth": {"sasl": {**sasl, "tokenEndpoint": "http://t.example"}}}, "target.auth.sasl.tokenEndpoint"),
        ({"auth": {"sasl": {**sasl, "tokenCa": "no certificate"}}}, "target.auth.sasl.tokenCa"),
        ({"tls": False}, "target.ca"),
    ):
        answer = core.ask("POST", f"/apps/{app}/rules", {**RULE, "target": target | change})
        assert (answer.status_code, list(answer.json()["details"])) == (422, [field])


def test_a_core_runs_at_its_start_what_is_there_then(core, app):
    rule = core.made(f"/apps/{app}/rules", FOREIGN)["id"]
    mapping = core.made(f"/apps/{app}/mappings", {"topics": ["orders"], "channel": "orders:#{key}", "from": "earliest"})["id"]
    gone = core.an_app("gone")
    core.made(f"/apps/{gone}/rules", RULE)
    core.ask("DELETE", f"/apps/{gone}")
    next_start = OneCore(core.topic, "core-2")
    failures: list[Any] = []
    (ran,) = next_start.pipelines.rules_to_run(lambda *failure: failures.append(failure))
    ((mapped, _),) = next_start.pipelines.mappings_to_run(lambda *failure: failures.append(failure))
    assert (ran.app, ran.id, ran.config.target.auth.sasl.password.reveal()) == (app, rule, "hush-hush")
    assert (mapped.app, mapped.id, mapped.config.start, mapped.config.topics) == (app, mapping, "earliest", ["orders"])
    assert failures == []
    for core_, running in ((core, False), (next_start, True)):
        assert core_.ask("GET", f"/apps/{app}/rules/{rule}").json()["running"] is running
        assert core_.ask("GET", f"/apps/{app}/mappings/{mapping}").json()["running"] is running
    core.ask("PATCH", f"/apps/{app}/rules/{rule}", {"ruleType": "kafka", "target": {"routingKey": "t"}})
    assert next_start.ask("GET", f"/apps/{app}/rules/{rule}").json()["running"] is False, "it still runs what it was"


def test_what_a_core_runs_follows_the_records_and_stays_the_same_where_they_do(core, app):
    other = OneCore(core.topic, "core-2")
    made = [core.made(f"/apps/{app}/rules", RULE)["id"] for _ in range(3)]
    before = other.pipelines.rules_to_run(print)
    assert [(rule.id, rule.begun, rule.enabled) for rule in before] == [(name, 1, True) for name in made]
    path = f"/apps/{app}/rules/{made[0]}"
    core.ask("PATCH", path, {"ruleType": "kafka", "target": {"routingKey": "t"}})
    core.ask("DELETE", f"/apps/{app}/rules/{made[1]}")
    now = other.pipelines.rules_to_run(print)
    assert [(rule.id, rule.routing) for rule in now] == [(made[0], "t"), (made[2], RULE["target"]["routingKey"])]
    assert now[1] is before[2]
    assert other.ask("GET", path).json()["running"]
    other.pipelines.runs = lambda rule: rule is not now[0]
    assert not other.ask("GET", path).json()["running"], "not in force everywhere yet"
    other.pipelines.live = lambda label: {"core": "core-2", "label": label}
    assert other.ask("GET", path).json()["live"] == {"core": "core-2", "label": f"{app}/{made[0]}"}
    assert "live" not in json.dumps(core.audit()), "what is live is no part of a change"
    core.ask("DELETE", f"/apps/{app}")
    assert other.pipelines.rules_to_run(print) == []


def test_a_rule_that_was_disabled_is_another_one_when_it_is_enabled_again(core, app):
    path = f"/apps/{app}/rules/{core.made(f'/apps/{app}/rules', RULE)['id']}"
    begun = []
    for status in ("enabled", "disabled", "disabled", "enabled", "enabled"):
        core.ask("PATCH", path, {"ruleType": "kafka", "status": status})
        (rule,) = core.pipelines.rules_to_run(print)
        begun.append(rule.begun)
    assert begun == [1, 1, 4, 5, 5]


def test_a_new_seal_is_no_new_rule(core, app):
    core.made(f"/apps/{app}/rules", FOREIGN)
    ((name, key),) = [*core.control.ledger._entries["rule"].items()]
    (before,) = core.pipelines.rules_to_run(print)
    data = {**key.data, "password": seal_secret(core.control.keyring, key.key, "hush-hush")}
    core.reads(f"rule:{name}", core.control.ledger.next(key.key, data, "x"))
    (after,) = core.pipelines.rules_to_run(print)
    assert after is before


def test_a_record_that_cannot_run_keeps_no_core_from_starting(core, app):
    core.made(f"/apps/{app}/rules", RULE)
    core.reads(f"rule:{app}:new", b'{"v":1,"rev":1,"body":{"requestMode":"of a later version"}}')
    failures: list[str] = []
    rules_ = core.pipelines.rules_to_run(lambda record, why: failures.append(record))
    assert len(rules_) == 1
    core.pipelines.rules_to_run(lambda record, why: failures.append(record))
    assert failures == [f"rule:{app}:new"], "said once"


def test_a_mapping_comes_changes_and_goes(core, app):
    body = {"topics": ["orders"], "channel": "orders:#{key}", "value": "json"}
    made = core.made(f"/apps/{app}/mappings", body)
    assert made | body == made
    assert (made["status"], made["from"], made["messageName"], made["running"]) == ("enabled", None, None, False)
    changed = core.ask("PATCH", f"/apps/{app}/mappings/{made['id']}", {"messageName": "order", "value": None}).json()
    assert (changed["messageName"], changed["value"]) == ("order", None)
    for wrong, field in (({"channel": "#{nonsense}"}, "channel"), ({"topics": []}, "topics"), ({"topics": ["tidegate.log"]}, "topics")):
        answer = core.ask("POST", f"/apps/{app}/mappings", body | wrong)
        assert (answer.status_code, list(answer.json()["details"])) == (422, [field])
    assert core.ask("DELETE", f"/apps/{app}/mappings/{made['id']}").status_code == 204
    assert core.ask("GET", f"/apps/{app}/mappings").json() == []


def test_those_of_core_toml_are_shown_and_not_changed():
    rule = msgspec.convert({"id": "out", "target": {"routing_key": "t:#{channelName}"}}, RuleConfig)
    mapping = msgspec.convert({"id": "in", "topics": ["orders"], "channel": "c"}, MappingConfig)
    core = OneCore(Topic(), static_rules=[("shop", rule)], static_mappings=[("shop", mapping)])
    (shown,) = core.ask("GET", "/apps/shop/rules").json()
    assert (shown["id"], shown["running"], shown["target"]["routingKey"]) == ("out", True, "t:#{channelName}")
    assert core.ask("GET", "/apps/shop/mappings/in").json()["topics"] == ["orders"]
    assert core.ask("GET", "/apps/bank/rules").json() == []
    for method, path in (("POST", "rules"), ("DELETE", "rules/out"), ("PATCH", "mappings/in")):
        assert core.ask(method, f"/apps/shop/{path}", RULE).json()["code"] == 40300


# --- mappings that run --------------------------------------------------------------------------------------------------------------------

IN = {"topics": ["orders"], "channel": "orders:#{key}"}


def wanted(core: OneCore) -> dict[str, Wanted]:
    def failed(record: str, why: str) -> None:
        raise AssertionError((record, why))

    return {each.mapping.id: each for each in core.pipelines.mappings_to_run(failed)}


def test_what_is_to_run_follows_every_change(core, app):
    """Row M7.1: mappings and apps, as they are made, changed, disabled and deleted."""
    path = f"/apps/{app}/mappings/{(name := core.made(f'/apps/{app}/mappings', IN)['id'])}"
    before = wanted(core)[name].mapping
    assert core.ask("GET", path).json()["running"] is True
    assert wanted(core)[name].mapping is before, "made once"
    core.ask("PATCH", path, {"messageName": "order"})
    assert core.ask("GET", path).json()["running"] is False
    assert wanted(core)[name].mapping.config.message_name == "order"
    for what, body in ((path, {"status": "disabled"}), (f"/apps/{app}", {"status": "disabled"})):
        core.ask("PATCH", what, body)
        assert wanted(core) == {}
        core.ask("PATCH", what, {"status": "enabled"})
        assert list(wanted(core)) == [name]
    core.ask("DELETE", path)
    assert wanted(core) == {}
    again = core.made(f"/apps/{app}/mappings", IN)["id"]
    assert again != name, "nothing goes on where another mapping was"
    core.ask("DELETE", f"/apps/{app}")
    assert wanted(core) == {}


def test_a_mapping_is_held_and_let_go(core, app):
    """Row M7.2."""
    path = f"/apps/{app}/mappings/{(name := core.made(f'/apps/{app}/mappings', IN)['id'])}"
    assert wanted(core)[name].steering == Steering()
    assert core.made(f"{path}/pause", status=200)["paused"] is True
    core.ask("PATCH", path, {"messageName": "order"})
    assert wanted(core)[name].steering == Steering(paused=True), "a change does not let it go"
    assert core.made(f"{path}/resume", status=200)["paused"] is False
    assert wanted(core)[name].steering == Steering()
    (resumed, paused) = [one for one in core.audit(action="mapping.") if one["action"] in ("mapping.pause", "mapping.resume")]
    assert (paused["before"]["paused"], paused["after"]["paused"], resumed["after"]["paused"]) == (False, True, False)
    assert paused["target"] == {"app": app, "mapping": name}


@pytest.mark.parametrize(
    ("body", "moved", "not_moved"),
    [
        ({"to": "earliest"}, [("orders", 0), ("orders", 9), ("late-1", 0)], [("other", 0)]),
        ({"to": 1_700_000_000_000, "topic": "orders"}, [("orders", 0)], [("late-1", 0)]),
        ({"to": "latest", "topic": "late-1", "partition": 2}, [("late-1", 2)], [("late-1", 1), ("late-2", 2)]),
        ({"topic": "orders", "partition": 1, "offset": 42}, [("orders", 1)], [("orders", 0)]),
    ],
)
def test_a_seek_moves_what_it_names(core, app, body, moved, not_moved):
    """Row M7.3."""
    name = core.made(f"/apps/{app}/mappings", {**IN, "topicPattern": "late-.*"})["id"]
    shown = core.made(f"/apps/{app}/mappings/{name}/seek", body, status=200)["seek"]
    assert shown | body == shown
    assert shown["number"] == 1
    steering = wanted(core)[name].steering
    for place in moved:
        assert (seek := steering.seek_of(*place)) is not None
        assert (seek.number, seek.to, seek.offset) == (1, body.get("to"), body.get("offset"))
    assert [steering.seek_of(*place) for place in not_moved] == [None] * len(not_moved)
    (entry,) = core.audit(action="mapping.seek")
    assert (entry["before"]["seek"], entry["after"]["seek"]) == (None, shown)


def test_seeks_are_numbered_and_kept_as_long_as_they_may_matter(core, app):
    """Row M7.3: for a partition that nobody ran meanwhile, the last one that moves it counts."""
    name = core.made(f"/apps/{app}/mappings", {"topics": ["a", "b"], "channel": "c"})["id"]

    def seek(**body: Any) -> Steering:
        core.made(f"/apps/{app}/mappings/{name}/seek", body, status=200)
        return wanted(core)[name].steering

    seek(to="earliest")
    seek(topic="a", partition=0, offset=7)
    steering = seek(to="latest", topic="b")
    assert [steering.seek_of(*place).number for place in (("a", 0), ("a", 1), ("b", 0))] == [2, 1, 3]
    steering = seek(topic="a", partition=0, offset=9)
    assert [one.number for one in steering.seeks] == [1, 3, 4]
    assert [one.number for one in seek(to="earliest").seeks] == [5]
    core.ask("PATCH", f"/apps/{app}/mappings/{name}", {"topics": ["a", "b", "new"]})
    assert wanted(core)[name].steering.seek_of("new", 0) is None, "what is mapped later begins where `from` says"
    for number in range(200):
        steering = seek(topic="a", partition=number, offset=0)
    assert len(steering.seeks) == core.control.limits.mapping_seeks
    assert steering.last is not None
    assert steering.last.number == 205


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "to"),
        ({"to": "end"}, "to"),
        ({"to": -1}, "to"),
        ({"to": 2**63}, "to"),
        ({"to": "latest", "offset": 1}, "to"),
        ({"offset": 1}, "partition"),
        ({"offset": 1, "topic": "orders"}, "partition"),
        ({"to": "latest", "partition": 1}, "topic"),
        ({"to": "latest", "topic": "other"}, "topic"),
        ({"to": "latest", "topic": 7}, "topic"),
        ({"offset": -1, "topic": "orders", "partition": 0}, "offset"),
        ({"offset": 2**63, "topic": "orders", "partition": 0}, "offset"),
        ({"offset": 1, "topic": "orders", "partition": 2**31}, "partition"),
    ],
)
def test_a_seek_that_leads_nowhere_is_refused_with_its_field(core, app, body, field):
    name = core.made(f"/apps/{app}/mappings", IN)["id"]
    answer = core.ask("POST", f"/apps/{app}/mappings/{name}/seek", body)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["details"]
    assert "steering:" not in core.topic.text()


def test_mappings_of_core_toml_are_held_and_moved_too():
    """Rows M7.2 and M7.3."""
    mapping = msgspec.convert({"id": "in", "topics": ["orders"], "channel": "c"}, MappingConfig)
    core = OneCore(Topic(), static_mappings=[("shop", mapping)])
    core.made("/apps/shop/mappings/in/pause", status=200)
    shown = core.made("/apps/shop/mappings/in/seek", {"to": "earliest"}, status=200)
    assert (shown["paused"], shown["seek"]["to"]) == (True, "earliest")
    other = OneCore(core.topic, "core-2", static_mappings=[("shop", mapping)])
    (each,) = wanted(other).values()
    assert isinstance(each.mapping, Mapping)
    assert each.steering.paused
    assert each.steering.seek_of("orders", 3).number == 1
    assert core.ask("POST", "/apps/shop/mappings/none/pause").json()["code"] == 40400


def test_what_was_asked_of_a_deleted_mapping_is_forgotten(core, app):
    name = core.made(f"/apps/{app}/mappings", IN)["id"]
    core.made(f"/apps/{app}/mappings/{name}/pause", status=200)
    assert core.control.ledger.outdated(core.now_ms) == []
    core.ask("DELETE", f"/apps/{app}/mappings/{name}")
    assert core.control.ledger.outdated(core.now_ms) == [f"steering:{app}:{name}"]
