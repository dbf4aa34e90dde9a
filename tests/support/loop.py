"""An event loop in a thread of its own, so that tests which speak to real sockets stay plain sequences.

`websockets.sync` would be simpler, but it reads and writes one TLS object from two threads at once (CPython issue 143756): under load,
about one upgrade in two hundred is never sent, and the server answers 408.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiofastnet
import uvloop

T = TypeVar("T")


class LoopThread:
    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        aiofastnet.patch_loop(self.loop)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Raises: what `work` raises; TimeoutError when it takes longer than `timeout_s`, and it is cancelled."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self.loop).result()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """In the loop's thread, soon, in the order of the calls."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
