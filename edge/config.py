"""Settings of one edge process (edge.toml). Read by `relay.runtime.settings.load`, which refuses unknown and ill-typed fields."""

from __future__ import annotations

from typing import Literal

import msgspec

from relay.model.limits import EdgeLimits, LinkLimits, ListenerLimits
from relay.runtime.settings import File, PrivateFile


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where clients connect: WebSocket and REST on one port."""

    host: str = "0.0.0.0"  # noqa: S104 - an edge is public
    port: int = 443
    """0 takes any free port."""
    certificate: File | None = None
    private_key: PrivateFile | None = None
    plain: bool = False
    """Serve without TLS: only behind something that ends TLS, or for tests. API keys are then refused (40103) outside `dev`."""
    limits: ListenerLimits = ListenerLimits()


class MetricsListen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Prometheus fetches `GET /metrics`: never the public address."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port, as in tests; -1: no metrics."""


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cores, and who we are to them."""

    cores: list[str]
    """`host:port` of each core. One link is kept to every one of them."""
    trust_domain: str
    certificate: File
    private_key: PrivateFile
    ca: File
    limits: LinkLimits = LinkLimits()


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    site: str
    node: str
    dev: bool = False
    """For one's own machine: private files may be readable by others, API keys may travel without TLS, the demo is served."""
    sandbox: bool = False
    """Client suites may make and delete apps (`POST /apps`). Only with `dev`."""
    basic_auth: Literal["refuse", "rest", "all"] = "refuse"
    """API keys from clients: nowhere, over REST only, everywhere. A key that passes through a captured edge is lost, a token expires."""
    demo: str = ""
    """Directory of static files served under /demo/, with `dev` and to loopback only. Empty: none."""
    listen: Listen = Listen()
    metrics: MetricsListen = MetricsListen()
    link: LinkConfig
    limits: EdgeLimits = EdgeLimits()
