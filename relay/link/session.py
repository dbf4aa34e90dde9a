"""The rules of the link, free of sockets and clocks. `docs/link.md` tells them in words.

A *link* is two *lanes* between one edge process and one core, each a WebSocket. `LaneSession` is one of them, on either side:

    AWAIT_HELLO ─ Hello in ─▶ GREETED ─ welcome() ─▶ UP          the core's side
    NEW ─ greet() ─▶ AWAIT_WELCOME ─ Welcome in ─▶ UP            the edge's side

It is fed with `receive`, written to with `send`, and read with `next_batch` as often as the socket takes more. `check` is to be called a
few times a second; it says when to ping and when to give up. Any broken rule is a `LinkProtocolError`, after which the lane is dead.

`Lobby` is where a core keeps live lanes until their bulk lane arrives.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from typing import Generic, TypeVar

import msgspec

from relay.link.codec import Batch, Decoder, Fault, LinkProtocolError, encode, encode_frame, join
from relay.link.frames import (
    BULK,
    LOWEST_VERSION,
    VERSION,
    Admit,
    Admitted,
    Append,
    Appended,
    Barrier,
    Counted,
    Counts,
    Credit,
    Depart,
    Drain,
    Fetch,
    Frame,
    Hello,
    Lane,
    Lost,
    Occupancy,
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
    Unknown,
    Up,
    Watch,
    Welcome,
)
from relay.model.limits import LinkLimits

FromEdge = Admit | Present | Renew | Open | Shut | Append | Fetch | Depart | Up | Counts | Watch | Barrier | Counted
FromCore = (
    Admitted | Refused | Opened | Record | Appended | Unknown | Page | Lost | Revoke | Drain | Superseded | Positions | Occupancy | Reached
)

CREDIT_SIZE = 17
"""No message with one `Credit` is longer than this, and few others are as short: only those are looked at for one."""

PAUSED_S = 1.5
"""Two checks further apart than this mean that this process stood still, not that the peer was silent or slow."""


class Side(enum.Enum):
    EDGE = "edge"
    CORE = "core"


class State(enum.Enum):
    NEW = enum.auto()
    AWAIT_WELCOME = enum.auto()
    AWAIT_HELLO = enum.auto()
    GREETED = enum.auto()
    UP = enum.auto()


class Ended(enum.StrEnum):
    """Why a link ended, where it was no `Fault`: the label on the metric, the word in the log and in the close frame."""

    SLOW = "slow"  # queued frames above their bound in bytes or age: the peer or the network does not take them
    SILENT = "silent"  # no answer to a ping
    LATE = "late"  # hello, welcome or bulk lane did not come in time
    FULL = "full"  # no room for another link
    CLOSED = "closed"  # the socket ended, without a word
    INTERNAL = "internal"  # a callback of this side raised
    STOPPING = "stopping"  # this side is shutting down


class LinkEnded(Exception):  # noqa: N818 - an end, not a fault
    """The lane cannot go on, though nobody broke a rule."""

    def __init__(self, why: Ended) -> None:
        super().__init__(why.value)
        self.why = why


def negotiate(hello: Hello) -> int:
    """The highest version that both speak. Raises `LinkProtocolError` (version)."""
    version = min(VERSION, hello.version)
    if version < max(LOWEST_VERSION, hello.lowest):
        raise LinkProtocolError(Fault.VERSION, f"{hello.lowest}..{hello.version} offered, {LOWEST_VERSION}..{VERSION} served")
    return version


class LiveQueue:
    """Frames in the order in which they were sent, as messages of at most `max_frame_bytes`."""

    __slots__ = ("_batch", "_ready", "_since", "size")

    def __init__(self, limits: LinkLimits) -> None:
        self._batch = Batch(limits.max_frame_bytes)
        self._ready: deque[tuple[float, bytes]] = deque()
        self._since = 0.0
        self.size = 0
        """Bytes that are queued; exact to the header of a message."""

    def __bool__(self) -> bool:
        return self._batch.count > 0 or bool(self._ready)

    def add(self, frame: Frame, now: float) -> None:
        batch = self._batch
        if not batch.count:
            self._since = now
        before = len(batch)
        full = batch.add(frame)
        if full is None:
            self.size += len(batch) - before
        else:
            self._ready.append((self._since, full))
            self._since = now
            self.size += len(full) + len(batch) - before

    def take(self) -> bytes | None:
        """The next message, or None when nothing is queued."""
        if self._ready:
            data = self._ready.popleft()[1]
        elif self._batch.count:
            data = self._batch.take()
        else:
            return None
        self.size = self.size - len(data) if self else 0
        return data

    def overdue(self, limits: LinkLimits, now: float) -> bool:
        if not self:
            return False
        oldest = self._ready[0][0] if self._ready else self._since
        return now - oldest > limits.queue_age_s

    def overfull(self, limits: LinkLimits) -> bool:
        return self.size > limits.queue_bytes


class BulkQueue:
    """Frames by taker (`req` or `ref`), in order for each; takers have turns of one message of `bulk_chunk_bytes`.

    A message is filled up with the next takers' frames, so that many small answers still travel in few messages.
    """

    __slots__ = ("_chunk", "_stalled_at", "_takers", "size")

    def __init__(self, limits: LinkLimits) -> None:
        self._chunk = limits.bulk_chunk_bytes
        self._takers: OrderedDict[int, deque[bytes]] = OrderedDict()
        self._stalled_at: float | None = None
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._takers)

    def add(self, frame: Frame, now: float) -> None:
        taker: int = getattr(frame, "ref", 0) or getattr(frame, "req", 0)
        data = encode_frame(frame)
        self.size += len(data)
        if not self._takers:
            self._stalled_at = now
        queue = self._takers.get(taker)
        if queue is None:
            self._takers[taker] = deque((data,))
        else:
            queue.append(data)

    def take(self) -> bytes | None:
        parts: list[bytes] = []
        room = self._chunk
        while self._takers and room > 0:
            taker, queue = self._takers.popitem(last=False)
            while queue and (not parts or len(queue[0]) <= room):
                data = queue.popleft()
                parts.append(data)
                room -= len(data)
            if queue:
                self._takers[taker] = queue
                break
        if not parts:
            return None
        self.size -= sum(map(len, parts))
        self._stalled_at = None
        return join(parts)

    def overdue(self, limits: LinkLimits, now: float) -> bool:
        if not self._takers:
            return False
        if self._stalled_at is None:
            self._stalled_at = now
        return now - self._stalled_at > limits.bulk_stall_s

    def overfull(self, limits: LinkLimits) -> bool:
        return self.size > limits.bulk_queue_bytes


class Decoders:
    """What one side receives: strict about which frames may come when, so that nodes never see a stray hello or credit."""

    __slots__ = ("first", "later", "small")

    def __init__(self, side: Side, limits: LinkLimits) -> None:
        largest = limits.max_message_bytes
        if side is Side.CORE:
            self.first = Decoder(Hello, 4_096)
            self.small = Decoder(Credit | FromEdge, largest)
            self.later = Decoder(FromEdge, largest)
        else:
            self.first = Decoder(Welcome, 65_536)
            self.small = Decoder(Credit | FromCore, largest)
            self.later = Decoder(FromCore, largest)


class LaneSession:
    """One lane of a link on one side, from its first frame on. Any method may raise `LinkProtocolError` or `LinkEnded`: close it then."""

    __slots__ = (
        "_checked_at",
        "_credit",
        "_credit_most",
        "_decoders",
        "_granted",
        "_heard_at",
        "_limits",
        "_opened_at",
        "_pinged_at",
        "_queue",
        "_side",
        "_taken",
        "_window",
        "lane",
        "state",
    )

    def __init__(self, side: Side, limits: LinkLimits, decoders: Decoders, now: float) -> None:
        """`decoders` are those of this side; they have no state and serve all its lanes."""
        self._side = side
        self._limits = limits
        self._decoders = decoders
        self.state = State.NEW if side is Side.EDGE else State.AWAIT_HELLO
        self.lane = Lane.LIVE
        self._queue: LiveQueue | BulkQueue = LiveQueue(limits)
        self._opened_at = self._heard_at = self._checked_at = now
        self._pinged_at: float | None = None
        # Credit, in bytes. What may be sent may be overdrawn by one message, so that a frame larger than what is left need not wait for
        # more than the window holds, and no length can block a lane for good.
        self._credit = self._credit_most = 0
        self._granted = self._window = limits.credit_bytes
        self._taken = 0

    # --- hello -------------------------------------------------------------------------------------------------------------------

    def greet(self, hello: Hello) -> bytes:
        """The edge's first message. `hello.credit` is set to what this side grants."""
        assert self.state is State.NEW
        self._settle(hello.lane)
        self.state = State.AWAIT_WELCOME
        return encode((msgspec.structs.replace(hello, credit=self._granted),))

    def welcome(self, welcome: Welcome) -> bytes:
        """The core's answer to the `Hello` that `receive` returned. The lane is up. `welcome.credit` is set to what this side grants."""
        assert self.state is State.GREETED
        self.state = State.UP
        return encode((msgspec.structs.replace(welcome, credit=self._granted),))

    def _settle(self, lane: Lane) -> None:
        self.lane = lane
        if lane is Lane.BULK:
            self._queue = BulkQueue(self._limits)

    def _receive_hello(self, data: bytes | memoryview) -> list[Frame]:
        frames = self._decoders.first.decode(data)
        if len(frames) != 1 or not isinstance(hello := frames[0], Hello):
            raise LinkProtocolError(Fault.BAD_HELLO)
        negotiate(hello)
        if hello.credit < 1 or not (hello.site and hello.node and hello.boot) or (hello.lane is Lane.LIVE) != (not hello.pair):
            raise LinkProtocolError(Fault.BAD_HELLO)
        self._settle(hello.lane)
        self._credit = self._credit_most = hello.credit
        self.state = State.GREETED
        return frames

    def _receive_welcome(self, data: bytes | memoryview) -> list[Frame]:
        frames = self._decoders.first.decode(data)
        if len(frames) != 1 or not isinstance(welcome := frames[0], Welcome):
            raise LinkProtocolError(Fault.BAD_HELLO)
        if not LOWEST_VERSION <= welcome.version <= VERSION:
            raise LinkProtocolError(Fault.VERSION, f"{welcome.version} chosen")
        if welcome.credit < 1 or not (welcome.core and welcome.pair):
            raise LinkProtocolError(Fault.BAD_HELLO)
        self._credit = self._credit_most = welcome.credit
        self.state = State.UP
        return frames

    # --- in ----------------------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, now: float) -> list[Frame]:
        """The frames of one message: the node's, or the one `Hello` or `Welcome`. Empty for `Credit`, after which more may be sent.

        The bytes count as taken in when this returns: call `next_batch` afterwards, it may hold a `Credit`.
        """
        self._heard_at = now
        self._pinged_at = None
        if self.state is not State.UP:
            try:
                if self.state is State.AWAIT_HELLO:
                    return self._receive_hello(data)
                if self.state is State.AWAIT_WELCOME:
                    return self._receive_welcome(data)
            except LinkProtocolError as error:
                raise LinkProtocolError(Fault.BAD_HELLO) if error.fault is Fault.MALFORMED else error from None
            raise LinkProtocolError(Fault.BAD_HELLO, "frames before the welcome")
        size = len(data)
        if size <= CREDIT_SIZE:
            frames = self._decoders.small.decode(data)
            if any(isinstance(frame, Credit) for frame in frames):
                self._take_credit(frames)
                return []
        else:
            frames = self._decoders.later.decode(data)
        if self._window <= 0:
            raise LinkProtocolError(Fault.CREDIT, "more than was granted")
        self._window -= size
        self._taken += size
        return frames

    def heard(self, now: float) -> None:
        """A pong came, or anything else that proves the peer alive."""
        self._heard_at = now
        self._pinged_at = None

    def _take_credit(self, frames: list[Frame]) -> None:
        credit = frames[0]
        if len(frames) != 1 or not isinstance(credit, Credit):
            raise LinkProtocolError(Fault.MALFORMED, "credit among other frames")
        if credit.size < 1 or self._credit + credit.size > self._credit_most:
            raise LinkProtocolError(Fault.CREDIT, "more back than was used")
        self._credit += credit.size

    # --- out ---------------------------------------------------------------------------------------------------------------------

    def send(self, frame: Frame, now: float) -> None:
        """Queue a frame; it is encoded now and may be changed afterwards. Raises `LinkEnded` (slow) when the queue is above its bound."""
        assert self.state is State.UP
        queue = self._queue
        queue.add(frame, now)
        if queue.overfull(self._limits):
            raise LinkEnded(Ended.SLOW)

    def next_batch(self) -> bytes | None:
        """The next message for the socket; None while nothing is queued or credit is used up. Do not call it while the socket is full."""
        if self._taken * 2 >= self._granted:
            taken, self._taken = self._taken, 0
            self._window += taken
            return encode((Credit(taken),))
        if self._credit <= 0:
            return None
        data = self._queue.take()
        if data is not None:
            self._credit -= len(data)
        return data

    @property
    def queued(self) -> int:
        """Bytes that wait here for credit or for the socket."""
        return self._queue.size

    # --- time --------------------------------------------------------------------------------------------------------------------

    def check(self, now: float) -> bool:
        """Whether to ping the peer now. Raises `LinkEnded` when it is late, silent or slow. To be called a few times a second."""
        limits = self._limits
        paused = now - self._checked_at > PAUSED_S
        self._checked_at = now
        if paused:
            # This process stood still (SIGSTOP, a long collection): what the peer sent meanwhile lies unread in the socket.
            self._pinged_at = None
            self._opened_at = max(self._opened_at, now - limits.handshake_s / 2)
            return self.state is State.UP
        if self.state is not State.UP:
            if now - self._opened_at > limits.handshake_s:
                raise LinkEnded(Ended.LATE)
            return False
        if self._queue.overdue(limits, now):
            raise LinkEnded(Ended.SLOW)
        if now - self._heard_at < limits.ping_after_s:
            return False
        if self._pinged_at is None:
            self._pinged_at = now
            return True
        if now - self._pinged_at >= limits.silent_after_s - limits.ping_after_s:
            raise LinkEnded(Ended.SILENT)
        return False


