"""Presence of one channel on this edge: the mirror of its set, who is told of changes, and who waits for a SYNC.

A SYNC begins once the mirror is complete; `HAS_PRESENCE` is told before that, since the client only waits for it. Whoever gets SYNC pages
gets the records as well: what changes meanwhile reaches it either way. Source: specification RTP17a, RTP18, RTP19; Ably protocol docs, 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.effects import Broadcast
from edge.groups import Groups
from edge.members import Mirror, Page
from edge.turn import Timed
from relay.link import calls
from relay.link.frames import Fetch, Record
from relay.link.frames import Page as Answer
from relay.model.errors import ErrorInfo
from relay.model.serials import Serial
from relay.model.stats import OUT_REALTIME_PRESENCE

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.hub import Channel

_AGAIN_S = 1.0
"""Between two attempts to load a set that the core refused to show."""
_FULL = ErrorInfo.of(50004, "this server holds as many presence sets as it can; try again")
_EVICTED = ErrorInfo.of(91007, "the members of this connection have left the channel; enter again", 500)


class Presence(Timed):
    __slots__ = ("_after", "_counted", "_request", "awaiting", "channel", "groups", "idle", "mirror", "overfull")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.mirror = Mirror(channel.hub.turn.limits)
        self.groups = Groups()
        self.awaiting: dict[Attachment, None] = {}
        """Those who are to get a SYNC once the mirror is complete."""
        self.overfull = False
        """The set was given up, since this edge holds too much."""
        self.idle = False
        """The set is not known: all who read the channel here read it through filters, and are not to see it."""
        self._request = 0
        """The unanswered question for a page; 0: none."""
        self._after = 0
        """The number of the last member loaded."""
        self._counted = 0
        """What of the hub's `presence_bytes` is this channel's."""

    @property
    def anyone(self) -> bool:
        """Whether there are members, as far as can be told: then a SYNC tells."""
        return self.mirror.count > 0 or not self.mirror.complete

    def members_of(self, connection: str) -> list[str]:
        """The clientIds of the members that a connection has."""
        return list(self.mirror.holders.get(connection, ()))

    # --- who is told -------------------------------------------------------------------------------------------------------------------

    def joined(self, attachment: Attachment) -> None:
        """It gets what comes from now on, if its modes permit; and a SYNC, if it has been promised one."""
        if self.idle and attachment.filter is None:
            self.idle = False
            self._load()
        if attachment.receives_presence:
            self.groups.enter(attachment, self.channel.hub.turn.number)
            if attachment.sync_due:
                self.sync(attachment)

    def left(self, attachment: Attachment) -> None:
        """It gets nothing more. If it comes back (with other modes), its SYNC begins anew."""
        self.groups.leave(attachment, self.channel.hub.turn.number)
        waited = attachment in self.awaiting
        self.awaiting.pop(attachment, None)
        if attachment.connection.stop_sync(attachment) or waited:
            attachment.sync_due = True

    def due(self, attachment: Attachment) -> None:
        """A SYNC is promised: now, or once it gets what comes live."""
        if not attachment.receives_presence:
            return
        if attachment in self.channel.readers:
            self.sync(attachment)
        else:
            attachment.sync_due = True

    def sync(self, attachment: Attachment) -> None:
        attachment.sync_due = False
        if self.overfull:
            # It is promised one, and none will come.
            attachment.connection.channel_dropped(attachment, _FULL)
        elif self.mirror.complete:
            attachment.connection.start_sync(attachment)
        else:
            attachment.connection.stop_sync(attachment)
            self.awaiting[attachment] = None

    def sync_frame(self, attachment: Attachment, sync_id: str, page: Page | None, *, last: bool) -> bytes:
        """One SYNC message. Its array is encoded once for each format, and the whole for all who began their SYNC together."""
        wire = attachment.wire
        serial = f"{sync_id}:" if last or page is None else f"{sync_id}:{page.number}"
        if page is None:
            return wire.sync(attachment.text, serial, wire.members(()))
        made = page.frames.get(wire.msgpack)
        if made is not None and made[0] == attachment.text and made[1] == serial:
            return made[2]
        array = page.arrays.get(wire.msgpack)
        if array is None:
            array = page.arrays[wire.msgpack] = wire.members(page.members)
        frame = wire.sync(attachment.text, serial, array)
        page.frames[wire.msgpack] = (attachment.text, serial, frame)
        return frame

    # --- loading -----------------------------------------------------------------------------------------------------------------------

    def opened(self, members: int, *, anew: bool) -> None:
        """The channel is open: `members` at the position up to which it has been sent. `anew`: with a gap, or for the first time."""
        if anew:
            self.mirror.clear()
            self.overfull = self.idle = False
            self._account()
            if members:
                self.mirror.load()
        if not (self.mirror.complete or self.overfull or self.idle):
            self._load()
        if anew:
            for attachment in list(self.channel.readers):
                if attachment.sync_due and attachment.receives_presence:
                    self.sync(attachment)

    def _load(self) -> None:
        self._after = 0
        self.mirror.load()
        self._ask()

    def _ask(self) -> None:
        """For the next page, in the name of whoever may read the channel."""
        channel, turn = self.channel, self.channel.hub.turn
        witness, link = channel.witness, channel.link
        if witness is not None and witness.filter is not None:
            witness = channel.plain_reader()
            if witness is None:
                self.idle = True
                self.mirror.clear()
                self.mirror.load()
                self._account()
                return
        if witness is None or link is None:
            turn.wheel.schedule(self, turn.now + _AGAIN_S)
            return
        self._request = turn.request()
        channel.hub.refs[self._request] = channel
        channel.hub.links.present_for_call(witness.session, link)
        body = calls.encode(calls.Members(channel=channel.name, limit=turn.limits.members_page, after=self._after))
        turn.send(link, Fetch(self._request, witness.session.id, calls.MEMBERS, body))
        turn.wheel.schedule(self, turn.now + turn.limits.members_wait_s)

    def page(self, frame: Answer) -> None:
        """An answer to `Fetch`: of members, if it is one that was asked for here."""
        if not self._answered(frame.req):
            return
        turn = self.channel.hub.turn
        page = calls.decode_members(frame.body) if frame.status == 200 else None
        if page is None or (page.after is not None and page.after <= self._after):
            turn.note("malformed page of members from the core", status=frame.status)
            turn.wheel.schedule(self, turn.now + _AGAIN_S)
            return
        for item in page.members:
            self.mirror.take(item)
        if not self._account():
            return
        if page.after is not None:
            self._after = page.after
            self._ask()
            return
        self.mirror.loaded()
        turn.wheel.cancel(self)
        awaiting, self.awaiting = self.awaiting, {}
        for attachment in awaiting:
            attachment.connection.start_sync(attachment)

    def refused(self, request: int) -> bool:
        """Whether `request` was one for members. It is tried again."""
        if not self._answered(request):
            return False
        turn = self.channel.hub.turn
        turn.wheel.schedule(self, turn.now + _AGAIN_S)
        return True

    def _answered(self, request: int) -> bool:
        if not self._request or request != self._request:
            return False
        self.channel.hub.refs.pop(request, None)
        self._request = 0
        return True

    def wake(self) -> None:
        """A page has not come in time, or the time has come to ask again."""
        self._answered(self._request)
        if not (self.mirror.complete or self.overfull or self.idle) and self.channel.ref:
            self._load()

    def interrupted(self) -> None:
        """The channel is not open any more, or not on this link. What was loaded is kept: records go on where they ended."""
        self._answered(self._request)
        self.channel.hub.turn.wheel.cancel(self)

    def shut(self) -> None:
        """Nobody reads the channel."""
        self.interrupted()
        self.mirror.clear()
        self.awaiting.clear()
        self._account()

    # --- room --------------------------------------------------------------------------------------------------------------------------

    def _account(self) -> bool:
        """False when this edge holds too much, and this set has been given up for it."""
        hub = self.channel.hub
        hub.presence_bytes += self.mirror.size - self._counted
        self._counted = self.mirror.size
        if hub.presence_bytes <= hub.turn.limits.presence_bytes:
            return True
        hub.turn.note("gave up a presence set", members=self.mirror.count, bytes=self.mirror.size)
        self.overfull = True
        self.interrupted()
        self.mirror.clear()
        self.mirror.load()
        hub.presence_bytes -= self._counted
        self._counted = 0
        for attachment in [each for each in self.channel.readers if each.receives_presence]:
            attachment.connection.channel_dropped(attachment, _FULL)
        return False

    def turns_away(self, attachment: Attachment) -> bool:
        """Whether there is no room for the set that it wants to know. If there is again, the set is loaded."""
        if not self.overfull or not attachment.receives_presence:
            return False
        hub = self.channel.hub
        if hub.presence_bytes * 10 > hub.turn.limits.presence_bytes * 9:
            attachment.failed(_FULL)
            return True
        self.overfull = False
        self._load()
        return False

    # --- records -----------------------------------------------------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        """The next PRESENCE record of the channel."""
        channel = self.channel
        body = None if self.overfull or self.idle else channel.decoded(record)
        if body is None or body.connection_id is None:
            return
        shown = self.mirror.apply(body, record.offset)
        if not shown or not self._account():
            return
        turn = channel.hub.turn
        connection = channel.hub.sessions.get(body.connection_id)
        attachments = (connection.attachments or {}).values() if connection is not None else ()
        own = [each for each in attachments if each.channel is channel and each in channel.readers and each.filter is None]
        if body.cause is not None and connection is not None:
            # It was believed to be gone, and it is here. Told before the others are, it does not see its own members leave.
            for attachment in own:
                connection.channel_dropped(attachment, _EVICTED)
            own.clear()
        serial = Serial(channel.stream, channel.partition, record.offset).text
        sent = 0
        for group in self.groups.values():
            group.named_at = turn.number
            sent += len(group.clients)
            turn.effects.append(Broadcast(group.clients, group.wire.presence(body, shown, group.text, serial)))
        for attachment in own:
            if not attachment.receives_presence:
                # Its own members it is told of whatever its modes are.
                turn.write(attachment.client, attachment.wire.presence(body, shown, attachment.text, serial))
                sent += 1
        turn.stats.deliveries += sent
        channel.usage.counts[OUT_REALTIME_PRESENCE] += sent * len(shown)
        channel.usage.counts[OUT_REALTIME_PRESENCE + 1] += sent * len(record.body)
