"""Cores that share a configuration topic in memory, each with its Control API and its registry."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import httpx
from starlette.applications import Starlette

from core.control.access import StaticToken
from core.control.control import Control
from core.control.io.api import ControlApi
from core.control.io.console import console_routes
from core.control.io.peers import Peers
from core.control.io.writer import ConfigWriter
from core.control.pipelines import Pipelines
from core.events import CONFIG_END, ConfigRead, ConfigWritten, EndOffset
from core.io.http import admin_app
from core.mappings import Mapping, Schemas
from core.registry import App, Registry
from core.rules import Rule
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from relay.model.occupancy import details
from relay.model.stats import Query
from tests.unit.core.dialogue import RING, START_MS, apps

ALL = ["reader", "operator", "security", "secrets"]
SECRET = "s" * 40
Random = Any


class Topic:
    """Every record in its order. `held`: nobody reads on until `release`, as when two cores write at the same moment."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None]] = []
        self.cores: list[OneCore] = []
        self.held = False
        self._waiting: deque[tuple[OneCore, int, str, bytes | None]] = deque()

    def write(self, core: OneCore, ticket: int, key: str, value: bytes | None) -> None:
        self._waiting.append((core, ticket, key, value))
        if not self.held:
            self.release()

    def release(self) -> None:
        while self._waiting:
            core, ticket, key, value = self._waiting.popleft()
            self.records.append((key, value))
            for each in self.cores:
                each.reads(key, value)
            core.writer.took(ConfigWritten(ticket, True))

    def compacted(self) -> list[tuple[str, bytes | None]]:
        """What compaction leaves: the last record of each key."""
        last = {key: index for index, (key, _) in enumerate(self.records)}
        return [self.records[index] for index in sorted(last.values())]

    def text(self) -> str:
        return "\n".join(f"{key} {(value or b'').decode()}" for key, value in self.records)


class OneCore:
    def __init__(
        self,
        topic: Topic,
        name: str = "core-1",
        *,
        static: list[App] | None = None,
        limits: CoreLimits | None = None,
        ring: list[tuple[str, bytes]] | None = None,
        random: Any = None,
        certificates: dict[str, frozenset[str]] | None = None,
        static_rules: Any = (),
        static_mappings: Any = (),
    ) -> None:
        import os

        self.topic = topic
        self.now_ms = START_MS
        static = apps() if static is None else static
        keyring = Keyring(ring or RING)
        limits = limits or CoreLimits()
        tokens = [StaticToken("root", SECRET, frozenset(ALL))]
        tokens += [StaticToken(scope, SECRET, frozenset({scope})) for scope in ALL]
        tokens.append(StaticToken("staff", SECRET, frozenset(ALL) - {"secrets"}))
        self.control = Control(
            keyring=keyring,
            limits=limits,
            random=random or os.urandom,
            core=name,
            static=static,
            tokens=tokens,
            certificates=certificates,
        )
        self.pipelines = Pipelines(
            self.control, make_rule=Rule, make_mapping=Mapping, static_rules=static_rules, static_mappings=static_mappings
        )
        self.writer = ConfigWriter(self.control, self.pipelines, limits, now_ms=lambda: self.now_ms)
        self.writer.use(self)
        self.registry = Registry(static, keyring)
        self.node = name
        self.registry_of_schemas: Schemas | None = None
        self.open_channels: dict[str, tuple[int, ...]] = {}
        """Of whatever app, by name; counts in the order of METRICS."""
        self.counted: list[tuple[str, list[int]]] = []
        """Intervals, whatever is asked for."""
        self.stats_asked: tuple[list[str], Query] | None = None
        control = ControlApi(lambda: self.writer, limits, self)
        self.app: Starlette = admin_app(lambda: True, self.status, [*control.routes(), *console_routes()], names=["core", "testserver"])
        for record in topic.compacted():
            self.reads(*record)
        topic.cores.append(self)

    def reads(self, key: str, value: bytes | None) -> None:
        if self.writer.read(ConfigRead(key, value)):
            self.registry.apply(key, value)

    # What the writer asks of the topic

    def write(self, ticket: int, key: str, value: bytes | None) -> None:
        self.topic.write(self, ticket, key, value)

    def ask_end(self, ask: int) -> None:
        self.writer.took(EndOffset(ask, CONFIG_END, len(self.topic.records)))

    # What the API shows of the core

    def status(self) -> dict[str, Any]:
        return {"node": self.node, "ready": True}

    async def channels(self, app: str, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
        names = sorted(name for name in self.open_channels if name.startswith(prefix) and name > after)
        return [details(name, self.open_channels[name]) for name in names[:limit]]

    async def stats(self, apps: Sequence[str], query: Query) -> list[tuple[str, list[int]]]:
        self.stats_asked = (list(apps), query)
        return self.counted

    async def cluster(self, authorization: str) -> dict[str, Any]:
        return await Peers(self.status).cluster(authorization)

    async def schemas(self) -> Schemas | None:
        return self.registry_of_schemas

    # Requests

    async def asks(
        self, method: str, path: str, body: Any = None, *, token: str = "root", prefix: str = "/v1", **more: Any
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}.{SECRET}"} | more.pop("headers", {})
        content = None if body is None else json.dumps(body)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://core") as client:
            return await client.request(
                method, prefix + path, content=content, headers={"content-type": "application/json"} | headers, **more
            )

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return asyncio.run(self.asks(method, path, body, **more))

    def made(self, path: str, body: Any = None, *, status: int = 201, **more: Any) -> Any:
        answer = self.ask("POST", path, body or {}, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def an_app(self, name: str = "web") -> str:
        return str(self.made("/accounts/tidegate/apps", {"name": name})["id"])

    def audit(self, **query: str) -> list[dict[str, Any]]:
        return list(self.ask("GET", "/audit", params=query).json())
