"""What stands before edges in a deployment: one address, TCP passed through to an edge that lives, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl
from typing import cast
from urllib.parse import urlsplit

from relay.runtime.shutdown import complain
from tests.support.loop import LoopThread

CHECK_EVERY_S = 0.5
CHECK_WITHIN_S = 1.5
CONNECT_WITHIN_S = 2.0


class _Side(asyncio.Protocol):
    """One socket of a pair; what comes in here goes out there."""

    def __init__(self, balancer: Balancer, edge: int | None = None) -> None:
        self._balancer = balancer
        self.edge = edge
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.edge is None:
            self.transport.pause_reading()
            self._balancer.spawn(self._balancer.join(self))

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._balancer.pairs.discard(self)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


class Balancer:
    """Owns a thread with an event loop. `edges`: their `wss:` addresses. An edge that does not answer `/readyz` in time gets no new
    connections; those it has stay, as with any load balancer for TCP."""

    def __init__(self, edges: list[str], ca: str) -> None:
        self._edges = [(urlsplit(url).hostname or "", urlsplit(url).port or 0) for url in edges]
        self._tls = ssl.create_default_context(cafile=ca)
        self.healthy = [True] * len(edges)
        self.pairs: set[_Side] = set()
        """Client sides that are joined to an edge."""
        self.connections = [0] * len(edges)
        """How many each edge was given."""
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread()
        self.port: int = self._thread.run(self._start())

    async def _start(self) -> int:
        asyncio.get_running_loop().set_exception_handler(complain)
        self._server = await asyncio.get_running_loop().create_server(lambda: _Side(self), "127.0.0.1", 0, backlog=4096)
        for number in range(len(self._edges)):
            self.spawn(self._check(number))
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def spawn(self, work: object) -> None:
        task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, number: int) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECK_WITHIN_S):
                    reader, writer = await asyncio.open_connection(*self._edges[number], ssl=self._tls)
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    self.healthy[number] = b" 200 " in await reader.readline()
                    writer.close()
            except (OSError, TimeoutError):
                self.healthy[number] = False
            await asyncio.sleep(CHECK_EVERY_S)

    async def join(self, client: _Side) -> None:
        """Finds an edge for a socket that a client has opened; closes it when there is none."""
        assert client.transport is not None
        loop = asyncio.get_running_loop()
        first = next(self._turn)
        turns = [(first + n) % len(self._edges) for n in range(len(self._edges))]
        for number in sorted(turns, key=lambda number: not self.healthy[number]):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    _, edge = await loop.create_connection(lambda number=number: _Side(self, number), *self._edges[number])
                if client.transport.is_closing():  # it has given up meanwhile
                    edge.transport.abort()
                    return
                client.peer, edge.peer = edge, client
                self.connections[number] += 1
                self.pairs.add(client)
                client.transport.resume_reading()
                return
        client.transport.abort()

    def cut(self, count: int, chance: random.Random) -> int:
        """Resets that many of the clients' connections. How many there were."""

        async def reset() -> int:
            chosen = chance.sample(sorted(self.pairs, key=id), min(count, len(self.pairs)))
            for side in chosen:
                if side.transport is not None:
                    side.transport.abort()
            return len(chosen)

        return self._thread.run(reset(), 10)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            for side in list(self.pairs):
                if side.transport is not None:
                    side.transport.abort()
            await asyncio.sleep(0.1)

        self._thread.run(end(), 10)
        self._thread.close()
