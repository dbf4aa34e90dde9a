"""Several processes behind one port (SO_REUSEPORT): the kernel spreads connections, each process has a link of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType


def run_workers(count: int, run: Callable[[int], int]) -> int:
    """Forks `count` children that call `run(worker number)`; passes SIGTERM and SIGINT on; ends when all have ended.

    A worker that dies ends the others: half an edge behind a load balancer is worse than a restart by the supervisor. Returns the first
    exit code that is not 0.
    """
    children: dict[int, int] = {}
    for worker in range(count):
        pid = os.fork()
        if pid == 0:
            # A process group of its own: Ctrl-C reaches the whole group of the terminal, and a worker that is signalled twice ends at once.
            os.setpgrp()
            die_with_parent()
            os._exit(run(worker))
        children[pid] = worker

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in list(children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    worst = 0
    while children:
        pid, status = os.wait()
        if children.pop(pid, None) is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        if code != 0 and worst == 0:
            worst = code if code > 0 else 1
            pass_on(signal.SIGTERM, None)
    return worst


def die_with_parent() -> None:
    """Linux: the kernel sends SIGTERM to this process when the one that started it is killed. Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
