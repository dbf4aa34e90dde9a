"""The Control API as its clients see it."""

from __future__ import annotations

import json

import pytest
import structlog.testing

from core.registry import App
from relay.model.limits import CoreLimits
from tests.unit.control.cores import ALL, SECRET, OneCore, Topic

# --- who may --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"authorization": "Bearer root.wrong"}, {"authorization": "Basic cm9vdA=="}, {"authorization": "Bearer"}]
)
def test_without_a_token_nothing_but_the_document(core, given):
    for method, path in (("GET", "/me"), ("GET", "/accounts/tidegate/apps"), ("POST", "/accounts/tidegate/apps"), ("GET", "/audit")):
        headers = {"authorization": "", **given}
        answer = core.ask(method, path, {}, headers=headers)
        assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (401, 40100, "Access denied")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert core.ask("GET", "/openapi.json", headers={"authorization": ""}).status_code == 200


SCOPE_OF = [
    ("GET", "/accounts/tidegate/apps", {"reader", "operator", "security"}),
    ("POST", "/accounts/tidegate/apps", {"security"}),
    ("PATCH", "/apps/none", {"security"}),
    ("DELETE", "/apps/none", {"security"}),
    ("GET", "/apps/none/keys", {"reader", "operator", "security"}),
    ("POST", "/apps/none/keys", {"security"}),
    ("PATCH", "/apps/none/keys/k", {"security"}),
    ("POST", "/apps/none/keys/k/revoke", {"security"}),
    ("POST", "/apps/none/keys/k/rotate", {"security"}),
    ("GET", "/apps/none/revocations", {"reader", "operator", "security"}),
    ("POST", "/apps/none/revocations", {"security"}),
    ("GET", "/apps/none/namespaces", {"reader", "operator", "security"}),
    ("POST", "/apps/none/namespaces", {"operator"}),
    ("PATCH", "/apps/none/namespaces/n", {"operator"}),
    ("DELETE", "/apps/none/namespaces/n", {"operator"}),
    ("GET", "/apps/none/rules", {"reader", "operator", "security"}),
    ("POST", "/apps/none/rules", {"operator"}),
    ("GET", "/apps/none/rules/r", {"reader", "operator", "security"}),
    ("PATCH", "/apps/none/rules/r", {"operator"}),
    ("DELETE", "/apps/none/rules/r", {"operator"}),
    ("GET", "/apps/none/mappings", {"reader", "operator", "security"}),
    ("POST", "/apps/none/mappings", {"operator"}),
    ("GET", "/apps/none/mappings/m", {"reader", "operator", "security"}),
    ("PATCH", "/apps/none/mappings/m", {"operator"}),
    ("DELETE", "/apps/none/mappings/m", {"operator"}),
    ("POST", "/apps/none/mappings/m/pause", {"operator"}),
    ("POST", "/apps/none/mappings/m/resume", {"operator"}),
    ("POST", "/apps/none/mappings/m/seek", {"operator"}),
    ("POST", "/apps/none/preview/rules", {"reader", "operator", "security"}),
    ("POST", "/apps/none/preview/mappings", {"reader", "operator", "security"}),
    ("GET", "/apps/none/keys/k/can", {"reader", "operator", "security"}),
    ("GET", "/apps/none/channels", {"reader", "operator", "security"}),
    ("GET", "/apps/none/stats", {"reader", "operator", "security"}),
    ("GET", "/accounts/tidegate/stats", {"reader", "operator", "security"}),
    ("GET", "/cluster", {"reader", "operator", "security"}),
    ("GET", "/apps/none/queues", {"reader", "operator", "security"}),
    ("GET", "/tokens", {"security"}),
    ("POST", "/tokens", set()),  # takes two scopes at once
    ("DELETE", "/tokens/none", {"security"}),
    ("GET", "/audit", {"security"}),
]


@pytest.mark.parametrize(("method", "path", "allowed"), SCOPE_OF)
def test_each_scope_permits_what_it_says(core, method, path, allowed):
    for scope in ALL:
        answer = core.ask(method, path, {} if method in ("POST", "PATCH") else None, token=scope)
        assert (answer.status_code == 403) == (scope not in allowed), (scope, answer.text)
        if scope not in allowed:
            assert answer.json()["code"] == 40160


