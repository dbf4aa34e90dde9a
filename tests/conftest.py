"""Fixtures of all suites."""

from tests.support.kafka import kafka_brokers

__all__ = ["kafka_brokers"]
