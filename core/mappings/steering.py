"""What operators do to a mapping that runs: hold it, and move it. Pure; `core.kafka.mapping_runner` carries it out.

Seeks of a mapping are numbered. Each partition of its topics remembers, in the metadata of its commit, the number of the last seek that it
has carried out, so that whoever has the partition carries out each seek once. The number is part of the publish ids of what is read from
then on: what a seek backwards brings again is no duplicate of what was published before it.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from core.mappings.mapping import Mapping
from core.rules.checks import Filter, compile_filter

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Seek(msgspec.Struct, frozen=True, kw_only=True):
    """One request to go on elsewhere. Either `to` or `offset` is given; `offset` with one topic and a `partition`."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    at: Natural
    """When it was asked for, in milliseconds since 1970."""
    to: Literal["earliest", "latest"] | Natural | None = None
    """A number is a time: the first record that is not older, in milliseconds since 1970; the end if there is none."""
    offset: Natural | None = None
    topics: list[str] = []
    """Those that it moves: all that the mapping read when it was asked for, or one."""
    pattern: str = ""
    """The mapping's pattern, if that is part of what is moved."""
    partition: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None
    """Only this one; None: all."""

    def covers(self, topic: str, partition: int) -> bool:
        if self.partition is not None and partition != self.partition:
            return False
        if topic in self.topics:
            return True
        found = _compiled(self.pattern)
        return found is not None and found.fullmatch(topic) is not None

    def takes_in(self, other: Seek) -> bool:
        """Whether it moves everything that `other` does, so that nobody needs to know of that any more."""
        if not set(other.topics) <= set(self.topics) or other.pattern not in ("", self.pattern):
            return False
        return self.partition is None or self.partition == other.partition

    def view(self) -> dict[str, Any]:
        """As the Control API shows it."""
        whole = bool(self.pattern) or len(self.topics) != 1
        topic = None if whole else self.topics[0]
        return {"number": self.number, "at": self.at, "to": self.to, "topic": topic, "partition": self.partition, "offset": self.offset}


@functools.lru_cache(256)
def _compiled(pattern: str) -> Filter | None:
    return compile_filter(pattern, "topic_pattern")


class Steering(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a mapping beside its configuration."""

    paused: bool = False
    """It keeps its partitions, and reads nothing."""
    seeks: list[Seek] = []
    """Those that some partition may not have carried out yet, oldest first."""

    @property
    def last(self) -> Seek | None:
        return self.seeks[-1] if self.seeks else None

    def seek_of(self, topic: str, partition: int) -> Seek | None:
        """The last one that moves this partition."""
        return next((seek for seek in reversed(self.seeks) if seek.covers(topic, partition)), None)

    def then(self, seek: Seek, most: int) -> Steering:
        """With one seek more; beyond `most` the oldest are forgotten."""
        kept = [one for one in self.seeks if not seek.takes_in(one)]
        return Steering(paused=self.paused, seeks=[*kept, seek][-most:])


class Wanted(NamedTuple):
    """A mapping as it is to run from now on."""

    mapping: Mapping
    steering: Steering = Steering()
