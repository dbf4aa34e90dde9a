"""Readers who may not attach yet: first the core must have sent all that was acknowledged before they asked.

Whoever has been told that a member entered, and then attaches elsewhere, finds that member. One question serves all who came before it was
sent; who comes while it is under way waits for the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.link.frames import Barrier

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.hub import Channel


class Barriers:
    __slots__ = ("_asked", "_channel", "_next", "ref")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.ref = 0
        """The question under way; 0: none."""
        self._asked: list[Attachment] = []
        self._next: list[Attachment] = []

    def hold(self, attachment: Attachment) -> None:
        """The channel is open. It hears of the attachment again by `reached`."""
        self._next.append(attachment)
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

    def reached(self, req: int) -> list[Attachment]:
        """The answer to a question: who may go on."""
        if req != self.ref:
            return []
        self._channel.hub.refs.pop(req, None)
        self.ref = 0
        ready, self._asked = self._asked, []
        if self._next:
            self._ask()
        return ready

    def forget(self) -> None:
        """The channel is open no longer: who waits is seen to when it is again."""
        self._channel.hub.refs.pop(self.ref, None)
        self.ref = 0
        self._asked.clear()
        self._next.clear()
