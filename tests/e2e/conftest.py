from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.product import Product, product


@pytest.fixture(scope="package")  # closed when the last of them is through: four idle processes and what they ask Kafka for are not free
def relay(kafka_brokers: str) -> Iterator[Product]:
    """Two edges, two cores, a rule and a mapping, on a real Kafka that is shared by all tests of the run."""
    with product(
        "--edges", "2", "--cores", "2", "--kafka", kafka_brokers,
        "--rule", "^ruled:=ruled-topic", "--mapping", "mapped-topic=mapped:#{topic}:#{key}",
    ) as running:  # fmt: skip
        yield running
