"""Who may act through which link: the grants that edges hold, as this core has admitted or been shown them.

A grant counts on the link on which it was admitted or presented, until it expires, its session departs, or a later incarnation of the
session turns up: on any link of this core, or in `tidegate.sessions`.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from core.channel import OpenChannel
from relay.model.capability import Bars, Capability
from relay.model.errors import ErrorInfo, RelayError
from relay.model.grants import Grant, GrantRefused, open_grant
from relay.model.keyring import Keyring
from relay.model.limits import PROTOCOL, CoreLimits


class Session:
    """One connection, or one REST request, with its rights on one link."""

    __slots__ = ("capability", "ends", "grant", "link", "stalled", "witnessed")

    def __init__(self, link: int, grant: Grant, bars: Bars) -> None:
        self.link = link
        self.witnessed: set[OpenChannel] = set()
        """The open channels for which this session's right to read stands surety."""
        self.stalled = False
        """A publish of this connection was not taken, or has an unknown fate: nothing that it sent later may overtake it. Its client is on
        its way out, and sends again what it was not told of under its next incarnation."""
        self.grant = grant
        self.take(grant, bars)

    def take(self, grant: Grant, bars: Bars) -> None:
        """`bars`: the namespaces that are closed to it."""
        if grant.incarnation > self.grant.incarnation:
            self.stalled = False
        self.grant = grant
        self.capability = Capability.parse(grant.capability).barring(bars)
        expires = grant.expires if grant.token_expires is None else min(grant.expires, grant.token_expires)
        self.ends = expires + PROTOCOL.expiry_leeway_ms


class Denied(RelayError):  # noqa: N818 - it says what happened
    """A refusal whose counter is not named by its code. `reason` is the counter's label."""

    def __init__(self, reason: str, code: int, message: str) -> None:
        super().__init__(code, message)
        self.reason = reason


class Link:
    """An edge process, as its certificate and its hello name it."""

    __slots__ = ("boot", "identity", "node", "sessions", "site")

    def __init__(self, identity: str, site: str, node: str, boot: str) -> None:
        self.identity = identity
        self.site = site
        self.node = node
        self.boot = boot
        self.sessions: dict[str, Session] = {}


