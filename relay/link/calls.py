"""The calls that travel as `Fetch`: their names and the shapes of their bodies. Answered by a `Page` with an HTTP status, or `Refused`.

Bodies are JSON, and so are the answers, except to reads of the log: those bring records as they are in it (`Past`, in msgpack), and the
edge makes of them what its client reads. What the client sent is carried as it came (`msgspec.Raw`): the core checks the MAC of a
TokenRequest over the client's own spelling, so that nothing on the way may rewrite it. `encode` and `decode` are the two ends:

    Fetch(req, "", REQUEST_TOKEN, encode(RequestToken(key_name, Raw(body), basic, address)))
    match decode(fetch.what, fetch.body):
        case RequestToken(key_name=name): ...
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay.model.occupancy import METRICS

REQUEST_TOKEN = "requestToken"  # noqa: S105 - the name of a route
"""`POST /keys/{keyName}/requestToken`. Page: 201 and a TokenDetails."""
REVOKE_TOKENS = "revokeTokens"
"""`POST /keys/{keyName}/revokeTokens`. Page: 201 or 400, and what became of each target, once it counts."""
CREATE_APP = "sandbox.create_app"
"""`POST /apps`. Page: 201 and the app with its keys. Refused with 40400 unless the core runs as a sandbox."""
DELETE_APP = "sandbox.delete_app"
"""`DELETE /apps/{id}`. Page: 204, no body."""
HISTORY = "history"
"""`GET /channels/{c}/messages`. Page: 200 and a `Past`."""
MESSAGE = "message"
"""`GET /channels/{c}/messages/{serial}`. Page: 200 and a `Past` of one message."""
REWIND = "rewind"
"""The backlog of an attachment. Page: 200 and a `Past`, newest message first."""
MEMBERS = "members"
"""A piece of a channel's presence set. Page: 200 and a `MemberPage`."""
STATUS = "status"
"""`GET /channels/{c}`. Page: 200 and the counts of `relay.model.occupancy.METRICS`, as a JSON array."""
STATS = "stats"
"""`GET /stats`. Page: 200 and a `StatsPage`."""
POST_STATS = "sandbox.stats"
"""`POST /stats`, by a session of the app. Page: 201 and what was posted. Refused with 40400 unless the core runs as a sandbox."""


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The base of all bodies. Fields are only ever added, with a default."""


class RequestToken(Call, frozen=True):
    """`body` is the TokenRequest as JSON, signed or not. `basic` is the API key (`app.id:secret`) that came with it, if one did."""

    key_name: str
    """From the path; the core compares it with the one in the body."""
    body: msgspec.Raw
    basic: str | None = None
    address: str = ""
    """Where the request came from, for the limits on failures."""


class RevokeTokens(Call, frozen=True):
    """`body` is the request as JSON; `basic` the API key that came with it: it must be the one in the path."""

    key_name: str
    body: msgspec.Raw
    basic: str
    flat: bool = False
    """Answered in the form of protocol version 2."""


class CreateApp(Call, frozen=True):
    """`body` is the app as the client suite sent it: keys, namespaces, channels with fixtures."""

    body: msgspec.Raw


class DeleteApp(Call, frozen=True):
    """`basic` is the API key that came with the request: it must be one of the app's own."""

    app: str
    basic: str | None


class Read(Call, frozen=True, kw_only=True):
    """A read of a channel's log, by the session that `Fetch` names. It sees every publish acknowledged before it, by whichever core."""

    channel: str


class History(Read, frozen=True, kw_only=True):
    """At most `limit` messages whose timestamps (milliseconds) lie between `start` and `end`, both inclusive; None: no bound.

    `upto` is a channelSerial: nothing after it (`from_serial` of untilAttach). `until` is the same, as an earlier `Past` gave it, and
    `cursor` the message serial that an earlier page ended at. Refused: 90008 for `upto`, 40011 for `until` and `cursor`, where they are no
    position of this channel.
    """

    limit: int
    backwards: bool = True
    start: int | None = None
    end: int | None = None
    upto: str | None = None
    until: str | None = None
    cursor: str | None = None
    presence: bool = False
    """Of presence instead of messages: `Item.first` and `last` count the items of a PRESENCE record."""


class OneMessage(Read, frozen=True, kw_only=True):
    """Refused: 40400 if it is not held (any more)."""

    serial: str


class Rewind(Read, frozen=True, kw_only=True):
    """The newest `limit` messages, none of them older than `period_ms`."""

    limit: int
    period_ms: int | None = None


