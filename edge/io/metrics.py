"""What an edge shows to Prometheus. Read from the node when the page is fetched: nothing is counted twice, nothing on the hot path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edge.io.sockets import Sockets
from edge.node import EdgeNode
from relay.runtime.metrics import PREFIX


class EdgeCollector:
    """A collector of `prometheus_client`. Labels are error codes and words of ours."""

    __slots__ = ("_link_refusals", "_listener_refusals", "_node", "_sockets")

    def __init__(self, node: EdgeNode, sockets: Sockets, link_refusals: Counter[str], listener_refusals: Counter[str]) -> None:
        self._node = node
        self._link_refusals = link_refusals
        self._sockets = sockets
        self._listener_refusals = listener_refusals

    def collect(self) -> Iterable[Metric]:
        node, stats = self._node, self._node.stats
        yield _gauge("edge_clients", "Clients connected", node.clients)
        yield _gauge("edge_attachments", "Attachments of all clients", node.attachments)
        yield _gauge("edge_channels", "Channels with readers or unanswered publishes", node.channels)
        yield _gauge("edge_filters", "Filters of derived channels, each once for its channel", node.filters)
        yield _gauge("edge_links", "Links to cores that are up", node.links)
        yield _gauge("edge_unanswered_publishes", "Publishes without an answer from a core", node.unanswered)
        yield _gauge("edge_presence_bytes", "Presence sets of open channels, in bytes, roughly", node.presence_bytes)
        yield _gauge("edge_waiting_admissions", "Credentials that wait for a core", node.admissions)
        yield _gauge("edge_slow_clients", "Clients whose socket takes no more at the moment", len(self._sockets.slow))
        yield _counter("edge_connects", "WebSocket upgrades", stats.connects)
        yield _counter("edge_messages_in", "MESSAGEs and REST publishes from clients", stats.messages_in)
        yield _counter("edge_bytes_in", "Bytes of these", stats.bytes_in)
        yield _counter("edge_records", "Records of open channels from cores", stats.records)
        yield _counter("edge_deliveries", "MESSAGEs and PRESENCEs written to clients", stats.deliveries)
        yield _counter("edge_undecodable_records", "Records that could not be decoded", stats.undecodable)
        yield _counter("edge_filter_errors", "Messages that a derived channel's filter could not be evaluated for", stats.filter_errors)
        yield _counter("edge_rest_requests", "HTTP requests", stats.rest_requests)
        yield _counter("edge_link_losses", "Links to cores that were lost", stats.link_losses)
        yield _by("link_refused", "Dials of a core that came to no link, by reason", "reason", self._link_refusals)
        yield _by("edge_refusals", "Errors told to clients, by code", "code", stats.refusals)
        yield _by("edge_nacks", "Publishes refused, by code", "code", stats.nacks)
        yield _by("edge_closures", "Clients whose connection ended, by reason", "reason", stats.closures)
        yield _by("edge_listener_refusals", "Sockets turned away before the protocol began, by reason", "reason", self._listener_refusals)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value)


def _by(name: str, text: str, label: str, values: Counter[int] | Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family
