"""Rules whose payloads follow a registered schema, on a real broker with a double of Schema Registry that goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from core.kafka import LogProducer
from core.kafka.config import SchemaRegistryConfig
from core.kafka.schema_registry import SchemaRegistry
from core.mappings.decoders import decoder
from core.mappings.schemas import Framed, SchemaFormat
from core.rules import Rule, RuleConfig
from relay.model.limits import CoreLimits
from tests.kafka.test_parked import settled
from tests.kafka.test_rules import committed, create, publish, until
from tests.support.kafka import kafka
from tests.support.registry import schema_registry
from tests.unit.rules.test_encodings import SOURCES, registered

pytestmark = pytest.mark.kafka


def test_a_registry_that_is_away_delays_and_loses_nothing(kafka_brokers: str) -> None:
    """R8.1, R8.2, R8.5: a rule for each format, and one into another cluster; every tenth payload is not valid."""

    async def story() -> None:
        with schema_registry() as registry:
            registered(registry)
            registry.down()
            schemas = SchemaRegistry(SchemaRegistryConfig(url=registry.url), CoreLimits())
            schemas.start()
            async with kafka(kafka_brokers) as world:
                producer: LogProducer = world.start(LogProducer)
                topics = {name: create(world, name) for name in ("good", "avro", "protobuf", "json_schema", "away", "dead")}

                def made(name: str, form: SchemaFormat | None = None, **target: Any) -> Rule:
                    fields: dict[str, Any] = {"routing_key": f"{topics[name]}:#{{channelName}}", "enveloped": False} | target
                    if form is not None:
                        dead = {"on_invalid": "dlq", "dlq_topic": topics["dead"]} if form == "avro" and name == "avro" else {}
                        fields["schema"] = {"format": form, "subject": f"{form}-value"} | dead
                    return Rule("app", msgspec.convert({"id": name, "target": fields}, RuleConfig), registry=True)

                rules = [made("good"), *(made(form, form) for form in SOURCES), made("away", "avro", brokers=[kafka_brokers])]
                owner = world.owner(rules)
                owner.schemas = schemas
                await settled(owner)

                def some(start: int, count: int) -> None:
                    for number in range(start, start + count):
                        data = f'{{"id": {number}}}' if number % 10 else '{"id": "none"}'
                        publish(world, producer, number, data=data, encoding="json")

                some(0, 300)
                await until(lambda: owner.written["app/good"] == 300)
                reasons = {f"app/{name}": "unavailable_schema" for name in (*SOURCES, "away")}
                await until(lambda: {each["rule"]: each["reason"] for each in owner.parked_rules() + owner.remote_rules()} == reasons)
                assert not owner.dropped
                registry.up()
                await until(lambda: all(owner.written[f"app/{name}"] == 270 for name in ("protobuf", "json_schema", "away")), 40)
                await until(lambda: owner.written["app/avro"] == 300 and not owner.parked, 40)
                registry.down()  # what is known is known
                some(300, 100)
                await until(lambda: all(owner.written[f"app/{name}"] == 360 for name in ("protobuf", "json_schema", "away")))
                await until(lambda: owner.written["app/avro"] == 400)
                assert {key: count for key, count in owner.dropped.items() if count} == {
                    (f"app/{name}", "invalid_payload"): 40 for name in ("protobuf", "json_schema", "away")
                }
                await owner.close()
                await schemas.close()
                for name in (*SOURCES, "away"):
                    form: SchemaFormat = "avro" if name == "away" else name  # type: ignore[assignment]
                    read = decoder(form, SOURCES[form])
                    messages = await asyncio.to_thread(committed, kafka_brokers, topics[name])
                    found = [read(Framed.parse(message.value()).payload)["id"] for message in messages]
                    assert found == [number for number in range(400) if number % 10]
                dead = await asyncio.to_thread(committed, kafka_brokers, topics["dead"])
                assert [message.value() for message in dead] == [b'{"id": "none"}'] * 40
                assert all(dict(message.headers())["x-tidegate-reason"] for message in dead)

    asyncio.run(story())
