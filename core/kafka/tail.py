from __future__ import annotations

import asyncio

from core.kafka.config import KafkaConfig
from core.kafka.outlet import Deliver
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits


class Tail:
    def __init__(
        self, config: KafkaConfig, streams: list[StreamInfo], limits: CoreLimits, loop: asyncio.AbstractEventLoop, deliver: Deliver
    ) -> None: ...

    def start(self) -> None: ...

    def positions(self) -> dict[tuple[str, int], int]: ...

    async def close(self) -> None: ...
