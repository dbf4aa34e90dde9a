"""Tokens that are revoked: their clients are told, on every edge, and they open nothing any more. Source: Ably protocol docs, 7.10."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from typing import Any

import jwt
import pytest

from tests.journeys import world as fake
from tests.journeys.real import RealWorld
from tests.journeys.world import World

CONNECTED, DISCONNECTED, ERROR, ATTACH, ATTACHED, AUTH, MESSAGE, ACK = 4, 6, 9, 10, 11, 17, 15, 1
Anything = World | RealWorld


@pytest.fixture
def keys(world: Anything) -> list[str]:
    """Of one app: one key that may revoke the tokens that it issues, another that may, and one that may not."""
    specs = [{"revocableTokens": True}, {"revocableTokens": True}, {}]
    if not isinstance(world, RealWorld):
        status, made = world.rest("POST", "/apps", {"keys": specs})
        assert status == 201
        return [key["keyStr"] for key in made["keys"]]

    def ask(path: str, body: object) -> Any:
        headers = {"authorization": f"Bearer {world.product.found['accessToken']}", "content-type": "application/json"}
        request = urllib.request.Request(f"{world.product.found['admins'][0]}/v1{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    app = ask("/accounts/tidegate/apps", {"name": f"revocation {time.time_ns()}"})["id"]
    return [ask(f"/apps/{app}/keys", {"name": f"k{n}", "capability": {"*": ["*"]}, **spec})["key"] for n, spec in enumerate(specs)]


def token(world: Anything, key: str, client_id: str | None = None, *, age_s: int = 0, **claims: Any) -> str:
    """A JWT; `age_s`: how long ago it was issued."""
    name, _, secret = key.partition(":")
    signed = fake.token(world.now_ms - 1000 * age_s, key=key, client_id=client_id, ttl_s=3600)
    claims = jwt.decode(signed, options={"verify_signature": False}) | claims
    return jwt.encode(claims, secret, algorithm="HS256", headers={"kid": name})


def revoke(world: Anything, key: str, *targets: str, edge: int = 0, credential: str = "", **more: Any) -> tuple[int, Any]:
    path = f"/keys/{key.partition(':')[0]}/revokeTokens"
    return world.rest("POST", path, {"targets": list(targets), **more}, edge=edge, credential=credential or key)


def connected(world: Anything, text: str, *, edge: int = 0) -> Any:
    client = world.client(access_token=text, edge=edge)
    client.gets(CONNECTED)
    return client


def test_its_clients_are_disconnected_on_every_edge_and_the_others_are_not(world: Anything, keys: list[str]) -> None:
    name = f"bob-{secrets.token_hex(4)}"
    bobs = [connected(world, token(world, keys[0], name, age_s=2), edge=edge) for edge in (0, 1)]
    for bob in bobs:
        bob.sends(action=ATTACH, channel="c")
        bob.gets(ATTACHED)
    alice = connected(world, token(world, keys[0], "alice", age_s=2))
    namesake = connected(world, token(world, keys[1], name, age_s=2), edge=1)
    status, answer = revoke(world, keys[0], f"clientId:{name}", "nonsense:x", f"revocationKey:{name}", edge=1)
    assert status == 201
    assert (answer["successCount"], answer["failureCount"]) == (2, 1)
    assert [result["target"] for result in answer["results"]] == [f"clientId:{name}", "nonsense:x", f"revocationKey:{name}"]
    assert answer["results"][1]["error"]["code"] == 40000
    assert answer["results"][1]["error"]["statusCode"] == 400
    for result in (answer["results"][0], answer["results"][2]):
        assert abs(result["issuedBefore"] - world.now_ms) < 10_000
        assert result["appliesAt"] == result["issuedBefore"]
        assert "error" not in result
    for bob in bobs:
        assert bob.gets(DISCONNECTED)["error"] | {"message": "", "href": ""} == {
            "code": 40141,
            "statusCode": 401,
            "message": "",
            "href": "",
        }
    for other in (alice, namesake):
        other.sends(action=ATTACH, channel="c")
        other.gets(ATTACHED)


def test_a_revoked_token_opens_nothing_and_a_later_one_does(world: Anything, keys: list[str]) -> None:
    name = f"bob-{secrets.token_hex(4)}"
    old = token(world, keys[0], name, age_s=5)
    for edge in (0, 1):
        assert world.rest("POST", "/channels/c/messages", {"data": "x"}, credential=old, edge=edge)[0] == 201
    assert revoke(world, keys[0], f"clientId:{name}", issuedBefore=world.now_ms - 2_000)[0] == 201
    for edge in (0, 1):
        for _ in range(50):
            status, answer = world.rest("POST", "/channels/c/messages", {"data": "x"}, credential=old, edge=edge)
            if status != 201:
                break
            world.wait(0.05)
        assert (status, answer["error"]["code"]) == (401, 40141)
        refused = world.client(access_token=old, edge=edge)
        assert refused.gets(ERROR)["error"]["code"] == 40141
        later = connected(world, token(world, keys[0], name), edge=edge)
        later.sends(action=ATTACH, channel="c")
        later.gets(ATTACHED)


def test_by_revocation_key_and_by_channel(world: Anything, keys: list[str]) -> None:
    group = f"group-{secrets.token_hex(4)}"
    member = connected(world, token(world, keys[0], "ann", age_s=2, **{"x-ably-revocation-key": group}))
    reader = connected(world, token(world, keys[0], "ben", age_s=2, **{"x-ably-capability": json.dumps({f"{group}:news": ["subscribe"]})}))
    assert revoke(world, keys[0], f"revocationKey:{group}")[0] == 201
    assert member.gets(DISCONNECTED)["error"]["code"] == 40141
    reader.sends(action=ATTACH, channel=f"{group}:news")
    reader.gets(ATTACHED)
    assert revoke(world, keys[0], f"channel:{group}:news")[0] == 201
    assert reader.gets(DISCONNECTED)["error"]["code"] == 40141


def test_with_a_margin_there_is_time_to_bring_another_token(world: Anything, keys: list[str]) -> None:
    name = f"bob-{secrets.token_hex(4)}"
    quick, slow = (connected(world, token(world, keys[0], name, age_s=2), edge=edge) for edge in (0, 1))
    asked_at = world.now_ms
    status, answer = revoke(world, keys[0], f"clientId:{name}", allowReauthMargin=True)
    assert status == 201
    (result,) = answer["results"]
    assert result["appliesAt"] > asked_at + 30_000
    for client in (quick, slow):
        client.gets(AUTH)
    world.wait(1)
    quick.sends(action=AUTH, auth={"accessToken": token(world, keys[0], name)})
    quick.gets(CONNECTED)
    if world.real:
        return
    connected(world, token(world, keys[0], name, age_s=3))  # until then it still counts
    world.wait(28)
    slow.gets_nothing()
    world.wait(4)
    assert slow.gets(DISCONNECTED)["error"]["code"] == 40141
    quick.sends(action=ATTACH, channel="c")
    quick.gets(ATTACHED)


@pytest.mark.parametrize("what", ["token", "other key", "not revocable", "future", "long ago", "too many", "no targets"])
def test_what_is_refused(world: Anything, keys: list[str], what: str) -> None:
    now = world.now_ms
    match what:
        case "token":
            answer, code = revoke(world, keys[0], "clientId:x", credential=token(world, keys[0])), 40162
        case "other key":
            answer, code = revoke(world, keys[0], "clientId:x", credential=keys[1]), 40133
        case "not revocable":
            answer, code = revoke(world, keys[2], "clientId:x"), 40163
        case "future":
            answer, code = revoke(world, keys[0], "clientId:x", issuedBefore=now + 60_000), 40003
        case "long ago":
            answer, code = revoke(world, keys[0], "clientId:x", issuedBefore=now - 3_700_000), 40003
        case "too many":
            answer, code = revoke(world, keys[0], *(f"clientId:{n}" for n in range(101))), 40003
        case _:
            answer, code = revoke(world, keys[0]), 40000
    assert answer[1]["error"]["code"] == code
    assert answer[0] == (400 if code < 40100 else 401)


def test_protocol_version_2_has_a_flat_list(world: Anything, keys: list[str]) -> None:
    path = f"/keys/{keys[0].partition(':')[0]}/revokeTokens?v=2"
    status, answer = world.rest("POST", path, {"targets": ["clientId:x"]}, credential=keys[0])
    assert status == 201
    assert [result["target"] for result in answer] == ["clientId:x"]
    status, answer = world.rest("POST", path, {"targets": ["clientId:x", "y"]}, credential=keys[0])
    assert (status, answer["error"]["code"]) == (400, 40020)
    assert [result["target"] for result in answer["batchResponse"]] == ["clientId:x", "y"]


@pytest.mark.parametrize("world", ["wire"], indirect=True)
def test_a_core_that_starts_later_knows_of_it(world: Anything, keys: list[str]) -> None:
    old = token(world, keys[0], "bob", age_s=5)
    connected(world, old)
    assert revoke(world, keys[0], "clientId:bob")[0] == 201
    for number in (0, 1):
        world.kill_core(number)
        world.start_core(number)
    world.wait(6)
    assert world.client(access_token=old).gets(ERROR)["error"]["code"] == 40141


def test_a_client_that_only_a_dead_core_knew() -> None:
    """Neither core that is left has heard of it, since it does nothing."""
    for seed in range(4):
        world = World(edges=1, cores=3, seed=seed)
        key = world.rest("POST", "/apps", {"keys": [{"revocableTokens": True}]})[1]["keys"][0]["keyStr"]
        idle = connected(world, token(world, key, "bob", age_s=5))
        knows = [
            n for n, core in enumerate(world.cores) if any(s.grant.client_id == "bob" for s in core.node._roster.of_app(key.split(".")[0]))
        ]
        assert len(knows) == 1
        world.kill_core(knows[0])
        assert revoke(world, key, "clientId:bob")[0] == 201
        world.wait(11)
        while (frame := idle.takes())["action"] == 0:
            pass
        assert (frame["action"], frame["error"]["code"]) == (DISCONNECTED, 40141)


@pytest.mark.parametrize("world", ["wire"], indirect=True)
def test_the_record_goes_when_no_such_token_can_be_left(world: Anything, keys: list[str]) -> None:
    assert revoke(world, keys[0], "clientId:bob")[0] == 201
    (name,) = [key for key, _ in world.log.config if key.startswith("revocation:")]
    world._turn_clock(world.now + 24 * 3600)
    world.wait(2)
    assert (name, None) not in world.log.config
    world._turn_clock(world.now + 3600)
    world.wait(2)
    assert (name, None) in world.log.config
    assert all(core.node.status()["revocations"] == 0 for core in world.cores)
