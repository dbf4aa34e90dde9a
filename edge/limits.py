"""Rates: what one connection and one address may ask for. Pure arithmetic on the time it is told; bounds are those of `EdgeLimits`."""

from __future__ import annotations

import enum
from collections import OrderedDict

from relay.model.limits import EdgeLimits


class Verdict(enum.Enum):
    WITHIN = "within the limit"
    ABOVE = "refuse this one"
    FAR_ABOVE = "close the connection"


class InboundRate:
    """A bucket that may go into debt: empty, publishes are refused; as deep in debt as it was deep, the connection is over.

    What is refused counts as well, so that a client which ignores the refusals ends where the flood does.
    """

    __slots__ = ("_at", "_level", "grace")

    def __init__(self, limits: EdgeLimits, now: float) -> None:
        self._level = float(limits.inbound_burst)
        self._at = now
        self.grace = 0
        """Messages that cost nothing: what a client that comes back may have to send again."""

    def spend(self, limits: EdgeLimits, now: float) -> Verdict:
        if self.grace:
            self.grace -= 1
            return Verdict.WITHIN
        self._refill(limits, now)
        self._level -= 1
        if self._level >= 0:
            return Verdict.WITHIN
        return Verdict.ABOVE if self._level > -limits.inbound_burst else Verdict.FAR_ABOVE

    def afford(self, limits: EdgeLimits, now: float, messages: int) -> bool:
        """Spend what costs as much as so many messages; False, and nothing is spent, where there is not as much left."""
        self._refill(limits, now)
        if self._level < messages:
            return False
        self._level -= messages
        return True

    def _refill(self, limits: EdgeLimits, now: float) -> None:
        self._level = min(self._level + (now - self._at) * limits.inbound_per_s, limits.inbound_burst)
        self._at = now


class Addresses:
    """Connects and refused credentials by address. Bounded: the address seen longest ago is forgotten, which can only favour it."""

    __slots__ = ("_limits", "_seen")

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._seen: OrderedDict[str, _Address] = OrderedDict()

    def may_connect(self, address: str, now: float) -> bool:
        """Counts one connect; False when the address has used up its share of connects or of failures."""
        seen = self._of(address, now)
        within = seen.connects.spend(self._limits.address_connects_per_s, self._limits.address_connects_burst, now)
        return within and not self._barred(seen, now)

    def may_present(self, address: str, now: float) -> bool:
        """Whether a credential from this address is worth a core's time. Counts nothing."""
        return not self._barred(self._of(address, now), now)

    def failed(self, address: str, now: float) -> None:
        self._of(address, now).failures.spend(self._limits.address_failures_per_s, self._limits.address_failures_burst, now)

    def _barred(self, seen: _Address, now: float) -> bool:
        return seen.failures.empty(self._limits.address_failures_per_s, self._limits.address_failures_burst, now)

    def _of(self, address: str, now: float) -> _Address:
        key = group_of(address)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Address(self._limits, now)
            if len(self._seen) > self._limits.addresses:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(key)
        return seen

    def __len__(self) -> int:
        return len(self._seen)


class _Bucket:
    __slots__ = ("_at", "_level")

    def __init__(self, burst: float, now: float) -> None:
        self._level, self._at = burst, now

    def spend(self, per_s: float, burst: float, now: float) -> bool:
        if self.empty(per_s, burst, now):
            return False
        self._level -= 1
        return True

    def empty(self, per_s: float, burst: float, now: float) -> bool:
        self._level = min(self._level + (now - self._at) * per_s, burst)
        self._at = now
        return self._level < 1


class _Address:
    __slots__ = ("connects", "failures")

    def __init__(self, limits: EdgeLimits, now: float) -> None:
        self.connects = _Bucket(limits.address_connects_burst, now)
        self.failures = _Bucket(limits.address_failures_burst, now)


def group_of(address: str) -> str:
    """Who counts as one: an IPv4 address, or the /64 of an IPv6 address, which is what one customer is given."""
    if ":" not in address:
        return address
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    head, gap, tail = address.partition("::")
    groups = head.split(":") if head else []
    if gap:
        rest = tail.split(":") if tail else []
        groups += ["0"] * (8 - len(groups) - len(rest)) + rest
    return ":".join(groups[:4])
