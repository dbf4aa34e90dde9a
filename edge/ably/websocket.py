"""WebSocket frames as a server writes them (RFC 6455 section 5.2): unmasked, whole, made once and written to any number of sockets."""

from __future__ import annotations

_TEXT = b"\x81"
_BINARY = b"\x82"
_PONG = b"\x8a"

PING = b"\x89\x00"
"""A ping without payload."""


def pong_frame(payload: bytes) -> bytes:
    return _framed(_PONG, payload)


def text_frame(payload: bytes) -> bytes:
    return _framed(_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    return _framed(_BINARY, payload)


def _framed(first: bytes, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (first, size, payload)
    if size < 65_536:
        return b"%b\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%b\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


def payload_of(frame: bytes) -> tuple[bool, bytes, bytes]:
    """Whether the first frame of `frame` is binary, its payload, and what follows it. For tests and in-process clients."""
    size, at = frame[1], 2
    if size == 126:
        size, at = int.from_bytes(frame[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(frame[2:10], "big"), 10
    return frame[0] == 0x82, frame[at : at + size], frame[at + size :]