def test_every_route_is_in_the_table_of_scopes(core):
    from core.control.openapi import PATHS

    def shape(path: str) -> str:
        return "/".join(
            "{}" if part.startswith("{") or part in ("none", "k", "n", "r", "m", "tidegate") else part for part in path.split("/")
        )

    documented = {(method.upper(), shape(path)) for path, operations in PATHS.items() for method in operations}
    assert documented - {("GET", "/me"), ("GET", "/me/accounts")} == {(method, shape(path)) for method, path, _ in SCOPE_OF}


def test_me_is_the_first_call_of_every_client(core):
    for prefix in ("/v1", "/api/v1"):
        me = core.ask("GET", "/me", prefix=prefix).json()
        assert (me["account"], me["token"]["id"], me["user"]["id"]) == ({"id": "tidegate", "name": "Tidegate"}, "root", 1)
        assert "write:app" in me["token"]["capabilities"]
    assert core.ask("GET", "/me/accounts").json() == [{"id": "tidegate", "name": "Tidegate"}]


# --- the shape of refusals ------------------------------------------------------------------------------------------------------------


def test_errors_are_not_wrapped(core):
    missing = core.ask("PATCH", "/apps/none", {"name": "x"})
    assert missing.json() == {
        "message": "There is no app none",
        "code": 40400,
        "statusCode": 404,
        "href": "https://help.ably.io/error/40400",
        "details": None,
    }
    wrong = core.ask("POST", "/accounts/tidegate/apps", {"tlsOnly": "yes", "status": "asleep"})
    assert wrong.status_code == wrong.json()["statusCode"] == 422
    assert set(wrong.json()["details"]) == {"name", "tlsOnly", "status"}
    assert core.ask("GET", "/nowhere").json()["code"] == 40400
    assert core.ask("PUT", "/me").status_code == 405
    assert core.ask("GET", "/accounts/other/apps").status_code == 404


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"1", b'{"a":' * 3000])
def test_a_body_that_is_no_object_is_refused(core, content):
    import asyncio

    import httpx

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=core.app), base_url="http://core") as client:
            headers = {"authorization": f"Bearer root.{SECRET}", "content-type": "application/json"}
            return await client.post("/v1/accounts/tidegate/apps", content=content, headers=headers)

    assert asyncio.run(post()).status_code in (400, 422)


def test_a_body_that_does_not_say_that_it_is_json_is_refused(core):
    for content_type in ("", "text/plain", "application/x-www-form-urlencoded"):
        answer = core.ask("POST", "/accounts/tidegate/apps", {"name": "x"}, headers={"content-type": content_type})
        assert answer.status_code == 415


def test_a_body_too_large_is_refused(topic):
    core = OneCore(topic, limits=CoreLimits(control_body_bytes=1_000))
    assert core.ask("POST", "/accounts/tidegate/apps", {"name": "x" * 1_000}).status_code == 413


# --- apps -----------------------------------------------------------------------------------------------------------------------------


def test_an_app_comes_changes_and_goes(core):
    made = core.made("/accounts/tidegate/apps", {"name": "web", "fcmProjectId": "p", "fcmKey": "", "unknown": 1, "status": None})
    assert (made["name"], made["status"], made["tlsOnly"], made["fcmProjectId"], made["apnsAuthType"]) == (
        "web",
        "enabled",
        False,
        "p",
        None,
    )
    assert type(made["created"]) is type(made["modified"]) is int
    assert made in core.ask("GET", "/accounts/tidegate/apps").json()
    assert core.ask("POST", "/accounts/tidegate/apps", {"name": "web"}).json()["details"] == {"name": ["is taken"]}

    core.now_ms += 5
    changed = core.ask("PATCH", f"/apps/{made['id']}", {"status": "disabled", "fcmProjectId": None}).json()
    assert changed == {**made, "status": "disabled", "fcmProjectId": None, "modified": made["modified"] + 5}
    assert core.registry.app(made["id"]).status == "disabled"

    assert core.ask("DELETE", f"/apps/{made['id']}").status_code == 204
    assert core.registry.app(made["id"]) is None
    assert core.ask("DELETE", f"/apps/{made['id']}").status_code == 404
    assert [app["id"] for app in core.ask("GET", "/accounts/tidegate/apps").json()] == ["shop", "bank"]
    assert core.ask("GET", f"/apps/{made['id']}/keys").status_code == 404


