"""Tokens that are revoked, as operators see and do it."""

from __future__ import annotations

import json

import pytest

from core.events import ConfigRead
from core.registry import App, Key
from core.revocations import KEPT_MS, MARGIN_MS, MAX_TARGET, Revocations
from relay.link.frames import Admitted, Revoke
from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from tests.unit.control.cores import OneCore, Topic
from tests.unit.core.dialogue import SECRET, Dialogue, token


@pytest.fixture
def key(core) -> tuple[str, str]:
    """App, and the id of a key of it."""
    app = core.an_app()
    return app, core.made(f"/apps/{app}/keys", {"capability": {"*": ["*"]}, "revocableTokens": True})["id"]


def by_holder(topic: Topic, core: OneCore, app: str, key: str, target: str, number: str) -> None:
    """As `POST /keys/{keyName}/revokeTokens` makes it."""
    record = {"v": 1, "targets": [target], "issuedBefore": core.now_ms, "appliesAt": core.now_ms, "created": core.now_ms}
    topic.write(core, 1, f"revocation:{app}.{key}:{number}", json.dumps(record).encode())


def test_a_revocation_is_a_record_that_every_core_heeds_and_lists(topic, core, key):
    app, name = key
    made = core.made(f"/apps/{app}/revocations", {"key": name, "targets": ["clientId:bob", "channel:chat:*"]})
    assert made == {
        "id": made["id"],
        "appId": app,
        "key": name,
        "targets": ["clientId:bob", "channel:chat:*"],
        "status": "active",
        "issuedBefore": core.now_ms,
        "appliesAt": core.now_ms,
        "expires": core.now_ms + KEPT_MS,
        "created": core.now_ms,
    }
    for each in (core, OneCore(topic, "core-2")):
        assert each.ask("GET", f"/apps/{app}/revocations", token="reader").json() == [made]
    found = Revocations()
    for record, value in topic.records:
        if record.startswith("revocation:"):
            found.read(record, value)
    with pytest.raises(RelayError) as revoked:
        found.check(
            key_name=f"{app}.{name}",
            issued=core.now_ms - 1,
            client_ids=["bob"],
            revocation_key=None,
            capability=Capability.parse('{"x":["*"]}'),
            now_ms=core.now_ms,
        )
    assert revoked.value.code == 40141


def test_a_client_whose_token_is_revoked_by_the_control_api_is_told(topic):
    """Also where the key does not let its holder revoke."""
    secret = Key(app="shop", id="plain", secret=SECRET, capability=Capability.parse('{"*":["*"]}'))
    static = [App(id="shop", keys={"plain": secret})]
    core, node = OneCore(topic, static=static), Dialogue(static=static)
    node.edge_up()
    bob = node.admit(token("shop.plain", now_ms=node.now_ms - 2_000, secret=SECRET, **{"x-ably-clientId": "bob"}))
    assert isinstance(bob, Admitted)
    core.made("/apps/shop/revocations", {"key": "plain", "targets": ["clientId:bob"]})
    for record, value in topic.records:
        node.happens(ConfigRead(record, value))
    assert [(frame.session, frame.error.code) for frame in node.sent() if isinstance(frame, Revoke)] == [(bob.session, 40141)]


def test_the_status_follows_the_clock(core, key):
    app, name = key
    path = f"/apps/{app}/revocations"
    made = core.made(path, {"key": name, "targets": ["revocationKey:group"], "allowReauthMargin": True})
    assert (made["status"], made["appliesAt"]) == ("pending", core.now_ms + MARGIN_MS)
    core.now_ms += MARGIN_MS
    assert core.ask("GET", path).json() == [{**made, "status": "active"}]
    core.now_ms += KEPT_MS
    assert core.ask("GET", path).json() == [{**made, "status": "expired"}]
    core.reads(f"revocation:{app}.{name}:{made['id']}", None)
    assert core.ask("GET", path).json() == []


