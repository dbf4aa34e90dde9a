from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support.kafka import kafka_brokers

__all__ = ["kafka_brokers"]

# Machines are shared and noisy: a slow example is not a failure
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")


RELAYS = frozenset({"e2e", "journeys", "chaos"})
"""Folders of tests that share running relays. With two workers one has these and the other all the rest, each with a broker of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """The long run of chaos comes last: whatever else is wrong is known by then, and the other worker is through."""
    items.sort(key=lambda item: "tests/chaos/" in item.path.as_posix())
    for item in items:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        item.add_marker(pytest.mark.xdist_group("relays" if folder in RELAYS else "parts"))
