"""Ten thousand malformed frames over real sockets: both tiers live on, and each frame costs its sender alone.

Frames are drawn by hypothesis and then damaged byte by byte, all from one seed, which is printed with the outcome. Behind each frame goes
a marker that is answered: so it is known which frames were read, and which of them ended their connection.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import random
import re
import ssl
import sys
import time
import tomllib
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiofastnet
import hypothesis
import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from edge.ably.protocol import Action
from relay.link import calls
from relay.link.codec import encode
from relay.link.frames import (
    Admit,
    Append,
    Credit,
    Depart,
    Fetch,
    Frame,
    Hello,
    Lane,
    Open,
    Present,
    Refused,
    Renew,
    Shut,
    ToEdge,
    Welcome,
)
from relay.model.message import Message
from relay.runtime import tls
from tests.support.product import Product

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SEED = int(os.environ.get("SEED", "20251"))
CLIENT_FRAMES, LINK_BATCHES, REQUESTS = 3_800, 2_400, 600
"""For each of the two formats; for the link; over HTTP."""
BATCH = 30
"""Frames sent before the first answer is awaited: with their markers still fewer than a client may send before CONNECTED."""
WORKERS = 4
ANSWER_S = 30.0


# --- what is sent ------------------------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=12), st.binary(max_size=12),
    st.sampled_from(["fuzz", "", "[meta]log", "[?rewind=1]fuzz", "a.b.c", "dev.key:x", "*", "x" * 3_000]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8
)
FIELDS = ("id", "channel", "channelSerial", "msgSerial", "flags", "params", "messages", "presence", "auth", "count", "error", "zzz")
MESSAGE_FIELDS = ("name", "data", "encoding", "id", "clientId", "connectionId", "extras", "action", "serial", "version", "timestamp")
MESSAGES = st.lists(st.dictionaries(st.sampled_from(MESSAGE_FIELDS), VALUES, min_size=1, max_size=4) | VALUES, min_size=1, max_size=3)
SERIAL = st.integers(0, 60)
PUBLISH = st.builds(lambda messages, n: {"action": 15, "channel": "fuzz", "msgSerial": n, "messages": messages}, MESSAGES, SERIAL)
CLIENT = st.one_of(
    st.builds(lambda value, n: {"action": 15, "channel": "fuzz", "msgSerial": n, "messages": value}, VALUES, SERIAL),
    st.builds(lambda params, n: {"action": 15, "channel": "fuzz", "msgSerial": n, "messages": {}, "params": params}, VALUES, SERIAL),
    st.builds(lambda text: {"action": 10, "channel": text}, st.text(max_size=12)),
    st.builds(lambda params: {"action": 10, "channel": "fuzz", "params": params}, VALUES),
    st.builds(lambda items, n: {"action": 14, "channel": "fuzz", "msgSerial": n, "presence": items}, VALUES, SERIAL),
    st.builds(lambda auth: {"action": 17, "auth": auth}, VALUES),
    st.fixed_dictionaries({"action": st.integers(-2, 25)}, optional=dict.fromkeys(FIELDS, VALUES)),
    VALUES,
)
"""Frames of clients as plain values; what JSON cannot say goes as text that is no JSON."""

TEXT = st.text(max_size=10) | st.sampled_from(["fuzz", "dev", "", "s:x:0", "c:nobodyhere:0", "dev.key:x", "x" * 3_000])
MAYBE, NUMBER, INTS = st.none() | TEXT, st.integers(0, 50), st.integers(-(2**63), 2**63 - 1)
LINK_MESSAGES = st.lists(
    st.builds(
        Message, id=MAYBE, name=MAYBE, data=MAYBE, encoding=MAYBE, client_id=MAYBE, connection_id=MAYBE, timestamp=st.none() | INTS,
        extras=st.none() | st.dictionaries(st.sampled_from(["headers", "ephemeral", "x"]), VALUES, max_size=2), action=INTS,
    ),
    max_size=3,
)  # fmt: skip
LINK = st.one_of(
    st.builds(Present, st.binary(max_size=80)),
    st.builds(Open, NUMBER, TEXT, TEXT, TEXT, MAYBE),
    st.builds(Append, NUMBER, TEXT, TEXT, TEXT, st.booleans(), LINK_MESSAGES, st.booleans(), MAYBE),
    st.builds(Renew, NUMBER, TEXT),
    st.builds(Depart, TEXT, st.booleans()),
    st.builds(Shut, INTS),
    st.builds(Fetch, NUMBER, TEXT, st.sampled_from(sorted(calls.CALLS)) | TEXT, st.binary(max_size=30)),
    st.builds(Admit, NUMBER, MAYBE, st.booleans(), st.booleans(), st.booleans(), INTS, MAYBE, MAYBE, MAYBE, TEXT),
)
UNTYPED = st.lists(st.tuples(st.sampled_from([1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 30, 34, 99]), VALUES, VALUES).map(list), max_size=3)
HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "content-type", "accept", "x-ably-version", "x-ably-clientid", "content-encoding", "expect", "te"]),
    st.sampled_from(
        ["application/json", "application/x-msgpack", "Basic !!", "Bearer x", "Basic " + "A" * 99, "", "6", "-1", "100-continue"]
    )
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    max_size=4,
)
PATHS = st.sampled_from(
    [
        *("/channels/fuzz/messages", "/channels/%00/messages", "/channels//messages", "/channels/%ff%fe/messages", "/apps/x", "/time"),
        *("/keys/dev.key/requestToken", "/keys/%20/requestToken", "/apps", "//", "/%", "/channels/fuzz/messages?enveloped=false"),
        "/?" + "a=1&" * 200,
        *("/channels/[meta]x/messages", "/../../etc/passwd", "*", "http://elsewhere/time", "/time?v=x", "/channels/fuzz/messages?key=a:b"),
    ]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map(lambda text: "/" + text)  # fmt: skip


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """`count` examples, the same for the same seed."""
    found: list[Any] = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(max_examples=count, database=None, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def as_json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return repr(value).encode("utf-8", "surrogatepass")


def as_msgpack(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return repr(value).encode("utf-8", "surrogatepass")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, repeated or made up."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]
            case 3:
                data = data[:at] + data[at // 2 :]
            case 4:
                data = data[: at // 2] + data[at:]
    return data


def frames_of(whole: Sequence[bytes], special: Iterable[bytes], count: int, chance: random.Random) -> deque[bytes]:
    """Most as drawn, so that they get far; a tenth of them damaged."""
    frames = [*special]
    while len(frames) < count:
        frame = chance.choice(whole)
        frames.append(damaged(frame, chance) if chance.random() < 0.1 else frame)
    chance.shuffle(frames)
    return deque(frames)


JSON_SPECIAL = (
    b"", b" ", b"null", b"[]", b"{}", b"\xef\xbb\xbf{}", b"[" * 5_000, b'{"a":' * 5_000, b"1e999", b'{"action":1e999}', b'"\\ud800"',
    b'{"action":15,"channel":"\\ud800","msgSerial":0,"messages":[{"data":"x"}]}', b'{"action":10,"channel":"\\ud800"}',
    b'{"action":15,"channel":"fuzz","msgSerial":99999999999999999999999,"messages":[]}', b'{"action":15,"action":10}', b"\x00" * 64,
    b'{"action":15,"channel":"fuzz","msgSerial":9007199254740991,"messages":[{"data":"x"}]}', b"NaN", b'{"action":NaN}', b"\xff\xfe{}",
    b'{"action":15,"channel":"fuzz","msgSerial":0,"messages":[{"data":"x","extras":' + b'{"headers":' * 500 + b"1" + b"}" * 500 + b"}]}",
    b"{" + b" " * 600_000 + b"}",
)  # fmt: skip
MSGPACK_SPECIAL = (
    b"", b"\xc1", b"\xc0", b"\x80", b"\x90", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5_000,
    b"\x81\xa6action\xcf" + b"\xff" * 8, b"\x81\xa6action\xd3\x80" + bytes(7), b"\x81\xa6action\xcb\x7f\xf8" + bytes(6), b"\x81\x01\x02",
    b"\x82\xa6action\x0a\xa7channel\xa2\xff\xfe", b"\x82\xa6action\x0a\xa7channel\xc7\x04\x05abcd", b"\xd6\xff" + bytes(4), bytes(700_000),
)  # fmt: skip
LINK_SPECIAL = (
    b"", b"\xc1", b"\x90", b"\xdd\x00\x00\x00\x00", b"\xdd\xff\xff\xff\xff", b"\x91" * 5_000, b"\xc6\xff\xff\xff\xff", bytes(4_200_000),
    encode([Hello(1, 1, Lane.LIVE, "eu", "edge-1", "again")]), encode([Credit(2**40)]), encode([Credit(-1)]), encode([Credit(1), Shut(1)]),
    encode([Open(1, "dev", "fuzz", "")] * 3_000), encode([Shut(n) for n in range(20_000)]),
    encode([Admit(1, "a.b", False, True, True, 6)] * 300),
)  # fmt: skip


# --- sockets ------------------------------------------------------------------------------------------------------------------------------


def loopback(number: int) -> str:
    """An address of one's own: edges limit refused credentials by address. Only Linux has more than one."""
    return f"127.0.0.{number if sys.platform == 'linux' else 1}"


