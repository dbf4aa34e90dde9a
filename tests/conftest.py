from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support.kafka import kafka_brokers

__all__ = ["kafka_brokers"]

# Machines are shared and noisy: a slow example is not a failure
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long run of chaos comes last: whatever else is wrong is known by then."""
    items.sort(key=lambda item: "tests/chaos/" in item.path.as_posix())
