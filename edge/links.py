"""The links that are up, which of them serves a channel, and whose grants each of them has seen."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

from edge.turn import Turn
from relay.link.frames import Admitted, Depart, Lane, Present, Stream, Welcome
from relay.model.capability import Capability
from relay.model.channel import partition_of

_TOLD_AGAIN_S = 10.0
"""How long the end of a connection may be in doubt: the link that carried it may have been dead, and is found to be within seconds."""


class Session:
    """Whoever acts through this edge, with the signed grant that says as whom. `presented` are the links that have seen the grant."""

    __slots__ = ("app", "capability", "client_id", "grant", "grant_expires", "id", "incarnation", "presented", "token_expires")

    def __init__(self, frame: Admitted, link: int) -> None:
        self.id = frame.session
        self.incarnation = frame.incarnation
        self.presented: tuple[int, ...] = ()
        self.take(frame, link)

    def take(self, frame: Admitted, link: int) -> tuple[int, ...]:
        """Rights from a later answer (renewal, reauthentication). Answers the other links, which know only the old grant."""
        self.grant = frame.grant
        self.app = frame.app
        self.client_id = frame.client_id
        self.capability = Capability.parse(frame.capability).barring(frame.bars)
        self.grant_expires = frame.grant_expires
        self.token_expires = frame.token_expires
        others = tuple(other for other in self.presented if other != link)
        self.presented = (link,)
        return others


class Link:
    __slots__ = ("core", "draining", "id", "streams")

    def __init__(self, link: int, welcome: Welcome) -> None:
        self.id = link
        self.core = welcome.core
        self.streams: list[Stream] = welcome.streams
        self.draining = False

    def serves(self, key: bytes) -> bool:
        if not self.streams:
            return False
        stream = self.streams[0]  # one stream for all apps so far; a second one will come with the rule that says which app has which
        low, high = stream.serves
        return low <= partition_of(key, stream.partitions) <= high


class Links:
    __slots__ = ("_departures", "_turn", "by_id", "losses")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._departures: deque[tuple[float, Depart, tuple[int, ...]]] = deque(maxlen=turn.limits.departures)
        """Connections that ended lately: until when to remember them, and the links that were told."""
        self.by_id: dict[int, Link] = {}
        self.losses = 0
        """How many links have been lost: a publish first sent before a loss may have been sent twice."""

    def up(self, link: int, welcome: Welcome) -> Link:
        made = self.by_id[link] = Link(link, welcome)
        self._tell_again()
        return made

    def lost(self, link: int) -> bool:
        if self.by_id.pop(link, None) is None:
            return False
        self.losses += 1
        self._turn.stats.link_losses += 1
        self._tell_again()
        return True

    def pick(self, key: bytes) -> Link | None:
        """The link for a channel: rendezvous hashing over the cores that serve its partition, so that a lost core moves only its share."""
        able = [link for link in self.by_id.values() if not link.draining and link.serves(key)]
        if not able:
            able = [link for link in self.by_id.values() if link.serves(key)]
        if len(able) < 2:
            return able[0] if able else None
        return max(able, key=lambda link: (blake2b(key + b"\0" + link.core.encode(), digest_size=8).digest(), link.id))

    def any(self) -> Link | None:
        """Some link, preferably of a core that stays."""
        return min(self.by_id.values(), key=lambda link: (link.draining, link.id), default=None)

    def depart(self, session: Session, *, closed: bool) -> None:
        """A connection is over: tell the cores that hold its grant, or any."""
        known = [link for link in session.presented if link in self.by_id]
        if not known and (some := self.any()) is not None:
            self.present(session, some.id)
            known = [some.id]
        frame = Depart(session.id, closed, session.incarnation)
        for link in known:
            self._turn.send(link, frame)
        self._departures.append((self._turn.now + _TOLD_AGAIN_S, frame, tuple(known)))

    def _tell_again(self) -> None:
        """Ends of connections that no core, or none that is still linked, has been told of. Whose they were is known without a grant."""
        some = self.any()
        if some is None:
            return
        kept = [each for each in self._departures if not each[2] or each[0] > self._turn.now]
        self._departures.clear()
        for until, frame, told in kept:
            if not any(link in self.by_id for link in told):
                self._turn.send(some.id, frame)
                told = (some.id,)  # noqa: PLW2901 - what is kept says who knows
            self._departures.append((until, frame, told))

    def present(self, session: Session, link: int) -> None:
        """Make sure that the core at `link` knows the session before anything is sent there in its name."""
        if link not in session.presented:
            session.presented = (*(other for other in session.presented if other in self.by_id), link)
            self._turn.send(link, Present(session.grant))

    def keep_known(self, session: Session) -> None:
        """Some core has to know of it: only from such does it hear that its rights are void."""
        if any(link in self.by_id for link in session.presented):
            return
        some = self.any()
        if some is not None:
            self.present(session, some.id)

    def present_anew(self, session: Session, others: tuple[int, ...]) -> None:
        """The grant was replaced: tell the links that act on the old one, which would expire there."""
        for other in others:
            if other in self.by_id:
                self.present(session, other)

    def present_for_call(self, session: Session, link: int) -> None:
        """The same for what travels on `bulk`, where a grant that went out on `live` may not have been seen: order holds within a lane."""
        self.present(session, link)
        self._turn.send(link, Present(session.grant), Lane.BULK)