class Peer(WSListener):
    """One connection; hands every whole message to `on_message`."""

    def __init__(self, on_message: Callable[[bytes], None] = lambda data: None) -> None:
        self.transport: WSTransport
        self.on_message = on_message
        self.news = asyncio.Event()
        self.gone = False
        self.word = ""

    @classmethod
    async def dial(cls, url: str, context: ssl.SSLContext, address: str, on_message: Callable[[bytes], None]) -> Peer:
        transport, peer = await ws_connect(lambda: cls(on_message), url, ssl_context=context, local_addr=(address, 0))
        assert isinstance(peer, Peer)
        peer.transport = transport
        return peer

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            self.on_message(frame.get_payload_as_bytes())
            self.news.set()
        elif frame.msg_type == WSMsgType.CLOSE:
            self.word = (frame.get_close_message() or b"").decode()
            transport.send_close()
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone = True
        self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Until it holds, or the other side has gone."""
        async with asyncio.timeout(ANSWER_S):
            while not condition() and not self.gone:
                self.news.clear()
                await self.news.wait()


class _Heard(msgspec.Struct):
    action: int
    id: str | None = None
    channel: str | None = None
    error: dict[str, Any] | None = None


class Tally:
    """What became of the frames of one kind."""

    def __init__(self) -> None:
        self.read = self.fatal = self.connections = 0
        self.ended_as: Counter[str] = Counter()
        """The error codes, or the words of the link, by which connections were ended."""
        self.seconds = 0.0

    def __str__(self) -> str:
        ended = f"{self.fatal} of them ended one of {self.connections} connections {dict(self.ended_as)}"
        return f"{self.read} read, {ended}, {self.seconds:.1f} s"


async def send_as_client(
    product: Product, frames: deque[bytes], tally: Tally, context: ssl.SSLContext, *, msgpack: bool, early: bool
) -> None:
    """Until none is left. A connection that is ended is replaced, and the frames behind the one that ended it are sent again."""
    url = f"{product.edges[0]}/?{urlencode({'v': '6', 'key': product.key, 'format': 'msgpack' if msgpack else 'json'})}"
    decode = msgspec.msgpack.Decoder(_Heard).decode if msgpack else msgspec.json.Decoder(_Heard).decode
    encode_marker = msgspec.msgpack.encode if msgpack else msgspec.json.encode
    kind = WSMsgType.BINARY if msgpack else WSMsgType.TEXT
    while frames:
        batch = [frames.popleft() for _ in range(min(BATCH, len(frames)))]
        heard: set[str] = set()
        connected = asyncio.Event()

        def note(data: bytes, heard: set[str] = heard, connected: asyncio.Event = connected) -> None:
            frame = decode(data)
            if frame.action == Action.CONNECTED:
                connected.set()
            elif frame.action == Action.HEARTBEAT and frame.id is not None:
                heard.add(frame.id)
            elif frame.action in (Action.DISCONNECTED, Action.ERROR) and frame.channel is None and frame.error is not None:
                tally.ended_as[str(frame.error["code"])] += 1

        peer = await Peer.dial(url, context, loopback(2 if msgpack else 3), note)
        tally.connections += 1
        if not early:
            await peer.until(connected.is_set)
        for number, frame in enumerate(batch):
            peer.transport.send(kind, frame)
            peer.transport.send(kind, encode_marker({"action": 0, "id": f"marker-{number}"}))
        await peer.until(functools.partial(heard.__contains__, f"marker-{len(batch) - 1}"))
        survived = next((n for n in range(len(batch)) if f"marker-{n}" not in heard), len(batch))
        tally.read += survived
        if survived < len(batch):
            assert peer.gone
            tally.read += 1
            tally.fatal += 1
            frames.extendleft(reversed(batch[survived + 1 :]))
        peer.transport.disconnect(False)


class Wire:
    """How to link to one core as an edge whose certificate was stolen."""

    def __init__(self, product: Product, core: int) -> None:
        state = Path(product.found["state"])
        settings = tomllib.loads((state / "edge-1.toml").read_text())["link"]
        self.url = f"wss://{settings['cores'][core]}/link"
        self.context = tls.link_client_context(settings["certificate"], settings["private_key"], settings["ca"])
        self.number = 0

    async def up(self, heard: list[Frame]) -> tuple[Peer, Peer]:
        """Both lanes. What comes on the live one is put into `heard`."""
        self.number += 1
        hello = functools.partial(Hello, 1, 1, site="eu", node="edge-1", boot=f"fuzz-{self.number}")
        live = await Peer.dial(self.url, self.context, loopback(1), lambda data: heard.extend(_to_edge(data)))
        live.transport.send(WSMsgType.BINARY, encode([hello(lane=Lane.LIVE)]))
        await live.until(lambda: heard)
        welcome = heard.pop()
        assert isinstance(welcome, Welcome)
        welcomes: list[Frame] = []
        bulk = await Peer.dial(self.url, self.context, loopback(1), lambda data: welcomes.extend(_to_edge(data)))
        bulk.transport.send(WSMsgType.BINARY, encode([hello(lane=Lane.BULK, pair=welcome.pair)]))
        await bulk.until(lambda: welcomes)
        return live, bulk


_to_edge = msgspec.msgpack.Decoder(list[ToEdge]).decode
MARKER = 1_000_000


async def send_as_edge(wire: Wire, batches: deque[bytes], tally: Tally, chance: random.Random) -> None:
    """One at a time: a core that ends a link has answers to what came before in hand, and they end with it."""
    while batches:
        heard: list[Frame] = []
        live, bulk = await wire.up(heard)
        tally.connections += 1
        lane = chance.choice([live, bulk])
        for number in range(MARKER, MARKER + BATCH):
            if live.gone or not batches:
                break
            lane.transport.send(WSMsgType.TEXT if chance.random() < 0.005 else WSMsgType.BINARY, batches.popleft())
            lane.transport.send(WSMsgType.BINARY, encode([Open(number, "dev", "fuzz", "")]))
            await live.until(functools.partial(_answered, heard, number))
            tally.read += 1
        if live.gone:
            tally.fatal += 1
            tally.ended_as[live.word] += 1
        for peer in (live, bulk):
            peer.transport.disconnect(False)


def _answered(heard: list[Frame], number: int) -> bool:
    return any(isinstance(frame, Refused) and frame.req == number for frame in heard)


def final(answer: bytes) -> list[bytes]:
    """The statuses of what has come so far, without `100 Continue`."""
    return [status for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.MULTILINE) if status != b"100"]


async def send_requests(product: Product, requests: deque[bytes], answers: Counter[str], context: ssl.SSLContext) -> None:
    """One connection each: what follows garbage on a kept one would be garbage too. Some wait for a body that never comes in full."""
    port = product.port
    while requests:
        request = requests.popleft()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(loopback(4), 0))
        answer = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(request)
            async with asyncio.timeout(ANSWER_S):
                while data := await reader.read(65_536):
                    answer += data
                    if final(answer):
                        break
        answers[final(answer)[0].decode() if final(answer) else "none"] += 1
        writer.transport.abort()


def requests_of(chance: random.Random, key: str) -> deque[bytes]:
    """Some with the right key, so that they get as far as the body."""
    right = "Basic " + base64.b64encode(key.encode()).decode()
    requests: list[bytes] = []
    methods = ["GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "get", "FOO", "TRACE"]
    for path, headers, value in drawn(st.tuples(PATHS, HEADERS, CLIENT), REQUESTS):
        body = chance.choice([as_json, as_msgpack])(value)
        fields = {"host": "x", "connection": "close", **headers}
        if chance.random() < 0.4:
            fields["authorization"] = right
        fields["content-length"] = str(len(body)) if chance.random() < 0.9 else chance.choice(["-1", "x", "0", "1, 2"])
        head = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        request = f"{chance.choice(methods)} {path} HTTP/1.1\r\n{head}\r\n".encode() + body
        requests.append(damaged(request, chance) + b"\r\n\r\n" if chance.random() < 0.2 else request)
    requests += [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4_000 + b"\r\n",
        chance.randbytes(20_000),
        b"\x00\r\n\r\n",
        b"POST / HTTP/1.0\r\n\r\n",
    ]
    chance.shuffle(requests)
    return deque(requests)


class Witness:
    """An honest client on the same edge, there all along: publishes numbers, and notes all that it gets."""

    def __init__(self) -> None:
        self.acked = 0
        self.got: list[int] = []
        self.other: list[dict[str, Any]] = []
        self.ready = asyncio.Event()

    def note(self, data: bytes) -> None:
        frame = json.loads(data)
        match frame["action"]:
            case Action.MESSAGE:
                self.got += [int(message["data"]) for message in frame["messages"]]
            case Action.ACK:
                self.acked += frame["count"]
            case Action.ATTACHED:
                self.ready.set()
            case Action.HEARTBEAT | Action.CONNECTED:
                pass
            case _:
                self.other.append(frame)

    async def run(self, product: Product, context: ssl.SSLContext, stop: asyncio.Event) -> int:
        """Returns how many it published."""
        url = f"{product.edges[0]}/?{urlencode({'v': '6', 'key': product.key})}"
        peer = await Peer.dial(url, context, loopback(1), self.note)

        def say(**frame: Any) -> None:
            peer.transport.send(WSMsgType.TEXT, json.dumps(frame).encode())

        say(action=Action.ATTACH, channel="witness")
        await self.ready.wait()
        sent = 0
        while not stop.is_set():
            say(action=Action.MESSAGE, channel="witness", msgSerial=sent, messages=[{"data": str(sent)}])
            sent += 1
            await asyncio.sleep(0.02)
            assert not peer.gone
        await peer.until(lambda: self.acked == sent and len(self.got) >= sent)
        assert not peer.gone
        peer.transport.disconnect(False)
        return sent


def metric(product: Product, name: str) -> float:
    """The sum of a metric over all edges and labels."""
    total = 0.0
    for number in range(len(product.edges)):
        settings = tomllib.loads((Path(product.found["state"]) / f"edge-{number + 1}.toml").read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{settings['metrics']['port']}/metrics", timeout=10) as page:
            text = page.read().decode()
        total += sum(float(value) for value in re.findall(rf"^tidegate_{name}(?:\{{[^}}]*\}})? (\S+)", text, re.MULTILINE))
    return total


@contextlib.contextmanager
def unharmed(product: Product) -> Iterator[None]:
    """Within, no process ends, no honest link is lost, and nothing raises in any of them."""
    pids = (product.pids("edge"), product.pids("core"))
    lost, undecodable = (metric(product, name) for name in ("edge_link_losses_total", "edge_undecodable_records_total"))
    log = product.log_path.stat().st_size
    yield
    assert (product.pids("edge"), product.pids("core")) == pids
    for pid in (*pids[0], *pids[1]):
        os.kill(pid, 0)
    assert metric(product, "edge_link_losses_total") == lost
    assert metric(product, "edge_undecodable_records_total") == undecodable
    said = product.log_path.read_bytes()[log:].decode(errors="replace")
    assert "Traceback" not in said, said[:4_000]
    assert "handler failed" not in said, said[:4_000]


async def timed(tally: Tally, *work: Any) -> None:
    began = time.monotonic()
    await asyncio.gather(*work)
    tally.seconds = time.monotonic() - began


def test_ten_thousand_malformed_frames_cost_their_senders_alone(relay: Product) -> None:
    chance = random.Random(SEED)
    values = drawn(PUBLISH, 900) + drawn(CLIENT, 300)
    json_frames = frames_of([as_json(value) for value in values], JSON_SPECIAL, CLIENT_FRAMES, chance)
    msgpack_frames = frames_of([as_msgpack(value) for value in values], MSGPACK_SPECIAL, CLIENT_FRAMES, chance)
    shaped = [encode([frame]) for frame in drawn(LINK, 800)] + [as_msgpack(value) for value in drawn(UNTYPED, 100)]
    link_batches = frames_of(shaped, LINK_SPECIAL, LINK_BATCHES, chance)
    requests = requests_of(chance, relay.key)
    tallies = {"JSON": Tally(), "msgpack": Tally(), "link": Tally()}
    answers: Counter[str] = Counter()

    async def scenario() -> None:
        aiofastnet.patch_loop(asyncio.get_running_loop())
        context = ssl.create_default_context(cafile=relay.ca)
        stop = asyncio.Event()
        witness = Witness()
        witnessing = asyncio.create_task(witness.run(relay, context, stop))
        await witness.ready.wait()
        client = functools.partial(send_as_client, relay, context=context)
        wires = [Wire(relay, core) for core in (0, 1)]
        await asyncio.gather(
            timed(tallies["JSON"], *(client(json_frames, tallies["JSON"], msgpack=False, early=n % 2 == 0) for n in range(WORKERS))),
            timed(
                tallies["msgpack"], *(client(msgpack_frames, tallies["msgpack"], msgpack=True, early=n % 2 == 0) for n in range(WORKERS))
            ),
            timed(tallies["link"], *(send_as_edge(wires[n % 2], link_batches, tallies["link"], chance) for n in range(WORKERS))),
            *(send_requests(relay, requests, answers, context) for _ in range(3 * WORKERS)),
        )
        stop.set()
        sent = await witnessing
        assert sent > 100
        assert witness.got == list(range(sent))
        assert witness.acked == sent
        assert witness.other == []

    with unharmed(relay):
        uvloop.run(scenario())
    print(f"\nseed {SEED}: " + "; ".join(f"{kind}: {tally}" for kind, tally in tallies.items()) + f"; HTTP: {dict(answers)}")
    assert sum(tally.read for tally in tallies.values()) >= 10_000
    for kind in ("JSON", "msgpack"):
        # Ended for what the frames were, never because the address had used up its share or a core was too slow to answer.
        assert not tallies[kind].ended_as.keys() & {"80021", "50003", "50320"}
    assert all(tally.fatal > 100 for tally in tallies.values())
    assert answers.total() >= 500
    assert not [status for status in answers if status.startswith("5")], answers


def frame_bytes(first: int, payload: bytes, *, masked: bool = True, size: int | None = None) -> bytes:
    """A WebSocket frame of a client (RFC 6455 section 5.2), right or wrong as told. The mask is zero."""
    size = len(payload) if size is None else size
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 65_536:
        head = bytes([first, bit | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, bit | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + payload


BEAT = b'{"action":0,"id":"x"}'
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")  # and empty settings (RFC 9113 section 3.4)
BAD_WEBSOCKET = {
    "not masked": frame_bytes(0x81, BEAT, masked=False),
    "reserved bits": frame_bytes(0xF1, BEAT),
    "compressed without agreement": frame_bytes(0xC1, BEAT),
    **{f"opcode {opcode}": frame_bytes(0x80 | opcode, BEAT) for opcode in (3, 4, 7, 11, 15)},
    "fragmented ping": frame_bytes(0x09, b""),
    "long ping": frame_bytes(0x89, bytes(126)),
    "continuation of nothing": frame_bytes(0x80, BEAT),
    "two messages at once": frame_bytes(0x01, BEAT[:5]) + frame_bytes(0x81, BEAT),
    "endless fragments": frame_bytes(0x01, bytes(65_000)) + frame_bytes(0x00, bytes(65_000)) * 90,
    "a length above all limits": frame_bytes(0x82, b"", size=2**62),
    "a negative length": frame_bytes(0x82, b"", size=2**64 - 1),
    "an oversize message": frame_bytes(0x82, bytes(4_500_000)),
    "a length longer than needed": b"\x81\xff" + bytes(7) + b"\x01" + bytes(4) + b"x",
    "half a frame": frame_bytes(0x81, BEAT)[:9],
    "half a head": b"\x81",
    "text that is no UTF-8": frame_bytes(0x81, b"\xff\xfe\xc0"),
    "close with half a code": frame_bytes(0x88, b"\x03"),
    "close with a code that is none": frame_bytes(0x88, b"\x00\x00"),
    "close with a reason that is no UTF-8": frame_bytes(0x88, b"\x03\xe8\xff\xff"),
    "a word after the close": frame_bytes(0x88, b"\x03\xe8") + frame_bytes(0x81, BEAT),
    "ten thousand pings": frame_bytes(0x89, b"ping") * 10_000,
    "ten thousand empty messages": frame_bytes(0x82, b"") * 10_000,
}


async def break_websocket(url: str, context: ssl.SSLContext, data: bytes, *, leave: bool) -> None:
    """Upgrade, send, and wait for the end (or `leave` without a word)."""
    host, _, path = url.removeprefix("wss://").partition("/")
    address, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(address, int(port), ssl=context, local_addr=(loopback(5), 0))
    writer.write(
        f"GET /{path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readuntil(b"\r\n")
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
        writer.write(data)
        if not leave:
            async with asyncio.timeout(1.0):
                await reader.read()
    writer.transport.abort()


async def knock(port: int, data: bytes, context: ssl.SSLContext | None = None) -> None:
    """Bytes where a TLS handshake belongs, or, with a `context`, what is agreed on in it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(data)
    await asyncio.sleep(0.2)
    writer.transport.abort()