def test_those_of_key_holders_are_listed_too_in_pages_newest_first_and_by_target(topic, core, key):
    app, name = key
    path = f"/apps/{app}/revocations"
    for number in range(4):
        core.now_ms += 1
        by_holder(topic, core, app, name, f"clientId:{number}", f"{core.now_ms:013d}-x")
    core.now_ms += 1
    core.made(path, {"key": name, "targets": ["clientId:4", "clientId:0"]})
    whole = core.ask("GET", path).json()
    assert [one["targets"][0] for one in whole] == [f"clientId:{number}" for number in (4, 3, 2, 1, 0)]
    first = core.ask("GET", path, params={"limit": "2"}).json()
    assert first + core.ask("GET", path, params={"before": first[-1]["id"]}).json() == whole
    assert core.ask("GET", path, params={"target": "clientId:0"}).json() == [whole[0], whole[4]]
    other = core.an_app("other")
    assert core.ask("GET", f"/apps/{other}/revocations").json() == []


def test_the_audit_says_who_revoked_what(core, key):
    app, name = key
    made = core.made(f"/apps/{app}/revocations", {"key": name, "targets": ["clientId:bob"]}, token="security")
    (entry,) = core.audit(action="revocation.")
    assert (entry["by"]["id"], entry["outcome"], entry["before"]) == ("security", "applied", None)
    assert entry["target"] == {"app": app, "key": name, "revocation": made["id"]}
    assert entry["after"] == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": None},
        {"key": ""},
        {"targets": None},
        {"targets": []},
        {"targets": ["bob"]},
        {"targets": ["clientId:bob", "channel:"]},
        {"targets": ["clientId:" + "b" * MAX_TARGET]},
        {"targets": ["clientId:bob"] * 101},
        {"issuedBefore": 1},
        {"allowReauthMargin": "yes"},
    ],
)
def test_a_revocation_that_cannot_be_revokes_nothing(topic, core, key, wrong):
    app, name = key
    before = len(topic.records)
    answer = core.ask("POST", f"/apps/{app}/revocations", {"key": name, "targets": ["clientId:bob"]} | wrong)
    assert answer.status_code in (400, 422), answer.text
    assert len(topic.records) == before


def test_of_a_key_that_is_not_there_nothing_is_revoked(core, key):
    app, _ = key
    body = {"key": "none", "targets": ["clientId:bob"]}
    for where in (app, "none"):
        assert core.ask("POST", f"/apps/{where}/revocations", body).json()["code"] == 40400
    assert core.ask("GET", "/apps/none/revocations").json()["code"] == 40400


def test_where_there_is_no_room_nothing_is_forgotten(topic):
    core = OneCore(topic, limits=CoreLimits(revoked_targets=2))
    app = core.an_app()
    name = core.made(f"/apps/{app}/keys", {"capability": {"*": ["*"]}})["id"]
    by_holder(topic, core, app, name, "clientId:a", "1")
    path = f"/apps/{app}/revocations"
    assert core.ask("POST", path, {"key": name, "targets": ["clientId:b", "clientId:c"]}).json()["code"] == 42910
    core.made(path, {"key": name, "targets": ["clientId:b"]})
    assert len(core.ask("GET", path).json()) == 2


def test_those_of_a_deleted_app_go_with_it(topic, core, key):
    app, name = key
    made = core.made(f"/apps/{app}/revocations", {"key": name, "targets": ["clientId:bob"]})
    core.ask("DELETE", f"/apps/{app}")
    assert (f"revocation:{app}.{name}:{made['id']}", None) in core.control.upkeep(0.0, core.now_ms, 10)


def test_holders_of_keys_do_not_crowd_out_the_audit_of_operators(topic):
    from core.control.audit import BY_KEY, AuditEntry, record_of

    core = OneCore(topic, limits=CoreLimits(audit_records=3))
    core.an_app()
    for number in range(9):
        entry = AuditEntry(id=f"9{number}", at=1, by={"type": "key"}, action="revocation.create", target={"app": "a"}, outcome="applied")
        topic.write(core, 1, *record_of(BY_KEY, entry))
    for record in core.control.upkeep(0.0, core.now_ms, 100):
        topic.write(core, 1, *record)
    assert [one["action"] for one in core.audit()] == ["revocation.create"] * 3 + ["app.create"]
