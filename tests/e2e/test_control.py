"""The Control API of running cores on a real Kafka: what one core accepts holds on the other, and secrets stay where they belong."""

from __future__ import annotations

import json
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.journeys.real import RealWorld
from tests.support.product import Product

CONNECTED, ERROR = 4, 9
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


def config_topic(relay: Product) -> list[tuple[str, str]]:
    """Every record that is in `tidegate.config`."""
    consumer = Consumer({"bootstrap.servers": relay.kafka, "group.id": "none", "enable.partition.eof": True})
    consumer.assign([TopicPartition("tidegate.config", 0, OFFSET_BEGINNING)])
    found = []
    while (message := consumer.poll(20)) is not None and message.error() is None:
        found.append((message.key().decode(), (message.value() or b"").decode()))
    consumer.close()
    assert found
    return found


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


def test_secrets_are_nowhere_in_clear(api: Api, app: str, relay: Product) -> None:
    secret = api.made(f"/apps/{app}/keys", {"name": "secret", "capability": {"*": ["*"]}})["key"].partition(":")[2]
    status, reader = api.ask("POST", "/tokens", {"name": "reader", "scopes": ["reader", "security"]})
    assert status == 201
    for path in ("/accounts/tidegate/apps", f"/apps/{app}/keys", f"/apps/{app}/namespaces", "/tokens", "/audit?limit=1000", "/me"):
        assert api.ask("GET", path, token=reader["token"])[0] == 200
    records = config_topic(relay)
    assert any(key.startswith(f"key:{app}.") for key, _ in records)
    everything = json.dumps(records) + "".join(api.answers) + relay.log_path.read_text(errors="replace")
    for each in (secret, reader["token"].partition(".")[2], relay.found["accessToken"].partition(".")[2]):
        assert each not in everything
    shown = api.ask("GET", f"/audit?app={app}&action=key.create.secret")[1]
    assert shown
    assert all(entry["outcome"] == "shown" for entry in shown)


def test_an_edge_has_no_way_to_it(relay: Product) -> None:
    headers = {"authorization": f"Bearer {relay.found['accessToken']}"}
    state = Path(relay.found["state"])
    public = ssl.create_default_context(cafile=relay.ca)
    for edge in relay.edges:
        for prefix in ("/v1", "/api/v1"):
            request = urllib.request.Request(edge.replace("wss:", "https:") + f"{prefix}/me", headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10, context=public)
            assert refused.value.code in (401, 404)
            assert b"account" not in refused.value.read()
    link = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    link.check_hostname = False
    link.load_verify_locations(relay.ca)
    link.load_cert_chain(state / "edge-1.pem", state / "edge-1.key")
    settings = (state / "edge-1.toml").read_text()
    ports = [int(part.partition('"')[0]) for part in settings.split("127.0.0.1:")[1:]]
    assert len(ports) == 2
    for port in ports:
        request = urllib.request.Request(f"https://127.0.0.1:{port}/v1/me", headers=headers)
        with pytest.raises((urllib.error.HTTPError, OSError)) as refused_:
            urllib.request.urlopen(request, timeout=10, context=link)
        if isinstance(refused_.value, urllib.error.HTTPError):
            assert refused_.value.code in (403, 404)


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
