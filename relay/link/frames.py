"""Every frame of the link between an edge and a core, in both directions. `docs/link.md` tells their order.

A WebSocket binary message is a msgpack array of frames; a frame is a msgpack array whose first element is its tag. Fields are only ever
added at the end with a default, so that one version back can be served.

Two lanes: `live` carries what subscribers wait for (records, appends, control), `bulk` what may be large or slow (admission, replay,
pages). Order holds on `live`, and on `bulk` between frames with the same `req` or `ref` (takers have fair turns); nowhere else.
"""

from __future__ import annotations

import enum

import msgspec

from relay.model.capability import Bars
from relay.model.errors import ErrorInfo
from relay.model.message import Message, PresenceItem

VERSION = 1
"""What this build speaks."""
LOWEST_VERSION = 1
"""What this build still serves."""


class Lane(enum.IntEnum):
    LIVE = 0
    BULK = 1


class Frame(msgspec.Struct, array_like=True, tag_field="t"):
    """The base of all frames."""


# --- both directions -----------------------------------------------------------------------------------------------------------------


class Credit(Frame, tag=1):
    """The receiver has taken in `size` more bytes of this lane: the sender may send as many again. Alone in its message, uncounted."""

    size: int


# --- edge → core ---------------------------------------------------------------------------------------------------------------------


class Hello(Frame, tag=10):
    """First frame on each lane. `pair` is empty on `live`; on `bulk` it is what `Welcome` gave, so that both lanes end at one core."""

    version: int
    lowest: int
    lane: Lane
    site: str
    node: str
    boot: str
    """Random per edge process: grants are bound to it, so that a restarted edge starts with none."""
    pair: str = ""
    credit: int = 8_388_608
    """How many bytes the core may send on this lane before the first `Credit`."""


class Admit(Frame, tag=11):
    """A client presents its credential. Answer: `Admitted` or `Refused`.

    `credential` is an API key, an Ably token or a JWT as presented (never logged); None if the client sent none.
    `session` names the admitted connection when a live connection re-authenticates; empty otherwise.
    `resume` and `recover` are connection keys. `realtime` is False for one REST request.
    """

    req: int
    credential: str | None
    basic: bool
    """Whether it was presented as an API key (`key=`, Basic) rather than as a token."""
    realtime: bool
    tls: bool
    version: int
    client_id: str | None = None
    resume: str | None = None
    recover: str | None = None
    session: str = ""
    address: str = ""
    remain_present_ms: int | None = None
    """How long members that it enters stay after an abrupt end, as the client asked (`remainPresentFor`)."""


class Present(Frame, tag=12):
    """A grant, before the first use of its session on this link. No answer; a bad one makes what uses it be refused."""

    grant: bytes


class Renew(Frame, tag=13):
    """The session lives on: a fresh grant, please. Answer: `Admitted` without `key` (it is unchanged) or `Refused`."""

    req: int
    session: str


class Open(Frame, tag=14):
    """Send every event of a channel from now on (or after a serial). Answer: `Opened` or `Refused`.

    `req` also names the channel in `Record`, `Shut` and `Lost` until it is shut. `witness` is a session whose grant permits reading.
    `after` is a channelSerial: what came later is replayed first. Without it the channel starts at its head.
    """

    req: int
    app: str
    channel: str
    witness: str
    after: str | None = None


class Shut(Frame, tag=15):
    ref: int


class Append(Frame, tag=16):
    """One atomic publish. Answer: `Appended` or `Refused`, or `Unknown` when its fate cannot be told.

    `id` is the ProtocolMessage id; `fresh` says that no other append can ever carry it (server-made, first send on a connection never
    resumed), so that the answer need not wait for the duplicate verdict. `connection_key` publishes on behalf of another connection (REST).
    """

    req: int
    session: str
    channel: str
    id: str
    fresh: bool
    messages: list[Message]
    ephemeral: bool = False
    connection_key: str | None = None
    presence: list[PresenceItem] = []
    """A change of presence; then there are no `messages`. `id` is that of a publish: presence and messages share the msgSerials."""


class Fetch(Frame, tag=17):
    """A read or a small call that is answered by one `Page` (or `Refused`): history, `requestToken`, sandbox provisioning.

    `what` is a name of `relay.link.calls`; `body` is JSON.
    """

    req: int
    session: str
    what: str
    body: bytes = b""


class Depart(Frame, tag=18):
    """A connection is over (`closed`: by the client's CLOSE; otherwise it dropped). Its grant is void from here on.

    `incarnation` is that of the grant; None: whichever the core knows. A later one of the same connection is not meant.
    """

    session: str
    closed: bool
    incarnation: int | None = None


class Up(Frame, tag=19):
    """The client of a resumed connection has sent its first frame: it has its new connectionKey, and the former ones are void."""

    session: str
    incarnation: int


class Counts(Frame, tag=20):
    """How many attachments of each category this edge has on a channel now: `relay.model.occupancy.ATTACHED` in that order.

    Sent on a change, at most once a second for each channel, and for every channel with attachments on a new link. `number` grows with
    each frame of the edge process, so that the last word is known whichever core it reached; all zero: no attachment is left.

    `session` is one that is attached, presented on this link: without its rights nothing is believed of a channel that this edge process
    has not reported before.
    """

    number: int
    app: str
    channel: str
    counts: list[int]
    session: str = ""


class Watch(Frame, tag=21):
    """Whether the occupancy of an open channel is wanted: `Occupancy` follows at once, then on every change. Ends with `Shut`.

    `session` is one whose grant, presented on this link, permits it to know (`channel-metadata`). There is no answer to a refusal.
    """

    ref: int
    on: bool
    session: str = ""


