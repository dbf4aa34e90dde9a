"""Cheap WebSocket clients, many in one process. `python -m bench.clients URL CA bare|ably`, then JSON lines on stdin; one answer each.

    {"do": "connect", "tokens": [t, …], "subscribe": true}     one client a token                   → {"connected": n}
    {"do": "publish", "token": t, "rate": r, "seconds": s}     one publisher, at even distances     → {"published": n, "refused": n}
    {"do": "count"}                                            messages received so far             → {"messages": n}
    {"do": "latency", "token": t, "rate": r, "seconds": s}     publisher and subscriber in one      → {"ms": [l, …], "published": n}
    {"do": "drop"}                                             all clients go                       → {"dropped": n}

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
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

CHANNEL = "bench"
MESSAGE_BYTES = 120
CONNECTS_AT_ONCE = 50
LAST_ANSWERS_S = 2.0
"""How long after the last publish acknowledgements and messages are waited for."""
SUBSCRIBE = 1 << 18
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


class Clients:
    def __init__(self, url: str, ca: str, kind: type[Client]) -> None:
        self._url, self._kind = url, kind
        self._tls = ssl.create_default_context(cafile=ca)
        self._open: list[Client] = []

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
            case _:
                return {"error": f"unknown: {do}"}

    async def _client(self, token: str, *, subscribe: bool) -> Client:
        path = self._kind.path(token, subscribe=subscribe)
        _, client = await ws_connect(
            lambda: self._kind(subscribe=subscribe), self._url + path, ssl_context=self._tls, read_buffer_init_size=1024
        )
        assert isinstance(client, Client)
        await asyncio.wait_for(client.ready, 20)
        self._open.append(client)
        return client

    async def _connect(self, tokens: list[str], subscribe: bool = True) -> dict[str, Any]:
        turn = asyncio.Semaphore(CONNECTS_AT_ONCE)

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

    async def _drop(self) -> dict[str, Any]:
        dropped, self._open = self._open, []
        for client in dropped:
            assert client.transport
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
    clients = Clients(url, ca, AblyClient if kind == "ably" else Client)
    while line := await reader.readline():
        try:
            answer = await clients.do(**json.loads(line))
        except (OSError, TimeoutError) as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(*sys.argv[1:]))
