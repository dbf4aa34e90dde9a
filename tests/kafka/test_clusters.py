"""Rules into another Kafka cluster, on two real brokers: who logs in how, what an outage of one means to the other, what is sent again."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import signal
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from core.kafka import LogProducer
from core.rules import Rule, RuleConfig, Version
from relay.runtime.settings import Secret
from tests.kafka.test_parked import CHANNELS, publishing, routing, settled
from tests.kafka.test_rules import committed, create, numbers, publish, rule, until
from tests.support.kafka import kafka
from tests.support.other_cluster import OtherCluster, other_cluster
from tests.support.owner_process import owner_process
from tests.support.token_endpoint import SECRET

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherCluster]:
    with other_cluster(tmp_path_factory.mktemp("other")) as cluster:
        yield cluster


def remote(name: str, topic: str, target: dict[str, Any], **fields: Any) -> Rule:
    made = {"id": name, "target": {"routing_key": topic} | target} | fields
    return Rule("app", msgspec.convert(made, RuleConfig, dec_hook=lambda _, value: Secret(value)))


def topic_name() -> str:
    return f"t-{secrets.token_hex(4)}"


def state_of(owner: Any, name: str) -> tuple[str, str]:
    (found,) = [each for each in owner.remote_rules() if each["rule"] == f"app/{name}" and not each["topic"]]
    return found["state"], found["reason"]


def event_ids(messages: list[Any]) -> list[bytes]:
    return [dict(message.headers())["x-tidegate-event-id"] for message in messages]


def assert_in_order(messages: list[Any]) -> None:
    """Of each channel, the first time that each event is there."""
    seen: set[bytes] = set()
    last: dict[str, int] = {}
    for message, number, event in zip(messages, numbers(messages), event_ids(messages), strict=True):
        channel = json.loads(message.value())["channel"]
        if event not in seen:
            assert last.get(channel, -1) < number, (channel, number)
            last[channel] = number
            seen.add(event)


def test_logins_tls_and_what_is_wrong_with_them(kafka_brokers: str, other: OtherCluster) -> None:
    """R7.2, R7.4: side by side each way to log in, a wrong password, a certificate that nobody knows, and a port where nobody is."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good = create(world, "good")
            topics = {name: other.create(topic_name(), 1) for name in ("plain", "scram256", "scram512", "tls", "open")}
            unknown = other.target(tls=True)
            del unknown["ca"]
            rules = [
                rule("good", routing(good)),
                remote("plain", topics["plain"], other.target("plain")),
                remote("scram256", topics["scram256"], other.target("scram-sha-256")),
                remote("scram512", topics["scram512"], other.target("scram-sha-512"), request_mode="batch"),
                remote("tls", topics["tls"], other.target(tls=True)),
                remote("open", topics["open"], {"brokers": [other.plain]}),
                remote("wrong", topics["open"], other.target(password="another")),
                remote("unknown", topics["open"], unknown),
                remote("away", topics["open"], {"brokers": ["127.0.0.1:1"]}),
            ]
            owner = world.owner(rules)
            await settled(owner)
            async with publishing(world) as stream:
                await until(lambda: all(owner.written[f"app/{name}"] >= (50 if name != "scram512" else 1) for name in topics), 20)
                await until(lambda: all(state_of(owner, name)[0] == "parked" for name in ("wrong", "unknown", "away")), 30)
                asked, before = time.monotonic(), stream.published
                await until(lambda: all(owner.written[f"app/{name}"] >= before for name in ("good", "plain", "tls", "open")))
                assert time.monotonic() - asked < 1.0
                await until(lambda: state_of(owner, "wrong") == ("parked", "refused_login"), 30)  # not if a broker was slow to refuse it
                assert state_of(owner, "unknown") == ("parked", "tls_failed")
                assert state_of(owner, "away") == ("parked", "unreachable_cluster")
                assert state_of(owner, "plain") == ("running", "")
            published = stream.published
            await until(lambda: all(owner.written[f"app/{name}"] == published for name in ("good", "plain", "scram256", "tls", "open")))
            await until(lambda: all(each["behind"] == 0 for each in owner.remote_rules() if each["state"] == "running"))
            assert owner.failures == 0
            await owner.close()
            for name in ("plain", "scram256", "tls", "open"):
                found = await asyncio.to_thread(committed, other.plain, topics[name], 1)
                assert sorted(numbers(found)) == list(range(published))
                assert_in_order(found)
            batches = [json.loads(each.value())["items"] for each in await asyncio.to_thread(committed, other.plain, topics["scram512"], 1)]
            items = [item for batch in batches for item in batch]
            assert len({item["serial"] for item in items}) == len(items) == published

    asyncio.run(story())


