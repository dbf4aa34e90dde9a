"""A crowd of clients that come and go, in one event loop, which at any time know how many of them there should be.

They speak the protocol by themselves: an SDK would hide what it does about a lost connection, and five hundred of it need a machine of
their own. What they do about one is what an SDK does: they dial again within seconds, resume, attach again with the last serial that they
have seen, and enter again where they were present.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from relay.model.occupancy import METRICS

ACK, NACK, CONNECTED, DISCONNECTED, CLOSE, CLOSED, ERROR = 1, 2, 4, 6, 7, 8, 9
ATTACH, ATTACHED, DETACH, DETACHED, PRESENCE, MESSAGE = 10, 11, 12, 13, 14, 15
RESUMED = 1 << 2
MODES = {"presenceConnections": 1 << 16, "publishers": 1 << 17, "subscribers": 1 << 18, "presenceSubscribers": 1 << 19}
SOME_MODES = (0, 0, MODES["subscribers"], MODES["publishers"] | MODES["presenceConnections"])
"""What clients attach with; 0: what is usual, all four. Without PRESENCE nobody enters."""
ALL_MODES = sum(MODES.values())
ANSWER_S = 30.0
"""What waits for so long is taken for a lost connection, as SDKs take it."""
DIAL_S = 10.0
BACK_S = (0.2, 3.0)
"""After what time a client dials again."""
GRACE_S = 15.0
"""How long the members of a connection that ended abruptly stay."""


class Lost(Exception):  # noqa: N818 - it says what happened
    """The connection is gone."""


@dataclass
class Place:
    """One client's hold on one channel, as it should be."""

    flags: int = 0
    granted: int = 0
    attached: bool = False
    present: bool = False
    unsure: bool = False
    """Whether the server has not yet said that it knows whether the client is present."""
    serial: str = ""
    params: dict[str, str] = field(default_factory=dict)


