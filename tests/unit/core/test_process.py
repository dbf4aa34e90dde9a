"""What a core as a process does about defects of its own, and about a Kafka that falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from core.events import ConfigRead, EdgeFrame, EdgeLost, EndOffset, Event, OccupancyWanted, Tailed
from core.io.process import PROBE, SILENT_S, CoreProcess
from core.rules import Rule, RuleConfig, Version
from relay.link.frames import Depart
from relay.runtime.driver import Driver
from relay.runtime.shutdown import FAILED, Scope


class Node:
    """Fails on whatever it is told to."""

    ready = True

    def __init__(self, fails_on: type[Event]) -> None:
        self.fails_on = fails_on
        self.events: list[Event] = []

    def handle(self, event: Event, _now: float, _now_ms: int) -> list[Any]:
        self.events.append(event)
        if isinstance(event, self.fails_on):
            raise LookupError("a defect")  # noqa: TRY004
        return []

    def next_deadline(self) -> float | None:
        return None


class Links:
    """Closing a link is told to the node at once, as by `LinkServer`."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self.post = post
        self.closed: list[tuple[int, str]] = []

    def close_link(self, link: int, why: str) -> None:
        self.closed.append((link, why))
        self.post(EdgeLost(link, why))


def in_process(fails_on: type[Event], story: Callable[[CoreProcess, Scope, Node, Links], None]) -> None:
    async def main() -> None:
        scope = Scope()
        process = CoreProcess(SimpleNamespace(), scope)  # type: ignore[arg-type]
        node = Node(fails_on)
        process._node = node  # type: ignore[assignment]
        process._driver = Driver(node, process._perform, EndOffset(1, 1, None), process._failed)
        process._links = links = Links(process._driver.post)  # type: ignore[assignment]
        story(process, scope, node, links)  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_defect_met_by_an_edges_frame_costs_that_link_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def story(process: CoreProcess, scope: Scope, node: Node, links: Links) -> None:
        process._link_frames(7, [Depart("s", closed=True), Depart("s", closed=True)])
        process._deliver([Tailed([])])
        assert links.closed[0] == (7, "internal")
        assert [type(event) for event in node.events] == [EdgeFrame, EdgeLost, EdgeFrame, EdgeLost, Tailed]
        assert not scope.stopping

    in_process(EdgeFrame, story)


def test_a_defect_met_by_a_record_ends_the_process_and_loses_no_event_behind_it() -> None:
    def story(process: CoreProcess, scope: Scope, node: Node, links: Links) -> None:
        process._deliver([Tailed([]), EndOffset(3, 1, None)])
        assert [type(event) for event in node.events] == [Tailed, EndOffset]
        assert scope.stopping
        assert scope.exit_code == FAILED

    in_process(Tailed, story)


def test_a_core_that_kafka_does_not_answer_is_not_ready() -> None:
    def story(process: CoreProcess, scope: Scope, node: Node, links: Links) -> None:
        ends = SimpleNamespace(answered_at=None)
        process._ends = ends  # type: ignore[assignment]
        assert not process.ready
        ends.answered_at = process._loop.time()
        assert not process.ready, "rules could miss what is published now"
        process._owner = SimpleNamespace(ready=True)  # type: ignore[assignment]
        assert process.ready
        ends.answered_at -= SILENT_S
        assert not process.ready
        process._deliver([EndOffset(PROBE, 0, 5)])
        assert node.events == []

    in_process(Tailed, story)


def test_the_owner_is_told_of_rules_once_they_are_read_and_of_how_far_that_is() -> None:
    def rule(app: str, name: str, source: str = "channel.message") -> Rule:
        return Rule(app, msgspec.convert({"id": name, "source": {"type": source}, "target": {"routing_key": "t"}}, RuleConfig))

    def story(process: CoreProcess, scope: Scope, node: Node, links: Links) -> None:
        static, one, other = rule("file", "s"), rule("web", "r"), rule("web", "o", "channel.occupancy")
        found = [one]
        told: list[tuple[Any, int]] = []
        process._static_rules = process._rules = [static]
        process._owner = SimpleNamespace(change=lambda rules, version: told.append((rules, version.position)))  # type: ignore[assignment]
        pipelines = SimpleNamespace(rules_to_run=lambda _: [*found, rule("file", "s")])
        process._writer = SimpleNamespace(read=lambda _: False, pipelines=pipelines)  # type: ignore[assignment]
        for position, key in enumerate(["audit:1", "rule:web:r", "audit:2", "key:web.k", "rule:web:o", "app:web"], 1):
            if key == "rule:web:o":
                found.append(other)
            process._deliver([ConfigRead(key, b"")])
            process._take_up_rules(Version("c", position))
        assert told == [(None, 1), ([static, one], 2), (None, 3), (None, 4), ([static, one, other], 5), (None, 6)]
        assert node.events == [OccupancyWanted(frozenset()), OccupancyWanted(frozenset({"web"}))]

    in_process(Tailed, story)