def test_keys_of_an_app_that_moved_into_core_toml_are_not_hidden(core, topic):
    app = core.an_app()
    key = core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    moved = OneCore(topic, "core-2", static=[App(id=app, name="web")])
    assert moved.registry.key(f"{app}.{key['id']}") is not None, "it counts"
    assert moved.ask("GET", f"/apps/{app}/keys").json() == [key]


def test_credentials_for_push_are_refused_rather_than_lost(core):
    answer = core.ask("POST", "/accounts/tidegate/apps", {"name": "web", "fcmServiceAccount": "{}"})
    assert (answer.status_code, set(answer.json()["details"])) == (422, {"fcmServiceAccount"})


def test_apps_of_core_toml_are_shown_and_not_changed(core, topic):
    assert [app["id"] for app in core.ask("GET", "/accounts/tidegate/apps").json()] == ["shop", "bank"]
    keys = {key["id"]: key for key in core.ask("GET", "/apps/shop/keys").json()}
    assert keys["chat"]["capability"] == {"chat:*": ["publish", "subscribe"]}
    assert (keys["gone"]["status"], keys["gone"]["key"]) == (1, None)
    written = len(topic.records)
    for method, path in (
        ("PATCH", "/apps/shop"),
        ("DELETE", "/apps/shop"),
        ("POST", "/apps/shop/keys"),
        ("PATCH", "/apps/shop/keys/chat"),
        ("POST", "/apps/shop/keys/chat/revoke"),
        ("POST", "/apps/shop/namespaces"),
    ):
        answer = core.ask(method, path, {"id": "n", "name": "n"} if method != "DELETE" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, 40300)
        assert "core.toml" in answer.json()["message"]
    assert len(topic.records) == written
    assert core.ask("DELETE", "/tokens/root").status_code == 403


def test_there_is_a_bound_to_everything(topic):
    core = OneCore(topic, limits=CoreLimits(control_apps=1, control_per_app=1, control_tokens=1))
    app = core.an_app()
    assert core.ask("POST", "/accounts/tidegate/apps", {"name": "two"}).json()["code"] == 42910
    core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    assert core.ask("POST", f"/apps/{app}/keys", {"name": "l", "capability": {"*": ["*"]}}).json()["code"] == 42910
    core.made(f"/apps/{app}/namespaces", {"id": "k"})
    assert core.ask("POST", f"/apps/{app}/namespaces", {"id": "l"}).status_code == 429
    core.made("/tokens", {"name": "k", "scopes": ["reader"]})
    assert core.ask("POST", "/tokens", {"name": "l", "scopes": ["reader"]}).status_code == 429


# --- keys -----------------------------------------------------------------------------------------------------------------------------


