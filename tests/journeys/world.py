"""Edges and cores in one process: the real nodes, a fake wire that carries real bytes, a log in memory, and a clock that tests turn.

Clients here and in `real.py` have the same few methods, so that a journey is written once and runs in both worlds.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
from collections import deque
from typing import Any
from urllib.parse import urlencode

import jwt
import msgspec

from core.effects import AskConfigEnd, AskEnd, AskSessionsEnd, LinkClose, Produce, WriteConfig, WriteSession
from core.effects import LinkSend as CoreSends
from core.events import (
    CONFIG_END,
    SESSIONS_END,
    ConfigRead,
    ConfigWritten,
    EdgeFrame,
    EdgeLost,
    EdgeUp,
    EndOffset,
    Looked,
    OccupancyWanted,
    Owned,
    Reported,
    SessionRead,
    SessionWritten,
    StateRead,
    Tailed,
)
from core.events import Event as CoreEvent
from core.events import Tick as CoreTick
from core.fold import Fold
from core.index import MemoryIndex
from core.lifecycle import PartitionLifecycle
from core.log import LogRecord
from core.node import CoreNode
from core.occupancy_log import PartitionOccupancy
from core.presence import PartitionPresence
from core.registry import App, Key, Registry, Streams
from edge.ably.websocket import PING, payload_of
from edge.desk import Policy
from edge.effects import Broadcast, CloseClient, RestAnswer, TellWhenDrained, Write
from edge.effects import LinkSend as EdgeSends
from edge.events import ClientFrame, ClientLost, ClientOpened, ClientPong, Drained, LinkFrames, LinkLost, LinkUp, RestAsked
from edge.events import Event as EdgeEvent
from edge.events import Tick as EdgeTick
from edge.node import EdgeNode
from relay.link.codec import encode
from relay.link.frames import BULK, Lane, Stream, ToCore, ToEdge, Welcome
from relay.model.capability import Capability
from relay.model.keyring import Keyring
from relay.model.limits import EdgeLimits
from relay.model.message import Kind

APP = "shop"
SECRET = "0123456789abcdef0123456789abcdef"
KEY = f"{APP}.key:{SECRET}"
STREAM = Stream("aaaabbbb", 4, (0, 3))
START_MS = 1_800_000_000_000

_to_core = msgspec.msgpack.Decoder(list[ToCore])
_to_edge = msgspec.msgpack.Decoder(list[ToEdge])


def token(
    now_ms: int, *, key: str = KEY, capability: dict[str, list[str]] | None = None, client_id: str | None = None, ttl_s: int = 3600
) -> str:
    name, _, secret = key.partition(":")
    claims: dict[str, Any] = {"iat": now_ms // 1000, "exp": now_ms // 1000 + ttl_s}
    claims["x-ably-capability"] = json.dumps(capability or {"*": ["*"]})
    if client_id is not None:
        claims["x-ably-clientId"] = client_id
    return jwt.encode(claims, secret, algorithm="HS256", headers={"kid": name})


class Log:
    """Kafka, as far as nodes see of it: partitions of records, and two compacted topics. `frozen`: what it has to say is held back."""

    def __init__(self) -> None:
        self.partitions: list[list[LogRecord]] = [[] for _ in range(STREAM.partitions)]
        self.config: list[tuple[str, bytes | None]] = []
        self.sessions: list[tuple[str, bytes | None]] = []
        self.session_times: dict[str, int] = {}
        """Broker time of the last record of each key, in milliseconds."""
        self.frozen = False
        self.held: list[tuple[Core, CoreEvent]] = []

    def state(self, partition: int, checkpoint: int) -> dict[bytes, bytes]:
        """What the owners of a partition have written of it up to `checkpoint`."""
        fold, view, lifecycle, occupancy = Fold(1_000_000, b"state"), PartitionPresence(), PartitionLifecycle(), PartitionOccupancy()
        view.journal = lifecycle.journal = occupancy.journal = journal = {}
        for record in self.partitions[partition][:checkpoint]:
            first = fold.see(partition, record.key, record.id, record.timestamp, record.offset) is None
            if first and record.kind == Kind.LIFECYCLE:
                lifecycle.apply(record)
            elif first and record.kind == Kind.OCCUPANCY:
                occupancy.apply(record)
            elif first and record.kind != Kind.MESSAGE:
                view.apply(record, 0.0)
        return {key: value for key, value in journal.items() if value is not None}


class Core:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.inbox: deque[CoreEvent] = deque()
        keyring = Keyring([("k1", b"\1" * 32)])
        everything = Key(app=APP, id="key", secret=SECRET, capability=Capability.parse('{"[*]*":["*"]}'))
        self.node = CoreNode(
            name=name,
            streams=Streams([STREAM]),
            registry=Registry([App(id=APP, keys={"key": everything})], keyring),
            keyring=keyring,
            index=MemoryIndex(),
            random=world.random.randbytes,
            dev=True,
            sandbox=True,
            connection_lifecycle=world.connection_lifecycle,
        )
        self.alive = True
        for key, value in world.log.config:
            self.inbox.append(ConfigRead(key, value))
        for key, value in dict(world.log.sessions).items():  # compacted: the last of each key
            self.inbox.append(SessionRead(key, value, world.log.session_times[key]))
        for number, records in enumerate(world.log.partitions):
            checkpoint = world.random.choice([None, len(records), world.random.randint(0, len(records))])
            state = {} if checkpoint is None else world.log.state(number, checkpoint)
            self.inbox.append(StateRead(number, checkpoint, state))
            if records:
                self.inbox.append(Tailed(list(records)))
            self.inbox.append(Looked(number, 0, len(records)))
        if world.occupancy_wanted:
            self.inbox.append(OccupancyWanted(frozenset({APP})))
        self.inbox.append(CoreTick())


class Edge:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.inbox: deque[EdgeEvent] = deque()
        self.boot = world.random.randbytes(8).hex()
        policy = Policy(site="eu", node=name, dev=True, sandbox=True, basic_auth="all")
        self.node = EdgeNode(policy, EdgeLimits(), self.boot, world.random.randbytes)
        self.clients: dict[int, Client] = {}
        self.answers: dict[int, RestAnswer] = {}


class Wire:
    """One link. Frames travel as bytes; each lane is in order, and which lane goes first is chance."""

    def __init__(self, number: int, edge: Edge, core: Core) -> None:
        self.number, self.edge, self.core = number, edge, core
        self.up: dict[Lane, deque[bytes]] = {lane: deque() for lane in Lane}
        self.down: dict[Lane, deque[bytes]] = {lane: deque() for lane in Lane}


class World:
    """`run()` until nothing moves; `wait(seconds)` turns the clock. `seed` decides every chance."""

    real = False

    def __init__(
        self, edges: int = 1, cores: int = 1, seed: int = 0, *, occupancy_wanted: bool = False, connection_lifecycle: bool = False
    ) -> None:
        """`occupancy_wanted`: the app has a rule for occupancy. `connection_lifecycle`: as in the settings of a core."""
        self.connection_lifecycle = connection_lifecycle
        self.occupancy_wanted = occupancy_wanted
        self.random = random.Random(seed)
        self.now, self.now_ms = 1000.0, START_MS
        self.log = Log()
        self.wires: dict[int, Wire] = {}
        self.sent_to_cores: list[ToCore] = []
        self._numbers = itertools.count(1)
        self.cores = [Core(self, f"core-{n + 1}") for n in range(cores)]
        self.edges = [Edge(self, f"edge-{n + 1}") for n in range(edges)]
        self._share()
        self.run()
        for edge in self.edges:
            for core in self.cores:
                self._connect(edge, core)
        self.run()

    # --- what journeys do ----------------------------------------------------------------------------------------------------------

    def client(self, *, edge: int = 0, binary: bool = False, **params: str) -> Client:
        """A client that has dialled; its first frame is what `gets` gives first. Without credentials it uses the key."""
        if not params.keys() & {"key", "access_token", "accessToken"}:
            params["key"] = KEY
        return Client(self, self.edges[edge], binary, {"v": "6", "format": "msgpack" if binary else "json", **params})

    def token(self, **claims: Any) -> str:
        return token(self.now_ms, **claims)

    def rest(self, method: str, path: str, body: object = None, *, edge: int = 0, credential: str = KEY) -> tuple[int, Any]:
        return self.asks(method, path, body, edge=edge, credential=credential)[:2]

    def asks(self, method: str, path: str, body: object = None, *, edge: int = 0, credential: str = KEY) -> tuple[int, Any, dict[str, str]]:
        """Status, body and the links by their relation."""
        call = self.posts(method, path, body, edge=edge, credential=credential)
        self.run()
        answer = self.edges[edge].answers.pop(call)
        links = links_of([value for name, value in answer.headers if name == "link"])
        return answer.status, json.loads(answer.body) if answer.body else None, links

    def posts(self, method: str, path: str, body: object = None, *, edge: int = 0, credential: str = KEY) -> int:
        """Asks without letting the world go on; `answered` has the answer."""
        call = next(self._numbers)
        scheme = "Basic" if ":" in credential else "Bearer"
        headers = {"content-type": "application/json", "authorization": f"{scheme} {base64.b64encode(credential.encode()).decode()}"}
        raw = b"" if body is None else json.dumps(body).encode()
        node = self.edges[edge]
        path, _, query = path.partition("?")
        node.inbox.append(RestAsked(call, method, path, query, headers, raw, tls=True, address="127.0.0.1"))
        return call

    def answered(self, call: int, *, edge: int = 0) -> tuple[int, Any]:
        self.run()
        answer = self.edges[edge].answers.pop(call)
        return answer.status, json.loads(answer.body)

    def kill_core(self, number: int, *, run: bool = True) -> None:
        """SIGKILL: what it had not yet written to a wire or to Kafka is gone."""
        core = self.cores[number]
        core.alive = False
        core.inbox.clear()
        for wire in [w for w in self.wires.values() if w.core is core]:
            del self.wires[wire.number]
            wire.edge.inbox.append(LinkLost(wire.number, "connection reset"))
        self._share()
        if run:
            self.run()

    def kill_edge(self, number: int, *, run: bool = True) -> None:
        """SIGKILL, and at once another process in its place, under another boot id. Its clients' sockets are reset."""
        old = self.edges[number]
        for wire in [w for w in self.wires.values() if w.edge is old]:
            del self.wires[wire.number]
            wire.core.inbox.append(EdgeLost(wire.number, "connection reset"))
        old.inbox.clear()
        for client in old.clients.values():
            client.closed = client.closed or 1006
        self.edges[number] = Edge(self, old.name)
        for core in self.cores:
            if core.alive:
                self._connect(self.edges[number], core)
        if run:
            self.run()

    def start_core(self, number: int, *, run: bool = True) -> None:
        core = self.cores[number] = Core(self, self.cores[number].name)
        self._share()
        if run:
            self.run()
        for edge in self.edges:
            self._connect(edge, core)
        if run:
            self.run()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.run()
            nodes = [edge.node for edge in self.edges] + [core.node for core in self.cores if core.alive]
            at = min((d for node in nodes if (d := node.next_deadline()) is not None), default=end)
            if at >= end:
                break
            self._turn_clock(max(at, self.now + 0.001))
            for edge in self.edges:
                edge.inbox.append(EdgeTick())
            for core in self.cores:
                if core.alive:
                    core.inbox.append(CoreTick())
        self._turn_clock(end)
        self.run()

    def pass_time(self, seconds: float) -> None:
        """Time goes on in the middle of things; whoever waited for it hears of it when its turn comes."""
        self._turn_clock(self.now + seconds)
        for edge in self.edges:
            edge.inbox.append(EdgeTick())
        for core in self.cores:
            if core.alive:
                core.inbox.append(CoreTick())

    def _turn_clock(self, to: float) -> None:
        self.now_ms += round((to - self.now) * 1000)
        self.now = to

    def thaw(self) -> None:
        """The broker goes on: everything that it took in meanwhile is reported and read."""
        self.log.frozen = False
        for core, event in self.log.held:
            self._later(core, event)
        self.log.held.clear()
        self.run()

    def _share(self) -> None:
        """The cores that live share the partitions; each hears of it when its turn comes."""
        alive = [core for core in self.cores if core.alive]
        for index, core in enumerate(alive):
            core.inbox.append(Owned(frozenset(range(index, STREAM.partitions, len(alive)))))

    # --- the wire and the log --------------------------------------------------------------------------------------------------------

    def _connect(self, edge: Edge, core: Core) -> None:
        number = next(self._numbers)
        self.wires[number] = Wire(number, edge, core)
        core.inbox.append(EdgeUp(number, f"spiffe://test/edge/eu/{edge.name}", "eu", edge.name, edge.boot))
        edge.inbox.append(LinkUp(number, Welcome(1, core.name, "pair", 1 << 20, [STREAM], self.now_ms)))

    def run(self, steps: int | None = None) -> None:
        """One step after the other, in an order that chance decides among what can happen next, until nothing can, or `steps` of them."""
        for _ in range(2_000_000 if steps is None else steps):
            ready: list[Any] = [edge for edge in self.edges if edge.inbox]
            ready += [core for core in self.cores if core.alive and core.inbox]
            for wire in self.wires.values():
                ready += [(wire, queue) for queue in (*wire.up.values(), *wire.down.values()) if queue]
            if not ready:
                deadlines = [core for core in self.cores if core.alive and (at := core.node.next_deadline()) is not None and at <= self.now]
                if not deadlines:
                    return
                for core in deadlines:
                    core.inbox.append(CoreTick())
                continue
            match self.random.choice(ready):
                case Edge() as edge:
                    self._edge_step(edge)
                case Core() as core:
                    self._core_step(core)
                case (Wire() as wire, queue) if any(queue is q for q in wire.up.values()):
                    for frame in _to_core.decode(queue.popleft()):
                        self.sent_to_cores.append(frame)
                        wire.core.inbox.append(EdgeFrame(wire.number, frame))
                case (Wire() as wire, queue):
                    wire.edge.inbox.append(LinkFrames(wire.number, _to_edge.decode(queue.popleft())))
        if steps is None:
            raise AssertionError("the world does not come to rest")

    def _edge_step(self, edge: Edge) -> None:
        for effect in edge.node.handle(edge.inbox.popleft(), self.now, self.now_ms):
            match effect:
                case Write(client, frame):
                    edge.clients[client].arrives(frame)
                case Broadcast(clients, frame, skip):
                    for client in clients:
                        if client != skip:
                            edge.clients[client].arrives(frame)
                case TellWhenDrained(client):
                    edge.inbox.append(Drained(client))
                case CloseClient(client, code):
                    edge.clients[client].closed = code
                    edge.inbox.append(ClientLost(client, "closed"))
                case EdgeSends(link, frame, lane) if link in self.wires:
                    self.wires[link].up[_lane(frame, lane)].append(encode([frame]))
                case RestAnswer(call):
                    edge.answers[call] = effect

    def _core_step(self, core: Core) -> None:
        for effect in core.node.handle(core.inbox.popleft(), self.now, self.now_ms):
            match effect:
                case CoreSends(link, frame, lane) if link in self.wires:
                    self.wires[link].down[_lane(frame, lane)].append(encode([frame]))
                case LinkClose(link, why) if link in self.wires:
                    wire = self.wires.pop(link)
                    wire.edge.inbox.append(LinkLost(link, why))
                    core.inbox.append(EdgeLost(link, why))
                case Produce(ticket, partition, key, value, kind, publish_id):
                    records = self.log.partitions[partition]
                    record = LogRecord(STREAM.id, partition, len(records), self.now_ms, key, value, int(kind), publish_id)
                    records.append(record)
                    self._later(core, Reported(ticket, partition, record.offset))
                    for other in self.cores:
                        self._later(other, Tailed([record]))
                case AskEnd(ask, partition):
                    self._later(core, EndOffset(ask, partition, len(self.log.partitions[partition])))
                case AskConfigEnd(ask):
                    self._later(core, EndOffset(ask, CONFIG_END, len(self.log.config)))
                case AskSessionsEnd(ask):
                    self._later(core, EndOffset(ask, SESSIONS_END, len(self.log.sessions)))
                case WriteSession(ticket, key, value):
                    self.log.sessions.append((key, value))
                    self.log.session_times[key] = self.now_ms
                    for other in self.cores:
                        self._later(other, SessionRead(key, value, self.now_ms))
                    self._later(core, SessionWritten(ticket, ok=True))
                case WriteConfig(ticket, key, value):
                    self.log.config.append((key, value))
                    for other in self.cores:
                        self._later(other, ConfigRead(key, value))
                    self._later(core, ConfigWritten(ticket, ok=True))

    def _later(self, core: Core, event: CoreEvent) -> None:
        if self.log.frozen:
            self.log.held.append((core, event))
        elif core.alive:
            core.inbox.append(event)


