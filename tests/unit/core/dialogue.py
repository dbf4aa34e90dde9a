"""A core in a script: this came in, that went out. A memory log stands for Kafka, and answers only when the script says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jwt

from core.effects import AskConfigEnd, AskEnd, AskSessionsEnd, Effect, LinkSend, Produce, WriteConfig, WriteSession
from core.events import (
    SESSIONS_END,
    ConfigRead,
    ConfigWritten,
    EdgeFrame,
    EdgeUp,
    EndOffset,
    Event,
    Looked,
    Owned,
    Reported,
    SessionRead,
    SessionWritten,
    StateRead,
    Tailed,
    Tick,
)
from core.index import MemoryIndex
from core.log import LogRecord
from core.node import CoreNode
from core.registry import App, Key, Registry, Streams
from relay.link.frames import Admit, Admitted, Append, Open, Positions, Stream, ToCore, ToEdge
from relay.model.capability import Capability
from relay.model.channel import log_key, partition_of
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from relay.model.message import Message
from relay.model.serials import Serial

EDGE = "spiffe://test/edge/eu/e1"
OTHER_EDGE = "spiffe://test/edge/eu/e2"
START_MS = 1_800_000_000_000
STREAM = Stream("aaaabbbb", 4, (0, 3))
SECRET = "0123456789abcdef0123456789abcdef"
RING = [("k1", b"\1" * 32)]


def key(app: str, key_id: str, capability: str = '{"*":["*"]}', **more: Any) -> Key:
    return Key(app=app, id=key_id, secret=SECRET, capability=Capability.parse(capability), **more)


def apps() -> list[App]:
    keys = [key("shop", "all"), key("shop", "chat", '{"chat:*":["publish","subscribe"]}'), key("shop", "gone", status=1)]
    keys.append(key("shop", "revocable", revocable_tokens=True))
    keys.append(key("shop", "filters", '{"[filter]*":["*"]}'))
    return [App(id="shop", keys={one.id: one for one in keys}), App(id="bank", keys={"all": key("bank", "all")})]


def token(
    kid: str = "shop.all", *, now_ms: int = START_MS, ttl_s: float = 3600, secret: str = SECRET, header: Any = None, **claims: Any
) -> str:
    payload = {"iat": now_ms // 1000, "exp": now_ms // 1000 + ttl_s, **claims}
    payload = {name.replace("__", "-"): value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, secret, algorithm="HS256", headers={"kid": kid, **(header or {})})


class Dialogue:
    """One core, any number of edges. `cluster` is shared by cores of one cluster: keys and configuration."""

    def __init__(
        self,
        *,
        ready: bool = True,
        owner: bool = True,
        restored: bool = True,
        limits: CoreLimits | None = None,
        sandbox: bool = False,
        static: list[App] | None = None,
        name: str = "core-1",
        index: MemoryIndex | None = None,
    ) -> None:
        self.now, self.now_ms = 1000.0, START_MS
        self.keyring = Keyring(RING)
        self.registry = Registry(apps() if static is None else static, self.keyring)
        self.index = MemoryIndex() if index is None else index
        self.node = CoreNode(
            name=name,
            streams=Streams([STREAM]),
            registry=self.registry,
            keyring=self.keyring,
            index=self.index,
            random=os.urandom,
            limits=limits,
            sandbox=sandbox,
            config_log=sandbox,
        )
        self.effects: list[Effect] = []
        self.ends = dict.fromkeys(range(STREAM.partitions), 0)
        self.last_req = 0
        self.peers: list[Dialogue] = []
        """Other cores that read what this one writes."""
        self.written: list[SessionRead] = []
        """What this core has written to the sessions topic."""
        if owner:
            self.happens(Owned(frozenset(range(STREAM.partitions))))
        if restored:
            for partition in range(STREAM.partitions):
                self.happens(StateRead(partition, None, {}))
        if ready:
            for partition in range(STREAM.partitions):
                self.happens(Looked(partition, 0, 0))
            self.tick()
            if sandbox:
                (ask,) = self.take(AskConfigEnd)
                self.happens(EndOffset(ask.ask, -1, 0))
            assert self.node.ready

    # --- in

    def happens(self, event: Event) -> None:
        self.effects += self.node.handle(event, self.now, self.now_ms)

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.now_ms += int(seconds * 1000)
        self.happens(Tick())

    def turns(self) -> None:
        """As many turns of the loop as there is work for."""
        for _ in range(10_000):
            due = self.node.next_deadline()
            if due is None or due > self.now:
                return
            self.tick()
        raise AssertionError("the core never comes to rest")

    def edge_up(self, link: int = 1, identity: str = EDGE, boot: str = "boot-1") -> int:
        self.happens(EdgeUp(link, identity, "eu", identity.rsplit("/", 1)[1], boot))
        return link

    def edge_sends(self, frame: ToCore, link: int = 1) -> None:
        self.happens(EdgeFrame(link, frame))

    def req(self) -> int:
        self.last_req += 1
        return self.last_req

    def admit(self, credential: str | None = f"shop.all:{SECRET}", link: int = 1, **more: Any) -> ToEdge:
        """Admit, and what the core answers."""
        basic = more.pop("basic", credential is not None and ":" in credential)
        frame = Admit(self.req(), credential, basic, more.pop("realtime", True), more.pop("tls", True), 6, **more)
        self.edge_sends(frame, link)
        self.turns()
        self.sessions_round()
        return self.answer(frame.req)

    def admitted(self, credential: str | None = f"shop.all:{SECRET}", link: int = 1, **more: Any) -> Admitted:
        answer = self.admit(credential, link, **more)
        assert isinstance(answer, Admitted), answer
        return answer

    def open(self, channel: str, witness: str, after: str | None = None, link: int = 1, app: str = "shop") -> int:
        """At the head the core asks first where the log ends: it is told that it has read that far."""
        req = self.req()
        asked = self.take(AskEnd)
        self.edge_sends(Open(req, app, channel, witness, after), link)
        if after is None:
            self.answer_ends(lambda _: 0)
        self.effects += asked
        return req

    def append(
        self, session: str, channel: str, publish_id: str = "", *messages: Message, fresh: bool = True, link: int = 1, **more: Any
    ) -> int:
        req = self.req()
        frame = Append(req, session, channel, publish_id or f"s:{req}:0", fresh, list(messages) or [Message(data="x")], **more)
        self.edge_sends(frame, link)
        return req

    # --- out

    def take(self, kind: type[Any]) -> list[Any]:
        """All effects of a kind so far, which are thereby accounted for."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def sent(self, link: int = 1) -> list[ToEdge]:
        """What went to an edge, the periodic `Positions` left out."""
        frames = [effect.frame for effect in self.effects if isinstance(effect, LinkSend) and effect.link == link]
        found = [frame for frame in frames if not isinstance(frame, Positions)]
        self.effects = [effect for effect in self.effects if not (isinstance(effect, LinkSend) and effect.link == link)]
        return found

    def answer(self, req: int) -> Any:
        """The one answer to a request."""
        found = [effect for effect in self.effects if isinstance(effect, LinkSend) and getattr(effect.frame, "req", None) == req]
        assert len(found) == 1, (req, self.effects)
        self.effects.remove(found[0])
        return found[0].frame

    def counted(self, reason: str) -> int:
        return self.node.counters[reason]

    # --- Kafka

    def kafka_writes(self) -> list[LogRecord]:
        """Everything produced so far is appended to the log and reported; the tail has not read it."""
        records = []
        for produce in self.take(Produce):
            offset = self.ends[produce.partition]
            self.ends[produce.partition] = offset + 1
            records.append(
                LogRecord(STREAM.id, produce.partition, offset, self.now_ms, produce.key, produce.value, produce.kind, produce.id)
            )
            self.happens(Reported(produce.ticket, produce.partition, offset))
        return records

    def kafka_round(self) -> list[LogRecord]:
        """The same, and then read back."""
        records = self.kafka_writes()
        self.happens(Tailed(records))
        return records

    def record(self, channel: str, value: bytes = b"v", publish_id: str = "s:other", app: str = "shop", ts: int | None = None) -> LogRecord:
        """A record that another core wrote: in the log, not yet read here."""
        log = log_key(app, channel)
        partition = partition_of(log, STREAM.partitions)
        offset = self.ends[partition]
        self.ends[partition] = offset + 1
        return LogRecord(STREAM.id, partition, offset, self.now_ms if ts is None else ts, log, value, 0, publish_id)

    def config_writes(self, to: list[Dialogue] | None = None) -> None:
        for write in self.take(WriteConfig):
            for core in to if to is not None else [self]:
                core.happens(ConfigRead(write.key, write.value))
            self.happens(ConfigWritten(write.ticket, True))

    def sessions_round(self) -> None:
        """What this core wrote to the sessions topic, and what follows of it, is read by it and its peers."""
        while wanted := self.take(WriteSession) + self.take(AskSessionsEnd):
            for effect in wanted:
                if isinstance(effect, AskSessionsEnd):
                    self.happens(EndOffset(effect.ask, SESSIONS_END, 0))
                    continue
                self.written.append(SessionRead(effect.key, effect.value, self.now_ms))
                for core in (self, *self.peers):
                    core.happens(self.written[-1])
                self.happens(SessionWritten(effect.ticket, True))

    def answer_ends(self, asked: Callable[[AskEnd], int | None] | None = None) -> None:
        for ask in self.take(AskEnd):
            self.happens(EndOffset(ask.ask, ask.partition, self.ends[ask.partition] if asked is None else asked(ask)))


def serial(record: LogRecord) -> str:
    return Serial(record.stream, record.partition, record.offset).text
