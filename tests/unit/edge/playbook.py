"""An edge on paper: what comes in, what goes out, and a core that answers as the test tells it to."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import msgspec
import pytest

from edge.ably.websocket import payload_of
from edge.desk import Policy
from edge.effects import Broadcast, CloseClient, Effect, LinkSend, RestAnswer, TellWhenDrained, Write
from edge.events import ClientFrame, ClientLost, ClientOpened, Drained, Event, LinkFrames, LinkLost, LinkUp, RestAsked, Tick
from edge.node import EdgeNode
from relay.link.frames import (
    Admit,
    Admitted,
    Append,
    Appended,
    Barrier,
    Counted,
    Counts,
    Frame,
    Open,
    Opened,
    Reached,
    Record,
    Refused,
    Stream,
    ToEdge,
    Welcome,
)
from relay.model.channel import log_key, partition_of
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.message import Message, PresenceItem, RecordBody
from relay.model.serials import Serial

STREAM = "abcdefgh"
PARTITIONS = 4
APP = "app"
START_MS = 1_763_845_200_000
KEY = "app.key:secret"

F = TypeVar("F", bound=Frame)


class Client:
    """What one client has been sent, and whether its socket was closed."""

    def __init__(self, number: int, msgpack: bool) -> None:
        self.number = number
        self.msgpack = msgpack
        self.inbox: list[dict[str, Any]] = []
        self.raw = b""
        self.closed: int | None = None
        self.pings = 0
        self.session = ""

    def written(self, data: bytes) -> None:
        self.raw += data
        while data:
            first = data[0]
            binary, payload, data = payload_of(data)
            if first == 0x89:
                self.pings += 1
                continue
            assert binary == self.msgpack
            self.inbox.append(msgspec.msgpack.decode(payload) if binary else msgspec.json.decode(payload))


class Edge:
    def __init__(self, *, limits: EdgeLimits | None = None, cores: int = 1, **policy: Any) -> None:
        self.now = 1_000.0
        settings: dict[str, Any] = {"basic_auth": "all", "dev": True, **policy}
        random = itertools.count()
        self.node = EdgeNode(Policy(**settings), limits or EdgeLimits(), "boot", lambda size: next(random).to_bytes(size, "big"))
        self.clients: dict[int, Client] = {}
        self.sent: dict[int, list[Frame]] = {}
        self.reports: list[tuple[int, Counts]] = []
        """How many are attached where, as the cores were told; apart from everything else, for it comes with almost everything."""
        self.usage: list[tuple[int, Counted]] = []
        """What was counted for statistics, as the cores were told."""
        self.answers: dict[int, RestAnswer] = {}
        self.next_client = self.next_link = self.next_call = 0
        self.sessions = 0
        self.offset = 100
        self.full: list[int] = []
        """Clients of whom the node wants to know when they have taken everything."""
        self.slow = False
        """Clients take nothing, until the test says so with `drain`."""
        self.barriers: list[tuple[int, int]] = []
        """Barriers that cores have not answered: link and number."""
        self.behind = False
        """Cores answer no barrier, until the test says so with `reach`."""
        for number in range(cores):
            self.link_up(f"core-{number}")

    @property
    def now_ms(self) -> int:
        return START_MS + round((self.now - 1_000.0) * 1000)

    # events

    def post(self, event: Event) -> list[Effect]:
        effects = self.node.handle(event, self.now, self.now_ms)
        for effect in effects:
            match effect:
                case Write(client, frame):
                    self._client(client).written(frame)
                case Broadcast(clients, frame, skip):
                    for client in clients:
                        if client != skip:
                            self._client(client).written(frame)
                case TellWhenDrained(client):
                    self.full.append(client)
                case CloseClient(client, code):
                    assert self._client(client).closed is None, "closed twice"
                    self._client(client).closed = code
                case LinkSend(link, Barrier(req)):
                    self.barriers.append((link, req))
                case LinkSend(link, link_frame):
                    assert link in self.sent, "sent on a link that is not up"
                    # As on the wire: what is changed afterwards was not sent.
                    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(link_frame), type=type(link_frame))
                    if isinstance(copy, Counts):
                        self.reports.append((link, copy))
                    elif isinstance(copy, Counted):
                        self.usage.append((link, copy))
                    else:
                        self.sent[link].append(copy)
                case RestAnswer(call):
                    assert call not in self.answers, "answered twice"
                    self.answers[call] = effect
        if not self.behind:
            self.reach()
        if not self.slow:
            self.drain()
        return effects

    def reach(self) -> None:
        """Cores have sent all that was acknowledged before they were asked."""
        waiting, self.barriers = self.barriers, []
        for link, req in waiting:
            if link in self.sent:
                self.post(LinkFrames(link, [Reached(req)]))

    def drain(self) -> None:
        """Every client has taken what it was sent."""
        full, self.full = self.full, []
        for client in full:
            self.post(Drained(client))

    def _client(self, number: int) -> Client:
        client = self.clients[number]
        assert client.closed is None, "written after the close"
        return client

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the node when it asks for it."""
        until = self.now + seconds
        while (at := self.node.next_deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            self.post(Tick())
        self.now = until

    def link_up(self, core: str = "core", serves: tuple[int, int] = (0, PARTITIONS - 1)) -> int:
        self.next_link += 1
        self.sent[self.next_link] = []
        self.post(LinkUp(self.next_link, Welcome(1, core, "pair", 1 << 20, [Stream(STREAM, PARTITIONS, serves)], self.now_ms)))
        return self.next_link

    def link_lost(self, link: int = 1) -> None:
        del self.sent[link]
        self.post(LinkLost(link, "closed"))

    def core(self, *frames: ToEdge, link: int = 1) -> list[Effect]:
        return self.post(LinkFrames(link, frames))

    # clients

    def open(self, query: str = f"key={KEY}&v=6", *, headers: dict[str, str] | None = None, tls: bool = True) -> Client:
        self.next_client += 1
        client = self.clients[self.next_client] = Client(self.next_client, "format=msgpack" in query)
        self.post(ClientOpened(client.number, query, headers or {}, "192.0.2.1", tls))
        return client

    def connect(
        self,
        query: str = f"key={KEY}&v=6",
        *,
        capability: dict[str, list[str]] | None = None,
        client_id: str | None = "*",
        session: str = "",
        token_expires: int | None = None,
        grant_s: int = 300,
        error: ErrorInfo | None = None,
        link: int = 1,
    ) -> Client:
        """A client that the core admits. Its CONNECTED is taken out of the inbox."""
        client = self.open(query)
        (admit,) = self.take(Admit, link=link)
        if not session:
            self.sessions += 1
            session = f"session{self.sessions:03d}"
        client.session = session
        self.core(
            self.admitted(
                admit.req, session, capability=capability, client_id=client_id, token_expires=token_expires, grant_s=grant_s, error=error
            ),
            link=link,
        )
        self.gets(client, action=4)
        return client

    def admitted(
        self,
        req: int,
        session: str,
        *,
        capability: dict[str, list[str]] | None = None,
        client_id: str | None = "*",
        token_expires: int | None = None,
        grant_s: int = 300,
        error: ErrorInfo | None = None,
        key: str | None = None,
        incarnation: int = 0,
    ) -> Admitted:
        return Admitted(
            req=req,
            session=session,
            key=f"{session}!0.mac" if key is None else key,
            grant=b"grant of " + session.encode() + str(self.now_ms).encode(),
            app=APP,
            client_id=client_id,
            capability=msgspec.json.encode({"*": ["*"]} if capability is None else capability).decode(),
            grant_expires=self.now_ms + grant_s * 1000,
            token_expires=token_expires,
            incarnation=incarnation,
            error=error,
        )

    def sends(self, client: Client, **message: Any) -> None:
        encode = msgspec.msgpack.encode if client.msgpack else msgspec.json.encode
        self.send_raw(client, encode(message))

    def send_raw(self, client: Client, data: bytes) -> None:
        self.post(ClientFrame(client.number, data))

    def lose(self, client: Client, why: str = "lost") -> None:
        del self.clients[client.number]
        self.post(ClientLost(client.number, why))

    def gets(self, client: Client, **expected: Any) -> dict[str, Any]:
        """The next message of `client`, which has at least these fields."""
        assert client.inbox, "the client got nothing"
        message = client.inbox.pop(0)
        for name, value in expected.items():
            if name == "code":
                assert message["error"]["code"] == value, message
                assert message["error"]["statusCode"] > 0
            elif value is None:
                assert name not in message, message
            else:
                assert message.get(name) == value, message
        return message

    def gets_nothing(self, *clients: Client) -> None:
        for client in clients:
            assert client.inbox == []

    # the core

    def take(self, kind: type[F], *, link: int = 1) -> list[F]:
        """The frames of this kind that the core at `link` was sent since; others stay."""
        found = [frame for frame in self.sent[link] if type(frame) is kind]
        self.sent[link] = [frame for frame in self.sent[link] if type(frame) is not kind]
        return found  # type: ignore[return-value]

    def core_gets_nothing(self) -> None:
        assert not any(self.sent.values()), self.sent

    def serial(self, channel: str, offset: int) -> str:
        return Serial(STREAM, partition_of(log_key(APP, channel), PARTITIONS), offset).text

    def attach(
        self, client: Client, channel: str, *, head: int = 50, link: int = 1, members: int = 0, **fields: Any
    ) -> tuple[Open, dict[str, Any]]:
        """ATTACH to a channel that was not open, answered by the core. Answers the Open and the ATTACHED."""
        self.sends(client, action=10, channel=channel, **fields)
        opening = self.take(Open, link=link)[-1]
        self.core(Opened(opening.req, self.serial(opening.channel, head), members=members), link=link)
        return opening, self.gets(client, action=11, channel=channel)

    def record(
        self, ref: int, offset: int, *messages: Message, connection: str | None = None, id: str = "x:0", ephemeral: bool = False
    ) -> Record:
        body = RecordBody(id, self.now_ms, connection, list(messages) or [Message(name="n", data="d")], ephemeral=ephemeral)
        return Record(ref, offset, 0, msgspec.msgpack.encode(body))

    def change(
        self, ref: int, offset: int, connection: str, *items: PresenceItem, id: str | None = None, cause: int | None = None
    ) -> Record:
        """The record of a change of presence: by the connection itself, unless it has another id."""
        body = RecordBody(id or f"{connection}:{offset}", self.now_ms, connection, presence=list(items), cause=cause)
        return Record(ref, offset, 1, msgspec.msgpack.encode(body))

    def appended(self, append: Append, offset: int, *, link: int = 1) -> str:
        serial = self.serial(append.channel, offset)
        self.core(Appended(append.req, serial), link=link)
        return serial

    def refused(self, req: int, code: int, *, link: int = 1) -> None:
        self.core(Refused(req, ErrorInfo.of(code, "refused by the core")), link=link)

    # REST

    def asks(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: str = "",
        key: str | None = KEY,
        headers: dict[str, str] | None = None,
        tls: bool = True,
    ) -> int:
        self.next_call += 1
        if key is not None:
            query = f"{query}&key={key}" if query else f"key={key}"
        self.post(RestAsked(self.next_call, method, path, query, headers or {}, body, tls, "192.0.2.1"))
        return self.next_call

    def answer(self, call: int) -> tuple[int, Any, dict[str, str]]:
        answer = self.answers[call]
        headers = dict(answer.headers)
        kind = headers.get("content-type")
        if kind == "application/json" and answer.body:
            return answer.status, msgspec.json.decode(answer.body), headers
        if kind == "application/x-msgpack":
            return answer.status, msgspec.msgpack.decode(answer.body), headers
        return answer.status, answer.body, headers


@pytest.fixture
def edge() -> Edge:
    return Edge()