def _lane(frame: Any, lane: Lane | None) -> Lane:
    return lane if lane is not None else Lane.BULK if type(frame) in BULK else Lane.LIVE


class Client:
    """One WebSocket. `gets` gives the next frame (heartbeats left out) and fails when there is none."""

    def __init__(self, world: World, edge: Edge, binary: bool, params: dict[str, str], *, run: bool = True) -> None:
        """`run`: the world goes on until this has been answered; else the next thing comes in the middle of it."""
        self._world, self._edge, self._binary = world, edge, binary
        self._number = next(world._numbers)
        self._frames: deque[dict[str, Any]] = deque()
        self.closed: int | None = None
        edge.clients[self._number] = self
        edge.inbox.append(ClientOpened(self._number, urlencode(params), {}, "127.0.0.1", tls=True))
        if run:
            world.run()

    def arrives(self, data: bytes) -> None:
        while data:
            if data.startswith(PING):
                self._edge.inbox.append(ClientPong(self._number))
                data = data.removeprefix(PING)
                continue
            _, payload, data = payload_of(data)
            frame = msgspec.msgpack.decode(payload) if self._binary else json.loads(payload)
            if frame["action"] != 0 or "id" in frame:
                self._frames.append(frame)

    def sends(self, **frame: Any) -> None:
        self.sends_bytes(msgspec.msgpack.encode(frame) if self._binary else json.dumps(frame).encode())

    def posts(self, **frame: Any) -> None:
        """Sends without letting the world go on."""
        self._edge.inbox.append(ClientFrame(self._number, json.dumps(frame).encode()))

    def has_more(self) -> bool:
        return bool(self._frames)

    def next(self) -> dict[str, Any]:
        return self._frames.popleft()

    def sends_bytes(self, data: bytes) -> None:
        self._edge.inbox.append(ClientFrame(self._number, data))
        self._world.run()

    def gets(self, action: int, **members: Any) -> dict[str, Any]:
        return expect(self.takes(), action, members)

    def takes(self) -> dict[str, Any]:
        """The next frame, whatever it is."""
        for _ in range(10):  # what takes its time: a core asks for the end of its configuration before it calls a key unknown
            if self._frames:
                break
            self._world.wait(1.0)
        assert self._frames, "nothing came"
        return self._frames.popleft()

    def gets_nothing(self) -> None:
        assert not self._frames, list(self._frames)

    def drops(self) -> None:
        self.leaves()
        self._world.run()

    def leaves(self) -> None:
        """Drops without letting the world go on."""
        self._edge.inbox.append(ClientLost(self._number, "reset"))


def links_of(headers: list[str]) -> dict[str, str]:
    """One header for each relation, in the form that the JavaScript client matches."""
    found = {}
    for header in headers:
        match = re.fullmatch(r"<([^,>]+)>; rel=\"(\w+)\"", header)
        assert match is not None, header
        found[match[2]] = match[1]
    return found


def expect(frame: dict[str, Any], action: int, members: dict[str, Any]) -> dict[str, Any]:
    assert frame["action"] == action, frame
    for name, value in members.items():
        assert frame.get(name) == value, frame
    return frame
