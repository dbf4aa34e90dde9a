"""One record of `tidegate.log`, as read by the tail or from the index."""

from __future__ import annotations

from typing import NamedTuple


class LogRecord(NamedTuple):
    """`timestamp` is broker time (LogAppendTime) in milliseconds; `id` the publish id (header); `key` is `app:channel` in UTF-8."""

    stream: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    kind: int
    id: str
