"""All that can happen to an edge. `effects.py` is all it can do about it; `node.py` connects the two.

Clients, links and calls are named by integers which the shell makes up and never uses again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relay.link.frames import ToEdge, Welcome


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A WebSocket upgrade was answered with 101. Nothing of it has been judged yet.

    `query` is the raw query string without `?`; `headers` has lower-case names, and only those the edge reads (`authorization`,
    `ably-agent`); `address` is the peer's IP address.
    """

    client: int
    query: str
    headers: Mapping[str, str]
    address: str
    tls: bool


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """One whole WebSocket message, text or binary: the connection's `format` says how to read it, not the frame's type."""

    client: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ClientPong:
    """The peer answered a WebSocket ping (or sent one): it is alive."""

    client: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The answer to `TellWhenDrained`; none comes if the client is lost first."""

    client: int


@dataclass(frozen=True, slots=True)
class ClientLost:
    """The socket is gone. Comes once for each `ClientOpened`, also after `CloseClient`; nothing follows it."""

    client: int
    why: str


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Both lanes to one core are up: mTLS and hello are done."""

    link: int
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class LinkFrame:
    link: int
    frame: ToEdge


@dataclass(frozen=True, slots=True)
class LinkFrames:
    """The frames of one batch, in order."""

    link: int
    frames: Sequence[ToEdge]


@dataclass(frozen=True, slots=True)
class LinkLost:
    link: int
    why: str


@dataclass(frozen=True, slots=True)
class RestAsked:
    """An HTTP request that belongs to the protocol. Answered by `RestAnswer`, exactly once, unless `RestGone` comes first.

    `raw_path` is the path as sent, still percent-encoded; `query` the raw query string; `headers` have lower-case names.
    """

    call: int
    method: str
    raw_path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    tls: bool
    address: str


@dataclass(frozen=True, slots=True)
class RestGone:
    """The caller went away, or the shell's time-out passed: no answer is wanted any more."""

    call: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """The process is told to stop: every client is disconnected in an orderly way (50320) and may resume elsewhere."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has reached `next_deadline()`."""


Event = (
    ClientOpened
    | ClientFrame
    | ClientPong
    | Drained
    | ClientLost
    | LinkUp
    | LinkFrame
    | LinkFrames
    | LinkLost
    | RestAsked
    | RestGone
    | Stopping
    | Tick
)
