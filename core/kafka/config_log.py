"""The configuration topic, and what it says of streams."""

from __future__ import annotations

import asyncio

from core.events import CONFIG_END, ConfigRead, ConfigWritten, Event
from core.kafka.config import KafkaConfig
from core.kafka.errors import TopicMisconfigured, Unreachable
from core.kafka.outlet import Deliver
from core.kafka.table import Table
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits

STREAM = "stream:"
"""Key prefix of the records of streams: topic and partition count."""


class ConfigLog(Table):
    """`tidegate.config`: delivers `ConfigRead`, answers with `ConfigWritten` and `EndOffset(partition=-1)`."""

    def __init__(
        self, config: KafkaConfig, stream: StreamInfo, limits: CoreLimits, loop: asyncio.AbstractEventLoop, deliver: Deliver
    ) -> None:
        super().__init__(
            config,
            stream,
            limits,
            loop,
            deliver,
            role="config",
            barrier=CONFIG_END,
            writes=limits.config_writes,
            read=lambda key, value, _: ConfigRead(key, value),
            written=ConfigWritten,
        )
        self._recorded: dict[str, bytes] = {}
        """Records of streams, by key; the first one counts."""
        self._claims = 0
        """Tickets of our own count down from here; callers' are positive."""
        self._claiming: dict[int, asyncio.Future[bool]] = {}

    async def claim_stream(self, stream: StreamInfo) -> None:
        """Record the stream's partition count, or compare it with what was recorded when the stream began; once `ready`.

        Raises TopicMisconfigured if partitions were added: channels would change theirs, and with it their order and their serials.
        Raises Unreachable if the record could not be written in time.
        """
        key = f"{STREAM}{stream.stream}"
        recorded = self._recorded.get(key)
        if recorded is None:
            self._claims -= 1
            claim = self._claiming[self._claims] = self._loop.create_future()
            self.write(self._claims, key, f"{stream.topic} {stream.partitions}".encode())
            if not await claim:
                raise Unreachable(f"topic {self._stream.topic}: the record of stream {stream.stream} could not be written")
            recorded = self._recorded[key]
        count = int(recorded.split()[-1])
        if count != stream.partitions:
            raise TopicMisconfigured(stream.topic, "partition count", stream.partitions, f"{count} as when the topic was first used")

    def _answer(self, events: list[Event]) -> None:
        """Deliver what is not an answer to ourselves."""
        for event in events:
            if isinstance(event, ConfigRead) and event.key.startswith(STREAM) and event.value is not None:
                self._recorded.setdefault(event.key, event.value)
        for event in [event for event in events if isinstance(event, ConfigWritten) and event.ticket in self._claiming]:
            events.remove(event)
            claim = self._claiming.pop(event.ticket)
            if not claim.done():
                claim.set_result(event.ok)
        super()._answer(events)
