"""Who is shown status, members and tail."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from core.control.io.guard import Guard
from core.io.http import admin_app, members_route
from core.io.tail import Tails
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from tests.unit.control.cores import SECRET, OneCore, Topic

PAGES = ["/v1/status", "/v1/members?app=a&channel=b", "/v1/tail?app=a&channel=b"]


def nobody(*_: object) -> Any:
    raise RelayError(40400, "no such channel")


def asks(core: OneCore, path: str, *, everybody: bool = False, host: str = "10.0.0.9", **headers: str) -> httpx.Response:
    guard = Guard(core.control.access, lambda: core.now_ms, everybody=everybody)
    routes = [members_route(nobody, guard), Tails("core-1", CoreLimits()).route(guard)]
    app = admin_app(lambda: True, lambda: {"node": "core-1"}, routes, guard)

    async def story() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(host, 1)), base_url="http://core") as client:
            return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return asyncio.run(story())


def without_tokens() -> OneCore:
    core = OneCore(Topic())
    core.control.access._static.clear()
    return core


@pytest.mark.parametrize("path", PAGES)
def test_with_tokens_configured_it_takes_one_that_may_read(path: str) -> None:
    core = OneCore(Topic())
    refused = asks(core, path, host="127.0.0.1")
    assert (refused.status_code, refused.json()["code"], refused.headers["www-authenticate"]) == (401, 40100, "Bearer")
    assert asks(core, path, authorization="Bearer reader.wrong").status_code == 401
    assert asks(core, path, authorization=f"Bearer secrets.{SECRET}").status_code == 403
    for scope in ("reader", "operator", "security"):
        assert asks(core, path, authorization=f"Bearer {scope}.{SECRET}").status_code not in (401, 403)


@pytest.mark.parametrize("path", PAGES)
def test_without_any_only_the_machine_itself_may_look(path: str) -> None:
    core = without_tokens()
    assert "access tokens" in asks(core, path).json()["message"]
    for host, allowed in (
        ("10.0.0.9", False),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("x", False),
    ):
        assert (asks(core, path, host=host).status_code != 403) is allowed, host
    for header in ("origin", "sec_fetch_site"):
        assert asks(core, path, host="127.0.0.1", **{header: "http://anybody.example"}).status_code == 403


def test_a_token_of_the_control_api_counts_and_its_revocation() -> None:
    core = OneCore(Topic())
    made = core.made("/tokens", {"name": "watcher", "scopes": ["reader"]})
    core.control.access._static.clear()
    assert asks(core, "/v1/status", host="127.0.0.1").status_code == 401
    assert asks(core, "/v1/status", authorization=f"Bearer {made['token']}").status_code == 200
    core.now_ms += 1
    key = f"token:{made['id']}"
    core.reads(key, core.control.ledger.next(key, {**core.control.ledger.get("token", made["id"]).data, "status": 1}, "x"))
    assert asks(core, "/v1/status", authorization=f"Bearer {made['token']}").status_code == 403
    assert asks(core, "/v1/status", host="127.0.0.1").status_code == 200, "nobody is left who could ask otherwise"


def test_in_dev_everybody_may_look_and_health_is_everybodys_always() -> None:
    core = OneCore(Topic())
    assert asks(core, "/v1/status", everybody=True).json() == {"node": "core-1"}
    assert asks(core, "/healthz").status_code == asks(core, "/readyz").status_code == 200
