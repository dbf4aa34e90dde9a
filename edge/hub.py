"""Who is on which channel here. A channel is open on one link once, however many clients attach; its records are encoded once per format.

A lost link is not the clients' business: the channel is opened again, on any link that serves it, after the last record delivered, and
unanswered appends are sent again in their order under their ids. What arrives twice is recognised by its offset.

    SHUT ─attach─▶ OPENING ─Opened─▶ OPEN ─last detach, linger─▶ SHUT
                      ▲                │
                      └──link lost, Lost, Drain (after: last serial)
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from edge.ably.channel_params import Backlog
from edge.attachment import Attachment
from edge.barriers import Barriers
from edge.effects import Broadcast
from edge.filters import Filter
from edge.groups import Group, Groups
from edge.links import Links, Session
from edge.members import leaves_of
from edge.occupancy import Occupancies
from edge.presence import Presence
from edge.turn import Timed, Turn
from edge.usage import Usages
from relay.link import calls
from relay.link.frames import Append, Fetch, Lost, Open, Opened, Page, Positions, Reached, Record, Shut
from relay.model.channel import log_key
from relay.model.errors import ErrorInfo, RelayError
from relay.model.message import Kind, Message, PresenceItem, RecordBody
from relay.model.serials import Serial
from relay.model.stats import OUT_REALTIME, OUT_REALTIME_PRESENCE

if TYPE_CHECKING:
    from edge.connection import Connection

UNKNOWN = -2
"""No offset at all. -1 is one: the position before the first record."""

_decode_body = msgspec.msgpack.Decoder(RecordBody).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_RETRY_S = 1.0
"""Between two attempts to open a channel that the core refused for a reason that passes."""


_Made = dict[tuple[bool, str, int | None], tuple[bytes, int, int, int]]
"""By format, spelling and offset: MESSAGEs as they are written, how many, and how many messages and bytes of records that is."""


class Publisher(Protocol):
    """Whoever waits for the answer to an append."""

    def appended(self, append: PendingAppend, serial: str) -> None: ...

    def append_refused(self, append: PendingAppend, error: ErrorInfo) -> None: ...

    def append_unknown(self, append: PendingAppend) -> None: ...


class PendingAppend:
    """An append without answer. `publisher` is None once nobody waits for it: then a lost link ends it."""

    __slots__ = ("channel", "frame", "publisher", "session", "size")

    def __init__(self, channel: Channel, frame: Append, session: Session, publisher: Publisher, size: int) -> None:
        self.channel = channel
        self.frame = frame
        self.session = session
        self.publisher: Publisher | None = publisher
        self.size = size


class State(enum.Enum):
    SHUT = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()


class CatchUp:
    """One client's replay of what it missed: an open of its own, shut as soon as it has met the channel's."""

    __slots__ = ("after", "attachment", "records", "ref", "size")

    def __init__(self, ref: int, attachment: Attachment, after: Serial) -> None:
        self.ref = ref
        self.attachment = attachment
        self.after = after
        self.records: dict[int, Record] = {}
        self.size = 0

    def hold(self, record: Record, limits_records: int, limits_bytes: int) -> bool:
        """False when it has become too much."""
        if record.offset > self.after.offset and record.offset not in self.records:
            self.records[record.offset] = record
            self.size += len(record.body)
        return len(self.records) <= limits_records and self.size <= limits_bytes


class Rewinding(CatchUp):
    """One client's rewind: a page of the past, and meanwhile what comes live."""

    __slots__ = ()


