"""What connections and REST calls of one edge have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.admission import Admissions
from edge.hub import Hub
from edge.limits import Addresses
from edge.links import Links
from edge.occupancy import Occupancies
from edge.turn import Turn
from edge.usage import Usages
from relay.model.limits import EdgeLimits

if TYPE_CHECKING:
    from edge.connection import Connection


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that decide how clients are answered; a part of `EdgeConfig`."""

    site: str = "local"
    node: str = "edge"
    dev: bool = False
    sandbox: bool = False
    basic_auth: Literal["refuse", "rest", "all"] = "refuse"


class Desk:
    __slots__ = (
        *("addresses", "admissions", "connections", "hub", "links", "occupancies", "policy", "random", "renewals"),
        *("server_id", "sessions", "stopping", "to_flush", "turn", "usages"),
    )

    def __init__(self, policy: Policy, limits: EdgeLimits, random: Callable[[int], bytes]) -> None:
        self.policy = policy
        self.random = random
        self.server_id = f"{policy.node}.{policy.site}"
        self.turn = Turn(limits)
        self.links = Links(self.turn)
        self.admissions = Admissions(self.turn, self.links)
        self.sessions: dict[str, Connection] = {}
        """By connection id."""
        self.usages = Usages(self.turn, self.links)
        self.hub = Hub(self.turn, self.links, self.sessions, self.usages)
        self.occupancies = self.hub.occupancies = Occupancies(self.turn, self.links, self.hub, self.new_id)
        self.addresses = Addresses(limits)
        self.connections: dict[int, Connection] = {}
        self.renewals: dict[int, tuple[int, Connection]] = {}
        """Unanswered `Renew`s: the link each was sent on, and who asked."""
        self.to_flush: dict[Connection, None] = {}
        """Connections with answers that can go out; they leave once an event is done, so that neighbours share one ACK."""
        self.stopping = False

    def new_id(self) -> str:
        """Ten characters that are safe in ids, and that nobody can guess."""
        random = self.random(8)
        number = int.from_bytes(random, "big")
        return "".join(_ALPHABET[number >> shift & 63] for shift in range(0, len(random) * 8 - 5, 6))
