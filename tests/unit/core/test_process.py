"""What a core as a process does about defects of its own, and about a Kafka that falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from core.events import EdgeFrame, EdgeLost, EndOffset, Event, Tailed
from core.io.process import PROBE, SILENT_S, CoreProcess
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
        assert not process.ready, "nor may mappings"
        process._mappings = SimpleNamespace(ready=True)  # type: ignore[assignment]
        assert process.ready
        ends.answered_at -= SILENT_S
        assert not process.ready
        process._deliver([EndOffset(PROBE, 0, 5)])
        assert node.events == []

    in_process(Tailed, story)
