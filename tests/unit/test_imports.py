"""The arrows between packages (docs/architecture.md). A change to these is a decision record."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"relay", "edge", "core", "certs", "tidegate"}

MAY_IMPORT: dict[str, set[str]] = {
    "relay.model": {"relay.model"},
    "relay.link": {"relay.model", "relay.link"},
    "relay.link.io": {"relay.model", "relay.link", "relay.runtime"},
    "relay.runtime": {"relay.model", "relay.runtime"},
    "edge": {"relay", "edge"},
    "core": {"relay", "core"},
    "certs": {"certs"},
    "tidegate": OURS,
}
"""By longest prefix. Nothing may import what is not listed; edge and core never import each other; certs stands alone."""

TOUCHES_THE_WORLD = {
    *("asyncio", "ssl", "socket", "time", "threading", "picows", "uvloop", "aiofastnet"),
    *("hypercorn", "starlette", "confluent_kafka", "rocksdict"),
}
MAY_TOUCH_THE_WORLD = ("edge.io", "core.io", "core.kafka", "core.control.io", "relay.link.io", "relay.runtime", "tidegate")


def modules() -> dict[str, Path]:
    found = {}
    for package in sorted(OURS):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("module", modules())
def test_module_keeps_to_the_arrows(module: str) -> None:
    rule = max((prefix for prefix in MAY_IMPORT if within(module, prefix)), key=len, default=None)
    if rule is None:  # the bare package `relay`
        return
    wrong = {
        name
        for name in imports(modules()[module])
        if name.split(".")[0] in OURS and not any(within(name, allowed) for allowed in MAY_IMPORT[rule])
    }
    assert not wrong, f"{module} may import {sorted(MAY_IMPORT[rule])} only"


@pytest.mark.parametrize("module", modules())
def test_only_shells_touch_sockets_clocks_and_drivers(module: str) -> None:
    if any(within(module, shell) for shell in MAY_TOUCH_THE_WORLD):
        return
    touched = {name for name in imports(modules()[module]) if name.split(".")[0] in TOUCHES_THE_WORLD}
    assert not touched or within(module, "certs"), f"{module} is pure: {touched}"


def test_only_core_kafka_imports_the_kafka_driver() -> None:
    users = {name for name, path in modules().items() if any(i.split(".")[0] == "confluent_kafka" for i in imports(path))}
    assert all(within(name, "core.kafka") for name in users), users
