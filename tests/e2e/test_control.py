"""The Control API of running cores on a real Kafka: what one core accepts holds on the other, and secrets stay where they belong."""

from __future__ import annotations

import base64
import json
import signal
import ssl
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.journeys import world as fake
from tests.journeys.real import RealWorld
from tests.support.product import Product

CONNECTED, DISCONNECTED, ERROR, ATTACH, ATTACHED = 4, 6, 9, 10, 11
WITHIN_S = 2.0
"""How soon a change must hold on every core."""


class Api:
    def __init__(self, relay: Product) -> None:
        self.relay = relay
        self.answers: list[str] = []

    def ask(self, method: str, path: str, body: Any = None, *, core: int = 0, token: str | None = None) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {token or self.relay.found['accessToken']}", "content-type": "application/json"}
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self.relay.found['admins'][core]}/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, content = refused.code, refused.read()
        if token is not None:
            self.answers.append(content.decode())
        return status, json.loads(content) if content else None

    def made(self, path: str, body: Any = None, *, core: int = 0) -> Any:
        status, made = self.ask("POST", path, body, core=core)
        assert status == 201, made
        return made


@pytest.fixture(scope="module")
def api(relay: Product) -> Api:
    return Api(relay)


@pytest.fixture
def world(relay: Product) -> Iterator[RealWorld]:
    real = RealWorld(relay)
    yield real
    real.close()


@pytest.fixture(scope="module")
def app(api: Api) -> str:
    return str(api.made("/accounts/tidegate/apps", {"name": f"e2e {time.time_ns()}"})["id"])


def own_topics(relay: Product, since_ms: int) -> bytes:
    """Every byte of keys, values and headers that is in Tidegate's own topics since then; `tidegate.config` whole."""
    settings = {"bootstrap.servers": relay.kafka, "group.id": "none", "enable.partition.eof": True, "isolation.level": "read_uncommitted"}
    consumer = Consumer(settings)
    topics = {name: topic for name, topic in consumer.list_topics(timeout=20).topics.items() if name.startswith("tidegate.")}
    places = [TopicPartition(name, number, since_ms) for name, topic in topics.items() for number in topic.partitions]
    begin = consumer.offsets_for_times(places, timeout=20)
    for place in begin:
        if place.topic == "tidegate.config":
            place.offset = OFFSET_BEGINNING
    consumer.assign(begin)
    found, left = bytearray(), len(begin)
    while left and (message := consumer.poll(20)) is not None:
        if message.error() is not None:
            left -= 1
            continue
        parts = [message.key(), message.value(), *(part for header in message.headers() or () for part in header)]
        found += b"\0".join(part.encode() if isinstance(part, str) else part for part in parts if part)
    consumer.close()
    assert not left, "every partition was read to its end"
    return bytes(found)


def until(condition: Callable[[], object], within_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_key_made_on_one_core_connects_through_edges_of_both_at_once(api: Api, app: str, world: RealWorld) -> None:
    for core in (0, 1):
        start = time.monotonic()
        key = api.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}}, core=core)["key"]
        made = time.monotonic()
        for edge in (0, 1):
            world.client(edge=edge, key=key).gets(CONNECTED)
        print(f"made in {made - start:.3f} s, connected through both edges {time.monotonic() - made:.3f} s later")
        assert time.monotonic() - made < WITHIN_S
        status, listed = api.ask("GET", f"/apps/{app}/keys", core=1 - core)
        assert status == 200
        assert key in [one["key"] for one in listed]


def test_clients_of_a_revoked_key_are_disconnected_and_refused_everywhere(api: Api, app: str, world: RealWorld) -> None:
    made = api.made(f"/apps/{app}/keys", {"name": "to revoke", "capability": {"*": ["*"]}})
    clients = [world.client(edge=number % 2, key=made["key"]) for number in range(6)]
    for client in clients:
        client.gets(CONNECTED)
    assert world.rest("POST", "/channels/c/messages", {"data": "x"}, credential=made["key"], edge=1)[0] == 201
    start = time.monotonic()
    assert api.ask("POST", f"/apps/{app}/keys/{made['id']}/revoke", core=1)[0] == 200
    for client in clients:
        assert client.gets(ERROR)["error"]["code"] == 40131
    took = time.monotonic() - start
    print(f"six clients on two edges disconnected within {took:.3f} s of the request")
    assert took < WITHIN_S
    for edge in (0, 1):
        assert world.rest("POST", "/channels/c/messages", {"data": "x"}, credential=made["key"], edge=edge)[0] == 401


