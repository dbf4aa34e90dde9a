"""*May this key do this on that channel?* Which line of which capability says so. Pure; for the Control API and for `tidegate can`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from relay.model.capability import Capability, Operation
from relay.model.errors import RelayError


@dataclass(frozen=True)
class Granted:
    """One capability that was asked: whose it is, and the lines that grant the operation. All must grant it."""

    whose: str
    by: list[str]
    other: list[str]
    """Lines that match the channel, and grant something else."""
    derived: bool = False
    """The channel is a derived one, and the operation is not `subscribe`."""

    @property
    def yes(self) -> bool:
        return bool(self.by)

    def sentence(self, operation: str, channel: str) -> str:
        if self.derived:
            return "no: a derived channel can be subscribed to, and nothing else"
        if self.by:
            return f"yes: {self.whose} permits {operation} on {channel} by {' and '.join(self.by)}"
        if self.other:
            return f"no: {self.whose} has for {channel} only {' and '.join(self.other)}"
        return f"no: {self.whose} has no line for {channel}"

    def shape(self) -> dict[str, Any]:
        return {"whose": self.whose, "permits": self.yes, "by": self.by, "other": self.other}


def granted(whose: str, capability: Any, operation: str, channel: str) -> Granted:
    """Raises ValueError, with what is wrong."""
    try:
        asked = Operation(operation)
    except ValueError:
        raise ValueError(f"there is no operation {operation!r}: it is one of {', '.join(sorted(Operation))}") from None
    try:
        lines = Capability.parse(capability).lines_on(channel)
    except RelayError as error:
        raise ValueError(f"{whose}: {error.info.message}") from None
    if asked is not Operation.SUBSCRIBE and _is_derived(channel):
        return Granted(whose, [], [_line(resource, operations) for resource, operations in lines], derived=True)
    by = [_line(resource, operations) for resource, operations in lines if asked in operations]
    return Granted(whose, by, [_line(resource, operations) for resource, operations in lines if asked not in operations])


def meet(token: Any, key: Any, operation: str, channel: str) -> bool:
    """Whether what a token asks for and what its key has permit the operation together, as a core puts them together. Two lines that only
    overlap (`a:*` and `*:b`) do not."""
    return Capability.parse(token).intersect(Capability.parse(key)).permits(Operation(operation), channel)


def _is_derived(channel: str) -> bool:
    while channel.startswith("[") and "]" in channel:
        inner, _, channel = channel[1:].partition("]")
        if inner.partition("?")[0].partition("=")[0] == "filter":
            return True
    return False


def as_data_plane(capability: dict[str, list[str]]) -> dict[str, list[str]]:
    """The public tools call one operation otherwise."""
    return {resource: ["stats" if one == "statistics" else one for one in operations] for resource, operations in capability.items()}


def within(channel: str, namespace: str) -> bool:
    while channel.startswith("[") and "]" in channel:
        channel = channel.partition("]")[2]
    return channel == namespace or channel.startswith(f"{namespace}:")


def closed(namespace: str, *, nobody: bool) -> str:
    """What a namespace adds that has `authenticated`. `nobody`: who asks is known to have no clientId."""
    if nobody:
        return f"no: the namespace {namespace} is closed to clients without a clientId, and the token names none"
    return f"but: the namespace {namespace} is closed to clients that are admitted without a clientId"


def _line(resource: str, operations: Iterable[str]) -> str:
    return Capability.parse({resource: sorted(operations)}).canonical()[1:-1]
