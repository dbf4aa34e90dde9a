"""Processes that are really killed and frozen, under clients that must not notice."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.support.product import NodeScript, Product, product
from tidegate.kafka_local import LocalKafka

pytestmark = [pytest.mark.kafka, pytest.mark.node, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def pair(kafka_brokers: str) -> Iterator[Product]:
    """One edge, two cores."""
    with product("--edges", "1", "--cores", "2", "--kafka", kafka_brokers) as running:
        yield running


def test_each_core_killed_in_turn_during_two_thousand_publishes(pair: Product) -> None:
    count = 2000
    script = NodeScript("pubsub", pair, channel="survives", count=count, rate=150)
    try:
        script.wait_for("ready")
        for core in (0, 1):
            time.sleep(3)
            old = pair.kill("core", core)
            pair.wait_restarted("core", core, old)
            time.sleep(2)
        script.wait_for("published", 60)
        time.sleep(1)
        assert len(script.every("acked")) == count
        assert script.every("nacked") == []
        assert [m["data"] for m in script.every("message")] == list(range(count))
        states = [(line["name"], line["state"]) for line in script.every("state")]
        assert sorted(states) == sorted((name, state) for name in ("publisher", "subscriber") for state in ("connecting", "connected"))
    finally:
        script.stop()


def test_members_outlive_all_cores(pair: Product) -> None:
    """Both killed at once: what they knew of the present is in the state, as their owners left it."""

    async def run() -> None:
        trust = ssl.create_default_context(cafile=pair.ca)
        async with connect(f"{pair.url}/?accessToken={pair.token}&format=json&v=6", ssl=trust) as socket:
            for sent, answer in (
                ({"action": 10, "channel": "outlives"}, 11),
                (
                    {
                        **{"action": 14, "channel": "outlives", "msgSerial": 0},
                        "presence": [{"action": 2, "clientId": name, "data": name * 3} for name in ("ann", "bob")],
                    },
                    1,
                ),
            ):
                await socket.send(json.dumps(sent))
                while json.loads(await asyncio.wait_for(socket.recv(), 20))["action"] != answer:
                    pass
            await asyncio.sleep(2)  # a commit of the owner
            for _ in range(2):
                old = [pair.kill("core", core) for core in (0, 1)]
                for core in (0, 1):
                    await asyncio.to_thread(pair.wait_restarted, "core", core, old[core])
                assert await asyncio.to_thread(members, pair, "outlives") == {("ann", "annannann"), ("bob", "bobbobbob")}

    asyncio.run(run())


def members(relay: Product, channel: str, within_s: float = 40.0) -> set[tuple[str, str]]:
    request = urllib.request.Request(
        f"{relay.rest}/channels/{channel}/presence", headers={"Authorization": f"Bearer {relay.token}", "X-Ably-Version": "5"}
    )
    end = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=15, context=ssl.create_default_context(cafile=relay.ca)) as answer:
                return {(member["clientId"], member["data"]) for member in json.load(answer)}
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_edge_killed_under_clients_that_resume_where_it_is_started_again(pair: Product) -> None:
    """The same connection ids, every message once and in order, none lost: the new process has another boot id and remembers nothing."""
    count = 450  # fewer in an outage than a replay may hold, however slow the machine
    soon = {"disconnectedRetryTimeout": 2_000}  # by itself it would sit out most of its 15 s
    script = NodeScript("pubsub", pair, channel="killed-edge", count=count, rate=25, options=soon)
    try:
        before = script.wait_for("ready")
        for _ in range(2):
            known = len(script.every("connection"))
            time.sleep(2)
            old = pair.kill("edge", 0)
            pair.wait_restarted("edge", 0, old)
            while len(script.every("connection")) < known + 2:
                time.sleep(0.1)
        script.wait_for("published", 120)
        time.sleep(2)
        assert script.every("nacked") == []
        assert len(script.every("acked")) == count
        assert [m["data"] for m in script.every("message")] == list(range(count))
        assert {m["connectionId"] for m in script.every("message")} == {before["connectionId"]}
        connections = [(line["name"], line["id"], line["code"]) for line in script.every("connection")]
        assert len(connections) >= 4
        assert len({(name, identity) for name, identity, _ in connections}) == 2
        assert {code for _, _, code in connections} == {None}
        assert {line["resumed"] for line in script.every("attached")[1:]} == {True}
    finally:
        script.stop()


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_broker_frozen_for_thirty_seconds_under_load(tmp_path: Path) -> None:
    """Clients are told after 20 s, come back with their connections, and send again: every message once, in order; nothing NACKed is ever
    delivered, and memory is bounded."""
    broker = LocalKafka(directory=tmp_path / "kafka")
    brokers = broker.start()
    try:
        with product("--cores", "2", "--kafka", brokers) as relay:
            count = 200 * 45
            script = NodeScript("pubsub", relay, channel="frozen", count=count, rate=200)
            try:
                script.wait_for("ready")
                time.sleep(5)
                before = {pid: resident_mib(pid) for role in ("edge", "core") for pid in relay.pids(role)}
                broker.pause()
                time.sleep(30)
                broker.resume()
                script.wait_for("published", 120)
                time.sleep(5)
                after = {pid: resident_mib(pid) for pid in before}
                nacked = {line["n"] for line in script.every("nacked")}
                delivered = [m["data"] for m in script.every("message")]
                assert not nacked & set(delivered)
                assert delivered == sorted(set(delivered)), "in order, and none twice"
                acked = {line["n"] for line in script.every("acked")}
                assert acked == set(delivered)
                assert acked | nacked == set(range(count))
                identities = {(line["name"], line["id"]) for line in script.every("connection")}
                assert len(identities) == 2, "the connections were resumed, not replaced"
                assert any(line["state"] == "disconnected" for line in script.every("state")), "20 s without an answer"
                assert all(after[pid] - before[pid] < 200 for pid in before), (before, after)
            finally:
                script.stop()
    finally:
        broker.stop()


@pytest.mark.parametrize("role", ["core"])
def test_frozen_core_is_left_for_another(pair: Product, role: str) -> None:
    """SIGSTOP: the process keeps its sockets but answers nothing; the edge must notice by itself."""
    count = 1500
    script = NodeScript("pubsub", pair, channel="thawed", count=count, rate=150)
    try:
        script.wait_for("ready")
        time.sleep(2)
        stopped = pair.kill(role, 0, signal.SIGSTOP)
        time.sleep(8)
        pair.kill(role, 0, signal.SIGCONT)
        script.wait_for("published", 60)
        time.sleep(1)
        assert [m["data"] for m in script.every("message")] == list(range(count))
        assert stopped in pair.pids(role)
    finally:
        script.stop()
