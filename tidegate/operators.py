"""`tidegate status` and `tidegate tail`: what cores say of themselves on their admin listeners, for people and for machines."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.config import CoreConfig
from core.control.cluster import together
from relay.runtime.settings import load
from tidegate.control import NoRedirect, add_row, why_refused

WAIT_S = 5.0
SILENT_S = 15.0
"""A tail says something, if only an empty line, every five seconds; one that is silent for so long is lost."""
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code != 9}
"""What a client publishes does not steer the terminal of who watches it."""


class Unfound(Exception):  # noqa: N818 - what a person can put right
    """One line, with what to do."""


# --- which cores -------------------------------------------------------------------------------------------------------------------------


def find_cores(urls: Sequence[str], configs: Sequence[Path], state: Path | None) -> list[str]:
    """The admin addresses asked for, else those of the one `tidegate dev` that runs here. Raises: Unfound; SettingsError."""
    found = [url.rstrip("/") for url in urls]
    for url in found:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise Unfound(f"--core takes an address as in http://127.0.0.1:9101, not {url!r}")
    found += _admins(configs)
    if state is not None:
        found += _admins(_settings_in(state))
    if not found:
        found = _admins(_settings_in(_running_dev()))
    return list(dict.fromkeys(found))


def _admins(configs: Iterable[Path]) -> list[str]:
    found = []
    for config in configs:
        admin = load(CoreConfig, config).admin
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(admin.host, admin.host)  # noqa: S104
        scheme = "http" if admin.certificate is None else "https"
        found.append(f"{scheme}://[{host}]:{admin.port}" if ":" in host else f"{scheme}://{host}:{admin.port}")
    return found


def _settings_in(state: Path) -> list[Path]:
    found = sorted(state.glob("core-*.toml"))
    if not found:
        raise Unfound(f"{state} is no state directory of tidegate dev: no core-*.toml there")
    return found


def _running_dev() -> Path:
    directories = [
        each.parent
        for each in Path(tempfile.gettempdir()).glob("tidegate-dev-*/processes.json")
        if each.stat().st_uid == os.getuid() and any(map(_lives, json.loads(each.read_text())["core"]))
    ]
    if len(directories) != 1:
        what = "no tidegate dev runs here" if not directories else "several tidegate dev run here"
        raise Unfound(f"{what}: name cores with --core http://HOST:PORT, --config core.toml or --state DIRECTORY")
    return directories[0]


def dev_access_token(state: Path | None) -> str | None:
    """That of the state directory, else of the one `tidegate dev` that runs here, if there is one."""
    try:
        return ((state or _running_dev()) / "access-token").read_text().strip()
    except (OSError, Unfound):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


# --- status ------------------------------------------------------------------------------------------------------------------------------


def ask_status(cores: Sequence[str], token: str | None = None) -> dict[str, Any]:
    """What all of them say, put together: `cores`, `edges`, `partitions`. A core that does not answer has an `error`."""
    with ThreadPoolExecutor(max_workers=min(16, len(cores))) as pool:
        answers = list(pool.map(partial(_status_of, token=token), cores))
    return together(answers)


def _open(url: str, token: str | None, timeout_s: float) -> Any:
    """The answer to a GET. Raises: OSError."""
    request = urllib.request.Request(url, headers={} if token is None else {"authorization": f"Bearer {token}"})  # noqa: S310
    # No redirects: they would take the token elsewhere. No proxies of the environment: these are inside addresses.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect()).open(request, timeout=timeout_s)


def _status_of(core: str, token: str | None) -> dict[str, Any]:
    try:
        with _open(f"{core}/v1/status", token, WAIT_S) as answer:
            return {"url": core, **json.load(answer)}
    except urllib.error.HTTPError as refused:
        return {"url": core, "error": why_refused(refused)}
    except (OSError, ValueError) as error:
        return {"url": core, "error": str(getattr(error, "reason", error))}


def show_status(status: dict[str, Any], console: Console) -> None:
    cores = Table(
        "core", "state", "partitions owned", "lag", "links", "sessions", "connections", "channels", "publishes under way", title="Cores"
    )
    for core in status["cores"]:
        if "error" in core:
            add_row(cores, core["url"], Text.assemble(("no answer", "red"), f": {core['error']}".translate(_CONTROL)))
        elif "partitions" not in core:
            add_row(cores, core["node"], Text("starting", style="yellow"))
        else:
            lags = [each["lag"] for each in core["partitions"] if each["lag"] is not None]
            add_row(
                cores,
                core["node"],
                Text("ready", style="green") if core["ready"] else Text("not ready", style="red"),
                f"{_ranges(each['partition'] for each in core['partitions'] if each['owned'])} of {len(core['partitions'])}",
                str(sum(lags)) if lags else "?",
                *(str(value) for value in (len(core["links"]), core["sessions"], core["connections"], core["channels"], core["appends"])),
            )
    console.print(cores)
    edges = Table("edge", "process", "state", "lease, s", "linked to", "sessions", title="Edges")
    for edge in status["edges"]:
        age = "" if edge["ageMs"] is None else f"{edge['ageMs'] / 1000:.1f}"
        state = Text("alive", style="green") if edge["alive"] else Text("gone", style="red")
        add_row(edges, edge["edge"], edge["boot"][:8], state, age, ", ".join(edge["cores"]) or "-", str(edge["sessions"]))
    console.print(edges)
    for wrong, which in (("without an owner", 0), ("with two owners (for some seconds that is normal)", 2)):
        numbers = [each["partition"] for each in status["partitions"] if min(len(each["owners"]), 2) == which]
        if numbers:
            console.print(Text(f"Partitions {wrong}: {_ranges(numbers)}", style="yellow"))
    parked = [(core["node"], each) for core in status["cores"] for each in core.get("parkedRules", ())]
    if parked:
        rules = Table("rule", "topic", "why", "since, UTC", "core", "partitions", "behind", title="Parked rules")
        for node, each in sorted(parked, key=lambda one: (one[1]["rule"], one[1]["topic"], one[0])):
            since = datetime.fromtimestamp(each["since"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            why = each["reason"].replace("_", " ") + (", catching up" if each["catchingUp"] else "")
            add_row(rules, each["rule"], each["topic"] or "all", why, since, node, _ranges(each["partitions"]), str(each["behind"]))
        console.print(rules)
    remote = [(core["node"], each) for core in status["cores"] for each in core.get("remoteRules", ())]
    if remote:
        rules = Table("rule", "topic", "cluster", "state", "core", "partitions", "behind", title="Rules into other clusters")
        for node, each in sorted(remote, key=lambda one: (one[1]["rule"], one[1]["topic"], one[0])):
            found = each["state"] + (f": {each['reason'].replace('_', ' ')}" if each["reason"] else "")
            where = each["topic"] or "all"
            add_row(rules, each["rule"], where, each["cluster"], found, node, _ranges(each["partitions"]), str(each["behind"]))
        console.print(rules)


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or "none"


# --- tail --------------------------------------------------------------------------------------------------------------------------------


def follow(core: str, app: str, channel: str, token: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a channel as they come, until the core stops. Raises: Unfound; OSError when the core is lost."""
    query = urllib.parse.urlencode({"app": app, "channel": channel})
    try:
        answer = _open(f"{core}/v1/tail?{query}", token, SILENT_S)
    except urllib.error.HTTPError as refused:
        raise Unfound(f"{core}: {why_refused(refused)}") from None
    except OSError as error:
        raise Unfound(f"{core} does not answer: {getattr(error, 'reason', error)}") from None
    with answer:
        for line in answer:
            if line.strip():
                yield json.loads(line)


def as_text(event: dict[str, Any]) -> str:
    """One line for people. What clients sent is shown without its control characters."""
    at = event.get("at")
    when = "" if at is None else datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M:%S.%f")[:-3] + "  "
    match event["event"]:
        case "watching":
            text = f"watching {event['channel']} of {event['app']} through {event['core']}"
        case "message" | "presence" as kind:
            who = event.get("clientId") or event.get("connectionId") or "-"
            what = event.get("name") or "-" if kind == "message" else event["action"]
            encoding = f" ({event['encoding']})" if event.get("encoding") else ""
            data = event.get("data")
            text = f"{kind:9} {who}  {what}  {'' if data is None else data if isinstance(data, str) else json.dumps(data)}{encoding}"
        case "lifecycle":
            text = f"lifecycle {event['name']} ({event['number']})"
        case "occupancy":
            text = "occupancy " + ", ".join(f"{name} {count}" for name, count in event["metrics"].items() if count or name == "connections")
        case "left_out":
            text = f"({event['count']} events left out: they came faster than they were read)"
        case other:
            text = str(other)
    return (when + text).translate(_CONTROL).rstrip()
