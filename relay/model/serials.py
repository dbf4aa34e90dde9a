"""Positions in the log as clients hold them: opaque to them, ordered as text, valid on every core and edge.

A channelSerial is stream, partition and offset in fixed width, so that text order is log order within a partition. A message serial
adds the index in its publish. Source: Ably protocol docs, 3.4 and 4.7 (order as text is required of serials).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CHANNEL = re.compile(r"([a-z0-9]{8})-([0-9]{4})-([0-9]{16}|-0{14}1)")
_MESSAGE = re.compile(r"([a-z0-9]{8}-[0-9]{4}-[0-9]{16}):([0-9]{3})")


class Serial(NamedTuple):
    """`stream` names one incarnation of a log topic (8 characters of [a-z0-9]); partition < 10⁴, offset < 10¹⁶.

    Offset -1 is the position before the first record, the head of an empty partition; as text, too, it comes before all others.
    """

    stream: str
    partition: int
    offset: int

    @property
    def text(self) -> str:
        return f"{self.stream}-{self.partition:04d}-{self.offset:016d}"

    @classmethod
    def parse(cls, text: object) -> Serial | None:
        """None for what this system never wrote. Whether the position exists is for the core to say (90003, 90005)."""
        match = _CHANNEL.fullmatch(text) if isinstance(text, str) else None
        return cls(match[1], int(match[2]), int(match[3])) if match else None


def message_serial(channel_serial: str, index: int) -> str:
    """The serial of message `index` (0-based, below 1000) of the publish at `channel_serial`."""
    return f"{channel_serial}:{index:03d}"


def parse_message_serial(text: object) -> tuple[Serial, int] | None:
    match = _MESSAGE.fullmatch(text) if isinstance(text, str) else None
    serial = Serial.parse(match[1]) if match else None
    return (serial, int(match[2])) if match and serial else None
