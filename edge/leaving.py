"""Members that leave because their attachment ends: those that one attachment has entered, and the append that makes them leave.

A client that detaches does not wait for its members to have left, so the append has an owner of its own. It outlives links: it is sent
until a core has answered, under one id, so that it counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from edge.turn import Timed
from relay.model.message import PresenceAction, PresenceItem

if TYPE_CHECKING:
    from edge.hub import Hub, PendingAppend
    from edge.links import Session
    from relay.model.errors import ErrorInfo

_AGAIN_S = 1.0


class Entered:
    """The members that one attachment has entered or tried to, by clientId: how many of these attempts were not refused."""

    __slots__ = ("_attempts",)

    def __init__(self) -> None:
        self._attempts: dict[str, int] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._attempts)

    def asked(self, items: Iterable[PresenceItem]) -> None:
        for item in items:
            if item.action != PresenceAction.LEAVE:
                self._attempts[item.client_id] = self._attempts.get(item.client_id, 0) + 1

    def refused(self, items: Iterable[PresenceItem]) -> None:
        for item in items:
            if item.action != PresenceAction.LEAVE and item.client_id in self._attempts:
                self._attempts[item.client_id] -= 1
                if not self._attempts[item.client_id]:
                    del self._attempts[item.client_id]

    def appended(self, items: Iterable[PresenceItem]) -> list[tuple[int, PresenceItem]]:
        """The items, with their places, that have changed something: all but leaves of those who were no members."""
        changed = []
        for index, item in enumerate(items):
            if item.action != PresenceAction.LEAVE:
                self._attempts.setdefault(item.client_id, 1)  # it was asked for before a leave that came between
            elif not self._attempts.pop(item.client_id, 0):
                continue
            changed.append((index, item))
        return changed

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._attempts


def leave(hub: Hub, session: Session, channel: str, client_ids: Iterable[str], new_id: Callable[[], str]) -> None:
    """Make these members of a connection leave a channel. `new_id` gives ids that nobody else has."""
    limits = hub.turn.limits
    items: list[PresenceItem] = []
    size = 0
    for client_id in client_ids:
        items.append(PresenceItem(PresenceAction.LEAVE, client_id))
        size += len(client_id.encode())
        if len(items) >= limits.leave_members or size >= limits.max_message_bytes // 2:
            Leaving(hub, session, channel, items, f"s:{new_id()}:0").send()
            items, size = [], 0
    if items:
        Leaving(hub, session, channel, items, f"s:{new_id()}:0").send()


class Leaving(Timed):
    """One append, until a core has answered it."""

    __slots__ = ("_channel", "_fresh", "_hub", "_id", "_items", "_session", "_until")

    def __init__(self, hub: Hub, session: Session, channel: str, items: list[PresenceItem], publish_id: str) -> None:
        self._hub = hub
        self._session = session
        self._channel = channel
        self._items = items
        self._id = publish_id
        self._fresh = True
        self._until = hub.turn.now + hub.turn.limits.leave_wait_s

    def send(self) -> None:
        size = sum(64 + len(item.client_id) for item in self._items)
        self._hub.append(self._session, self._channel, self._id, [], self, size, fresh=self._fresh, ephemeral=False, presence=self._items)
        self._fresh = False

    def appended(self, append: PendingAppend, serial: str) -> None:
        """They have left."""

    def append_refused(self, append: PendingAppend, error: ErrorInfo) -> None:
        if error.status_code >= 500 or error.status_code == 429:
            self._again(error.code)
        else:
            # The connection is over, for one: then its core sees to its members.
            self._hub.turn.note("members could not be made to leave", code=error.code, members=len(self._items))

    def append_unknown(self, append: PendingAppend) -> None:
        self._again(0)

    def _again(self, code: int) -> None:
        turn = self._hub.turn
        if turn.now + _AGAIN_S < self._until:
            turn.wheel.schedule(self, turn.now + _AGAIN_S)
        else:
            turn.note("members could not be made to leave", code=code, members=len(self._items))

    def wake(self) -> None:
        """Once more, but not for those whom the connection has entered again since."""
        connection = self._hub.sessions.get(self._session.id)
        for attachment in (connection.attachments or {}).values() if connection is not None else ():
            entered = attachment.entered
            if entered is not None and attachment.channel.app == self._session.app and attachment.channel.name == self._channel:
                self._items = [item for item in self._items if item.client_id not in entered]
        if self._items:
            self.send()