def test_changes_of_one_key_through_both_cores_at_once_all_come_to_pass(api: Api, app: str) -> None:
    key = api.made(f"/apps/{app}/keys", {"name": "busy", "capability": {"*": ["*"]}})["id"]
    with ThreadPoolExecutor(2) as pool:
        for number in range(10):
            bodies = [{"name": f"busy {number}"}, {"capability": {f"c{number}": ["publish"]}}]
            asked = [pool.submit(api.ask, "PATCH", f"/apps/{app}/keys/{key}", body, core=core) for core, body in enumerate(bodies)]
            assert [each.result()[0] for each in asked] == [200, 200]
            seen = [{one["id"]: one for one in api.ask("GET", f"/apps/{app}/keys", core=core)[1]}[key] for core in (0, 1)]
            assert seen[0] == seen[1]
            assert (seen[0]["name"], seen[0]["capability"]) == (f"busy {number}", {f"c{number}": ["publish"]})


def test_secrets_are_nowhere_in_clear(api: Api, app: str, relay: Product, world: RealWorld) -> None:
    """In no topic, no log and no answer but to a token with the scope: secrets of keys, before and after a rotation, passwords of rules,
    access tokens, and what clients present."""
    since = world.now_ms - 1_000
    made = api.made(f"/apps/{app}/keys", {"name": "secret", "capability": {"*": ["*"]}})
    world.client(key=made["key"]).gets(CONNECTED)
    jwt = world.token(key=made["key"])
    world.client(access_token=jwt, edge=1).gets(CONNECTED)
    assert world.rest("POST", "/channels/c/messages", {"data": "x"}, credential=jwt)[0] == 201
    status, rotated = api.ask("POST", f"/apps/{app}/keys/{made['id']}/rotate")
    assert status == 200
    secrets = [made["key"].partition(":")[2], rotated["key"].partition(":")[2], jwt.rpartition(".")[2]]
    rule = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": "^none:", "type": "channel.message"}}
    secrets.append(f"hush-{time.time_ns()}")
    sasl = {"mechanism": "plain", "username": "u", "password": secrets[-1]}
    path = f"/apps/{app}/rules/{api.made(f'/apps/{app}/rules', rule | {'target': {'routingKey': 't', 'auth': {'sasl': sasl}}})['id']}"
    secrets.append(f"hush-{time.time_ns()}")
    sasl["password"] = secrets[-1]
    assert api.ask("PATCH", path, {"target": {"auth": {"sasl": sasl}}})[1]["target"]["auth"]["sasl"]["password"] == secrets[-1]
    status, reader = api.ask("POST", "/tokens", {"name": "reader", "scopes": ["reader", "operator", "security"]})
    assert status == 201
    secrets += [reader["token"].partition(".")[2], relay.found["accessToken"].partition(".")[2]]
    paths = ("/accounts/tidegate/apps", f"/apps/{app}/keys", f"/apps/{app}/namespaces", f"/apps/{app}/rules", path, "/tokens", "/me")
    for each in (*paths, "/audit?limit=1000"):
        assert api.ask("GET", each, token=reader["token"])[0] == 200
    assert api.ask("PATCH", path, {"status": "disabled"}, token=reader["token"])[0] == 200
    assert api.ask("POST", f"/apps/{app}/keys/{made['id']}/rotate", token=reader["token"])[1]["key"] is None
    for admin in relay.found["admins"]:
        for public in ("/v1/status", "/v1/openapi.json", "/readyz"):
            api.answers.append(urllib.request.urlopen(f"{admin}{public}", timeout=10).read().decode())
    topics = own_topics(relay, since)
    assert f"key:{app}.".encode() in topics
    assert b"rule.change" in topics
    everything = topics + "".join(api.answers).encode() + relay.log_path.read_bytes()
    for secret in secrets:
        assert len(secret) > 16
        assert secret.encode() not in everything
        assert base64.b64encode(secret.encode()) not in everything
    shown = api.ask("GET", f"/audit?app={app}&action=key.create.secret")[1]
    assert shown
    assert all(entry["outcome"] == "shown" for entry in shown)


