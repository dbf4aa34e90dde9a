"""Who is present on the channels of one partition: a fold over its log, the same on every core and at the owner.

The log record *is* the change, and only the order of the log counts. Besides PRESENCE (enter, update, leave) four kinds of records say
what becomes of a connection that entered members, without being shown to anybody:

    GONE(connection, incarnation)   it has no socket; on each channel where it has members. Its grace begins.
    BACK(connection, incarnation)   it goes on under a later incarnation: written before its client is told so
    EDGE_GONE(boot)                 an edge process died: all connections that were there are gone; one record for each partition
    EDGE_BACK(boot)                 it had only lost its links, and is back with its connections

When the grace is over somebody (the owner; if two believe to be it, both) appends the leave, with the offset of the GONE or EDGE_GONE as
its `cause`. It counts only if the connection is still gone *for that reason* where the leave stands in the log. So a connection that
returns at the last moment keeps its members or loses them on every core alike, whoever was late, and repeating a leave changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from core import state
from core.fold import WINDOW_MS
from core.log import LogRecord
from core.state import EdgeState, HolderState, MemberState
from relay.model.message import Kind, PresenceAction, RecordBody
from relay.model.presence import is_newer, member_order

LEFT = 50_000
"""Leaves remembered for each partition. Beyond it the oldest is forgotten early, and an entry that it made void may count again."""

decode_body = msgspec.msgpack.Decoder(RecordBody).decode


class Member:
    """One member of a presence set; `number` is its place in the order of entering, which an update does not change."""

    __slots__ = ("client_id", "holder", "number", "size", "state")

    def __init__(self, holder: Holder, client_id: str, number: int, state: MemberState) -> None:
        self.holder = holder
        self.client_id = client_id
        self.number = number
        self.take(state)

    def take(self, state: MemberState) -> None:
        self.state = state
        self.size = 64 + len(self.client_id) + len(state.data or "")


class Holder:
    """A connection that has members on one channel."""

    __slots__ = ("connection", "edge", "gone", "gone_at", "grace_ms", "incarnation", "key", "members")

    def __init__(self, key: bytes, connection: str, incarnation: int, edge: str) -> None:
        self.key = key
        self.connection = connection
        self.incarnation = incarnation
        self.edge = edge
        self.gone: int | None = None
        """Offset of the GONE or EDGE_GONE in force."""
        self.gone_at = 0.0
        """When it was read, in monotonic seconds: the grace counts from then."""
        self.grace_ms: int | None = None
        self.members: dict[str, Member] = {}
        """By clientId."""


class Change(NamedTuple):
    """What one item of a record did. `action` is ENTER, UPDATE or LEAVE; `state` the member's after it, or the last one before a leave."""

    action: int
    connection: str
    client_id: str
    state: MemberState


class ChannelSet:
    """The presence set of one channel."""

    __slots__ = ("_by_number", "_holes", "_last", "_numbers", "holders", "size")

    def __init__(self) -> None:
        self.holders: dict[str, Holder] = {}
        self.size = 0
        """Bytes, roughly."""
        self._by_number: dict[int, Member] = {}
        self._numbers: list[int] = []
        self._holes = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_number)

    def find(self, connection: str, client_id: str) -> Member | None:
        holder = self.holders.get(connection)
        return None if holder is None else holder.members.get(client_id)

    def put(self, holder: Holder, client_id: str, member_state: MemberState) -> None:
        member = holder.members.get(client_id)
        if member is None:
            self._last += 1
            member = holder.members[client_id] = self._by_number[self._last] = Member(holder, client_id, self._last, member_state)
            self._numbers.append(self._last)
        else:
            self.size -= member.size
            member.take(member_state)
        self.size += member.size

    def remove(self, member: Member) -> None:
        del member.holder.members[member.client_id], self._by_number[member.number]
        self.size -= member.size
        self._holes += 1
        if self._holes > 64 and self._holes * 2 > len(self._numbers):
            self._numbers = list(self._by_number)
            self._holes = 0

    def after(self, number: int) -> Iterator[Member]:
        """The members that entered after the `number`-th, in the order of entering."""
        for index in range(bisect_right(self._numbers, number), len(self._numbers)):
            member = self._by_number.get(self._numbers[index])
            if member is not None:
                yield member


