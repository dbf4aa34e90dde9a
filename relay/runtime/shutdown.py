"""Who owns the tasks of a process, and how it ends.

    async def main(scope: Scope) -> None:
        listener = await Listener(...).start("127.0.0.1", 8443)
        scope.on_stop("listener", listener.close)
        scope.spawn("tail", tail.run())

    raise SystemExit(run(main))

`main` brings everything up and returns. The process then lives until SIGTERM, SIGINT, `scope.ask_stop` or the failure of a task; what was
registered with `on_stop` is closed, last first, then the tasks that are left are cancelled, all within one deadline. A second signal, or
the deadline, ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import aiofastnet
import structlog
import uvloop

log = structlog.get_logger("relay.runtime")

FAILED = 1
MISCONFIGURED = 2
KILLED = 70
"""Exit status when the orderly end took too long or was cut short (EX_SOFTWARE)."""


class CannotStart(Exception):  # noqa: N818 - as the log says it
    """What the operator has to put right. Its text is one line with what to do; the process ends with status 2 and no traceback."""


class Scope:
    """Owns tasks and what must be closed. Nothing outlives it."""

    __slots__ = ("_closers", "_stop", "_tasks", "exit_code")

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._stop = asyncio.Event()
        self.exit_code = 0

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def ask_stop(self, exit_code: int = 0) -> None:
        """Begin the orderly end. The first exit code that is not zero is kept."""
        self.exit_code = self.exit_code or exit_code
        self._stop.set()

    def spawn(self, name: str, work: Coroutine[Any, Any, object], *, essential: bool = True) -> asyncio.Task[Any]:
        """Run `work` as a task of this scope. If an essential one fails, that is logged and the process ends with status 1.

        A failure of a task that is not essential is logged, and everything else carries on.
        """
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, essential))
        return task

    def on_stop(self, name: str, close: Callable[[], Awaitable[object]]) -> None:
        """Call and await `close` at the end; what was registered last is closed first."""
        self._closers.append((name, close))

    async def stopped(self) -> int:
        """Wait until someone asks for the end; the exit code so far."""
        await self._stop.wait()
        return self.exit_code

    async def close(self, deadline_s: float = 10.0) -> None:
        """Close everything and cancel what is left. Raises: TimeoutError when that takes longer than `deadline_s` seconds."""
        self._stop.set()
        async with asyncio.timeout(deadline_s):
            while self._closers:
                name, close = self._closers.pop()
                try:
                    await close()
                except Exception:
                    log.exception("could not close", part=name)
            while self._tasks:
                pending = list(self._tasks)
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending)

    def _ended(self, task: asyncio.Task[Any], essential: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if essential and isinstance(error, CannotStart):
            log.error("cannot start", reason=str(error))
            self.ask_stop(MISCONFIGURED)
            return
        log.error("task failed", task=task.get_name(), essential=essential, exc_info=error)
        if essential:
            self.ask_stop(FAILED)


async def supervise(main: Callable[[Scope], Awaitable[None]], *, deadline_s: float = 10.0) -> int:
    """Run `main` in a scope of its own on the running loop until it is asked to stop; the exit code. Takes SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    scope = Scope()

    def asked(signum: signal.Signals) -> None:
        if scope.stopping:
            log.warning("second signal: ending at once", signal=signum.name)
            os._exit(KILLED)
        log.info("stopping", signal=signum.name)
        scope.ask_stop()

    loop.set_exception_handler(complain)
    signals = (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, asked, each)
    try:
        starting = scope.spawn("start", main(scope))  # type: ignore[arg-type]
        asking = loop.create_task(scope.stopped())
        await asyncio.wait((starting, asking), return_when=asyncio.FIRST_COMPLETED)
        if not scope.stopping:
            calm_collector()
        await asking
        try:
            await scope.close(deadline_s)
        except TimeoutError:
            log.warning("not everything ended in time", deadline_s=deadline_s)
            scope.exit_code = scope.exit_code or KILLED
    finally:
        for each in signals:
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(each)
    return scope.exit_code


def calm_collector() -> None:
    """Once a process is up. What exists now lives as long as the process: out of the collector's sight, so that its pauses stay short. What
    is young is looked at every 20,000 objects instead of every 700: records come in batches that outlive several such looks, each of them
    for nothing (1 µs a record in the tail of a core)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def run(main: Callable[[Scope], Awaitable[None]], *, deadline_s: float = 10.0) -> int:
    """Run a process: uvloop with aiofastnet's transports, `supervise`, and the exit code."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(supervise(main, deadline_s=deadline_s))


def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler: what nobody caught goes to the log, without the objects it happened to."""
    error = context.get("exception")
    # aiofastnet reports a peer that goes away in mid-handshake this way (it hands over the class itself, so that it does not see an
    # OSError, which it would keep to itself). The listener counts it.
    if error is not ConnectionResetError:
        log.error("unhandled in the event loop", what=context.get("message", ""), exc_info=error)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop, patched so that sockets and TLS of every library on it are aiofastnet's (about 250 KB less per TLS connection)."""
    return aiofastnet.patch_loop(uvloop.new_event_loop())
