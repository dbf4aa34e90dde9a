"""Every bound of Tidegate: its default, its unit, and what happens at it. `docs/limits.md` is made from this module.

Zero never means "unlimited". A field's docstring says what happens at the bound.
"""

from __future__ import annotations

import msgspec


class EdgeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients may ask of one edge process. Setting: `[limits]` of edge.toml."""

    max_message_bytes: int = 65_536
    """Largest publish, in payload bytes once decoded (specification TM6). Above it: NACK or HTTP 413 with 40009, connection kept."""
    max_frame_bytes: int = 524_288
    """Largest WebSocket frame or request body. Above it: ERROR 40009 and close 1009, or HTTP 413."""
    max_idle_interval_s: float = 15.0
    """Longest silence towards a client, in seconds (CONNECTED carries it in milliseconds); heartbeats go at two thirds of it."""
    connection_state_ttl_s: float = 120.0
    """How long a dropped connection may be resumed."""


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link between edge and core. Setting: `[link.limits]` of either file."""

    max_frame_bytes: int = 262_144
    """Largest batch on a lane; one frame may exceed it alone."""
    bulk_chunk_bytes: int = 65_536
    """Pieces in which bulk answers are cut, so that takers share the lane."""
    credit_bytes: int = 8_388_608
    """What a sender may have unacknowledged on a lane; above it frames queue on the sender."""
    queue_bytes: int = 33_554_432
    """Live frames queued for one peer. Above it, or older than `queue_age_s`: the link is closed as `slow`; the edge redials."""
    queue_age_s: float = 5.0
    """Oldest live frame that may wait for credit or for the socket, in seconds. Beyond it: the link is closed as `slow`."""


class CoreLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What edges may ask of one core process. Setting: `[limits]` of core.toml."""

    partition_budget_bytes: int = 4_194_304
    """Un-reported publishes of one partition, in bytes. Above it: NACK 50003, and the record was never handed to Kafka."""
    partition_budget_records: int = 2_000
    """The same, in records."""