def test_an_outage_of_the_other_cluster_delays_and_repeats_nothing(kafka_brokers: str, other: OtherCluster) -> None:
    """R7.4: frozen until it counts as away, then killed and started again: no record is missing, none there twice, and all are in order."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            good, there = create(world, "good"), other.create(topic_name())
            owner = world.owner([rule("good", routing(good)), remote("there", routing(there), other.target())])
            await settled(owner)
            async with publishing(world) as stream:
                await until(lambda: owner.written["app/there"] >= 100)
                other.broker.pause()
                await until(lambda: state_of(owner, "there") == ("parked", "unreachable_cluster"), 30)
                before = stream.published
                stream.some(3_000)  # more than is kept for it
                asked = time.monotonic()
                await until(lambda: owner.written["app/good"] >= before + 3_000)
                assert time.monotonic() - asked < 3.0
                assert owner.written["app/there"] < before
                other.broker.kill()
                await asyncio.sleep(1.0)
                await asyncio.to_thread(other.start)
                await until(lambda: state_of(owner, "there") == ("running", "") and owner.written["app/there"] > before + 3_000, 40)
            await until(lambda: owner.written["app/there"] == stream.published)
            await owner.close()
            found = await asyncio.to_thread(committed, other.plain, there)
            assert sorted(numbers(found)) == list(range(stream.published))
            assert_in_order(found)

    asyncio.run(story())


def test_a_token_endpoint_that_refuses_or_is_away_delays_its_rules(
    kafka_brokers: str, other: OtherCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """R7.2, R7.4, R7.9: tokens of some seconds, which the brokers check. Who gets none is parked and says why; so is who had one, once it
    has run out. All is there once when the endpoint is back, and when the secret is the right one."""

    async def story() -> None:
        endpoint = other.endpoint
        async with kafka(kafka_brokers) as world:
            topics = {name: other.create(topic_name(), 1) for name in ("good", "wrong", "unknown")}

            def made(name: str, **sasl: str) -> Rule:
                return remote(name, routing(topics[name]), other.token_target(**sasl))

            others = [made("good"), made("unknown", token_ca="")]
            owner = world.owner([*others, made("wrong", password=f"not {SECRET}")])
            await settled(owner)
            async with publishing(world) as stream:
                await until(lambda: owner.written["app/good"] >= 50)
                await until(lambda: state_of(owner, "wrong") == ("parked", "refused_login"))
                await until(lambda: state_of(owner, "unknown") == ("parked", "no_token"))
                given, written = endpoint.given, owner.written["app/good"]
                await until(lambda: endpoint.given >= given + 4)  # two clients, each twice
                assert state_of(owner, "good") == ("running", "")
                assert owner.written["app/good"] > written + 500
                endpoint.down()
                await until(lambda: state_of(owner, "good") == ("parked", "no_token"), 40)
                endpoint.up()
                before = stream.published
                await until(lambda: state_of(owner, "good") == ("running", "") and owner.written["app/good"] > before, 40)
                owner.change([*others, made("wrong")], Version(position=1))
                await until(lambda: state_of(owner, "wrong") == ("running", "") and owner.written["app/wrong"] > before, 40)
            await until(lambda: all(owner.written[f"app/{name}"] == stream.published for name in ("good", "wrong")))
            said = str([owner.status(), owner.remote_rules(), owner.waiting_rules(), owner.state_of("app/wrong")])
            await owner.close()
            assert owner.failures == 0
            for name in ("good", "wrong"):
                found = await asyncio.to_thread(committed, other.plain, topics[name], 1)
                assert sorted(numbers(found)) == list(range(stream.published))
                assert_in_order(found)
            assert SECRET not in said

    other.endpoint.up()
    with caplog.at_level(logging.DEBUG):
        try:
            asyncio.run(story())
        finally:
            other.endpoint.down()
    assert "gives no token: invalid_client" in caplog.text
    assert "gives no token: nobody answers" in caplog.text
    assert "gives no token: its certificate is not trusted" in caplog.text
    assert SECRET not in caplog.text


def test_a_topic_that_is_missing_there_waits_alone(kafka_brokers: str, other: OtherCluster) -> None:
    """R7.6: of a rule that has one topic all waits; of one that computes its topics, what is for that topic. In the
    end all is there once."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            base, late = topic_name(), topic_name()
            other.create(f"{base}-a")
            owner = world.owner(
                [
                    remote("late", routing(late), other.target()),
                    remote("some", f"{base}-#{{message.name}}:#{{channelName}}", other.target()),
                ]
            )
            await settled(owner)
            producer: LogProducer = world.start(LogProducer)

            def some(start: int, count: int) -> None:
                for number in range(start, start + count):
                    publish(world, producer, number, channel=f"chat:{number % CHANNELS}", name="ab"[number % 2])

            some(0, 400)
            await until(lambda: owner.written["app/some"] == 200)
            found = {(each["rule"], each["topic"], each["state"], each["reason"]) for each in owner.remote_rules()}
            assert ("app/late", "", "parked", "missing_topic") in found
            assert ("app/some", f"{base}-b", "parked", "missing_topic") in found
            assert ("app/some", "", "running", "") in found
            await owner.close()  # and the cursors of all of them are in the state
            owner = world.owner(
                [
                    remote("late", routing(late), other.target()),
                    remote("some", f"{base}-#{{message.name}}:#{{channelName}}", other.target()),
                ]
            )
            await settled(owner)
            some(400, 400)
            await until(lambda: owner.written["app/some"] == 200)
            other.create(late)
            other.create(f"{base}-b")
            await until(lambda: owner.written["app/late"] == 800 and owner.written["app/some"] == 600, 40)
            await until(lambda: len(owner.remote_rules()) == 2)
            some(800, 200)
            await until(lambda: owner.written["app/late"] == 1000 and owner.written["app/some"] == 800)
            await owner.close()
            for topic, expected in ((late, range(1000)), (f"{base}-a", range(0, 1000, 2)), (f"{base}-b", range(1, 1000, 2))):
                messages = await asyncio.to_thread(committed, other.plain, topic)
                assert sorted(numbers(messages)) == list(expected)
                assert_in_order(messages)

    asyncio.run(story())


