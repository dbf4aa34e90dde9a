"""The log of everything that has to do with Kafka, kept from flooding a disk.

librdkafka says the same again for every partition, broker and attempt. Measured: after a broker had been stopped for 30 s one consumer
logged thousands of lines of the facility METADATAUPDATE within a second; a client that cannot connect logs each attempt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from core.kafka.tokens import without_answer

LINES = 10
"""Lines of one kind that are logged within `SPAN_S`. Above it: they are left out, and the next one that is logged says how many."""
SPAN_S = 60.0
KINDS = 1_000
"""Kinds of lines that are counted. At the bound all are forgotten, and may say their lines again."""


class _Kind:
    __slots__ = ("left_out", "lines", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.lines = 0
        self.left_out = 0


class Moderation(logging.Filter):
    """Lines of one kind share their text before its values are filled in, and the first of these: with librdkafka that is the facility
    (lines are "%s [%s] %s": facility, client, text), elsewhere the topic or the role of the client. Called by any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        first = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if first == "OIDC" and isinstance(record.args, tuple):
            record.args = (*record.args[:2], without_answer(str(record.args[-1])))
        now = self._clock()
        with self._lock:
            kind = self._kinds.get((record.msg, first))
            if kind is None:
                if len(self._kinds) >= KINDS:
                    self._kinds.clear()
                kind = self._kinds[record.msg, first] = _Kind()
            if now >= kind.until:
                kind.until = now + SPAN_S
                kind.lines = 0
            if kind.lines >= LINES:
                kind.left_out += 1
                return False
            kind.lines += 1
            left_out, kind.left_out = kind.left_out, 0
        if left_out:
            record.msg = f"{record.msg} (and {left_out} lines of this kind that were left out)"
        return True


log = logging.getLogger("tidegate.kafka")
log.addFilter(Moderation())
