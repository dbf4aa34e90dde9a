"""Unread output of one client: what is waiting here while its socket takes no more. Bounded in bytes and in age."""

from __future__ import annotations

from collections import deque

from relay.model.limits import EdgeLimits


class Outbox:
    """Exists only while its client is slow: made when the socket's buffer is full, dropped once it has been drained.

    The client alone pays for its slowness: beyond a bound it is disconnected, resumes, and is sent what it missed from the log.
    """

    __slots__ = ("_frames", "since", "size")

    def __init__(self, now: float) -> None:
        self._frames: deque[bytes] = deque()
        self.size = 0
        """Bytes waiting here."""
        self.since = now
        """When the socket's buffer was last known to move."""

    def push(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.size += len(frame)

    def overdue(self, limits: EdgeLimits, now: float) -> bool:
        """Whether the client is to be disconnected."""
        return self.size > limits.outbox_bytes or now - self.since > limits.outbox_age_s

    def take(self, now: float) -> bytes:
        """Everything that waits, to be written now that the socket takes more."""
        waiting = b"".join(self._frames)
        self._frames.clear()
        self.size = 0
        self.since = now
        return waiting
