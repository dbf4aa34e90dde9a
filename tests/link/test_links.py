"""Links over real sockets: mutual TLS on loopback, uvloop and aiofastnet, as in the product."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from pathlib import Path
from typing import Any

import aiofastnet
import pytest
import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from certs.authority import Authority, Issued
from certs.policy import Policy
from relay.link import frames as f
from relay.link.codec import encode
from relay.link.io.accept import LinkServer
from relay.link.io.dial import Dialer, split_address
from relay.model.limits import LinkLimits, ListenerLimits
from tests.support import bad_certs

DOMAIN = "relay.test"
QUICK = LinkLimits(ping_after_s=0.3, silent_after_s=1.0, handshake_s=1.5, redial_min_s=0.1, redial_max_s=0.2)
STREAMS = [f.Stream("abcdefgh", 4, (0, 3))]
HELLO = f.Hello(f.VERSION, f.LOWEST_VERSION, f.Lane.LIVE, "eu", "edge-1", "boot")

Scenario = Callable[[], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        aiofastnet.patch_loop(asyncio.get_running_loop())
        async with asyncio.timeout(60):
            await scenario()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, f"tasks outlived their owner: {left}"

    uvloop.run(main())


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


class Certificates:
    """Contexts without the care of the product: they present whatever they are given."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.create(Policy(DOMAIN))
        self.directory = directory
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.authority.root.certificate_pem())
        self._written = 0

    def context(self, issued: Issued | None, *, server: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        if issued is not None:
            self._written += 1
            path = self.directory / f"{self._written}.pem"
            path.write_bytes(issued.certificate_pem() + issued.private_key_pem())
            context.load_cert_chain(path)
        return context

    def edge(self) -> ssl.SSLContext:
        return self.context(self.authority.edge("eu", "edge-1"))

    def core(self) -> ssl.SSLContext:
        return self.context(self.authority.core("core-1"), server=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


class Side:
    """What one side's callbacks were told."""

    def __init__(self) -> None:
        self.up: list[tuple[Any, ...]] = []
        self.frames: list[f.Frame] = []
        self.lost: list[tuple[int, str]] = []
        self.at_up: list[f.Frame] = []
        """Sent by the side as soon as a link is up."""
        self.end: Any = None

    def on_up(self, link: int, *what: Any) -> None:
        self.up.append((link, *what))
        for frame in self.at_up:
            self.end.send(link, frame)

    def on_frames(self, link: int, frames: list[f.Frame]) -> None:
        self.frames += frames

    def on_lost(self, link: int, why: str) -> None:
        self.lost.append((link, why))


@contextlib.asynccontextmanager
async def core_at(
    context: ssl.SSLContext, port: int = 0, limits: LinkLimits = QUICK, name: str = "core-1", at_up: list[f.Frame] | None = None
) -> AsyncIterator[tuple[LinkServer, Side]]:
    side = Side()
    side.at_up = at_up or []
    server = LinkServer(
        context=context, trust_domain=DOMAIN, core=name, streams=lambda: STREAMS, limits=limits,
        on_up=side.on_up, on_frames=side.on_frames, on_lost=side.on_lost,
    )  # fmt: skip
    side.end = server
    await server.start("127.0.0.1", port)
    try:
        yield server, side
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def edge_to(
    context: ssl.SSLContext, *ports: int, limits: LinkLimits = QUICK, chance: float = 0.5
) -> AsyncIterator[tuple[Dialer, Side]]:
    side = Side()
    dialer = Dialer(
        cores=[f"127.0.0.1:{port}" for port in ports], context=context, trust_domain=DOMAIN, site="eu", node="edge-1", boot="boot",
        limits=limits, on_up=side.on_up, on_frames=side.on_frames, on_lost=side.on_lost, chance=lambda: chance,
    ).start()  # fmt: skip
    side.end = dialer
    try:
        yield dialer, side
    finally:
        await dialer.close()


class Raw(WSListener):
    """A peer with a good certificate that says what it likes."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.word = ""
        self.received = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            self.word = frame.get_close_message().decode()
            transport.disconnect()
        else:
            self.received += 1

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.closed.set()


async def raw(context: ssl.SSLContext, port: int, path: str = "/link") -> tuple[WSTransport, Raw]:
    transport, listener = await ws_connect(Raw, f"wss://127.0.0.1:{port}{path}", ssl_context=context)
    assert isinstance(listener, Raw)
    return transport, listener


# --- a good link -----------------------------------------------------------------------------------------------------------------------


def test_frames_travel_both_ways_on_both_lanes_in_order(certificates: Certificates) -> None:
    async def scenario() -> None:
        greeting = f.Drain("sent in the moment the link is up at the core")
        async with (
            core_at(certificates.core(), at_up=[greeting]) as (server, core),
            edge_to(certificates.edge(), server.port) as (dialer, edge),
        ):
            await until(lambda: edge.up and core.up)
            (at_edge, welcome), (at_core, identity, hello) = edge.up[0], core.up[0]
            assert (welcome.core, welcome.streams) == ("core-1", STREAMS)
            assert identity == f"spiffe://{DOMAIN}/edge/eu/edge-1"
            assert (hello.site, hello.node, hello.boot) == ("eu", "edge-1", "boot")
            for n in range(5_000):
                server.send(at_core, f.Record(1, n, 0, bytes(200)))
                dialer.send(at_edge, f.Shut(n))
            server.send(at_core, f.Page(1, 200, bytes(1_000_000)))
            dialer.send(at_edge, f.Fetch(2, "session", "what", b"{}"))
            await until(lambda: len(edge.frames) == 5_002 and len(core.frames) == 5_001)
            assert edge.frames[0] == greeting
            assert [r.offset for r in edge.frames if isinstance(r, f.Record)] == list(range(5_000))
            assert [s.ref for s in core.frames if isinstance(s, f.Shut)] == list(range(5_000))
            assert not edge.lost
            assert not core.lost
            assert not server.refusals
            assert not dialer.refusals

    run(scenario)


def test_an_edge_keeps_a_link_to_each_core_and_says_good_bye(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (one, core1), core_at(certificates.core(), name="core-2") as (two, core2):
            async with edge_to(certificates.edge(), one.port, two.port) as (dialer, edge):
                await until(lambda: dialer.links == 2)
                assert {welcome.core for _, welcome in edge.up} == {"core-1", "core-2"}
            await until(lambda: core1.lost and core2.lost)
            assert [why for _, why in core1.lost + core2.lost] == ["stopping", "stopping"]
            assert one.links == two.links == 0

    run(scenario)


# --- who is refused --------------------------------------------------------------------------------------------------------------------


EDGES_REFUSED: dict[str, tuple[str, Callable[[Authority], Issued | None]]] = {
    "no certificate": ("no_certificate", lambda authority: None),
    "another CA": ("unknown_ca", lambda authority: bad_certs.by_another_ca(DOMAIN)),
    "expired": ("expired", bad_certs.expired),
    "not yet valid": ("not_yet_valid", bad_certs.not_yet_valid),
    "a core's certificate": ("wrong_role", lambda authority: authority.core("core-1")),
    "an edge that calls itself a core": ("wrong_role", bad_certs.edge_usage_core_name),
    "two URI SANs": ("two_uri_sans", bad_certs.two_uri_sans),
    "another trust domain": ("wrong_trust_domain", bad_certs.foreign_trust_domain),
    "no SPIFFE id": ("not_spiffe", bad_certs.without_spiffe_id),
}


@pytest.mark.parametrize("case", EDGES_REFUSED)
def test_an_edge_is_refused_by_the_core_and_counted_under_its_own_reason(certificates: Certificates, case: str) -> None:
    reason, make = EDGES_REFUSED[case]

    async def scenario() -> None:
        context = certificates.context(make(certificates.authority))
        async with core_at(certificates.core()) as (server, core), edge_to(context, server.port) as (dialer, edge):
            await until(lambda: server.refusals and dialer.refusals)
            assert set(server.refusals) == {reason}
            assert not edge.up
            assert not core.up

    run(scenario)


CORES_REFUSED: dict[str, tuple[str, Callable[[Authority], Issued]]] = {
    "an edge's certificate": ("wrong_role", lambda authority: authority.edge("eu", "edge-1")),
    "a core that calls itself an edge": ("wrong_role", bad_certs.core_usage_edge_name),
    "another CA": ("unknown_ca", lambda authority: Authority.create(Policy(DOMAIN)).core("core-1")),
    "a web server": ("not_spiffe", bad_certs.web_server_as_core),
}


@pytest.mark.parametrize("case", CORES_REFUSED)
def test_a_core_is_refused_by_the_edge_before_anything_is_sent(certificates: Certificates, case: str) -> None:
    reason, make = CORES_REFUSED[case]

    async def scenario() -> None:
        context = certificates.context(make(certificates.authority), server=True)
        async with core_at(context) as (server, core), edge_to(certificates.edge(), server.port) as (dialer, edge):
            await until(lambda: dialer.refusals)
            assert set(dialer.refusals) == {reason}
            assert not edge.up
            assert not core.up

    run(scenario)


def test_there_is_no_http_on_the_link_port_and_no_websocket_elsewhere(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (server, _):
            for request in (b"GET /link HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=certificates.edge())
                writer.write(request)
                assert (await reader.read()).startswith(b"HTTP/1.1 404")
                writer.close()
            with pytest.raises(Exception, match="404"):
                await raw(certificates.edge(), server.port, "/other")
            assert server.refusals == Counter(no_http=2, bad_request=1)

    run(scenario)


def test_something_that_is_no_core_is_dialled_in_vain(certificates: Certificates) -> None:
    async def scenario() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        web = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certificates.core())
        async with edge_to(certificates.edge(), web.sockets[0].getsockname()[1]) as (dialer, _):
            await until(lambda: dialer.refusals["not_a_core"])
        web.close()
        async with edge_to(certificates.edge(), 1) as (dialer, _):
            await until(lambda: dialer.refusals["unreachable"] >= 3)

    run(scenario)


# --- hello -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"nonsense", "bad_hello"),
        (encode([f.Shut(1)]), "bad_hello"),
        (encode([f.Hello(99, 98, f.Lane.LIVE, "eu", "edge-1", "boot")]), "version"),
        (encode([f.Hello(1, 1, f.Lane.BULK, "eu", "edge-1", "boot", "a pair of another core")]), "pair"),
        (bytes(8_000), "oversize"),
        (b"", "late"),
        (encode([HELLO]), "late"),  # and no bulk lane follows
    ],
)
def test_a_hello_is_refused_under_its_own_reason_and_the_edge_is_told(certificates: Certificates, message: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (server, core):
            transport, listener = await raw(certificates.edge(), server.port)
            if message:
                transport.send(WSMsgType.BINARY, message)
            await listener.closed.wait()
            assert listener.word == reason
            assert server.refusals == Counter([reason])
            assert not core.up

    run(scenario)


def test_a_close_frame_need_not_say_why(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (server, _):
            for code in (None, WSCloseCode.OK):
                transport, listener = await raw(certificates.edge(), server.port)
                transport.send_close(code) if code is not None else transport.send_close()
                await listener.closed.wait()
            await until(lambda: server.refusals.total() == 2)
            assert server.refusals == Counter(closed=2)

    run(scenario)


class Balancer:
    """A TCP load balancer: connections go to `ports` in turn. Can go silent, as a stopped process or a cut cable does."""

    def __init__(self, *ports: int) -> None:
        self._ports = list(ports)
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def __aenter__(self) -> Balancer:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._ports.pop(0)
        self._ports.append(port)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers += [writer, inner_writer]
        if not self._server.is_serving():  # closed meanwhile
            writer.close()
            inner_writer.close()
            return
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            self._pipes.add(asyncio.create_task(self._pipe(source, target)))

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self.flowing.wait()
                target.write(data)
                await target.drain()
        target.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.close()


def test_a_bulk_lane_that_ends_at_another_core_is_dialled_again(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with (
            core_at(certificates.core()) as (one, _),
            core_at(certificates.core(), name="core-2") as (two, _),
            core_at(certificates.core(), name="core-3") as (three, _),
            Balancer(one.port, two.port, three.port) as balancer,
            edge_to(certificates.edge(), balancer.port) as (dialer, edge),
        ):
            await until(lambda: edge.up)
            assert edge.up[0][1].core == "core-1"
            assert two.refusals == three.refusals == Counter(pair=1)
            assert not dialer.refusals

    run(scenario)


def test_a_live_lane_that_finds_no_bulk_lane_is_given_up_after_some_attempts(certificates: Certificates) -> None:
    async def scenario() -> None:
        limits = LinkLimits(pair_attempts=3, redial_min_s=5.0, handshake_s=1.5)
        async with (
            core_at(certificates.core()) as (one, _),
            core_at(certificates.core()) as (two, _),
            Balancer(one.port, two.port, two.port, two.port) as balancer,
            edge_to(certificates.edge(), balancer.port, limits=limits) as (dialer, edge),
        ):
            await until(lambda: dialer.refusals["pair"] == 2)  # the first redial goes at once, the next after five seconds
            assert two.refusals == Counter(pair=6)
            await until(lambda: one.refusals)
            assert not edge.up

    run(scenario)


# --- ends ------------------------------------------------------------------------------------------------------------------------------


def test_a_lost_core_is_dialled_again_under_a_new_number(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (server, _):
            port = server.port
            async with edge_to(certificates.edge(), port) as (dialer, edge):
                await until(lambda: edge.up)
                await server.close()
                await until(lambda: edge.lost)
                assert edge.lost == [(1, "stopping")]
                dialer.send(1, f.Shut(1))  # a late effect for a lost link: nothing happens
                await until(lambda: dialer.refusals["unreachable"])
                async with core_at(certificates.core(), port) as (_, again):
                    await until(lambda: len(edge.up) == 2 and again.up)
                    assert edge.up[1][0] == 2
                    dialer.send(2, f.Shut(7))
                    await until(lambda: again.frames == [f.Shut(7)])

    run(scenario)


def test_either_side_may_close_a_link_and_the_other_hears_why(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with core_at(certificates.core()) as (server, core), edge_to(certificates.edge(), server.port) as (dialer, edge):
            await until(lambda: core.up and edge.up)
            server.close_link(1, "slow")
            assert core.lost == [(1, "slow")]
            await until(lambda: edge.lost)
            assert edge.lost == [(1, "slow")]
            await until(lambda: len(core.up) == 2 and len(edge.up) == 2)
            dialer.close_link(2, "a word that is no label")
            await until(lambda: len(core.lost) == 2)
            assert core.lost[1] == (2, "closed")

    run(scenario)


def test_a_peer_that_does_not_read_is_closed_as_slow_and_memory_stays_bounded(certificates: Certificates) -> None:
    async def scenario() -> None:
        limits = LinkLimits(queue_age_s=0.5, credit_bytes=64 << 20, ping_after_s=20, silent_after_s=60)
        async with core_at(certificates.core(), limits=limits) as (server, core):
            transport, listener = await raw(certificates.edge(), server.port)
            transport.send(WSMsgType.BINARY, encode([f.Hello(1, 1, f.Lane.LIVE, "eu", "edge-1", "boot", credit=1 << 40)]))
            await until(lambda: listener.received)
            pair = next(iter(server._lobby._waiting))
            bulk, _ = await raw(certificates.edge(), server.port)
            bulk.send(WSMsgType.BINARY, encode([f.Hello(1, 1, f.Lane.BULK, "eu", "edge-1", "boot", pair, credit=1 << 40)]))
            await until(lambda: core.up)
            transport.underlying_transport.pause_reading()
            began = time.monotonic()
            while not core.lost and time.monotonic() < began + 5:
                for _ in range(16):
                    server.send(1, f.Record(1, 0, 0, bytes(65_536)))
                await asyncio.sleep(0.01)
            assert core.lost == [(1, "slow")]
            transport.disconnect(False)
            bulk.disconnect(False)

    run(scenario)


def test_a_peer_without_credit_left_is_closed_as_slow_too(certificates: Certificates) -> None:
    async def scenario() -> None:
        limits = LinkLimits(queue_age_s=0.5, ping_after_s=20, silent_after_s=60)
        async with core_at(certificates.core(), limits=limits) as (server, core):
            transport, listener = await raw(certificates.edge(), server.port)
            transport.send(WSMsgType.BINARY, encode([f.Hello(1, 1, f.Lane.LIVE, "eu", "edge-1", "boot", credit=1_000)]))
            await until(lambda: listener.received)
            bulk, _ = await raw(certificates.edge(), server.port)
            pair = next(iter(server._lobby._waiting))
            bulk.send(WSMsgType.BINARY, encode([f.Hello(1, 1, f.Lane.BULK, "eu", "edge-1", "boot", pair)]))
            await until(lambda: core.up)
            server.send(1, f.Record(1, 0, 0, bytes(2_000)))
            await until(lambda: listener.received == 2)
            server.send(1, f.Record(1, 1, 0, b"waits for credit"))
            await until(lambda: core.lost)
            assert core.lost == [(1, "slow")]
            assert listener.received == 2
            bulk.disconnect(False)
            await listener.closed.wait()

    run(scenario)


def test_a_peer_that_falls_silent_is_lost_on_both_sides_within_seconds_and_found_again(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with (
            core_at(certificates.core()) as (server, core),
            Balancer(server.port) as balancer,
            edge_to(certificates.edge(), balancer.port) as (_, edge),
        ):
            await until(lambda: edge.up and core.up)
            await asyncio.sleep(1.5)
            assert not edge.lost  # an idle link is kept by pings
            balancer.flowing.clear()
            began = time.monotonic()
            await until(lambda: edge.lost and core.lost)
            assert time.monotonic() - began < 3.0
            assert edge.lost + core.lost == [(1, "silent"), (1, "silent")]
            balancer.flowing.set()
            await until(lambda: len(edge.up) == 2)

    run(scenario)


# --- whatever a peer sends -------------------------------------------------------------------------------------------------------------


def reached(what: Sized, count: int) -> bool:
    return len(what) == count


def test_malformed_messages_cost_only_the_link_that_sent_them(certificates: Certificates) -> None:
    async def scenario() -> None:
        chance = random.Random(7)
        good = encode([f.Append(1, "s", "c", "i", True, []), f.Shut(3), f.Open(5, "app", "c", "w")])
        async with (
            core_at(certificates.core()) as (server, core),
            edge_to(certificates.edge(), server.port) as (dialer, edge),
        ):
            await until(lambda: edge.up)
            context = certificates.edge()
            for n in range(60):
                live, listener = await raw(context, server.port)
                live.send(WSMsgType.BINARY, encode([HELLO]))
                await until(functools.partial(getattr, listener, "received"))
                pair = next(iter(server._lobby._waiting))
                bulk, _ = await raw(context, server.port)
                bulk.send(WSMsgType.BINARY, encode([f.Hello(1, 1, f.Lane.BULK, "eu", "edge-1", "boot", pair)]))
                await until(functools.partial(reached, core.up, n + 2))
                for _ in range(50):
                    broken = bytearray(good)
                    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
                    live.send(WSMsgType.BINARY if chance.random() < 0.95 else WSMsgType.TEXT, bytes(broken))
                live.send(WSMsgType.BINARY, b"\xc1")
                await listener.closed.wait()
                assert listener.word in ("malformed", "not_binary", "credit")
                bulk.disconnect(False)
            await until(lambda: server.links == 1)
            assert not edge.lost
            core.frames.clear()
            dialer.send(1, f.Shut(1))
            await until(lambda: core.frames == [f.Shut(1)])

    run(scenario)


def test_a_defect_of_the_node_costs_the_link_whose_frame_met_it(certificates: Certificates) -> None:
    async def scenario() -> None:
        seen: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(repr(context["exception"])))
        async with core_at(certificates.core()) as (server, core), edge_to(certificates.edge(), server.port) as (dialer, edge):
            await until(lambda: edge.up)
            server._on_frames = lambda link, frames: 1 / 0  # type: ignore[assignment]
            dialer.send(1, f.Shut(1))
            await until(lambda: core.lost and edge.lost)
            assert core.lost + edge.lost == [(1, "internal"), (1, "internal")]
            assert seen == ["ZeroDivisionError('division by zero')"]

    run(scenario)


def test_a_defect_met_while_dialling_does_not_end_the_redialling(certificates: Certificates) -> None:
    async def scenario() -> None:
        seen: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(repr(context["exception"])))
        async with core_at(certificates.core()) as (server, _), edge_to(certificates.edge(), server.port) as (dialer, edge):
            establish = dialer._establish
            dialer._establish = lambda *_: 1 / 0  # type: ignore[assignment]
            await until(lambda: seen)
            dialer._establish = establish  # type: ignore[method-assign]
            await until(lambda: edge.up)

    run(scenario)


def test_handshakes_that_never_end_are_counted_and_do_not_stop_others(certificates: Certificates) -> None:
    async def scenario() -> None:
        side = Side()
        server = LinkServer(
            context=certificates.core(), trust_domain=DOMAIN, core="core-1", streams=lambda: STREAMS, limits=QUICK,
            listen=ListenerLimits(handshake_deadline_s=0.5, head_deadline_s=0.5),
            on_up=side.on_up, on_frames=side.on_frames, on_lost=side.on_lost,
        )  # fmt: skip
        await server.start("127.0.0.1", 0)
        _, mute_writer = await asyncio.open_connection("127.0.0.1", server.port)
        _, chatty_writer = await asyncio.open_connection("127.0.0.1", server.port)
        chatty_writer.write(b"GET / HTTP/1.1\r\n\r\n")
        _, half_writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=certificates.edge())
        async with edge_to(certificates.edge(), server.port) as (_, edge):
            await until(lambda: edge.up)
            await until(lambda: server.refusals.total() == 3)
        assert server.refusals == Counter(timeout=1, not_tls=1, head_deadline=1)
        for writer in (mute_writer, chatty_writer, half_writer):
            writer.close()
        await server.close()

    run(scenario)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:70000", "host:one"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_addresses_may_be_ipv6() -> None:
    assert split_address("[::1]:9001") == ("::1", 9001)
    assert split_address("core.internal:9001") == ("core.internal", 9001)
