"""The rules of one change of presence, by which the edge refuses early and the core refuses again. Source: specification RTP, TP; Ably
protocol docs, 5.1, 5.2 and 5.5.

As for messages: `presence_from_wire` (types), then the caller's checks of channel name, capability, mode and attachment, then
`settle_presence` (clientId, ids, data, count, size), which leaves what it has settled unchanged, so that a core runs it again.
"""

from __future__ import annotations

from relay.model.errors import RelayError
from relay.model.identity import WILDCARD
from relay.model.limits import PROTOCOL
from relay.model.message import Message, PresenceAction, PresenceItem
from relay.model.publish import messages_from_wire, settle

_CHANGES = (PresenceAction.ENTER, PresenceAction.LEAVE, PresenceAction.UPDATE)


def presence_from_wire(items: object, *, json: bool) -> list[PresenceItem]:
    """The `presence` of a PRESENCE message, as decoded from JSON or msgpack, in stored form; `client_id` is empty where none was sent.

    Raises RelayError 40000, 40012, 40013, 40031, 40032, 40034.
    """
    several = items if isinstance(items, list) else [items]
    bare = [{name: value for name, value in item.items() if name != "action"} if isinstance(item, dict) else item for item in several]
    messages = messages_from_wire(bare, json=json)
    made = []
    for item, message in zip(several, messages, strict=True):
        action = item.get("action")
        if type(action) is not int or action not in _CHANGES:
            raise RelayError(40000, "Malformed presence message; action must be enter (2), leave (3) or update (4)")
        made.append(
            PresenceItem(
                action=action,
                client_id=message.client_id or "",
                id=message.id,
                data=message.data,
                encoding=message.encoding,
                extras=message.extras,
            )
        )
    return made


def settle_presence(items: list[PresenceItem], *, client_id: str | None, connection_id: str, max_bytes: int) -> None:
    """Check one change of presence and bring it into the form that is stored: clientId filled in, ids that cannot be the member's dropped.
    In place, idempotent.

    `client_id` is the connection's identity (None, `*` or a name). Raises RelayError 40000, 40009, 40012, 40013, 40032, 40034, 91000.
    """
    if not items:
        raise RelayError(40000, "Malformed presence message; nothing to change")
    if len(items) > PROTOCOL.max_messages:
        raise RelayError(40034, f"Too many changes of presence at once ({len(items)}, limit is {PROTOCOL.max_messages})")
    for item in items:
        if type(item.action) is not int or item.action not in _CHANGES:
            raise RelayError(40000, "Malformed presence message; action must be enter (2), leave (3) or update (4)")
        if not item.client_id:
            if client_id is None:
                raise RelayError(91000, "unable to enter presence channel (no clientId)")
            if client_id == WILDCARD:
                raise RelayError(40012, "invalid clientId: a connection without one must name the member")
            item.client_id = client_id
        if item.id is not None and member_order(item.id, connection_id) is None:
            item.id = None
    # Data, extras, size and the right to each clientId are as for messages.
    messages = [Message(data=item.data, encoding=item.encoding, client_id=item.client_id, extras=item.extras) for item in items]
    settle(messages, client_id=client_id, connection_id=connection_id, max_bytes=max_bytes)
    for item, message in zip(items, messages, strict=True):
        item.encoding, item.extras = message.encoding, message.extras


def member_order(member_id: str, connection_id: str) -> tuple[int, int] | None:
    """(msgSerial, index) of `connectionId:msgSerial:index`, None for an id of any other form or connection. Source: RTP2b2."""
    prefix, _, rest = member_id.partition(":")
    serial, _, index = rest.partition(":")
    if prefix != connection_id or not (serial.isascii() and serial.isdigit() and index.isascii() and index.isdigit()):
        return None
    if len(serial) > 16 or len(index) > 6:
        return None
    return int(serial), int(index)


def is_newer(member_id: str, known_id: str, connection_id: str) -> bool:
    """Whether an entry under `member_id` takes the place of the one under `known_id`, both of one connection's member, where it comes
    later in the log. Source: RTP2b2."""
    new, known = member_order(member_id, connection_id), member_order(known_id, connection_id)
    return member_id != known_id if new is None or known is None else new > known
