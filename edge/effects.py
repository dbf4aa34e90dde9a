"""All that an edge can do. A `frame` is one whole WebSocket frame or several, headers included
(`edge.ably.websocket`): ready for the socket."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from relay.link.frames import Lane, ToCore


@dataclass(frozen=True, slots=True)
class Write:
    client: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The same frame to many clients, except `skip`: one effect however many there are.

    `clients` is the hub's own collection, not a copy (this is the hot path): it must be read before the next event is handled.
    """

    clients: Collection[int]
    frame: bytes
    skip: int | None = None


@dataclass(frozen=True, slots=True)
class TellWhenDrained:
    """Post `Drained` once the client's socket has taken everything written so far. There is at most one such question for a client."""

    client: int


@dataclass(frozen=True, slots=True)
class CloseClient:
    """Flush what was written, send a close frame with `code`, then close. `why` is the label on the metric."""

    client: int
    code: int
    why: str


@dataclass(frozen=True, slots=True)
class LinkSend:
    """`lane` None: the lane the frame belongs to (`relay.link.frames.BULK`)."""

    link: int
    frame: ToCore
    lane: Lane | None = None


@dataclass(frozen=True, slots=True)
class RestAnswer:
    call: int
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log. `fields` never hold credentials, query strings or payloads."""

    event: str
    fields: dict[str, str | int | float | bool | None]


Effect = Write | Broadcast | TellWhenDrained | CloseClient | LinkSend | RestAnswer | Note
