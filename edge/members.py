"""The presence set of one channel as this edge knows it: a copy of the core's, kept up to date by the records of the channel.

It is loaded in pages while records arrive. A page may be older than the records applied so far, or newer; offsets tell:

    page item    taken if it is newer than what is known of the member, and than its leave if one was noted while loading
    record       applied if it is newer than what is known; otherwise a page ran ahead of it, and it is only shown

Members lie in pages of their own, in the order in which a SYNC walks them. A change can move a member to another page: whoever is in the
middle of a SYNC is told of the change itself. Source: specification RTP2, RTP17 to RTP19.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Any, NamedTuple

import msgspec

from relay.link.calls import MemberItem
from relay.model.limits import EdgeLimits
from relay.model.message import PresenceAction, RecordBody
from relay.model.presence import is_newer

_LEAVE, _ENTER, _UPDATE = int(PresenceAction.LEAVE), int(PresenceAction.ENTER), int(PresenceAction.UPDATE)
_MEMBER_BYTES = 500
"""What a member takes besides its texts and data."""


class Member:
    """As of its latest enter or update. `data` is str, bytes or None."""

    __slots__ = ("client_id", "connection_id", "data", "encoding", "extras", "id", "offset", "page", "size", "timestamp")

    def __init__(self, connection_id: str, client_id: str) -> None:
        self.connection_id = connection_id
        self.client_id = client_id
        self.page: Page | None = None
        self.size = 0
        self.id = ""
        self.timestamp = self.offset = 0
        self.data: Any = None
        self.encoding: str | None = None
        self.extras: dict[str, Any] | None = None


class Page:
    """Members that are sent together. `arrays` holds their encoding per format while nothing of them changes, `frames` the last frame
    made of it, with the spelling and serial that it was made for."""

    __slots__ = ("arrays", "frames", "members", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.members: dict[Member, None] = {}
        self.size = 0
        self.arrays: dict[bool, bytes] = {}
        self.frames: dict[bool, tuple[str, str, bytes]] = {}

    def changed(self) -> None:
        self.arrays.clear()
        self.frames.clear()


class Shown(NamedTuple):
    """One change as subscribers are told of it."""

    action: int
    client_id: str
    id: str
    data: Any
    encoding: str | None
    extras: dict[str, Any] | None


class Mirror:
    """`complete`: every member is known. Until then nothing can be said of somebody who is not."""

    __slots__ = ("_last", "_limits", "_numbers", "_pages", "_roomy", "_tombstones", "complete", "count", "holders", "size")

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self.holders: dict[str, dict[str, Member]] = {}
        """By connection id and clientId."""
        self.count = 0
        self.size = 0
        """Bytes, roughly."""
        self.complete = True
        self._pages: dict[int, Page] = {}
        self._numbers: list[int] = []
        self._roomy: dict[Page, None] = {}
        """Pages that may have room for one more."""
        self._last = 0
        self._tombstones: dict[tuple[str, str], int] = {}
        """Offsets of leaves, while loading."""

    def clear(self) -> None:
        self.holders.clear()
        self.count = self.size = 0
        self._pages.clear()
        self._numbers.clear()
        self._roomy.clear()
        self._tombstones.clear()
        self.complete = True

    def find(self, connection_id: str, client_id: str) -> Member | None:
        holder = self.holders.get(connection_id)
        return None if holder is None else holder.get(client_id)

    # --- loading -----------------------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Pages will come, from the first one. What they are made of is no older than the records applied so far."""
        self.complete = False
        self._tombstones.clear()

    def take(self, item: MemberItem) -> None:
        """A member of a page."""
        known = self.find(item.connection_id, item.client_id)
        if known is not None and known.offset >= item.offset:
            return
        if self._tombstones.get((item.connection_id, item.client_id), -1) > item.offset:
            return
        self._put(known, item.connection_id, item.client_id, item.id, item.timestamp, item.offset, item.data, item.encoding, item.extras)

    def loaded(self) -> None:
        self.complete = True
        self._tombstones.clear()

    # --- records -----------------------------------------------------------------------------------------------------------------------

    def apply(self, body: RecordBody, offset: int) -> list[Shown]:
        """The PRESENCE record at `offset`. What subscribers are to be told."""
        connection_id = body.connection_id
        shown: list[Shown] = []
        for index, item in enumerate(body.presence if connection_id is not None else ()):
            assert connection_id is not None, "or there are no items"
            known = self.find(connection_id, item.client_id)
            made = Shown(int(item.action), item.client_id, item.id or f"{body.id}:{index}", item.data, item.encoding, item.extras)
            if item.action == _LEAVE:
                if not self.complete:
                    self._tombstones[connection_id, item.client_id] = offset
                elif known is None:
                    continue
                if known is not None and known.offset <= offset:
                    if made.data is None:
                        made = made._replace(data=known.data, encoding=known.encoding)
                    self._remove(known)
                shown.append(made)
            elif item.action in (_ENTER, _UPDATE):
                if known is None or known.offset <= offset:
                    if known is not None and not is_newer(made.id, known.id, connection_id) and known.offset != offset:
                        continue
                    if known is None and self.complete:
                        made = made._replace(action=_ENTER)
                    self._put(known, connection_id, item.client_id, made.id, body.timestamp, offset, item.data, item.encoding, item.extras)
                shown.append(made)
        return shown

    def _put(
        self,
        known: Member | None,
        connection_id: str,
        client_id: str,
        member_id: str,
        timestamp: int,
        offset: int,
        data: Any,
        encoding: str | None,
        extras: dict[str, Any] | None,
    ) -> None:
        if known is None:
            member = self.holders.setdefault(connection_id, {})[client_id] = Member(connection_id, client_id)
            self.count += 1
        else:
            member = known
            self._take_out(member)
        member.id, member.timestamp, member.offset = member_id, timestamp, offset
        member.data, member.encoding, member.extras = data, encoding, extras
        member.size = _MEMBER_BYTES + len(client_id) + len(data or "") + (len(msgspec.json.encode(extras)) if extras else 0)
        self.size += member.size
        page = member.page
        if page is None or not self._fits(page, member):
            page = self._page_for(member)
        page.members[member] = None
        page.size += member.size
        page.changed()
        member.page = page

    def _remove(self, member: Member) -> None:
        self._take_out(member)
        self.count -= 1
        holder = self.holders[member.connection_id]
        del holder[member.client_id]
        if not holder:
            del self.holders[member.connection_id]
        page = member.page
        if page is not None:
            self._let_go(page)

    def _take_out(self, member: Member) -> None:
        self.size -= member.size
        page = member.page
        assert page is not None, "it is a member"
        del page.members[member]
        page.size -= member.size
        page.changed()

    def _let_go(self, page: Page) -> None:
        if page.members:
            self._roomy[page] = None
        else:
            self._roomy.pop(page, None)
            del self._pages[page.number]
            self._numbers.remove(page.number)

    # --- pages -------------------------------------------------------------------------------------------------------------------------

    def _fits(self, page: Page, member: Member) -> bool:
        if not page.members:
            return True
        return len(page.members) < self._limits.sync_page_members and page.size + member.size <= self._limits.sync_page_bytes

    def _page_for(self, member: Member) -> Page:
        if member.page is not None:
            self._let_go(member.page)
        for page in list(self._roomy):
            if self._fits(page, member):
                return page
            del self._roomy[page]  # until somebody leaves it
        self._last += 1
        page = self._pages[self._last] = Page(self._last)
        insort(self._numbers, self._last)
        self._roomy[page] = None
        return page

    def page_after(self, number: int) -> tuple[Page | None, bool]:
        """The first page behind page `number`, and whether it is the last one."""
        at = bisect_right(self._numbers, number)
        if at >= len(self._numbers):
            return None, True
        return self._pages[self._numbers[at]], at == len(self._numbers) - 1
