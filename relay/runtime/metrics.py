"""Counters for Prometheus, and the page that shows them.

One `Metrics` per process, made by the command line and handed down; nothing registers itself on import. Labels are words from a fixed
list (a reason, a role, a topic of ours): never an address, a channel, a client id or anything else that a client chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

M = TypeVar("M", Counter, Gauge, Histogram)

PREFIX = "tidegate_"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
"""Buckets for waits on this path: a publish takes milliseconds, and is given up after 20 s."""


class Metrics:
    """What one process counts. Names begin with `tidegate_`; asking twice for a name gives the same metric."""

    __slots__ = ("_known", "registry")

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._known: dict[str, Counter | Gauge | Histogram] = {}
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Something that only grows; `labels` are names, `counter.labels(...)` gives the child to keep and increment."""
        return self._make(name, lambda: Counter(PREFIX + name, text, labels, registry=self.registry), Counter)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._make(name, lambda: Gauge(PREFIX + name, text, labels, registry=self.registry), Gauge)

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return self._make(name, lambda: Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry), Histogram)

    def reading(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is asked when the page is fetched, for what is known anyway (how many clients, how full a table)."""
        self.gauge(name, text).set_function(read)

    def page(self) -> bytes:
        return bytes(generate_latest(self.registry))

    def app(self) -> Starlette:
        """An ASGI application that answers GET /metrics."""

        async def metrics(_: Request) -> Response:
            return Response(self.page(), headers={"content-type": CONTENT_TYPE_LATEST})

        return Starlette(routes=[Route("/metrics", metrics)])

    def _make(self, name: str, make: Callable[[], M], kind: type[M]) -> M:
        if name not in self._known:
            self._known[name] = make()
        metric = self._known[name]
        if not isinstance(metric, kind):
            raise TypeError(f"{PREFIX}{name} is a {type(metric).__name__}")
        return metric