class Barrier(Frame, tag=22):
    """Answer `Reached` once every record of an open channel that was acknowledged before, by whichever core, has been sent."""

    req: int
    ref: int


class Counted(Frame, tag=23):
    """What this edge process has counted of an app so far: `relay.model.stats`. `current` are the running intervals, in full each time,
    so that a report may be lost or come twice; `ended` those that are over, said a few times.

    `session` is one of that app, presented on this link: without it nothing is believed of an app that this edge process has not reported
    before.
    """

    app: str
    session: str
    current: list[tuple[str, list[int]]]
    ended: list[tuple[str, list[int]]]


# --- core → edge ---------------------------------------------------------------------------------------------------------------------


class Stream(msgspec.Struct, array_like=True, frozen=True):
    """One incarnation of a log topic. The edge hashes channel → partition, and `serves` says which of them this core serves (inclusive)."""

    id: str
    partitions: int
    serves: tuple[int, int]


class Welcome(Frame, tag=30):
    """Answer to `Hello`. `credit` is how many bytes the edge may send on this lane before the first `Credit`."""

    version: int
    core: str
    pair: str
    credit: int
    streams: list[Stream]
    now: int
    """Core wall clock in milliseconds, for the log of skew."""


class Admitted(Frame, tag=31):
    """`session` is the connection id for a realtime connection. `key` is the connectionKey (empty for REST and renewals).

    `error` is a failed resume or recover (80008, 80018): the connection is new, and the client is told. `client_id` is None (anonymous),
    `*` or the identity; `capability` is canonical JSON text, already intersected with the key's.
    """

    req: int
    session: str
    key: str
    grant: bytes
    app: str
    client_id: str | None
    capability: str
    grant_expires: int
    token_expires: int | None = None
    issued: int | None = None
    incarnation: int = 0
    error: ErrorInfo | None = None
    bars: Bars = ()
    """Namespaces that are closed to this session."""


class Refused(Frame, tag=32):
    """The answer to any request that is refused. For `Append`: it was refused before it was handed to Kafka, and will never appear."""

    req: int
    error: ErrorInfo


class Opened(Frame, tag=33):
    """The channel is open; everything up to `serial` has been sent (nothing, without `after`), everything after it follows as `Record`.

    Without `after`, `serial` is where the log was read when `Open` came, and the answer waits until all is sent that was acknowledged
    before by any core: records after `serial` may precede it.

    `error` tells that continuity from `after` was lost (90003, 90004, 90005).
    """

    req: int
    serial: str
    error: ErrorInfo | None = None
    members: int = 0
    """How many members the channel has now. If any, the edge asks for them (`relay.link.calls.MEMBERS`)."""


class Record(Frame, tag=34):
    """One event of an open channel, duplicates already left out. `body` are the bytes of the log record's value."""

    ref: int
    offset: int
    kind: int
    body: bytes


class Appended(Frame, tag=35):
    """The publish is durable. `serial` is the channelSerial of its first occurrence in the log."""

    req: int
    serial: str


class Unknown(Frame, tag=36):
    """The publish may or may not be in the log. The edge drops the client's connection (50003); the client sends it again under its id."""

    req: int


class Page(Frame, tag=37):
    """Answer to `Fetch`: an HTTP status and a body, JSON unless `relay.link.calls` says otherwise."""

    req: int
    status: int
    body: bytes


class Lost(Frame, tag=38):
    """The core can no longer serve an open channel without a gap; the edge opens it again."""

    ref: int
    error: ErrorInfo


class Revoke(Frame, tag=39):
    """A session's rights are void: the edge disconnects the client with `error`.

    With `at` (milliseconds) they will be then, and another `Revoke` will say so: the client is asked for other credentials meanwhile.
    """

    session: str
    error: ErrorInfo
    at: int = 0


class Drain(Frame, tag=40):
    """The core is about to stop: answer what is outstanding here, open everything else elsewhere."""

    why: str


class Superseded(Frame, tag=41):
    """A connection goes on as `incarnation`, over another socket, perhaps at another edge. Whatever holds it under an earlier incarnation
    closes its socket (80003). The earlier grants are void."""

    session: str
    incarnation: int


class Positions(Frame, tag=42):
    """Every record of the channels open on this link has been sent, up to these offsets (partition, offset) of the stream.

    A channel that has been quiet is opened again from here and not from its own last record, which the index may have forgotten.
    """

    stream: str
    offsets: list[tuple[int, int]]


class Occupancy(Frame, tag=43):
    """How many there are on a watched channel, over all edges: `relay.model.occupancy.METRICS` in that order."""

    ref: int
    counts: list[int]


class Reached(Frame, tag=44):
    """Answer to `Barrier`. Also when Kafka did not say in time where the log ends: then nobody knows better."""

    req: int


ToCore = Credit | Hello | Admit | Present | Renew | Open | Shut | Append | Fetch | Depart | Up | Counts | Watch | Barrier | Counted
ToEdge = (
    Credit
    | Welcome
    | Admitted
    | Refused
    | Opened
    | Record
    | Appended
    | Unknown
    | Page
    | Lost
    | Revoke
    | Drain
    | Superseded
    | Positions
    | Occupancy
    | Reached
)

BULK: frozenset[type[Frame]] = frozenset({Admit, Renew, Fetch, Admitted, Page})
"""Frames that always travel on `bulk`. `Refused` takes the lane of what it refuses; replayed `Record`s and their `Opened` take `bulk`."""
