"""The same clients as in `world.py`, over TLS against the running product and a real Kafka."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import time
import urllib.error
import urllib.request
from collections import deque
from typing import Any
from urllib.parse import urlencode

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.journeys import world
from tests.support.loop import LoopThread
from tests.support.product import Product

ANSWER_S = 15.0
SILENCE_S = 0.7
ACK, NACK, PRESENCE, MESSAGE = 1, 2, 14, 15
UNORDERED = [{answer, shown} for answer in (ACK, NACK) for shown in (MESSAGE, PRESENCE)]


class RealWorld:
    real = True

    def __init__(self, product: Product) -> None:
        self.product = product
        self.trust = ssl.create_default_context(cafile=product.ca)
        self.clients: list[RealClient] = []
        self.loop = LoopThread()

    @property
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def client(self, *, edge: int = 0, binary: bool = False, **params: str) -> RealClient:
        if not params.keys() & {"key", "access_token", "accessToken"}:
            params["key"] = self.product.key
        client = RealClient(self, edge, binary, {"v": "6", "format": "msgpack" if binary else "json", **params})
        self.clients.append(client)
        return client

    def token(self, **claims: Any) -> str:
        return world.token(self.now_ms, **{"key": self.product.key, **claims})

    def rest(self, method: str, path: str, body: object = None, *, edge: int = 0, credential: str = "") -> tuple[int, Any]:
        return self.asks(method, path, body, edge=edge, credential=credential)[:2]

    def asks(self, method: str, path: str, body: object = None, *, edge: int = 0, credential: str = "") -> tuple[int, Any, dict[str, str]]:
        credential = credential or self.product.key
        scheme = "Basic" if ":" in credential else "Bearer"
        headers = {"Content-Type": "application/json", "Authorization": f"{scheme} {base64.b64encode(credential.encode()).decode()}"}
        raw = None if body is None else json.dumps(body).encode()
        url = self.product.edges[edge % len(self.product.edges)].replace("wss:", "https:") + path
        request = urllib.request.Request(url, data=raw, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S, context=self.trust) as answer:
                links = world.links_of(answer.headers.get_all("link") or [])
                return answer.status, json.loads(answer.read() or b"null"), links
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null"), {}

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        for client in self.clients:
            client.drops()
        self.loop.close()


class RealClient:
    def __init__(self, real: RealWorld, edge: int, binary: bool, params: dict[str, str]) -> None:
        self._binary = binary
        self._run = real.loop.run
        self._early: deque[dict[str, Any]] = deque()
        url = real.product.edges[edge % len(real.product.edges)]

        async def dial() -> ClientConnection:
            return await connect(f"{url}/?{urlencode(params)}", ssl=real.trust, max_size=None)

        self._socket = self._run(dial(), ANSWER_S)

    def sends(self, **frame: Any) -> None:
        self.sends_bytes(msgspec.msgpack.encode(frame) if self._binary else json.dumps(frame).encode())

    def sends_bytes(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # what the server said before it closed is still to be read
            self._run(self._socket.send(data, text=not self._binary), ANSWER_S)

    def gets(self, action: int, **members: Any) -> dict[str, Any]:
        """Nothing is promised about which comes first, an answer to a publish or its echo: the other one waits for its turn."""
        early: list[dict[str, Any]] = []
        frame = self.takes()
        while {action, frame["action"]} in UNORDERED:
            early.append(frame)
            frame = self.takes()
        self._early.extendleft(reversed(early))
        return world.expect(frame, action, members)

    def takes(self) -> dict[str, Any]:
        return self._early.popleft() if self._early else self._next(ANSWER_S)

    def gets_nothing(self) -> None:
        assert not self._early, self._early
        try:
            frame = self._next(SILENCE_S)
        except (TimeoutError, ConnectionClosed):
            return
        raise AssertionError(frame)

    @property
    def closed(self) -> int | None:
        try:
            while True:
                self._run(self._socket.recv(), SILENCE_S)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
        except TimeoutError:
            return None

    def drops(self) -> None:
        self._run(self._socket.close(), ANSWER_S)

    def _next(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            data = self._run(self._socket.recv(), max(0.0, deadline - time.monotonic()))
            frame: dict[str, Any] = msgspec.msgpack.decode(data) if isinstance(data, bytes) else json.loads(data)
            if frame["action"] != 0 or "id" in frame:
                return frame