def test_what_is_no_websocket_costs_its_sender_alone(relay: Product) -> None:
    chance = random.Random(SEED)
    client = f"{relay.edges[0]}/?{urlencode({'v': '6', 'key': relay.key})}"
    wire = Wire(relay, 0)
    link_port = int(wire.url.removesuffix("/link").rpartition(":")[2])
    noise = [*BAD_WEBSOCKET.values(), *(chance.randbytes(chance.randint(1, 2_000)) for _ in range(20))]

    async def scenario() -> None:
        context = ssl.create_default_context(cafile=relay.ca)
        stop, witness = asyncio.Event(), Witness()
        witnessing = asyncio.create_task(witness.run(relay, context, stop))
        await witness.ready.wait()
        targets = [(client, context), (wire.url, wire.context)]
        http2 = ssl.create_default_context(cafile=relay.ca)
        http2.set_alpn_protocols(["h2"])
        await asyncio.gather(
            *(break_websocket(url, trust, data, leave=leave) for url, trust in targets for data in noise for leave in (False, True)),
            *(knock(port, chance.randbytes(size)) for port in (relay.port, link_port) for size in (1, 100, 20_000) for _ in range(5)),
            *(knock(relay.port, PREFACE[:cut] + chance.randbytes(200), http2) for cut in (0, 5, *[len(PREFACE)] * 20)),
        )
        stop.set()
        sent = await witnessing
        assert witness.got == list(range(sent))
        assert (witness.acked, witness.other) == (sent, [])

    with unharmed(relay):
        asyncio.run(scenario())