def test_a_key_comes_changes_rotates_and_is_revoked(core):
    app = core.an_app()
    capability = {"chat:*": ["subscribe", "publish"], "*": ["statistics"]}
    made = core.made(f"/apps/{app}/keys", {"name": "web", "capability": capability, "revocableTokens": True})
    name, _, secret = made["key"].partition(":")
    assert name == f"{app}.{made['id']}"
    assert (made["capability"], made["status"], made["revocableTokens"], made["appId"]) == (capability, 0, True, app)
    known = core.registry.key(name)
    assert (known.secret, known.capability.canonical()) == (secret, '{"*":["stats"],"chat:*":["publish","subscribe"]}')
    assert core.ask("GET", f"/apps/{app}/keys").json() == [made]

    narrowed = core.ask("PATCH", f"/apps/{app}/keys/{made['id']}", {"capability": {"chat:lobby": ["subscribe"]}}).json()
    assert (narrowed["capability"], narrowed["name"], narrowed["key"]) == ({"chat:lobby": ["subscribe"]}, "web", made["key"])
    assert core.registry.key(name).capability.canonical() == '{"chat:lobby":["subscribe"]}'

    rotated = core.made(f"/apps/{app}/keys/{made['id']}/rotate", status=200)
    assert rotated["key"] not in (None, made["key"])
    assert core.registry.key(name).secret == rotated["key"].partition(":")[2]

    answer = core.ask("POST", f"/apps/{app}/keys/{made['id']}/revoke")
    assert (answer.status_code, answer.content) == (200, b"")
    assert core.registry.key(name).status == 1
    (listed,) = core.ask("GET", f"/apps/{app}/keys").json()
    assert (listed["status"], listed["key"]) == (1, None)
    for method, path in (("PATCH", ""), ("POST", "/revoke"), ("POST", "/rotate")):
        assert core.ask(method, f"/apps/{app}/keys/{made['id']}{path}", {}).status_code == 404


@pytest.mark.parametrize(
    "capability", [{}, {"a": []}, {"a": ["fly"]}, {"a": "publish"}, [], "x", {"[x]a": ["publish"]}, {"a": ["*", "publish"]}]
)
def test_a_capability_that_is_none_is_refused(core, capability):
    app = core.an_app()
    answer = core.ask("POST", f"/apps/{app}/keys", {"name": "k", "capability": capability})
    assert (answer.status_code, set(answer.json()["details"])) == (422, {"capability"})


# --- secrets --------------------------------------------------------------------------------------------------------------------------


def test_secrets_are_shown_to_that_scope_alone_and_every_showing_is_in_the_audit(core, topic):
    app = core.an_app()
    secret = core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["key"].partition(":")[2]
    hidden = core.made("/tokens", {"name": "no secrets", "scopes": ["security", "reader"]})
    bearer = {"authorization": f"Bearer {hidden['token']}"}
    made = core.ask("POST", f"/apps/{app}/keys", {"name": "l", "capability": {"*": ["*"]}}, headers=bearer).json()
    assert made["key"] is None
    listed = core.ask("GET", f"/apps/{app}/keys", headers=bearer)
    assert [key["key"] for key in listed.json()] == [None, None]
    assert core.ask("POST", "/tokens", {"name": "x", "scopes": ["reader"]}, headers=bearer).status_code == 403
    shown = [(one["action"], one["by"]["id"]) for one in core.audit() if one["outcome"] == "shown"]
    assert shown == [("token.create.secret", "root"), ("key.create.secret", "root")]

    core.ask("GET", f"/apps/{app}/keys")
    assert core.audit(limit="1")[0] | {"id": "", "at": 0} == {
        "id": "",
        "at": 0,
        "by": {"type": "token", "id": "root", "name": "root"},
        "source": "127.0.0.1",
        "core": "core-1",
        "action": "key.list",
        "target": {"app": app},
        "before": None,
        "after": None,
        "outcome": "shown",
    }
    everything = topic.text() + json.dumps(core.audit()) + listed.text
    for each in (secret, SECRET, hidden["token"], hidden["token"].partition(".")[2]):
        assert each not in everything


def test_no_secret_is_logged(core):
    with structlog.testing.capture_logs() as logged:
        app = core.an_app()
        core.ask("DELETE", f"/apps/{app}", token="reader")
        key = core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
        token = core.made("/tokens", {"name": "t", "scopes": ["reader"]})["token"]
        core.ask("GET", f"/apps/{app}/keys")
        core.ask("GET", "/me", headers={"authorization": f"Bearer {token}x"})
    assert {line["event"] for line in logged} == {"configuration change", "secrets shown", "request refused"}
    for secret in (key["key"].partition(":")[2], token.partition(".")[2], SECRET):
        assert secret not in str(logged)


