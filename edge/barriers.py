"""Readers who may not attach yet: first the core must have sent all that was acknowledged before they asked.

Whoever has been told that a member entered, and then attaches elsewhere, finds that member. One question serves all who came before it was
sent; who comes while it is under way waits for the next. What comes meanwhile is kept: a reader attaches where the channel was when it
asked, so that what it publishes right after is not taken for something that was there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from relay.link.frames import Barrier, Record

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.hub import Channel


class Barriers:
    __slots__ = ("_asked", "_channel", "_next", "_size", "records", "ref")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.ref = 0
        """The question under way; 0: none."""
        self._asked: list[tuple[Attachment, int]] = []
        self._next: list[tuple[Attachment, int]] = []
        self.records: list[Record] = []
        """What came while anybody waited, in order."""
        self._size = 0

    def hold(self, attachment: Attachment) -> None:
        """The channel is open. It hears of the attachment again by `reached`."""
        self._next.append((attachment, self._channel.last))
        if not self.ref:
            self._ask()

    def _ask(self) -> None:
        channel = self._channel
        hub = channel.hub
        assert channel.link is not None, "an open channel has a link"
        self._asked, self._next = self._next, []
        self.ref = hub.turn.request()
        hub.refs[self.ref] = channel
        hub.turn.send(channel.link, Barrier(self.ref, channel.ref))

    def saw(self, record: Record) -> None:
        """A record was delivered while a question was under way. More than may be held: those who wait attach where the channel is then."""
        limits = self._channel.hub.turn.limits
        self.records.append(record)
        self._size += len(record.body)
        if len(self.records) > limits.held_records or self._size > limits.held_bytes:
            self.records.clear()
            self._size = 0
            self._asked = [(attachment, record.offset) for attachment, _ in self._asked]
            self._next = [(attachment, record.offset) for attachment, _ in self._next]

    def reached(self, req: int) -> Iterator[tuple[Attachment, int, list[Record]]]:
        """The answer to a question: who may go on, from which offset, and what came since."""
        if req != self.ref:
            return
        self._channel.hub.refs.pop(req, None)
        self.ref = 0
        ready, self._asked, records = self._asked, [], self.records
        if self._next:
            self._ask()
        else:
            self.records, self._size = [], 0
        for attachment, offset in ready:
            yield attachment, offset, [record for record in records if record.offset > offset]

    def forget(self) -> None:
        """The channel is open no longer: who waits is seen to when it is again."""
        self._channel.hub.refs.pop(self.ref, None)
        self.ref = self._size = 0
        self._asked.clear()
        self._next.clear()
        self.records.clear()