class Channel(Timed):
    """One channel on this edge: its link, its readers, its unanswered appends."""

    __slots__ = (
        *("app", "appends", "barriers", "catching", "covered", "filters", "groups", "held", "held_size", "hub", "joining"),
        *("key", "last", "link", "moving", "name", "partition", "position_at", "presence", "readers", "ref", "retry_at"),
        *("settled", "shut_at", "skipped", "state", "stream", "surety", "usage", "waiting", "witness"),
    )

    def __init__(self, hub: Hub, app: str, name: str, key: bytes) -> None:
        self.hub = hub
        self.app = app
        self.name = name
        self.key = key
        self.usage = hub.usages.of(app)
        self.link: int | None = None
        self.moving = False
        """The core on `link` drains: move on as soon as nothing is unanswered."""
        self.state = State.SHUT
        self.ref = 0
        """The request that opened it; records carry it. 0: not asked for."""
        self.stream = ""
        self.partition = 0
        self.last = UNKNOWN
        """Offset up to which everything was delivered; -1 at the head of an empty partition."""
        self.covered = UNKNOWN
        """Offset up to which the core has nothing that was not delivered: where to go on from after the loss of a core. A quiet channel's
        own last record may be older than what cores keep at hand."""
        self.witness: Attachment | None = None
        self.surety: Attachment | None = None
        """Who was the witness when it was asked for last."""
        self.groups = Groups()
        self.filters: weakref.WeakValueDictionary[str, Filter] | None = None
        """Of its derived channels, by expression; as long as an attachment has one."""
        self.position_at: float | None = None
        """When to tell the position to those behind a filter who have not got the latest record."""
        self.skipped = 0
        """Records since the first one that they have not got."""
        self.presence = Presence(self)
        self.readers: dict[Attachment, None] = {}
        """Attached, and permitted to read."""
        self.waiting: dict[Attachment, float] = {}
        """Not yet attached, until when."""
        self.joining: list[tuple[int, Attachment]] = []
        """Attached by a replay that ran ahead of this channel: they join once it has passed that offset."""
        self.catching: dict[int, CatchUp] = {}
        self.barriers = Barriers(self)
        self.settled: frozenset[Attachment] = frozenset()
        """Those for whom the channel is being opened at its head: the core sees to it that this includes what was acknowledged before."""
        self.held: dict[int, Record] = {}
        """Records that came before `Opened` said where they begin."""
        self.held_size = 0
        self.appends: dict[int, PendingAppend] = {}
        self.shut_at: float | None = None
        self.retry_at: float | None = None

    @property
    def serial(self) -> str | None:
        return Serial(self.stream, self.partition, self.last).text if self.last != UNKNOWN else None

    # --- readers ---------------------------------------------------------------------------------------------------------------------

    def filter(self, expression: str) -> Filter:
        """The filter of a derived channel. Raises RelayError: 40010, 90021."""
        if self.filters is None:
            self.filters = weakref.WeakValueDictionary()
        found = self.filters.get(expression)
        if found is None:
            limits, every = self.hub.turn.limits, self.hub.filters
            if len(self.filters) >= limits.filters_per_channel or len(every) >= limits.filters:
                raise RelayError(90021, "Too many filters: too many different derived channels of this channel, or on this server")
            found = self.filters[expression] = Filter(expression, self.hub.turn.stats)
            every.add(found)
        return found

    def plain_reader(self) -> Attachment | None:
        """Somebody who may read all of the channel. O(readers)."""
        return next((each for each in self._all_readers() if each.reads and each.filter is None), None)

    def attach(self, attachment: Attachment) -> None:
        """A reader wants in. It hears `opened` or `failed`, now or later."""
        self.shut_at = None
        self._wait(attachment)
        if self.state is State.OPEN:
            self._admit_settled(attachment)
        elif self.state is State.SHUT and self.retry_at is None:
            self.open()

    def _wait(self, attachment: Attachment) -> None:
        """It is not attached yet, for so long at most. Where others wait a wake-up is due no later: thousands may come at once."""
        turn = self.hub.turn
        alone = not self.waiting
        self.waiting[attachment] = turn.now + turn.limits.attach_wait_s
        if alone:
            turn.wheel.schedule(self, self._next_wake())

    def _admit_settled(self, attachment: Attachment) -> None:
        """The set of members that it is told of must include what was acknowledged before it came."""
        if attachment.receives_presence:
            self.barriers.hold(attachment)
        else:
            self._admit(attachment)

    def reached(self, frame: Reached) -> None:
        ahead = {attachment for _, attachment in self.joining}
        passed = []
        made: _Made = {}
        for attachment, offset, records in self.barriers.reached(frame.req):
            if attachment in ahead:
                passed.append(attachment)
            if attachment in self.waiting and not attachment.attached:
                self._admit(attachment, offset, records, made)
        if passed:
            # What their replays ran ahead to is here, too: they need not wait for a record that comes after it.
            named = set(passed)
            self.joining = [(offset, attachment) for offset, attachment in self.joining if attachment not in named]
            for attachment in passed:
                self._join_quietly(attachment)

    def _admit(self, attachment: Attachment, head: int | None = None, since: Sequence[Record] = (), made: _Made | None = None) -> None:
        """The channel is open: attach at its head (`head`, with the records that came `since`), or replay first. `made` is what others
        were sent since the same head: thousands may have waited together."""
        if self.presence.turns_away(attachment):
            self.detach(attachment)
            return
        after = attachment.after
        if attachment.backlog is not None:
            self._rewind(attachment, attachment.backlog)
            return
        if after is None:
            at = Serial(self.stream, self.partition, self.last if head is None else head).text
            attachment.opened(at, resumed=False, backlog=False, error=None)
            if since:
                shared = made if attachment.echo and attachment.receives else None
                key = (attachment.wire.msgpack, attachment.text, head)
                frames = shared.get(key) if shared is not None else None
                if frames is None:
                    counts = self.usage.counts
                    before = counts[OUT_REALTIME : OUT_REALTIME + 2]
                    each = self._frames_for(attachment, [(record, 0) for record in since], ephemeral=True)
                    frames = b"".join(each), len(each), counts[OUT_REALTIME] - before[0], counts[OUT_REALTIME + 1] - before[1]
                    if shared is not None:
                        shared[key] = frames
                else:
                    self._count(frames[2], frames[3])
                if frames[1]:
                    self.hub.turn.write(attachment.client, frames[0])
                    self.hub.turn.stats.deliveries += frames[1]
            self._join(attachment)
            return
        position = Serial.parse(after)
        if position is not None and (position.stream, position.partition, position.offset) == (self.stream, self.partition, self.last):
            attachment.opened(self.serial, resumed=True, backlog=False, error=None)
            self._join(attachment)
        elif position is None or (position.stream, position.partition) != (self.stream, self.partition):
            attachment.opened(self.serial, resumed=False, backlog=False, error=_OTHER_SITE)
            self._join(attachment)
        else:
            turn = self.hub.turn
            assert self.link is not None, "an open channel has a link"
            replay = CatchUp(turn.request(), attachment, position)
            self.catching[replay.ref] = replay
            self.hub.refs[replay.ref] = self
            self._wait(attachment)
            self.hub.links.present(attachment.session, self.link)
            turn.send(self.link, Open(replay.ref, self.app, self.name, attachment.session.id, after))

    def _join(self, attachment: Attachment) -> None:
        """Deliver to it from the next record on."""
        self.waiting.pop(attachment, None)
        if not attachment.attached:  # refused meanwhile
            return
        self.readers[attachment] = None
        self._subscribe(attachment)
        if self.witness is None or self.witness.over:
            self._new_witness()

    def _subscribe(self, attachment: Attachment) -> None:
        """Deliver to it what its modes permit."""
        if attachment.receives:
            self.groups.enter(attachment, self.hub.turn.number)
        self.presence.joined(attachment)

    def _unsubscribe(self, attachment: Attachment) -> None:
        self.groups.leave(attachment, self.hub.turn.number)
        self.presence.left(attachment)

    def changed(self, attachment: Attachment) -> None:
        """Its modes or its echo changed while attached. Whether it may read at all may have changed too."""
        if not attachment.reads:
            self.detach(attachment)
        elif attachment in self.readers:
            self._unsubscribe(attachment)
            self._subscribe(attachment)
        elif attachment not in self.waiting and all(attachment is not other for _, other in self.joining):
            self.attach_quietly(attachment)

    def attach_quietly(self, attachment: Attachment) -> None:
        """It may read from now on, and its client has had its ATTACHED before."""
        self.shut_at = None
        if self.state is State.OPEN:
            self._join_quietly(attachment)
        else:
            self._wait(attachment)
            if self.state is State.SHUT and self.retry_at is None:
                self.open()

    def _join_quietly(self, attachment: Attachment) -> None:
        """Its client has had its ATTACHED before, when less was known of who is present."""
        attachment.sync_due = attachment.sync_due or self.presence.anyone
        self._join(attachment)

    def detach(self, attachment: Attachment, *, departing: bool = False) -> None:
        """It is gone. `departing`: its whole connection is, so that it can be no witness any longer."""
        if self.readers.pop(attachment, False) is None:
            self._unsubscribe(attachment)
        self.waiting.pop(attachment, None)
        if self.joining:
            self.joining = [(offset, other) for offset, other in self.joining if other is not attachment]
        for replay in [each for each in self.catching.values() if each.attachment is attachment]:
            self._end(replay)
        if self.readers or self.waiting or self.joining:
            if self.witness is attachment:
                self._new_witness()
        elif self.state is State.SHUT:
            self.hub.release(self)
        elif departing and self.witness is attachment:
            self.shut()
        else:
            self._linger()

    def _linger(self) -> None:
        """Shut it some time after the last one has gone, if it has."""
        if self.state is not State.SHUT and self.shut_at is None and not (self.readers or self.waiting or self.joining):
            turn = self.hub.turn
            self.shut_at = turn.now + turn.limits.channel_linger_s
            turn.wheel.schedule(self, self._next_wake())

    def _new_witness(self) -> None:
        """The core picks another session of the link that may read the channel; make sure that it knows one."""
        self.witness = next((each for each in self._all_readers() if each.reads), None)
        if self.witness is not None and self.link is not None:
            self.hub.links.present(self.witness.session, self.link)

    def _all_readers(self) -> Iterable[Attachment]:
        yield from self.readers
        yield from (attachment for _, attachment in self.joining)
        yield from self.waiting

    # --- the link --------------------------------------------------------------------------------------------------------------------

    def route(self) -> int | None:
        """The link of this channel, chosen if it has none. None: no link serves it; it is routed when one comes up."""
        if self.link is None:
            link = self.hub.links.pick(self.key)
            if link is None:
                self.hub.unrouted[self] = None
                return None
            self.link = link.id
            self.moving = False
            self.hub.unrouted.pop(self, None)
        return self.link

    def open(self) -> None:
        """Ask for it, after the last record delivered if there was one."""
        self._forget_refs(shut=True)
        self.state = State.OPENING
        self.retry_at = None
        if self.witness is None or not self.witness.reads or self.witness.over:
            self.witness = next((each for each in self._all_readers() if each.reads), None)
        if self.witness is None:
            self.state = State.SHUT
            return
        link = self.route()
        if link is None:
            return
        turn = self.hub.turn
        self.ref = turn.request()
        self.hub.refs[self.ref] = self
        self.hub.links.present(self.witness.session, link)
        after = None
        if self.last == UNKNOWN or not (self.readers or self.joining):
            self.last = UNKNOWN
            self.settled = frozenset(self.waiting)
        else:
            self.settled = frozenset()
            after = Serial(self.stream, self.partition, max(self.last, self.covered)).text
        self.surety = self.witness
        turn.send(link, Open(self.ref, self.app, self.name, self.witness.session.id, after))
        self.hub.occupancies.opening(self)

    def shut(self) -> None:
        self._forget_refs(shut=True)
        self.state = State.SHUT
        self.shut_at = self.position_at = None
        self.skipped = 0
        self.last = UNKNOWN
        self.witness = self.surety = None
        self.settled = frozenset()
        self.presence.shut()
        self.hub.release(self)

    def _forget_refs(self, *, shut: bool) -> None:
        """Nothing more is heard of what was open, here or in replays. Replays begin again once the channel is open."""
        turn = self.hub.turn
        for replay in self.catching.values():
            self.hub.refs.pop(replay.ref, None)
            if shut and self.link is not None and not isinstance(replay, Rewinding):
                turn.send(self.link, Shut(replay.ref))
        self.catching.clear()
        self.presence.interrupted()
        self.barriers.forget()
        if self.ref:
            self.hub.refs.pop(self.ref, None)
            if shut and self.link is not None:
                turn.send(self.link, Shut(self.ref))
            self.ref = 0
        self.held.clear()
        self.held_size = 0

    def link_lost(self) -> None:
        self._forget_refs(shut=False)
        self.link = None
        self.moving = False
        for append in [each for each in self.appends.values() if each.publisher is None]:
            self.hub.settle(append)
        self.resume()

    def resume(self) -> None:
        """Carry on over whatever link there is now: appends first, in their order, then the records."""
        link = self.route()
        if self.appends and link is not None:
            for append in self.appends.values():
                append.frame.fresh = False
                self.hub.links.present(append.session, link)
                self.hub.turn.send(link, append.frame)
        if self.readers or self.waiting or self.joining:
            self.open()
        else:
            self.state = State.SHUT
            self.last = UNKNOWN
            self.hub.release(self)

    def move(self) -> None:
        """Leave a link whose core drains, unless appends are unanswered there or nothing better is up."""
        link = self.hub.links.pick(self.key)
        if link is None or link.id == self.link:
            return
        if self.appends:
            self.moving = True
            return
        self._forget_refs(shut=True)
        self.link = None
        self.resume()

    # --- what the core says ----------------------------------------------------------------------------------------------------------

    def opened(self, frame: Opened) -> None:
        replay = self.catching.get(frame.req)
        if replay is not None:
            self._caught_up(replay, frame)
            return
        if frame.req != self.ref or self.state is not State.OPENING:
            return
        head = Serial.parse(frame.serial)
        if head is None:
            self.hub.turn.note("malformed serial from the core", channel_opened=True)
            self._retry()
            return
        error = frame.error
        if self.last != UNKNOWN and (head.stream, head.partition) != (self.stream, self.partition):
            error = error or _OTHER_SITE
            self.last = UNKNOWN
        self.state = State.OPEN
        self.stream, self.partition = head.stream, head.partition
        self.covered = UNKNOWN
        held = [self.held[offset] for offset in sorted(self.held)]
        self.held = {}
        self.held_size = 0
        if error is not None:
            for attachment in self._ahead():
                attachment.sync_due = False  # it is told anew below
                self._join(attachment)
            if head.offset < self.last:  # the log is not what it was: what counts is what it says now
                self.last = UNKNOWN
            position = Serial(head.stream, head.partition, max([head.offset, *(record.offset for record in held)])).text
            anyone = frame.members > 0 or any(record.kind == Kind.PRESENCE for record in held)
            for attachment in self.readers:
                attachment.discontinued(position, error, anyone=anyone)
        self.presence.opened(frame.members, anew=self.last == UNKNOWN or error is not None)
        if self.last == UNKNOWN:
            self.last = head.offset
        settled, self.settled = self.settled, frozenset()
        for attachment in list(self.waiting):
            if attachment in settled and not attachment.attached:
                self._admit(attachment)
        self.deliver(held)
        self.last = max(self.last, head.offset)
        if self.joining:
            self._promote(self.last + 1)
            for _, attachment in self.joining:
                self._join_soon(attachment)
        for attachment in list(self.waiting):
            if attachment.attached:
                self._join_quietly(attachment)
            elif attachment not in settled:
                self._admit_settled(attachment)
        self._linger()

    def refused(self, req: int, error: ErrorInfo) -> None:
        if self.presence.refused(req):
            return
        replay = self.catching.get(req)
        if replay is not None:
            self._end(replay)
            self.waiting.pop(replay.attachment, None)
            replay.attachment.failed(error)
            self._linger()
            return
        if req != self.ref:
            return
        self.hub.refs.pop(req, None)
        self.ref = 0
        witness, self.surety = self.surety, None
        if 40000 <= error.code < 40400 and witness is not None:
            # The core does not let this reader read: its channel fails, if it is still here, and the next one tries.
            self.witness = None
            if witness in self._all_readers():
                self.readers.pop(witness, None)
                self._unsubscribe(witness)
                self.waiting.pop(witness, None)
                self.joining = [(offset, other) for offset, other in self.joining if other is not witness]
                witness.failed(error)
            if self.readers or self.waiting or self.joining:
                self.open()
            else:
                self.shut()
            return
        self._retry()

    def _retry(self) -> None:
        """Not now. Those who wait are told when their time is up."""
        turn = self.hub.turn
        self._forget_refs(shut=True)
        self.state = State.SHUT if not self.readers else State.OPENING
        self.retry_at = turn.now + _RETRY_S
        turn.wheel.schedule(self, self._next_wake())

    def lost(self, frame: Lost) -> None:
        replay = self.catching.get(frame.ref)
        if replay is not None:
            self._end(replay)
            self._admit(replay.attachment)
            return
        if frame.ref != self.ref:
            return
        self.hub.refs.pop(self.ref, None)
        self.ref = 0
        self.witness = None
        if self.readers or self.waiting or self.joining:
            self._retry()
        else:
            self.shut()

    def records(self, ref: int, records: Sequence[Record]) -> None:
        """Records in the order of their lane."""
        replay = self.catching.get(ref)
        limits = self.hub.turn.limits
        if replay is not None:
            fits = True
            for record in records:
                fits = replay.hold(record, limits.held_records, limits.held_bytes)
            if not fits:
                self._give_up(replay)
        elif ref != self.ref:
            return
        elif self.state is State.OPEN:
            self.deliver(records)
        else:
            for record in records:
                if record.offset > self.last and record.offset not in self.held:
                    self.held[record.offset] = record
                    self.held_size += len(record.body)
            if len(self.held) > limits.held_records or self.held_size > limits.held_bytes:
                self.hub.turn.note("gave up continuity of a channel", records=len(self.held), bytes=self.held_size)
                self._start_over()

    def _start_over(self) -> None:
        """More came while the channel was being opened again than can be held: attach everyone at its head, and say so."""
        readers = [*self.readers, *self._ahead()]
        self.readers = {}
        for attachment in readers:
            attachment.discontinued(None, _TOO_MUCH, anyone=True)
        self._forget_refs(shut=True)
        for attachment in readers:
            self._unsubscribe(attachment)
            self._wait(attachment)
        self.last = UNKNOWN
        self.open()

    def deliver(self, records: Iterable[Record]) -> None:
        """The hot path: one encoding per record, format and spelling; one effect per group, for a run of records.

        Cost: about 10 µs per record and group here, and nothing per subscriber.
        """
        turn, counts = self.hub.turn, self.usage.counts
        runs: dict[Group, list[bytes]] = {}
        for record in records:
            offset = record.offset
            if offset <= self.last:
                continue
            self.last = offset
            turn.stats.records += 1
            self.skipped += self.position_at is not None
            if self.joining:
                self._flush(runs)
                self._promote(offset)
            if self.barriers.ref:
                self.barriers.saw(record)
            for replay in list(self.catching.values()):
                if not replay.hold(record, turn.limits.held_records, turn.limits.held_bytes):
                    self._give_up(replay)
            if record.kind == Kind.PRESENCE:
                self._flush(runs)
                self.presence.record(record)
                for group in self.groups.values() if self.groups.filtered else ():
                    self._skip(group)
                continue
            if not self.groups or record.kind != Kind.MESSAGE:
                continue
            body = self.decoded(record)
            if body is None:
                continue
            serial = Serial(self.stream, self.partition, offset).text
            publisher = body.connection_id
            sent = 0
            found: dict[Filter, Sequence[int]] = {}
            for group in self.groups.values():
                only = None
                if group.filter is not None:
                    only = found.get(group.filter)
                    if only is None:
                        only = found[group.filter] = group.filter.matching(body.messages)
                    if not only:
                        self._skip(group)
                        continue
                    group.behind = False
                frame = group.wire.delivery(body, group.text, serial, only)
                clients = len(group.clients)
                if group.quiet and publisher in group.quiet:
                    clients -= 1
                    self._skip(group)  # the publisher does not get it
                    self._flush(runs)
                    group.named_at = turn.number
                    turn.effects.append(Broadcast(group.clients, frame, group.quiet[publisher]))
                    turn.stats.deliveries += clients
                else:
                    runs.setdefault(group, []).append(frame)
                if only is None:
                    sent += clients
                else:
                    self._count(clients * len(only), clients * len(record.body))
            counts[OUT_REALTIME] += sent * len(body.messages)
            counts[OUT_REALTIME + 1] += sent * len(record.body)
        self._flush(runs)
        if self.skipped >= turn.limits.filter_position_records:
            self._tell_position()

    def _skip(self, group: Group) -> None:
        """Nothing of a record is for a group with a filter."""
        if group.filter is None:
            return
        group.behind = True
        if self.position_at is None:
            turn = self.hub.turn
            self.position_at = turn.now + turn.limits.filter_position_s
            turn.wheel.schedule(self, self._next_wake())

    def _tell_position(self) -> None:
        """Clients behind a filter that nothing has passed for a while: else their next resume would begin where cores have no index any
        more, or go over more than is replayed."""
        self.position_at = None
        self.skipped = 0
        behind = {key for key, group in self.groups.items() if group.behind}
        for attachment in list(self.readers) if behind and self.last != UNKNOWN else ():
            if (attachment.wire.msgpack, attachment.text) in behind:
                attachment.told_anew(self.serial)
        for key in behind:
            self.groups[key].behind = False

    def _flush(self, runs: dict[Group, list[bytes]]) -> None:
        turn = self.hub.turn
        for group, frames in runs.items():
            group.named_at = turn.number
            turn.stats.deliveries += len(group.clients) * len(frames)
            turn.effects.append(Broadcast(group.clients, frames[0] if len(frames) == 1 else b"".join(frames)))
        runs.clear()

    def decoded(self, record: Record) -> RecordBody | None:
        try:
            return _decode_body(record.body)
        except _UNDECODABLE:
            self.hub.turn.stats.undecodable += 1
            return None

    # --- replays ---------------------------------------------------------------------------------------------------------------------

    def _caught_up(self, replay: CatchUp, frame: Opened) -> None:
        """Everything up to `frame.serial` is here. ATTACHED, then what was missed, then live."""
        attachment = replay.attachment
        self._end(replay)
        head = Serial.parse(frame.serial)
        reached = max(self.last, head.offset if head is not None else UNKNOWN)
        missed = [record for _, record in sorted(replay.records.items())]
        if attachment.filter is not None and not self._askable(attachment.filter, missed):
            self._give_up(replay)
            return
        # A SYNC takes the place of what changed in the presence set: it begins once the client gets what comes live.
        attachment.sync_due = any(record.kind == Kind.PRESENCE for record in missed)
        # A client that is told the head and dies before it has read the backlog would take the head for its position, and lose the backlog.
        # With RESUMED its own position is as good, since then it leaves the serial alone that it uses for history.
        position = replay.after.offset if frame.error is None and missed else reached
        frames = self._frames_for(attachment, [(record, 0) for record in missed], leaves=True)
        backlog = any(record.kind == Kind.MESSAGE for record in missed)
        if attachment.filter is not None:
            backlog = bool(frames)
            position = position if backlog else reached
        attachment.opened(
            Serial(self.stream, self.partition, position).text, resumed=frame.error is None, backlog=backlog, error=frame.error
        )
        for written in frames:
            self.hub.turn.write(attachment.client, written)
            self.hub.turn.stats.deliveries += 1
        reached = max([reached, *replay.records])
        if attachment.filter is not None and backlog:
            attachment.told_anew(Serial(self.stream, self.partition, reached).text)  # past what came after the last one that matched
        self._join_after(attachment, reached)

    def _askable(self, filter_: Filter, records: Iterable[Record]) -> bool:
        """Whether a filter may be asked of all these at once: nobody else is served meanwhile, and the answers are for one client only.
        What is held back is bounded by records and bytes, and a record may have very many messages."""
        left = self.hub.turn.limits.filter_replay_steps
        for record in records:
            if record.kind == Kind.MESSAGE:
                with suppress(*_UNDECODABLE):  # counted when it is left out
                    left -= len(_decode_body(record.body).messages) * filter_.tokens
            if left < 0:
                return False
        return True

    def _promote(self, offset: int) -> None:
        """Those whose replay had run ahead, and ended before `offset`."""
        ahead = self.joining
        self.joining = [(reached, attachment) for reached, attachment in ahead if reached >= offset]
        for reached, attachment in ahead:
            if reached < offset:
                self._join_quietly(attachment)

    def _rewind(self, attachment: Attachment, backlog: Backlog) -> None:
        """Ask for what came before, and keep what comes meanwhile."""
        turn = self.hub.turn
        assert self.link is not None, "an open channel has a link"
        replay = Rewinding(turn.request(), attachment, Serial(self.stream, self.partition, self.last))
        self.catching[replay.ref] = replay
        self.hub.refs[replay.ref] = self
        self._wait(attachment)
        self.hub.links.present_for_call(attachment.session, self.link)
        most = turn.limits.rewind_messages
        limit = most if backlog.messages is None else min(backlog.messages, most)
        body = calls.encode(calls.Rewind(channel=self.name, limit=limit, period_ms=backlog.period_ms))
        turn.send(self.link, Fetch(replay.ref, attachment.session.id, calls.REWIND, body))

    def page(self, frame: Page) -> None:
        """The past that a rewind asked for. ATTACHED at the position of the page, the backlog, what came since, then live."""
        replay = self.catching.get(frame.req)
        if not isinstance(replay, Rewinding):
            self.presence.page(frame)
            return
        attachment, turn = replay.attachment, self.hub.turn
        backlog = attachment.backlog
        self._end(replay)
        past = calls.decode_past(frame.body)
        head = Serial.parse(past.serial) if past is not None else None
        if past is None or head is None or backlog is None:
            turn.note("malformed page from the core", channel_opened=True)
            self.waiting.pop(attachment, None)
            attachment.failed(_LATE)
            self._linger()
            return
        found = sum(item.last + 1 - item.first for item in past.items)
        cut = past.cursor is not None and (backlog.messages is None or found < backlog.messages)
        before = [(Record(0, item.offset, Kind.MESSAGE, item.body), item.first) for item in reversed(past.items)]
        since = [(record, 0) for offset, record in sorted(replay.records.items()) if offset > head.offset and record.kind == Kind.MESSAGE]
        frames = self._frames_for(attachment, before)
        attachment.opened(past.serial, resumed=False, backlog=bool(frames), error=_TOO_MANY if cut else None)
        for written in [*frames, *self._frames_for(attachment, since)]:
            turn.write(attachment.client, written)
            turn.stats.deliveries += 1
        self._join_after(attachment, max([head.offset, *replay.records]))

    def _frames_for(
        self, attachment: Attachment, records: Iterable[tuple[Record, int]], *, ephemeral: bool = False, leaves: bool = False
    ) -> list[bytes]:
        """What one client is sent for records that it was not yet subscribed for, each without the messages before an index.

        Of changes of presence only leaves, if at all: ably-js does not begin anew with a SYNC if its last one was cut off, but goes on with
        that, and would keep for ever who was named then and has left since.
        """
        frames = []
        for record, first in records:
            if record.kind == Kind.MESSAGE and attachment.receives:
                body = self.decoded(record)
                if body is None or (body.ephemeral and not ephemeral):
                    continue
                if not attachment.echo and body.connection_id == attachment.session.id:
                    continue
                only: Sequence[int] = range(first, len(body.messages))
                if attachment.filter is not None and not (only := attachment.filter.matching(body.messages)):
                    continue
                serial = Serial(self.stream, self.partition, record.offset).text
                frames.append(attachment.wire.delivery(body, attachment.text, serial, only))
                self._count(len(only), len(record.body))
            elif record.kind == Kind.PRESENCE and leaves and attachment.receives_presence:
                body = self.decoded(record)
                gone = leaves_of(body) if body is not None else []
                if body is not None and gone:
                    serial = Serial(self.stream, self.partition, record.offset).text
                    frames.append(attachment.wire.presence(body, gone, attachment.text, serial))
                    self.usage.counts[OUT_REALTIME_PRESENCE] += len(gone)
                    self.usage.counts[OUT_REALTIME_PRESENCE + 1] += len(record.body)
        return frames

    def _count(self, messages: int, size: int) -> None:
        """One client has been sent so many."""
        self.usage.counts[OUT_REALTIME] += messages
        self.usage.counts[OUT_REALTIME + 1] += size

    def _join_after(self, attachment: Attachment, reached: int) -> None:
        """It has been sent everything up to `reached`."""
        if reached > self.last:
            self.waiting.pop(attachment, None)
            if attachment.attached:
                self.joining.append((reached, attachment))
                self._join_soon(attachment)
        else:
            self._join(attachment)

    def _join_soon(self, attachment: Attachment) -> None:
        """Its replay ended at the head of the partition, and no record of this channel may ever follow: its SYNC must not wait for one."""
        if attachment.receives_presence:
            self.barriers.hold(attachment)

    def _ahead(self) -> list[Attachment]:
        """Those whose replay had run ahead, out of a position that means nothing any more."""
        ahead, self.joining = self.joining, []
        return [attachment for _, attachment in ahead]

    def _give_up(self, replay: CatchUp) -> None:
        self._end(replay)
        replay.attachment.opened(self.serial, resumed=False, backlog=False, error=_TOO_MUCH)
        self._join(replay.attachment)

    def _end(self, replay: CatchUp) -> None:
        if self.catching.pop(replay.ref, None) is not None:
            self.hub.refs.pop(replay.ref, None)
            if self.link is not None and not isinstance(replay, Rewinding):
                self.hub.turn.send(self.link, Shut(replay.ref))

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def _next_wake(self) -> float:
        at = min(self.waiting.values(), default=float("inf"))
        for other in (self.shut_at, self.retry_at, self.position_at):
            if other is not None and other < at:
                at = other
        return at

    def wake(self) -> None:
        now = self.hub.turn.now
        for attachment in [each for each, until in self.waiting.items() if until <= now]:
            for replay in [each for each in self.catching.values() if each.attachment is attachment]:
                self._end(replay)
            del self.waiting[attachment]
            if attachment.attached:
                self._rejoin_later(attachment)
            else:
                attachment.failed(_LATE)
        self._linger()
        if self.position_at is not None and self.position_at <= now:
            self._tell_position()
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None
            if self.readers or self.waiting or self.joining:
                self.open()
            else:  # all have gone meanwhile: whoever comes opens it anew
                self.shut()
                return
        if self.shut_at is not None and self.shut_at <= now:
            if self.readers or self.waiting or self.joining:
                self.shut_at = None
            else:
                self.shut()
                return
        if not (self.readers or self.waiting or self.joining) and self.state is State.SHUT:
            self.hub.release(self)
            return
        at = self._next_wake()
        if at != float("inf"):
            self.hub.turn.wheel.schedule(self, at)

    def _rejoin_later(self, attachment: Attachment) -> None:
        """Its client believes to be attached and may not be told otherwise: it waits on."""
        self.waiting[attachment] = self.hub.turn.now + self.hub.turn.limits.attach_wait_s