def test_a_sealed_secret_does_not_pass_as_that_of_another_key(core, topic):
    app = core.an_app()
    one, two = (core.made(f"/apps/{app}/keys", {"name": name, "capability": {"*": ["*"]}}) for name in "ab")
    records = dict(topic.records)
    stolen = json.loads(records[f"key:{app}.{one['id']}"])["secret"]
    forged = {**json.loads(records[f"key:{app}.{two['id']}"]), "secret": stolen, "rev": 9}
    core.reads(f"key:{app}.{two['id']}", json.dumps(forged).encode())
    assert core.registry.unreadable == 1
    assert core.registry.key(f"{app}.{two['id']}").secret == two["key"].partition(":")[2]
    assert core.ask("GET", f"/apps/{app}/keys").json()[1]["key"] is None


# --- access tokens --------------------------------------------------------------------------------------------------------------------


def test_an_access_token_works_until_it_is_revoked_or_expires(core):
    made = core.made("/tokens", {"name": "ci", "scopes": ["reader"], "expires": core.now_ms + 1_000})
    bearer = {"authorization": f"Bearer {made['token']}"}
    assert core.ask("GET", "/me", headers=bearer).json()["token"] | {"capabilities": []} == {
        "id": made["id"],
        "name": "ci",
        "capabilities": [],
        "scopes": ["reader"],
        "expires_at": made["expires"],
        "last_used_at": None,
    }
    core.now_ms += 1_000
    assert core.ask("GET", "/me", headers=bearer).status_code == 401
    other = core.made("/tokens", {"name": "ops", "scopes": ["operator"]})
    bearer = {"authorization": f"Bearer {other['token']}"}
    assert core.ask("GET", "/me", headers=bearer).status_code == 200
    assert core.ask("DELETE", f"/tokens/{other['id']}").status_code == 204
    assert core.ask("GET", "/me", headers=bearer).status_code == 401
    assert core.ask("DELETE", f"/tokens/{other['id']}").status_code == 404
    listed = {token["name"]: (token["active"], token["token"]) for token in core.ask("GET", "/tokens").json()}
    assert listed["ops"] == listed["ci"] == (False, None)


def test_nobody_gives_scopes_that_they_have_not(core):
    made = core.made("/tokens", {"name": "sec", "scopes": ["security", "secrets"]})
    bearer = {"authorization": f"Bearer {made['token']}"}
    assert core.ask("POST", "/tokens", {"name": "x", "scopes": ["operator"]}, headers=bearer).json()["code"] == 40160
    assert core.ask("POST", "/tokens", {"name": "x", "scopes": ["security"]}, headers=bearer).status_code == 201
    for scopes in ([], ["root"], "reader", None):
        assert core.ask("POST", "/tokens", {"name": "y", "scopes": scopes}).status_code == 422


# --- namespaces -----------------------------------------------------------------------------------------------------------------------


def test_a_namespace_comes_back_as_it_was_sent(core):
    app = core.an_app()
    sent = {"id": "chat", "persisted": True, "identified": True, "batchingEnabled": True, "batchingInterval": 40, "exposeTimeSerial": True}
    made = core.made(f"/apps/{app}/namespaces", sent)
    assert {name: made[name] for name in sent if name != "exposeTimeSerial"} | {"exposeTimeSerial": made["exposeTimeserial"]} == sent
    assert (made["authenticated"], made["conflationEnabled"], made["conflationKey"], made["appId"]) == (True, False, None, app)
    assert core.ask("GET", f"/apps/{app}/namespaces").json() == [made]
    assert core.registry.app(app).namespaces["chat"].persisted
    assert core.ask("POST", f"/apps/{app}/namespaces", sent).json()["details"] == {"id": ["is taken"]}

    # As the public tools send it: all booleans, intervals only while they are on.
    off = core.ask("PATCH", f"/apps/{app}/namespaces/chat", {"batchingEnabled": False, "authenticated": False, "persisted": None}).json()
    assert (off["batchingEnabled"], off["batchingInterval"], off["identified"], off["persisted"]) == (False, None, False, False)
    on = core.ask(
        "PATCH", f"/apps/{app}/namespaces/chat", {"conflationEnabled": True, "conflationInterval": 100, "conflationKey": "#{message.name}"}
    ).json()
    assert (on["conflationInterval"], on["conflationKey"]) == (100, "#{message.name}")
    assert core.ask("PATCH", f"/apps/{app}/namespaces/chat", {"batchingEnabled": True}).status_code == 422

    assert core.ask("DELETE", f"/apps/{app}/namespaces/chat").status_code == 204
    assert core.ask("DELETE", f"/apps/{app}/namespaces/chat").status_code == 404
    assert "chat" not in core.registry.app(app).namespaces
    assert core.made(f"/apps/{app}/namespaces", {"id": "chat"})["persisted"] is False
    assert "chat" in core.registry.app(app).namespaces


