"""What sample records would become under the mappings of a core.toml: for `tidegate mappings test`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.kafka.config import SchemaRegistryConfig
from core.mappings import Mapping, MappingConfig, Schemas, SourceRecord
from core.mappings.preview import Preview, preview, read_sample
from core.mappings.schemas import Decoder, SchemaFormat, Unknown
from relay.model.limits import CoreLimits
from relay.runtime.settings import SettingsError, load
from tidegate import samples
from tidegate.samples import SHOWN_CHARACTERS, visible

REGISTRY_S = 10.0
"""How long Schema Registry is waited for."""


class _Kafka(msgspec.Struct):
    prefix: str = "tidegate"


class _App(msgspec.Struct):
    id: str
    mappings: list[MappingConfig] = []


class _Settings(msgspec.Struct):
    """What of core.toml concerns mappings: the rest may need files that are on the core's machine only."""

    dev: bool = False
    kafka: _Kafka = msgspec.field(default_factory=_Kafka)
    schema_registry: SchemaRegistryConfig | None = None
    limits: CoreLimits = CoreLimits()
    apps: list[_App] = []


class Tried(NamedTuple):
    record: SourceRecord
    found: list[tuple[str, Preview]]
    """(app, outcome)"""

    def shape(self) -> dict[str, Any]:
        return {"topic": self.record.topic, "mappings": [{"app": app, **each.shape()} for app, each in self.found]}

    def show(self, console: Console) -> None:
        if not self.found:
            console.print(Text(f"no mapping reads the topic {self.record.topic}"))
            return
        table = Table("app", "mapping", "channel", "message")
        for app, each in self.found:
            table.add_row(_text(app), _text(each.mapping), _text(each.channel or "-"), _text(_outcome(each)))
        console.print(table)


def _outcome(each: Preview) -> str:
    if each.message is not None:
        return json.dumps(each.message, ensure_ascii=False, indent=1)[:SHOWN_CHARACTERS]
    return f"none: {(each.reason or '').replace('_', ' ')} ({each.detail}); then: {each.then}"


def _text(value: str) -> Text:
    return Text(visible(value))


def try_mappings(sample: str, config: Path, *, app: str = "", only: str = "") -> Tried:
    """Raises ValueError (a line for the user) and OSError."""
    try:
        settings = load(_Settings, config, partial=True)
    except SettingsError as wrong:
        raise ValueError(str(wrong)) from None
    record = read_sample(_decoded(samples.read(sample)))
    mappings = [
        Mapping(
            each.id,
            one,
            prefix=settings.kafka.prefix,
            max_message_bytes=settings.limits.max_message_bytes,
            registry=settings.schema_registry is not None,
        )
        for each in settings.apps
        if not app or each.id == app
        for one in each.mappings
        if not only or one.id == only
    ]
    if only and not mappings:
        raise ValueError(f"there is no mapping {only!r}")
    chosen = [mapping for mapping in mappings if mapping.reads(record.topic)]
    now_ms = time.time_ns() // 1_000_000
    with _schemas(settings, needed=any(mapping.needs_registry for mapping in chosen)) as schemas:
        return Tried(record, [(mapping.app, preview(mapping, record, now_ms, schemas)) for mapping in chosen])


def _decoded(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("the record is not JSON") from None


@contextlib.contextmanager
def _schemas(settings: _Settings, *, needed: bool) -> Iterator[Schemas | None]:
    if not needed or settings.schema_registry is None:
        yield None
        return
    from core.kafka.schema_registry import SchemaRegistry  # noqa: PLC0415 - the client takes a second to load

    registry = SchemaRegistry(settings.schema_registry, settings.limits)
    registry.start()

    class Patient:
        """Waits, as nothing else is to be done."""

        def find(self, form: SchemaFormat, schema: int) -> Decoder | Unknown | None:
            return registry.wait(form, schema, REGISTRY_S)

    try:
        yield Patient()
    finally:
        asyncio.run(registry.close())
