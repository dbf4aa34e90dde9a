"""SYNCs of one connection: pages of presence sets, sent as its client takes them in.

    start ──▶ pages, up to a window of bytes ──▶ TellWhenDrained ──Drained──▶ the next window ──▶ … ──▶ last page

A large set is neither built as a whole for a client nor piled up in its outbox. Pages are those of the mirror at the time they are sent.
Source: specification RTP18, RTP19.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.effects import TellWhenDrained

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.connection import Connection


class Sync:
    __slots__ = ("id", "page")

    def __init__(self, sync_id: str) -> None:
        self.id = sync_id
        self.page = 0
        """The number of the last page sent."""


class Syncs:
    __slots__ = ("_asked", "_connection", "_running", "_spent")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._running: dict[Attachment, Sync] = {}
        """In the order in which they are served, one after the other."""
        self._spent = 0
        """Bytes sent since the client was last known to have taken everything."""
        self._asked = False

    def start(self, attachment: Attachment) -> None:
        """A whole SYNC, under an id that its client has not seen on this attachment. One that is under way ends where it is."""
        now_ms = self._connection.desk.turn.now_ms
        # Those who begin in the same event share the id, and so the frames.
        before, _, again = attachment.sync_id.partition("-")
        sync_id = f"{now_ms:x}"
        attachment.sync_id = sync_id if before != sync_id else f"{sync_id}-{int(again or 0) + 1}"
        self._running.pop(attachment, None)
        self._running[attachment] = Sync(attachment.sync_id)
        self._go_on()

    def stop(self, attachment: Attachment) -> bool:
        """Whether there was one under way."""
        return self._running.pop(attachment, None) is not None

    def drained(self) -> None:
        self._asked = False
        self._spent = 0
        self._go_on()

    def _go_on(self) -> None:
        connection = self._connection
        turn = connection.desk.turn
        while self._running and self._spent < turn.limits.sync_window_bytes:
            attachment, sync = next(iter(self._running.items()))
            presence = attachment.channel.presence
            page, last = presence.mirror.page_after(sync.page)
            if page is not None:
                sync.page = page.number
            frame = presence.sync_frame(attachment, sync.id, page, last=last)
            if last:
                del self._running[attachment]
            self._spent += len(frame)
            turn.write(connection.client, frame)
        if self._running and not self._asked:
            self._asked = True
            turn.effects.append(TellWhenDrained(connection.client))
