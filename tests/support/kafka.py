"""A real broker for tests, and what happens in Kafka as a list of events."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import pytest
from confluent_kafka.admin import AdminClient

from core.events import Event
from core.kafka import KafkaConfig, OwnerRunner, StreamInfo, Topics, prepare_topics
from core.rules import Rule
from relay.model.limits import CoreLimits
from tidegate.kafka_local import KafkaUnavailable, LocalKafka

T = TypeVar("T")


def skip_or_fail(reason: str) -> None:
    """In CI nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka_brokers() -> Iterator[str]:
    """host:port of a real Apache Kafka: that of the environment's `KAFKA`, or one of our own for the whole run."""
    given = os.environ.get("KAFKA", "")
    if given and given != "local":
        yield given
        return
    with own_broker() as address:
        yield address


@contextmanager
def own_broker(**options: Any) -> Iterator[str]:
    """host:port of a broker that nobody else has. `options` are those of `LocalKafka`."""
    broker = LocalKafka(**options)
    try:
        address = broker.start()
    except KafkaUnavailable as missing:
        skip_or_fail(str(missing))
    else:
        yield address
    finally:
        broker.stop()


class Part(Protocol):
    def start(self) -> None: ...

    def close(self) -> Awaitable[None]: ...


class Kafka:
    """Topics of one test, and every event that its parts delivered, in order."""

    def __init__(self, config: KafkaConfig, topics: Topics, limits: CoreLimits) -> None:
        self.config = config
        self.topics = topics
        self.limits = limits
        self.events: list[Event] = []
        self._parts: list[Part] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    @property
    def log(self) -> StreamInfo:
        return self.topics.log

    def deliver(self, events: list[Event]) -> None:
        assert asyncio.get_running_loop() is self._loop, "delivered on another thread"
        assert events
        self.events += events
        self._changed.set()

    def start(self, part: Callable[..., Any], stream: Any = None, **options: Any) -> Any:
        made = part(self.config, stream or self.log, options.pop("limits", self.limits), self._loop, self.deliver, **options)
        made.start()
        self._parts.append(made)
        return made

    def owner(self, rules: Iterable[Rule] = (), *, core: str = "core-1", **options: Any) -> OwnerRunner:
        """A running owner; it may be closed before the end."""
        made = OwnerRunner(
            self.config,
            self.topics.log,
            self.topics.state,
            rules,
            core=core,
            limits=self.limits,
            loop=self._loop,
            deliver=self.deliver,
            **options,
        )
        made.start()
        self._parts.append(made)
        return made

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, done: Callable[[], object], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        for part in reversed(self._parts):
            await part.close()


def delete_topic(brokers: str, topic: str) -> None:
    """Returns when it is gone, which takes a moment longer than its deletion."""
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.delete_topics([topic])[topic].result(10)
    end = time.monotonic() + 10
    while topic in admin.list_topics(timeout=5).topics:
        assert time.monotonic() < end
        time.sleep(0.05)


def a_config(brokers: str, **options: Any) -> KafkaConfig:
    """Under a prefix of its own, so that tests share a broker and nothing else."""
    return KafkaConfig(brokers=brokers, prefix=f"test-{secrets.token_hex(4)}", **({"partitions": 4} | options))


@asynccontextmanager
async def kafka(brokers: str, limits: CoreLimits | None = None, config: KafkaConfig | None = None) -> Any:
    config = config or a_config(brokers)
    world = Kafka(config, await asyncio.to_thread(prepare_topics, config), limits or CoreLimits())
    try:
        yield world
    finally:
        await world.close()
