"""One listening socket, two protocols: WebSockets go to picows, everything else to Hypercorn.

A connection that agreed on `h2` by ALPN goes to Hypercorn at once. Of any other the first request head is read: `Upgrade: websocket` goes
to picows, the rest, with what was read, to Hypercorn. Then nothing of this module stays with a WebSocket but one entry in a set: 20,000
idle clients are what memory is spent on. So picows is given a head of five lines instead of the client's, because it keeps the head for
the life of the connection (2 KB, with the token in it) and sizes its read buffer by it.

The accept loop is our own (rather than `create_server`) for three reasons: it learns of every failed handshake and why, it accepts a
bounded number per turn and has a bounded number of handshakes under way, and the descriptor limit does not end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiofastnet
import structlog
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, Updated
from picows import WSAutoPingStrategy, WSListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # public in the module, absent from its stub

from relay.model.limits import ListenerLimits
from relay.runtime.head import BadHead, Request, parse_head
from relay.runtime.shutdown import CannotStart
from relay.runtime.tls import handshake_failure_reason

log = structlog.get_logger("relay.runtime.listener")

READ_BUFFER_BYTES = 1_024
"""Initial read buffer of a WebSocket (picows rounds it up to 2 KiB and doubles it when a frame needs more)."""
ACCEPT_PAUSE_S = 0.5
"""How long nothing is accepted after the process ran out of file descriptors."""
HTTP2_ENABLE_CONNECT_PROTOCOL = 8
"""RFC 8441 section 3."""
PREFACE = b"PRI * HTTP/2.0"
"""RFC 9113 section 3.4: how HTTP/2 begins where there was no ALPN."""

REFUSED = {
    "too_many_connections": "reset: more connections than `max_connections`",
    "too_many_http_connections": "503: more HTTP connections than `max_http_connections`",
    "head_too_large": "431: a request head above `max_head_bytes`",
    "head_deadline": "408: no whole request head within `head_deadline_s`",
    "bad_request": "400: not HTTP, or a malformed WebSocket upgrade",
    "no_http": "404: this listener serves WebSockets only",
}
"""Words by which refused connections are counted, besides those of a failed handshake (`tls.REASONS`)."""


class CannotListen(OSError, CannotStart):  # noqa: N818 - as the log says it
    """An address that is taken, or not this machine's."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class TransportInfo:
    """Where a WebSocket comes from. Handed over once; a client that keeps it keeps its TLS object alive."""

    peername: tuple[str, int]
    """Address and port of the other end of the TCP connection."""
    ssl_object: Any | None
    """For `tls.peer_identity`; None on a plain listener."""

    @property
    def tls(self) -> bool:
        return self.ssl_object is not None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What `make_listener` returns instead of a listener: an HTTP answer in place of the WebSocket."""

    status: int
    message: str = ""
    reason: str = "bad_request"
    """The word by which it is counted."""


MakeListener = Callable[[Request, TransportInfo], "WSListener | Refusal"]
"""Called with the head of a valid upgrade, before it is answered. What it raises is logged and answered with 500."""


class Listener:
    """One address and port. Start it once; `close` ends it for good.

    `context` may be replaced at any time: connections accepted later use the new one.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None,
        app: Any | None,
        make_listener: MakeListener,
        limits: ListenerLimits | None = None,
        max_frame_bytes: int = 65_536,
        auto_pong: bool = True,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        """`context` None means plain TCP. `app` is an ASGI application, or None for WebSockets only.

        `max_frame_bytes`: a larger WebSocket frame ends its connection with 1009. `auto_pong`: pings are answered at once, whether or not
        the peer reads; without it they reach the WebSocket's listener, which answers within its own bounds. `on_refused` is called with a
        word of REFUSED, of `tls.REASONS` or of a Refusal, once per connection that was turned away.
        """
        self.context = context
        self.limits = limits or ListenerLimits()
        self._app = ASGIWrapper(app) if app is not None else None
        self._make_listener = make_listener
        self._max_frame_bytes = max_frame_bytes
        self._auto_pong = auto_pong
        self._on_refused = on_refused or (lambda reason: None)
        self._sockets: list[socket.socket] = []
        self._accepting = False
        self._open: set[asyncio.Transport] = set()
        self._handshakes: dict[asyncio.Task[None], float] = {}
        """Since when; the oldest first."""
        self._ended_well: deque[float] = deque(maxlen=max(1, self.limits.max_handshakes // 4))
        """When the last handshakes did."""
        self._http: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._full: asyncio.TimerHandle | None = None
        """When the oldest handshake may give way; set while all places are taken."""
        self._drained: asyncio.Event | None = None
        self._config = _http_config()
        self._context = WorkerContext(None)

    # --- life ------------------------------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> Listener:
        """Listen on every address that `host` stands for; port 0 takes any free one. `reuse_port`: share the port among processes.

        Raises: CannotListen, an OSError with the address in its text.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, resolved in dict.fromkeys(found):
                # Of a free port, the first address decides for all.
                address = (resolved[0], self.port, *resolved[2:]) if self._sockets and port == 0 else resolved
                self._sockets.append(_listening(family, kind, protocol, address, self.limits.backlog, reuse_port))
        except OSError:
            for each in self._sockets:
                each.close()
            self._sockets.clear()
            raise
        self._resume_accepting()
        return self

    @property
    def port(self) -> int:
        """The port listened on; of use after `start(..., 0)`."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Open connections of either protocol, without those still in their handshake."""
        return len(self._open)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections stay. Idempotent."""
        self._pause_accepting()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._full is not None:
            self._full.cancel()
            self._full = None
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    async def close(self, deadline_s: float = 5.0) -> None:
        """Stop accepting, let HTTP requests under way finish and close every WebSocket; after `deadline_s` seconds abort what is left.

        A server that wants to say good-bye to its clients does so between `stop_accepting` and this.
        """
        self.stop_accepting()
        for task in self._handshakes:
            task.cancel()
        await self._context.terminated.set()
        self._drained = asyncio.Event()
        for transport in list(self._open):
            if not isinstance(transport.get_protocol(), asyncio.StreamReaderProtocol):
                transport.close()
        try:
            async with asyncio.timeout(deadline_s):
                await self._until_drained()
        except TimeoutError:
            log.warning("connections aborted at shutdown", connections=len(self._open))
        for task in self._http:
            task.cancel()
        for transport in list(self._open):
            transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._until_drained()

    async def _until_drained(self) -> None:
        assert self._drained is not None
        while self._open or self._http or self._handshakes:
            self._drained.clear()
            await self._drained.wait()

    # --- accepting -------------------------------------------------------------------------------------------------------------------

    def _resume_accepting(self) -> None:
        self._retry = None
        if not self._accepting and self._sockets:
            self._accepting = True
            for each in self._sockets:
                asyncio.get_running_loop().add_reader(each.fileno(), self._accept, each)

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for each in self._sockets:
                asyncio.get_running_loop().remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(self.limits.accepts_per_turn):
            if len(self._handshakes) >= self.limits.max_handshakes:
                self._make_way()
                return
            try:
                accepted, _address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # The kernel would report the socket as readable for ever: look away for a moment.
                log.warning("cannot accept connections", reason=error.strerror, connections=len(self._open))
                self._pause_accepting()
                self._retry = asyncio.get_running_loop().call_later(ACCEPT_PAUSE_S, self._resume_accepting)
                return
            if len(self._open) + len(self._handshakes) >= self.limits.max_connections:
                _reset(accepted)
                self._on_refused("too_many_connections")
                continue
            accepted.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._establish(accepted))
            self._handshakes[task] = asyncio.get_running_loop().time()
            task.add_done_callback(self._established)

    def _make_way(self) -> None:
        """All places for handshakes are taken. Who says nothing must not keep out everybody else until its deadline; but while places do
        change hands, this is a storm of honest clients, and those who were dropped would only come again."""
        loop = asyncio.get_running_loop()
        oldest, since = next(iter(self._handshakes.items()))
        wait = since + self.limits.handshake_yield_s - loop.time()
        ended = self._ended_well
        if len(ended) == ended.maxlen:
            wait = max(wait, ended[0] + self.limits.handshake_yield_s - loop.time())
        if wait <= 0:
            del self._handshakes[oldest]
            oldest.cancel()
            self._on_refused("timeout")
            return
        self._pause_accepting()  # the end of a handshake resumes it, or its age
        if self._full is None:
            self._full = loop.call_later(wait, self._aged)

    def _aged(self) -> None:
        self._full = None
        if self._retry is None:
            self._resume_accepting()

    async def _establish(self, accepted: socket.socket) -> None:
        loop, limits = asyncio.get_running_loop(), self.limits
        tls: dict[str, Any] = {}
        if self.context is not None:
            tls = {
                "ssl": self.context,
                "ssl_handshake_timeout": limits.handshake_deadline_s,
                "ssl_shutdown_timeout": limits.close_deadline_s,
            }
        try:
            await aiofastnet.connect_accepted_socket(loop, lambda: _Gate(self), accepted, **tls)
            self._ended_well.append(loop.time())
        except (OSError, EOFError) as error:  # ssl.SSLError is an OSError
            reason = handshake_failure_reason(error)
            self._on_refused(reason)
            log.debug("handshake failed", reason=reason)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._on_refused("other")
            log.exception("handshake failed")

    def _established(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        self._wake()
        if not self._accepting and self._retry is None and len(self._handshakes) < self.limits.max_handshakes:
            self._resume_accepting()

    # --- connections -----------------------------------------------------------------------------------------------------------------

    def _opened(self, transport: asyncio.Transport) -> None:
        self._open.add(transport)

    def _gone(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()

    def _refuse(self, transport: asyncio.Transport, status: int, reason: str, message: str = "", headers: str = "") -> None:
        """Answer in HTTP/1.1 and close."""
        self._on_refused(reason)
        body = message.encode()
        if body:
            headers += "content-type: text/plain; charset=utf-8\r\n"
        head = f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        transport.write(head.encode("latin-1") + body)
        transport.close()

    def _to_http(self, transport: asyncio.Transport, received: bytes, *, http2: bool) -> None:
        if self._app is None:
            self._refuse(transport, 404, "no_http", "this port serves WebSockets only\n")
            return
        if len(self._http) >= self.limits.max_http_connections:
            if http2:
                self._on_refused("too_many_http_connections")
                transport.abort()
            else:
                self._refuse(transport, 503, "too_many_http_connections", headers="retry-after: 1\r\n")
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = _HttpProtocol(reader, self, transport)
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        if received:
            protocol.data_received(received)

    def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.__class__ = _Writer
        task = asyncio.get_running_loop().create_task(self._run_http(reader, writer))
        self._http.add(task)
        task.add_done_callback(self._http_done)

    async def _run_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._app is not None
        try:
            await _HttpServer(self._app, asyncio.get_running_loop(), self._config, self._context, {}, reader, writer)
        except Exception as error:  # the connection alone is lost; its request may be in the traceback's text, so only the kind is told
            log.warning("HTTP connection failed", error=type(error).__name__)
            writer.transport.abort()

    def _http_done(self, task: asyncio.Task[None]) -> None:
        self._http.discard(task)
        self._wake()

    def _to_websocket(self, transport: asyncio.Transport, request: Request, rest: bytes) -> None:
        key = request.websocket_key
        if request.headers.get("sec-websocket-version") != "13":
            self._refuse(transport, 426, "bad_request", headers="sec-websocket-version: 13\r\nupgrade: websocket\r\n")
            return
        if key is None or len(rest) > self.limits.max_head_bytes:  # nobody may send before the 101 (RFC 6455 section 4.1)
            self._refuse(transport, 400, "bad_request")
            return
        host, port = transport.get_extra_info("peername")[:2]
        try:
            listener = self._make_listener(request, TransportInfo((host, port), transport.get_extra_info("ssl_object")))
        except Exception:
            log.exception("a WebSocket could not be served", path=request.path)
            self._refuse(transport, 500, "other")
            return
        if isinstance(listener, Refusal):
            self._refuse(transport, listener.status, listener.reason, listener.message)
            return
        # No handshake time-out (the head is here), no automatic ping (the timer wheel does it for all).
        protocol = _WebSocketProtocol(
            None, None, False, lambda _: listener, _quiet, True, None, False, 20, 20, WSAutoPingStrategy.PING_WHEN_IDLE,
            self._auto_pong, self._max_frame_bytes, None, READ_BUFFER_BYTES,
        )  # fmt: skip
        protocol.owner = self
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        # Bare picows also insists on `Connection: Upgrade` alone; Firefox sends `keep-alive, Upgrade`.
        _feed(protocol, _PLAIN_HEAD % key.encode("ascii") + rest)


_PLAIN_HEAD = (
    b"GET / HTTP/1.1\r\nHost: -\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)
_PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class _Gate(asyncio.Protocol):
    """Reads the first request head, then hands the transport over for good."""

    __slots__ = ("_deadline", "_listener", "_received", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._listener._opened(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._listener._to_http(transport, b"", http2=True)
            return
        self._deadline = asyncio.get_running_loop().call_later(self._listener.limits.head_deadline_s, self._late)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:  # refused; what still arrives is dropped
            return
        searched = max(len(self._received) - 3, 0)
        self._received += data
        end = self._received.find(b"\r\n\r\n", searched)
        if end < 0 and len(self._received) <= self._listener.limits.max_head_bytes:
            return
        transport, received = self._let_go()
        if not 0 <= end <= self._listener.limits.max_head_bytes:
            self._listener._refuse(transport, 431, "head_too_large")
        elif received.startswith(PREFACE):
            self._listener._to_http(transport, received, http2=True)
        else:
            try:
                request = parse_head(received[:end])
            except BadHead:
                self._listener._refuse(transport, 400, "bad_request")
                return
            if request.wants_websocket:
                self._listener._to_websocket(transport, request, received[end + 4 :])
            else:
                self._listener._to_http(transport, received, http2=False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        assert self._transport is not None
        self._listener._gone(self._transport)

    def _late(self) -> None:
        transport, _ = self._let_go()
        self._listener._refuse(transport, 408, "head_deadline")

    def _let_go(self) -> tuple[asyncio.Transport, bytes]:
        assert self._transport is not None
        assert self._deadline is not None
        self._deadline.cancel()
        received, self._received, self._deadline = self._received, b"", None
        return self._transport, received


class _WebSocketProtocol(WSProtocol):  # type: ignore[misc]
    """picows' protocol; it also tells the listener when the connection is gone."""

    __slots__ = ("owner",)
    owner: Listener

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner._gone(self.transport.underlying_transport)
        super().connection_lost(exc)


class _Writer(asyncio.StreamWriter):
    """A writer without asyncio's destructor, which asks the transport whether it is closed. Hypercorn leaves its writers to the garbage
    collector, which runs on any thread, and aiofastnet answers on the loop's only: each such connection put a traceback on stderr.
    """

    def __del__(self) -> None:
        pass


class _HttpProtocol(asyncio.StreamReaderProtocol):
    """The streams that Hypercorn reads and writes."""

    def __init__(self, reader: asyncio.StreamReader, owner: Listener, transport: asyncio.Transport) -> None:
        super().__init__(reader, owner._serve_http)
        self._owner, self._kept = owner, transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner._gone(self._kept)
        super().connection_lost(exc)


class _HttpServer(TCPServer):
    """Hypercorn's connection, without the offer to tunnel WebSockets through HTTP/2.

    Hypercorn announces RFC 8441, and browsers then open WebSockets inside an HTTP/2 connection that they have to the same host, where
    picows cannot serve them. Without the announcement they open a connection of their own.
    """

    _read_all = False

    async def _read_data(self) -> None:
        """Hypercorn's own. Then whoever waits to send is released, which it forgets: this task would never end, and its place stay taken.

        It also fails on DATA of a request that was answered before its end, and leaves all other requests of the connection waiting.
        """
        try:
            await super()._read_data()
        except Exception as error:
            log.debug("HTTP connection failed", error=type(error).__name__)
            self.writer.transport.abort()
            await self.protocol.handle(Closed())
        finally:
            self._read_all = True
            for buffer in list(getattr(self.protocol.protocol, "stream_buffers", {}).values()):
                await buffer.close()
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not (self._read_all and isinstance(event, Updated)):  # no idle timer for a connection that is over
            await super().protocol_send(event)

    @property
    def protocol(self) -> Any:
        return self._wrapper

    @protocol.setter
    def protocol(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        http2 = getattr(wrapper.protocol, "connection", None)
        settings = getattr(http2, "local_settings", None)
        if settings is not None and HTTP2_ENABLE_CONNECT_PROTOCOL in settings:
            del settings[HTTP2_ENABLE_CONNECT_PROTOCOL]


class _Quiet:
    """The logger that picows gets. It would log each connection, and at its debug level whole request heads.

    Not a `logging.Logger`, of which picows makes one per connection (1 KB).
    """

    __slots__ = ()

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - as logging spells it
        return level >= logging.ERROR

    def _nothing(self, *_: object, **__: object) -> None:
        return

    info = warning = log = debug = _nothing

    def error(self, message: str, *details: object, **_: object) -> None:
        """Almost always the client's doing: a frame that breaks RFC 6455, an over-long frame."""
        log.debug("WebSocket ended", what=message.partition(":")[0].partition(" %")[0])

    def exception(self, message: str, *_: object, **__: object) -> None:
        log.exception("WebSocket handler failed", what=message.partition(":")[0])


_quiet = _Quiet()


def _feed(protocol: Any, data: bytes) -> None:
    """Hand bytes to a BufferedProtocol in pieces as large as its buffer."""
    view = memoryview(data)
    while view and not protocol.transport.underlying_transport.is_closing():
        buffer = protocol.get_buffer(len(view))
        size = min(len(view), len(buffer))
        buffer[:size] = view[:size]
        protocol.buffer_updated(size)
        view = view[size:]


def _http_config() -> Config:
    """Hypercorn without an access log: request lines carry tokens in their queries."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.h11_max_incomplete_size = 16_384
    config.h2_max_header_list_size = 16_384
    config.h2_max_concurrent_streams = 64
    config.keep_alive_timeout = 30.0
    config.websocket_max_message_size = 0
    return config


def _listening(family: int, kind: int, protocol: int, address: Any, backlog: int, reuse_port: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(backlog)
    except OSError as error:
        made.close()
        raise CannotListen(error.errno, f"cannot listen on {address[0]} port {address[1]}: {error.strerror}") from None
    return made


def _reset(accepted: socket.socket) -> None:
    """Close with RST, so that a refused connection leaves no TIME_WAIT here."""
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