def lane_of(frame: Frame, lane: Lane | None) -> Lane:
    """Which lane `frame` takes: the one asked for, else the one it belongs to."""
    if lane is not None:
        return lane
    return Lane.BULK if type(frame) in BULK else Lane.LIVE


Link = TypeVar("Link")


class Lobby(Generic[Link]):
    """Live lanes that wait for their bulk lane, at most `limit`. `pair` is unguessable, and good only for the same edge process."""

    __slots__ = ("_limit", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[str, tuple[str, str, Link]] = {}

    def wait(self, pair: str, identity: str, boot: str, link: Link) -> None:
        """A live lane was welcomed with `pair`. Raises `LinkEnded` (full)."""
        if len(self._waiting) >= self._limit:
            raise LinkEnded(Ended.FULL)
        self._waiting[pair] = (identity, boot, link)

    def claim(self, pair: str, identity: str, boot: str) -> Link:
        """The live lane that belongs to a bulk lane. Raises `LinkProtocolError` (pair) when there is none, or it is not this edge's."""
        found = self._waiting.get(pair)
        if found is None or found[:2] != (identity, boot):
            raise LinkProtocolError(Fault.PAIR)
        del self._waiting[pair]
        return found[2]

    def leave(self, pair: str) -> None:
        """The live lane is gone, or paired."""
        self._waiting.pop(pair, None)

    def __len__(self) -> int:
        return len(self._waiting)
