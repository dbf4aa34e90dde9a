"""What a defect of the node costs: whoever met it, and nobody else."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
import websockets

from certs.authority import Authority
from certs.policy import Policy
from edge.config import EdgeConfig
from edge.effects import Effect
from edge.events import ClientFrame, Event, RestAsked
from edge.io.process import Edge
from relay.runtime.settings import build
from relay.runtime.shutdown import FAILED, Scope, new_event_loop


@pytest.fixture
def config(tmp_path: Path) -> EdgeConfig:
    authority = Authority.create(Policy("relay.test", ("127.0.0.1",)))
    leaf = authority.edge("eu", "edge-1")
    for name, data in {
        "ca.pem": authority.root.certificate_pem(),
        "e.pem": leaf.certificate_pem(),
        "e.key": leaf.private_key_pem(),
    }.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    link = {"cores": ["127.0.0.1:1"], "trust_domain": "relay.test", "certificate": "e.pem", "private_key": "e.key", "ca": "ca.pem"}
    tables = {"site": "eu", "node": "edge-1", "listen": {"port": 0, "plain": True}, "metrics": {"port": -1}, "link": link}
    return build(EdgeConfig, tables, file=tmp_path / "edge.toml", environ={})


def test_a_defect_costs_only_whoever_met_it(config: EdgeConfig) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_costs_only_whoever_met_it(config))


def test_a_defect_that_nobody_brought_ends_the_process(config: EdgeConfig) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_ends_the_process(config))


async def _costs_only_whoever_met_it(config: EdgeConfig) -> None:
    scope = Scope()
    edge = await Edge(config).start(scope)
    sound = edge.node.handle

    def handle(event: Event, now: float, now_ms: int) -> Iterable[Effect]:
        match event:
            case ClientFrame(data=b"poison"):
                raise ZeroDivisionError
            case RestAsked(raw_path="/poison"):
                raise ZeroDivisionError
            case _:
                return sound(event, now, now_ms)

    edge.node.handle = handle  # type: ignore[method-assign, assignment]
    try:
        url = f"ws://127.0.0.1:{edge.port}/?access_token=a.b.c&v=6"
        async with websockets.connect(url) as first, websockets.connect(url) as second:
            await first.send(b"poison")
            with pytest.raises(websockets.ConnectionClosed) as ended:
                await first.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1011
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{edge.port}/poison")
            assert refused.value.code == 500
            await second.ping()
            assert not scope.stopping
    finally:
        await scope.close()


async def _ends_the_process(config: EdgeConfig) -> None:
    scope = Scope()
    edge = await Edge(config).start(scope)
    try:
        edge.node.handle = lambda *_: 1 // 0  # type: ignore[method-assign, assignment]
        edge.driver._wake()
        assert scope.stopping
    finally:
        await scope.close()
    assert scope.exit_code == FAILED
