from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from certs.authority import Issued
from certs.store import Pair, Store
from relay.runtime.shutdown import new_event_loop

T = TypeVar("T")

TRUST_DOMAIN = "test.example"


@dataclass
class Pki:
    """One authority for a test session, and a place for what it issues."""

    store: Store
    counter: int = 0

    def files(self, issued: Issued) -> Pair:
        self.counter += 1
        return self.store.write(issued, f"n{self.counter}")

    @property
    def ca(self) -> Path:
        return self.store.ca


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Store.create(tmp_path_factory.mktemp("pki"), trust_domain=TRUST_DOMAIN, server_names=("localhost", "127.0.0.1")))


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine on each kind of loop; nothing may be left behind that the loop complains about."""
    complaints: list[dict[str, Any]] = []

    def handler(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("exception") is not ConnectionResetError:  # see relay.runtime.shutdown.complain
            complaints.append(context)

    def runner(work: Any) -> Any:
        async def main() -> Any:
            asyncio.get_running_loop().set_exception_handler(handler)
            return await asyncio.wait_for(work, 30)

        factory = new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as loop:
            result = loop.run(main())
        assert not complaints, complaints
        return result

    return runner
