"""What an edge counts of each app, and how the cores hear of it. Source: Ably protocol docs, 8.5.

What is counted is added to the numbers of the app (`relay.model.stats.Usage`) where it happens: messages and presence as they go out, API
requests as they are answered. Every few seconds the running intervals go to some core, in full, so that a report that is lost with its
link is made up for by the next one. What comes in is counted by the cores, who know what is a repetition.
"""

from __future__ import annotations

from edge.links import Links, Session
from edge.turn import Timed, Turn
from relay.link.frames import Counted
from relay.model.stats import FAILED, MINUTE_MS, REFUSED, SUCCEEDED, Usage


class Usages(Timed):
    """Of one edge process."""

    __slots__ = ("_apps", "_links", "_sessions", "_turn", "_uncounted")

    def __init__(self, turn: Turn, links: Links) -> None:
        self._turn = turn
        self._links = links
        self._apps: dict[str, Usage] = {}
        self._sessions: dict[str, Session] = {}
        """The latest of each app: in its name the core is told."""
        self._uncounted = Usage(0)

    def of(self, app: str) -> Usage:
        """Where to count for an app."""
        usage = self._apps.get(app)
        if usage is None:
            turn = self._turn
            if len(self._apps) >= turn.limits.stats_apps:
                return self._uncounted
            usage = self._apps[app] = Usage(turn.now_ms)
            if len(self._apps) == 1:
                self._schedule()
        return usage

    def admitted(self, session: Session) -> None:
        """It acts through this edge."""
        if session.app in self._apps or len(self._apps) < self._turn.limits.stats_apps:
            self._sessions[session.app] = session

    def answered(self, app: str, status: int) -> None:
        """A request of that app's was."""
        self.of(app).counts[SUCCEEDED if status < 400 else REFUSED if status < 500 else FAILED] += 1

    def _schedule(self) -> None:
        """At the next end of a minute, if that is earlier: what comes later belongs to the next."""
        turn = self._turn
        left_s = (MINUTE_MS - turn.now_ms % MINUTE_MS) / 1000
        turn.wheel.schedule(self, turn.now + min(turn.limits.stats_interval_s, left_s))

    def wake(self) -> None:
        turn, link = self._turn, self._links.any()
        for app, usage in self._apps.items():
            usage.turn(turn.now_ms)
            session = self._sessions.get(app)
            if link is None or session is None:
                continue
            report = usage.report()
            if report is not None:
                self._links.present(session, link.id)
                turn.send(link.id, Counted(app, session.id, *report))
        self._schedule()