class Hub:
    """All channels with readers, or with appends that are unanswered."""

    __slots__ = (
        *("appends", "channels", "filters", "links", "occupancies", "presence_bytes", "refs", "sessions", "turn"),
        *("unanswered_bytes", "unrouted", "usages"),
    )

    def __init__(self, turn: Turn, links: Links, sessions: dict[str, Connection], usages: Usages) -> None:
        self.usages = usages
        self.turn = turn
        self.links = links
        self.sessions = sessions
        """The connections of this edge, by their id."""
        self.presence_bytes = 0
        """Of the presence sets of all channels."""
        self.channels: dict[bytes, Channel] = {}
        self.filters: weakref.WeakSet[Filter] = weakref.WeakSet()
        """Those of all channels."""
        self.refs: dict[int, Channel] = {}
        self.appends: dict[int, PendingAppend] = {}
        self.unrouted: dict[Channel, None] = {}
        self.unanswered_bytes = 0
        self.occupancies: Occupancies

    def channel(self, app: str, name: str) -> Channel:
        key = log_key(app, name)
        channel = self.channels.get(key)
        if channel is None:
            channel = self.channels[key] = Channel(self, app, name, key)
        return channel

    def release(self, channel: Channel) -> None:
        """Forget a channel that nobody reads and nothing is unanswered on."""
        if channel.state is State.SHUT and not (channel.appends or channel.readers or channel.waiting or channel.joining):
            if self.channels.get(channel.key) is channel:
                del self.channels[channel.key]
            self.unrouted.pop(channel, None)
            self.turn.wheel.cancel(channel)
            channel.presence.shut()

    def positions(self, link: int, frame: Positions) -> None:
        """What the core has sent of its open channels. Those that are not open yet begin later than this."""
        offsets = dict(frame.offsets)
        for channel in self.channels.values():
            if channel.link == link and channel.state is State.OPEN and channel.stream == frame.stream:
                channel.covered = max(channel.covered, offsets.get(channel.partition, UNKNOWN))

    # --- appends ---------------------------------------------------------------------------------------------------------------------

    def append(
        self,
        session: Session,
        name: str,
        publish_id: str,
        messages: list[Message],
        publisher: Publisher,
        size: int,
        *,
        fresh: bool,
        ephemeral: bool,
        connection_key: str | None = None,
        presence: list[PresenceItem] | None = None,
    ) -> PendingAppend:
        """Send one publish to the core, or keep it until there is a link. The publisher is told how it ends, exactly once."""
        channel = self.channel(session.app, name)
        frame = Append(self.turn.request(), session.id, name, publish_id, fresh, messages, ephemeral, connection_key, presence or [])
        append = PendingAppend(channel, frame, session, publisher, size)
        self.appends[frame.req] = append
        channel.appends[frame.req] = append
        self.unanswered_bytes += size
        link = channel.route()
        if link is not None:
            self.links.present(session, link)
            self.turn.send(link, frame)
        return append

    def abandon(self, append: PendingAppend) -> None:
        """Nobody waits for it any more. What is on a link keeps its place there; what was never sent is not sent."""
        append.publisher = None
        if append.channel.link is None:
            self.settle(append)

    def settle(self, append: PendingAppend) -> None:
        """It has been answered, or nobody wants to know any more."""
        req = append.frame.req
        if self.appends.pop(req, None) is None:
            return
        self.unanswered_bytes -= append.size
        channel = append.channel
        channel.appends.pop(req, None)
        if not channel.appends:
            if channel.moving:
                channel.move()
            elif channel.state is State.SHUT and not channel.waiting:
                # The next append may take any link again.
                self.release(channel)

    def _answered(self, link: int, req: int) -> PendingAppend | None:
        append = self.appends.get(req)
        if append is None or append.channel.link != link:
            return None
        self.settle(append)
        return append

    def appended(self, link: int, req: int, serial: str) -> None:
        append = self._answered(link, req)
        if append is not None and append.publisher is not None:
            append.publisher.appended(append, serial)

    def append_refused(self, link: int, req: int, error: ErrorInfo) -> bool:
        """Whether `req` was an append."""
        if req not in self.appends:
            return False
        append = self._answered(link, req)
        if append is not None and append.publisher is not None:
            append.publisher.append_refused(append, error)
        return True

    def append_unknown(self, link: int, req: int) -> None:
        append = self._answered(link, req)
        if append is not None and append.publisher is not None:
            append.publisher.append_unknown(append)

    # --- links -----------------------------------------------------------------------------------------------------------------------

    def link_up(self) -> None:
        for channel in list(self.unrouted):
            channel.resume()
        for channel in [each for each in self.channels.values() if each.link is not None and self._drains(each.link)]:
            channel.move()

    def _drains(self, link: int) -> bool:
        up = self.links.by_id.get(link)
        return up is not None and up.draining

    def link_lost(self, link: int) -> None:
        for channel in [each for each in self.channels.values() if each.link == link]:
            channel.link_lost()

    def drain(self, link: int) -> None:
        for channel in [each for each in self.channels.values() if each.link == link]:
            channel.move()


_OTHER_SITE = ErrorInfo.of(90005, "Unable to recover channel (the position is of another stream)")
_TOO_MUCH = ErrorInfo.of(90004, "Unable to recover channel (more messages were missed than can be replayed)")
_TOO_MANY = ErrorInfo.of(90004, "Unable to rewind as far as asked for (message limit exceeded)")
_LATE = ErrorInfo.of(50003, "the channel could not be attached in time; try again")
