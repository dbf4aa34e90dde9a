"""The two HTTP listeners of a core: admin (status, tail, Control API, console) and metrics. No edge ever reaches them.

`/healthz` says that the process runs, and nothing more, so that a broker's outage does not make an orchestrator kill cores; `/readyz` says
whether the core serves. Both are on both listeners.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from core.control.io.api import http_error
from core.io.hosts import Hosts
from relay.link.calls import MemberPage
from relay.model.errors import RelayError
from relay.runtime.metrics import PREFIX, Metrics


class Core(Protocol):
    """What these pages ask of `core.node.CoreNode`."""

    @property
    def ready(self) -> bool: ...

    @property
    def counters(self) -> Counter[str]: ...

    def status(self) -> dict[str, Any]: ...


_GAUGES = {
    "sessions": "Sessions with a live grant",
    "connections": "Connections of all cores that are remembered, dropped ones included",
    "edges": "Edge processes with a lease, of all cores",
    "channels": "Open channels, one for each link that has one open",
    "replays": "Channels that are catching up",
    "reads": "Reads of the past that are unanswered",
    "occupancyEntries": "Channels with attachments, counted once for each edge that has some",
    "occupancyWatched": "Channels whose occupancy is wanted here",
    "lifecycleChannels": "Channels that are open, or were lately",
    "lifecycleUnshown": "Events that are not yet on their metachannel",
    "revocations": "Requests to revoke tokens that may still concern some token",
    "appends": "Publishes between Kafka and their answer",
    "appendBytes": "The same, in bytes",
    "admits": "Admits and calls that wait for their turn",
    "apps": "Known apps",
    "foldIds": "Publish ids remembered for the duplicate verdict",
    "unreadableConfigRecords": "Records of tidegate.config that were left out because they could not be read",
}
_COUNTERS = {
    "records": "Records read from the log",
    "duplicates": "Records that the fold found to be duplicates",
    "foldForgottenEarly": "Publish ids forgotten before their window was over, because there were too many",
    "indexErrors": "Faults of the index, each of which cost the index and no message",
}


Page = Callable[[Request], Awaitable[Response]]


def admin_app(
    ready: Callable[[], bool],
    status: Callable[[], dict[str, Any]],
    routes: Sequence[BaseRoute] = (),
    guard: Callable[[Page], Page] = lambda page: page,
    names: Collection[str] = (),
) -> Starlette:
    """`GET /v1/status` with what `status` gives as JSON, `/healthz`, `/readyz`, and what `routes` add; for browsers within the bounds of
    `core.io.hosts`, under an address or one of `names`. `guard` decides who is shown the status."""

    async def show(_: Request) -> Response:
        return Response(msgspec.json.encode(status()), media_type="application/json")

    # Of what no route has: the Control API's shape of errors goes for the whole listener.
    return Starlette(
        routes=[Route("/v1/status", guard(show)), *_probes(ready), *routes],
        exception_handlers={HTTPException: http_error},
        middleware=[Middleware(Hosts, names=names)],
    )


def members_route(present: Callable[[str, str, int, int], MemberPage], guard: Callable[[Page], Page] = lambda page: page) -> Route:
    """`GET /v1/members?app=…&channel=…`: who is present, as this core by itself has it; `after` and `limit` for the next page. Never their
    data. 404 where the core has no such channel."""

    async def show(request: Request) -> Response:
        query = request.query_params
        try:
            page = present(query["app"], query["channel"], int(query.get("after", "0")), int(query.get("limit", "1000")))
        except (KeyError, ValueError):
            return PlainTextResponse("app and channel are needed, after and limit are numbers\n", 400)
        except RelayError as error:
            return PlainTextResponse(f"{error.info.message}\n", 404)
        members = [
            {"connectionId": member.connection_id, "clientId": member.client_id, "timestamp": member.timestamp} for member in page.members
        ]
        return Response(
            msgspec.json.encode({"serial": page.serial, "members": members, "after": page.after}), media_type="application/json"
        )

    return Route("/v1/members", guard(show))


def metrics_app(metrics: Metrics, ready: Callable[[], bool]) -> Starlette:
    """`GET /metrics`, `/healthz`, `/readyz`."""
    return Starlette(routes=[*_probes(ready), Mount("/", metrics.app())])


def watch(metrics: Metrics, core: Core) -> None:
    """Show the node's own numbers among the metrics. Once for each node."""
    metrics.registry.register(_CoreNumbers(core))


class MappingNumbers(Protocol):
    """What is asked of `core.kafka.mapping_runner.MappingRunner`."""

    group: str
    read: int
    lost: int
    found: int
    skipped: Counter[str]
    dead: Counter[str]

    @property
    def lag(self) -> int: ...

    @property
    def stopped(self) -> Sequence[Any]: ...


class OwnerNumbers(Protocol):
    """What is asked of `core.kafka.owner.OwnerRunner`."""

    owned: frozenset[int]
    records: int
    states: int
    commits: int
    refused: int
    lost: int
    written: Counter[str]
    dropped: Counter[tuple[str, str]]
    missed: Counter[str]

    def parked_rules(self) -> list[dict[str, Any]]: ...

    def remote_rules(self) -> list[dict[str, Any]]: ...


