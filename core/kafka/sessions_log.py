"""The sessions topic: who is connected where, and which edges live. What its records mean: `core.connections`."""

from __future__ import annotations

import asyncio

from core.events import SESSIONS_END, SessionRead, SessionWritten
from core.kafka.config import KafkaConfig
from core.kafka.outlet import Deliver
from core.kafka.table import Table
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits


class SessionsLog(Table):
    """`tidegate.sessions`: delivers `SessionRead`, answers with `SessionWritten` and `EndOffset(partition=-2)`."""

    def __init__(
        self, config: KafkaConfig, stream: StreamInfo, limits: CoreLimits, loop: asyncio.AbstractEventLoop, deliver: Deliver
    ) -> None:
        super().__init__(
            config,
            stream,
            limits,
            loop,
            deliver,
            role="sessions",
            barrier=SESSIONS_END,
            writes=limits.session_writes,
            read=SessionRead,
            written=SessionWritten,
        )
