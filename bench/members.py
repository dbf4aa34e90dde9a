"""A presence set of 20,000 members: `python -m bench.members [--members N] [--connections N]`.

Members enter by `enterClient` over 80 connections, 250 items a message. Then one client after another attaches and waits for its SYNC to be
complete; where Node.js and the official JavaScript client are installed, so does one of these, by `presence.get()`. Shown: memory per
member on edge and core, time until all had entered, time from ATTACH to the end of SYNC, and whether everybody was there. There is no
floor: nothing bare keeps a presence set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.common import Server, cpu_s, product, rss_bytes

CHANNEL = "crowd"
ITEMS = 250
WAIT_S = 120.0
ROUNDS = 5
CONNECTED, ATTACHED, ACK, NACK, PRESENCE, SYNC = 4, 11, 1, 2, 14, 16
ENTER_ONLY = 1 << 16
"""The PRESENCE mode alone: who enters need not be told of the others."""


class Member(WSListener):
    """A client that notes what comes, and can be waited for."""

    def __init__(self) -> None:
        self.transport: WSTransport | None = None
        self.acked = 0
        self.seen: set[tuple[str, str]] = set()
        self.pages = 0
        self.largest = 0
        self._buffer = b""
        self._waiting: dict[str, asyncio.Future[Any]] = {}

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        data = frame.get_payload_as_bytes()
        message = json.loads(data)
        match message["action"]:
            case 4:
                self._tell("connected", message)
            case 11:
                self._tell("attached", message)
            case 1:
                self.acked += message["count"]
                self._tell("acked", message)
            case 16:
                self.pages += 1
                self.largest = max(self.largest, len(data))
                self.seen.update((item["connectionId"], item["clientId"]) for item in message["presence"])
                if message.get("channelSerial", ":").endswith(":"):
                    self._tell("synced", message)
            case 2 | 6 | 9:
                for future in self._waiting.values():
                    if not future.done():
                        future.set_exception(ConnectionError(str(message.get("error"))))

    def _tell(self, what: str, message: Any) -> None:
        future = self._waiting.pop(what, None)
        if future is not None and not future.done():
            future.set_result(message)

    async def after(self, what: str, **message: Any) -> Any:
        """Send, and wait for what it is answered with."""
        future = self._waiting[what] = asyncio.get_running_loop().create_future()
        if message:
            assert self.transport
            self.transport.send(WSMsgType.TEXT, json.dumps(message).encode())
        return await asyncio.wait_for(future, WAIT_S)


async def connect(server: Server, tls: ssl.SSLContext) -> Member:
    url = f"{server.url}/?access_token={quote(server.token)}&format=json&v=6&heartbeats=true"
    member = Member()
    connected = asyncio.ensure_future(member.after("connected"))
    await asyncio.sleep(0)
    await ws_connect(lambda: member, url, ssl_context=tls)
    await connected
    return member


async def measure(server: Server, members: int, connections: int) -> bool:
    tls = ssl.create_default_context(cafile=server.ca)
    people = [await connect(server, tls) for _ in range(connections)]
    for person in people:
        await person.after("attached", action=10, channel=CHANNEL, flags=ENTER_ONLY)
    first = await connect(server, tls)
    await first.after("attached", action=10, channel=CHANNEL)  # from now on the edge keeps a mirror
    before = {role: rss_bytes(pids) for role, pids in server.pids.items()}
    each = members // connections
    start, cpu = time.perf_counter(), cpu_s(server.all)

    async def enter(number: int, person: Member) -> None:
        for serial, at in enumerate(range(0, each, ITEMS)):
            items = [{"action": 2, "clientId": f"client-{number}-{n}", "data": f"seat {n}"} for n in range(at, min(at + ITEMS, each))]
            await person.after("acked", action=14, channel=CHANNEL, msgSerial=serial, presence=items)

    for at in range(0, connections, 8):
        await asyncio.gather(*(enter(number, people[number]) for number in range(at, min(at + 8, connections))))
    entered = time.perf_counter() - start
    cpu = cpu_s(server.all) - cpu
    await asyncio.sleep(2)
    after = {role: rss_bytes(pids) for role, pids in server.pids.items()}
    times, all_there, newcomers = [], True, []
    for _ in range(ROUNDS):
        newcomer = await connect(server, tls)
        newcomers.append(newcomer)
        begin = time.perf_counter()
        synced = asyncio.ensure_future(newcomer.after("synced"))
        await asyncio.sleep(0)
        await newcomer.after("attached", action=10, channel=CHANNEL)
        await synced
        times.append(time.perf_counter() - begin)
        all_there = all_there and len(newcomer.seen) == each * connections
    number = each * connections
    print(f"{number} members over {connections} connections; entered in {entered:.2f} s ({1e6 * cpu / number:.0f} us of CPU each)")
    for role in ("edge", "core"):
        print(f"memory per member, {role}: {(after[role] - before[role]) / number:.0f} B")
    print(
        f"ATTACH to the end of SYNC: first {times[0]:.3f} s, median {statistics.median(times):.3f} s; {newcomers[0].pages} pages, "
        f"largest {newcomers[0].largest} B; everybody there: {all_there}"
    )
    official = await asyncio.to_thread(presence_get, server)
    if official is None:
        print("presence.get() of the official client: Node.js or the package ably is missing")
        return all_there
    print(f"presence.get() of the official client: {official['members']} members, {official['ms']} ms from attach")
    return all_there and official["members"] == number


SCRIPT = """
const Ably = require('ably');
const s = JSON.parse(process.env.SETTINGS);
const client = new Ably.Realtime({ endpoint: s.host, port: s.port, tlsPort: s.port, token: s.token, logLevel: 0 });
client.connection.once('connected', async () => {
  const begin = Date.now();
  const found = await client.channels.get(s.channel).presence.get();
  console.log(JSON.stringify({ members: new Set(found.map((m) => m.connectionId + ':' + m.clientId)).size, ms: Date.now() - begin }));
  process.exit(0);
});
"""


def presence_get(server: Server) -> dict[str, int] | None:
    modules = Path(__file__).parents[1] / ".cache" / "node" / "node_modules"
    node = shutil.which("node")
    if node is None or not (modules / "ably").is_dir():
        return None
    host, _, port = server.url.partition("//")[2].partition(":")
    settings = {"host": host, "port": int(port), "token": server.token, "channel": CHANNEL}
    env = {**os.environ, "NODE_PATH": str(modules), "NODE_EXTRA_CA_CERTS": str(server.ca), "SETTINGS": json.dumps(settings)}
    done = subprocess.run([node, "-e", SCRIPT], env=env, capture_output=True, text=True, timeout=WAIT_S, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.members", description=__doc__)
    parser.add_argument("--members", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=80)
    parser.add_argument("--kafka", default="local")
    options = parser.parse_args()
    with product(None if options.kafka == "embedded" else options.kafka, "--presence-members", str(options.members)) as server:
        return 0 if uvloop.run(measure(server, options.members, options.connections)) else 1


if __name__ == "__main__":
    sys.exit(main())
