"""How to reach Kafka, and what the broker at the other end can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from core.kafka.logs import log
from core.kafka.tokens import token_authorities
from relay.runtime.settings import File, PrivateFile, Secret

WINDOW_S = 240.0
"""W: a publish id repeats within this time of broker clock or never."""
SKEW_S = 10.0
"""How far the clocks of cores and brokers may lie apart."""
RETAINED_S = 150.0
"""What a core's index should hold from the start: the two minutes of a resume, and some time to get there."""
LOOK_BACK_S = WINDOW_S + SKEW_S + RETAINED_S
"""How far before its start every reader of the log begins. All readers agree on what is a duplicate from `WINDOW_S` and `SKEW_S` after
their first record on, and only what they agree on may be replayed."""


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kafka]` of core.toml."""

    brokers: str
    """host:port, comma-separated."""
    embedded: bool = False
    """The brokers are Tidegate's embedded one: see `EMBEDDED` for what it cannot do."""
    prefix: str = "tidegate"
    """First part of the names of Tidegate's own topics, groups and transactional ids."""
    partitions: int = 32
    """Of the log, when the core creates it; an existing topic keeps its own."""
    properties: dict[str, str | int | float | bool] = {}
    """Further librdkafka properties (`security.protocol`, `sasl.*`, `ssl.*`), for every client."""

    def __repr__(self) -> str:
        return f"KafkaConfig(brokers={self.brokers!r}, embedded={self.embedded}, prefix={self.prefix!r})"  # properties may hold passwords

    @property
    def capabilities(self) -> Capabilities:
        return EMBEDDED if self.embedded else REAL

    def client(self, role: str, **overrides: Any) -> dict[str, Any]:
        """Properties of one librdkafka client; `overrides` spell dots as underscores and win over `properties`.

        librdkafka's log lines go to the logger `tidegate.kafka` when the client is polled.
        """
        settings: dict[str, Any] = {
            "bootstrap.servers": self.brokers,
            "client.id": f"{self.prefix}-{role}",
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "log.connection.close": False,
            "error_cb": lambda error: log.warning("kafka %s: %s", role, error.name()),
            "logger": log,
        }
        settings |= token_authorities(self.properties)
        return settings | dict(self.properties) | {name.replace("_", "."): value for name, value in overrides.items()}


class SchemaRegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[schema_registry]` of core.toml: for mappings whose keys or values are Avro, Protobuf or JSON Schema."""

    url: str
    """`https://host:port`, comma-separated where there are several."""
    username: str = ""
    """For HTTP Basic; empty: none."""
    password: Secret | None = None
    ca: File | None = None
    """Certificates that the registry's is checked against; without it, those of certifi."""
    certificate: File | None = None
    """Client certificate."""
    private_key: PrivateFile | None = None

    def __post_init__(self) -> None:
        for url in self.url.split(","):
            if not url.strip().startswith(("http://", "https://")):
                raise ValueError("url must begin with http:// or https://")
            if "@" in url:
                raise ValueError("url must not hold a password: there are username and password for it")
        if (self.password is None) != (not self.username):
            raise ValueError("username and password go together")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can do. Code asks this record, never which broker it is."""

    create_topics: bool
    """False: topics come into being when first asked for, with the broker's partition count."""
    describe_configs: bool
    describe_topics: bool
    """With what the asker may do with each."""
    topic_ids: bool
    """Topics have a UUID. Otherwise the stream id is made of the cluster id."""
    offsets_for_times: bool
    """False: the look-back begins at the earliest record."""
    waiting_fetches: bool
    """A fetch that waits is answered with the first record. False: when its time is over."""
    log_append_time: bool
    """False: record timestamps are the producer's."""
    compaction: bool
    fencing: bool
    """A paused transactional producer cannot commit after another took its place."""
    durable: bool


REAL = Capabilities(
    create_topics=True,
    describe_configs=True,
    describe_topics=True,
    topic_ids=True,
    offsets_for_times=True,
    waiting_fetches=True,
    log_append_time=True,
    compaction=True,
    fencing=True,
    durable=True,
)
EMBEDDED = Capabilities(
    create_topics=False,
    describe_configs=False,
    describe_topics=False,
    topic_ids=False,
    offsets_for_times=False,
    waiting_fetches=False,
    log_append_time=False,
    compaction=False,
    fencing=False,
    durable=False,
)
"""librdkafka's mock cluster: 4 partitions always, 5 MB kept of each, everything forgotten on exit."""
