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

    async def cluster(self, authorization: str = "") -> dict[str, Any]:
        """`cores`, this one first, `edges` and `partitions`; and how many `peers` there are to ask. `authorization` is that of whoever
        wants to know, and may: an access token counts on every core."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > FRESH_S):
            self._asking = asyncio.create_task(self._ask(authorization))
            self._asked_at = now
        others = await asyncio.shield(self._asking)
        answers: dict[str, dict[str, Any]] = {}
        for answer in [{"url": "", **self._own()}, *others]:
            answers.setdefault(answer.get("node") or answer["url"], answer)
        return {**together(list(answers.values())), "peers": len(self._urls)}

    async def _ask(self, authorization: str) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(self._threads, self._status_of, url, authorization) for url in self._urls)))

    def _status_of(self, url: str, authorization: str) -> dict[str, Any]:
        # No proxies of the environment, no redirects: these are the addresses of the configuration, and nothing else.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self._context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._context))
        request = urllib.request.Request(f"{url}/v1/status", headers={"authorization": authorization} if authorization else {})  # noqa: S310
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=WAIT_S) as answer:
                found = json.loads(answer.read(MAX_BYTES))
            if not isinstance(found, dict):
                raise ValueError("not as a core answers")  # noqa: TRY004, TRY301 - one of many ways to answer otherwise
        except urllib.error.HTTPError as refused:
            return {"url": url, "error": f"HTTP {refused.code}"}
        except (OSError, ValueError, http.client.HTTPException) as error:
            return {"url": url, "error": str(getattr(error, "reason", error)) or type(error).__name__}
        return {**found, "url": url}

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
