"""The mappings that a core runs, as they are wanted now: started, stopped, changed, held and moved while everything else goes on.

On the loop, except for the threads of the runners themselves. Of one mapping never more than one runner is in its group from here: what is
wanted again while it ends begins when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from core.kafka.config import KafkaConfig
from core.kafka.lanes import LogAppends
from core.kafka.logs import log
from core.kafka.mapping_runner import CLOSE_S, MappingRunner
from core.mappings import Schemas, Wanted
from relay.model.limits import CoreLimits

LOAD_S = 10.0
"""Wait before the client of Schema Registry is tried again, in seconds."""
Name = tuple[str, str]
"""App and id of a mapping."""


class MappingSet:
    def __init__(
        self,
        config: KafkaConfig,
        appends: LogAppends,
        *,
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        schemas: Callable[[], Awaitable[Schemas]],
        create_topics: bool = False,
    ) -> None:
        """`schemas` is asked once, when the first mapping needs it. `create_topics`: make topics that are missing (dev only)."""
        self._config = config
        self._appends = appends
        self._limits = limits
        self._loop = loop
        self._load_schemas = schemas
        self._create_topics = create_topics
        self._schemas: Schemas | None = None
        self._loading: asyncio.Task[None] | None = None
        self._wanted: dict[Name, Wanted] = {}
        self._runners: dict[Name, MappingRunner] = {}
        self._using: dict[Name, Wanted] = {}
        """What each runner was told last."""
        self._ending: dict[Name, asyncio.Task[None]] = {}
        self._first: set[Name] | None = None
        """Those that were wanted first and have not been ready yet."""
        self._closed = False

    def __iter__(self) -> Iterator[MappingRunner]:
        return iter(list(self._runners.values()))

    @property
    def ready(self) -> bool:
        """Whether what was wanted at the start runs. What comes later makes no core unready."""
        if self._first is None:
            return False
        self._first = {name for name in self._first & self._wanted.keys() if not self._is_ready(name)}
        return not self._first

    def status(self) -> list[dict[str, Any]]:
        return [runner.status() for runner in self]

    def want(self, wanted: Iterable[Wanted]) -> None:
        """All that is to run from now on. What is not among it ends, and keeps its commits."""
        self._wanted = {(each.mapping.app, each.mapping.id): each for each in wanted}
        if self._first is None:
            self._first = set(self._wanted)
        self._settle()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Ends all, at once. Close it before `LogProducer`."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        runners, self._runners = self._runners, {}
        await asyncio.gather(*(runner.close(timeout_s) for runner in runners.values()), *self._ending.values())

    # --- towards what is wanted ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._closed:
            return
        for name in self._runners.keys() - self._wanted.keys():
            self._end(name)
        for name, wanted in self._wanted.items():
            if name in self._ending:
                continue
            if wanted.mapping.needs_registry and self._schemas is None:
                self._load()
                continue
            runner = self._runners.get(name)
            if runner is None:
                self._start(name, wanted)
            elif self._using[name] != wanted:
                runner.use(*wanted, self._schemas)
                self._using[name] = wanted

    def _start(self, name: Name, wanted: Wanted) -> None:
        runner = self._runners[name] = MappingRunner(
            self._config,
            wanted.mapping,
            self._appends,
            limits=self._limits,
            loop=self._loop,
            schemas=self._schemas,
            steering=wanted.steering,
            create_topics=self._create_topics,
        )
        self._using[name] = wanted
        runner.start()

    def _end(self, name: Name) -> None:
        runner = self._runners.pop(name)
        del self._using[name]
        runner.stop()
        log.info("mapping %s: ended", name[1])

        async def end() -> None:
            try:
                await runner.close()
            finally:
                del self._ending[name]
                self._settle()

        self._ending[name] = self._loop.create_task(end())

    def _load(self) -> None:
        if self._loading is not None:
            return

        async def load() -> None:
            while self._schemas is None:
                try:
                    self._schemas = await self._load_schemas()
                except Exception:
                    log.exception("the client of Schema Registry cannot be made: trying again")
                    await asyncio.sleep(LOAD_S)
            self._settle()

        self._loading = self._loop.create_task(load())

    def _is_ready(self, name: Name) -> bool:
        runner = self._runners.get(name)
        return runner is not None and runner.ready
