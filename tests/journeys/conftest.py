from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.real import RealWorld
from tests.journeys.world import World
from tests.support.product import Product, product


@pytest.fixture(scope="package")  # closed when the last of them is through: four idle processes and what they ask Kafka for are not free
def two_by_two(kafka_brokers: str) -> Iterator[Product]:
    with product("--edges", "2", "--cores", "2", "--kafka", kafka_brokers) as running:
        yield running


@pytest.fixture(params=["wire", pytest.param("tls", marks=pytest.mark.kafka)])
def world(request: pytest.FixtureRequest) -> Iterator[World | RealWorld]:
    """Two edges, two cores: over a fake wire with a log in memory, then over TLS with a real Kafka."""
    if request.param == "wire":
        yield World(edges=2, cores=2)
        return
    real = RealWorld(request.getfixturevalue("two_by_two"))
    try:
        yield real
    finally:
        real.close()
