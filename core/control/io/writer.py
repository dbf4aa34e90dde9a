"""Plans become records of `tidegate.config`: written, read back, and planned again if another core was first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from core.control.access import Principal
from core.control.audit import Outcome
from core.control.control import Change, Control
from core.control.pipelines import Pipelines
from core.events import ConfigRead, ConfigWritten, EndOffset
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits

log = structlog.get_logger("core.control")

FIRST_TICKET = 1 << 60
"""Tickets and questions from here on are ours, those below are the node's."""
TRIES = 5
"""How often a change is planned when others keep coming first. Then: 40900."""
UPKEEP_S = 60.0
RETRY_S = 5.0

_SILENT = "Kafka did not answer in time"


class Log(Protocol):
    """What is asked of `core.kafka.ConfigLog`."""

    def write(self, ticket: int, key: str, value: bytes | None) -> None: ...

    def ask_end(self, ask: int) -> None: ...


class ConfigWriter:
    """Stands between the topic and the node: `read` says which records are for others too. Everything on the loop."""

    def __init__(
        self, control: Control, pipelines: Pipelines, limits: CoreLimits, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self.control = control
        self.pipelines = pipelines
        self._limits = limits
        self.now_ms = now_ms
        self._log: Log | None = None
        self._next = FIRST_TICKET
        self._writes: dict[int, asyncio.Future[bool]] = {}
        self._asks: dict[int, asyncio.Future[bool]] = {}
        self._turn = asyncio.Lock()

    def use(self, log: Log) -> None:
        """From here on there is a topic to write to."""
        self._log = log

    # --- what comes from the topic -------------------------------------------------------------------------------------------------------

    def read(self, event: ConfigRead) -> bool:
        """Whether the record counts for the node."""
        return self.control.read(event.key, event.value, time.monotonic())

    def took(self, event: ConfigWritten | EndOffset) -> bool:
        """Whether it was an answer to us."""
        if isinstance(event, ConfigWritten):
            return _settle(self._writes, event.ticket, event.ok)
        return _settle(self._asks, event.ask, event.offset is not None)

    # --- requests ------------------------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Returns when everything has been read that anybody wrote before. Raises: RelayError 50003."""
        log_ = self._there()
        future = self._future(self._asks)
        log_.ask_end(future[0])
        if not await future[1]:
            raise RelayError(50003, _SILENT, 503)

    async def change(self, plan: Callable[[], Change], who: Principal, source: str) -> Change:
        """The change as it has come to pass. Raises: what `plan` raises; RelayError 40900, 50003."""
        async with self._turn:
            for _ in range(TRIES):
                await self.catch_up()
                change = plan()
                if await self._carry_out(change, who, source):
                    return change
            raise RelayError(40900, "Others keep changing this at the same time; try again")

    async def _carry_out(self, change: Change, who: Principal, source: str) -> bool:
        """False if another change of the same record came first. Raises: RelayError 50003 when nobody knows what came of it."""
        control, now_ms = self.control, self.now_ms()
        change_id = control.change_id(now_ms)
        value = control.ledger.next(change.key, change.data, change_id)
        control.ledger.begin(change_id)
        entry = control.entry_of(change, who, source, change_id, now_ms, "pending")
        # One producer, one partition: the entry stands before what it is about.
        noted, written = await asyncio.gather(self._write(*entry), self._write(change.key, value))
        counted = control.ledger.end(change_id)
        if counted is None or not noted or not written:
            raise RelayError(50003, f"{_SILENT}: the change may come to pass or not; look before trying again", 503)
        outcome: Outcome = "applied" if counted else "lost"
        if not counted:
            await self._put(control.ledger.repairs(time.monotonic(), at_once=True))
        await self._write(*control.entry_of(change, who, source, change_id, now_ms, outcome))
        log.info(
            "configuration change", action=change.action, outcome=outcome, by=who.id, of=who.type, source=source, **_target(change.target)
        )
        if change.shows is not None and counted:
            await self.note_reading(f"{change.action}.secret", change.shows, who, source)
        return counted

    async def note_reading(self, action: str, target: dict[str, str], who: Principal, source: str) -> None:
        """Returns when the audit has it: only then may it be shown. Raises: RelayError 50003."""
        if not await self._write(*self.control.entry_of_reading(action, target, who, source, self.now_ms())):
            raise RelayError(50003, f"{_SILENT}: a reading of secrets must be in the audit first", 503)
        log.info("secrets shown", action=action, by=who.id, of=who.type, source=source, **_target(target))

    # --- upkeep --------------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: what nobody asks for. The first thing is to seal secrets under the key that signs now."""
        most = self._limits.control_upkeep_records
        while outdated := [*self.control.reseal(most)]:
            for key, value in outdated:
                if not await self._write(key, value):
                    await asyncio.sleep(RETRY_S)
        while True:
            await asyncio.sleep(UPKEEP_S)
            # As long as there is more to do than goes at once, and Kafka takes it: the bounds of the audit hold however fast it grows.
            while len(records := self.control.upkeep(time.monotonic(), self.now_ms(), most)) == most:
                if not await self._put(records):
                    break
            else:
                await self._put(records)

    async def _put(self, records: list[tuple[str, bytes]] | list[tuple[str, bytes | None]]) -> bool:
        """Whether all of them have been written."""
        return all(await asyncio.gather(*(self._write(key, value) for key, value in records)))

    # --- the topic -----------------------------------------------------------------------------------------------------------------------

    async def _write(self, key: str, value: bytes | None) -> bool:
        log_ = self._there()
        ticket, future = self._future(self._writes)
        log_.write(ticket, key, value)
        return await future

    def _future(self, waiting: dict[int, asyncio.Future[bool]]) -> tuple[int, asyncio.Future[bool]]:
        self._next += 1
        future = waiting[self._next] = asyncio.get_running_loop().create_future()
        return self._next, future

    def _there(self) -> Log:
        if self._log is None:
            raise RelayError(50320, "The core is starting; try again")
        return self._log


def _settle(waiting: dict[int, asyncio.Future[bool]], number: int, ok: bool) -> bool:
    future = waiting.pop(number, None)
    if future is None:
        return number >= FIRST_TICKET
    if not future.done():
        future.set_result(ok)
    return True


def _target(target: dict[str, Any]) -> dict[str, str]:
    return {f"target_{name}": str(value) for name, value in target.items()}
