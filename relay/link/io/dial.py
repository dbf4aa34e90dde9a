"""The edge's end of the link: one link to each core address, dialled again whenever it is lost."""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiofastnet
import structlog
from picows import WSAutoPingStrategy, WSHandshakeError
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # public in the module, absent from its stub

from relay.link.codec import Fault, LinkProtocolError
from relay.link.frames import LOWEST_VERSION, VERSION, Frame, Hello, Lane, Welcome
from relay.link.io.lane import PATH, LaneSocket, LinkSockets, quiet
from relay.link.redial import Backoff
from relay.link.session import Decoders, Ended, LaneSession, Side
from relay.model.limits import LinkLimits
from relay.runtime.tls import PeerRefused, handshake_failure_reason, peer_identity

log = structlog.get_logger("relay.link")

READ_BUFFER_BYTES = 65_536

UpAtEdge = Callable[[int, Welcome], None]
FramesIn = Callable[[int, "list[Frame]"], None]
LostAtEdge = Callable[[int, str], None]


class DialFailed(Exception):  # noqa: N818 - an outcome
    """No lane, or no link, came of it. `reason` is the label of the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Protocol(WSProtocol):  # type: ignore[misc]
    """picows' protocol; it sends nothing before it has seen a core's certificate, and keeps what ended the connection."""

    __slots__ = ("lost", "refused", "trust_domain")
    trust_domain: str
    refused: PeerRefused | None
    lost: BaseException | None

    def connection_made(self, transport: Any) -> None:
        try:
            peer_identity(transport.get_extra_info("ssl_object"), role="core", trust_domain=self.trust_domain)
        except PeerRefused as refused:
            self.refused = refused
            transport.abort()
            return
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        if self.refused is None:
            super().connection_lost(exc)


class Dialled:
    """One lane that is being dialled, or is up."""

    __slots__ = ("link", "socket", "welcomed")

    def __init__(self, link: CoreLink, welcomed: asyncio.Future[Welcome]) -> None:
        self.socket: LaneSocket
        self.link = link
        self.welcomed = welcomed


class CoreLink:
    """A link that is up or about to be."""

    __slots__ = ("early", "lost", "number", "sockets", "up", "why")

    def __init__(self) -> None:
        self.number = 0
        self.sockets: LinkSockets | None = None
        self.up = False
        self.early: list[list[Frame]] = []
        """What the core sent on the live lane before this side saw the welcome of the bulk lane."""
        self.lost = asyncio.Event()
        self.why = ""


class Dialer:
    """Keeps a link to each of `cores` from `start` to `close`. All callbacks run on the event loop.

    `on_up(link, welcome)`: a new number each time, also for the same core; `welcome` is that of the live lane.
    `on_frames(link, frames)`: one message, in order. `on_lost(link, why)`: exactly once for each link that was up.
    `on_refused(reason)`: a dial that came to nothing; words of `tls.REASONS`, `Fault`, `Ended`, or `unreachable` and `not_a_core`;
    also counted in `refusals`.
    """

    def __init__(
        self,
        *,
        cores: Sequence[str],
        context: ssl.SSLContext,
        trust_domain: str,
        site: str,
        node: str,
        boot: str,
        on_up: UpAtEdge,
        on_frames: FramesIn,
        on_lost: LostAtEdge,
        on_refused: Callable[[str], None] | None = None,
        limits: LinkLimits | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`cores` are addresses, `host:port` or `[v6]:port`. `boot` is random per process: grants are bound to it."""
        self.refusals: Counter[str] = Counter()
        self.context = context
        """May be replaced at any time: the next dial uses it. Links that are up stay."""
        self._cores = [split_address(core) for core in cores]
        self._trust_domain = trust_domain
        self._limits = limits or LinkLimits()
        self._hello = Hello(VERSION, LOWEST_VERSION, Lane.LIVE, site, node, boot)
        self._on_up = on_up
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._chance = chance
        self._decoders = Decoders(Side.EDGE, self._limits)
        self._lanes: dict[LaneSocket, Dialled] = {}
        self._links: dict[int, CoreLink] = {}
        self._last = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> Dialer:
        """Begin dialling; returns at once. A core that is not there yet is dialled until it is."""
        self._tasks = [asyncio.get_running_loop().create_task(self._keep(host, port)) for host, port in self._cores]
        return self

    async def close(self) -> None:
        """End all links as `stopping`. `on_lost` is called for each before this returns."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for socket in list(self._lanes):
            socket.close(Ended.STOPPING)

    @property
    def links(self) -> int:
        """Links that are up."""
        return len(self._links)

    def send(self, link: int, frame: Frame, lane: Lane | None = None) -> None:
        """Queue a frame; it is encoded at once. Nothing happens for a link that is lost. `lane` None: the one that `frame` belongs to."""
        found = self._links.get(link)
        if found is not None and found.sockets is not None:
            found.sockets.send(frame, lane)

    def close_link(self, link: int, why: str) -> None:
        """End a link; it is dialled again. `on_lost` is called before this returns."""
        found = self._links.get(link)
        if found is not None and found.sockets is not None:
            found.sockets.close(why)

    # --- dialling ------------------------------------------------------------------------------------------------------------------

    async def _keep(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._limits.redial_min_s, self._limits.redial_max_s)
        failed = ""
        while True:
            try:
                link = await self._establish(host, port)
            except DialFailed as error:
                self.refusals[error.reason] += 1
                if error.reason != failed:  # a core that stays away is said once, not every few seconds
                    log.warning("cannot link to core", host=host, port=port, reason=error.reason)
                    failed = error.reason
                if self._on_refused is not None:
                    self._on_refused(error.reason)
            except Exception as error:
                # A defect of this side must not end the redialling: there may be no other core.
                loop.call_exception_handler({"message": "dialling a core failed", "exception": error})
            else:
                failed = ""
                since = loop.time()
                await link.lost.wait()
                backoff.lost(loop.time() - since, slow=link.why == Ended.SLOW)
            await asyncio.sleep(backoff.next(self._chance()))

    async def _establish(self, host: str, port: int) -> CoreLink:
        link = CoreLink()
        live, welcome = await self._dial(host, port, self._hello, link)
        try:
            bulk = await self._dial_bulk(host, port, welcome.pair, live, link)
        except BaseException:
            live.close(Ended.CLOSED)
            raise
        if live.ended is not None or bulk.ended is not None:
            live.close(Ended.CLOSED)
            bulk.close(Ended.CLOSED)
            raise DialFailed(live.ended or bulk.ended or Ended.CLOSED)
        self._last += 1
        link.number = self._last
        link.sockets = LinkSockets(link.number, live, bulk)
        self._links[link.number] = link
        link.up = True
        log.info("link up", link=link.number, core=welcome.core, host=host, port=port)
        try:
            self._on_up(link.number, welcome)
            early, link.early = link.early, []
            for frames in early:
                if not link.lost.is_set():
                    self._on_frames(link.number, frames)
        except Exception as error:
            # A defect of the node: it costs this link, never the redialling of it.
            asyncio.get_running_loop().call_exception_handler({"message": "handling a new link failed", "exception": error})
            link.sockets.close(Ended.INTERNAL)
        return link

    async def _dial_bulk(self, host: str, port: int, pair: str, live: LaneSocket, link: CoreLink) -> LaneSocket:
        """The bulk lane that ends at the same core as `live`: behind a load balancer that may take some attempts."""
        for attempt in range(self._limits.pair_attempts):
            if live.ended is not None:
                raise DialFailed(live.ended)
            try:
                bulk, _ = await self._dial(host, port, _bulk(self._hello, pair), link)
            except DialFailed as error:
                if error.reason != Fault.PAIR or attempt + 1 == self._limits.pair_attempts:
                    raise
            else:
                return bulk
        raise DialFailed(Fault.PAIR)

    async def _dial(self, host: str, port: int, hello: Hello, link: CoreLink) -> tuple[LaneSocket, Welcome]:
        loop = asyncio.get_running_loop()
        dialled = Dialled(link, loop.create_future())
        protocol: Any = None

        def listener() -> LaneSocket:
            dialled.socket = LaneSocket(LaneSession(Side.EDGE, self._limits, self._decoders, loop.time()), self)
            self._lanes[dialled.socket] = dialled
            return dialled.socket

        def make() -> _Protocol:
            made = _Protocol(
                f"{host}:{port}", PATH, True, listener, quiet, True, self._limits.handshake_s, False, 20, 20,
                WSAutoPingStrategy.PING_WHEN_IDLE, True, self._limits.max_message_bytes, None, READ_BUFFER_BYTES,
            )  # fmt: skip
            made.trust_domain = self._trust_domain
            made.refused = made.lost = None
            return made

        try:
            async with asyncio.timeout(2 * self._limits.handshake_s):
                _, protocol = await aiofastnet.create_connection(
                    loop, make, host, port, ssl=self.context, ssl_handshake_timeout=self._limits.handshake_s
                )
                if protocol.refused is not None:
                    raise protocol.refused
                await protocol.wait_until_handshake_complete()
        except PeerRefused as refused:
            raise DialFailed(refused.reason) from None
        except WSHandshakeError:
            raise DialFailed("not_a_core") from None
        except ssl.SSLError as error:
            raise DialFailed(handshake_failure_reason(error)) from None
        except TimeoutError:
            raise DialFailed(Ended.LATE) from None
        except OSError:
            raise DialFailed("unreachable") from None
        finally:
            # Cancelled or refused half way: no socket may stay behind without a lane.
            if protocol is not None and protocol.transport is not None and not hasattr(dialled, "socket"):
                protocol.transport.disconnect(False)
        if not hasattr(dialled, "socket"):  # the core went away before it answered the upgrade: most often, it refused our certificate
            raise DialFailed(handshake_failure_reason(protocol.lost))
        socket = dialled.socket
        socket.write(socket.session.greet(hello))
        try:
            return socket, await dialled.welcomed
        except asyncio.CancelledError:
            socket.close(Ended.STOPPING)
            raise

    # --- lanes ---------------------------------------------------------------------------------------------------------------------

    def lane_received(self, socket: LaneSocket, frames: list[Frame]) -> None:
        dialled = self._lanes[socket]
        if not dialled.welcomed.done():
            welcome = frames[0]
            assert isinstance(welcome, Welcome)  # the session lets nothing else through
            dialled.welcomed.set_result(welcome)
        elif (link := dialled.link).up:
            self._on_frames(link.number, frames)
        elif len(link.early) < self._limits.early_messages:
            link.early.append(frames)
        else:
            raise LinkProtocolError(Fault.PAIR, "frames before the link is up")

    def lane_ended(self, socket: LaneSocket, why: str) -> None:
        dialled = self._lanes.pop(socket)
        if not dialled.welcomed.done():
            dialled.welcomed.set_exception(DialFailed(why))
        link = dialled.link
        if self._links.pop(link.number, None) is None:
            return
        assert link.sockets is not None
        link.sockets.close(why)
        log.info("link lost", link=link.number, reason=why)
        link.why = why
        link.lost.set()
        self._on_lost(link.number, why)


def _bulk(hello: Hello, pair: str) -> Hello:
    return Hello(hello.version, hello.lowest, Lane.BULK, hello.site, hello.node, hello.boot, pair)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises: ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def new_boot() -> str:
    """A boot id: random per edge process."""
    return secrets.token_urlsafe(12)