def watch_kafka(metrics: Metrics, owner: OwnerNumbers, mappings: Iterable[MappingNumbers]) -> None:
    """Show what the owner of partitions, rules and mappings have done. Once for each core."""
    metrics.registry.register(_RunnerNumbers(owner, mappings))


def _probes(ready: Callable[[], bool]) -> list[Route]:
    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


class _CoreNumbers(Collector):
    """The node keeps plain numbers; they become metrics only when somebody asks, so that nothing of it is on the hot path."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        core = self._core
        yield GaugeMetricFamily(f"{PREFIX}core_ready", "1 while the core serves", value=float(core.ready))
        refusals = CounterMetricFamily(f"{PREFIX}core_events", "Refusals and faults, by what and why", labels=["event"])
        for event, count in sorted(core.counters.items()):
            refusals.add_metric([event], count)
        yield refusals
        status = core.status()
        yield GaugeMetricFamily(f"{PREFIX}core_links", "Links of edges that are up", value=len(status["links"]))
        for field, text in _GAUGES.items():
            yield GaugeMetricFamily(f"{PREFIX}core_{_snake(field)}", text, value=status[field])
        for field, text in _COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}core_{_snake(field)}", text, value=status[field])


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class _RunnerNumbers(Collector):
    """Their threads go on counting meanwhile: what they count in is copied before it is gone through."""

    def __init__(self, owner: OwnerNumbers, mappings: Iterable[MappingNumbers]) -> None:
        self._owner = owner
        self._mappings = mappings

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        owner = self._owner
        yield GaugeMetricFamily(f"{PREFIX}owner_partitions", "Partitions that this core owns", value=len(owner.owned))
        for name, text, value in (
            ("owner_records", "Records of the log that were read as their owner", owner.records),
            ("owner_states", "Records written to tidegate.state, checkpoints left out", owner.states),
            ("owner_commits", "Transactions of the owner", owner.commits),
            ("owner_refused", "Transactions that were refused because another core had taken over", owner.refused),
            ("owner_lost", "Records of the log that retention took before any owner read them", owner.lost),
        ):
            yield _family(name, text, [], {(): value})
        yield _family("rule_records", "Records written by rules", ["rule"], {(k,): v for k, v in list(owner.written.items())})
        yield _family("rule_dropped", "Records that a rule could not write, by reason", ["rule", "reason"], dict(owner.dropped))
        missed = {(k,): v for k, v in list(owner.missed.items())}
        yield _family("rule_missed", "Records of the log that retention took before a parked rule came to them", ["rule"], missed)
        partitions: Counter[tuple[str, str]] = Counter()
        behind: Counter[str] = Counter()
        for each in owner.parked_rules():
            partitions[each["rule"], each["reason"]] += len(each["partitions"])
            behind[each["rule"]] += each["behind"]
        for each in owner.remote_rules():
            behind[each["rule"]] += each["behind"]
            if each["reason"]:
                partitions[each["rule"], each["reason"]] += len(each["partitions"])
        parked = GaugeMetricFamily(
            f"{PREFIX}rule_parked", "Partitions on which a rule waits or catches up, by reason", labels=["rule", "reason"]
        )
        for labels, count in sorted(partitions.items()):
            parked.add_metric(labels, count)
        yield parked
        text = "Records of the log between the owner and a rule that is parked, or writes to another cluster"
        records = GaugeMetricFamily(f"{PREFIX}rule_behind", text, labels=["rule"])
        for label, count in sorted(behind.items()):
            records.add_metric([label], count)
        yield records
        yield _family("mapping_records", "Records read by mappings", ["group"], {(m.group,): m.read for m in self._mappings})
        skipped = {(m.group, reason): count for m in self._mappings for reason, count in list(m.skipped.items())}
        yield _family("mapping_skipped", "Records that became no message, by reason", ["group", "reason"], skipped)
        dead = {(m.group, reason): count for m in self._mappings for reason, count in list(m.dead.items())}
        yield _family("mapping_dead", "Records for the dead letter topic, by reason", ["group", "reason"], dead)
        for name, text, numbers in (
            ("mapping_lost", "Records that retention took before the mapping", {(m.group,): m.lost for m in self._mappings}),
            ("mapping_found", "Records that were in the log already after a takeover", {(m.group,): m.found for m in self._mappings}),
        ):
            yield _family(name, text, ["group"], numbers)
        lag = GaugeMetricFamily(f"{PREFIX}mapping_lag", "Records of this core's partitions that are not in the log yet", labels=["group"])
        stopped = GaugeMetricFamily(f"{PREFIX}mapping_stopped", "Partitions of this core that wait at a record", labels=["group"])
        for mapping in self._mappings:
            lag.add_metric([mapping.group], mapping.lag)
            stopped.add_metric([mapping.group], len(mapping.stopped))
        yield lag
        yield stopped


def _family(name: str, text: str, labels: Sequence[str], values: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family