class Members(Read, frozen=True, kw_only=True):
    """At most `limit` members, in the order of entering, that come after number `after`. `fresh`: the answer includes every change that was
    acknowledged before, by whichever core (presence over REST); otherwise it is of where the core is (a mirror that follows the log).
    """

    limit: int
    after: int = 0
    fresh: bool = False
    client_id: str | None = None
    connection_id: str | None = None


class Status(Read, frozen=True, kw_only=True):
    """How many are on the channel. Needs `channel-metadata`."""


class Stats(Call, frozen=True, kw_only=True):
    """Statistics of the app of the session that `Fetch` names, as `relay.model.stats.Query` has it. Needs `stats` on `*`."""

    unit: str
    start: str
    end: str
    backwards: bool
    limit: int
    after: str | None = None


class PostStats(Call, frozen=True):
    """`body` is what a client suite posts: minutes in the form of protocol version 2."""

    body: msgspec.Raw


READS = frozenset({HISTORY, MESSAGE, REWIND, MEMBERS})
CALLS: dict[str, type[Call]] = {
    REQUEST_TOKEN: RequestToken,
    REVOKE_TOKENS: RevokeTokens,
    CREATE_APP: CreateApp,
    DELETE_APP: DeleteApp,
    HISTORY: History,
    MESSAGE: OneMessage,
    REWIND: Rewind,
    MEMBERS: Members,
    STATUS: Status,
    STATS: Stats,
    POST_STATS: PostStats,
}


class Item(msgspec.Struct, array_like=True, frozen=True):
    """Messages `first` to `last` (inclusive) of the record at `offset`; `body` is the record's value."""

    offset: int
    first: int
    last: int
    body: bytes


class Past(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a read: records in the order asked for. `serial` is the position up to which the channel was read; with it as `until`
    the same read finds the same. `cursor`: there is more, and it begins there."""

    serial: str
    items: list[Item]
    cursor: str | None = None


class MemberItem(msgspec.Struct, array_like=True, frozen=True):
    """A member as it is: `id` of its latest enter or update, `timestamp` in milliseconds, `offset` that of the record."""

    number: int
    connection_id: str
    client_id: str
    id: str
    timestamp: int
    offset: int
    data: Any = None
    encoding: str | None = None
    extras: dict[str, Any] | None = None


class MemberPage(msgspec.Struct, array_like=True, frozen=True):
    """`serial` is the position of which the page is. `after`: there is more, after that number."""

    serial: str
    members: list[MemberItem]
    after: int | None = None


class StatsPage(msgspec.Struct, array_like=True, frozen=True):
    """Intervals in the order asked for, each with its numbers (`relay.model.stats`). `more`: there are others behind the last one."""

    items: list[tuple[str, list[int]]]
    more: bool


class UnknownCall(Exception):  # noqa: N818 - a refusal, not a fault of ours
    """The name is not one of `CALLS`, or the body is not of its shape. The text names the call, never what the body holds."""


_encoder = msgspec.json.Encoder()
_past_encoder = msgspec.msgpack.Encoder()
_past_decoder = msgspec.msgpack.Decoder(Past)
_counts_decoder = msgspec.json.Decoder(list[int])
_stats_decoder = msgspec.json.Decoder(StatsPage)
_members_decoder = msgspec.msgpack.Decoder(MemberPage)


def encode(call: Call) -> bytes:
    """The body of a `Fetch`. A `Raw` that is empty or not JSON makes a body that `decode` refuses: check it before."""
    return _encoder.encode(call)


def decode(what: str, body: bytes) -> Call:
    """The body of a `Fetch` as its type. Raises `UnknownCall`."""
    shape = CALLS.get(what)
    if shape is None:
        raise UnknownCall("unknown call")
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UnknownCall(f"malformed body of {what}") from None


def encode_past(past: Past) -> bytes:
    return _past_encoder.encode(past)


def encode_members(page: MemberPage) -> bytes:
    return _past_encoder.encode(page)


def decode_members(body: bytes) -> MemberPage | None:
    """None for what no core of ours has written."""
    try:
        return _members_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def decode_counts(body: bytes) -> list[int]:
    """The answer to `Status`; zeros for what no core of ours has written."""
    try:
        counts = _counts_decoder.decode(body)
    except msgspec.MsgspecError:
        counts = []
    return [*counts, *(0,) * len(METRICS)][: len(METRICS)]


def decode_stats(body: bytes) -> StatsPage | None:
    """None for what no core of ours has written."""
    try:
        return _stats_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def decode_past(body: bytes) -> Past | None:
    """None for what no core of ours has written."""
    try:
        return _past_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
