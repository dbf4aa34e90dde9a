"""The console's files, and what is served with them. How it looks and works in a browser: tests/e2e/test_console.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.control.io.console import FILES, POLICY
from relay.model.capability import Operation
from tests.unit.control.cores import OneCore, Topic

ASSETS = sorted(path.name for path in FILES.iterdir())
SCRIPTS = [name for name in ASSETS if name.endswith(".js")]


def text(name: str) -> str:
    return (FILES / name).read_text()


@pytest.fixture(scope="module")
def core() -> OneCore:
    return OneCore(Topic())


def fetch(core: OneCore, path: str, method: str = "GET", **headers: str):
    return core.ask(method, path, prefix="/console", headers={"authorization": "", **headers})


@pytest.mark.parametrize("name", ["", *ASSETS])
def test_every_file_is_served_with_a_strict_policy(core, name):
    answer = fetch(core, f"/{name}")
    assert answer.status_code == 200
    assert answer.content == (FILES / (name or "index.html")).read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers
    assert fetch(core, f"/{name}", **{"if-none-match": answer.headers["etag"]}).status_code == 304
    assert fetch(core, f"/{name}", "POST").status_code == 405


def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_run_that_is_no_file():
    directives = dict(each.strip().split(" ", 1) for each in POLICY.split(";"))
    assert directives["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src", "img-src"):
        assert directives[name] == "'self'"
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert directives[name] == "'none'"
    assert "unsafe" not in POLICY
    assert directives["require-trusted-types-for"] == "'script'"


@pytest.mark.parametrize("path", ["/../control.py", "/..%2Fcontrol.py", "/%2e%2e/control.py", "/none", "/console/index.html"])
def test_nothing_else_is_served(core, path):
    assert fetch(core, path).status_code == 404


def test_without_its_slash_it_is_found_too(core):
    answer = core.ask("GET", "", prefix="/console", headers={"authorization": ""})
    assert (answer.status_code, answer.headers["location"]) == (308, "/console/")


def test_pages_have_no_code_or_style_of_their_own_and_nothing_from_elsewhere():
    page = text("index.html")
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for found in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert found in ASSETS
    for name in ASSETS:
        elsewhere = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text(name))) - {"//www.w3.org", "http://www.w3.org"}
        assert not elsewhere, f"{name}: {elsewhere}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_keep_nothing_and_make_no_markup_of_text(name):
    source = text(name)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "Storage",
        "cookie",
        "indexedDB",
    ):
        lines = [line for line in source.splitlines() if word in line and not line.lstrip().startswith("//")]
        assert [line for line in lines if "no cookie" not in line] == [], word
    for module in re.findall(r'from "\./([\w.]+)"', source):
        assert module in SCRIPTS
    assert 'setAttribute("style"' not in source


def test_the_form_offers_every_operation():
    offered = set(re.findall(r'"([a-z-]+)"', text("keys.js").partition("const OPERATIONS = [")[2].partition("]")[0]))
    assert offered == set(map(str, Operation))


# --- colours ---------------------------------------------------------------------------------------------------------------------------


def scheme(dark: bool) -> dict[str, str]:
    css = text("console.css")
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    return colours | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rest)) if dark else colours


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_and_controls_be_seen(dark):
    colours = scheme(dark)
    grounds = ("ground", "surface", "sunken")
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in grounds]
    pairs += [(kind, f"{kind}-wash") for kind in ("good", "busy", "bad", "off")]
    pairs += [("ink", f"{kind}-wash") for kind in ("good", "busy", "bad", "accent")]
    pairs += [("bad", "surface"), ("accent", "accent-wash"), ("accent-ink", "accent"), ("surface", "bad")]
    weak = {pair: round(contrast(colours[pair[0]], colours[pair[1]]), 2) for pair in pairs}
    assert {pair: found for pair, found in weak.items() if found < 4.5} == {}
    edges = {ground: contrast(colours["edge"], colours[ground]) for ground in grounds}
    assert all(found >= 3 for found in edges.values()), edges
    for owner in re.findall(r"\.owner-\d { background: (#[0-9a-f]{6})", text("console.css")):
        assert contrast("#ffffff", owner) >= 4.5


def test_the_files_come_with_the_package():
    settings = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"core.control" = ["console/*"]' in settings
