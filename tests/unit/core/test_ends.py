"""End offsets, as the driver's futures tell them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from core.events import EndOffset, Event
from core.kafka.config import KafkaConfig
from core.kafka.ends import EndOffsets
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits

INVALID = -1001
"""What librdkafka gives, without an error, for a partition about which nobody answered in time."""


class Admin:
    def __init__(self, answer: int | Exception) -> None:
        self.answer = answer

    def poll(self, _: float) -> None:
        pass

    def list_offsets(self, request: dict[Any, Any], **_: Any) -> dict[Any, Future[Any]]:
        futures: dict[Any, Future[Any]] = {place: Future() for place in request}
        for future in futures.values():
            if isinstance(self.answer, Exception):
                future.set_exception(self.answer)
            else:
                future.set_result(SimpleNamespace(offset=self.answer))
        return futures


@pytest.mark.parametrize(
    ("answer", "offset"), [(0, 0), (7, 7), (INVALID, None), (KafkaException(KafkaError(KafkaError._TIMED_OUT)), None)], ids=str
)
def test_only_an_offset_is_an_answer(answer: int | Exception, offset: int | None) -> None:
    """Taken for an offset, -1001 would say that a partition ends before every serial, and that every barrier is reached."""

    async def main() -> None:
        events: list[Event] = []
        ends = EndOffsets(KafkaConfig(brokers="x:1"), StreamInfo("s", "t", 1), CoreLimits(), asyncio.get_running_loop(), events.extend)
        ends._admin = Admin(answer)  # type: ignore[assignment]
        ends.ask(1, 0)
        await asyncio.sleep(0.05)
        assert events == [EndOffset(1, 0, offset)]
        assert (ends.answered_at is not None) == (offset is not None)
        await ends.close()

    asyncio.run(main())
