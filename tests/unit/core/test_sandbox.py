"""Apps for client suites. Ably protocol docs, 14."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from core.effects import WriteConfig
from core.events import ConfigRead, ConfigWritten
from relay.link.calls import CREATE_APP, DELETE_APP, CreateApp, DeleteApp, encode
from relay.link.frames import Admitted, Fetch, Lost, Page, Refused, Revoke
from relay.model.limits import CoreLimits
from tests.unit.core.dialogue import SECRET, Dialogue

SUITE = {
    "limits": {"presence": {"maxMembers": 250}},
    "keys": [
        {},
        {"capability": '{ "cansubscribe:*":["subscribe"], "canpublish:*":["publish"] }'},
        None,
        {"revocableTokens": True},
        {"capability": '{ "[*]*":["*"] }', "privileged": True},
    ],
    "namespaces": [{"id": "persisted", "persisted": True}, {"id": "mutable", "mutableMessages": True, "other": 1}],
    "channels": [{"name": "persisted:presence_fixtures", "presence": [{"clientId": "client_bool", "data": "true"}]}],
}


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue(sandbox=True)
    core.edge_up()
    return core


def ask(core: Dialogue, what: str, call: Any) -> int:
    req = core.req()
    core.edge_sends(Fetch(req, "", what, encode(call)))
    core.turns()
    return req


def create(core: Dialogue, body: Any, to: list[Dialogue] | None = None) -> Any:
    req = ask(core, CREATE_APP, CreateApp(msgspec.Raw(json.dumps(body).encode())))
    core.config_writes(to)
    core.kafka_round()
    answer = core.answer(req)
    return json.loads(answer.body) if isinstance(answer, Page) else answer


def test_the_answer_has_what_every_suite_reads(core):
    app = create(core, SUITE)
    assert app["id"] == f"{app['accountId']}:{app['appId']}"
    assert len(app["keys"]) == len(SUITE["keys"])
    for one in app["keys"]:
        assert one["keyStr"] == f"{one['keyName']}:{one['keySecret']}" == f"{app['appId']}.{one['id']}:{one['value']}"
    assert [json.loads(one["capability"]) for one in app["keys"]][:3] == [
        {"*": ["*"]},
        {"canpublish:*": ["publish"], "cansubscribe:*": ["subscribe"]},
        {"*": ["*"]},
    ]
    assert [one["revocableTokens"] for one in app["keys"]] == [False, False, False, True, False]
    assert [one["id"] for one in app["namespaces"]] == ["persisted", "mutable"]
    assert app["namespaces"][1]["other"] == 1
    assert app["channels"] == SUITE["channels"]


def test_it_is_answered_only_when_written_and_no_secret_is_in_the_records(core):
    req = ask(core, CREATE_APP, CreateApp(msgspec.Raw(b'{"keys":[{}]}')))
    assert core.sent() == []
    writes = core.take(WriteConfig)
    for write in writes:
        core.happens(ConfigRead(write.key, write.value))
        assert core.sent() == []
        core.happens(ConfigWritten(write.ticket, True))
    (key,) = json.loads(core.answer(req).body)["keys"]
    assert all(key["keySecret"].encode() not in write.value for write in writes)
    assert isinstance(core.admit(key["keyStr"]), Admitted)


def test_every_core_of_the_ring_knows_it(core):
    other = Dialogue(sandbox=True)
    other.edge_up()
    app = create(core, SUITE, to=[core, other])
    assert isinstance(other.admit(app["keys"][0]["keyStr"]), Admitted)
    assert other.registry.app(app["appId"]).namespaces["mutable"].mutable_messages


def test_a_write_that_fails_is_not_called_done(core):
    req = ask(core, CREATE_APP, CreateApp(msgspec.Raw(b"{}")))
    for write in core.take(WriteConfig):
        core.happens(ConfigWritten(write.ticket, False))
    answer = core.answer(req)
    assert isinstance(answer, Refused)
    assert answer.error.code == 50003


def test_deleting_needs_a_key_of_the_app_and_ends_its_sessions(core):
    app, stranger = create(core, SUITE), create(core, SUITE)
    key = app["keys"][0]["keyStr"]
    session = core.admitted(key).session
    opened = core.open("a", session, app=app["appId"])
    core.answer(opened)
    req = ask(core, DELETE_APP, DeleteApp(app["appId"], stranger["keys"][0]["keyStr"]))
    assert core.answer(req).error.code == 40101
    req = ask(core, DELETE_APP, DeleteApp(app["appId"], key))
    core.config_writes()
    assert core.answer(req).status == 204
    frames = core.sent()
    assert [frame.session for frame in frames if isinstance(frame, Revoke)] == [session]
    assert [frame.ref for frame in frames if isinstance(frame, Lost)] == [opened]
    core.append(session, "a")
    assert core.counted("append.no_grant") == 1
    assert core.registry.app(app["appId"]) is None


def test_configured_apps_are_never_deleted(core):
    req = ask(core, DELETE_APP, DeleteApp("shop", f"shop.all:{SECRET}"))
    assert core.answer(req).error.code == 40400


@pytest.mark.parametrize(
    "body", [[], 7, {"keys": 7}, {"keys": [7]}, {"keys": [{"capability": "nonsense"}]}, {"namespaces": [{}]}, {"keys": [{}] * 99}]
)
def test_what_is_no_app(core, body):
    assert create(core, body).error.status_code == 400


def test_there_are_only_so_many():
    core = Dialogue(sandbox=True, limits=CoreLimits(sandbox_apps=1))
    core.edge_up()
    create(core, {})
    assert create(core, {}).error.code == 42910


def test_outside_a_sandbox_there_is_no_such_thing():
    core = Dialogue()
    core.edge_up()
    assert create(core, SUITE).error.code == 40400
    assert core.take(WriteConfig) == []


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b'{"v":1,"secret":"x","capability":"{}"}', b'{"v":1,"secret":"AAAA","capability":"{}"}']
)
def test_a_record_that_cannot_be_read_is_left_out_and_counted(core, value):
    core.happens(ConfigRead("key:shop.all", value))
    core.happens(ConfigRead("unknown-kind:x", value))
    assert core.registry.unreadable == 1
    assert isinstance(core.admit(), Admitted)
