"""Attendance: who is present on the channels of all partitions that a core serves, as its tail has read them.

Each partition has its view (`core.presence`). Records before the checkpoint of `tidegate.state` are judged by what they say of each other,
for the index; from the checkpoint on the view that was restored goes on. What the fold says of a record decides whether it is shown at all,
and how: a record that changed nothing is left out, one of which only a part counted is shown with that part, and a leave with the member's
last data. So whoever applies what is shown, in the order of the log, has the same set.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from core.events import StateRead
from core.log import LogRecord
from core.presence import Change, Holder, Member, PartitionPresence, decode_body
from relay.link.calls import MemberItem, MemberPage, Members
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from relay.model.message import Kind, PresenceAction, PresenceItem
from relay.model.presence import member_order

FOLDED = frozenset({Kind.PRESENCE, Kind.GONE, Kind.BACK, Kind.EDGE_GONE, Kind.EDGE_BACK})
"""Kinds of records that are the fold's."""
FIXTURE = "fixture"
"""In the place of an edge's boot id: members that no connection holds, and that stay until they are taken away."""

_FILLED_BYTES = 262_144
"""Last data that is added to one record of leaves. Beyond it a leave has none, and who follows the channel knows it anyway."""
_ENTERED = 50_000
_EXPIRED = 50_000

_encode_body = msgspec.msgpack.Encoder().encode


class Tails(Protocol):
    """What is asked of the node."""

    def tail_position(self, partition: int) -> int: ...


class _Arrival:
    """Enters and updates of one append that the tail has not read yet."""

    __slots__ = ("clients", "connection", "key", "offset", "partition", "size")

    def __init__(self, partition: int, key: bytes, connection: str, clients: list[str], size: int) -> None:
        self.partition = partition
        self.key = key
        self.connection = connection
        self.clients = clients
        self.size = size
        self.offset: int | None = None
        """Once it is reported durable."""


class _Coming:
    """What is on its way to one channel, with its sums."""

    __slots__ = ("arrivals", "clients", "size")

    def __init__(self) -> None:
        self.arrivals: dict[int, _Arrival] = {}
        self.clients = 0
        self.size = 0


