from __future__ import annotations

from hypothesis import settings

from tests.support.kafka import kafka_brokers

__all__ = ["kafka_brokers"]

# Machines are shared and noisy: a slow example is not a failure
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")
