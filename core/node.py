"""CoreNode: events in, effects out. What a core decides, without a socket, a clock or a broker.

Publishing. Every append is checked again by the code that the edge ran, handed over (`Produce`) and answered when Kafka has reported it:
at once if its id cannot repeat, otherwise when the tail has read the record and the fold has given its verdict. What Kafka never reports
is never refused: the edge gives it up by itself, and its client sends it again under the same id.

Delivery. Each record read by the tail gets its verdict, goes into the index, and to every link that has its channel open.

Admission. Admits and calls wait in queues of their own, one for each link, and `admits_per_turn` of them are served in a `Tick`. Nothing
else waits for a tick, so that an append never stands behind a signature check.

Resume. `core.connections` knows, from `tidegate.sessions`, every connection of every core. A client that comes with a connectionKey waits
until what was written before has been read (the barrier), then until the record of the next incarnation has been written and read back.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import nsmallest
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from core import sandbox
from core.absence import Absence, Wait
from core.admission import Admission, UnknownCredential, Verified, check_status
from core.attendance import FIXTURE, FOLDED, Attendance
from core.barriers import Barriers
from core.channel import Channels, OpenChannel
from core.connections import BAD_KEY, TRIES, Claim, ConnectionRecord, Connections
from core.connections import EXPIRED as EXPIRED_CONNECTION
from core.connections import State as ConnectionState
from core.control.audit import BY_KEY, AuditEntry, record_of
from core.effects import AskConfigEnd, AskEnd, Effect, LinkClose, LinkSend, Produce, ShowRecord, WriteConfig, WriteSession
from core.events import (
    SESSIONS_END,
    ConfigRead,
    ConfigWritten,
    Congested,
    EdgeFrame,
    EdgeLost,
    EdgeUp,
    EndOffset,
    Event,
    Gap,
    Looked,
    Noticed,
    OccupancyWanted,
    Overfull,
    Owned,
    Reported,
    SessionRead,
    SessionWritten,
    StateRead,
    Tailed,
    Tick,
    Watching,
)
from core.fold import SKEW_MS, WINDOW_MS, Fold
from core.history import Reads
from core.index import Index
from core.kept import PREFIX as KEPT
from core.kept import KeptMessages, kept
from core.lifecycle import Lifecycle
from core.log import EPHEMERAL_TAIL, LogRecord, body_is_ephemeral
from core.metachannel import MESSAGES as _META
from core.metachannel import Metachannel, minute_id
from core.occupancy import PREFIX as COUNTS_PREFIX
from core.occupancy import Occupancies
from core.occupancy_log import OccupancyLog
from core.quiet import lasts
from core.recency import Recency
from core.registry import App, Key, Registry, Streams, app_of, bars_of
from core.replay import EXPIRED, OTHER_SITE, Replays
from core.revocations import CREATED, RevocationRecord, Revocations, answer, asked, bound, view_of
from core.revocations import PREFIX as REVOCATION
from core.roster import Denied, Roster, Session
from core.stats import PREFIX as STATS_PREFIX
from core.stats import Statistics, totals
from relay.link.calls import (
    READS,
    STATUS,
    CreateApp,
    DeleteApp,
    History,
    MemberPage,
    Members,
    PostStats,
    Read,
    RequestToken,
    RevokeTokens,
    Rewind,
    Stats,
    StatsPage,
    Status,
    UnknownCall,
    decode,
    encode_members,
)
from relay.link.codec import encode_frame
from relay.link.frames import (
    Admit,
    Admitted,
    Append,
    Appended,
    Barrier,
    Counted,
    Counts,
    Credit,
    Depart,
    Fetch,
    Hello,
    Lane,
    Lost,
    Open,
    Opened,
    Page,
    Positions,
    Present,
    Reached,
    Record,
    Refused,
    Renew,
    Revoke,
    Shut,
    Superseded,
    ToCore,
    ToEdge,
    Unknown,
    Up,
    Watch,
)
from relay.model.capability import Bars, Capability, Operation
from relay.model.channel import META_STATS, METACHANNELS, ChannelName, log_key, parse_channel, partition_of
from relay.model.connection_key import CONNECTION_ID_BYTES, claimed_id, make_key, new_connection_id, parse_key
from relay.model.errors import ErrorInfo, RelayError
from relay.model.grants import Grant, seal_grant
from relay.model.identity import identify, on_behalf
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from relay.model.message import Kind, PresenceAction, RecordBody
from relay.model.occupancy import details
from relay.model.presence import settle_presence
from relay.model.publish import is_ephemeral, recheck
from relay.model.serials import Serial
from relay.model.stats import (
    CHANNELS,
    CHANNELS_OPENED,
    CONNECTIONS,
    CONNECTIONS_OPENED,
    IN_REALTIME,
    IN_REALTIME_PRESENCE,
    IN_REST,
    TOKEN_REFUSED,
    TOKEN_SUCCEEDED,
    Query,
    shape,
    span,
)

POSITIONS_S = 30.0
"""How often edges hear how far the log has gone, in seconds: well within what the index holds."""
SWEEP_S = 1.0
"""How often what has waited too long is looked for, in seconds."""
INDEX_RETENTION_MS = 150_000
"""What a core's index should hold, in milliseconds: the two minutes of a resume, and some time to get there."""
LOOK_BACK_MS = WINDOW_MS + SKEW_MS + INDEX_RETENTION_MS
"""How far before its start a tail should begin, so that the verdicts on all that the index should hold are sound from the start."""

MOST_STATS = 1_000
"""Intervals of one page of statistics."""
_WITNESS_TRIES = 256
_WITNESSES_PER_SWEEP = 200
_CONFIG_RETRY_S = 1.0
_EXPIRE_INDEX_S = 10.0
_HOLD_MS = 150_000
"""What the look-back brings is held for so long once the core is ready, however old: where there was no core for a while, clients ask for
what lies before."""

# Plain numbers: every record of the log is compared with them, and members of an enumeration compare slowly.
_MESSAGE = int(Kind.MESSAGE)
_LIFECYCLE = int(Kind.LIFECYCLE)
_OCCUPANCY = int(Kind.OCCUPANCY)
_FOLDED = frozenset(map(int, FOLDED))

_BUSY = ErrorInfo.of(50004, "The service is busy; try again")
_STARTING = ErrorInfo.of(50320, "The core is not ready; try another")
_OVERFULL = ErrorInfo.of(50003, "The publish could not be taken in; nothing was published")
_APP_GONE = ErrorInfo.of(40101, "The app no longer exists")
_KEY_CHANGED = ErrorInfo.of(80003, "The key has changed; connect again")
_NAMESPACE_CLOSED = ErrorInfo.of(80003, "A namespace of the app has been closed to clients like this one; connect again")
_NO_READER = ErrorInfo.of(40160, "No session of this link may read the channel")
_REPLAYS_FULL = ErrorInfo.of(42912, "Too many channels of the app are catching up; try again")
_NOT_RESUMED = ErrorInfo.of(50003, "The connection could not be resumed in time; try again")
_ON_BEHALF = "Malformed message; invalid connectionId"

_encode_body = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode


class _Partition:
    """How far the tail has read one partition of the log, and who waits for it to read further."""

    __slots__ = ("ahead", "checkpoint_ms", "floor", "kept", "looked", "position", "quiet_from", "recency", "sound_after_ms", "verdicts")

    def __init__(self, recent: int, kept_bytes: int) -> None:
        self.position = 0
        """The next offset to be read."""
        self.looked = False
        self.floor: int | None = None
        """The first offset from which verdicts are sound and no record is missing; None until it is known."""
        self.sound_after_ms: int | None = None
        """Broker time from which a record's verdict is sound, while the look-back runs."""
        self.verdicts: dict[int, _Pending] = {}
        """Durable publishes whose record has not been read yet, by offset."""
        self.ahead: dict[int, _Ahead] = {}
        """Opens after a serial that the tail has not reached, by the number of their question for the end."""
        self.recency = Recency(recent)
        """The last record of each channel that a replay would bring: no duplicates, and nothing ephemeral."""
        self.kept = KeptMessages(kept_bytes)
        self.quiet_from: int | None = None
        self.checkpoint_ms = 0
        """As the state has them: see `StateRead`."""


class _Pending:
    """An append between `Produce` and its answer."""

    __slots__ = ("at", "count", "fresh", "id", "key", "link", "partition", "presence", "req", "session", "size", "ticket")

    def __init__(self, ticket: int, link: int, frame: Append, session: Session, key: bytes, partition: int, fresh: bool, size: int) -> None:
        self.ticket = ticket
        self.link = link
        self.session = session
        self.req = frame.req
        self.id = frame.id
        self.presence = bool(frame.presence)
        self.count = len(frame.presence) or len(frame.messages)
        self.key = key
        self.partition = partition
        self.fresh = fresh
        self.size = size
        self.at = 0.0
        """When it was reported durable; 0 before."""


class _Ahead:
    __slots__ = ("after", "channel", "until")

    def __init__(self, channel: OpenChannel, after: int, until: float) -> None:
        self.channel = channel
        self.after = after
        self.until = until


class _Write:
    """A call that is answered when its records, of `tidegate.config`, `tidegate.sessions` or the log, are written."""

    __slots__ = ("failed", "left", "link", "page", "then")

    def __init__(self, link: int, left: int, page: Page, then: tuple[str, bytes] | None) -> None:
        self.link = link
        self.left = left
        self.page = page
        self.then = then
        self.failed = False


class _Held(NamedTuple):
    """A frame that came before the core was ready, and how long it may wait."""

    until: float
    link: int
    frame: ToCore
    size: int


_Job = tuple[Admit | Fetch, bool]
"""A request in an admission queue, and whether the end of `tidegate.config` has been asked for since it came."""


def _closed(app: App) -> set[tuple[str, int]]:
    """Namespaces that are closed to some clients, with to which."""
    return {*bars_of(app, anonymous=True, plain=False), *bars_of(app, anonymous=False, plain=True)}


def _lessens(before: App, now: App | None) -> bool:
    """Whether sessions may have lost rights: then all are looked at, and not for every key that is made. O(keys of the app)."""
    if now is None or now.status != before.status:
        return True
    if not _closed(now) <= _closed(before):
        return True
    return any(
        key is not old
        and (key is None or (key.status, key.secret, key.capability, key.expires) != (old.status, old.secret, old.capability, old.expires))
        for key_id, old in before.keys.items()
        for key in (now.keys.get(key_id),)
    )


def _denied(session: Session, channel: str, operation: Operation) -> Denied:
    code = session.capability.bar_on(channel)
    if code is None:
        return Denied("capability", 40160, f"operation not permitted with provided capability: {operation}")
    return Denied("namespace", code, session.capability.refusal(channel).info.message)


