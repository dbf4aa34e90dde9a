"""One edge process: listener, links, metrics and the node between them.

A defect of the node that a client's frame or request brings to light costs that client or request, one that a core's frame does costs that
link. Any other (a tick, say) leaves deadlines that nobody can vouch for, so the process ends with status 1 and clients resume elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from functools import partial
from pathlib import Path
from secrets import token_bytes
from typing import Any

import structlog

from edge.config import EdgeConfig
from edge.desk import Policy
from edge.effects import Broadcast, CloseClient, Effect, LinkSend, Note, RestAnswer, TellWhenDrained, Write
from edge.events import (
    ClientFrame,
    ClientLost,
    ClientOpened,
    ClientPong,
    Drained,
    Event,
    LinkFrame,
    LinkFrames,
    LinkUp,
    RestAsked,
    RestGone,
    Stopping,
    Tick,
)
from edge.io.http import Http, application
from edge.io.metrics import EdgeCollector
from edge.io.sockets import Sockets
from edge.io.uplink import Uplink
from edge.node import EdgeNode
from relay.link.io.dial import new_boot, split_address
from relay.link.session import Ended
from relay.runtime import tls
from relay.runtime.driver import Driver
from relay.runtime.listener import Listener, Refusal
from relay.runtime.metrics import Metrics
from relay.runtime.shutdown import FAILED, CannotStart, Scope, run

log = structlog.get_logger("edge")

_INTERNAL = 1011
"""Close code, RFC 6455, 7.4.1: the server met what it cannot go on from."""
_GOODBYE_S = 0.5
"""How long DISCONNECTED may take to reach the clients at a shutdown."""


class BadSettings(CannotStart):
    """Settings that each are valid, and together are not."""


class Edge:
    """A running edge. `port` and `metrics_port` are what was bound."""

    def __init__(self, config: EdgeConfig, *, worker: int | None = None) -> None:
        check(config)
        client_context, link_context = contexts(config)
        self.config = config
        self._worker = worker
        boot = new_boot()
        policy = Policy(
            site=config.site, node=config.node, dev=config.dev, sandbox=config.sandbox and config.dev, basic_auth=config.basic_auth
        )
        self.node = EdgeNode(policy, config.limits, boot, token_bytes)
        self.driver: Driver[Event, Effect] = Driver(self.node, self.perform, Tick(), self._failed)
        post = self.driver.post
        self.sockets = Sockets(config.limits, post)
        self.http = Http(config.limits, post, tls=not config.listen.plain)
        self.uplink = Uplink(config, boot, link_context, post)
        self.refusals: Counter[str] = Counter()
        demo = Path(config.demo) if config.dev and config.demo else None
        self.listener = Listener(
            context=client_context,
            app=application(self.http, demo),
            make_listener=self.sockets.make_listener,
            limits=config.listen.limits,
            # Frames up to twice the limit reach the node, which says 40009 before it closes; the socket layer ends what is larger.
            max_frame_bytes=2 * config.limits.max_frame_bytes,
            auto_pong=False,
            on_refused=self._refused,
        )
        self.metrics = Metrics()
        self.metrics.registry.register(EdgeCollector(self.node, self.sockets, self.uplink.dialer.refusals, self.refusals))
        self._metrics_listener: Listener | None = None
        self._scope: Scope | None = None
        self._handlers: dict[type, Any] = {
            Write: self.sockets.write,
            Broadcast: self.sockets.broadcast,
            TellWhenDrained: self.sockets.tell_when_drained,
            CloseClient: self.sockets.close,
            LinkSend: self.uplink.send,
            RestAnswer: self.http.answer,
            Note: _note,
        }

    def perform(self, effect: Effect) -> None:
        self._handlers[type(effect)](effect)

    def _failed(self, event: Event, error: Exception) -> None:
        """See the module's docstring."""
        match event:
            case ClientOpened(client) | ClientFrame(client) | ClientPong(client) | Drained(client) | ClientLost(client):
                log.error("the node failed on a client: it is disconnected", on=type(event).__name__, exc_info=error)
                self.sockets.close(CloseClient(client, _INTERNAL, "internal"))
            case RestAsked(call) | RestGone(call):
                log.error("the node failed on a request", on=type(event).__name__, exc_info=error)
                self.http.answer(RestAnswer(call, 500, [], b""))
            case LinkUp(link) | LinkFrame(link) | LinkFrames(link):
                log.error("the node failed on a link: it is closed", on=type(event).__name__, link=link, exc_info=error)
                self.uplink.dialer.close_link(link, Ended.INTERNAL)
            case _:
                log.error("the node failed: ending", on=type(event).__name__, exc_info=error)
                if self._scope is not None:
                    self._scope.ask_stop(FAILED)

    def _refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    async def start(self, scope: Scope) -> Edge:
        """Listen and dial. Raises: CannotListen when an address is taken."""
        config = self.config
        self._scope = scope
        if config.metrics.port >= 0:
            port = config.metrics.port + (self._worker or 0) if config.metrics.port else 0
            listener = Listener(context=None, app=self.metrics.app(), make_listener=_no_websocket)
            self._metrics_listener = await listener.start(config.metrics.host, port)
            scope.on_stop("metrics", self._metrics_listener.close)
        self.uplink.dialer.start()
        scope.on_stop("links", self._close_links)
        await self.listener.start(config.listen.host, config.listen.port, reuse_port=self._worker is not None)
        scope.on_stop("clients", self._close_clients)
        log.info("edge is up", site=config.site, node=config.node, host=config.listen.host, port=self.port, plain=config.listen.plain)
        return self

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def metrics_port(self) -> int | None:
        return self._metrics_listener.port if self._metrics_listener is not None else None

    async def _close_clients(self) -> None:
        """Every client is told, and comes back elsewhere."""
        self.listener.stop_accepting()
        self.driver.post(Stopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self.sockets.emptied()
        await self.listener.close()
        self.sockets.stop()

    async def _close_links(self) -> None:
        await self.uplink.dialer.close()
        self.driver.close()


def check(config: EdgeConfig) -> None:
    """Raises: BadSettings."""
    listen = config.listen
    if listen.plain and (listen.certificate or listen.private_key):
        raise BadSettings("listen.plain: leave it out, or leave out certificate and private_key")
    if not listen.plain and not (listen.certificate and listen.private_key):
        raise BadSettings("listen: certificate and private_key must be set (or plain = true behind something that ends TLS)")
    if config.sandbox and not config.dev:
        raise BadSettings("sandbox: only with dev = true")
    if config.demo and not config.dev:
        raise BadSettings("demo: only with dev = true")
    if not config.link.cores:
        raise BadSettings("link.cores: name at least one core as host:port")
    for core in config.link.cores:
        try:
            split_address(core)
        except ValueError as error:
            raise BadSettings(f"link.cores: {error}") from None


def contexts(config: EdgeConfig) -> tuple[ssl.SSLContext | None, ssl.SSLContext]:
    """For clients (None: without TLS) and for the links. Raises: TlsError."""
    listen, link = config.listen, config.link
    clients = tls.client_side_context(listen.certificate, listen.private_key) if listen.certificate and listen.private_key else None
    return clients, tls.link_client_context(link.certificate, link.private_key, link.ca)


def _note(effect: Note) -> None:
    log.info(effect.event, **effect.fields)


def _no_websocket(*_: object) -> Refusal:
    return Refusal(404)


def run_edge(config: EdgeConfig, *, worker: int | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit code. `worker` numbers the processes that share one port (SO_REUSEPORT)."""
    return run(partial(_main, config, worker))


async def _main(config: EdgeConfig, worker: int | None, scope: Scope) -> None:
    await Edge(config, worker=worker).start(scope)
