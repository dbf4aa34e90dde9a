"""The edge as a pure machine: one event in, its effects out. No socket, no clock, no event loop.

Read `events.py` and `effects.py` first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.connection import Connection
from edge.desk import Desk, Policy
from edge.effects import Effect
from edge.events import (
    ClientFrame,
    ClientLost,
    ClientOpened,
    ClientPong,
    Drained,
    Event,
    LinkFrame,
    LinkFrames,
    LinkLost,
    LinkUp,
    RestAsked,
    RestGone,
    Stopping,
    Tick,
)
from edge.rest import Rest
from edge.turn import Stats
from relay.link.frames import (
    Admitted,
    Appended,
    Drain,
    Lost,
    Occupancy,
    Opened,
    Page,
    Positions,
    Reached,
    Record,
    Refused,
    Revoke,
    Superseded,
    ToEdge,
    Unknown,
)
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits


class EdgeNode:
    """One edge process. `boot` is random per process; `random` answers as many random bytes as asked.

    `handle` never raises for anything that a client or a core sends. Call it with `Tick` at `next_deadline()`.
    """

    def __init__(self, policy: Policy, limits: EdgeLimits, boot: str, random: Callable[[int], bytes]) -> None:
        self.boot = boot
        self._desk = Desk(policy, limits, random)
        self._rest = Rest(self._desk)

    def handle(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        """`now` is monotonic time in seconds, `now_ms` the wall clock in milliseconds."""
        desk = self._desk
        turn = desk.turn
        turn.number += 1
        turn.now, turn.now_ms = now, now_ms
        effects: list[Effect] = []
        turn.effects = effects
        match event:
            case LinkFrames(link, frames):
                self._frames(link, frames)
            case LinkFrame(link, frame):
                self._frames(link, (frame,))
            case ClientFrame(client, data):
                connection = desk.connections.get(client)
                if connection is not None:
                    connection.receive(data)
            case ClientPong(client):
                connection = desk.connections.get(client)
                if connection is not None:
                    connection.heard_at = now
            case Drained(client):
                connection = desk.connections.get(client)
                if connection is not None:
                    connection.drained()
            case Tick():
                pass
            case ClientOpened(client):
                connection = desk.connections[client] = Connection(desk, event)
                connection.open(event)
            case ClientLost(client, why):
                connection = desk.connections.pop(client, None)
                if connection is not None:
                    connection.lost(why)
            case RestAsked():
                self._rest.asked(event)
            case RestGone(call):
                self._rest.gone(call)
            case LinkUp(link, welcome):
                up = desk.links.up(link, welcome)
                turn.note("link up", core=up.core, skew_ms=welcome.now - now_ms)
                desk.hub.link_up()
                desk.occupancies.link_up()
                desk.admissions.pump()
            case LinkLost(link, why):
                self._link_lost(link, why)
            case Stopping():
                self._stop()
        for timed in turn.wheel.due(now):
            timed.wake()
        if desk.to_flush:
            ready, desk.to_flush = desk.to_flush, {}
            for connection in ready:
                connection.flush()
        return effects

    def next_deadline(self) -> float | None:
        """When to call `handle` with `Tick`, on the clock of `now`; None while nothing is pending."""
        return self._desk.turn.wheel.next_at()

    # --- the core ------------------------------------------------------------------------------------------------------------------------

    def _frames(self, link: int, frames: Sequence[ToEdge]) -> None:
        if link not in self._desk.links.by_id:
            return
        hub = self._desk.hub
        at, end = 0, len(frames)
        while at < end:
            frame = frames[at]
            at += 1
            if type(frame) is not Record:
                self._frame(link, frame)
                continue
            run = [frame]
            while at < end:
                following = frames[at]
                if type(following) is not Record or following.ref != frame.ref:
                    break
                run.append(following)
                at += 1
            channel = hub.refs.get(frame.ref)
            if channel is not None and channel.link == link:
                channel.records(frame.ref, run)

    def _frame(self, link: int, frame: ToEdge) -> None:
        desk = self._desk
        hub = desk.hub
        match frame:
            case Appended(req, serial):
                hub.appended(link, req, serial)
            case Refused(req, error):
                self._refused(link, req, error)
            case Unknown(req):
                hub.append_unknown(link, req)
            case Admitted(req):
                self._admitted(link, req, frame)
            case Opened(req):
                channel = hub.refs.get(req)
                if channel is not None and channel.link == link:
                    channel.opened(frame)
            case Lost(ref):
                channel = hub.refs.get(ref)
                if channel is not None and channel.link == link:
                    channel.lost(frame)
            case Page(req):
                channel = hub.refs.get(req)
                if channel is None:
                    self._rest.page(frame)
                elif channel.link == link:
                    channel.page(frame)
            case Reached(req):
                channel = hub.refs.get(req)
                if channel is not None and channel.link == link:
                    channel.reached(frame)
            case Positions():
                hub.positions(link, frame)
            case Occupancy(ref):
                channel = hub.refs.get(ref)
                if channel is not None and channel.link == link:
                    desk.occupancies.told(channel, frame)
            case Revoke(session, error, at):
                connection = desk.sessions.get(session)
                if at:
                    if connection is not None:
                        connection.will_be_revoked()
                    return
                if connection is not None:
                    connection.revoked(error)
                self._rest.revoked(session)
            case Superseded(session, incarnation):
                connection = desk.sessions.get(session)
                if connection is not None:
                    connection.superseded_by(incarnation)
            case Drain():
                up = desk.links.by_id[link]
                up.draining = True
                desk.turn.note("core drains", core=up.core)
                hub.drain(link)
            case _:
                pass  # Credit and Welcome are the link's own business

    def _admitted(self, link: int, req: int, frame: Admitted) -> None:
        renewal = self._desk.renewals.get(req)
        if renewal is None:
            self._desk.admissions.admitted(frame, link)
        elif renewal[0] == link:
            del self._desk.renewals[req]
            renewal[1].renewed(frame, link)

    def _refused(self, link: int, req: int, error: ErrorInfo) -> None:
        desk = self._desk
        if desk.hub.append_refused(link, req, error) or desk.admissions.refused(req, error, link):
            return
        channel = desk.hub.refs.get(req)
        if channel is not None:
            if channel.link == link:
                channel.refused(req, error)
        elif req in desk.renewals:
            _, connection = desk.renewals.pop(req)
            connection.renewal_refused(error)
        else:
            self._rest.fetch_refused(req, error)

    def _link_lost(self, link: int, why: str) -> None:
        desk = self._desk
        up = desk.links.by_id.get(link)
        if up is None or not desk.links.lost(link):
            return
        desk.turn.note("link lost", core=up.core, why=why)
        desk.hub.link_lost(link)
        desk.occupancies.link_lost(link)
        desk.admissions.lost(link)
        for req in [req for req, (on, _) in desk.renewals.items() if on == link]:
            _, connection = desk.renewals.pop(req)
            connection.renewal_lost()
        self._rest.link_lost(link)

    def _stop(self) -> None:
        self._desk.stopping = True
        for connection in list(self._desk.connections.values()):
            connection.disconnect(ErrorInfo.of(50320, "this server is stopping; connect to another one"))

    # --- for the metrics page ------------------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        return self._desk.turn.stats

    @property
    def ready(self) -> bool:
        """Whether at least one core is connected."""
        return bool(self._desk.links.by_id) and not self._desk.stopping

    @property
    def links(self) -> int:
        return len(self._desk.links.by_id)

    @property
    def clients(self) -> int:
        return len(self._desk.connections)

    @property
    def channels(self) -> int:
        return len(self._desk.hub.channels)

    @property
    def attachments(self) -> int:
        return sum(len(connection.attachments or ()) for connection in self._desk.connections.values())

    @property
    def unanswered(self) -> int:
        """Publishes without answer."""
        return len(self._desk.hub.appends)

    @property
    def filters(self) -> int:
        """Distinct filters of derived channels, channel by channel."""
        return len(self._desk.hub.filters)

    @property
    def presence_bytes(self) -> int:
        """The presence sets of all open channels."""
        return self._desk.hub.presence_bytes

    @property
    def admissions(self) -> int:
        """Credentials that wait for a core."""
        return self._desk.admissions.outstanding + self._desk.admissions.waiting