def test_what_a_killed_owner_had_sent_is_sent_again_under_the_same_id(kafka_brokers: str, other: OtherCluster) -> None:
    """R7.3, R7.5, R7.8"""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            there = other.create(topic_name())
            fields = [{"id": "there", "target": {"routing_key": routing(there)} | other.target()}]
            with owner_process(world, "core-1", fields) as first:
                await first.until(lambda: len(first.last["owned"]) == 4 and first.last["ready"])
                async with publishing(world) as stream:
                    await first.until(lambda: first.last["by_rule"].get("app/there", 0) >= 400)
                    first.signal(signal.SIGKILL)
                    second = world.owner([remote("there", routing(there), other.target())], core="core-2")
                    await settled(second)
                    await until(lambda: second.written["app/there"] > 400)
                await asyncio.sleep(0.5)  # the last of it is committed by now
                await until(lambda: all(each["behind"] == 0 for each in second.remote_rules()))
                await second.close()
            found = await asyncio.to_thread(committed, other.plain, there)
            ids = event_ids(found)
            by_id = dict(zip(ids, numbers(found), strict=True))
            assert sorted(by_id.values()) == list(range(stream.published))
            assert [by_id[each] for each in ids] == numbers(found), "one id, one event"
            assert len(ids) - len(by_id) < 400, "at most what had not been noted for a second or so"
            assert_in_order(found)

    asyncio.run(story())


def test_a_record_that_is_too_large_there_is_dropped_alone(kafka_brokers: str, other: OtherCluster) -> None:
    """Two rules share a topic that takes little, and so batches: what one of them cannot write costs neither of them anything else."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            there = other.create(topic_name(), **{"max.message.bytes": "3000"})
            owner = world.owner([remote(name, routing(there), other.target()) for name in ("one", "two")])
            await settled(owner)
            producer: LogProducer = world.start(LogProducer)
            for number in range(200):
                data = f"{number:05000d}" if number % 50 == 7 else str(number)
                publish(world, producer, number, channel=f"chat:{number % CHANNELS}", data=data)
            await until(lambda: all(owner.written[f"app/{name}"] == 196 for name in ("one", "two")))
            await until(lambda: all(owner.dropped[f"app/{name}", "too_large"] == 4 for name in ("one", "two")))
            await until(lambda: all(each["behind"] == 0 for each in owner.remote_rules()))
            await owner.close()
            found = await asyncio.to_thread(committed, other.plain, there)
            assert sorted(numbers(found)) == sorted(2 * [number for number in range(200) if number % 50 != 7])

    asyncio.run(story())
