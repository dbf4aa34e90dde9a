"""A core with more to replay than the queue of a link holds, and an edge that reads slowly: over real sockets."""

from __future__ import annotations

import time
from typing import Any

import pytest

from core.effects import Effect, LinkSend
from core.events import EdgeFrame, EdgeLost, EdgeUp, Event, Tailed, Tick
from core.io.congestion import Congestion
from relay.link import frames as f
from relay.link.io.accept import LinkServer
from relay.model.limits import CoreLimits, LinkLimits
from relay.runtime.driver import Driver
from tests.link.test_links import DOMAIN, Certificates, certificates, edge_to, run, until
from tests.unit.core.dialogue import SECRET, STREAM, Dialogue, serial

__all__ = ["certificates"]

CHANNELS, RECORDS, SIZE = 24, 30, 30_000


class Core:
    """A core without Kafka: the real node, driver and link server."""

    def __init__(self, certificates: Certificates, links: LinkLimits) -> None:
        # Budgets that never hold anything back: only the link does.
        self.dialogue = Dialogue(limits=CoreLimits(link_replay_bytes_per_s=1 << 40, app_replay_bytes_per_s=1 << 40))
        self.lost: list[str] = []
        self.most = 0
        self.server = LinkServer(
            context=certificates.core(), trust_domain=DOMAIN, core="core-1", streams=lambda: [STREAM], limits=links,
            on_up=lambda link, identity, hello: self.driver.post(EdgeUp(link, identity, hello.site, hello.node, hello.boot)),
            on_frames=lambda link, frames: [self.driver.post(EdgeFrame(link, frame)) for frame in frames],
            on_lost=self._lost,
        )  # fmt: skip
        self.driver: Driver[Event, Effect] = Driver(self, self._perform, Tick())
        self.congestion = Congestion(self.server.bulk_queued, self.driver.post, links.bulk_pause_bytes)

    def handle(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        return self.dialogue.node.handle(event, now, self.dialogue.now_ms)

    def next_deadline(self) -> float | None:
        return self.dialogue.node.next_deadline()

    def _lost(self, link: int, why: str) -> None:
        self.lost.append(why)
        self.driver.post(EdgeLost(link, why))

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, LinkSend):
            self.server.send(effect.link, effect.frame, effect.lane)
            self.congestion.sent(effect.link)
            self.most = max(self.most, self.server.bulk_queued(effect.link))

    async def close(self) -> None:
        await self.server.close()
        self.congestion.close()
        self.driver.close()


@pytest.mark.parametrize("pause", [1 << 20, 1 << 40], ids=["paused", "not paused"])
def test_a_replay_waits_for_a_link_that_is_full(certificates: Certificates, pause: int) -> None:
    links = LinkLimits(bulk_pause_bytes=pause, bulk_queue_bytes=4 << 20, credit_bytes=1 << 20, ping_after_s=20, silent_after_s=60)

    async def scenario() -> None:
        core = Core(certificates, links)
        first = {}
        for name in (f"c{number}" for number in range(CHANNELS)):
            records = [core.dialogue.record(name, bytes(SIZE), f"s:{name}:{number}") for number in range(RECORDS + 1)]
            core.dialogue.happens(Tailed(records))
            first[name] = serial(records[0])
        await core.server.start("127.0.0.1", 0)
        async with edge_to(certificates.edge(), core.server.port, limits=links) as (dialer, edge):
            await until(lambda: edge.up)
            dialer.send(1, f.Admit(1, f"shop.all:{SECRET}", True, True, True, 6))
            await until(lambda: edge.frames)
            (admitted,) = edge.frames
            assert isinstance(admitted, f.Admitted)
            sockets = dialer._links[1].sockets
            assert sockets is not None
            bulk: Any = sockets.bulk._transport
            bulk.underlying_transport.pause_reading()
            for req, (name, after) in enumerate(first.items(), 2):
                dialer.send(1, f.Open(req, "shop", name, admitted.session, after))
            began = time.monotonic()
            await until(lambda: core.lost or time.monotonic() > began + 1.0)
            if pause > links.bulk_queue_bytes:
                assert core.lost == ["slow"], "the queue is too short for it all"
            else:
                bulk.underlying_transport.resume_reading()
                await until(lambda: sum(isinstance(frame, f.Opened) for frame in edge.frames) == CHANNELS, within=30)
                assert core.lost == []
                assert core.most < pause + (256 << 10)
                assert all(frame.error is None for frame in edge.frames if isinstance(frame, f.Opened))
                assert sum(isinstance(frame, f.Record) for frame in edge.frames) == CHANNELS * RECORDS
        await core.close()

    run(scenario)
