from __future__ import annotations

import asyncio

from core.kafka.config import KafkaConfig
from core.kafka.outlet import Deliver
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits


class ConfigLog:
    def __init__(
        self, config: KafkaConfig, stream: StreamInfo, limits: CoreLimits, loop: asyncio.AbstractEventLoop, deliver: Deliver
    ) -> None: ...

    def start(self) -> None: ...

    async def ready(self) -> None: ...

    def ask_end(self, ask: int) -> None: ...

    def write(self, ticket: int, key: str, value: bytes | None) -> None: ...

    async def close(self) -> None: ...
