"""What the other cores say of themselves: each asks them for `GET /v1/status`, as `tidegate status` does."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.control.cluster import together

WAIT_S = 2.0
MAX_BYTES = 8_388_608
FRESH_S = 1.0
"""How long answers are given again: several open consoles ask each core once."""
AT_ONCE = 8


class Peers:
    """`own` is what this core says. A peer that turns out to be this core, or one asked before, is left out."""

    def __init__(self, own: Callable[[], dict[str, Any]], urls: Sequence[str] = (), ca: Path | None = None) -> None:
        self._own = own
        self._urls = urls
        self._context = ssl.create_default_context(cafile=ca) if any(url.startswith("https:") for url in urls) else None
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tidegate-peers")
        self._asking: asyncio.Task[list[dict[str, Any]]] | None = None
        self._asked_at = float("-inf")

    async def cluster(self, authorization: str | None = None) -> dict[str, Any]:
        """`cores`, this one first, `edges` and `partitions`; and how many `peers` there are to ask. They are asked in the name of whoever
        wants to know: with the same `authorization`, good for all cores; others who may read are given the same answers for a second."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > FRESH_S):
            self._asking = asyncio.create_task(self._ask(authorization))
            self._asked_at = now
        others = await asyncio.shield(self._asking)
        answers: dict[str, dict[str, Any]] = {}
        for answer in [{"url": "", **self._own()}, *others]:
            answers.setdefault(answer.get("node") or answer["url"], answer)
        return {**together(list(answers.values())), "peers": len(self._urls)}

    async def _ask(self, authorization: str | None) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        asked = [loop.run_in_executor(self._threads, self._status_of, url, authorization) for url in self._urls]
        return list(await asyncio.gather(*asked))

    def _status_of(self, url: str, authorization: str | None) -> dict[str, Any]:
        # No proxies of the environment, no redirects: these are the addresses of the configuration, and nothing else.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self._context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._context))
        try:
            headers = {} if authorization is None else {"authorization": authorization}
            request = urllib.request.Request(f"{url}/v1/status", headers=headers)  # noqa: S310 - the scheme is checked
            with urllib.request.build_opener(*handlers).open(request, timeout=WAIT_S) as answer:
                found = json.loads(answer.read(MAX_BYTES))
            if not isinstance(found, dict):
                raise ValueError("not as a core answers")  # noqa: TRY004, TRY301 - one of many ways to answer otherwise
        except (OSError, ValueError, http.client.HTTPException) as error:
            return {"url": url, "error": str(getattr(error, "reason", error))}
        return {**found, "url": url}

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
