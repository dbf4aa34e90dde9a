"""One publish over REST, as far as an edge can check it: the same for a request of its own and within a batch.
Source: Ably protocol docs, 4.1 to 4.6, 8.2 and 8.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edge.hub import Hub, PendingAppend, Publisher
from edge.links import Session
from relay.model.capability import Operation
from relay.model.channel import ChannelName, parse_channel
from relay.model.errors import RelayError
from relay.model.limits import EdgeLimits
from relay.model.message import Message
from relay.model.publish import connection_key_of, is_ephemeral, messages_from_wire, settle


class Place(NamedTuple):
    """A channel that the session may publish on, and whether it may set `extras.privileged` there."""

    name: ChannelName
    privileged: bool


class Content(NamedTuple):
    """Messages of one publish, not yet settled: on which channel they may be published is another question."""

    messages: list[Message]
    connection_key: str | None
    """On behalf of whose connection."""


class RestPublish(NamedTuple):
    """A publish that may be sent to a core. `base` is that of the client's own ids, None if it gave none."""

    name: str
    messages: list[Message]
    base: str | None
    connection_key: str | None
    ephemeral: bool
    size: int

    def send(self, hub: Hub, session: Session, made_id: str, publisher: Publisher) -> tuple[PendingAppend, str]:
        """Also the messageId that the answer names: `made_id`, unless the client gave ids."""
        append = hub.append(
            session,
            self.name,
            f"s:{made_id}" if self.base is None else f"i:{self.base}",
            self.messages,
            publisher,
            self.size,
            fresh=self.base is None,
            ephemeral=self.ephemeral,
            connection_key=self.connection_key,
        )
        return append, made_id if self.base is None else self.base


def place(session: Session, channel: str, params: Mapping[str, str]) -> Place:
    """Raises RelayError, in this order: 40010, 40160 (or 40161, 40311: the namespace), 40099."""
    name = parse_channel(channel)
    if name.qualifier == "meta":
        raise RelayError(40160, "operation not permitted: metachannels are read-only")
    if name.qualifier is not None:
        raise RelayError(40010, f"publishing to channels with the qualifier [{name.qualifier}] is not permitted")
    operations = session.capability.operations_on(name.name)
    if Operation.PUBLISH not in operations:
        raise session.capability.refusal(name.name)
    if params.get("_forceNack") == "true":
        raise RelayError(40099, "refused as asked (_forceNack)")
    return Place(name, Operation.PRIVILEGED_HEADERS in operations)


def content(items: object, *, json: bool) -> Content:
    """`items` as decoded: one message or a list of them. Raises RelayError."""
    on_behalf = connection_key_of(items)
    return Content(messages_from_wire(items, json=json, rest=True), on_behalf)


def settled(session: Session, where: Place, what: Content, params: Mapping[str, str], limits: EdgeLimits) -> RestPublish:
    """Fills the clientId in, in place; for the same session it may be done again, for another channel. Raises RelayError."""
    messages = what.messages
    base = settle(
        messages,
        # On behalf of a connection its identity counts, which only a core can read from the key.
        client_id="*" if what.connection_key is not None and session.client_id is not None else session.client_id,
        connection_id=None,
        max_bytes=limits.max_message_bytes,
        privileged=where.privileged,
    )
    return RestPublish(
        where.name.name,
        messages,
        base,
        what.connection_key,
        is_ephemeral(messages) or params.get("ephemeral") == "true",
        len(messages) * 64 + sum(len(each.data) for each in messages if each.data),
    )