class Attendance:
    def __init__(self, partitions: Iterable[int], limits: CoreLimits, tails: Tails) -> None:
        self._limits = limits
        self._tails = tails
        self.views = {number: PartitionPresence() for number in partitions}
        self._before: dict[int, tuple[int, PartitionPresence]] = {}
        """Until the tail has reached the checkpoint of a partition: that offset, and what judges the records before it."""
        self._unread = set(self.views)
        self._arrivals: dict[int, _Arrival] = {}
        """By ticket."""
        self._by_key: dict[bytes, _Coming] = {}
        self._by_connection: dict[str, dict[int, _Arrival]] = {}
        self.entered: deque[str] = deque(maxlen=_ENTERED)
        """Connections whose entering was read lately; the oldest goes first."""
        self._expired: OrderedDict[tuple[bytes, str, str], tuple[int, float]] = OrderedDict()
        """Members (log key, connection, clientId) whose grace ended lately: offset of the leave, and when it was read."""

        self._left: OrderedDict[tuple[bytes, str, str], tuple[tuple[int, int], float]] = OrderedDict()
        """Members that left lately because their client said so: the place of that leave among its connection's changes, and when."""
        self._leaving: dict[int, list[tuple[bytes, str, str]]] = {}
        """Those of them whose leave has been appended here and not been reported, by ticket."""

    @property
    def restored(self) -> bool:
        """The state of every partition has come."""
        return not self._unread

    # --- the log -----------------------------------------------------------------------------------------------------------------------

    def restore(self, event: StateRead, now: float) -> None:
        """Before the first record of the partition."""
        if event.partition not in self.views:
            return
        view = self.views[event.partition] = PartitionPresence()
        view.restore(event.records, now)
        if event.checkpoint is not None:
            self._before[event.partition] = (event.checkpoint, PartitionPresence(lenient=True))
        self._unread.discard(event.partition)

    def read(self, record: LogRecord, now: float) -> LogRecord | None:
        """The next record of its partition that is the fold's, duplicates left out: what to show of it, if anything."""
        view = self.views[record.partition]
        before = self._before.get(record.partition)
        if before is not None and record.offset >= before[0]:
            view.left.update(before[1].left)
            before = None
            del self._before[record.partition]
        changes = (view if before is None else before[1]).apply(record, now)
        if not changes:
            return None
        self._note_expired(record, changes, now)
        if before is None and any(change.action != PresenceAction.LEAVE for change in changes):
            self.entered.append(changes[0].connection)
        return _shown(record, changes)

    def _note_expired(self, record: LogRecord, changes: list[Change], now: float) -> None:
        leaves = [change for change in changes if change.action == PresenceAction.LEAVE]
        expired = bool(leaves) and decode_body(record.value).cause is not None
        for _, connection, client_id, made in leaves:
            place = (record.key, connection, client_id)
            self._expired.pop(place, None)
            self._note_left(record.key, connection, client_id, made.id, now)
            if expired:
                self._expired[place] = (record.offset, now)
                if len(self._expired) > _EXPIRED:
                    self._expired.popitem(last=False)

    def _note_left(self, key: bytes, connection: str, client_id: str, leave_id: str, now: float) -> None:
        order = member_order(leave_id, connection)
        if order is None:
            return
        place = (key, connection, client_id)
        known = self._left.pop(place, None)
        self._left[place] = (order if known is None else max(order, known[0]), now)
        if len(self._left) > _EXPIRED:
            self._left.popitem(last=False)

    def outdated(self, key: bytes, connection: str, items: list[PresenceItem]) -> list[PresenceItem]:
        """The items, where an entry under an id that is older than the member's leave is a leave too: an SDK enters its members again at
        every attach after a drop (RTP17i), also one whose leave it has sent and not seen. Who has left stays away (RTP2b2)."""
        if not self._left:
            return items
        found = list(items)
        for index, item in enumerate(items):
            known = None if item.id is None or item.action == PresenceAction.LEAVE else self._left.get((key, connection, item.client_id))
            order = None if known is None or item.id is None else member_order(item.id, connection)
            if known is not None and order is not None and order < known[0]:
                found[index] = PresenceItem(action=PresenceAction.LEAVE, client_id=item.client_id, id=item.id)
        return found

    def expired_since(
        self, key: bytes, connection: str, items: list[PresenceItem], offset: int
    ) -> tuple[int, list[tuple[int, PresenceItem]]]:
        """Which of the enters and updates that are in the log at `offset` were undone by the end of a grace: the last such leave, and the
        items with their places."""
        found, last = [], -1
        for index, item in enumerate(items):
            known = self._expired.get((key, connection, item.client_id))
            if item.action != PresenceAction.LEAVE and known is not None and known[0] > offset:
                found.append((index, item))
                last = max(last, known[0])
        return last, found

    # --- the sets ----------------------------------------------------------------------------------------------------------------------

    def count(self, partition: int, key: bytes) -> int:
        """Members of a channel."""
        channel = self.views[partition].channels.get(key)
        return 0 if channel is None else len(channel)

    @property
    def channels(self) -> int:
        """Channels with members."""
        return sum(len(view.channels) for view in self.views.values())

    @property
    def members(self) -> int:
        """Members of all of them."""
        return sum(len(channel) for view in self.views.values() for channel in view.channels.values())

    @property
    def gone(self) -> int:
        """Connections whose grace runs, counted once for each channel."""
        return sum(len(view.gone) for view in self.views.values())

    def holders(self, connection: str) -> Iterator[tuple[int, Holder]]:
        """The connection on each channel where it has members, by partition."""
        for number, view in self.views.items():
            holders = view.by_connection.get(connection)
            if holders:
                for holder in list(holders.values()):
                    yield number, holder

    def no_earlier(self, partition: int, key: bytes, connection: str, items: list[PresenceItem], now_ms: int) -> int:
        """A time for leaves under a server-made id: clients compare it with the member's, which may be of a core whose clock is ahead."""
        channel = self.views[partition].channels.get(key)
        if channel is None:
            return now_ms
        members = [channel.find(connection, item.client_id) for item in items]
        return max([now_ms, *(member.state.timestamp for member in members if member is not None)])

    def page(self, partition: int, key: bytes, call: Members, serial: str) -> MemberPage:
        """A piece of a channel's set as it is at `serial`, the position of the tail. Raises: RelayError 40003."""
        if call.limit < 1:
            raise RelayError(40003, "invalid limit")
        limit, size = min(call.limit, self._limits.members_page), 0
        found: list[MemberItem] = []
        for member in self._matching(partition, key, call):
            size += member.size
            if len(found) == limit or (found and size > self._limits.read_bytes):
                return MemberPage(serial, found, found[-1].number)
            found.append(_item(member))
        return MemberPage(serial, found)

    def _matching(self, partition: int, key: bytes, call: Members) -> Iterable[Member]:
        channel = self.views[partition].channels.get(key)
        if channel is None:
            return ()
        if call.connection_id is None and call.client_id is None:
            return channel.after(call.after)
        holders = list(channel.holders.values())
        if call.connection_id is not None:
            holders = [holder for holder in holders if holder.connection == call.connection_id]
        members: list[Member] = []
        for holder in holders:
            if call.client_id is None:
                members += holder.members.values()
            elif call.client_id in holder.members:
                members.append(holder.members[call.client_id])
        return sorted((member for member in members if member.number > call.after), key=lambda member: member.number)

    # --- what is on its way ------------------------------------------------------------------------------------------------------------

    def check_room(self, partition: int, key: bytes, connection: str, items: list[PresenceItem], most: int) -> None:
        """Whether the channel's set has room for what enters. Enters that were appended here and not read yet count; those of other cores
        do not, so that the bound may be passed by as many. Raises: RelayError 91003, 91006."""
        entering = [item for item in items if item.action != PresenceAction.LEAVE]
        if not entering:
            return
        channel = self.views[partition].channels.get(key)
        members, size, new_clients = 0, sum(map(_size, entering)), len(entering)
        if channel is not None:
            members = len(channel)
            size += channel.size
            for item in entering:
                known = channel.find(connection, item.client_id)
                if known is not None:
                    size -= known.size
                    new_clients -= 1
        waiting = self._by_key.get(key)
        if waiting is None:
            waiting = _NOTHING
        # Mostly there is room, however long what has been read since is still counted as coming: no need to go through all of it.
        if size + waiting.size <= self._limits.presence_bytes and (not new_clients or members + new_clients + waiting.clients <= most):
            return
        self._forget_read(key)
        coming = list(waiting.arrivals.values())
        size += sum(arrival.size for arrival in coming)
        if size > self._limits.presence_bytes:
            raise RelayError(91006, "Unable to enter member to presence channel; maximum size of the presence set exceeded")
        places = {(arrival.connection, client) for arrival in coming for client in arrival.clients}
        new = {(connection, item.client_id) for item in entering} - places
        if channel is not None:
            new = {place for place in new if channel.find(*place) is None}
            places = {place for place in places if channel.find(*place) is None}
        if new and members + len(places) + len(new) > most:
            raise RelayError(91003, f"Unable to enter member to presence channel; maximum number of {most} members exceeded")

    def sent(
        self, ticket: int, partition: int, key: bytes, connection: str, items: list[PresenceItem], publish_id: str, now: float
    ) -> None:
        """The append has been handed over."""
        for index, item in enumerate(items):
            if item.action == PresenceAction.LEAVE:
                self._note_left(key, connection, item.client_id, item.id or f"{publish_id}:{index}", now)
                self._leaving.setdefault(ticket, []).append((key, connection, item.client_id))
        entering = [item for item in items if item.action != PresenceAction.LEAVE]
        if entering:
            arrival = _Arrival(partition, key, connection, [item.client_id for item in entering], sum(map(_size, entering)))
            self._arrivals[ticket] = arrival
            coming = self._by_key.setdefault(key, _Coming())
            coming.arrivals[ticket] = arrival
            coming.clients += len(arrival.clients)
            coming.size += arrival.size
            self._by_connection.setdefault(connection, {})[ticket] = arrival

    def reported(self, ticket: int, offset: int | None) -> None:
        """`offset` None: it was not taken, or its fate is unknown."""
        for place in self._leaving.pop(ticket, ()):
            if offset is None:  # should it be in the log after all, it is noted when it is read
                self._left.pop(place, None)
        arrival = self._arrivals.get(ticket)
        if arrival is not None:
            arrival.offset = offset
            if offset is None or offset < self._tails.tail_position(arrival.partition):
                self._forget(ticket, arrival)

    def coming(self, connection: str) -> Iterator[tuple[int, bytes, list[str]]]:
        """(partition, log key, clientIds) of what it has entered and the tail has not read yet, as far as it was appended here."""
        for ticket, arrival in list(self._by_connection.get(connection, {}).items()):
            if arrival.offset is not None and arrival.offset < self._tails.tail_position(arrival.partition):
                self._forget(ticket, arrival)
            else:
                yield arrival.partition, arrival.key, arrival.clients

    def sweep(self, now: float) -> None:
        late = now - self._limits.connection_state_ttl_s - self._limits.presence_grace_max_s
        while self._expired and next(iter(self._expired.values()))[1] <= late:
            self._expired.popitem(last=False)
        while self._left and next(iter(self._left.values()))[1] <= late:
            self._left.popitem(last=False)
        for key in list(self._by_key):
            self._forget_read(key)

    def _forget_read(self, key: bytes) -> None:
        coming = self._by_key.get(key)
        for ticket, arrival in [] if coming is None else list(coming.arrivals.items()):
            if arrival.offset is not None and arrival.offset < self._tails.tail_position(arrival.partition):
                self._forget(ticket, arrival)

    def _forget(self, ticket: int, arrival: _Arrival) -> None:
        del self._arrivals[ticket]
        of_key, of_connection = self._by_key[arrival.key], self._by_connection[arrival.connection]
        del of_key.arrivals[ticket], of_connection[ticket]
        of_key.clients -= len(arrival.clients)
        of_key.size -= arrival.size
        if not of_key.arrivals:
            del self._by_key[arrival.key]
        if not of_connection:
            del self._by_connection[arrival.connection]


