"""Capabilities: which operations on which channels. Grants add up; there is no deny. Source: Ably protocol docs, 7.4 and 7.5.

A resource is `[qualifier]path`. `*` is a wildcard only as a whole `:`-separated segment: any one segment, or, as the last, one or more.
The same code decides on edge and core.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL


class Operation(enum.StrEnum):
    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    PRESENCE = "presence"
    HISTORY = "history"
    STATS = "stats"
    CHANNEL_METADATA = "channel-metadata"
    PUSH_SUBSCRIBE = "push-subscribe"
    PUSH_ADMIN = "push-admin"
    PRIVILEGED_HEADERS = "privileged-headers"
    OBJECT_SUBSCRIBE = "object-subscribe"
    OBJECT_PUBLISH = "object-publish"
    ANNOTATION_SUBSCRIBE = "annotation-subscribe"
    ANNOTATION_PUBLISH = "annotation-publish"
    MESSAGE_UPDATE_OWN = "message-update-own"
    MESSAGE_UPDATE_ANY = "message-update-any"
    MESSAGE_DELETE_OWN = "message-delete-own"
    MESSAGE_DELETE_ANY = "message-delete-any"


ALL: frozenset[Operation] = frozenset(Operation)
"""What `*` in a list of operations stands for."""
ATTACH: frozenset[Operation] = frozenset(
    {
        *(Operation.SUBSCRIBE, Operation.PUBLISH, Operation.PRESENCE),
        *(Operation.ANNOTATION_SUBSCRIBE, Operation.ANNOTATION_PUBLISH),
        *(Operation.OBJECT_SUBSCRIBE, Operation.OBJECT_PUBLISH),
    }
)
"""Any one of these on a channel permits attaching to it."""

_NONE: frozenset[Operation] = frozenset()
_OPERATIONS = {str(operation): operation for operation in Operation}
_REFUSALS = {
    40160: "operation not permitted with provided capability",
    40161: "operation not permitted as it requires an identified client",
    40311: "operation not permitted: the channel is for connections over TLS only",
}
_BARRINGS_REMEMBERED = 16
"""Per capability: the bars of an app change with its namespaces, and differ by whether its clients are anonymous, or without TLS."""

Bars = tuple[tuple[str, int], ...]
"""Namespaces on whose channels a session may do nothing, whatever its capability says, each with the code that says why: 40161 (its clients
need a clientId), 40311 (they need TLS)."""
_TARGET_QUALIFIERS = frozenset({"", "meta", "queue", "filter"})
_RESOURCE_QUALIFIERS = _TARGET_QUALIFIERS | {"*"}


class _Pattern(NamedTuple):
    qualifier: str
    segments: tuple[str, ...]

    def matches(self, qualifier: str, segments: tuple[str, ...]) -> bool:
        """Whether a target is covered. O(segments).

        With another pattern in place of the target the same comparison tells whether that pattern lies wholly within this one: a `*`
        there is a segment like any other, and only a `*` here covers it.
        """
        if self.qualifier not in ("*", qualifier):
            return False
        mine = self.segments
        if mine[-1] == "*":
            if len(segments) < len(mine):
                return False
        elif len(segments) != len(mine):
            return False
        return all(a in ("*", b) for a, b in zip(mine, segments, strict=False))


class Capability:
    """Immutable. `bool()` is False when it permits nothing. `bars`: see `barring`."""

    __slots__ = ("_barrings", "_canonical", "_exact", "_patterns", "_remembered", "_resources", "bars")

    def __init__(self, resources: dict[str, frozenset[Operation]]) -> None:
        """`resources` as `parse` makes them; use `parse` for what comes from outside."""
        self._resources = {resource: operations for resource, operations in resources.items() if operations}
        self._exact: dict[tuple[str, tuple[str, ...]], frozenset[Operation]] = {}
        self._patterns: list[tuple[_Pattern, frozenset[Operation]]] = []
        for resource, operations in self._resources.items():
            pattern = _pattern(resource)
            if "*" in pattern.segments or pattern.qualifier == "*":
                self._patterns.append((pattern, operations))
            else:
                self._exact[pattern] = operations
        self._canonical: str | None = None
        self._remembered: dict[str, frozenset[Operation]] = {}
        self._barrings: dict[Bars, Capability] = {}
        self.bars: Bars = ()

    @staticmethod
    def parse(source: str | bytes | object) -> Capability:
        """From JSON text (`{"resource": ["operation", …]}`) or the object it stands for. Raises RelayError 40000.

        Equal texts give the same object, so that connections with one capability share one. `{}` is valid and permits nothing.
        """
        if isinstance(source, str):
            return _parse_text(source)
        if isinstance(source, bytes):
            try:
                return _parse_text(source.decode())
            except UnicodeDecodeError:
                raise RelayError(40000, "Invalid capability: not UTF-8") from None
        return _parse_object(source)

    @property
    def resources(self) -> Iterable[str]:
        """As they are written."""
        return self._resources.keys()

    def canonical(self) -> str:
        """JSON without white space; resources and operations sorted; all operations as `["*"]`."""
        if self._canonical is None:
            self._canonical = msgspec.json.encode(
                {resource: ["*"] if ops == ALL else sorted(ops) for resource, ops in sorted(self._resources.items())}
            ).decode()
        return self._canonical

    def intersect(self, other: Capability) -> Capability:
        """What both grant, resource by resource where one of the two covers the other. O(resources of one × resources of the other).

        Two resources that merely overlap (`a:*`, `*:b`) give nothing: the result could need a resource that neither wrote.
        """
        theirs = [(resource, _pattern(resource), operations) for resource, operations in other._resources.items()]
        result: dict[str, frozenset[Operation]] = {}
        for resource, operations in self._resources.items():
            pattern = _pattern(resource)
            for their_resource, their_pattern, their_operations in theirs:
                if their_pattern.matches(*pattern):
                    narrower = resource
                elif pattern.matches(*their_pattern):
                    narrower = their_resource
                else:
                    continue
                if both := operations & their_operations:
                    result[narrower] = result.get(narrower, _NONE) | both
        return Capability(result).barring(self.bars)

    def barring(self, bars: Bars) -> Capability:
        """The same, less the channels of these namespaces. Equal bars give the same object."""
        if bars == self.bars:
            return self
        found = self._barrings.get(bars)
        if found is None:
            found = Capability(self._resources)
            found.bars = bars
            if len(self._barrings) >= _BARRINGS_REMEMBERED:
                self._barrings.clear()
            self._barrings[bars] = found
        return found

    def bar_on(self, channel_name: str) -> int | None:
        """Why nothing is permitted on a channel, if it is for its namespace. O(bars)."""
        if not self.bars:
            return None
        name = channel_name
        while name.startswith("[") and "]" in name:
            name = name.partition("]")[2]
        return next((code for namespace, code in self.bars if name == namespace or name.startswith(f"{namespace}:")), None)

    def reaches(self, namespace: str) -> bool:
        """Whether it may grant something on a channel of a namespace, bars left out of account. True also in doubt. O(resources)."""
        first = namespace.partition(":")[0]
        return any(_pattern(resource).segments[0] in ("*", first) for resource in self._resources)

    def refusal(self, channel_name: str) -> RelayError:
        """What to tell whoever asked for more than this permits on a channel."""
        code = self.bar_on(channel_name) or 40160
        return RelayError(code, _REFUSALS[code])

    def operations_on(self, channel_name: str) -> frozenset[Operation]:
        """All that is granted on a channel, inline params left out of account. Nothing on what no channel can be called.

        O(resources) the first time a name is asked for, then a look-up.
        """
        operations = self._remembered.get(channel_name)
        if operations is None:
            operations = self._look_up(channel_name)
            if len(self._remembered) >= PROTOCOL.channels_remembered_per_capability:
                self._remembered.clear()
            self._remembered[channel_name] = operations
        return operations

    def permits(self, operation: Operation, channel_name: str) -> bool:
        return operation in self.operations_on(channel_name)

    def permits_following(self, channel_name: str) -> bool:
        """Whether what is published on a channel from now on may be read: all of it, or what a filter leaves. Whoever may subscribe to
        `[filter]name` writes the filter, and so may choose one that leaves everything."""
        return self.permits(Operation.SUBSCRIBE, channel_name) or self.permits(Operation.SUBSCRIBE, f"[filter]{channel_name}")

    def permits_any(self, channel_name: str, operations: Iterable[Operation]) -> bool:
        return not self.operations_on(channel_name).isdisjoint(operations)

    def lines_on(self, channel_name: str) -> list[tuple[str, frozenset[Operation]]]:
        """The resources that match a channel, with what each grants: for people who ask why. O(resources)."""
        target = _target(channel_name)
        if target is None:
            return []
        return [(resource, operations) for resource, operations in self._resources.items() if _pattern(resource).matches(*target)]

    def _look_up(self, channel_name: str) -> frozenset[Operation]:
        target = _target(channel_name)
        if target is None or self.bar_on(channel_name) is not None:
            return _NONE
        operations = self._exact.get(target, _NONE)
        for pattern, granted in self._patterns:
            if pattern.matches(*target):
                operations |= granted
        return operations

    def __bool__(self) -> bool:
        return bool(self._resources)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Capability) and self._resources == other._resources and self.bars == other.bars

    def __hash__(self) -> int:
        return hash(self.canonical())

    def __repr__(self) -> str:
        return f"Capability({self.canonical()})"


def _target(name: str) -> tuple[str, tuple[str, ...]] | None:
    """`[qualifier=…?params]path` → (qualifier, segments); None for a qualifier that no channel has."""
    qualifier = ""
    while name.startswith("["):
        inner, bracket, name = name[1:].partition("]")
        word = inner.partition("?")[0].partition("=")[0]
        if not bracket or word not in _TARGET_QUALIFIERS or (word and qualifier) or (not word and not inner.startswith("?")):
            return None
        qualifier = word or qualifier
    return (qualifier, tuple(name.split(":"))) if name else None


def _pattern(resource: str) -> _Pattern:
    qualifier = ""
    if resource.startswith("["):
        qualifier, _, resource = resource[1:].partition("]")
    return _Pattern(qualifier, tuple(resource.split(":")))


@lru_cache(maxsize=PROTOCOL.capabilities_remembered)
def _parse_text(text: str) -> Capability:
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        raise RelayError(40000, "Invalid capability: not JSON") from None
    return _parse_object(decoded)


def _parse_object(source: object) -> Capability:
    if not isinstance(source, dict):
        raise RelayError(40000, "Invalid capability: must be an object of resource → list of operations")
    if len(source) > PROTOCOL.max_capability_resources:
        raise RelayError(40000, f"Invalid capability: more than {PROTOCOL.max_capability_resources} resources")
    return Capability({_checked_resource(resource): _checked_operations(operations) for resource, operations in source.items()})


def _checked_resource(resource: object) -> str:
    if not isinstance(resource, str) or not resource:
        raise RelayError(40000, "Invalid capability: a resource must be a non-empty string")
    try:
        resource.encode()
    except UnicodeEncodeError:
        raise RelayError(40000, "Invalid capability: a resource is not Unicode text") from None
    if resource.startswith("["):
        qualifier, bracket, path = resource[1:].partition("]")
        if not bracket or not qualifier or qualifier not in _RESOURCE_QUALIFIERS or not path or path.startswith("["):
            raise RelayError(
                40000, "Invalid capability: a resource's qualifier must be [meta], [queue], [filter] or [*], with a name after it"
            )
    return resource


def _checked_operations(operations: object) -> frozenset[Operation]:
    if not isinstance(operations, list | tuple) or not operations:
        raise RelayError(40000, "Invalid capability: each resource needs a non-empty list of operations")
    if "*" in operations:
        if any(operation != "*" for operation in operations):
            raise RelayError(40000, "Invalid capability: '*' stands alone in a list of operations")
        return ALL
    known = {_OPERATIONS.get(operation) if isinstance(operation, str) else None for operation in operations}
    if None in known:
        raise RelayError(40000, "Invalid capability: unknown operation")
    return frozenset(operation for operation in known if operation is not None)
