"""The floor: a bare picows broadcast over TLS on uvloop and aiofastnet. `python -m bench.floor_picows CERTIFICATE KEY`

Every frame from a client goes to all clients whose path is `/subscribe`. No protocol, no channels, no credentials: what is left is
sockets, TLS and WebSocket framing, which no server in Python can do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
import sys

import aiofastnet
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

READ_BUFFER_BYTES = 1024  # the default of 16 KiB is what an idle client would mostly cost

subscribers: set[WSTransport] = set()


class Client(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()
            return
        message = frame.get_payload_as_bytes()
        for subscriber in subscribers:
            subscriber.send(WSMsgType.TEXT, message)


class Subscriber(Client):
    def on_ws_connected(self, transport: WSTransport) -> None:
        subscribers.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        subscribers.discard(transport)


def route(request: WSUpgradeRequest) -> WSListener:
    return Subscriber() if request.path == b"/subscribe" else Client()


async def main(certificate: str, key: str) -> None:
    aiofastnet.patch_loop(asyncio.get_running_loop())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await ws_create_server(
        route, "127.0.0.1", 0, ssl=context, backlog=1024, max_frame_size=524_288, read_buffer_init_size=READ_BUFFER_BYTES
    )
    gc.freeze()
    print(json.dumps({"url": f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(*sys.argv[1:]))
