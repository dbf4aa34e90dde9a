"""History over REST: what the query asks for, and the page with its links. Source: specification RSL2, TG; Ably protocol docs, 8.2 and 8.7.

The links repeat every param that counts. `end` in them is the time of the first request, and `until` the position of the log at that time:
it is `until` that bounds the pages that follow, so that they are the same however many messages arrive meanwhile, and whatever the clocks
of two cores say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from edge.ably.codec import stored_messages, stored_presence
from relay.link.calls import HISTORY, MESSAGE, History, OneMessage, Read, decode_past
from relay.link.frames import Page
from relay.model.errors import RelayError
from relay.model.limits import EdgeLimits
from relay.model.message import RecordBody
from relay.model.serials import Serial

DEFAULT_LIMIT = 100
_MAX_MS = 9_007_199_254_740_991
_DIRECTIONS = {"backwards": True, "forwards": False}

_decode_body = msgspec.msgpack.Decoder(RecordBody).decode


def asked(segments: Sequence[str], params: Mapping[str, str], channel: str, limits: EdgeLimits) -> tuple[str, Read]:
    """The read that a GET of `channels/{c}/messages` (or `…/history`), `…/messages/{serial}` or `…/presence/history` is.

    Raises RelayError 40000, 40003.
    """
    presence = segments[2] == "presence"
    if len(segments) > 3 and not presence:
        return MESSAGE, OneMessage(channel=channel, serial=segments[3])
    direction = params.get("direction", "backwards")
    if direction not in _DIRECTIONS:
        raise RelayError(40003, "invalid direction: backwards or forwards")
    backwards = _DIRECTIONS[direction]
    limit = limit_asked(params, limits)
    start, end = _number(params, "start", None), _number(params, "end", None)
    if start is not None and end is not None and start > end:
        raise RelayError(40000, "invalid range: start is after end")
    upto = params.get("from_serial") or params.get("fromSerial") or None
    if upto is not None and not backwards:
        raise RelayError(40003, "from_serial goes with direction=backwards only")
    until = params.get("until") or None
    return HISTORY, History(
        channel=channel,
        limit=limit,
        backwards=backwards,
        start=start,
        end=None if until is not None else end,
        upto=upto,
        until=until,
        cursor=params.get("cursor") or None,
        presence=presence,
    )


def limit_asked(params: Mapping[str, str], limits: EdgeLimits) -> int:
    """Raises RelayError 40003."""
    limit = _number(params, "limit", DEFAULT_LIMIT)
    if limit is None or not 1 <= limit <= limits.page_messages:
        raise RelayError(40003, f"invalid limit: 1 to {limits.page_messages}")
    return limit


def _number(params: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = params.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MAX_MS):
        raise RelayError(40003, f"invalid {name}: not a number")
    return int(text)


def answer(
    read: Read, frame: Page, segment: str, now_ms: int, params: Mapping[str, str], *, msgpack: bool
) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """The body and the `link` headers of what a core has answered. `segment` is the last one of the path.

    Raises RelayError 50001 for what cannot be read.
    """
    past = decode_past(frame.body)
    place = Serial.parse(past.serial) if past is not None else None
    if past is None or place is None:
        raise _unreadable()
    backwards = isinstance(read, History) and read.backwards
    found: list[Any] = []
    for item in past.items:
        serial = place._replace(offset=item.offset).text
        try:
            body = _decode_body(item.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _unreadable() from None
        messages: list[Any]
        if isinstance(read, History) and read.presence:
            messages = stored_presence(body, item.first, item.last, msgpack=msgpack)
        else:
            messages = stored_messages(body, serial, item.first, item.last, msgpack=msgpack)
        found += reversed(messages) if backwards else messages
    if not isinstance(read, History):
        if not found:
            raise _unreadable()
        return found[0], ()
    return found, _links(read, segment, past.serial, past.cursor, now_ms, params)


def _unreadable() -> RelayError:
    return RelayError(50001, "the answer of the core is not readable")


def _links(
    read: History, segment: str, serial: str, cursor: str | None, now_ms: int, params: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """One header for each relation, as SDKs match them: no raw comma, and nothing behind the relation."""
    query: dict[str, str | int] = {"start": read.start or 0}
    if read.end is not None:
        query["end"] = read.end
    else:
        query["end"] = params.get("end") or now_ms
        query["until"] = read.until or serial
    query |= {"limit": read.limit, "direction": "backwards" if read.backwards else "forwards"}
    if read.upto is not None:
        query["from_serial"] = read.upto
    if "format" in params:
        query["format"] = params["format"]
    relations = [("first", None), ("current", read.cursor)]
    if cursor is not None:
        relations.append(("next", cursor))
    return tuple(
        ("link", f'<./{segment}?{urlencode(query | ({} if at is None else {"cursor": at}))}>; rel="{relation}"')
        for relation, at in relations
    )
