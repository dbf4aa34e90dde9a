"""What somebody could get who has too few rights, or had them until a moment ago; and what must hold while two things happen at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from core.control.io.guard import Guard
from core.control.ledger import KEPT_MS
from core.io.tail import Tails
from core.registry import seal_secret
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from tests.unit.control.cores import SECRET, OneCore
from tests.unit.control.test_pipelines import FOREIGN
from tests.unit.core.dialogue import RING

ALL_KEYS = {"name": "k", "capability": {"*": ["*"]}}


# --- access tokens ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "/audit", None), ("POST", "/accounts/tidegate/apps", {"name": "late"})])
def test_a_token_that_another_core_has_revoked_is_of_no_use_once_this_one_has_caught_up(topic, core, method, path, body):
    """The request comes before the core has read of the revocation; what it waits for tells it."""
    token = core.made("/tokens", {"name": "gone", "scopes": ["security"]})
    entry = core.control.ledger.get("token", token["id"])
    revoked = core.control.ledger.next(entry.key, {**entry.data, "status": 1}, "elsewhere")
    ask = core.ask_end

    def ask_end(number: int) -> None:
        core.reads(entry.key, revoked)
        ask(number)

    core.ask_end = ask_end
    answer = core.ask(method, path, body, headers={"authorization": f"Bearer {token['token']}"})
    assert (answer.status_code, answer.json()["code"]) == (401, 40100)
    assert [one["name"] for one in core.ask("GET", "/accounts/tidegate/apps").json() if one["name"] == "late"] == []


def test_who_watches_a_channel_sees_nothing_more_when_the_token_is_revoked(core):
    made = core.made("/tokens", {"name": "watcher", "scopes": ["reader"]})
    guard = Guard(core.control.access, lambda: core.now_ms, everybody=False)
    tails = Tails("core-1", CoreLimits())
    tails.post = lambda _: None
    app = tails.route(guard, guard.allows).app
    scope = {
        **{"type": "http", "method": "GET", "path": "/v1/tail", "query_string": b"app=a&channel=b", "scheme": "http"},
        **{"headers": [(b"authorization", f"Bearer {made['token']}".encode())], "client": ("10.0.0.9", 1), "server": ("core", 1)},
    }
    sent: list[bytes] = []

    async def story() -> None:
        never = asyncio.Event()

        async def receive() -> Any:
            await never.wait()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        watching = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.05)
        tails._put(tails._readers[b"a:b"], b'"first"\n')
        await asyncio.sleep(0.05)
        core.reads(f"token:{made['id']}", core.control.ledger.next(f"token:{made['id']}", {"status": 1}, "x"))
        tails._put(tails._readers[b"a:b"], b'"second"\n')
        await asyncio.wait_for(watching, 2)

    asyncio.run(story())
    assert b"first" in b"".join(sent)
    assert b"second" not in b"".join(sent)
    assert len(tails) == 0


def test_expired_tokens_make_room_again(core):
    limits = CoreLimits(control_tokens=2)
    core.control.limits = limits
    for name in "ab":
        core.made("/tokens", {"name": name, "scopes": ["reader"], "expires": core.now_ms + 1_000})
    assert core.ask("POST", "/tokens", {"name": "c", "scopes": ["reader"]}).status_code == 429
    core.now_ms += 1_000 + KEPT_MS
    for record in core.control.upkeep(0.0, core.now_ms, 10):
        core.topic.write(core, 1, *record)
    assert core.ask("POST", "/tokens", {"name": "c", "scopes": ["reader"]}).status_code == 201


# --- secrets ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"brokers": ["mine.example:9092"]},
        {"brokers": ["b:9092", "a.example", "mine.example:9092"]},
        {"tls": False},
        {"ca": "-----BEGIN CERTIFICATE-----"},
        {"auth": {"sasl": {"mechanism": "plain", "username": "u", "password": None}}},
        {"auth": {"sasl": {"mechanism": "oauthbearer", "username": "u", "tokenEndpoint": "https://mine.example/"}}},
        {"auth": {"sasl": {"mechanism": "scram-sha-256", "username": "u", "tokenCa": "-----BEGIN CERTIFICATE-----"}}},
    ],
)
def test_a_password_that_may_not_be_seen_is_not_sent_elsewhere_either(core, change):
    """Who may change rules could have the core show a password to brokers of their own."""
    app = core.an_app()
    body = {**FOREIGN, "target": {**FOREIGN["target"], "tls": True}}
    path = f"/apps/{app}/rules/{core.made(f'/apps/{app}/rules', body)['id']}"
    before = core.ask("GET", path).json()["target"]
    answer = core.ask("PATCH", path, {"ruleType": "kafka", "target": change}, token="operator")
    assert (answer.status_code, list(answer.json()["details"])) == (422, ["target.auth.sasl.password"]), answer.text
    assert core.ask("GET", path).json()["target"] == before


def test_who_gives_the_password_or_may_see_it_moves_a_rule(core):
    app = core.an_app()
    path = f"/apps/{app}/rules/{core.made(f'/apps/{app}/rules', FOREIGN)['id']}"
    moved = {"ruleType": "kafka", "target": {"brokers": ["other:9092"], "auth": FOREIGN["target"]["auth"]}}
    assert core.ask("PATCH", path, moved, token="operator").status_code == 200
    assert core.ask("PATCH", path, {"ruleType": "kafka", "target": {"brokers": ["c:9092"]}}).status_code == 200
    same = {"ruleType": "kafka", "status": "disabled", "target": {"brokers": ["c:9092"], "tls": True, "ca": ""}}
    assert core.ask("PATCH", path, same, token="operator").status_code == 200, "as forms send what was not said before"
    assert core.ask("GET", path).json()["target"]["auth"]["sasl"]["password"] == "hush-hush"
    assert (
        core.ask("PATCH", path, {"ruleType": "kafka", "target": {"brokers": [], "auth": None, "tls": None}}, token="operator").status_code
        == 200
    )


@pytest.mark.parametrize("what", ["key", "token"])
def test_a_new_secret_is_not_shown_when_the_audit_cannot_have_it(core, what):
    from core.events import ConfigWritten

    app = core.an_app()
    write = core.write

    def only_changes(ticket: int, key: str, value: bytes | None) -> None:
        if key.startswith("audit:r:"):
            core.writer.took(ConfigWritten(ticket, False))
        else:
            write(ticket, key, value)

    core.write = only_changes
    path, body = (f"/apps/{app}/keys", ALL_KEYS) if what == "key" else ("/tokens", {"name": "t", "scopes": ["reader"]})
    answer = core.ask("POST", path, body)
    assert (answer.status_code, answer.json()["code"]) == (503, 50003)
    assert core.audit(action=f"{what}.create")[0]["outcome"] == "applied"


# --- what is revoked stays revoked --------------------------------------------------------------------------------------------------------


def test_a_key_that_is_revoked_while_secrets_are_sealed_anew_stays_revoked(topic, core):
    app = core.an_app()
    keys = [core.made(f"/apps/{app}/keys", ALL_KEYS)["id"] for _ in range(2)]
    started = OneCore(topic, "core-2", ring=[("k2", b"\2" * 32), *RING])
    write, writes = started.write, []

    def slow(ticket: int, key: str, value: bytes | None) -> None:
        """Before the first is written another core revokes the second."""
        if not writes:
            record = f"key:{app}.{keys[1]}"
            revoked = {**core.control.ledger.get("key", f"{app}.{keys[1]}").data, "status": 1}
            topic.write(core, 1, record, core.control.ledger.next(record, revoked, "other"))
        writes.append(key)
        write(ticket, key, value)

    started.write = slow

    async def start() -> None:
        running = asyncio.create_task(started.writer.run())
        await asyncio.sleep(0.05)
        running.cancel()

    asyncio.run(start())
    assert list(started.control.reseal(10)) == []
    for each in (core, started, OneCore(topic, "late", ring=[("k2", b"\2" * 32), *RING])):
        assert each.control.ledger.get("key", f"{app}.{keys[1]}").data["status"] == 1, each.node
        assert each.registry.key(f"{app}.{keys[1]}").status == 1, each.node


def test_a_revoked_key_is_revoked_also_where_its_secret_cannot_be_opened(core):
    app = core.an_app()
    key = core.made(f"/apps/{app}/keys", ALL_KEYS)["id"]
    entry = core.control.ledger.get("key", f"{app}.{key}")
    sealed = seal_secret(Keyring([("later", b"\7" * 32)]), entry.key, "rotated")
    core.reads(entry.key, core.control.ledger.next(entry.key, {**entry.data, "secret": sealed}, "rotated"))
    assert core.registry.key(f"{app}.{key}").status == 0
    core.reads(entry.key, core.control.ledger.next(entry.key, {**entry.data, "secret": sealed, "status": 1}, "revoked"))
    assert core.registry.key(f"{app}.{key}").status == 1


# --- accepted, and then? ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["revoke", "rotate", "pause", "resume"])
def test_a_namespace_may_be_called_like_an_action(core, name):
    app = core.an_app()
    core.made(f"/apps/{app}/namespaces", {"id": name})
    assert core.ask("PATCH", f"/apps/{app}/namespaces/{name}", {"authenticated": True}).json()["authenticated"] is True
    assert core.registry.app(app).namespaces[name].authenticated


# --- bounds -------------------------------------------------------------------------------------------------------------------------------


def test_a_capability_too_deep_to_read_is_refused(core):
    app = core.an_app()
    answer = core.ask("POST", f"/apps/{app}/keys", {"capability": "[" * 5_000 + "]" * 5_000})
    assert (answer.status_code, list(answer.json()["details"])) == (422, ["capability"])


def test_a_mapping_reads_a_thousand_topics_by_name_and_no_more(core):
    app = core.an_app()
    for count, status in ((1_000, 201), (1_001, 422)):
        body = {"topics": [f"t{number}" for number in range(count)], "channel": "c"}
        assert core.ask("POST", f"/apps/{app}/mappings", body).status_code == status


def test_more_readings_than_one_upkeep_takes_out_are_taken_out_all_the_same(topic, monkeypatch):
    from core.control.io import writer

    monkeypatch.setattr(writer, "UPKEEP_S", 0.05)
    core = OneCore(topic, limits=CoreLimits(audit_records=2, control_upkeep_records=3))
    app = core.an_app()
    core.made(f"/apps/{app}/keys", ALL_KEYS)
    for _ in range(30):
        core.ask("GET", f"/apps/{app}/keys")

    async def keep_up() -> None:
        running = asyncio.create_task(core.writer.run())
        await asyncio.sleep(0.09)  # one turn
        running.cancel()

    asyncio.run(keep_up())
    assert len(core.control.audit) <= 4, json.dumps(core.audit())[:500]
    assert SECRET not in topic.text()