_NOTHING = _Coming()


def _size(item: PresenceItem) -> int:
    """What the member will count in its set."""
    return 64 + len(item.client_id) + len(item.data or "")


def _item(member: Member) -> MemberItem:
    state = member.state
    return MemberItem(
        number=member.number,
        connection_id=member.holder.connection,
        client_id=member.client_id,
        id=state.id,
        timestamp=state.timestamp,
        offset=state.offset,
        data=state.data,
        encoding=state.encoding,
        extras=state.extras,
    )


def _shown(record: LogRecord, changes: list[Change]) -> LogRecord:
    """The record as it is shown: mostly as it is."""
    body = decode_body(record.value)
    if len(changes) == len(body.presence) and all(
        item.action == change.action and (item.data is None) == (change.state.data is None)
        for item, change in zip(body.presence, changes, strict=True)
    ):
        return record
    told = {item.client_id for item in body.presence if item.data is not None}
    items, filled = [], 0
    for action, _, client_id, state in changes:
        data, encoding = state.data, state.encoding
        if client_id not in told:
            filled += len(data or "")
            if filled > _FILLED_BYTES:
                data = encoding = None
        items.append(PresenceItem(action=action, client_id=client_id, id=state.id, data=data, encoding=encoding, extras=state.extras))
    return msgspec.structs.replace(record, value=_encode_body(msgspec.structs.replace(body, presence=items)))
