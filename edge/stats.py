"""`GET /stats`: what the query asks for, and the page with its links. Source: specification RSC6, TS12; Ably protocol docs, 8.5 and 8.7."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from edge.history import limit_asked
from relay.link.calls import Stats, decode_stats
from relay.link.frames import Page
from relay.model import stats
from relay.model.errors import RelayError
from relay.model.limits import EdgeLimits


def asked(params: Mapping[str, str], limits: EdgeLimits, now_ms: int) -> Stats:
    """Raises RelayError 40000, 40003, 40011."""
    query = stats.asked(params, limit_asked(params, limits), now_ms)
    return Stats(**query._asdict())


def answer(
    read: Stats, frame: Page, app: str, now_ms: int, params: Mapping[str, str], *, flat: bool
) -> tuple[list[dict[str, Any]], tuple[tuple[str, str], ...]]:
    """The body and the `link` headers of what a core has answered. `flat`: the form of protocol version 3 and later.

    Raises RelayError 50001 for what cannot be read.
    """
    page = decode_stats(frame.body)
    if page is None:
        raise RelayError(50001, "the answer of the core is not readable")
    found = []
    for interval, given in page.items:
        values = stats.checked(given)
        if values is not None and len(interval) == len(read.end):
            found.append(stats.shape({"appId": app}, interval, values, now_ms) if flat else stats.shape_2(interval, values))
    # The bounds as intervals: the pages that follow are of the same ones, however late they are asked for.
    query: dict[str, str | int] = {"start": read.start, "end": read.end, "unit": read.unit, "limit": read.limit}
    query["direction"] = "backwards" if read.backwards else "forwards"
    if "format" in params:
        query["format"] = params["format"]
    relations = [("first", None), ("current", read.after)]
    if page.more and page.items:
        relations.append(("next", page.items[-1][0]))
    return found, tuple(
        ("link", f'<./stats?{urlencode(query | ({} if at is None else {"cursor": at}))}>; rel="{relation}"') for relation, at in relations
    )