class CoreNode:
    def __init__(
        self,
        *,
        name: str,
        streams: Streams,
        registry: Registry,
        keyring: Keyring,
        index: Index,
        random: Callable[[int], bytes],
        limits: CoreLimits | None = None,
        dev: bool = False,
        sandbox: bool = False,
        config_log: bool = True,
        region: str = "home",
        connection_lifecycle: bool = False,
        look_back_ms: int = LOOK_BACK_MS,
    ) -> None:
        """`random(n)` gives n unpredictable bytes. `config_log`: whether `tidegate.config` is read, and asked before a key is called
        unknown. `region`: what readers of metachannels are told of where channels live. `connection_lifecycle`: whether they are told of
        connections. `look_back_ms`: how far before its start, or an older checkpoint, the tail begins.
        """
        self.name = name
        self.counters: Counter[str] = Counter()
        """Refusals and other events by reason (`open.no_witness`, `grant.bad_mac`, …), for metrics. The reasons are a fixed set."""
        self._limits = limits = limits or CoreLimits()
        self._registry = registry
        self._keyring = keyring
        self._random = random
        self._sandbox = sandbox
        self._config_log = config_log
        self._connection_lifecycle = connection_lifecycle
        self._look_back_ms = look_back_ms
        self._streams = streams
        self._stream = streams.all[0]
        low, high = self._stream.serves
        recent = max(1, limits.recent_channels // (high + 1 - low))
        kept_bytes = limits.kept_bytes // (high + 1 - low)
        self._partitions = {number: _Partition(recent, kept_bytes) for number in range(low, high + 1)}
        self._index = index
        index.hold(math.inf)
        self._fold = Fold(limits.fold_ids, random(16))
        self._connections = Connections(
            name,
            keyring,
            limits,
            self.counters,
            emit=self._emit,
            number=self._number,
            random=random,
            lives=self._connection_lives,
        )
        self._statistics = Statistics(
            f"c{random(8).hex()}",
            limits,
            self.counters,
            emit=self._emit,
            number=self._number,
            owns=lambda app: partition_of(log_key(app, META_STATS), self._stream.partitions) in self._absence.owned,
        )
        self._roster = Roster(keyring, limits, self.counters, self._connections.floor, self._bars)
        self._channels = Channels()
        self._congested: set[int] = set()
        self._occupancy = Occupancies(
            name,
            limits,
            self.counters,
            emit=self._emit,
            number=self._number,
            alive=lambda boot: self._connections.lives(boot, self._now_ms),
            leased=self._connections.is_leased,
            members=self._members,
            changed=self._attachments_changed,
            permitted=self._may_know,
        )
        self._lifecycle = Lifecycle(
            limits,
            self.counters,
            append=self._append_lifecycle,
            connections=self._occupancy.connections,
            counts=self._occupancy.totals,
            opens=self._channel_opens,
        )
        self._occupancy_log = OccupancyLog(limits, self.counters, append=self._append_occupancy, totals=self._occupancy.totals)
        self._metachannel = Metachannel(
            limits,
            self.counters,
            append=self._append_to_metachannel,
            counts=self._occupancy.totals,
            partition=lambda app, channel: partition_of(log_key(app, channel), self._stream.partitions),
            region=region,
        )
        self._watched: set[bytes] = set()
        """Log keys of channels that operators watch."""
        self._replays = Replays(index, limits, self)
        self._reads = Reads(index, limits, self)
        self._barriers = Barriers(limits, emit=self._emit, number=self._number)
        self._attendance = Attendance(self._partitions, limits, self)
        self._absence = Absence(self._attendance, self._connections, limits, self.counters, self, emit=self._emit, number=self._number)
        self._admission = Admission(registry, keyring, limits, random(32), insecure_basic=dev)
        self._revocations = Revocations()
        self._out: list[Effect] = []
        self._now = 0.0
        self._now_ms = 0
        self._last = 0
        self._pending: dict[int, _Pending] = {}
        self._load: dict[int, list[int]] = {}
        """Unanswered appends of each link: number, bytes."""
        self._admits: OrderedDict[int, deque[_Job]] = OrderedDict()
        self._unknown: list[tuple[int, Admit | Fetch]] = []
        self._asking: tuple[int, list[tuple[int, Admit | Fetch]]] | None = None
        """The running question for the end of `tidegate.config`, and who waits for its answer."""
        self._asked_at = float("-inf")
        self._writes: dict[int, _Write] = {}
        self._unwitnessed: deque[tuple[float, OpenChannel]] = deque()
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._config_read = not config_log
        self._gone = False
        self._was_ready = False
        self._sweep_at = 0.0
        self._expire_index_at = 0.0
        self._positions_at = 0.0
        self.records = 0
        self.duplicates = 0

    # --- the surface -------------------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Everything that the core serves has been looked back on, and the configuration read."""
        return self._was_ready and not self._gone

    def handle(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        """`now` is monotonic seconds, `now_ms` the wall clock in milliseconds. Never raises, whatever an edge sends."""
        self._now, self._now_ms = now, now_ms
        out = self._out = []
        match event:
            case Tailed():
                self._tailed(event.records)
            case EdgeFrame():
                if event.link in self._roster.links:
                    self._frame(event.link, event.frame)
            case Reported():
                self._reported(event)
            case Tick():
                self._tick()
            case Overfull():
                self._overfull(event)
            case EdgeUp():
                self._edge_up(event)
            case EdgeLost():
                self._edge_lost(event.link)
            case EndOffset():
                self._end_offset(event)
            case ConfigRead():
                self._config(event)
            case ConfigWritten():
                self._written(event.ticket, event.ok)
            case SessionRead():
                self._session_read(event)
            case SessionWritten():
                self._session_written(event)
            case Looked():
                self._looked(event)
            case Gap():
                self._gap(event)
            case Noticed():
                self._metachannel.log(event.app, event.number, event.name, event.about, self._now_ms)
            case Congested():
                (self._congested.add if event.on and event.link in self._roster.links else self._congested.discard)(event.link)
            case StateRead():
                self._state_read(event)
            case Owned():
                self._owned(event)
            case OccupancyWanted():
                self._occupancy_log.want(event.apps, self._occupied(), self._now)
            case Watching():
                self._watching(event)
        return out

    def next_deadline(self) -> float | None:
        """When to send `Tick`. In the past while there is work for the next turn of the loop."""
        if self._admits or self._absence.has_due:
            return self._now
        at = min(self._sweep_at, self._occupancy.next_at(), self._occupancy_log.next_at())
        if self._unknown and self._asking is None:
            at = min(at, self._asked_at + self._limits.config_barrier_interval_s)
        if self._replays:
            at = min(at, self._replays.next_at(self._now))
        return min(at, self._reads.next_at(self._now)) if self._reads else at

    def status(self) -> dict[str, Any]:
        """What the core is doing, in numbers, for `GET /v1/status` and metrics."""
        return {
            "node": self.name,
            "ready": self.ready,
            "stream": {"id": self._stream.id, "partitions": self._stream.partitions, "serves": list(self._stream.serves)},
            "partitionsLookedBack": sum(partition.looked for partition in self._partitions.values()),
            "configRead": self._config_read,
            "apps": len(self._registry),
            "unreadableConfigRecords": self._registry.unreadable + self._revocations.unreadable,
            "revocations": len(self._revocations),
            "links": [
                {"edge": link.identity, "site": link.site, "node": link.node, "boot": link.boot, "sessions": len(link.sessions)}
                for link in self._roster.links.values()
            ],
            "sessions": len(self._roster),
            "connections": len(self._connections),
            "edges": self._connections.leases,
            "leases": [
                {"edge": edge, "boot": boot, "ageMs": age, "alive": self._connections.lives(boot, self._now_ms)}
                for edge, boot, age in self._connections.lease_ages(self._now_ms)
            ],
            "partitions": [
                {"partition": number, "owned": number in self._lifecycle.owned, "position": partition.position}
                for number, partition in self._partitions.items()
            ],
            "occupancyEntries": len(self._occupancy),
            "statsEntries": len(self._statistics),
            "occupancyWatched": self._occupancy.watched,
            "lifecycleChannels": len(self._lifecycle),
            "lifecycleUnshown": len(self._metachannel),
            "channels": len(self._channels),
            "replays": len(self._replays),
            "reads": len(self._reads),
            "keptMessages": sum(len(partition.kept) for partition in self._partitions.values()),
            "keptDropped": sum(partition.kept.dropped for partition in self._partitions.values()),
            "barriers": len(self._barriers),
            "barriersOverdue": self._barriers.overdue,
            "appends": len(self._pending),
            "appendBytes": sum(size for _, size in self._load.values()),
            "admits": sum(map(len, self._admits.values())),
            "records": self.records,
            "duplicates": self.duplicates,
            "foldIds": self._fold.ids,
            "foldForgottenEarly": self._fold.forgotten_early,
            "indexErrors": self._index.errors,
            "channelsWithMembers": self._attendance.channels,
            "presenceMembers": self._attendance.members,
            "gracesRunning": self._attendance.gone,
            "partitionsOwned": len(self._absence.owned),
        }

    # --- what replays ask (core.replay.Head) -------------------------------------------------------------------------------------------

    def head_serial(self, channel: OpenChannel) -> str:
        """Everything that this core has read of the channel's partition lies at or before this."""
        return self._serial(channel.partition, self._partitions[channel.partition].position - 1)

    def members(self, channel: OpenChannel) -> int:
        """How many are present at that serial."""
        return self._attendance.count(channel.partition, channel.key)

    def go_live(self, channel: OpenChannel) -> None:
        self._channels.go_live(channel)

    def congested(self, link: int) -> bool:
        """Whether what is queued for the link has to leave first."""
        return link in self._congested

    def present(self, app: str, channel: str, after: int, limit: int) -> MemberPage:
        """Members of a channel as this core has them at this moment, in the order of entering: for operators, who want to know what one
        core by itself believes. Raises: RelayError for a channel that cannot be or that another core serves."""
        key, partition = self._place(app, parse_channel(channel))
        page = Members(channel=channel, limit=limit, after=after)
        return self._attendance.page(partition, key, page, self._serial(partition, self.tail_position(partition) - 1))

    def channels_in_use(self, app: str, prefix: str, after: str, limit: int) -> Callable[[], list[bytes]]:
        """For operators: what to call for the first `limit` keys, by name, of the app's channels that are open, or have attachments or had
        some a minute ago, and whose names begin with `prefix` and come after `after`. It walks over all channels, on any thread: 1 µs
        each. Raises: RelayError before the node is ready."""
        if not self.ready:
            raise RelayError(50320, "The core is not ready; try another")
        start, behind = log_key(app, prefix), log_key(app, after) if after else b""
        views = [(view.channels, list(view.channels)) for view in self._lifecycle.views.values()]
        reported = list(self._occupancy.reported_channels)

        def find() -> list[bytes]:
            found = {key for key in reported if key.startswith(start) and key > behind}
            for channels, keys in views:
                for key in keys:
                    if key.startswith(start) and key > behind and (known := channels.get(key)) is not None and known.open:
                        found.add(key)
            return nsmallest(limit, found)

        return find

    def channel_details(self, keys: Iterable[bytes]) -> list[dict[str, Any]]:
        """ChannelDetails of each."""
        return [details(key.partition(b":")[2].decode(errors="replace"), self._occupancy.totals(key)) for key in keys]

    # --- what reads and presence ask (core.history.Tails, core.attendance.Tails) -------------------------------------------------------

    def tail_position(self, partition: int) -> int:
        """The next offset that the tail will read."""
        return self._partitions[partition].position

    def member_page(self, partition: int, key: bytes, call: Members) -> bytes:
        """Raises: RelayError 40003."""
        return encode_members(self._attendance.page(partition, key, call, self._serial(partition, self.tail_position(partition) - 1)))

    def kept_message(self, partition: int, key: bytes) -> tuple[int, bytes] | None:
        return self._partitions[partition].kept.get(key)

    # --- edges -------------------------------------------------------------------------------------------------------------------------

    def _edge_up(self, event: EdgeUp) -> None:
        if event.link in self._roster.links:
            self._edge_lost(event.link)
        if event.boot == FIXTURE:
            # Members at an edge of that name would outlive it for ever.
            self.counters["link.bad_boot"] += 1
            self._out.append(LinkClose(event.link, "bad boot id"))
            return
        self._roster.link_up(event.link, event.identity, event.site, event.node, event.boot)
        self._channels.link_up(event.link)
        self._connections.edge_up(event.link, event.identity, event.boot, self._now_ms)
        self._absence.edge_up(event.boot, self._now_ms)
        self._load[event.link] = [0, 0]

    def _edge_lost(self, link: int) -> None:
        """Its appends stay on their way; nobody waits for their answers any more. Its connections live on as long as its lease."""
        boot = self._roster.links[link].boot if link in self._roster.links else ""
        self._connections.edge_lost(link)
        if not self._connections.is_linked(boot):
            self._statistics.forget(boot)
        self._roster.link_lost(link)
        self._congested.discard(link)
        self._replays.link_lost(link)
        self._reads.link_lost(link)
        self._occupancy.link_lost(link)
        self._channels.link_lost(link)
        self._load.pop(link, None)
        self._admits.pop(link, None)
        self._unknown = [waiting for waiting in self._unknown if waiting[0] != link]
        if self._held:
            self._held = deque(held for held in self._held if held.link != link)
            self._held_bytes = sum(held.size for held in self._held)

    def _frame(self, link: int, frame: ToCore) -> None:
        if not self._was_ready and not isinstance(frame, Credit):
            self._hold(link, frame)
            return
        match frame:
            case Append():
                self._append(link, frame)
            case Present():
                self._present(link, frame)
            case Fetch() if frame.what in READS:
                self._read(link, frame)
            case Fetch() if frame.what == STATUS:
                self._ask_status(link, frame)
            case Counts():
                self._counts(link, frame)
            case Counted():
                self._counted(link, frame)
            case Watch():
                self._watch(link, frame)
            case Admit() | Fetch():
                self._queue(link, frame)
            case Renew():
                self._renew(link, frame)
            case Open():
                self._open(link, frame)
            case Shut():
                self._shut(link, frame.ref)
            case Barrier():
                self._barrier(link, frame)
            case Depart():
                self._depart(link, frame)
            case Up():
                edge = self._roster.links[link]
                self._connections.used(edge.identity, edge.boot, frame.session, frame.incarnation)
            case Credit():
                pass  # the session below counts it
            case Hello():
                self.counters["link.unexpected_hello"] += 1
                self._close(link, "hello twice")

    def _hold(self, link: int, frame: ToCore) -> None:
        """The core is starting: what edges ask waits a little, in its order."""
        size = len(encode_frame(frame))
        if len(self._held) >= self._limits.starting_frames or self._held_bytes + size > self._limits.starting_bytes:
            self.counters["link.not_ready"] += 1
            self._close(link, "not ready")
            return
        self._held.append(_Held(self._now + self._limits.starting_wait_s, link, frame, size))
        self._held_bytes += size

    def _release_held(self) -> None:
        released, self._held, self._held_bytes = self._held, deque(), 0
        for held in released:
            if held.link in self._roster.links:
                self._frame(held.link, held.frame)

    def _give_up_held(self) -> None:
        while self._held and self._held[0].until <= self._now:
            held = self._held.popleft()
            self._held_bytes -= held.size
            link, frame = held.link, held.frame
            match frame:
                case Admit() | Fetch() | Renew():
                    self.counters["link.not_ready"] += 1
                    self._refuse(link, frame.req, _STARTING, Lane.BULK)
                case Append():
                    self.counters["link.not_ready"] += 1
                    self._not_now(link, frame, _STARTING)
                case Open():
                    self.counters["link.not_ready"] += 1
                    self._refuse(link, frame.req, _STARTING, Lane.LIVE)
                case Present():
                    self._present(link, frame)
                case Depart():
                    self._depart(link, frame)
                case Counts():
                    self._counts(link, frame)
                case _:
                    pass  # nothing is open that could be shut

    def _close(self, link: int, why: str) -> None:
        self._edge_lost(link)
        self._out.append(LinkClose(link, why))

    def _send(self, link: int, frame: ToEdge, lane: Lane | None = None) -> None:
        self._out.append(LinkSend(link, frame, lane))

    def _emit(self, effect: Effect) -> None:
        self._out.append(effect)

    def _refuse(self, link: int, req: int, error: ErrorInfo, lane: Lane) -> None:
        self._out.append(LinkSend(link, Refused(req, error), lane))

    def _count(self, kind: str, error: RelayError) -> None:
        self.counters[f"{kind}.{error.reason if isinstance(error, Denied) else error.code}"] += 1

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _serial(self, partition: int, offset: int) -> str:
        return Serial(self._stream.id, partition, offset).text

    # --- admission ---------------------------------------------------------------------------------------------------------------------

    def _queue(self, link: int, frame: Admit | Fetch) -> None:
        if isinstance(frame, Admit) and len(frame.credential or "") > self._limits.max_credential_bytes:
            self._refuse_admission(link, frame, RelayError(40101, "Invalid credential: too long"))
            return
        if isinstance(frame, Fetch) and len(frame.body) > self._limits.max_call_bytes:
            self._refuse_admission(link, frame, RelayError(40009, "The request is too large"))
            return
        queue = self._admits.get(link)
        if queue is None:
            queue = self._admits[link] = deque()
        elif len(queue) >= self._limits.link_admits:
            self.counters["admit.busy"] += 1
            self._refuse(link, frame.req, _BUSY, Lane.BULK)
            return
        queue.append((frame, False))

    def _admission_turn(self) -> None:
        """One turn's worth of admissions, the links in rotation."""
        for _ in range(self._limits.admits_per_turn):
            if not self._admits:
                return
            link, queue = self._admits.popitem(last=False)
            frame, asked = queue.popleft()
            if queue:
                self._admits[link] = queue
            self._serve(link, frame, asked)

    def _serve(self, link: int, frame: Admit | Fetch, asked: bool) -> None:
        try:
            if isinstance(frame, Admit):
                self._admit(link, frame)
            else:
                self._fetch(link, frame)
        except UnknownCredential as unknown:
            if self._config_log and not asked:
                self._ask_config(link, frame)
                return
            if isinstance(frame, Admit) and frame.credential:
                self._admission.settle_unknown(frame.credential, unknown, basic=frame.basic, realtime=frame.realtime, now_ms=self._now_ms)
            self._refuse_admission(link, frame, unknown)
        except RelayError as error:
            self._refuse_admission(link, frame, error)

    def _refuse_admission(self, link: int, frame: Admit | Fetch | Renew, error: RelayError) -> None:
        kind = type(frame).__name__.lower()
        self._count(kind, error)
        self._refuse(link, frame.req, error.info, Lane.BULK)

    def _admit(self, link: int, frame: Admit) -> None:
        """Raises: RelayError; UnknownCredential."""
        session = self._roster.get(link, frame.session, self._now_ms) if frame.session else None
        verified = self._admission.verify(frame.credential, basic=frame.basic, realtime=frame.realtime, tls=frame.tls, now_ms=self._now_ms)
        client_id = identify(verified.client_id, frame.client_id, basic=verified.basic)
        self._revocations.check(
            key_name=verified.key.name,
            issued=verified.issued,
            client_ids=(verified.client_id, client_id),
            revocation_key=verified.revocation_key,
            capability=verified.capability,
            now_ms=self._now_ms,
        )
        if session is not None:
            if verified.app.id != session.grant.app or client_id != session.grant.client_id:
                raise RelayError(40102, "Incompatible credentials: the connection belongs to another app or clientId")
            self._grant(
                link,
                frame.req,
                self._make_grant(
                    link, session.grant.session, session.grant.realtime, verified, client_id, session.grant.incarnation, plain=not frame.tls
                ),
            )
            return
        if self._roster.full(link):
            raise RelayError(50004, "Too many sessions on this link; try again")
        former = (frame.resume if frame.resume is not None else frame.recover) if frame.realtime else None
        error = None
        if former is not None:
            if claimed_id(former) is not None:
                edge = self._roster.links[link]
                names = {"edge": edge.identity, "boot": edge.boot, "app": verified.app.id, "key_name": verified.key.name}
                job = (link, frame, verified)
                self._connections.ask(Claim(former, client_id=client_id, job=job, remain_present_ms=frame.remain_present_ms, **names))
                return
            error = BAD_KEY
        self._admit_new(link, frame, verified, client_id, error)

    def _admit_new(self, link: int, frame: Admit, verified: Verified, client_id: str | None, error: ErrorInfo | None) -> None:
        session_id = new_connection_id(self._random(CONNECTION_ID_BYTES))
        grant = self._make_grant(link, session_id, frame.realtime, verified, client_id, 0, plain=not frame.tls)
        if frame.realtime:
            self._connections.connected(session_id, grant, self._now_ms, frame.remain_present_ms)
            self._statistics.of(grant.app, self._now_ms).counts[CONNECTIONS_OPENED] += 1
        self._grant(link, frame.req, grant, self._connection_key(grant), error)

    def _connection_key(self, grant: Grant) -> str:
        return make_key(self._keyring, grant.app, grant.session, grant.incarnation, self._random(9)) if grant.realtime else ""

    # --- resume ------------------------------------------------------------------------------------------------------------------------

    def _resume(self, claim: Claim) -> None:
        """As far as this core has read, which is far enough: on with the connection, or with a new one, or not at all."""
        link, frame, verified = claim.job
        if link not in self._roster.links:
            return
        try:
            verdict = self._connections.judge(claim.text, claim.app, claim.client_id, self._now_ms)
        except RelayError as error:
            self._refuse_admission(link, frame, error)
            return
        if verdict is EXPIRED_CONNECTION and not claim.waited and self._connections.waits(claim.connection, claim, self._now):
            claim.waited = True
            self.counters["resume.early"] += 1
        elif isinstance(verdict, ErrorInfo):
            self.counters[f"resume.{verdict.code}"] += 1
            self._admit_new(link, frame, verified, claim.client_id, verdict)
        elif claim.tries >= TRIES:
            self._refuse(link, frame.req, _NOT_RESUMED, Lane.BULK)
        else:
            self._connections.claim(claim, *verdict)

    def _sessions_answered(self, event: EndOffset) -> None:
        match self._connections.answered(event.ask):
            case Claim() as claim:
                if event.offset is not None:
                    self._resume(claim)
                elif claim.job[0] in self._roster.links:
                    self._refuse(claim.job[0], claim.job[1].req, _NOT_RESUMED, Lane.BULK)
            case (int() as link, Append() as frame) if link in self._roster.links:
                if event.offset is None:
                    self._refuse(link, frame.req, _OVERFULL, Lane.LIVE)
                else:
                    self._append(link, frame, asked=True)
            case (int() as link, Fetch() as frame) if link in self._roster.links:
                self._status(link, frame, answered=event.offset is not None)
            case _:
                pass  # the edge that asked is gone

    def _first_word(self, waiting: object) -> None:
        """Something was read of the connection that it waited for, or nothing came."""
        match waiting:
            case Claim() as claim:
                self._resume(claim)
            case (int() as link, Append() as frame) if link in self._roster.links:
                self._append(link, frame, asked=True, waited=True)
            case _:
                pass  # the edge that asked is gone

    def _session_written(self, event: SessionWritten) -> None:
        if self._statistics.settled(event.ticket, event.ok) or self._occupancy.settled(event.ticket, event.ok, self._now):
            return
        if event.ticket in self._writes:
            self._written(event.ticket, event.ok)
            return
        claim = self._connections.settled(event.ticket, event.ok)
        if claim is not None:
            self._claimed(claim, event.ok, present=False)

    def _claimed(self, claim: Claim, ok: bool, *, present: bool) -> None:
        """Its record was written, or failed to be. `present`: and so was what its members had to be told of."""
        link, frame, verified = claim.job
        here = link in self._roster.links
        if ok and not self._connections.has(claim):
            if here:
                self._resume(claim)
        elif not (ok and here):
            self._connections.drop(claim, self._now_ms)
            if here:
                self._refuse(link, frame.req, _NOT_RESUMED, Lane.BULK)
        else:
            record = claim.record
            assert record is not None, "it has been written"
            if not present and self._absence.bring_back(claim.connection, record.incarnation, record.boot, claim, self._now, self._now_ms):
                return
            self.counters["resume.resumed"] += 1
            grant = self._make_grant(link, claim.connection, True, verified, claim.client_id, record.incarnation, plain=not frame.tls)
            self._grant(link, frame.req, grant, self._connection_key(grant))

    def _waited(self, wait: Wait | None) -> None:
        if wait is not None:
            self._claimed(wait.job, not wait.failed, present=True)

    def _session_read(self, event: SessionRead) -> None:
        kind, _, counted = event.key.partition(":")
        if kind == COUNTS_PREFIX:
            self._occupancy.read(counted, event.value, self._now)
            return
        if kind == STATS_PREFIX:
            self._statistics.read(counted, event.value, event.at)
            return
        change = self._connections.read(event.key, event.value, self._now)
        if change is None:
            return
        for waiting in self._connections.arrived(change.connection):
            self._first_word(waiting)
        if self._connection_lifecycle:
            self._metachannel.connection(change, event.at, self._now_ms)
            if self._was_ready and self._metachannel.due:
                self._metachannel.turn(self._now)
        if change.before is not None:
            self._absence.suspect(change.connection, self._now)
        after = change.after
        if after is None:
            self._contradict(change.connection, change.before)
            return
        if (floor := self._connections.floor(change.connection)) > 0:
            for session in self._roster.supersede(change.connection, floor):
                self._lose_witness(session)
                if session.grant.incarnation < after.incarnation:
                    self._send(session.link, Superseded(change.connection, after.incarnation))

    def _contradict(self, connection: str, record: ConnectionRecord | None) -> None:
        """Another core has forgotten a connection. If it lives here, it is written again."""
        session = self._roster.find(connection)
        if session is None or record is None or record.state is not ConnectionState.LIVE:
            return
        if (session.grant.incarnation, session.grant.boot) == (record.incarnation, record.boot):
            self._connections.keep(connection, record)

    def _make_grant(
        self, link: int, session_id: str, realtime: bool, verified: Verified, client_id: str | None, incarnation: int, *, plain: bool
    ) -> Grant:
        edge = self._roster.links[link]
        return Grant(
            edge=edge.identity,
            boot=edge.boot,
            session=session_id,
            realtime=realtime,
            incarnation=incarnation,
            app=verified.app.id,
            key_name=verified.key.name,
            client_id=client_id,
            capability=verified.capability.canonical(),
            issued=verified.issued,
            revocation_key=verified.revocation_key,
            token_expires=verified.expires,
            expires=self._grant_expires(verified.expires),
            plain=plain,
        )

    def _bars(self, grant: Grant) -> Bars:
        return self._registry.bars(grant.app, anonymous=grant.client_id is None, plain=grant.plain)

    def _grant_expires(self, token_expires: int | None) -> int:
        expires = self._now_ms + int(self._limits.grant_s * 1000)
        return expires if token_expires is None else min(expires, token_expires)

    def _grant(self, link: int, req: int, grant: Grant, key: str = "", error: ErrorInfo | None = None) -> None:
        session = self._roster.admit(link, grant)
        self._send(
            link,
            Admitted(
                req=req,
                session=grant.session,
                key=key,
                grant=seal_grant(self._keyring, grant),
                app=grant.app,
                client_id=grant.client_id,
                capability=grant.capability,
                grant_expires=grant.expires,
                token_expires=grant.token_expires,
                issued=grant.issued,
                incarnation=grant.incarnation,
                error=error,
                bars=session.capability.bars,
            ),
        )

    def _present(self, link: int, frame: Present) -> None:
        session = self._roster.present(link, frame.grant, self._now_ms)
        if session is None or self._registry.app(session.grant.app) is None:
            return  # refused, or of an app that this core has not read of yet: what it asks for is checked
        error = self._refused_now(session.grant)
        if error is not None:
            self.counters["grant.revoked"] += 1
            self._roster.depart(link, session.grant.session)
            self._lose_witness(session)
            self._send(link, Revoke(session.grant.session, error))

    def _renew(self, link: int, frame: Renew) -> None:
        try:
            grant = self._renewable(link, frame.session)
        except RelayError as error:
            self._refuse_admission(link, frame, error)
            return
        self._grant(link, frame.req, msgspec.structs.replace(grant, expires=self._grant_expires(grant.token_expires)))

    def _renewable(self, link: int, session_id: str) -> Grant:
        """Raises: RelayError."""
        grant = self._roster.get(link, session_id, self._now_ms).grant
        app, key = self._registry.app(grant.app), self._registry.key(grant.key_name)
        if app is None or key is None:
            raise RelayError(40131, "The key no longer exists")
        check_status(app, key, self._now_ms)
        self._revocations.check_grant(grant, Capability.parse(grant.capability), self._now_ms)
        if grant.token_expires is not None and self._now_ms >= grant.token_expires:
            raise RelayError(40142, "Token expired")
        return grant

    def _depart(self, link: int, frame: Depart) -> None:
        edge = self._roster.links[link]
        session = self._roster.depart(link, frame.session, frame.incarnation)
        incarnation = frame.incarnation
        if session is not None:
            self._lose_witness(session)
            incarnation = session.grant.incarnation
        if incarnation is not None and self._connections.departed(
            edge.identity, edge.boot, frame.session, incarnation, closed=frame.closed, now=self._now, now_ms=self._now_ms
        ):
            self._absence.departed(frame.session, incarnation, closed=frame.closed, now_ms=self._now_ms)

    # --- unknown apps and keys: has another core just made them? -------------------------------------------------------------------------

    def _ask_config(self, link: int, frame: Admit | Fetch) -> None:
        waiting = len(self._unknown) + (0 if self._asking is None else len(self._asking[1]))
        if waiting >= self._limits.config_waiters:
            self.counters["admit.busy"] += 1
            self._refuse(link, frame.req, _BUSY, Lane.BULK)
            return
        self._unknown.append((link, frame))
        self._ask_config_now()

    def _ask_config_now(self) -> None:
        """One question for all who wait, and not more often than the interval."""
        due = self._now >= self._asked_at + self._limits.config_barrier_interval_s
        if self._asking is None and due and (self._unknown or not self._config_read):
            ask = self._number()
            self._asking, self._unknown = (ask, self._unknown), []
            self._asked_at = self._now
            self._out.append(AskConfigEnd(ask))

    def _config_answered(self, event: EndOffset) -> None:
        if self._asking is None or event.ask != self._asking[0]:
            return
        _, waiting = self._asking
        self._asking = None
        if event.offset is not None and not self._config_read:
            self._config_read = True
            self._check_ready()
        for link, frame in waiting:
            if link not in self._roster.links:
                continue
            if event.offset is None:
                self.counters["admit.busy"] += 1
                self._refuse(link, frame.req, _BUSY, Lane.BULK)
            else:
                # Not served here and now: a thousand of them would hold up everything else.
                self._admits.setdefault(link, deque()).append((frame, True))
        if self._config_read:
            self._ask_config_now()

    # --- calls -------------------------------------------------------------------------------------------------------------------------

    def _fetch(self, link: int, frame: Fetch) -> None:
        """Raises: RelayError; UnknownCredential."""
        try:
            call = decode(frame.what, frame.body)
        except UnknownCall:
            raise RelayError(40400, "No such call") from None
        match call:
            case RequestToken():
                self._request_token(link, frame, call)
            case Stats():
                self._stats(link, frame, call)
            case RevokeTokens():
                self._revoke_tokens(link, frame, call)
            case CreateApp() | DeleteApp() | PostStats() if not (self._sandbox and self._config_log):
                raise RelayError(40400, "Not a sandbox")
            case CreateApp():
                if sandbox.count(self._registry) >= self._limits.sandbox_apps:
                    raise RelayError(42910, "Too many sandbox apps")
                records, answer = sandbox.create_app(bytes(call.body), self._keyring, self._random, self._now_ms)
                fixtures = self._fixtures(answer["appId"], bytes(call.body))
                self._write(link, records, Page(frame.req, 201, _encode_json(answer)), fixtures)
            case DeleteApp():
                verified = self._admission.verify(call.basic, basic=True, realtime=False, tls=True, now_ms=self._now_ms)
                app = sandbox.sandbox_app(self._registry, call.app)
                if verified.app.id != app.id:
                    raise RelayError(40101, "The key belongs to another app")
                self._absence.end_fixtures(app.id, self._now_ms)
                self._write(link, sandbox.delete_app(app), Page(frame.req, 204, b""))
            case PostStats():
                self._post_stats(link, frame, call)
            case _:
                raise RelayError(40400, "No such call")

    def _request_token(self, link: int, frame: Fetch, call: RequestToken) -> None:
        """Raises: RelayError; UnknownCredential."""
        app = call.key_name.partition(".")[0]
        try:
            details = self._admission.request_token(call, self._now_ms)
        except UnknownCredential:
            raise
        except RelayError:
            if self._registry.app(app) is not None:
                self._statistics.of(app, self._now_ms).counts[TOKEN_REFUSED] += 1
            raise
        self._statistics.of(app, self._now_ms).counts[TOKEN_SUCCEEDED] += 1
        self._send(link, Page(frame.req, 201, _encode_json(details)))

    def _revoke_tokens(self, link: int, frame: Fetch, call: RevokeTokens) -> None:
        """Answered when every core that keeps up has read of it. Raises: RelayError; UnknownCredential."""
        verified = self._admission.verify(call.basic, basic=True, realtime=False, tls=True, now_ms=self._now_ms)
        if verified.key.name != call.key_name:
            raise RelayError(40133, "Tokens are revoked with the very key that issued them")
        if not verified.key.revocable_tokens:
            raise RelayError(40163, "The key does not issue revocable tokens")
        if 2 * len(self._writes) >= self._limits.config_writes:  # the other half is for operators
            raise RelayError(50004, "Too many requests at once; try again")
        found = asked(verified.key.name, bytes(call.body), self._random, self._now_ms)
        bound(self._revocations, verified.app.id, found.targets, self._limits)
        status, body = answer(found.results, flat=call.flat)
        page = Page(frame.req, status, _encode_json(body))
        if found.record is None:
            self._send(link, page)
        else:
            self.counters["tokens.revocations"] += 1
            note = self._note_of(verified.key, self._roster.links[link].identity, *found.record)
            pending, applied = (record_of(BY_KEY, msgspec.structs.replace(note, outcome=one)) for one in ("pending", "applied"))
            self._write(link, [pending, found.record], page, then=applied)

    def _note_of(self, key: Key, source: str, record: str, value: bytes) -> AuditEntry:
        """The audit's entry of a revocation by who holds the key."""
        view = view_of(record, msgspec.json.decode(value, type=RevocationRecord), self._now_ms)
        return AuditEntry(
            id=view["id"],
            at=self._now_ms,
            by={"type": "key", "id": key.name, "name": key.id},
            source=source,
            core=self.name,
            action=CREATED,
            target={"app": key.app, "key": key.id, "revocation": view["id"]},
            after=view,
            outcome="pending",
        )

    def _fixtures(self, app: str, body: bytes) -> list[tuple[int, bytes, RecordBody]]:
        """Raises: RelayError."""
        connection = new_connection_id(self._random(CONNECTION_ID_BYTES))
        found = []
        for name, items in sandbox.fixtures(body, connection):
            key, partition = self._place(app, name)
            record = RecordBody(id=f"{connection}:0", timestamp=self._now_ms, connection_id=connection, presence=items, edge=FIXTURE)
            found.append((partition, key, record))
        return found

    def _write(
        self,
        link: int,
        records: sandbox.Records,
        page: Page,
        appends: Sequence[tuple[int, bytes, RecordBody]] = (),
        then: tuple[str, bytes] | None = None,
    ) -> None:
        """`then` is written when all the others have been."""
        write = _Write(link, len(records) + len(appends), page, then)
        for partition, place, body in appends:
            ticket = self._number()
            self._writes[ticket] = write
            self._out.append(Produce(ticket, partition, place, _encode_body(body), Kind.PRESENCE, f"p:{body.id}"))
        for key, value in records:
            ticket = self._number()
            self._writes[ticket] = write
            self._out.append(WriteConfig(ticket, key, value))

    def _written(self, ticket: int, ok: bool) -> None:
        write = self._writes.pop(ticket, None)
        if write is None:
            return
        write.left -= 1
        write.failed = write.failed or not ok
        if write.left:
            return
        if write.then is not None and not write.failed:
            self._out.append(WriteConfig(self._number(), *write.then))
        if write.link not in self._roster.links:
            return
        if write.failed:
            self._refuse(write.link, write.page.req, ErrorInfo.of(50003, "Not written: Kafka did not answer"), Lane.BULK)
        else:
            self._send(write.link, write.page)

    def _revocation(self, event: ConfigRead) -> None:
        """Clients whose tokens are revoked in a while are asked for others."""
        found = self._revocations.read(event.key, event.value)
        if found is None:
            return
        name, record = found
        if record.applies_at > self._now_ms:
            for session in self._roster.of_app(name.partition(".")[0]):
                if session.grant.key_name == name and (error := self._token_revoked(record.applies_at, session)) is not None:
                    self._send(session.link, Revoke(session.grant.session, error, record.applies_at))
        self._apply_revocations()

    def _apply_revocations(self) -> None:
        for name in self._revocations.due(self._now_ms):
            self._revoke(name.partition(".")[0], partial(self._token_revoked, self._now_ms))

    def _token_revoked(self, at_ms: int, session: Session) -> ErrorInfo | None:
        try:
            self._revocations.check_grant(session.grant, session.capability, at_ms)
        except RelayError as error:
            return error.info
        return None

    def _revoke(self, app: str, verdict: Callable[[Session], ErrorInfo | None]) -> None:
        for session, error in self._roster.revoke(app, verdict):
            self.counters["session.revoked"] += 1
            self._lose_witness(session)
            self._send(session.link, Revoke(session.grant.session, error))

    def _config(self, event: ConfigRead) -> None:
        if event.key.startswith(REVOCATION):
            self._revocation(event)
            return
        before = self._registry.app(app_of(event.key))
        app = self._registry.apply(event.key, event.value)
        if app is None:
            return
        self._admission.forget_refusals()
        now = self._registry.app(app)
        if before is not None and _lessens(before, now):
            self._revoke(app, partial(self._lost_rights, before))
        if now is None:
            for channel in list(self._channels.of_app(app)):
                self._lose(channel, _NO_READER)

    def _lost_rights(self, before: App, session: Session) -> ErrorInfo | None:
        """Why a session's rights are void after its app, a key or a namespace has changed; None if they are not. A key with another secret
        or capability, or a namespace that has been closed, is no refusal: the client is sent away to come back and be admitted anew."""
        error = self._refused_now(session.grant)
        if error is not None:
            return error
        known = session.capability.bars
        if any(bar not in known and session.capability.reaches(bar[0]) for bar in self._bars(session.grant)):
            return _NAMESPACE_CLOSED
        key_id = session.grant.key_name.partition(".")[2]
        old, key = before.keys.get(key_id), self._registry.key(session.grant.key_name)
        if old is None or key is None or (old.secret == key.secret and old.capability == key.capability):
            return None
        if old.secret == key.secret and session.capability.intersect(key.capability) == session.capability:
            return None
        return _KEY_CHANGED

    def _refused_now(self, grant: Grant) -> ErrorInfo | None:
        """Why a grant that holds by itself must not count: its app or key is gone, disabled or revoked."""
        app, key = self._registry.app(grant.app), self._registry.key(grant.key_name)
        if app is None:
            return _APP_GONE
        if key is None:
            # An edge that shows the grant of a key made a moment ago may be ahead of what this core has read: not told apart from one that
            # was taken out of core.toml, whose grants end with their renewal.
            return None
        try:
            check_status(app, key, self._now_ms)
            self._revocations.check_grant(grant, Capability.parse(grant.capability), self._now_ms)
        except RelayError as error:
            return error.info
        return None

    # --- statistics --------------------------------------------------------------------------------------------------------------------

    def _connection_lives(self, app: str, by: int) -> None:
        self._statistics.of(app, self._now_ms).move(CONNECTIONS, by, self._now_ms)

    def _channel_opens(self, key: bytes, by: int, *, ours: bool) -> None:
        """`ours`: this core owns its partition, and so counts the event."""
        usage = self._statistics.of(key.partition(b":")[0].decode(errors="replace"), self._now_ms)
        usage.move(CHANNELS, by, self._now_ms)
        if ours and by > 0:
            usage.counts[CHANNELS_OPENED] += 1

    def _accepted(self, pending: _Pending) -> None:
        """Its record is in the log, and no repetition."""
        grant = pending.session.grant
        counts = self._statistics.of(grant.app, self._now_ms).counts
        index = IN_REALTIME_PRESENCE if pending.presence else IN_REALTIME if grant.realtime else IN_REST
        counts[index] += pending.count
        counts[index + 1] += pending.size

    def _counted(self, link: int, frame: Counted) -> None:
        """An edge is believed about apps of which it has, or had, a session."""
        boot = self._roster.links[link].boot
        try:
            known = self._roster.get(link, frame.session, self._now_ms).grant.app == frame.app
        except RelayError:
            known = False
        if known or self._statistics.knows(boot, frame.app):
            self._statistics.reported(boot, frame, self._now_ms)
        else:
            self.counters["stats.no_witness"] += 1

    def _stats(self, link: int, frame: Fetch, call: Stats) -> None:
        """Raises: RelayError."""
        session = self._roster.get(link, frame.session, self._now_ms)
        if not session.capability.permits(Operation.STATS, "*"):
            raise _denied(session, "*", Operation.STATS)
        query = Query(call.unit, call.start, call.end, call.backwards, min(call.limit, MOST_STATS), call.after)
        page = StatsPage(*self._statistics.page(session.grant.app, query))
        self._send(link, Page(frame.req, 200, _encode_json(page)))

    def _post_stats(self, link: int, frame: Fetch, call: PostStats) -> None:
        """Raises: RelayError."""
        session = self._roster.get(link, frame.session, self._now_ms)
        items = msgspec.json.decode(call.body)
        records = self._statistics.posted(session.grant.app, items, f"p{self._random(8).hex()}")
        page = Page(frame.req, 201, bytes(call.body))
        if not records:
            self._send(link, page)
            return
        write = _Write(link, len(records), page, None)
        for key, value in records:
            ticket = self._number()
            self._writes[ticket] = write
            self._out.append(WriteSession(ticket, key, value))

    def statistics(self, apps: Sequence[str], query: Query) -> Callable[[], list[tuple[str, list[int]]]]:
        """For the Control API: what to call, on any thread, for the intervals that a query finds of several apps together. Raises:
        RelayError before the node is ready."""
        if not self.ready:
            raise RelayError(50320, "The core is not ready; try another")
        found, _ = self._statistics.find(apps, query)
        return lambda: [(interval, totals(lists)) for interval, lists in found]

    def _minute_over(self, app: str, interval: str) -> None:
        def about() -> dict[str, Any]:
            return shape({"appId": app}, interval, self._statistics.minute(app, interval), self._now_ms)

        key = log_key(app, META_STATS)
        publish_id = minute_id(app, interval)
        if self._fold.first(partition_of(key, self._stream.partitions), key, publish_id) is None:  # or another core was faster
            self._metachannel.statistics(app, publish_id, span(interval)[1], about, self._now_ms)

    # --- reading -----------------------------------------------------------------------------------------------------------------------

    def _open(self, link: int, frame: Open) -> None:
        try:
            channel = self._checked_open(link, frame)
        except RelayError as error:
            self._count("open", error)
            self._refuse(link, frame.req, error.info, Lane.LIVE)
            return
        self._channels.add(channel)
        partition = self._partitions[channel.partition]
        if frame.after is None:
            # From here on everything is sent: what the client publishes next must not be taken for something that was there before.
            self._channels.go_live(channel)
            self._barriers.wait(channel.partition, partial(self._open_at, channel, self.head_serial(channel)), self._now)
            return
        serial = Serial.parse(frame.after)
        if serial is None or serial.stream != channel.stream.id or serial.partition != channel.partition:
            self.counters["open.other_site"] += 1
            self._opened(channel, OTHER_SITE)
        elif serial.offset < partition.position:
            self._replay(channel, serial.offset)
        else:
            # The edge has seen more than this core: another core was ahead, or the serial is made up. Kafka knows.
            ask = self._number()
            partition.ahead[ask] = _Ahead(channel, serial.offset, self._now + self._limits.position_wait_s)
            self._out.append(AskEnd(ask, channel.partition))

    def _open_at(self, channel: OpenChannel, head: str) -> None:
        if self._channels.get(channel.link, channel.ref) is channel:
            self._send(channel.link, Opened(channel.ref, head, None, self.members(channel)), Lane.LIVE)

    def _barrier(self, link: int, frame: Barrier) -> None:
        channel = self._channels.get(link, frame.ref)
        if channel is None:
            self._reached(link, frame.req)
        else:
            self._barriers.wait(channel.partition, partial(self._reached, link, frame.req), self._now)

    def _reached(self, link: int, req: int) -> None:
        if link in self._roster.links:
            self._send(link, Reached(req), Lane.LIVE)

    def _checked_open(self, link: int, frame: Open) -> OpenChannel:
        """The channel, if the witness may read it on this link. Raises: RelayError."""
        try:
            witness = self._roster.get(link, frame.witness, self._now_ms)
        except Denied as denied:
            reason = "no_witness" if denied.reason == "no_grant" else denied.reason
            raise Denied(reason, 40160, "The witness has no grant on this link") from None
        if witness.grant.app != frame.app:
            raise Denied("wrong_app", 40160, "The witness belongs to another app")
        name = parse_channel(frame.channel)
        if not witness.capability.permits_following(name.name):
            raise _denied(witness, name.name, Operation.SUBSCRIBE)
        if self._channels.get(link, frame.req) is not None:
            raise Denied("number_in_use", 40000, "The request number names an open channel")
        if self._channels.count(link) >= self._limits.link_channels:
            raise Denied("too_many", 90021, "Too many channels on this link")
        key, partition = self._place(frame.app, name)
        channel = OpenChannel(link, frame.req, frame.app, name.name, key, self._stream, partition, frame.witness)
        witness.witnessed.add(channel)
        return channel

    def _place(self, app: str, name: ChannelName) -> tuple[bytes, int]:
        """Log key and partition of a channel. Raises: RelayError 50320 if another core serves it."""
        key = log_key(app, name.log_name)
        stream = self._streams.of(app, name.log_name)
        partition = partition_of(key, stream.partitions)
        if stream is not self._stream or partition not in self._partitions:
            raise Denied("not_served", 50320, "Another core serves this channel")
        return key, partition

    def _opened(self, channel: OpenChannel, error: ErrorInfo | None) -> None:
        self._channels.go_live(channel)
        self._send(channel.link, Opened(channel.ref, self.head_serial(channel), error, self.members(channel)))

    def _replay(self, channel: OpenChannel, after: int) -> None:
        """`after` is a position that this core has read past. What it can tell without a read, it tells without a read."""
        partition = self._partitions[channel.partition]
        if partition.recency.quiet_since(channel.key, after):
            self._opened(channel, None)
            return
        covers = self._index.covers_from(channel.stream.id, channel.partition)
        if covers is None or (after + 1 < covers and partition.recency.quiet_since(channel.key, covers - 1)):
            self.counters["open.expired"] += 1
            self._opened(channel, EXPIRED)
        elif not self._replays.start(channel, after, self._now):
            self.counters["open.replays_full"] += 1
            self._channels.shut(channel.link, channel.ref)
            self._forget(channel)
            self._refuse(channel.link, channel.ref, _REPLAYS_FULL, Lane.LIVE)

    def _read(self, link: int, frame: Fetch) -> None:
        """A read of the past begins with the question how much of it there is."""
        try:
            call, key, partition = self._checked_read(link, frame)
            if isinstance(call, Members) and not call.fresh:
                self._send(link, Page(frame.req, 200, self.member_page(partition, key, call)))
                return
            ask = self._number()
            self._reads.start(ask, link, frame.req, call, self._stream.id, partition, key, self._now)
        except RelayError as error:
            self._refuse_admission(link, frame, error)
        else:
            self._out.append(AskEnd(ask, partition))

    def _checked_read(self, link: int, frame: Fetch) -> tuple[Read, bytes, int]:
        """The read, if its session may see the channel's past: log key and partition with it. Raises: RelayError."""
        session = self._roster.get(link, frame.session, self._now_ms)
        try:
            call = decode(frame.what, frame.body)
        except UnknownCall:
            raise RelayError(40400, "No such call") from None
        assert isinstance(call, Read), "its name is that of a read"
        name = parse_channel(call.channel)
        past = not isinstance(call, Members) and not (isinstance(call, History) and call.presence)
        if name.qualifier is not None and not (past and name.name in METACHANNELS):
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no history and no members")
        operation = Operation.SUBSCRIBE if isinstance(call, Rewind | Members) else Operation.HISTORY
        if isinstance(call, Members) and session.capability.permits(Operation.PRESENCE, name.name):
            operation = Operation.PRESENCE  # who may enter may see who is there
        if not session.capability.permits(operation, name.name):
            raise _denied(session, name.name, operation)
        return (call, *self._place(session.grant.app, name))

    def _shut(self, link: int, ref: int) -> None:
        channel = self._channels.shut(link, ref)
        if channel is not None:
            self._forget(channel)

    def _lose(self, channel: OpenChannel, error: ErrorInfo) -> None:
        self._channels.shut(channel.link, channel.ref)
        self._forget(channel)
        self._send(channel.link, Lost(channel.ref, error), Lane.LIVE)

    def _forget(self, channel: OpenChannel) -> None:
        self._replays.shut(channel)
        self._occupancy.unwatch(channel)
        link = self._roster.links.get(channel.link)
        witness = None if link is None else link.sessions.get(channel.witness)
        if witness is not None:
            witness.witnessed.discard(channel)
        ahead = self._partitions[channel.partition].ahead
        for ask in [ask for ask, waiting in ahead.items() if waiting.channel is channel]:
            del ahead[ask]

    def _lose_witness(self, session: Session) -> None:
        """Its channels stay open for a moment: most are shut by the edge itself, or it names nobody and another session takes over."""
        until = self._now + self._limits.witness_grace_s
        for channel in session.witnessed:
            self._unwitnessed.append((until, channel))
        session.witnessed = set()

    def _check_witnesses(self) -> None:
        searches = _WITNESSES_PER_SWEEP
        while searches and self._unwitnessed and self._unwitnessed[0][0] <= self._now:
            _, channel = self._unwitnessed.popleft()
            if self._channels.get(channel.link, channel.ref) is not channel:
                continue  # shut meanwhile, as most are
            searches -= 1
            witness = self._new_witness(channel)
            if witness is None:
                self.counters["open.witness_gone"] += 1
                self._lose(channel, _NO_READER)
            else:
                channel.witness = witness.grant.session
                witness.witnessed.add(channel)

    def _new_witness(self, channel: OpenChannel) -> Session | None:
        """A session of the link that may read the channel. Of very many only the first are asked; the edge then opens it again."""
        sessions = self._roster.links[channel.link].sessions
        former = sessions.get(channel.witness)
        candidates = [former] if former is not None else []
        for session in [*candidates, *islice(sessions.values(), _WITNESS_TRIES)]:
            if session.grant.app == channel.app and self._now_ms < session.ends and session.capability.permits_following(channel.name):
                return session
        return None

    # --- publishing --------------------------------------------------------------------------------------------------------------------

    def _append(self, link: int, frame: Append, *, asked: bool = False, waited: bool = False) -> None:
        """`asked`: everything that other cores had written of the connection it is published for has been read. `waited`: and if nothing
        had been, there was time for it."""
        try:
            session = self._roster.get(link, frame.session, self._now_ms)
        except Denied as denied:
            self._count("append", denied)
            self._not_now(link, frame, denied.info)
            return
        try:
            if frame.connection_key is not None and not waited and self._holder(session, frame.connection_key) is None:
                if not asked:
                    self._connections.ask((link, frame))
                    return
                if self._connections.waits(claimed_id(frame.connection_key) or "", (link, frame), self._now):
                    self.counters["append.early"] += 1
                    return
            key, partition, value = self._checked_append(session, frame)
        except RelayError as error:
            self._count("append", error)
            self._refuse(link, frame.req, error.info, Lane.LIVE)
            return
        # Only a server-made or connection-derived id can be known never to come again.
        fresh = frame.fresh and not frame.id.startswith("i:")
        load = self._load[link]
        if session.stalled:
            self._send(link, Unknown(frame.req), Lane.LIVE)
            return
        if load[0] >= self._limits.link_appends or load[1] >= self._limits.link_append_bytes:
            self.counters["append.link_full"] += 1
            self._not_taken(link, frame.req, session, fresh)
            return
        ticket = self._number()
        self._pending[ticket] = _Pending(ticket, link, frame, session, key, partition, fresh, len(value))
        load[0] += 1
        load[1] += len(value)
        if frame.presence:
            self._attendance.sent(ticket, partition, key, session.grant.session, frame.presence, frame.id[2:], self._now)
        self._out.append(Produce(ticket, partition, key, value, Kind.PRESENCE if frame.presence else Kind.MESSAGE, frame.id))

    def _checked_append(self, session: Session, frame: Append) -> tuple[bytes, int, bytes]:
        """(log key, partition, record value) of a publish that may be. Raises: RelayError."""
        if frame.presence:
            return self._checked_presence(session, frame)
        name = parse_channel(frame.channel)
        if name.qualifier is not None:
            raise Denied("qualifier", 40160, f"operation not permitted: channels with the qualifier [{name.qualifier}] are read-only")
        operations = session.capability.operations_on(name.name)
        if Operation.PUBLISH not in operations:
            raise _denied(session, name.name, Operation.PUBLISH)
        key, partition = self._place(session.grant.app, name)
        connection_id, client_id = self._publisher(session, frame.connection_key)
        base = recheck(
            frame.messages,
            client_id=client_id,
            connection_id=connection_id,
            max_bytes=self._limits.max_message_bytes,
            privileged=Operation.PRIVILEGED_HEADERS in operations,
        )
        self._check_id(frame.id, session, base)
        body = RecordBody(
            id=frame.id[2:],
            timestamp=self._now_ms,
            connection_id=connection_id,
            messages=frame.messages,
            ephemeral=frame.ephemeral or is_ephemeral(frame.messages),
        )
        return key, partition, _encode_body(body)

    def _checked_presence(self, session: Session, frame: Append) -> tuple[bytes, int, bytes]:
        """The same for a change of presence. Under a server-made id it can only be leaves, for members whose connection lost its hold on
        the channel: no matter what its capability is by now. Raises: RelayError."""
        grant = session.grant
        name = parse_channel(frame.channel)
        if not grant.realtime or frame.connection_key is not None:
            raise Denied("presence_rest", 40160, "operation not permitted: members enter over a realtime connection only")
        if frame.messages:
            raise RelayError(40000, "Malformed publish; messages or presence, not both")
        if name.qualifier is not None:
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no members")
        leaving = all(item.action == PresenceAction.LEAVE for item in frame.presence)
        server_made = frame.id.startswith("s:")
        if not (server_made and leaving) and not session.capability.permits(Operation.PRESENCE, name.name):
            raise _denied(session, name.name, Operation.PRESENCE)
        key, partition = self._place(grant.app, name)
        settle_presence(frame.presence, client_id=grant.client_id, connection_id=grant.session, max_bytes=self._limits.max_message_bytes)
        self._check_id(frame.id, session, None)
        frame.presence = self._attendance.outdated(key, grant.session, frame.presence)
        if server_made and (not leaving or frame.id[2:].startswith(grant.session)):
            raise Denied("bad_id", 40031, "Invalid publish id")
        publish_id = frame.id[2:]
        first = None if frame.fresh else self._fold.first(partition, key, frame.id)
        if first is not None:
            # The client sends again what was not acknowledged. It is in the log, but may be undone: its members left while it was away.
            leave, undone = self._attendance.expired_since(key, grant.session, frame.presence, first)
            if undone:
                frame.id = f"{frame.id}:{leave}"
                frame.presence = [msgspec.structs.replace(item, id=item.id or f"{publish_id}:{index}") for index, item in undone]
                first = None
        if first is None:  # what is in already is not refused for what came after
            app = self._registry.app(grant.app)
            most = None if app is None else app.presence_members
            self._attendance.check_room(partition, key, grant.session, frame.presence, most or self._limits.presence_members)
        at = self._now_ms
        if server_made:
            at = self._attendance.no_earlier(partition, key, grant.session, frame.presence, at)
        body = RecordBody(
            id=publish_id,
            timestamp=at,
            connection_id=grant.session,
            presence=frame.presence,
            incarnation=grant.incarnation,
            edge=grant.boot,
        )
        return key, partition, _encode_body(body)

    def _publisher(self, session: Session, connection_key: str | None) -> tuple[str | None, str | None]:
        """(connection id, clientId) that the messages carry. Raises: RelayError 40006."""
        grant = session.grant
        if connection_key is None:
            return (grant.session if grant.realtime else None), grant.client_id
        holder = self._holder(session, connection_key)
        if holder is None:
            raise Denied("connection_key", 40006, _ON_BEHALF)
        connection_id, record = holder
        return connection_id, on_behalf(grant.client_id, record.client_id)

    def _holder(self, session: Session, connection_key: str) -> tuple[str, ConnectionRecord] | None:
        """The connection that a REST publish is made for, as far as this core has read. Raises: RelayError 40006 for what is no key."""
        key = None if session.grant.realtime else parse_key(self._keyring, session.grant.app, connection_key)
        if key is None:
            raise Denied("connection_key", 40006, _ON_BEHALF)
        record = self._connections.holder(key, session.grant.app, self._now_ms)
        return None if record is None else (key.connection_id, record)

    def _check_id(self, publish_id: str, session: Session, base: str | None) -> None:
        """Nobody publishes under another connection's ids, or under a mapping's. Raises: RelayError 40031."""
        if len(publish_id) <= self._limits.max_publish_id_bytes and len(publish_id) > 2:
            match publish_id[:2]:
                case "c:" if session.grant.realtime and publish_id.startswith(f"c:{session.grant.session}:"):
                    return
                case "i:" if base is not None and publish_id[2:] == base:
                    return
                case "s:":
                    return
        raise Denied("bad_id", 40031, "Invalid publish id")

    def _reported(self, event: Reported) -> None:
        self._attendance.reported(event.ticket, event.offset)
        pending = self._pending.get(event.ticket)
        if pending is None:
            self._waited(self._absence.reported(event.ticket, event.offset))
            self._written(event.ticket, event.offset is not None)
            return
        if event.offset is None:
            self._stall(pending.session)
            self._finish(pending, Unknown(pending.req))
            return
        partition = self._partitions[pending.partition]
        if pending.fresh and not pending.presence:  # whoever enters is shown it before it is acknowledged
            self._accepted(pending)
            self._finish(pending, Appended(pending.req, self._serial(pending.partition, event.offset)))
        elif event.offset < partition.position:
            # The tail was faster than the report.
            first = self._fold.first(pending.partition, pending.key, pending.id)
            if first is None or first == event.offset:
                self._accepted(pending)
            self._finish(pending, Appended(pending.req, self._serial(pending.partition, event.offset if first is None else first)))
        else:
            pending.at = self._now
            partition.verdicts[event.offset] = pending

    def _overfull(self, event: Overfull) -> None:
        self._attendance.reported(event.ticket, None)
        pending = self._pending.get(event.ticket)
        if pending is None:
            self._waited(self._absence.reported(event.ticket, None))
            self._written(event.ticket, False)
        else:
            self.counters["append.overfull"] += 1
            if self._settle(pending):
                self._not_taken(pending.link, pending.req, pending.session, pending.fresh)

    def _not_taken(self, link: int, req: int, session: Session, fresh: bool) -> None:
        """The append was not handed to Kafka. Only of a first send does that mean that it will never appear: an earlier copy of any
        other may be on its way, so that a refusal could be a lie. A connection is not told of a refusal either: it would have to hear of it
        before anything later is taken. If it is cut off instead, it sends this again, behind what was."""
        if fresh and not session.grant.realtime:
            self._refuse(link, req, _OVERFULL, Lane.LIVE)
        else:
            self._stall(session)
            self._send(link, Unknown(req), Lane.LIVE)

    def _not_now(self, link: int, frame: Append, error: ErrorInfo) -> None:
        """Refused for what may have been otherwise when an earlier copy was sent, if there was one, and may be otherwise when the next is.
        What is wrong with the message itself was wrong with every copy of it."""
        session = self._roster.links[link].sessions.get(frame.session)
        if session is not None:
            self._stall(session)
        if frame.fresh:
            self._refuse(link, frame.req, error, Lane.LIVE)
        else:
            self._send(link, Unknown(frame.req), Lane.LIVE)

    def _stall(self, session: Session) -> None:
        """One HTTP request promises no order to another; what a connection sends is in order or not at all."""
        session.stalled = session.grant.realtime

    def _finish(self, pending: _Pending, answer: ToEdge) -> None:
        if self._settle(pending):
            self._send(pending.link, answer, Lane.LIVE)

    def _settle(self, pending: _Pending) -> bool:
        """Whether the link that asked is still there."""
        del self._pending[pending.ticket]
        load = self._load.get(pending.link)
        if load is None:
            return False
        load[0] -= 1
        load[1] -= pending.size
        return True

    # --- the log -----------------------------------------------------------------------------------------------------------------------

    def _tailed(self, records: list[LogRecord]) -> None:
        accepted: list[LogRecord] = []
        befores: list[int] = []
        see, holders_of, out = self._fold.see, self._channels.holders, self._out
        moved: set[int] = set()
        told: list[tuple[_Pending, int]] = []
        """Answers, with the offsets that they name. They come after what they are about."""
        stream = self._stream.id
        at, partition = -1, None
        for record in records:
            number, offset, key = record.partition, record.offset, record.key
            value, kind, publish_id = record.value, record.kind, record.id
            if number != at:  # they come in runs
                at, partition = number, self._partitions.get(number)
                if partition is not None:
                    moved.add(number)
            if partition is None or record.stream != stream or offset < partition.position:
                self.counters["tail.unexpected"] += 1
                continue
            if partition.floor is None:
                self._find_floor(partition, record)
            partition.position = offset + 1
            first = see(number, key, publish_id, record.timestamp, offset)
            if partition.verdicts:
                pending = partition.verdicts.pop(offset, None)
                if pending is not None:
                    if first is None:
                        self._accepted(pending)
                    told.append((pending, offset if first is None else first))
            if first is not None:
                self.duplicates += 1
                continue
            if kind != _MESSAGE:
                if kind == _LIFECYCLE:
                    event = self._lifecycle.read(record, self._now, self._now_ms)
                    if event is not None:
                        self._metachannel.happened(record, event, self._now_ms)
                    if key in self._watched:
                        out.append(ShowRecord(record))
                    continue
                if kind == _OCCUPANCY:
                    self._occupancy_log.read(record, self._now, self._now_ms)
                    continue
                if kind in _FOLDED:
                    shown = self._attendance.read(record, self._now)
                    self._occupancy.touched(key, self._now)
                    if self._occupancy_log.wanted:
                        self._occupancy_log.changed(number, key, self._now, self._now_ms)
                    if shown is None:
                        continue
                    record, kind, value = shown, shown.kind, shown.value  # noqa: PLW2901 - from here on it is what everybody is shown
            if publish_id[:2] in _META:
                self._metachannel.shown(publish_id)
            if partition.looked:
                self._lifecycle.published(number, key, self._now, self._now_ms)
            if self._watched and key in self._watched:
                out.append(ShowRecord(record))
            holders = holders_of(key)
            if holders is not None:
                for channel in holders:
                    out.append(LinkSend(channel.link, Record(channel.ref, offset, kind, value), Lane.LIVE))
            if not (value.endswith(EPHEMERAL_TAIL) and body_is_ephemeral(value)):
                before = partition.recency.saw(key, offset)
                if publish_id.startswith(KEPT):
                    partition.kept.saw(key, offset, value)
                if partition.floor is not None:
                    accepted.append(record)
                    befores.append(before)
        self.records += len(records)
        for pending, offset in told:
            self._finish(pending, Appended(pending.req, self._serial(pending.partition, offset)))
        if accepted:
            self._index.put(accepted, befores)
        for number in moved:
            self._barriers.read(number, self._partitions[number].position)
            if self._partitions[number].ahead:
                self._catch_up(self._partitions[number])
        if self._reads.behind:
            self._reads.catch_up()
        if self._was_ready and self._metachannel.due:
            self._metachannel.turn(self._now)

    def _find_floor(self, partition: _Partition, record: LogRecord) -> None:
        """While looking back: are verdicts sound from this record on? They are once everything within the window before it was read."""
        if partition.sound_after_ms is None:
            partition.recency.read_from(record.offset)  # whatever its kind: those before the first message have no message either
            # The tail begins so long before now or before the checkpoint, if there was no core for a while; or with the log.
            until = min(self._now_ms, partition.checkpoint_ms or self._now_ms)
            since = min(until - self._look_back_ms, record.timestamp)
            partition.sound_after_ms = 0 if record.offset == 0 else since + WINDOW_MS + SKEW_MS
        if record.offset == 0 or record.timestamp >= partition.sound_after_ms:
            self._set_floor(partition, record.partition, record.offset)

    def _set_floor(self, partition: _Partition, number: int, offset: int) -> None:
        partition.floor = offset
        self._index.expire(self._now_ms)  # it may not know yet what time it is, and what of a look-back is past retention
        self._index.begin(self._stream.id, number, offset)

    def _state_read(self, event: StateRead) -> None:
        partition = self._partitions.get(event.partition)
        if partition is None:
            return
        self._attendance.restore(event, self._now)
        self._lifecycle.restore(event.partition, event.records)
        self._occupancy_log.restore(event.partition, event.records)
        partition.quiet_from, partition.checkpoint_ms = event.quiet_from, event.time
        for key, last in lasts(event.records).items():
            partition.recency.restore(key, last.offset)
        partition.kept.restore(kept(event.records))
        self._check_ready()

    def _looked(self, event: Looked) -> None:
        partition = self._partitions.get(event.partition)
        if partition is None or partition.looked:
            return
        partition.looked = True
        partition.position = max(partition.position, event.position)
        self._barriers.read(event.partition, partition.position)
        partition.recency.read_from(event.start)
        if partition.quiet_from is not None:
            partition.recency.complete_from(partition.quiet_from)
        if partition.floor is None:
            self._set_floor(partition, event.partition, 0 if event.start == 0 and event.position == 0 else partition.position)
        self._check_ready()

    def _gap(self, event: Gap) -> None:
        """Records are missing for good. Open channels are told; those of a log that was made anew cannot be served at all."""
        partition = self._partitions.get(event.partition)
        if partition is None or event.stream != self._stream.id:
            return
        self.counters["tail.gap"] += 1
        if event.resumed < event.position:
            self._gone = True
            for link in list(self._roster.links):
                self._close(link, "the log was made anew")
            return
        partition.position = max(partition.position, event.resumed)
        self._barriers.read(event.partition, partition.position)
        partition.recency.gap(event.resumed)
        self._index.lost(event.stream, event.partition, event.resumed)
        if partition.floor is not None:
            partition.floor = max(partition.floor, event.resumed)
        for link in self._roster.links:
            for channel in self._channels.of_partition(link, event.partition):
                self._lose(channel, EXPIRED)

    def _check_ready(self) -> None:
        looked = all(partition.looked for partition in self._partitions.values())
        if not self._was_ready and self._config_read and looked and self._attendance.restored:
            self._was_ready = True
            self._index.hold(self._now_ms + _HOLD_MS)
            self._statistics.begin(self._now_ms)
            self._release_held()

    def _end_offset(self, event: EndOffset) -> None:
        if event.partition < 0:
            (self._sessions_answered if event.partition == SESSIONS_END else self._config_answered)(event)
            return
        partition = self._partitions.get(event.partition)
        if partition is not None and self._barriers.ended(event.ask, event.partition, event.offset, partition.position, self._now):
            return
        self._out.extend(self._reads.ended(event.ask, event.offset))
        waiting = None if partition is None else partition.ahead.get(event.ask)
        if partition is None or waiting is None or event.offset is None or waiting.after < event.offset:
            return  # there is such a record, and the tail will come to it; or nobody knows, and time will tell
        del partition.ahead[event.ask]
        self.counters["open.beyond_end"] += 1
        self._opened(waiting.channel, OTHER_SITE)

    def _catch_up(self, partition: _Partition) -> None:
        for ask in [ask for ask, waiting in partition.ahead.items() if waiting.after < partition.position]:
            waiting = partition.ahead.pop(ask)
            self._replay(waiting.channel, waiting.after)

    # --- occupancy, lifecycle, operators -------------------------------------------------------------------------------------------------

    def _members(self, key: bytes) -> int:
        """How many members the channel's presence set has."""
        partition = partition_of(key, self._stream.partitions)
        return self._attendance.count(partition, key) if partition in self._partitions else 0

    def _counts(self, link: int, frame: Counts) -> None:
        """An edge is believed about channels that a client of its could attach to."""
        boot = self._roster.links[link].boot
        if self._occupancy.knows(boot, frame) or self._credible(link, frame):
            self._occupancy.reported(boot, frame, self._now)
        else:
            self.counters["occupancy.no_witness"] += 1

    def _credible(self, link: int, frame: Counts) -> bool:
        try:
            name = parse_channel(frame.channel)
            if name.qualifier is not None or self._registry.app(frame.app) is None:
                return False
            if not any(frame.counts):
                return True  # nobody is left to name; what it takes back may have been said to another core, and not been read here yet
            session = self._roster.get(link, frame.session, self._now_ms)
        except RelayError:
            return False
        capability = session.capability
        return session.grant.app == frame.app and (bool(capability.operations_on(name.name)) or capability.permits_following(name.name))

    def _watch(self, link: int, frame: Watch) -> None:
        channel = self._channels.get(link, frame.ref)
        if channel is None:
            return  # it was refused, or has been lost: the edge has been told
        if not frame.on:
            self._occupancy.unwatch(channel)
        elif self._may_know(channel, frame.session):
            self._occupancy.watch(channel, frame.session, self._now)
        else:
            self.counters["occupancy.no_witness"] += 1

    def _may_know(self, channel: OpenChannel, session_id: str) -> bool:
        """Whether a session may know of a channel, on the channel's link, how many there are."""
        try:
            session = self._roster.get(channel.link, session_id, self._now_ms)
        except RelayError:
            return False
        return session.grant.app == channel.app and session.capability.permits(Operation.CHANNEL_METADATA, channel.name)

    def _ask_status(self, link: int, frame: Fetch) -> None:
        """Answered when everything has been read that any core has written of it so far."""
        try:
            self._checked_status(link, frame)
            self._connections.ask((link, frame))
        except RelayError as error:
            self._refuse_admission(link, frame, error)

    def _status(self, link: int, frame: Fetch, *, answered: bool) -> None:
        if not answered:
            self._refuse_admission(link, frame, RelayError(50003, "Kafka did not answer; try again", 503))
            return
        try:
            key = self._checked_status(link, frame)
        except RelayError as error:
            self._refuse_admission(link, frame, error)
        else:
            partition = partition_of(key, self._stream.partitions)
            if partition in self._partitions:
                self._lifecycle.queried(partition, key, self._now, self._now_ms)
            self._send(link, Page(frame.req, 200, _encode_json(self._occupancy.totals(key))))

    def _checked_status(self, link: int, frame: Fetch) -> bytes:
        """Log key of the channel, if the session may know of it. Raises: RelayError."""
        session = self._roster.get(link, frame.session, self._now_ms)
        try:
            call = decode(frame.what, frame.body)
        except UnknownCall:
            raise RelayError(40400, "No such call") from None
        assert isinstance(call, Status), "its name is that of a status"
        name = parse_channel(call.channel)
        if name.qualifier is not None:
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no status")
        if not session.capability.permits(Operation.CHANNEL_METADATA, name.name):
            raise _denied(session, name.name, Operation.CHANNEL_METADATA)
        return log_key(session.grant.app, name.name)

    def _attachments_changed(self, key: bytes) -> None:
        if self._lifecycle.owned:
            partition = partition_of(key, self._stream.partitions)
            self._lifecycle.active(partition, key, self._now, self._now_ms)
            self._occupancy_log.changed(partition, key, self._now, self._now_ms)

    def _append_lifecycle(self, partition: int, key: bytes, value: bytes, publish_id: str) -> None:
        self._out.append(Produce(self._number(), partition, key, value, Kind.LIFECYCLE, publish_id))

    def _append_occupancy(self, partition: int, key: bytes, value: bytes, publish_id: str) -> None:
        self._out.append(Produce(self._number(), partition, key, value, Kind.OCCUPANCY, publish_id))

    def _append_to_metachannel(self, app: str, channel: str, value: bytes, publish_id: str) -> bool:
        key = log_key(app, channel)
        partition = partition_of(key, self._stream.partitions)
        if self._registry.app(app) is None or partition not in self._partitions:
            return False
        self._out.append(Produce(self._number(), partition, key, value, Kind.MESSAGE, publish_id))
        return True

    def _owned(self, event: Owned) -> None:
        self._absence.owned = event.partitions & self._partitions.keys()
        owned = frozenset(self._absence.owned)
        self._lifecycle.own(owned, self._occupied(), self._now, self._now_ms)
        self._occupancy_log.own(owned, self._occupied(), self._now)
        self._metachannel.own(owned)

    def _occupied(self) -> Iterator[tuple[int, bytes]]:
        """Partition and key of every channel with attachments."""
        return ((partition_of(key, self._stream.partitions), key) for key in self._occupancy.occupied())

    def _watching(self, event: Watching) -> None:
        (self._watched.add if event.on else self._watched.discard)(event.key)
        self._occupancy.show(event.key, on=event.on, now=self._now)

    # --- time --------------------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._admits:
            self._admission_turn()
        if self._replays:
            self._out.extend(self._replays.turn(self._now))
        if self._reads:
            self._out.extend(self._reads.turn(self._now, self._now_ms))
        self._absence.turn(self._now, self._now_ms)
        if self._unknown and self._asking is None:
            self._ask_config_now()
        self._occupancy.turn(self._now)
        if self._now >= self._occupancy_log.next_at():
            self._occupancy_log.sweep(self._now, self._now_ms)
        if self._now >= self._sweep_at:
            self._sweep_at = self._now + SWEEP_S
            self._sweep()

    def _tell_positions(self) -> None:
        read = [(number, partition.position - 1) for number, partition in self._partitions.items() if partition.looked]
        for link in self._roster.links:
            if self._channels.count(link):
                self._send(link, Positions(self._stream.id, read), Lane.LIVE)

    def _sweep(self) -> None:
        """Everything that may have waited too long."""
        if self._asking is not None and self._now >= self._asked_at + self._limits.config_wait_s:
            self._config_answered(EndOffset(self._asking[0], -1, None))
        if not self._config_read and self._now >= self._asked_at + _CONFIG_RETRY_S:
            self._ask_config_now()
        if self._held:
            self._give_up_held()
        for session in self._roster.expire(self._now_ms):
            self._lose_witness(session)
        self._apply_revocations()
        if self._config_log and self._config_read:
            for key in self._revocations.over(self._now_ms):
                self._out.append(WriteConfig(self._number(), key, None))
        self._check_witnesses()
        self._out.extend(self._reads.sweep(self._now))
        self._barriers.sweep(self._now)
        self._connections.sweep(self._now, self._now_ms)
        for waiting in self._connections.overdue(self._now):
            self._first_word(waiting)
        self._occupancy.sweep(self._now)
        self._statistics.sweep(self._now_ms)
        for app, interval in self._statistics.over(self._now_ms):
            self._minute_over(app, interval)
        self._lifecycle.sweep(self._now, self._now_ms)
        self._occupancy_log.sweep(self._now, self._now_ms)
        self._metachannel.sweep(self._now, self._now_ms)
        if self._was_ready:
            self._metachannel.turn(self._now)
        self._attendance.sweep(self._now)
        if self.ready:
            for wait in self._absence.sweep(self._now, self._now_ms):
                self._claimed(wait.job, False, present=True)
        late = self._now - self._limits.verdict_wait_s
        for partition in self._partitions.values():
            for offset in [offset for offset, pending in partition.verdicts.items() if pending.at <= late]:
                pending = partition.verdicts.pop(offset)
                self.counters["append.no_verdict"] += 1
                self._stall(pending.session)
                self._finish(pending, Unknown(pending.req))
            for ask in [ask for ask, waiting in partition.ahead.items() if waiting.until <= self._now]:
                channel = partition.ahead.pop(ask).channel
                self.counters["open.position_wait"] += 1
                self._channels.shut(channel.link, channel.ref)
                self._forget(channel)
                self._refuse(channel.link, channel.ref, ErrorInfo.of(50003, "The core has not read that far; try again"), Lane.LIVE)
        if self._now >= self._positions_at:
            self._positions_at = self._now + POSITIONS_S
            self._tell_positions()
        if self._now >= self._expire_index_at:
            self._expire_index_at = self._now + _EXPIRE_INDEX_S
            self._index.expire(self._now_ms)