def test_the_audit_answers_who_changed_a_capability(api: Api, app: str) -> None:
    alice = api.ask("POST", "/tokens", {"name": "alice", "scopes": ["reader", "security"]})[1]
    key = api.made(f"/apps/{app}/keys", {"name": "audited", "capability": {"*": ["subscribe"]}})["id"]
    assert api.ask("PATCH", f"/apps/{app}/keys/{key}", {"capability": {"*": ["*"]}}, token=alice["token"], core=1)[0] == 200
    found = [one for one in api.ask("GET", f"/audit?app={app}&action=key.change")[1] if one["target"]["key"] == key]
    ((by, before, after, outcome),) = [(one["by"], one["before"], one["after"], one["outcome"]) for one in found]
    assert (by["type"], by["id"], by["name"]) == ("token", alice["id"], "alice")
    assert (before["capability"], after["capability"], outcome) == ({"*": ["subscribe"]}, {"*": ["*"]}, "applied")
    assert (before["key"], after["key"]) == (None, None)


def test_tokens_revoked_by_the_control_api_and_by_their_key_are_listed_and_in_the_audit(api: Api, app: str, world: RealWorld) -> None:
    made = api.made(f"/apps/{app}/keys", {"name": "revocable", "capability": {"*": ["*"]}, "revocableTokens": True})
    name = f"{app}.{made['id']}"
    clients = {}
    for edge, who in enumerate(("bob", "ann")):
        clients[who] = world.client(access_token=fake.token(world.now_ms - 2_000, key=made["key"], client_id=who, ttl_s=600), edge=edge)
        clients[who].gets(CONNECTED)
    start = time.monotonic()
    revoked = api.made(f"/apps/{app}/revocations", {"key": made["id"], "targets": ["clientId:bob"]}, core=1)
    assert clients["bob"].gets(DISCONNECTED)["error"]["code"] == 40141
    assert time.monotonic() - start < WITHIN_S
    assert world.rest("POST", f"/keys/{name}/revokeTokens", {"targets": ["clientId:ann"]}, credential=made["key"])[0] == 201
    assert clients["ann"].gets(DISCONNECTED)["error"]["code"] == 40141
    for core in (0, 1):
        status, listed = api.ask("GET", f"/apps/{app}/revocations", core=core)
        assert (status, [(one["targets"], one["status"]) for one in listed]) == (
            200,
            [(["clientId:ann"], "active"), (["clientId:bob"], "active")],
        )
        assert listed[1] == revoked

    def applied() -> list[Any]:
        return [one for one in api.ask("GET", f"/audit?app={app}&action=revocation.")[1] if one["outcome"] == "applied"]

    until(lambda: len(applied()) == 2, WITHIN_S)
    holder, operator = applied()
    assert (holder["by"]["type"], holder["by"]["id"], holder["after"]["targets"]) == ("key", name, ["clientId:ann"])
    assert (operator["by"]["type"], operator["after"]["targets"]) == ("token", ["clientId:bob"])


