"""Cheap WebSocket clients, many in one process. `python -m bench.clients URL CA KIND`; JSON lines on stdin, one answer each.

    {"do": "connect", "tokens": [t, …], "subscribe": true}     one client a token                   → {"connected": n}
    {"do": "publish", "token": t, "rate": r, "seconds": s}     one publisher, at even distances     → {"published": n, "refused": n}
    {"do": "count"}                                            messages received so far             → {"messages": n}
    {"do": "latency", "token": t, "rate": r, "seconds": s}     publisher and subscriber in one      → {"ms": [l, …], "published": n}
    {"do": "drop"}                                             all clients go                       → {"dropped": n}

Clients of the kind `returning` do what SDKs do when their edge dies; they are spread over `CHANNELS` channels.

    {"do": "number", "token": t, "rate": r}    a publisher of numbered messages goes on until `number_end` → {}
    {"do": "number_end"}                       it stops                                                   → {"published": n}
    {"do": "expect_end", "url": u}             who loses the connection comes back there                  → {"clients": n}
    {"do": "returned"}                         when all are back                  → {"seconds": s, "median": s, "replaced": n, "lapses": n}
    {"do": "check"}                            what all have got                                  → {"messages": n, "lost": n, "doubled": n}

Clients of the kind `spread` are on a channel each: subscribers on `bench:0` and so on, publishers on `flood:0` and so on.

    {"do": "watch"}                            messages are timed from now on, and their number begins at 0   → {}
    {"do": "watched"}                          what has come since; `last` is a time      → {"messages": n, "p50": ms, "p99": ms, "last": s}
    {"do": "flood", "tokens": [t, …], "count": n, "window": w}
                                               each publishes n messages, w of them without ACK at most → {"published": n, "seconds": s}

`bare` clients speak to the floor: a message is a text frame. `ably` clients speak the least of the Ably protocol that works: connect with
a token, wait for CONNECTED, ATTACH, wait for ATTACHED. Tokens are ignored by the floor, so that both are asked in the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

CHANNEL = "bench"
CHANNELS = 20
RETURN_WITHIN_S = 100.0
DIAL_WITHIN_S = 10.0
"""As SDKs do. A driver that is told of a failed handshake may keep silent about it."""
HANDSHAKE_S = 60.0
"""Thousands at once take their time on a small machine."""
MESSAGE_BYTES = 120
CONNECTS_AT_ONCE = 50
LAST_ANSWERS_S = 2.0
"""How long after the last publish acknowledgements and messages are waited for."""
DATA = b'"data":"'
SUBSCRIBE = 1 << 18
RESUMED = 4
CONNECTED, ATTACHED, ACK, NACK, DISCONNECTED, ERROR = 4, 11, 1, 2, 6, 9


class Client(WSListener):
    """One connection. `ready` is done when what it was opened for can begin."""

    __slots__ = ("acked", "latencies", "load", "messages", "ready", "refused", "subscribe", "transport")

    def __init__(self, *, subscribe: bool) -> None:
        self.subscribe = subscribe
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: WSTransport | None = None
        self.messages = 0
        self.acked = 0
        self.refused = 0
        self.latencies: list[float] | None = None

    def prepare(self, number: int, token: str, tls: ssl.SSLContext) -> None:
        """Before it dials for the first time."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.opened()

    def opened(self) -> None:
        self.ready.set_result(None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self.received(frame.get_payload_as_bytes())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()

    def received(self, payload: bytes) -> None:
        self.delivered(payload)

    def delivered(self, data: bytes | str) -> None:
        self.messages += 1
        if self.latencies is not None:
            self.latencies.append(time.perf_counter() - float(data[:24]))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed by the server"))

    def publish(self, data: str) -> None:
        assert self.transport
        self.transport.send(WSMsgType.TEXT, data.encode())
        self.acked += 1

    @staticmethod
    def path(token: str, *, subscribe: bool) -> str:
        return "/subscribe" if subscribe else "/publish"


class AblyClient(Client):
    """The same over the Ably protocol, version 6, JSON."""

    __slots__ = ("serial",)

    def opened(self) -> None:
        self.serial = 0

    def received(self, payload: bytes) -> None:
        # A thousand clients share this process: most messages are counted, not parsed.
        if self.latencies is None and b'"action":15' in payload:
            self.messages += 1
            return
        message = json.loads(payload)
        match message["action"]:
            case 15:
                for item in message["messages"]:
                    self.delivered(item["data"])
            case 1:
                self.acked += message["count"]
            case 2:
                self.refused += message["count"]
            case 4 if self.subscribe:
                self._send({"action": 10, "channel": CHANNEL, "flags": SUBSCRIBE})
            case 4 | 11 if not self.ready.done():
                self.ready.set_result(None)
            case 6 | 9:
                if not self.ready.done():
                    self.ready.set_exception(ConnectionError(str(message.get("error"))))

    def publish(self, data: str) -> None:
        self._send({"action": 15, "channel": CHANNEL, "msgSerial": self.serial, "messages": [{"data": data}]})
        self.serial += 1

    def _send(self, message: dict[str, Any]) -> None:
        assert self.transport
        self.transport.send(WSMsgType.TEXT, json.dumps(message).encode())

    @staticmethod
    def path(token: str, *, subscribe: bool) -> str:
        return f"/?access_token={quote(token)}&format=json&v=6&heartbeats=true"


class SpreadClient(AblyClient):
    """On a channel of its own. A message is timed without being parsed: its data begins with the time."""

    __slots__ = ("channel", "last")

    def __init__(self, *, subscribe: bool) -> None:
        super().__init__(subscribe=subscribe)
        self.channel = CHANNEL
        self.last = 0.0

    def prepare(self, number: int, token: str, tls: ssl.SSLContext) -> None:
        self.channel = f"{CHANNEL if self.subscribe else 'flood'}:{number - 1}"

    def received(self, payload: bytes) -> None:
        if self.latencies is not None and b'"action":15' in payload:
            at = payload.index(DATA) + len(DATA)
            self.last = time.perf_counter()
            self.messages += 1
            self.latencies.append(self.last - float(payload[at : at + 24]))
            return
        super().received(payload)

    def _send(self, message: dict[str, Any]) -> None:
        super()._send(message | {"channel": self.channel})


async def dial(make: Callable[[], Client], url: str, tls: ssl.SSLContext | None) -> WSListener:
    _, client = await ws_connect(make, url, ssl_context=tls, read_buffer_init_size=1024, websocket_handshake_timeout=HANDSHAKE_S)
    return client


class ReturningClient(AblyClient):
    """It resumes by itself once `elsewhere` says where, and sees what is missing or doubled among numbered messages."""

    __slots__ = (
        "back",
        "channel",
        "coming",
        "doubled",
        "elsewhere",
        "gone_at",
        "key",
        "lapses",
        "lost",
        "next",
        "position",
        "put_off",
        "refusals",
        "replaced",
        "tls",
        "token",
    )

    def __init__(self, *, subscribe: bool) -> None:
        super().__init__(subscribe=subscribe)
        self.channel = CHANNEL
        self.elsewhere = self.key = self.position = self.token = ""
        self.back: asyncio.Future[float] | None = None
        """Of a client that is on its way: done with the seconds that it took."""
        self.gone_at = 0.0
        self.next: int | None = None
        self.lost = self.doubled = self.lapses = self.replaced = self.put_off = 0
        self.refusals: Counter[int | str] = Counter()
        self.tls: ssl.SSLContext | None = None
        self.coming: asyncio.Task[None] | None = None

    def prepare(self, number: int, token: str, tls: ssl.SSLContext) -> None:
        self.token, self.tls, self.channel = token, tls, f"{CHANNEL}:{number % CHANNELS}"

    def received(self, payload: bytes) -> None:
        message = json.loads(payload)
        match message["action"]:
            case 15:
                self.position = message["channelSerial"]
                for item in message["messages"]:
                    self._numbered(int(item["data"].partition(" ")[0]))
            case 1:
                self.acked += message["count"]
            case 2:
                self.refused += message["count"]
            case 4:
                key = message["connectionDetails"]["connectionKey"]
                self.replaced += bool(self.key) and not key.startswith(self.key.partition("!")[0])
                self.key = key
                if self.subscribe:
                    self._attach()
                else:
                    self.ready.set_result(None)
            case 11:
                if not self.ready.done():
                    self.position = message["channelSerial"]
                    self.ready.set_result(None)
                elif self.back is not None and not self.back.done():
                    self.lapses += not message["flags"] & RESUMED
                    self.back.set_result(time.perf_counter() - self.gone_at)
            case 13:  # not in time: SDKs try again
                self.put_off += 1
                self._attach()
            case 6 | 9:
                self.refusals[message.get("error", {}).get("code", 0)] += 1
                if not self.ready.done():
                    self.ready.set_exception(ConnectionError(str(message.get("error"))))

    def _attach(self) -> None:
        at = {"channelSerial": self.position} if self.position else {}
        self._send({"action": 10, "channel": self.channel, "flags": SUBSCRIBE, **at})

    def _numbered(self, number: int) -> None:
        self.messages += 1
        if self.next is not None and number < self.next:
            self.doubled += 1
            return
        self.lost += 0 if self.next is None else number - self.next
        self.next = number + 1

    def publish_numbered(self, channel: str, number: int) -> None:
        data = f"{number} ".ljust(MESSAGE_BYTES, "x")
        self._send({"action": 15, "channel": channel, "msgSerial": self.serial, "messages": [{"data": data}]})
        self.serial += 1

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        super().on_ws_disconnected(transport)
        if self.elsewhere and self.transport is transport:
            self.gone_at = self.gone_at or time.perf_counter()
            self.coming = asyncio.get_running_loop().create_task(self._comes_back())

    def opened(self) -> None:
        if not self.ready.done():
            super().opened()

    async def _comes_back(self) -> None:
        assert self.back is not None
        while not self.back.done():
            self.transport = None
            path = f"{self.path(self.token, subscribe=True)}&resume={quote(self.key)}"
            try:
                await asyncio.wait_for(dial(lambda: self, self.elsewhere + path, self.tls), DIAL_WITHIN_S)
            except Exception as error:  # whatever it is, a client tries again
                self.refusals[f"{type(error).__name__}: {error}"[:80]] += 1
            else:
                return
            await asyncio.sleep(random.uniform(0.5, 1.5))


class Clients:
    def __init__(self, url: str, ca: str, kind: type[Client]) -> None:
        self._url, self._kind = url, kind
        self._tls = ssl.create_default_context(cafile=ca)
        self._open: list[Client] = []
        self._made = 0
        self._numbering: asyncio.Task[int] | None = None

    async def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        match do:
            case "connect":
                return await self._connect(**arguments)
            case "publish":
                return await self._publish(**arguments)
            case "count":
                return {"messages": sum(client.messages for client in self._open)}
            case "latency":
                return await self._latency(**arguments)
            case "drop":
                return await self._drop()
            case "watch":
                for client in self._open:
                    client.messages, client.latencies = 0, []
                return {}
            case "watched":
                return self._watched()
            case "flood":
                return await self._flood(**arguments)
            case "number":
                publisher = await self._client(arguments["token"], subscribe=False)
                assert isinstance(publisher, ReturningClient)
                self._numbering = asyncio.get_running_loop().create_task(self._number(publisher, arguments["rate"]))
                return {}
            case "number_end":
                assert self._numbering is not None
                self._numbering.cancel()
                return {"published": await self._numbering}
            case "expect_end":
                return self._expect_end(**arguments)
            case "returned":
                return await self._returned()
            case "check":
                each = self._returning()
                return {name: sum(getattr(client, name) for client in each) for name in ("messages", "lost", "doubled")}
            case _:
                return {"error": f"unknown: {do}"}

    async def _client(self, token: str, *, subscribe: bool) -> Client:
        path = self._kind.path(token, subscribe=subscribe)
        self._made += 1
        number = self._made

        def make() -> Client:
            client = self._kind(subscribe=subscribe)
            client.prepare(number, token, self._tls)
            return client

        client = await dial(make, self._url + path, self._tls)
        assert isinstance(client, Client)
        await asyncio.wait_for(client.ready, 60)
        self._open.append(client)
        return client

    async def _connect(self, tokens: list[str], subscribe: bool = True, at_once: int = CONNECTS_AT_ONCE) -> dict[str, Any]:
        turn = asyncio.Semaphore(at_once)

        async def one(token: str) -> None:
            async with turn:
                await self._client(token, subscribe=subscribe)

        await asyncio.gather(*map(one, tokens))
        return {"connected": len(tokens)}

    async def _publish(self, token: str, rate: float, seconds: float) -> dict[str, Any]:
        client = await self._client(token, subscribe=False)
        published, start = round(rate * seconds), time.perf_counter()
        for n in range(published):
            await asyncio.sleep(max(0, start + n / rate - time.perf_counter()))
            client.publish(_message())
        await _until(lambda: client.acked + client.refused == published)
        return {"published": client.acked, "refused": client.refused}

    async def _latency(self, token: str, rate: float, seconds: float) -> dict[str, Any]:
        subscriber = await self._client(token, subscribe=True)
        publisher = await self._client(token, subscribe=False)
        latencies = subscriber.latencies = []
        published = round(rate * seconds)
        for _ in range(published):
            await asyncio.sleep(random.expovariate(rate))  # no beat with anybody's timer
            publisher.publish(_message())
        await _until(lambda: len(latencies) == published)
        return {"ms": [1000 * latency for latency in latencies], "published": published}

    def _watched(self) -> dict[str, Any]:
        each = [client for client in self._open if isinstance(client, SpreadClient)]
        latencies = sorted(latency for client in each for latency in client.latencies or ())
        if not latencies:
            return {"messages": 0}
        middle, late = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
        return {"messages": len(latencies), "p50": 1000 * middle, "p99": 1000 * late, "last": max(client.last for client in each)}

    async def _flood(self, tokens: list[str], count: int, window: int) -> dict[str, Any]:
        clients = [await self._client(token, subscribe=False) for token in tokens]
        data, start = "x" * MESSAGE_BYTES, time.perf_counter()

        async def one(client: Client) -> None:
            sent = 0
            while client.acked + client.refused < count:
                while sent < count and sent - client.acked - client.refused < window:
                    client.publish(data)
                    sent += 1
                await asyncio.sleep(0.001)

        await asyncio.gather(*map(one, clients))
        return {"published": sum(client.acked for client in clients), "seconds": time.perf_counter() - start}

    def _returning(self) -> list[ReturningClient]:
        return [client for client in self._open if isinstance(client, ReturningClient) and client.subscribe]

    async def _number(self, publisher: ReturningClient, rate: float) -> int:
        """Publishes to every channel in turn; how many each channel got in the end."""
        sent, start = 0, time.perf_counter()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(max(0, start + sent / rate - time.perf_counter()))
                publisher.publish_numbered(f"{CHANNEL}:{sent % CHANNELS}", sent // CHANNELS)
                sent += 1
        await _until(lambda: publisher.acked + publisher.refused == sent)
        return publisher.acked

    def _expect_end(self, url: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for client in self._returning():
            client.elsewhere, client.back, client.gone_at = url, loop.create_future(), 0.0
        return {"clients": len(self._returning())}

    async def _returned(self) -> dict[str, Any]:
        each = self._returning()
        coming = [client.back for client in each if client.back is not None]
        done, missing = await asyncio.wait(coming, timeout=RETURN_WITHIN_S)
        if missing:
            refusals = sum((client.refusals for client in each), Counter())
            return {
                "error": f"{len(missing)} of {len(coming)} clients are not back; {dict(refusals)}, {sum(c.put_off for c in each)} put off"
            }
        seconds = [one.result() for one in done]
        for client in each:
            client.elsewhere = ""
        return {
            "seconds": max(seconds),
            "median": sorted(seconds)[len(seconds) // 2],
            "replaced": sum(client.replaced for client in each),
            "lapses": sum(client.lapses for client in each),
            "put_off": sum(client.put_off for client in each),
            "refused": sum(client.refusals.total() for client in each),
        }

    async def _drop(self) -> dict[str, Any]:
        dropped, self._open = self._open, []
        for client in dropped:
            if client.transport is not None:
                client.transport.disconnect(graceful=False)
        return {"dropped": len(dropped)}


def _message() -> str:
    return f"{time.perf_counter():<24.9f}".ljust(MESSAGE_BYTES, "x")


async def _until(come: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + LAST_ANSWERS_S
    while not come() and time.perf_counter() < deadline:  # noqa: ASYNC110 (an event would cost every delivery)
        await asyncio.sleep(0.02)


async def main(url: str, ca: str, kind: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    clients = Clients(url, ca, {"ably": AblyClient, "returning": ReturningClient, "spread": SpreadClient}.get(kind, Client))
    while line := await reader.readline():
        try:
            answer = await clients.do(**json.loads(line))
        except (OSError, TimeoutError) as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(*sys.argv[1:]))
