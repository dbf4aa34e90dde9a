"""Every task has an owner, and every process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from relay.runtime import logs
from relay.runtime.shutdown import FAILED, KILLED, CannotStart, Scope, run, supervise

ROOT = Path(__file__).parents[3]


def test_close_ends_in_reverse_order_and_leaves_no_task() -> None:
    said: list[str] = []

    async def closing(name: str) -> None:
        said.append(name)

    async def main() -> None:
        scope = Scope()
        scope.on_stop("first", lambda: closing("first"))
        scope.on_stop("second", lambda: closing("second"))
        task = scope.spawn("waits", asyncio.sleep(60))
        await scope.close(1)
        assert task.cancelled()

    asyncio.run(main())
    assert said == ["second", "first"]


def test_a_part_that_cannot_be_closed_does_not_stop_the_others() -> None:
    closed = []

    async def broken() -> None:
        raise RuntimeError

    async def fine() -> None:
        closed.append(1)

    async def main() -> None:
        scope = Scope()
        scope.on_stop("fine", fine)
        scope.on_stop("broken", broken)
        await scope.close(1)

    asyncio.run(main())
    assert closed == [1]


def test_the_failure_of_a_task_ends_the_process() -> None:
    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise RuntimeError("gone")

    async def main(scope: Scope) -> None:
        scope.spawn("fails", fails())

    assert run(main, deadline_s=2) == FAILED


def test_a_task_may_fail_on_its_own_if_that_was_said() -> None:
    async def fails() -> None:
        raise RuntimeError("gone")

    async def main(scope: Scope) -> None:
        scope.spawn("fails", fails(), essential=False)
        asyncio.get_running_loop().call_later(0.05, scope.ask_stop)

    assert run(main, deadline_s=2) == 0


def test_a_start_that_fails_ends_the_process() -> None:
    closed = []

    async def closing() -> None:
        closed.append(1)

    async def main(scope: Scope) -> None:
        scope.on_stop("part", closing)
        raise OSError("address in use")

    assert run(main, deadline_s=2) == FAILED
    assert closed == [1]


def test_what_the_operator_has_to_put_right_ends_the_process_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(scope: Scope) -> None:
        raise CannotStart("port: take another")

    logs.configure("text", "info", sys.stdout)
    assert run(main, deadline_s=2) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "port: take another" in line


def test_the_deadline_is_kept() -> None:
    async def never() -> None:
        await asyncio.sleep(60)

    async def main(scope: Scope) -> None:
        scope.on_stop("never", never)
        scope.ask_stop()

    started = time.monotonic()
    assert asyncio.run(supervise(main, deadline_s=0.2)) == KILLED
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process_in_order(number: signal.Signals) -> None:
    program = """
        import asyncio
        from relay.runtime.shutdown import run

        async def close():
            print("closed", flush=True)

        async def main(scope):
            scope.on_stop("part", close)
            print("ready", flush=True)

        raise SystemExit(run(main))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[0].endswith(b"closed\n")
    assert process.returncode == 0
