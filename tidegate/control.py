"""A client of the Control API, for the command line, and what it shows."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WAIT_S = 20.0
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
"""Names are chosen by whoever may make them, and do not steer the terminal of who lists them."""


class ControlError(Exception):
    """One line: what the Control API refused, or why it could not be asked."""


@dataclass
class ControlClient:
    """`url` is that of the admin listener, `http://HOST:PORT`, with or without `/v1`."""

    url: str
    token: str | None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ControlError(f"--url takes an address as in https://10.0.0.4:9444, not {self.url!r}")
        if not parts.path.strip("/"):
            self.url = f"{self.url.rstrip('/')}/v1"
        self.url = self.url.rstrip("/")
        if self.token is not None and not self.token.isprintable():
            raise ControlError("the access token has control characters")

    def _context(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ssl.SSLError) as error:
            raise ControlError(f"TLS cannot be set up: {error}") from None
        return context

    def ask(self, method: str, *path: str, body: Any = None, query: Mapping[str, str] | None = None, secrets: bool = True) -> Any:
        """The answer's JSON, None if it is empty. `path` in parts, unquoted. `secrets`: whether they are to be shown, if they may be.
        Raises: ControlError."""
        url = "/".join([self.url, *(urllib.parse.quote(part, safe="") for part in path)])
        if query:
            url += f"?{urllib.parse.urlencode(query)}"
        headers = {"accept": "application/json"} | ({} if secrets else {"x-tidegate-secrets": "none"})
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        data = None
        if method in ("POST", "PATCH"):
            data = json.dumps(body or {}).encode()
            headers["content-type"] = "application/json"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - the scheme is checked
        # No redirects: they would take the token elsewhere. No proxies of the environment: these are inside addresses.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), NoRedirect(), *([urllib.request.HTTPSHandler(context=c)] if (c := self._context()) else [])
        )
        try:
            with opener.open(request, timeout=WAIT_S) as answer:
                content = answer.read()
        except urllib.error.HTTPError as refused:
            raise ControlError(why_refused(refused)) from None
        except OSError as error:
            raise ControlError(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None
        try:
            return json.loads(content) if content else None
        except ValueError:
            raise ControlError(f"{self.url} does not answer as a Control API does") from None

    def account(self) -> str:
        return str(self.ask("GET", "me")["account"]["id"])


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def why_refused(refused: urllib.error.HTTPError) -> str:
    """In one line."""
    try:
        problem = json.load(refused)
        text = problem["error"] if "error" in problem else f"{problem['message']} ({problem['code']})"
    except (ValueError, KeyError, TypeError):
        text = f"HTTP {refused.code}"
    if refused.code == 401:
        text += ": set TIDEGATE_ACCESS_TOKEN, or pass --token-file"
    return _plain(str(text))


# --- tables ------------------------------------------------------------------------------------------------------------------------------


def show(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(*columns, title=Text(_plain(title), style="table.title"))
    for row in rows:
        add_row(table, *row)
    console.print(table)


def add_row(table: Table, *values: object) -> None:
    """What is no `Text` yet is shown as it is: markup and `:names:` of emoji in it mean nothing."""
    table.add_row(*(value if isinstance(value, Text) else Text(_plain(_cell(value))) for value in values))


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case dict():
            return json.dumps(value, separators=(",", ":"))
        case list():
            return ", ".join(map(str, value))
    return str(value)


def _plain(text: str) -> str:
    return text.translate(_CONTROL)


def when(ms: int | None) -> str | None:
    """UTC, to the second; None for what has no time."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if ms else None


def difference(before: Any, after: Any) -> str:
    """What an audit entry changed: `name: "a" → "b"`. Times are left out."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ""
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name) and name != "modified"]
    return "; ".join(f"{name}: {_cell(before.get(name))} → {_cell(after.get(name))}" for name in changed)