def test_a_namespace_that_is_closed_holds_on_both_edges_at_once(api: Api, app: str, world: RealWorld) -> None:
    key = api.made(f"/apps/{app}/keys", {"name": "namespaced", "capability": {"*": ["*"]}})["key"]
    name = f"n{time.time_ns()}"
    nobody = [world.client(access_token=world.token(key=key), edge=edge) for edge in (0, 1)]
    bob = world.client(access_token=world.token(key=key, client_id="bob"), edge=1)
    for client in (*nobody, bob):
        client.gets(CONNECTED)
        client.sends(action=ATTACH, channel=f"{name}:1")
        client.gets(ATTACHED)
    start = time.monotonic()
    assert api.made(f"/apps/{app}/namespaces", {"id": name, "authenticated": True, "persisted": True})["withoutEffect"] == ["persisted"]
    for client in nobody:
        assert client.gets(DISCONNECTED)["error"]["code"] == 80003
    for edge in (0, 1):
        client = world.client(access_token=world.token(key=key), edge=edge)
        client.gets(CONNECTED)
        client.sends(action=ATTACH, channel=f"{name}:1")
        assert client.gets(ERROR, channel=f"{name}:1")["error"]["code"] == 40161
    took = time.monotonic() - start
    print(f"closed on both edges within {took:.3f} s of the request")
    assert took < WITHIN_S
    bob.gets_nothing()


ASKED = (
    *(("GET", "/v1/me"), ("GET", "/api/v1/me"), ("GET", "/v1/openapi.json"), ("GET", "/v1/status")),
    ("GET", "/console/"),
    ("POST", "/v1/accounts/tidegate/apps"),
)


def test_an_edge_has_no_way_to_it(relay: Product) -> None:
    """Not through an edge, and not from where edges are: by the link's port, with the certificate of an edge and a good access token."""
    headers = {"authorization": f"Bearer {relay.found['accessToken']}", "content-type": "application/json"}
    state = Path(relay.found["state"])
    public, link = ssl.create_default_context(cafile=relay.ca), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    link.check_hostname = False
    link.load_verify_locations(relay.ca)
    link.load_cert_chain(state / "edge-1.pem", state / "edge-1.key")
    cores = tomllib.loads((state / "edge-1.toml").read_text())["link"]["cores"]
    assert len(cores) == 2
    places = [(edge.replace("wss:", "https:"), public, (401, 404)) for edge in relay.edges]
    places += [(f"https://{core}", link, (403, 404)) for core in cores]
    for place, trust, refusals in places:
        for method, path in ASKED:
            request = urllib.request.Request(place + path, b"" if method == "POST" else None, headers, method=method)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10, context=trust)
            assert refused.value.code in refusals, (place, method, path)
            body = refused.value.read()
            assert b"account" not in body
            assert b"openapi" not in body


def test_keys_and_rules_outlive_the_cores(api: Api, app: str, world: RealWorld, relay: Product) -> None:
    key = api.made(f"/apps/{app}/keys", {"name": "lasting", "capability": {"*": ["*"]}})["key"]
    rule = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": "^out:", "type": "channel.message"}}
    topic = f"made-by-api-{time.time_ns()}"
    made = api.made(f"/apps/{app}/rules", rule | {"target": {"routingKey": f"{topic}:#{{channelName}}", "enveloped": False}})
    for core in (0, 1):
        relay.wait_restarted("core", core, relay.kill("core", core, signal.SIGTERM))

    def both_ready() -> bool:
        try:
            return all(api.ask("GET", f"/apps/{app}/rules/{made['id']}", core=core)[1].get("running") for core in (0, 1)) and all(
                urllib.request.urlopen(f"{admin}/readyz", timeout=5).status == 200 for admin in relay.found["admins"]
            )
        except OSError:
            return False

    until(both_ready, 60.0)
    assert world.rest("POST", "/channels/out:1/messages", {"data": "through the API's rule"}, credential=key)[0] == 201
    consumer = Consumer(
        {"bootstrap.servers": relay.kafka, "group.id": "none", "auto.offset.reset": "earliest", "isolation.level": "read_committed"}
    )
    until(lambda: topic in consumer.list_topics(timeout=5).topics, 20.0)
    partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    deadline, message = time.monotonic() + 20, None
    while message is None or message.error() is not None:
        assert time.monotonic() < deadline
        message = consumer.poll(1)
    consumer.close()
    assert message.value() == b"through the API's rule"
    assert message.key() == b"out:1"