def test_answers_say_which_properties_of_a_namespace_change_nothing(core):
    app = core.an_app()
    path = f"/apps/{app}/namespaces"
    assert core.made(path, {"id": "a", "authenticated": True, "tlsOnly": True, "exposeTimeserial": True})["withoutEffect"] == []
    made = core.made(path, {"id": "b", "persisted": True, "conflationEnabled": True})
    assert made["withoutEffect"] == ["persisted", "conflationEnabled"]
    assert core.ask("PATCH", f"{path}/b", {"persisted": False}).json()["withoutEffect"] == ["conflationEnabled"]


def test_namespaces_closed_to_some_clients_are_few_enough_to_be_told_to_each_of_them():
    core = OneCore(Topic(), limits=CoreLimits(control_closed_namespaces=2))
    app = core.an_app()
    path = f"/apps/{app}/namespaces"
    for name, flag in (("a", "authenticated"), ("b", "tlsOnly")):
        core.made(path, {"id": name, flag: True})
    core.made(path, {"id": "c"})
    assert core.ask("POST", path, {"id": "d", "identified": True}).status_code == 429
    assert core.ask("PATCH", f"{path}/c", {"tlsOnly": True}).status_code == 429
    assert core.ask("PATCH", f"{path}/a", {"tlsOnly": True}).status_code == 200, "it is one of them already"
    assert core.ask("PATCH", f"{path}/a", {"tlsOnly": False, "identified": False}).status_code == 200
    assert core.ask("PATCH", f"{path}/c", {"tlsOnly": True}).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"id": ""}, {"id": "[meta]x"}, {"id": 1}, {"id": "a", "batchingInterval": 5}, {"id": "a", "persisted": 1}]
)
def test_a_namespace_that_cannot_be_is_refused(core, wrong):
    app = core.an_app()
    assert core.ask("POST", f"/apps/{app}/namespaces", wrong).status_code == 422


# --- audit ----------------------------------------------------------------------------------------------------------------------------


def test_the_audit_says_who_changed_a_capability_from_what_to_what(core):
    app = core.an_app()
    key = core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"]
    made = core.made("/tokens", {"name": "alice", "scopes": ["security"]})
    core.now_ms += 7
    core.ask("PATCH", f"/apps/{app}/keys/{key}", {"capability": {"a": ["publish"]}}, headers={"authorization": f"Bearer {made['token']}"})
    (entry,) = core.audit(app=app, action="key.change")
    assert entry["by"] == {"type": "token", "id": made["id"], "name": "alice"}
    assert (entry["at"], entry["target"], entry["outcome"]) == (core.now_ms, {"app": app, "key": key}, "applied")
    assert (entry["before"]["capability"], entry["after"]["capability"]) == ({"*": ["*"]}, {"a": ["publish"]})


def test_the_audit_comes_in_pages_newest_first(core):
    for number in range(5):
        core.now_ms += 1
        core.an_app(f"app {number}")
    whole = core.audit()
    assert [one["after"]["name"] for one in whole] == [f"app {number}" for number in (4, 3, 2, 1, 0)]
    first = core.audit(limit="2")
    assert first + core.audit(limit="3", before=first[-1]["id"]) == whole
    for limit in ("0", "1001", "x", "-1"):
        assert core.ask("GET", "/audit", params={"limit": limit}).status_code == 422


def test_what_is_refused_leaves_no_trace(core, topic):
    core.ask("POST", "/accounts/tidegate/apps", {"name": ""})
    core.ask("POST", "/accounts/tidegate/apps", {"name": "x"}, token="reader")
    assert topic.records == []
