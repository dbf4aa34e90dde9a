"""The categories of occupancy, in the order in which counts travel. Source: Ably protocol docs, 10.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ATTACHED: tuple[str, ...] = (
    "connections",
    "publishers",
    "subscribers",
    "presenceConnections",
    "presenceSubscribers",
    "objectPublishers",
    "objectSubscribers",
)
"""What edges count: attachments, and how many of them were granted the mode that the category stands for."""
METRICS: tuple[str, ...] = (*ATTACHED, "presenceMembers")
"""What is shown: the same over all edges, and the members of the presence set, which cores know."""


def metrics(counts: Sequence[int]) -> dict[str, int]:
    """Counts in the order of `METRICS`, by their names."""
    return dict(zip(METRICS, counts, strict=True))


def details(channel: str, counts: Sequence[int], *, active: bool = True) -> dict[str, Any]:
    """ChannelDetails. `counts` in the order of `METRICS`. Source: specification CHD2."""
    return {"channelId": channel, "status": {"isActive": active, "occupancy": {"metrics": metrics(counts)}}}
