"""The presence set of a channel over REST: what the query asks for, and the page with its links. Source: specification RSP3; Ably protocol
docs, 8.2 and 8.7.

One page here may be several of the core's. The cursor in the links is the number of the last member shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from edge.ably.codec import member_shape
from edge.history import limit_asked
from relay.link.calls import MemberItem, Members, decode_members
from relay.link.frames import Page
from relay.model.errors import RelayError
from relay.model.limits import EdgeLimits

_FILTERS = ("clientId", "connectionId")


def asked(params: Mapping[str, str], channel: str, limits: EdgeLimits) -> Members:
    """Raises RelayError 40003, 40011."""
    cursor = params.get("cursor") or "0"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
        raise RelayError(40011, "invalid cursor")
    return Members(
        channel=channel,
        limit=limit_asked(params, limits),
        after=int(cursor),
        fresh=True,
        client_id=params.get("clientId") or None,
        connection_id=params.get("connectionId") or None,
    )


def taken(read: Members, members: list[MemberItem], frame: Page) -> tuple[int | None, Members | None]:
    """Add a page of the core's to `members`. The number after which there are more, and the question for as many as are still wanted.

    Raises RelayError 50001 for what cannot be read.
    """
    page = decode_members(frame.body) if frame.status == 200 else None
    if page is None or (page.after is not None and page.after <= read.after):
        raise RelayError(50001, "the answer of the core is not readable")
    members += page.members[: read.limit]
    wanted = read.limit - len(page.members)
    if page.after is None or wanted <= 0:
        return page.after, None
    return page.after, msgspec.structs.replace(read, after=page.after, limit=wanted)


def answer(
    members: Sequence[MemberItem], after: int | None, params: Mapping[str, str], limits: EdgeLimits, *, msgpack: bool
) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """The body and the `link` headers. `after`: there are more, after this number."""
    query: dict[str, str | int] = {"limit": limit_asked(params, limits)}
    query |= {name: params[name] for name in (*_FILTERS, "format") if params.get(name)}
    relations: list[tuple[str, str | int | None]] = [("first", None), ("current", params.get("cursor") or None)]
    if after is not None:
        relations.append(("next", after))
    places = ((relation, query if at is None else query | {"cursor": at}) for relation, at in relations)
    links = tuple(("link", f'<./presence?{urlencode(place)}>; rel="{relation}"') for relation, place in places)
    return [member_shape(member, msgpack=msgpack) for member in members], links