class Crowd:
    """What the clients share. `edges` are `wss:` addresses; those in `shut` are not dialled."""

    def __init__(self, edges: list[str], ca: str, key: str, chance: random.Random) -> None:
        self.edges = edges
        self.trust = ssl.create_default_context(cafile=ca)
        self.key = key
        self.chance = chance
        self.shut: set[int] = set()
        self.clients: list[Client] = []
        self.lost_members: Counter[str] = Counter()
        """How many members of each channel have lost their connection for good; they leave by themselves, in their time."""
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Answers that nobody should have got."""

    def add(self, name: str, **more: Any) -> Client:
        client = Client(self, name, **more)
        self.clients.append(client)
        return client

    def on(self, edge: int) -> list[Client]:
        return [client for client in self.clients if client.socket is not None and client.edge == edge]

    def counts(self, channel: str) -> dict[str, int]:
        """How many there are now. Only true while nobody waits for an answer."""
        found = dict.fromkeys(METRICS, 0)
        for client in self.clients:
            place = client.places.get(channel)
            if place is None or not client.connected or not place.attached:
                continue
            found["connections"] += 1
            for name, mode in MODES.items():
                found[name] += bool(place.granted & mode)
            found["presenceMembers"] += place.present
        return found


class Client:
    def __init__(self, crowd: Crowd, name: str, *, edge: int | None = None, heard: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`edge`: always this one, else any. `heard` gets MESSAGE frames."""
        self.crowd = crowd
        self.name = name
        self.home = edge
        self.edge = -1
        self.heard = heard
        self.places: dict[str, Place] = {}
        self.connected = False
        self.socket: ClientConnection | None = None
        self.key = ""
        self.id = ""
        self.back = True
        """Whether it comes back by itself when it has lost its connection."""
        self.busy = 0
        self._serial = 0
        self._waiting: list[tuple[tuple[int, str | int], asyncio.Future[dict[str, Any]]]] = []
        self._reader: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._lost_at = 0.0

    # --- what a client does ------------------------------------------------------------------------------------------------------------

    async def connects(self) -> None:
        """Anew, or on with the connection that it had. Raises: Lost."""
        crowd = self.crowd
        open_edges = [number for number in range(len(crowd.edges)) if number not in crowd.shut]
        self.edge = self.home if self.home is not None else crowd.chance.choice(open_edges)
        params = {"v": "6", "format": "json", "key": crowd.key, "clientId": self.name} | ({"resume": self.key} if self.key else {})
        try:
            async with asyncio.timeout(DIAL_S):
                self.socket = await connect(
                    f"{crowd.edges[self.edge]}/?{urlencode(params)}",
                    ssl=crowd.trust,
                    max_size=None,
                    ping_interval=None,
                    compression=None,
                    close_timeout=1,
                )
        except (OSError, WebSocketException, InvalidHandshake, TimeoutError) as error:
            raise Lost(str(error)) from None
        self._reader = asyncio.create_task(self._read(self.socket))
        told = await self._answer((CONNECTED, ""))
        if told["connectionId"] != self.id:
            self._serial = 0
            crowd.did["connections"] += 1
        else:
            crowd.did["resumes"] += 1
        self.id, self.key = told["connectionId"], told["connectionDetails"]["connectionKey"]
        self.connected = True
        away = time.monotonic() - self._lost_at
        for channel, place in list(self.places.items()):
            told = await self._attaches(channel, place)
            if place.unsure or (place.present and (away > GRACE_S / 2 or not told.get("flags", 0) & RESUMED)):
                await self._says(channel)

    async def attaches(self, channel: str, flags: int = 0, **params: str) -> None:
        place = self.places[channel] = Place(flags=flags, params=params)
        await self._attaches(channel, place)
        self.crowd.did["attached"] += 1

    async def _attaches(self, channel: str, place: Place) -> dict[str, Any]:
        frame: dict[str, Any] = {"action": ATTACH, "channel": channel}
        if place.flags:
            frame["flags"] = place.flags
        if place.params:
            frame["params"] = place.params
        if place.serial:
            frame["channelSerial"] = place.serial
        told = await self._asks(frame, (ATTACHED, channel))
        place.attached, place.granted = True, told.get("flags", 0) & ALL_MODES
        return told

    async def detaches(self, channel: str) -> None:
        await self._asks({"action": DETACH, "channel": channel}, (DETACHED, channel))
        self.places.pop(channel, None)
        self.crowd.did["detached"] += 1

    async def enters(self, channel: str) -> None:
        self.places[channel].present = True
        await self._says(channel)
        self.crowd.did["entered"] += 1

    async def leaves(self, channel: str) -> None:
        self.places[channel].present = False
        await self._says(channel)
        self.crowd.did["left"] += 1

    async def _says(self, channel: str) -> None:
        serial, self._serial = self._serial, self._serial + 1
        place = self.places[channel]
        place.unsure = True
        frame = {"action": PRESENCE, "msgSerial": serial, "channel": channel, "presence": [{"action": 2 if place.present else 3}]}
        await self._asks(frame, (ACK, serial))
        place.unsure = False

    async def closes(self) -> None:
        """In good order: its members leave at once."""
        self.back = False
        with contextlib.suppress(Lost, asyncio.CancelledError):
            await self._asks({"action": CLOSE}, (CLOSED, ""))
        self.places.clear()
        self.key = ""
        await self._ends()
        self.crowd.did["closed"] += 1

    async def drops(self, *, back: bool) -> None:
        """Without a word. If it is not to come back, its members leave by themselves."""
        self.back = back
        self.crowd.did["dropped"] += 1
        await self._ends()
        self._is_lost()

    async def _ends(self) -> None:
        socket, self.socket, self.connected = self.socket, None, False
        if self._returning is not None and self._returning is not asyncio.current_task() and not self.back:
            self._returning.cancel()
            self._returning = None
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        self._fail()
        if socket is not None:
            socket.transport.abort()

    # --- what it hears -----------------------------------------------------------------------------------------------------------------

    async def _asks(self, frame: dict[str, Any], answer: tuple[int, str | int]) -> dict[str, Any]:
        """Raises: Lost."""
        if self.socket is None:
            raise Lost("no connection")
        waiting = self._answer(answer)
        with contextlib.suppress(OSError, WebSocketException):  # the reader finds out, too
            await self.socket.send(json.dumps(frame))
        return await waiting

    def _answer(self, expected: tuple[int, str | int]) -> Coroutine[Any, Any, dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        entry = (expected, future)
        self._waiting.append(entry)

        async def wait() -> dict[str, Any]:
            self.busy += 1
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await future
            except TimeoutError:
                self.crowd.did["not answered"] += 1
                await self._ends()
                self._is_lost()
                raise Lost(f"no answer: {expected}") from None
            finally:
                self.busy -= 1
                if entry in self._waiting:
                    self._waiting.remove(entry)

        return wait()

    def _fail(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(Lost("connection lost"))

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                self._got(json.loads(text))
        except (OSError, WebSocketException):
            pass
        if self.socket is socket:
            await self._ends()
            self._is_lost()

    def _got(self, frame: dict[str, Any]) -> None:
        action, channel = frame["action"], frame.get("channel", "")
        place = self.places.get(channel)
        if place is not None and action in (ATTACHED, PRESENCE, MESSAGE) and frame.get("channelSerial"):
            place.serial = frame["channelSerial"]
        if action == MESSAGE and self.heard is not None:
            self.heard(frame)
        elif action in (NACK, ERROR):
            self.crowd.wrong.append(f"{self.name}: {frame}"[:300])
        elif action == ACK:
            first = frame.get("msgSerial", 0)
            for serial in range(first, first + frame.get("count", 1)):
                self._settle((ACK, serial), frame)
        elif action == DETACHED and place is not None and frame.get("error"):
            self.crowd.wrong.append(f"{self.name}: {frame}"[:300])
        else:
            self._settle((action, channel), frame)

    def _settle(self, key: tuple[int, str | int], frame: dict[str, Any]) -> None:
        for expected, future in self._waiting:
            if expected == key and not future.done():
                future.set_result(frame)
                return

    # --- what becomes of a lost connection ---------------------------------------------------------------------------------------------

    def _is_lost(self) -> None:
        self._lost_at = time.monotonic()
        for channel, place in self.places.items():
            place.attached = False
            if place.present and not self.back:
                self.crowd.lost_members[channel] += 1
        if not self.back:
            self.places.clear()
            self.key = ""
        elif self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._returns())

    async def _returns(self) -> None:
        while not self.connected:
            await asyncio.sleep(self.crowd.chance.uniform(*BACK_S))
            if not self.back:
                return
            if self.home is not None and self.home in self.crowd.shut:
                continue
            try:
                await self.connects()
            except Lost:
                await self._ends()

    @property
    def at_rest(self) -> bool:
        return not self.busy and (self.connected or not self.back)
