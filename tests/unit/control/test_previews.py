"""What the console asks: previews, verdicts, channels, the cluster."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from core.control.io.peers import Peers
from core.mappings.schemas import Unknown
from core.registry import App
from core.rules import RuleConfig
from relay.runtime.listener import Listener, Refusal
from tests.unit.control.cores import OneCore, Topic

EVENT = {"channel": "chat:lobby", "messages": {"name": "greet", "data": {"text": "hello"}, "clientId": "bob"}}
RECORD = {"topic": "orders", "key": "42", "value": {"state": "paid"}, "headers": {"type": "order"}}
MAPPING = {"topics": ["orders"], "channel": "orders:#{key}", "messageName": "#{value.state}"}


@pytest.fixture
def core() -> OneCore:
    return OneCore(Topic())


def rule(**target: Any) -> dict[str, Any]:
    return {
        "ruleType": "kafka",
        "requestMode": "single",
        "source": {"type": "channel.message", "channelFilter": "^chat:"},
        "target": {"routingKey": "out:#{channelName}", "enveloped": False, **target},
    }


def previewed(core: OneCore, app: str, kind: str, body: Any, *, status: int = 200, **more: Any) -> Any:
    answer = core.ask("POST", f"/apps/{app}/preview/{kind}", body, token="reader", **more)
    assert answer.status_code == status, answer.text
    return answer.json()


# --- rules -----------------------------------------------------------------------------------------------------------------------------


def test_a_rule_that_is_not_there_yet_shows_its_record_and_leaves_nothing(core):
    app = core.an_app()
    before = len(core.topic.records)
    (found,) = previewed(core, app, "rules", {"event": EVENT, "rule": rule(headers=[{"name": "team", "value": "web"}])})
    assert (found["result"], found["topic"], found["key"], found["value"]) == ("record", "out", "chat:lobby", '{"text":"hello"}')
    assert {"name": "team", "value": "web"} in found["headers"]
    assert len(core.topic.records) == before


def test_without_a_rule_all_of_the_app_are_tried_and_by_its_id_one(core):
    app = core.an_app()
    first = core.made(f"/apps/{app}/rules", rule())["id"]
    second = core.made(f"/apps/{app}/rules", {**rule(), "source": {"type": "channel.presence"}})["id"]
    found = {each["rule"]: each["result"] for each in previewed(core, app, "rules", {"event": EVENT})}
    assert found == {first: "record", second: "none"}
    (one,) = previewed(core, app, "rules", {"event": EVENT, "ruleId": second})
    assert one["reason"] == "the rule is for channel.presence"
    assert previewed(core, app, "rules", {"event": EVENT, "ruleId": "none"}, status=404)["code"] == 40400
    assert previewed(core, "none", "rules", {"event": EVENT}, status=404)["code"] == 40400


def test_a_rule_of_the_file_is_tried_too():
    config = msgspec.convert({"id": "static", "source": {}, "target": {"routing_key": "t:#{channelName}"}}, RuleConfig)
    core = OneCore(Topic(), static=[App(id="shop")], static_rules=[("shop", config)])
    (found,) = previewed(core, "shop", "rules", {"event": EVENT})
    assert (found["rule"], found["topic"], json.loads(found["value"])["channel"]) == ("static", "t", "chat:lobby")


def test_msgpack_is_shown_as_what_it_says(core):
    (found,) = previewed(core, core.an_app(), "rules", {"event": EVENT, "rule": rule(enveloped=True, format="msgpack")})
    assert found["decoded"]["channel"] == "chat:lobby"
    assert "value" not in found
    assert found["valueBase64"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"event": EVENT, "rule": rule(routingKey="#{nothing}")}, "target.routingKey"),
        ({"event": EVENT, "rule": {**rule(), "source": {"type": "channel.message", "channelFilter": "("}}}, "source.channelFilter"),
        ({"event": EVENT, "rule": "x"}, "rule"),
        ({"event": EVENT, "ruleId": 1}, "ruleId"),
        ({"rule": rule()}, "event"),
        ({"event": {"channel": "a"}, "rule": rule()}, "event"),
        ({"event": {"channel": "", "lifecycle": "channel.opened"}, "rule": rule()}, "event"),
        ({"event": {**EVENT, "timestamp": 10**30}, "rule": rule()}, "event"),
        ({"event": {**EVENT, "more": 1}, "rule": rule()}, "event"),
    ],
)
def test_what_is_wrong_is_told_by_field(core, body, field):
    assert list(previewed(core, core.an_app(), "rules", body, status=422)["details"]) == [field]


# --- mappings --------------------------------------------------------------------------------------------------------------------------


def test_a_mapping_that_is_not_there_yet_shows_its_message(core):
    (found,) = previewed(core, core.an_app(), "mappings", {"record": RECORD, "mapping": MAPPING})
    assert (found["channel"], found["message"]["name"], json.loads(found["message"]["data"])) == ("orders:42", "paid", {"state": "paid"})
    assert found["message"]["extras"]["headers"]["type"] == "order"


def test_records_that_become_no_message_say_why_and_what_then(core):
    app = core.an_app()
    (found,) = previewed(core, app, "mappings", {"record": {"topic": "orders", "key": "1", "value": "x"}, "mapping": MAPPING})
    assert (found["reason"], found["then"]) == ("missing_field", "stop")
    (found,) = previewed(core, app, "mappings", {"record": {"topic": "others"}, "mapping": MAPPING})
    assert (found["reason"], found["detail"]) == ("not_read", "does not read the topic others")
    core.made(f"/apps/{app}/mappings", MAPPING)
    assert previewed(core, app, "mappings", {"record": {"topic": "others"}}) == []
    assert [each["channel"] for each in previewed(core, app, "mappings", {"record": RECORD})] == ["orders:42"]
    for body, field in (
        ({"mapping": MAPPING}, "record"),
        ({"record": {"topic": "t", "offset": 1 << 63}}, "record"),
        ({"record": RECORD, "mapping": []}, "mapping"),
        ({"record": RECORD, "mapping": {"topics": ["orders"]}}, "channel"),
    ):
        assert list(previewed(core, app, "mappings", body, status=422)["details"]) == [field]


def test_a_preview_waits_for_schema_registry_as_long_as_it_takes(core, monkeypatch):
    asked = []

    class Slow:
        def find(self, _form: str, schema: int) -> Unknown | None:
            asked.append(schema)
            return Unknown("the registry does not know it") if len(asked) > 2 else None

    core.registry_of_schemas = Slow()
    make = core.pipelines._make_mapping
    monkeypatch.setattr(core.pipelines, "_make_mapping", lambda app, config: make(app, config, registry=True))
    body = {
        "record": {"topic": "orders", "value": {"base64": "AAAAAAcCYQ=="}},
        "mapping": {"topics": ["orders"], "channel": "orders", "value": "avro"},
    }
    (found,) = previewed(core, core.an_app(), "mappings", body)
    assert (found["reason"], asked) == ("unknown_schema", [7, 7, 7])


# --- keys ------------------------------------------------------------------------------------------------------------------------------


def test_can_says_which_line_says_so(core):
    app = core.an_app()
    key = core.made(f"/apps/{app}/keys", {"name": "web", "capability": {"chat:*": ["publish"], "*": ["history"]}})["id"]

    def can(operation: str, channel: str) -> Any:
        query = {"operation": operation, "channel": channel}
        return core.ask("GET", f"/apps/{app}/keys/{key}/can", params=query, token="reader")

    yes = can("publish", "chat:lobby").json()
    assert (yes["permitted"], yes["by"]) == (True, ['"chat:*":["publish"]'])
    no = can("publish", "room").json()
    assert (no["permitted"], no["by"], no["other"]) == (False, [], ['"*":["history"]'])
    assert no["because"].startswith(f"no: key {app}.{key} has for room only")
    assert can("presence", "[meta]x").json()["because"].endswith("has no line for [meta]x")
    assert can("presence", "[filter=bmFtZQ==]room").json()["because"].endswith("a derived channel can be subscribed to, and nothing else")
    assert can("subscribe", "[filter=bmFtZQ==]room").json()["because"].endswith("has no line for [filter=bmFtZQ==]room")
    through = core.made(f"/apps/{app}/keys", {"name": "through", "capability": {"[filter]*": ["*"]}})["id"]
    for channel in ("[filter=bmFtZQ==?rewind=1]room", "[?rewind=1][filter=bmFtZQ==]room", "[filter]room"):
        for operation, permitted in (("subscribe", True), ("publish", False), ("history", False)):
            query = {"operation": operation, "channel": channel}
            answer = core.ask("GET", f"/apps/{app}/keys/{through}/can", params=query, token="reader").json()
            assert (answer["permitted"], answer["by"]) == (permitted, ['"[filter]*":["*"]'] if permitted else [])
    assert list(can("fly", "room").json()["details"]) == ["operation"]
    assert list(can("publish", "").json()["details"]) == ["channel"]
    core.ask("POST", f"/apps/{app}/keys/{key}/revoke")
    assert can("publish", "chat:lobby").json()["because"] == "no: the key is revoked"


def test_a_key_of_a_disabled_app_may_nothing(core):
    app = core.an_app()
    key = core.made(f"/apps/{app}/keys", {"capability": {"*": ["*"]}})["id"]
    core.ask("PATCH", f"/apps/{app}", {"status": "disabled"})
    verdict = core.ask("GET", f"/apps/{app}/keys/{key}/can", params={"operation": "publish", "channel": "a"}).json()
    assert (verdict["permitted"], verdict["because"]) == (False, "no: the app is disabled")


def test_who_asks_for_no_secrets_is_sent_none_and_leaves_no_entry(core):
    app = core.an_app()
    core.made(f"/apps/{app}/keys", {"capability": {"*": ["*"]}})
    entries = len(core.audit())
    keys = core.ask("GET", f"/apps/{app}/keys", headers={"x-tidegate-secrets": "none"}).json()
    assert [key["key"] for key in keys] == [None]
    assert len(core.audit()) == entries
    assert core.ask("GET", f"/apps/{app}/keys").json()[0]["key"] is not None


# --- channels, cluster -----------------------------------------------------------------------------------------------------------------


def test_channels_are_listed_by_name_in_pages(core):
    app = core.an_app()
    core.open_channels = {f"chat:{n}": (n, 0, n, 0, 0, 0, 0, 0) for n in range(5)} | {"other": (1, 0, 0, 0, 0, 0, 0, 0)}

    def names(**query: str) -> list[str]:
        return [one["channelId"] for one in core.ask("GET", f"/apps/{app}/channels", params=query, token="reader").json()]

    assert names(prefix="chat:", limit="2") == ["chat:0", "chat:1"]
    assert names(prefix="chat:", limit="2", after="chat:1") == ["chat:2", "chat:3"]
    assert "other" in names()
    assert core.ask("GET", f"/apps/{app}/channels", params={"limit": "0"}).status_code == 422


def test_other_cores_are_shown_the_token_of_who_asks_and_follow_nobody_else():
    shown: list[str] = []

    async def status(request: Request) -> Response:
        shown.append(request.headers.get("authorization", ""))
        if request.url.path == "/v1/status":
            return RedirectResponse("/elsewhere")
        return JSONResponse({"node": "elsewhere"})

    async def run() -> dict[str, Any]:
        app = Starlette(routes=[Route("/v1/status", status), Route("/elsewhere", status)])
        listener = await Listener(context=None, app=app, make_listener=lambda *_: Refusal(404)).start("127.0.0.1", 0)
        peers = Peers(lambda: {"node": "core-1"}, [f"http://127.0.0.1:{listener.port}"])
        try:
            return await peers.cluster("Bearer root.x")
        finally:
            await peers.close()
            await listener.close()

    found = asyncio.run(run())
    assert shown == ["Bearer root.x"]
    assert found["cores"][1]["error"] == "HTTP 307"


def test_the_cluster_is_what_each_core_says_and_each_is_listed_once():
    async def run() -> dict[str, Any]:
        listeners = []
        for name in ("core-1", "core-2"):
            listener = Listener(context=None, app=OneCore(Topic(), name).app, make_listener=lambda *_: Refusal(404))
            listeners.append(await listener.start("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{listener.port}" for listener in listeners]
        peers = Peers(OneCore(Topic(), "core-1").status, [*urls, "http://127.0.0.1:1"])
        try:
            return await peers.cluster()
        finally:
            await peers.close()
            for listener in listeners:
                await listener.close()

    found = asyncio.run(run())
    assert [core.get("node") for core in found["cores"]] == ["core-1", "core-2", None]
    assert found["cores"][2]["error"]
    assert found["peers"] == 3
