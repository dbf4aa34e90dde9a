"""One record of `tidegate.log`, as read by the tail or from the index."""

from __future__ import annotations

import msgspec

from relay.model.message import RecordBody

EPHEMERAL_TAIL = msgspec.msgpack.encode("ephemeral") + msgspec.msgpack.encode(True)
"""How the body of an ephemeral record ends: its last field, in msgpack."""

_decode_body = msgspec.msgpack.Decoder(RecordBody).decode


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """`timestamp` is broker time (LogAppendTime) in milliseconds; `id` the publish id (header); `key` is `app:channel` in UTF-8.

    There are many of them, and none holds anything that could hold it: the garbage collector does not look at them."""

    stream: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    kind: int
    id: str


def body_is_ephemeral(value: bytes) -> bool:
    """Whether a record's body says so. `ephemeral` is the last field, so that most records cost one comparison and no decoding."""
    if not value.endswith(EPHEMERAL_TAIL):
        return False
    try:
        return _decode_body(value).ephemeral
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # not one of ours, but somebody wrote it
        return False
