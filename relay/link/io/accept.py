"""The core's end of the link: a listener for edges, and nothing but edges."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable

import structlog
from picows import WSListener

from relay.link.codec import Fault, LinkProtocolError
from relay.link.frames import Frame, Hello, Lane, Stream, Welcome
from relay.link.io.lane import PATH, LaneSocket, LinkSockets
from relay.link.session import Decoders, Ended, LaneSession, Lobby, Side, negotiate
from relay.model.limits import LinkLimits, ListenerLimits
from relay.runtime.head import Request
from relay.runtime.listener import Listener, Refusal, TransportInfo
from relay.runtime.tls import PeerRefused, peer_identity

log = structlog.get_logger("relay.link")

UpAtCore = Callable[[int, str, Hello], None]
FramesIn = Callable[[int, "list[Frame]"], None]
LostAtCore = Callable[[int, str], None]


class Accepted:
    """A socket of an edge, from its TLS handshake on; later one lane of a link."""

    __slots__ = ("deadline", "hello", "identity", "link", "pair", "socket")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.socket: LaneSocket
        self.hello: Hello | None = None
        self.pair = ""
        self.link: LinkSockets | None = None
        self.deadline: asyncio.TimerHandle | None = None


class LinkServer:
    """Accepts links: mutual TLS with an edge's SPIFFE id, hello, and both lanes. All callbacks run on the event loop.

    `on_up(link, identity, hello)`: `identity` is the SPIFFE id of the certificate; what `hello` says of itself is for people.
    `on_frames(link, frames)`: one message, in order; `on_lost(link, why)`: exactly once for each link that was up, also after `close_link`.
    `on_refused(reason)`: a socket that became no link; the words are those of `tls.REASONS`, `listener.REFUSED`, `Fault` and `Ended`,
    also counted in `refusals`.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        trust_domain: str,
        core: str,
        streams: Callable[[], list[Stream]],
        on_up: UpAtCore,
        on_frames: FramesIn,
        on_lost: LostAtCore,
        on_refused: Callable[[str], None] | None = None,
        limits: LinkLimits | None = None,
        listen: ListenerLimits | None = None,
    ) -> None:
        """`core` is this node's name; `streams` is asked at each hello, for what this core serves just then."""
        self.refusals: Counter[str] = Counter()
        self._trust_domain = trust_domain
        self._core = core
        self._streams = streams
        self._on_up = on_up
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._limits = limits or LinkLimits()
        self._decoders = Decoders(Side.CORE, self._limits)
        self._lobby: Lobby[Accepted] = Lobby(self._limits.max_unpaired)
        self._sockets: dict[LaneSocket, Accepted] = {}
        self._links: dict[int, LinkSockets] = {}
        self._last = 0
        self._listener = Listener(
            context=context,
            app=None,
            make_listener=self._accept,
            limits=listen or ListenerLimits(max_handshakes=64, max_connections=4_096, backlog=256),
            max_frame_bytes=self._limits.max_message_bytes,
            on_refused=self._refused,
        )

    async def start(self, host: str, port: int) -> LinkServer:
        """Listen; port 0 takes any free one. Raises: OSError, with the address in its text."""
        await self._listener.start(host, port)
        return self

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def links(self) -> int:
        """Links that are up."""
        return len(self._links)

    def renew(self, context: ssl.SSLContext) -> None:
        """Use another certificate from the next handshake on. Links that are up stay."""
        self._listener.context = context

    def stop_accepting(self) -> None:
        """No further links; those that are up stay (a core that drains)."""
        self._listener.stop_accepting()

    async def close(self) -> None:
        """End all links as `stopping` and stop listening. `on_lost` is called for each before this returns."""
        self.stop_accepting()
        for socket in list(self._sockets):
            socket.close(Ended.STOPPING)
        await self._listener.close(deadline_s=2.0)

    def send(self, link: int, frame: Frame, lane: Lane | None = None) -> None:
        """Queue a frame; it is encoded at once. Nothing happens for a link that is lost. `lane` None: the one that `frame` belongs to."""
        sockets = self._links.get(link)
        if sockets is not None:
            sockets.send(frame, lane)

    def bulk_queued(self, link: int) -> int:
        """Bytes that wait on the bulk lane of a link; 0 for one that is lost."""
        sockets = self._links.get(link)
        return 0 if sockets is None else sockets.bulk.session.queued

    def close_link(self, link: int, why: str) -> None:
        """End a link. `why` goes to the edge and to `on_lost`, which is called before this returns."""
        sockets = self._links.get(link)
        if sockets is not None:
            sockets.close(why)

    # --- sockets -------------------------------------------------------------------------------------------------------------------

    def _refused(self, reason: str) -> None:
        self.refusals[reason] += 1
        log.warning("link refused", reason=reason)
        if self._on_refused is not None:
            self._on_refused(reason)

    def _accept(self, request: Request, info: TransportInfo) -> WSListener | Refusal:
        if request.path != PATH:
            return Refusal(404, reason="bad_request")
        try:
            identity = peer_identity(info.ssl_object, role="edge", trust_domain=self._trust_domain)
        except PeerRefused as refused:
            return Refusal(403, reason=refused.reason)
        accepted = Accepted(identity.text)
        session = LaneSession(Side.CORE, self._limits, self._decoders, asyncio.get_running_loop().time())
        accepted.socket = LaneSocket(session, self)
        self._sockets[accepted.socket] = accepted
        return accepted.socket

    def lane_received(self, socket: LaneSocket, frames: list[Frame]) -> None:
        accepted = self._sockets[socket]
        if accepted.link is not None:
            self._on_frames(accepted.link.number, frames)
        elif accepted.hello is None:
            hello = frames[0]
            assert isinstance(hello, Hello)  # the session lets nothing else through
            accepted.hello = hello
            if hello.lane is Lane.LIVE:
                self._receive_live(accepted, hello)
            else:
                self._receive_bulk(accepted, hello)
        else:
            raise LinkProtocolError(Fault.PAIR, "frames before the bulk lane is up")

    def _receive_live(self, accepted: Accepted, hello: Hello) -> None:
        accepted.pair = secrets.token_urlsafe(16)
        self._lobby.wait(accepted.pair, accepted.identity, hello.boot, accepted)
        loop = asyncio.get_running_loop()
        accepted.deadline = loop.call_later(self._limits.handshake_s, accepted.socket.close, Ended.LATE)
        self._welcome(accepted, hello, accepted.pair)

    def _receive_bulk(self, accepted: Accepted, hello: Hello) -> None:
        live = self._lobby.claim(hello.pair, accepted.identity, hello.boot)
        if live.deadline is not None:
            live.deadline.cancel()
        self._last += 1
        link = LinkSockets(self._last, live.socket, accepted.socket)
        live.link = accepted.link = link
        self._links[link.number] = link
        self._welcome(accepted, hello, hello.pair)
        log.info("link up", link=link.number, identity=accepted.identity, site=hello.site, node=hello.node)
        assert live.hello is not None
        self._on_up(link.number, live.identity, live.hello)

    def _welcome(self, accepted: Accepted, hello: Hello, pair: str) -> None:
        now_ms = time.time_ns() // 1_000_000
        welcome = Welcome(negotiate(hello), self._core, pair, self._limits.credit_bytes, self._streams(), now_ms)
        accepted.socket.write(accepted.socket.session.welcome(welcome))

    def lane_ended(self, socket: LaneSocket, why: str) -> None:
        accepted = self._sockets.pop(socket)
        link = accepted.link
        if link is not None:
            if self._links.pop(link.number, None) is not None:
                link.close(why)
                log.info("link lost", link=link.number, identity=accepted.identity, reason=why)
                self._on_lost(link.number, why)
            return
        if accepted.deadline is not None:
            accepted.deadline.cancel()
        self._lobby.leave(accepted.pair)
        self._refused(why)
