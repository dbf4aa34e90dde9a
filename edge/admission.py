"""The queue in front of the cores: credentials wait here, so that the link never carries more than a few at once."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from edge.links import Links, Session
from edge.turn import Turn
from relay.link.frames import Admit, Admitted, Depart
from relay.model.errors import ErrorInfo


class Applicant(Protocol):
    def admitted(self, frame: Admitted, link: int) -> None: ...

    def refused(self, error: ErrorInfo) -> None: ...


class Admission:
    """One credential on its way. `applicant` is None once nobody waits for the answer; `session` is who re-authenticates."""

    __slots__ = ("applicant", "frame", "link", "session")

    def __init__(self, frame: Admit, applicant: Applicant, session: Session | None) -> None:
        self.frame = frame
        self.session = session
        self.applicant: Applicant | None = applicant
        self.link: int | None = None


class Admissions:
    """First come, first served, at most `admits_outstanding` on each link; `admits_waiting` may wait for a place."""

    __slots__ = ("_links", "_outstanding", "_per_link", "_turn", "_waiting")

    def __init__(self, turn: Turn, links: Links) -> None:
        self._turn = turn
        self._links = links
        self._waiting: deque[Admission] = deque()
        self._outstanding: dict[int, Admission] = {}
        self._per_link: dict[int, int] = {}

    def ask(self, frame: Admit, applicant: Applicant, session: Session | None = None) -> Admission | None:
        """None: too many wait already."""
        if len(self._waiting) >= self._turn.limits.admits_waiting:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.applicant is not None)
            if len(self._waiting) >= self._turn.limits.admits_waiting:
                return None
        admission = Admission(frame, applicant, session)
        self._waiting.append(admission)
        self.pump()
        return admission

    def pump(self) -> None:
        """Send what there is room for, to the link with the fewest unanswered."""
        while self._waiting:
            if self._waiting[0].applicant is None:
                self._waiting.popleft()
                continue
            links = self._links.by_id.values()
            link = min(links, key=lambda each: (each.draining, self._per_link.get(each.id, 0), each.id), default=None)
            if link is None or self._per_link.get(link.id, 0) >= self._turn.limits.admits_outstanding:
                return
            admission = self._waiting.popleft()
            admission.link = link.id
            self._per_link[link.id] = self._per_link.get(link.id, 0) + 1
            self._outstanding[admission.frame.req] = admission
            if admission.session is not None:
                self._links.present_for_call(admission.session, link.id)
            self._turn.send(link.id, admission.frame)

    def admitted(self, frame: Admitted, link: int) -> bool:
        """Whether `frame` answers an admission."""
        admission = self._settled(frame.req, link)
        if admission is None:
            return False
        if admission.applicant is not None:
            admission.applicant.admitted(frame, link)
        elif admission.frame.realtime and not admission.frame.session:
            # The client hung up before it was admitted: the connection that the core has made for it is dropped at once.
            self._turn.send(link, Depart(frame.session, closed=False, incarnation=frame.incarnation))
        self.pump()
        return True

    def refused(self, req: int, error: ErrorInfo, link: int) -> bool:
        admission = self._settled(req, link)
        if admission is None:
            return False
        if admission.applicant is not None:
            admission.applicant.refused(error)
        self.pump()
        return True

    def lost(self, link: int) -> None:
        """What the lost link has not answered is asked again elsewhere, before all others."""
        again = [admission for admission in self._outstanding.values() if admission.link == link]
        for admission in reversed(again):
            del self._outstanding[admission.frame.req]
            admission.link = None
            if admission.applicant is not None:
                self._waiting.appendleft(admission)
        self._per_link.pop(link, None)
        self.pump()

    def _settled(self, req: int, link: int) -> Admission | None:
        admission = self._outstanding.get(req)
        if admission is None or admission.link != link:
            return None
        del self._outstanding[req]
        self._per_link[link] -= 1
        return admission

    @property
    def outstanding(self) -> int:
        return len(self._outstanding)

    @property
    def waiting(self) -> int:
        return len(self._waiting)
