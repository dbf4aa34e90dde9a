"""Who gets the same bytes: attachments of one channel in one format and spelling (and so with one filter, if any)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.ably.codec import Wire

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.filters import Filter


class Group:
    """The subscribers who get the same bytes: one format, one spelling of the channel."""

    __slots__ = ("behind", "clients", "filter", "named_at", "quiet", "text", "wire")

    def __init__(self, wire: Wire, text: str, filter_: Filter | None) -> None:
        self.wire = wire
        self.text = text
        self.filter = filter_
        self.behind = False
        """Its clients have not got the latest record: nothing of it matched."""
        self.clients: dict[int, None] = {}
        self.named_at = 0
        """Number of the event that broadcast to `clients` last."""
        self.quiet: dict[str, int] = {}
        """Connection ids of those who do not want their own messages back."""


class Groups(dict[tuple[bool, str], Group]):
    """The groups of one channel, by format and spelling; one without members is not in it."""

    __slots__ = ("filtered",)

    def __init__(self) -> None:
        super().__init__()
        self.filtered = 0
        """How many have a filter."""

    def enter(self, attachment: Attachment, turn: int) -> None:
        """`turn` is the number of the event that is being handled."""
        wire, text = attachment.wire, attachment.text
        group = self.get((wire.msgpack, text))
        if group is None:
            group = self[wire.msgpack, text] = Group(wire, text, attachment.filter)
            self.filtered += group.filter is not None
        elif group.named_at == turn:
            # An effect of this very event names `clients`, and is performed later: who joins now must not get what was before.
            group.clients = dict(group.clients)
            group.named_at = 0
        group.clients[attachment.client] = None
        if not attachment.echo:
            group.quiet[attachment.session.id] = attachment.client
        else:
            group.quiet.pop(attachment.session.id, None)

    def leave(self, attachment: Attachment, turn: int) -> None:
        """What was broadcast before in this very event is still for it."""
        key = (attachment.wire.msgpack, attachment.text)
        group = self.get(key)
        if group is not None:
            if group.named_at == turn:
                group.clients = dict(group.clients)
                group.named_at = 0
            group.clients.pop(attachment.client, None)
            if group.quiet.get(attachment.session.id) == attachment.client:
                del group.quiet[attachment.session.id]
            if not group.clients:
                del self[key]
                self.filtered -= group.filter is not None
