"""What can go wrong with Kafka, as far as callers act on it."""

from __future__ import annotations


class BrokerError(Exception):
    """Base of the errors of this package. Texts name brokers, topics and settings, never credentials or payloads."""


class Unreachable(BrokerError):  # noqa: N818 - a state of the world
    """No broker answered in time. Try again later; readiness is red until then."""


class TopicMisconfigured(BrokerError):  # noqa: N818 - somebody else's mistake
    """A topic exists with a setting that would break a promise. An operator has to change it: the core must not start."""

    def __init__(self, topic: str, setting: str, found: object, wanted: str) -> None:
        super().__init__(f"topic {topic}: {setting} is {found}, but it must be {wanted}")
        self.topic = topic
        self.setting = setting
