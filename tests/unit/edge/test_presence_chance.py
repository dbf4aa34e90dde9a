"""Many clients, links that come and go, and a core whose two lanes overtake each other: whatever happens, who follows the rules of the
specification knows in the end who is present, and has had every message once and in order since it was last told of a gap."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, NamedTuple

import msgspec
import pytest

from edge.ably.protocol import DEFAULT_MODES, Flag, Mode
from edge.events import ClientPong
from relay.link import calls
from relay.link.calls import MemberItem, MemberPage
from relay.link.frames import Fetch, Lost, Open, Opened, Page, Reached, Record, Shut, ToEdge
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.message import Kind, Message, PresenceAction, PresenceItem, RecordBody
from relay.model.serials import Serial
from tests.unit.edge.playbook import Client, Edge

ENTER, LEAVE = PresenceAction.ENTER, PresenceAction.LEAVE
NAMES = [f"n{number:02d}" for number in range(12)]


class Entry(NamedTuple):
    """One record of the partition; `kind` is None for those of other channels."""

    kind: Kind | None
    body: bytes = b""
    item: PresenceItem | None = None
    id: str = ""


class Core:
    """The log, and cores that have read some of it. `live` and `bulk` are what is on its way to the edge."""

    def __init__(self, edge: Edge, chance: random.Random) -> None:
        self.edge = edge
        self.chance = chance
        self.log: list[Entry] = []
        self.read = 0
        self.link = 1
        self.opens: dict[int, bool] = {}
        self.live: deque[ToEdge] = deque()
        self.bulk: deque[ToEdge] = deque()
        self.waiting: list[tuple[int, int]] = []

    def append(self, times: int = 1) -> None:
        for _ in range(times):
            offset = len(self.log)
            kind = self.chance.choice([Kind.MESSAGE, Kind.PRESENCE, None])
            if kind is None:
                self.log.append(Entry(None))
                continue
            item = None
            if kind == Kind.PRESENCE:
                members = self.members(offset)
                name = self.chance.choice(NAMES)
                leave = name in members and self.chance.random() < 0.6
                item = PresenceItem(LEAVE if leave else ENTER, name, data=str(offset))
            body = RecordBody(f"elsewhere0:{offset}", 1, "elsewhere0", [] if item else [Message(data="d")], presence=[item] if item else [])
            self.log.append(Entry(kind, msgspec.msgpack.encode(body), item, f"elsewhere0:{offset}:0"))

    def members(self, upto: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for offset, entry in enumerate(self.log[:upto]):
            if entry.item is not None:
                if entry.item.action == LEAVE:
                    found.pop(entry.item.client_id, None)
                else:
                    found[entry.item.client_id] = offset
        return found

    def messages(self, after: int) -> list[int]:
        return [offset for offset, entry in enumerate(self.log) if entry.kind == Kind.MESSAGE and offset > after]

    def tail(self) -> None:
        """Read one record more, and send it to whoever has the channel open."""
        if self.read < len(self.log):
            entry, offset = self.log[self.read], self.read
            self.read += 1
            if entry.kind is not None:
                self.live += [Record(ref, offset, entry.kind, entry.body) for ref, live in self.opens.items() if live]
        for end, req in [each for each in self.waiting if each[0] <= self.read]:
            self.waiting.remove((end, req))
            self.live.append(Reached(req))

    def serial(self) -> str:
        return self.edge.serial("c", self.read - 1)

    def hear(self) -> None:
        """Take what the edge has asked."""
        edge = self.edge
        for shut in edge.take(Shut, link=self.link):
            self.opens.pop(shut.ref, None)
        for ask in edge.take(Open, link=self.link):
            count = len(self.members(self.read))
            self.opens[ask.req] = True
            if ask.after is None:
                self.live.append(Opened(ask.req, self.serial(), members=count))
                continue
            after = Serial.parse(ask.after)
            assert after is not None
            if self.chance.random() < 0.1:
                self.bulk.append(Opened(ask.req, self.serial(), ErrorInfo.of(90003, "expired"), members=count))
                continue
            while self.read <= after.offset:
                self.opens[ask.req] = False
                self.tail()
            self.opens[ask.req] = True
            count = len(self.members(self.read))
            for offset in range(after.offset + 1, self.read):
                entry = self.log[offset]
                if entry.kind is not None:
                    self.bulk.append(Record(ask.req, offset, entry.kind, entry.body))
            self.bulk.append(Opened(ask.req, self.serial(), members=count))
        for fetch in edge.take(Fetch, link=self.link):
            call = calls.decode(fetch.what, fetch.body)
            if isinstance(call, calls.Rewind):
                found = [offset for offset in self.messages(-1) if offset < self.read][-call.limit :]
                past = calls.Past(self.serial(), [calls.Item(offset, 0, 0, self.log[offset].body) for offset in reversed(found)])
                self.bulk.append(Page(fetch.req, 200, calls.encode_past(past)))
                continue
            assert isinstance(call, calls.Members)
            whole = [
                MemberItem(NAMES.index(name) + 1, "elsewhere0", name, self.log[place].id, 1, place, str(place))
                for name, place in sorted(self.members(self.read).items())
                if NAMES.index(name) + 1 > call.after
            ]
            piece = whole[: call.limit]
            page = MemberPage(self.serial(), piece, piece[-1].number if len(piece) < len(whole) else None)
            self.bulk.append(Page(fetch.req, 200, calls.encode_members(page)))
        asked, edge.barriers = edge.barriers, []
        self.waiting += [(len(self.log), req) for link, req in asked if link == self.link]

    def send(self, lane: deque[ToEdge], most: int) -> None:
        frames = [lane.popleft() for _ in range(min(most, len(lane)))]
        if frames:
            self.edge.core(*frames, link=self.link)

    def lose_channel(self) -> None:
        """The core can no longer serve something that it has open."""
        for ref in list(self.opens)[:1]:
            del self.opens[ref]
            self.live.append(Lost(ref, ErrorInfo.of(50001, "lost")))

    def die(self) -> None:
        self.opens.clear()
        self.live.clear()
        self.bulk.clear()
        self.waiting.clear()
        self.edge.barriers.clear()
        self.edge.link_lost(self.link)
        self.link = self.edge.link_up()
        self.read = max(0, self.read - self.chance.randrange(4))


class Reader:
    """A client that keeps to the specification: RTL4, RTL12, RTL13, RTL15b, RTP2, RTP18, RTP19."""

    def __init__(self, edge: Edge, core: Core, *, lenient: bool) -> None:
        self.edge = edge
        self.core = core
        self.lenient = lenient
        """As ably-js does, it takes a SYNC with another id for the rest of the one that is under way, unless there was a gap."""
        self.serial: str | None = None
        self.state = "detached"
        self.known: dict[str, tuple[int, str | None]] = {}
        self.residual: set[str] | None = None
        self.gone: dict[str, int] = {}
        self.sync = ""
        self.base = -1
        self.got: list[int] = []
        self.modes = int(DEFAULT_MODES)
        self.rewound = False
        self.client = self._connect()

    def _connect(self) -> Client:
        return self.edge.connect(link=self.core.link)

    def reconnect(self) -> None:
        self.follow()
        self.edge.lose(self.client)
        self.client = self._connect()
        if self.state != "detached":
            self.state = "attached"
            self.attach()

    def attach(self, *, rewind: bool = False) -> None:
        if self.state == "attaching":
            return
        again = self.state == "attached"
        fields: dict[str, Any] = {"flags": self.modes}
        self.state = "attaching"
        if again and self.serial is not None:
            fields["channelSerial"] = self.serial
        elif rewind:
            fields["params"] = {"rewind": "3"}
        self.rewound = "params" in fields
        self.edge.sends(self.client, action=10, channel="c", **fields)

    def set_modes(self, modes: int) -> None:
        self.follow()
        if self.state != "attaching":
            self.modes = modes
        if self.state == "attached":
            self.edge.sends(self.client, action=10, channel="c", flags=modes, channelSerial=self.serial)

    def detach(self) -> None:
        self.follow()
        self.edge.sends(self.client, action=12, channel="c")

    def ask_sync(self) -> None:
        self.edge.sends(self.client, action=16, channel="c")

    def follow(self) -> None:
        again = False
        inbox, self.client.inbox = self.client.inbox, []
        for message in inbox:
            match message["action"]:
                case 11:
                    self._attached(message)
                case 13:
                    again = "error" in message
                    self.state = "attached" if again else "detached"
                    if not again:
                        self.serial = None
                        self._clear()
                case 14 | 15 | 16:
                    assert self.state == "attached", f"before ATTACHED: {message}"
                    if message["action"] == 15:
                        self._message(message)
                    else:
                        self._presence(message, sync=message["action"] == 16)
                    if message["action"] != 16:
                        self.serial = message["channelSerial"]
                case 0:
                    pass
                case other:
                    raise AssertionError(other)
        if again:
            self.attach()

    def _attached(self, message: dict[str, Any]) -> None:
        resumed, has_presence = message["flags"] & Flag.RESUMED, message["flags"] & Flag.HAS_PRESENCE
        before, self.state = self.state, "attached"
        position = Serial.parse(message["channelSerial"]) if "channelSerial" in message else None
        if not resumed:
            if before == "attached":
                self.check("told of a gap")
            self.base = position.offset if position is not None and "error" not in message else -2
            self.got = []
        if "channelSerial" in message:
            self.serial = message["channelSerial"]
        if before != "attached" or not resumed:
            if not resumed and self.lenient:
                self.residual = None
            if has_presence:
                self.sync = "none"
                self._start()
            else:
                self._clear()

    def _clear(self) -> None:
        self.known.clear()
        self.gone.clear()
        self.residual = None

    def _start(self, sync: str = "") -> None:
        """A sync begins; one that was under way means nothing any more (RTP18a)."""
        if self.residual is None or (sync != self.sync and not self.lenient):
            self.residual = set(self.known)
            self.gone.clear()
        self.sync = sync

    def _message(self, message: dict[str, Any]) -> None:
        offset = Serial.parse(message["channelSerial"])
        assert offset is not None
        if self.rewound and offset.offset <= self.base:
            return
        self.got.append(offset.offset)

    def _presence(self, message: dict[str, Any], *, sync: bool) -> None:
        cursor = ""
        if sync:
            sync_id, _, cursor = message["channelSerial"].partition(":")
            self._start(sync_id)
        for entry in message["presence"]:
            name, number = entry["clientId"], int(entry["id"].split(":")[1])
            if self.residual is not None:
                self.residual.discard(name)
            if number <= max(self.known.get(name, (-1, None))[0], self.gone.get(name, -1)):
                continue
            if entry["action"] == LEAVE:
                self.known.pop(name, None)
                if self.residual is not None:
                    self.gone[name] = number
            else:
                self.known[name] = (number, entry.get("data"))
        if sync and not cursor:
            for name in self.residual or ():
                self.known.pop(name, None)
            self.residual = None

    def check(self, why: str) -> None:
        assert self.got == sorted(set(self.got)), f"{why}: order or repetition"

    def finish(self) -> None:
        if self.state == "detached":
            return
        assert self.state == "attached"
        self.check("end")
        if self.base != -2:
            assert self.got == self.core.messages(self.base)
        if self.modes & Mode.PRESENCE_SUBSCRIBE:
            assert self.residual is None, "a SYNC was promised and has not ended"
            assert {name: number for name, (number, _) in self.known.items()} == self.core.members(len(self.core.log))


@pytest.mark.parametrize("seed", range(80))
def test_whatever_happens_all_know_who_is_present_and_miss_nothing(seed: int) -> None:
    chance = random.Random(seed)
    edge = Edge(limits=EdgeLimits(sync_page_members=3, sync_window_bytes=200, members_page=5, attach_wait_s=30.0))
    edge.slow = edge.behind = True
    core = Core(edge, chance)
    core.append(10)
    core.read = chance.randrange(11)
    readers = [Reader(edge, core, lenient=lenient) for lenient in (False, True, True)]
    for _ in range(300):
        reader = chance.choice(readers)
        match chance.randrange(20):
            case 0 | 1 | 2:
                core.append()
            case 3 | 4 | 5:
                core.tail()
            case 6 | 7 | 8:
                core.send(core.live, chance.randrange(1, 4))
            case 9 | 10 | 11:
                core.send(core.bulk, chance.randrange(1, 4))
            case 12 | 13:
                core.hear()
            case 14:
                edge.drain()
            case 15:
                reader.follow()
                if reader.state == "detached":
                    reader.attach(rewind=chance.random() < 0.3)
            case 16 if chance.random() < 0.5:
                reader.detach()
            case 17 if chance.random() < 0.5:
                reader.reconnect()
            case 18 if chance.random() < 0.5:
                reader.set_modes(int(DEFAULT_MODES) if chance.random() < 0.6 else int(DEFAULT_MODES & ~Mode.PRESENCE_SUBSCRIBE))
            case 19 if chance.random() < 0.3:
                core.die()
            case 19 if chance.random() < 0.3:
                core.lose_channel()
            case 19:
                reader.ask_sync()
            case _:
                edge.wait(0.5)
        reader.follow()
        for each in readers:
            edge.post(ClientPong(each.client.number))
    while core.read < len(core.log):
        core.tail()
    for _ in range(40):
        core.hear()
        core.tail()
        core.send(core.live, 1000)
        core.send(core.bulk, 1000)
        edge.drain()
        edge.wait(0.5)
        for reader in readers:
            edge.post(ClientPong(reader.client.number))
            reader.follow()
    for reader in readers:
        reader.finish()
