"""A thread that reads Kafka goes on after whatever the driver raises."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import KafkaError, KafkaException

from core.kafka.consumer import KafkaThread


class Failing(KafkaThread):
    def __init__(self, failure: object) -> None:
        super().__init__("tidegate-failing")
        self.failure = failure
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        if self.runs == 1:
            raise self.failure  # type: ignore[misc]
        self.closing.wait(10)


@pytest.mark.parametrize("failure", [KafkaException(KafkaError(22)), KafkaError(22), ValueError("a defect")], ids=repr)
def test_it_runs_again(failure: object) -> None:
    async def story() -> None:
        thread = Failing(failure)
        thread.start()
        async with asyncio.timeout(5):
            while thread.runs < 2:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.01)
        await thread.close()
        assert thread.failures == 1

    asyncio.run(story())
