"""One port, two protocols: HTTP/1.1, HTTP/2, streamed responses and WebSockets, and what each limit does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h2.connection
import h2.events
import h2.settings
import picows
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from relay.model.limits import ListenerLimits
from relay.runtime import tls
from relay.runtime.head import BadHead, Request, parse_head
from relay.runtime.listener import Listener, Refusal, TransportInfo
from tests.support.kafka import skip_or_fail
from tests.unit.runtime.conftest import Pki

Run = Callable[[Any], Any]
UPGRADE = (
    b"GET /?key=app.key:secret&v=5 HTTP/1.1\r\nHost: localhost\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def time(_: HttpRequest) -> JSONResponse:
    return JSONResponse([0])


async def echo(request: HttpRequest) -> JSONResponse:
    return JSONResponse({"size": len(await request.body()), "path": request.url.path, "client": request.client and request.client.host})


async def sse(_: HttpRequest) -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        for number in range(3):
            yield f"data: {number}\n\n".encode()
            await asyncio.sleep(0.01)

    return StreamingResponse(events(), media_type="text/event-stream")


async def slow(_: HttpRequest) -> JSONResponse:
    await asyncio.sleep(0.3)
    return JSONResponse("done")


async def forever(_: HttpRequest) -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b": still here\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(events(), media_type="text/event-stream")


APP = Starlette(
    routes=[
        Route("/time", time),
        Route("/echo", echo, methods=["POST"]),
        Route("/sse", sse),
        Route("/slow", slow),
        Route("/forever", forever),
    ]
)


class Echo(picows.WSListener):
    """Says back what it hears."""

    def __init__(self, where: Server, request: Request) -> None:
        self.where, self.path = where, request.path

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.where.clients.append(transport)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.where.gone += 1


class Server:
    """A listener under test and what it was told."""

    def __init__(self, context: ssl.SSLContext | None, limits: dict[str, Any], app: Any = APP) -> None:
        self.requests: list[Request] = []
        self.infos: list[TransportInfo] = []
        self.refused: list[str] = []
        self.clients: list[picows.WSTransport] = []
        self.gone = 0
        self.listener = Listener(
            context=context,
            app=app,
            make_listener=self.make,
            limits=ListenerLimits(**limits),
            max_frame_bytes=65_536,
            on_refused=self.refused.append,
        )

    def make(self, request: Request, info: TransportInfo) -> picows.WSListener | Refusal:
        self.requests.append(request)
        self.infos.append(info)
        if request.path == "/refused":
            return Refusal(403, "not here")
        if request.path == "/broken":
            raise RuntimeError("internal detail")
        return Echo(self, request)

    @property
    def port(self) -> int:
        return self.listener.port


@asynccontextmanager
async def serving(context: ssl.SSLContext | None, app: Any = APP, **limits: Any) -> AsyncIterator[Server]:
    server = Server(context, limits, app)
    await server.listener.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.listener.close(0.5)
        assert server.listener.connections == 0


@pytest.fixture(params=["tls", "plain"])
def context(request: pytest.FixtureRequest, pki: Pki) -> ssl.SSLContext | None:
    return server_context(pki) if request.param == "tls" else None


def server_context(pki: Pki) -> ssl.SSLContext:
    pair = pki.files(pki.store.authority.server(["localhost", "127.0.0.1"]))
    return tls.client_side_context(pair.certificate, pair.private_key)


def client_context(pki: Pki, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki.ca))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def connect(server: Server, pki: Pki, *alpn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if server.listener.context is None:
        return await asyncio.open_connection("127.0.0.1", server.port)
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=client_context(pki, *alpn), server_hostname="localhost")


async def answer(server: Server, pki: Pki, *sent: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await connect(server, pki)
    with contextlib.suppress(OSError):
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
    received = b""
    with contextlib.suppress(OSError):
        received = await asyncio.wait_for(reader.read(-1), 5)
    writer.close()
    return received


async def websocket(server: Server, pki: Pki, path: str = "/", on_frame: Callable[[bytes], None] | None = None) -> picows.WSTransport:
    class Client(picows.WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if on_frame is not None and frame.msg_type != picows.WSMsgType.CLOSE:
                on_frame(frame.get_payload_as_bytes())

    secure = server.listener.context is not None
    url = f"{'wss' if secure else 'ws'}://localhost:{server.port}{path}"
    transport, _ = await picows.ws_connect(Client, url, ssl_context=client_context(pki) if secure else None)
    return transport


def test_http_1_1(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            got = await answer(server, pki, b"GET /time?key=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 200")
            assert got.endswith(b"[0]")
            assert server.refused == []

    run(scenario())


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_http_1_1_in_pieces_and_with_a_body(pieces: int, context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    body = b"x" * 40_000
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    step = 1 + len(request) // pieces if pieces < 64 else 1000
    parts = [request[:1], request[1:3], *(request[at : at + step] for at in range(3, len(request), step))]

    async def scenario() -> None:
        async with serving(context) as server:
            assert b'"size":40000,"path":"/echo","client":"127.0.0.1"' in await answer(server, pki, *parts)

    run(scenario())


def test_http_1_1_keeps_the_connection(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            twice = b"GET /time HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /time HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert (await answer(server, pki, twice)).count(b"[0]") == 2

    run(scenario())


def test_streamed_events(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            reader, writer = await connect(server, pki)
            writer.write(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
            for number in range(3):
                await reader.readuntil(b"data: %d\n\n" % number)
            writer.close()

    run(scenario())


def test_http_2(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki)) as server:
            reader, writer = await connect(server, pki, "h2", "http/1.1")
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            headers = [(":method", "GET"), (":path", "/time"), (":scheme", "https"), (":authority", "localhost")]
            for _ in range(3):  # three requests in one connection
                connection.send_headers(connection.get_next_available_stream_id(), headers, end_stream=True)
            writer.write(connection.data_to_send())
            bodies, ended, settings_seen = b"", 0, False
            while ended < 3:
                for event in connection.receive_data(await asyncio.wait_for(reader.read(65_536), 5)):
                    match event:
                        case h2.events.RemoteSettingsChanged():
                            settings_seen = True
                        case h2.events.DataReceived(data=data):
                            bodies += data or b""
                        case h2.events.StreamEnded():
                            ended += 1
            assert bodies == b"[0]" * 3
            # RFC 8441: were it announced, browsers would tunnel WebSockets through here, where nobody serves them.
            assert settings_seen
            assert connection.remote_settings.enable_connect_protocol == 0
            writer.close()

    run(scenario())


async def early(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers some requests before they end, and others later."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("unread", [True, False], ids=["answer is not taken", "body goes on after its answer"])
def test_an_http_2_connection_that_ends_badly_gives_its_place_back(unread: bool, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), early) as server:
            _, writer = await connect(server, pki, "h2")
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            if unread:
                connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
            headers = [(":method", "POST"), (":path", "/early"), (":scheme", "https"), (":authority", "localhost")]
            connection.send_headers(1, headers)
            connection.send_headers(3, [*headers[:1], (":path", "/slow"), *headers[2:]])
            writer.write(connection.data_to_send())
            await asyncio.sleep(0.1)
            connection.send_data(1, b"more")
            writer.write(connection.data_to_send())
            await asyncio.sleep(0.1)
            writer.transport.abort()
            async with asyncio.timeout(5):
                while server.listener._http or server.listener._open:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)

    run(scenario())


def test_curl(pki: Pki, run: Run) -> None:
    if not shutil.which("curl"):
        skip_or_fail("curl is missing")

    async def scenario() -> None:
        async with serving(server_context(pki)) as server:
            url = f"https://localhost:{server.port}/time"
            for version in ("--http2", "--http1.1"):
                command = ["curl", "-sS", version, "--noproxy", "*", "--cacert", str(pki.ca), "-w", "%{http_version}", url]
                done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=False)
                assert done.stdout.startswith(b"[0]"), done.stderr

    run(scenario())


def test_websocket(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            frames: asyncio.Queue[bytes] = asyncio.Queue()
            client = await websocket(server, pki, "/?access_token=abc&v=5", frames.put_nowait)
            for payload in (b"hello", b"x" * 60_000):
                client.send(picows.WSMsgType.BINARY, payload)
                assert await asyncio.wait_for(frames.get(), 5) == payload
            (request,), (info,) = server.requests, server.infos
            assert request.query == "access_token=abc&v=5"
            assert request.headers.get("SEC-websocket-version") == "13"
            assert info.peername[0] == "127.0.0.1"
            assert info.tls is (context is not None)
            assert server.listener.connections == 1
            client.disconnect()
            for _ in range(100):
                if server.gone:
                    break
                await asyncio.sleep(0.01)
            assert (server.gone, server.listener.connections) == (1, 0)

    run(scenario())


def test_nothing_of_the_head_stays_with_a_websocket(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            await websocket(server, pki, "/?access_token=" + "a" * 8_000)
            kept = server.clients[0].request
            assert kept.path == b"/"
            assert len(str(dict(kept.headers))) < 250

    run(scenario())


def test_an_upgrade_among_other_connection_options(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    """Firefox sends `Connection: keep-alive, Upgrade`. The accept key is that of RFC 6455 section 1.3."""

    async def scenario() -> None:
        async with serving(context) as server:
            reader, writer = await connect(server, pki)
            writer.write(UPGRADE)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 101")
            assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
            writer.close()

    run(scenario())


def test_frames_that_follow_the_head_at_once_are_not_lost(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context) as server:
            reader, writer = await connect(server, pki)
            writer.write(UPGRADE + b"\x82\x82\0\0\0\0hi" + b"\x82\xfe\x0f\xa0\0\0\0\0" + b"y" * 4_000)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert await asyncio.wait_for(reader.readexactly(4), 5) == b"\x82\x02hi"
            assert (await asyncio.wait_for(reader.readexactly(4_004), 5)).endswith(b"y" * 4_000)
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (UPGRADE.replace(b"Version: 13", b"Version: 8"), b"426", "bad_request"),
        (UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), b"400", "bad_request"),
        (UPGRADE + b"z" * 20_000, b"400", "bad_request"),
        (UPGRADE.replace(b"GET /", b"GET /refused"), b"403", "bad_request"),
        (UPGRADE.replace(b"GET /", b"GET /broken"), b"500", "other"),
        (b"\0\1\2\3\r\n\r\n", b"400", "bad_request"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", b"400", "bad_request"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000, b"431", "head_too_large"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431", "head_too_large"),
        (b"GET / HT", b"408", "head_deadline"),
        (b"", b"408", "head_deadline"),
    ],
)
def test_refusals(sent: bytes, status: bytes, reason: str, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), head_deadline_s=0.3) as server:
            got = await answer(server, pki, sent)
            assert got.startswith(b"HTTP/1.1 " + status)
            assert b"internal detail" not in got
            assert b"secret" not in got
            assert server.refused == [reason]

    run(scenario())


def test_a_listener_for_websockets_only(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), app=None) as server:
            assert (await answer(server, pki, b"GET /time HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 404")
            assert server.refused == ["no_http"]
            await websocket(server, pki)

    run(scenario())


def test_more_connections_than_allowed_are_reset(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(context, max_connections=2) as server:
            kept = [await websocket(server, pki), await websocket(server, pki)]
            with pytest.raises((OSError, picows.WSError)):
                await websocket(server, pki)
            assert server.refused == ["too_many_connections"]
            kept.pop().disconnect()
            for _ in range(100):
                if server.listener.connections == 1:
                    break
                await asyncio.sleep(0.01)
            await websocket(server, pki)

    run(scenario())


def test_more_http_connections_than_allowed_get_503(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), max_http_connections=1) as server:
            reader, writer = await connect(server, pki)
            writer.write(b"GET /forever HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"still here")
            assert (await answer(server, pki, b"GET /time HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 503")
            await websocket(server, pki)  # not HTTP: not bounded by it
            assert server.refused == ["too_many_http_connections"]
            writer.close()

    run(scenario())


def test_handshakes_beyond_the_limit_wait(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), max_handshakes=2, accepts_per_turn=1, handshake_deadline_s=0.3) as server:
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
            client = await asyncio.wait_for(websocket(server, pki), 10)  # once the silent ones have timed out
            client.disconnect()
            async with asyncio.timeout(5):  # two time out at about the same time, and it takes the place of the first
                while len(server.refused) < 4:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            assert server.refused == ["timeout"] * 4
            for _, writer in silent:
                writer.close()

    run(scenario())


def test_silent_handshakes_give_way_long_before_their_deadline(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki), max_handshakes=2, handshake_yield_s=0.2, handshake_deadline_s=60.0) as server:
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
            client = await asyncio.wait_for(websocket(server, pki), 10)
            client.disconnect()
            assert set(server.refused) == {"timeout"}
            for reader, _ in silent[:2]:
                assert await asyncio.wait_for(reader.read(), 10) == b"", "dropped, and not only forgotten"
            for _, writer in silent:
                writer.close()

    run(scenario())


def test_in_a_storm_of_honest_clients_no_handshake_gives_way(pki: Pki, run: Run) -> None:
    """Or each would be dropped half-way, and come again, for as long as the storm lasts."""

    async def scenario() -> None:
        async with serving(server_context(pki), max_handshakes=4, handshake_yield_s=1.5, handshake_deadline_s=60.0) as server:
            slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            until = asyncio.get_running_loop().time() + 4.0
            while asyncio.get_running_loop().time() < until:
                clients = await asyncio.gather(*(websocket(server, pki) for _ in range(4)))
                for client in clients:
                    client.disconnect()
            assert server.refused == [], "the slow ones were there for longer than twice the wait"
            for _, writer in slow:
                writer.close()

    run(scenario())


def test_a_frame_beyond_the_limit_ends_only_its_connection(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki)) as server:
            frames: asyncio.Queue[bytes] = asyncio.Queue()
            good, bad = await websocket(server, pki, on_frame=frames.put_nowait), await websocket(server, pki)
            bad.send(picows.WSMsgType.BINARY, b"x" * 70_000)
            await asyncio.wait_for(bad.wait_disconnected(), 5)
            assert bad.close_handshake.recv.code == picows.WSCloseCode.MESSAGE_TOO_BIG
            good.send(picows.WSMsgType.TEXT, b"still here")
            assert await asyncio.wait_for(frames.get(), 5) == b"still here"

    run(scenario())


def test_close_lets_requests_finish_and_ends_the_endless(context: ssl.SSLContext | None, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        server = Server(context, {})
        await server.listener.start("127.0.0.1", 0)
        port = server.port
        client = await websocket(server, pki)
        endless, endless_writer = await connect(server, pki)
        endless_writer.write(b"GET /forever HTTP/1.1\r\nHost: x\r\n\r\n")
        await endless.readuntil(b"still here")
        finishing = asyncio.create_task(answer(server, pki, b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
        silent, silent_writer = await connect(server, pki)
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        await server.listener.close(0.8)
        assert asyncio.get_running_loop().time() - started < 2.5
        assert b'"done"' in await finishing
        await asyncio.wait_for(client.wait_disconnected(), 5)
        with contextlib.suppress(OSError):
            await asyncio.wait_for(endless.read(-1), 5)
        with contextlib.suppress(OSError):
            await asyncio.wait_for(silent.read(-1), 5)
        assert server.listener.connections == 0
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        endless_writer.close()
        silent_writer.close()

    run(scenario())


def test_two_listeners_share_a_port(run: Run) -> None:
    async def scenario() -> None:
        one = await Listener(context=None, app=APP, make_listener=lambda request, info: Refusal(404)).start("127.0.0.1", 0, reuse_port=True)
        other = Listener(context=None, app=APP, make_listener=lambda request, info: Refusal(404))
        await other.start("127.0.0.1", one.port, reuse_port=True)
        third = Listener(context=None, app=APP, make_listener=lambda request, info: Refusal(404))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {one.port}"):
            await third.start("127.0.0.1", one.port)
        await one.close(1)
        await other.close(1)

    run(scenario())


def test_failed_connections_leave_no_descriptor_behind(pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with serving(server_context(pki)) as server:
            before = len(os.listdir("/proc/self/fd"))
            for payload in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"") * 10:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(payload)
                if not payload:
                    writer.write_eof()
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            for _ in range(100):
                if len(server.refused) == 30:
                    break
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)
            assert len(server.refused) == 30
            assert len(os.listdir("/proc/self/fd")) <= before

    run(scenario())


# --- heads ---------------------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_a_head_or_a_bad_head(data: bytes) -> None:
    with contextlib.suppress(BadHead):
        request = parse_head(data)
        assert request.method
        _ = request.wants_websocket, request.websocket_key, request.path, request.query


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=8))
def test_fields_come_back_without_regard_to_case(fields: list[tuple[str, str]]) -> None:
    head = "GET /a?b HTTP/1.1" + "".join(f"\r\n{name}:  {value}\t" for name, value in fields)
    request = parse_head(head.encode())
    assert (request.path, request.query) == ("/a", "b")
    for name, _ in fields:
        assert request.headers.all(name.swapcase()) == [value for key, value in fields if key.lower() == name.lower()]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1\r\n folded: x",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n: x",
        b"GET / HTTP/1.1\r\na: b\rc",
        b"GET / HTTP/1.1\na: b",
        b"GET / HTTP/1.1\r\na: b\0",
    ],
)
def test_bad_heads(head: bytes) -> None:
    with pytest.raises(BadHead):
        parse_head(head)


def test_a_request_does_not_show_its_query() -> None:
    request = parse_head(UPGRADE.removesuffix(b"\r\n\r\n"))
    assert request.wants_websocket
    assert request.websocket_key is not None
    assert len(base64.b64decode(request.websocket_key)) == 16
    assert repr(request) == "Request(GET /)"


def test_connections_that_the_collector_finds_on_another_thread_are_gone_without_a_word(
    pki: Pki, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a core, where Kafka's threads allocate too."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    async def scenario() -> None:
        async with serving(None) as server:
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await answer(server, pki, b"GET /time HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                await asyncio.sleep(0.05)
                await asyncio.to_thread(gc.collect)
            finally:
                gc.enable()

    run(scenario())
    assert [str(each.exc_value) for each in unraisable] == []  # type: ignore[attr-defined]
