"""What sample events would become under the rules of a core.toml: for `tidegate rules test`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.rules import Output, Rule, RuleConfig
from core.rules.envelope import CONTENT_TYPE
from core.rules.preview import Preview, preview, read_sample, text_of
from relay.runtime.settings import SettingsError, load
from tidegate import samples
from tidegate.samples import SHOWN_CHARACTERS, visible


class _Kafka(msgspec.Struct):
    prefix: str = "tidegate"


class _App(msgspec.Struct):
    id: str
    rules: list[RuleConfig] = []


class _Settings(msgspec.Struct):
    """What of core.toml concerns rules: the rest may need files that are on the core's machine only."""

    node: str = "core"
    dev: bool = False
    kafka: _Kafka = msgspec.field(default_factory=_Kafka)
    apps: list[_App] = []


class Tried(NamedTuple):
    app: str
    channel: str
    found: list[Preview]

    def shape(self) -> dict[str, Any]:
        """For machines."""
        return {"app": self.app, "channel": self.channel, "results": [each.shape() for each in self.found]}

    def show(self, console: Console) -> None:
        table = Table("rule", "topic", "key", "headers", "value", title=Text(f"{self.app} · {visible(self.channel)}"), show_lines=True)
        for column in table.columns[:2]:
            column.overflow = "fold"
        for column in table.columns[2:]:
            column.overflow = "fold"
            column.ratio = 1
        table.columns[4].ratio = 3
        for each in self.found:
            if each.output is None:
                table.add_row(Text(each.rule), Text("no record", style="yellow"), "", "", Text(each.reason))
            else:
                table.add_row(Text(each.rule), *(Text(visible(text)) for text in _cells(each.output)))
        console.print(table)


def try_rules(event: str, config: Path, *, app: str, only: str) -> Tried:
    """`event`: JSON, a file, or `-`; `app` and `only` (a rule) may be empty. Raises ValueError, OSError."""
    sample = read_sample(samples.read(event).decode())
    try:
        settings = load(_Settings, config, partial=True)
    except SettingsError as wrong:
        raise ValueError(str(wrong)) from None
    chosen = _app_of(settings, app or sample.app)
    rules = [_rule(chosen.id, each, settings.kafka.prefix) for each in chosen.rules if only in ("", each.id)]
    if only and not rules:
        raise ValueError(f"app {chosen.id!r} has no rule {only!r}")
    return Tried(chosen.id, sample.channel, preview(rules, sample, site=settings.node, now_ms=time.time_ns() // 1_000_000))


def _app_of(settings: _Settings, asked: str) -> _App:
    having = [app for app in settings.apps if (app.id == asked if asked else app.rules)]
    if len(having) == 1:
        return having[0]
    if asked:
        raise ValueError(f"there is no app {asked!r}")
    raise ValueError("no app has rules" if not having else f"name one of the apps with --app: {', '.join(app.id for app in having)}")


def _rule(app: str, config: RuleConfig, prefix: str) -> Rule:
    try:
        return Rule(app, config, prefix=prefix, registry=True)  # it is not asked: payloads are shown before they are encoded
    except ValueError as wrong:
        raise ValueError(f"rule {config.id!r} of app {app!r}: {wrong}") from None


def _cells(output: Output) -> tuple[str, str, str, str]:
    headers = "\n".join(f"{name}: {text_of(value)}" for name, value in output.headers)
    key = "(none)" if output.key is None else output.key.decode("utf-8", "replace")
    return output.topic, key, headers, _value(output)[:SHOWN_CHARACTERS]


def _value(output: Output) -> str:
    """For people: what msgpack says, not its bytes."""
    if ("content-type", CONTENT_TYPE["msgpack"]) in output.headers:
        return repr(msgspec.msgpack.decode(output.value))
    text = text_of(output.value)
    return f"{len(output.value)} bytes: {output.value.hex(' ')}" if text is None else text