class Roster:
    def __init__(
        self,
        keyring: Keyring,
        limits: CoreLimits,
        counters: Counter[str],
        known_floor: Callable[[str], int],
        bars: Callable[[Grant], Bars],
    ) -> None:
        """`known_floor`: the lowest incarnation of a session that may still count, as far as is known of other cores. `bars`: the
        namespaces that are closed to whoever has such a grant."""
        self._bars = bars
        self._keyring = keyring
        self._limits = limits
        self._counters = counters
        self._known_floor = known_floor
        self.links: dict[int, Link] = {}
        self._floor: OrderedDict[str, int] = OrderedDict()
        """Lowest incarnation that still counts, of sessions that departed or were superseded: bounded, the oldest goes first."""
        self._ends: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        return sum(len(link.sessions) for link in self.links.values())

    def link_up(self, link: int, identity: str, site: str, node: str, boot: str) -> None:
        self.links[link] = Link(identity, site, node, boot)

    def link_lost(self, link: int) -> None:
        self.links.pop(link, None)

    def full(self, link: int) -> bool:
        return len(self.links[link].sessions) >= self._limits.link_sessions

    def admit(self, link: int, grant: Grant) -> Session:
        """Take in a grant that this core has just made, or that was presented and holds."""
        sessions = self.links[link].sessions
        session = sessions.get(grant.session)
        if session is None:
            session = sessions[grant.session] = Session(link, grant, self._bars(grant))
        else:
            session.take(grant, self._bars(grant))
        heapq.heappush(self._ends, (session.ends, link, grant.session))
        if len(self._ends) > 2 * len(self) + 1_000:
            # Mostly ends that renewals have put off, or of sessions that departed.
            self._ends = [(one.ends, one.link, name) for each in self.links.values() for name, one in each.sessions.items()]
            heapq.heapify(self._ends)
        if grant.incarnation:
            self._raise_floor(grant.session, grant.incarnation)
        return session

    def present(self, link: int, data: bytes, now_ms: int) -> Session | None:
        """An edge shows a grant. One that does not hold is counted under its reason and left out."""
        edge = self.links[link]
        try:
            grant = open_grant(self._keyring, data, edge=edge.identity, boot=edge.boot, now_ms=now_ms)
        except GrantRefused as refused:
            self._counters[f"grant.{refused.reason}"] += 1
            return None
        except RelayError:
            self._counters["grant.malformed"] += 1
            return None
        known = edge.sessions.get(grant.session)
        if grant.incarnation < max(self._floor.get(grant.session, 0), self._known_floor(grant.session)):
            self._counters["grant.old_incarnation"] += 1
            return None
        if known is None and self.full(link):
            self._counters["grant.too_many"] += 1
            return None
        if known is not None and grant.incarnation <= known.grant.incarnation and grant.expires < known.grant.expires:
            return known  # a straggler: what is known is newer
        return self.admit(link, grant)

    def get(self, link: int, session_id: str, now_ms: int) -> Session:
        """The session, if it may act on this link now. Raises: Denied: no_grant, expired, old_incarnation."""
        session = self.links[link].sessions.get(session_id)
        if session is None:
            raise Denied("no_grant", 40101, "No grant for this session")
        if now_ms >= session.ends:
            raise Denied("expired", 40142, "Token expired")
        if session.grant.incarnation < self._floor.get(session_id, 0):
            raise Denied("old_incarnation", 80016, "The connection was resumed elsewhere")
        return session

    def find(self, session_id: str) -> Session | None:
        """A session on any link of this core, whether or not its grant has expired."""
        for link in self.links.values():
            if (session := link.sessions.get(session_id)) is not None:
                return session
        return None

    def depart(self, link: int, session_id: str, incarnation: int | None = None) -> Session | None:
        """The session is over: its grants, up to this incarnation, count nowhere on this core any more. None if it is not known, or only
        under a later incarnation: `Depart` and the answer to a resume travel on different lanes."""
        sessions = self.links[link].sessions
        session = sessions.get(session_id)
        if session is None or (incarnation is not None and session.grant.incarnation > incarnation):
            return None
        del sessions[session_id]
        if session.grant.realtime:
            self._raise_floor(session_id, session.grant.incarnation + 1)
        return session

    def supersede(self, session_id: str, floor: int) -> Iterator[Session]:
        """Grants of incarnations below `floor` are void. Forget the sessions that had them, and name them."""
        self._raise_floor(session_id, floor)
        for link in self.links.values():
            session = link.sessions.get(session_id)
            if session is not None and session.grant.incarnation < floor:
                del link.sessions[session_id]
                yield session

    def expire(self, now_ms: int) -> Iterator[Session]:
        """Forget the sessions whose grants have ended, and name them."""
        while self._ends and self._ends[0][0] <= now_ms:
            _, link_id, session_id = heapq.heappop(self._ends)
            link = self.links.get(link_id)
            session = None if link is None else link.sessions.get(session_id)
            if link is not None and session is not None and session.ends <= now_ms:
                del link.sessions[session_id]
                yield session

    def of_app(self, app: str) -> Iterator[Session]:
        """Its sessions on all links. O(sessions)."""
        return (session for link in self.links.values() for session in list(link.sessions.values()) if session.grant.app == app)

    def revoke(self, app: str, verdict: Callable[[Session], ErrorInfo | None]) -> Iterator[tuple[Session, ErrorInfo]]:
        """Forget the sessions of an app that `verdict` finds to have lost their rights, and name them with why. O(sessions)."""
        for link in self.links.values():
            for session_id, session in [(name, one) for name, one in link.sessions.items() if one.grant.app == app]:
                error = verdict(session)
                if error is None:
                    continue
                del link.sessions[session_id]
                # A resume has a higher incarnation: who may come back under other rights does.
                self._raise_floor(session_id, session.grant.incarnation + 1)
                yield session, error

    def _raise_floor(self, session_id: str, incarnation: int) -> None:
        floor = self._floor
        if floor.get(session_id, 0) >= incarnation:
            return
        floor[session_id] = incarnation
        floor.move_to_end(session_id)
        if len(floor) > self._limits.departed:
            floor.popitem(last=False)
