"""An owner as a process of its own, to be killed and frozen. Settings are JSON; prints what it has done as lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from core.kafka import KafkaConfig, OwnerRunner, StreamInfo
from core.kafka.transactions import Transactions
from core.rules import Rule, RuleConfig
from relay.model.limits import CoreLimits
from relay.runtime.settings import Secret
from tests.support.kafka import Kafka


class OwnerProcess:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.last: dict[str, Any] = {"owned": [], "written": 0, "ready": False, "refused": 0, "failures": 0, "by_rule": {}, "parked": []}
        self.errors: list[str] = []
        for stream, take in ((process.stdout, self._told), (process.stderr, self.errors.append)):
            threading.Thread(target=self._read, args=(stream, take), daemon=True).start()

    def _told(self, line: str) -> None:
        self.last = json.loads(line)

    @staticmethod
    def _read(stream: Any, take: Callable[[str], None]) -> None:
        for line in stream:
            take(line)

    @property
    def stopped(self) -> bool:
        """Frozen by SIGSTOP."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    async def until(self, done: Callable[[], object], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert self.process.poll() is None, "".join(self.errors)
            assert time.monotonic() < end, (self.last, "".join(self.errors))
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def owner_process(world: Kafka, core: str, rules: list[dict[str, Any]], *, freeze_at: int = 0, parked: str = "") -> Iterator[OwnerProcess]:
    """`freeze_at`: it stops itself within the first transaction after that many records for topics, all of which are with the broker, and
    nothing of which is committed. `parked`: the same for what parked rules write, "open" as above, or "before" the transaction."""
    settings = {
        "brokers": world.config.brokers,
        "prefix": world.config.prefix,
        "log": list(world.topics.log),
        "state": list(world.topics.state),
        "core": core,
        "rules": rules,
        "freeze_at": freeze_at,
        "parked": parked,
    }
    command = [sys.executable, "-m", "tests.support.owner_process", json.dumps(settings)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        yield OwnerProcess(process)
    finally:
        process.kill()
        process.wait(10)


def _freeze(at: int, parked: str) -> None:
    write = Transactions.write
    count = 0

    def frozen(self: Transactions, outputs: Any, states: Any, offsets: Any, group: Callable[[], Any]) -> Any:
        nonlocal at, count
        if self._checked_last != bool(parked):
            return write(self, outputs, states, offsets, group)
        count += len(outputs)
        if parked == "before" and outputs and at and count >= at:
            at = 0
            os.kill(os.getpid(), signal.SIGSTOP)

        def stop() -> Any:
            nonlocal at
            metadata = group()
            if outputs and at and count >= at:
                at = 0
                self._producer.flush(10)
                os.kill(os.getpid(), signal.SIGSTOP)
            return metadata

        return write(self, outputs, states, offsets, stop)

    Transactions.write = frozen  # type: ignore[method-assign]


async def _main(settings: dict[str, Any]) -> None:
    if settings["freeze_at"]:
        _freeze(settings["freeze_at"], settings["parked"])
    owner = OwnerRunner(
        KafkaConfig(brokers=settings["brokers"], prefix=settings["prefix"]),
        StreamInfo(*settings["log"]),
        StreamInfo(*settings["state"]),
        [Rule("app", msgspec.convert(rule, RuleConfig, dec_hook=lambda _, value: Secret(value))) for rule in settings["rules"]],
        core=settings["core"],
        limits=CoreLimits(),
        loop=asyncio.get_running_loop(),
        deliver=lambda events: None,
    )
    owner.start()
    closing = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, closing.set)
    while not closing.is_set():
        told = {"owned": sorted(owner.owned), "written": owner.written.total(), "ready": owner.ready}
        told |= {"by_rule": dict(owner.written), "parked": owner.parked_rules()}
        print(json.dumps(told | {"refused": owner.refused, "failures": owner.failures}), flush=True)
        await asyncio.sleep(0.02)
    await owner.close()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    asyncio.run(_main(json.loads(sys.argv[1])))