class PartitionPresence:
    """One partition. `lenient`: the records before the checkpoint, for the sake of what they say of each other: members and gone
    connections of which nothing is known are taken as the records have it.

    `journal`, if the caller sets one, takes the state records that bring `tidegate.state` up to date: key → value, None for a tombstone.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self.journal: dict[bytes, bytes | None] | None = None
        self.channels: dict[bytes, ChannelSet] = {}
        """By log key; a channel without members is not in it."""
        self.gone: dict[tuple[bytes, str], Holder] = {}
        """Holders whose grace runs, by log key and connection."""
        self.gone_edges: dict[str, EdgeState] = {}
        self.left: OrderedDict[tuple[bytes, str, str], tuple[tuple[int, int], int]] = OrderedDict()
        """Members that left by themselves: the place of the leave among its connection's changes, and its broker time. For as long as the
        verdict on duplicates looks back, so that all readers agree."""
        self.by_connection: dict[str, dict[bytes, Holder]] = {}
        self.by_edge: dict[str, dict[tuple[bytes, str], Holder]] = {}
        self.unreadable = 0

    # --- the log -----------------------------------------------------------------------------------------------------------------------

    def apply(self, record: LogRecord, now: float) -> list[Change]:
        """The next record of the partition that is no MESSAGE, duplicates left out. What it changed in the set of its channel: empty for
        one that is shown to nobody."""
        try:
            body = decode_body(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return []
        match record.kind:
            case Kind.PRESENCE:
                return self._changed(record, body, now)
            case Kind.GONE if body.connection_id is not None:
                self._gone(record, body, now)
            case Kind.BACK if body.connection_id is not None:
                self._back(record.key, body, now)
            case Kind.EDGE_GONE:
                self._edge_gone(record, body.edge, now)
            case Kind.EDGE_BACK:
                self._edge_back(body.edge)
        return []

    def _changed(self, record: LogRecord, body: RecordBody, now: float) -> list[Change]:
        connection = body.connection_id
        if connection is None:
            return []
        key = record.key
        channel = self.channels.get(key)
        holder = None if channel is None else channel.holders.get(connection)
        if body.cause is not None:
            gone = None if holder is None else holder.gone
            if gone != body.cause and not (self._lenient and gone is None):
                return []
        elif holder is not None and body.incarnation > holder.incarnation:
            self._move(holder, body.incarnation, body.edge, now)
        changes: list[Change] = []
        for index, item in enumerate(body.presence):
            member = None if holder is None else holder.members.get(item.client_id)
            made = MemberState(
                id=item.id or f"{body.id}:{index}",
                timestamp=body.timestamp,
                offset=record.offset,
                data=item.data,
                encoding=item.encoding,
                extras=item.extras,
            )
            place = (key, connection, item.client_id)
            if item.action == PresenceAction.LEAVE:
                if body.cause is None:
                    self._note_left(place, made.id, record.timestamp)
                if member is None and not self._lenient:
                    continue
                if member is not None and channel is not None:
                    channel.remove(member)
                    self._note(state.member_key(key, connection, item.client_id), None)
                    if made.data is None:
                        made = msgspec.structs.replace(made, data=member.state.data, encoding=member.state.encoding)
                changes.append(Change(PresenceAction.LEAVE, connection, item.client_id, made))
            elif item.action in (PresenceAction.ENTER, PresenceAction.UPDATE):
                if self.left and self._has_left(place, made.id, record.timestamp):
                    continue
                if member is not None and not is_newer(made.id, member.state.id, connection):
                    continue
                if channel is None:
                    channel = self.channels[key] = ChannelSet()
                if holder is None:
                    holder = self._hold(channel, key, connection, body.incarnation, body.edge, now)
                channel.put(holder, item.client_id, made)
                self._note(state.member_key(key, connection, item.client_id), made)
                action = PresenceAction.ENTER if member is None else PresenceAction(item.action)
                changes.append(Change(action, connection, item.client_id, made))
        if channel is not None and holder is not None and not holder.members:
            self._release(channel, holder)
        return changes

    def look_back(self, record: LogRecord) -> None:
        """A PRESENCE record before the checkpoint, for the sake of the leaves in it."""
        try:
            body = decode_body(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if body.connection_id is not None and body.cause is None:
            for index, item in enumerate(body.presence):
                if item.action == PresenceAction.LEAVE:
                    place = (record.key, body.connection_id, item.client_id)
                    self._note_left(place, item.id or f"{body.id}:{index}", record.timestamp)

    def _note_left(self, place: tuple[bytes, str, str], leave_id: str, at_ms: int) -> None:
        order = member_order(leave_id, place[1])
        if order is None:
            return
        known = self.left.pop(place, None)
        self.left[place] = (order if known is None else max(order, known[0]), at_ms)
        while len(self.left) > LEFT or next(iter(self.left.values()))[1] < at_ms - WINDOW_MS:
            self.left.popitem(last=False)

    def _has_left(self, place: tuple[bytes, str, str], member_id: str, at_ms: int) -> bool:
        """Whether an entry is older than the member's own leave. An SDK enters its members again at every attach after a drop (RTP17i),
        also one whose leave it has sent and not seen come back: who has left stays away (RTP2b2)."""
        known = self.left.get(place)
        order = None if known is None else member_order(member_id, place[1])
        return known is not None and order is not None and order < known[0] and at_ms - known[1] <= WINDOW_MS

    def _gone(self, record: LogRecord, body: RecordBody, now: float) -> None:
        connection = body.connection_id or ""
        holder = self._known(record.key, connection, body.incarnation, now)
        if holder is not None and body.incarnation >= holder.incarnation and holder.gone is None:
            holder.incarnation = body.incarnation
            self._end(holder, record.offset, body.grace_ms, now)

    def _back(self, key: bytes, body: RecordBody, now: float) -> None:
        holder = self._known(key, body.connection_id or "", -1, now)
        if holder is not None and body.incarnation > holder.incarnation:
            self._move(holder, body.incarnation, body.edge, now)

    def _known(self, key: bytes, connection: str, incarnation: int, now: float) -> Holder | None:
        channel = self.channels.get(key)
        holder = None if channel is None else channel.holders.get(connection)
        if holder is None and self._lenient:
            if channel is None:
                channel = self.channels[key] = ChannelSet()
            holder = self._hold(channel, key, connection, incarnation, "", now)
        return holder

    def _edge_gone(self, record: LogRecord, boot: str, now: float) -> None:
        if boot in self.gone_edges:
            return
        known = self.gone_edges[boot] = EdgeState(gone=record.offset, at=record.timestamp)
        self._note(state.edge_key(boot), known)
        for holder in self.by_edge.get(boot, {}).values():
            if holder.gone is None:
                self._end(holder, record.offset, holder.grace_ms, now)

    def _edge_back(self, boot: str) -> None:
        known = self.gone_edges.pop(boot, None)
        if known is None:
            return
        self._note(state.edge_key(boot), None)
        for holder in self.by_edge.get(boot, {}).values():
            if holder.gone == known.gone:
                self._live(holder)

    def forget_edges(self, before_ms: int) -> None:
        """Edge processes that went before this time are not coming back: their records may go, unless somebody still waits for them."""
        for boot in [boot for boot, known in self.gone_edges.items() if known.at < before_ms and boot not in self.by_edge]:
            del self.gone_edges[boot]
            self._note(state.edge_key(boot), None)

    # --- holders -----------------------------------------------------------------------------------------------------------------------

    def _hold(self, channel: ChannelSet, key: bytes, connection: str, incarnation: int, edge: str, now: float) -> Holder:
        holder = channel.holders[connection] = Holder(key, connection, incarnation, edge)
        self.by_connection.setdefault(connection, {})[key] = holder
        self.by_edge.setdefault(edge, {})[key, connection] = holder
        known = self.gone_edges.get(edge)
        if known is not None:
            self._end(holder, known.gone, None, now)
        else:
            self._note_holder(holder)
        return holder

    def _move(self, holder: Holder, incarnation: int, edge: str, now: float) -> None:
        """It goes on, at another edge or the same one: which may be gone itself by now, or not be back yet where this stands in the log."""
        place = (holder.key, holder.connection)
        self._leave_edge(holder)
        holder.incarnation, holder.edge = incarnation, edge
        self.by_edge.setdefault(edge, {})[place] = holder
        known = self.gone_edges.get(edge)
        if known is None:
            self._live(holder)
        else:
            self._end(holder, known.gone, None, now)

    def _live(self, holder: Holder) -> None:
        holder.gone = holder.grace_ms = None
        self.gone.pop((holder.key, holder.connection), None)
        self._note_holder(holder)

    def _end(self, holder: Holder, offset: int, grace_ms: int | None, now: float) -> None:
        holder.gone, holder.gone_at, holder.grace_ms = offset, now, grace_ms
        self.gone[holder.key, holder.connection] = holder
        self._note_holder(holder)

    def _release(self, channel: ChannelSet, holder: Holder) -> None:
        """It has no members left."""
        place = (holder.key, holder.connection)
        del channel.holders[holder.connection]
        keys = self.by_connection[holder.connection]
        del keys[holder.key]
        if not keys:
            del self.by_connection[holder.connection]
        self._leave_edge(holder)
        self.gone.pop(place, None)
        if not channel.holders:
            del self.channels[holder.key]
        self._note(state.holder_key(holder.key, holder.connection), None)

    def _leave_edge(self, holder: Holder) -> None:
        there = self.by_edge[holder.edge]
        there.pop((holder.key, holder.connection), None)
        if not there:
            del self.by_edge[holder.edge]

    # --- the state ---------------------------------------------------------------------------------------------------------------------

    def _note_holder(self, holder: Holder) -> None:
        self._note(
            state.holder_key(holder.key, holder.connection),
            HolderState(incarnation=holder.incarnation, edge=holder.edge, gone=holder.gone, grace_ms=holder.grace_ms),
        )

    def _note(self, key: bytes, value: Any) -> None:
        if self.journal is not None:
            self.journal[key] = None if value is None else state.encode(value)

    def restore(self, records: dict[bytes, bytes], now: float) -> None:
        """Take over the state of the partition at its checkpoint (`member`, `holder` and `edge` records; others are left alone). Graces
        begin anew: nobody leaves too early."""
        members: list[tuple[list[Any], MemberState]] = []
        for key, value in records.items():
            match state.decode(key, value):
                case ([_, str(boot)], EdgeState() as edge):
                    self.gone_edges[boot] = edge
                case ([_, bytes(log_key), str(connection)], HolderState() as known):
                    self._restore_holder(Holder(log_key, connection, known.incarnation, known.edge), known, now)
                case ([_, bytes(), str(), str()] as parts, MemberState() as member):
                    members.append((parts, member))
        for parts, member in sorted(members, key=lambda each: each[1].offset):
            _, log_key, connection, client_id = parts
            channel = self.channels.get(log_key)
            holder = None if channel is None else channel.holders.get(connection)
            if channel is None or holder is None:
                self.unreadable += 1
            else:
                channel.put(holder, client_id, member)
        for empty in [holder for channel in self.channels.values() for holder in channel.holders.values() if not holder.members]:
            self._release(self.channels[empty.key], empty)

    def _restore_holder(self, holder: Holder, known: HolderState, now: float) -> None:
        place = (holder.key, holder.connection)
        holder.gone, holder.gone_at, holder.grace_ms = known.gone, now, known.grace_ms
        self.channels.setdefault(holder.key, ChannelSet()).holders[holder.connection] = holder
        self.by_connection.setdefault(holder.connection, {})[holder.key] = holder
        self.by_edge.setdefault(holder.edge, {})[place] = holder
        if known.gone is not None:
            self.gone[place] = holder
