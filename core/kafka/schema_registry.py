"""Schemas of Schema Registry, fetched beside the threads that need them: an outage of the registry delays records, and nothing else."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from typing import Any, NamedTuple

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from core.kafka.config import SchemaRegistryConfig
from core.kafka.logs import log
from core.mappings.decoders import Source, UnusableError, decoder
from core.mappings.schemas import Decoder, SchemaFormat, Unknown
from core.rules.schema import Encoding
from relay.model.limits import CoreLimits

LATEST_S = 60.0
"""How long the latest version of a subject is taken for the latest, in seconds. An outage of the registry does not end it."""
UNKNOWN_S = 10.0
"""How long an id that the registry does not know is taken for unknown, in seconds."""
RETRY_S = 1.0
"""Wait before a registry that did not answer is asked again."""
MAX_REFERENCES = 100
"""Schemas that one schema refers to, in all. Above it: it cannot be used."""
_KINDS: dict[SchemaFormat, str] = {"avro": "AVRO", "protobuf": "PROTOBUF", "json_schema": "JSON"}

_Asked = tuple[SchemaFormat, int] | tuple[SchemaFormat, str, int]
"""By id, or by subject and version (0: the latest)."""


class _Expiring(NamedTuple):
    unknown: Unknown
    until: float


class SchemaRegistry:
    """One for a core. `find` may be called by any thread and never waits; a thread of its own fetches, one schema after the other.

    A schema that was found stays: its id never means another one. Answers other than "not found" (an error of the server, a refused
    password, none at all) settle nothing: it is asked again each second.
    """

    def __init__(self, config: SchemaRegistryConfig, limits: CoreLimits) -> None:
        self._config = config
        self._limits = limits
        self._lock = threading.Lock()
        self._known: OrderedDict[_Asked, Decoder | _Expiring] = OrderedDict()
        self._subjects: OrderedDict[_Asked, tuple[Encoding | Unknown, float]] = OrderedDict()
        """And until when."""
        self._asked: set[_Asked] = set()
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._clients: dict[SchemaFormat, SchemaRegistryClient] = {}
        self._thread = threading.Thread(target=self._run, name="tidegate-schemas", daemon=True)
        self.failures = 0
        """Requests that the registry did not answer, or not usefully."""

    def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        """Does not wait for a request that is under way: its thread ends with the process."""
        self._closing.set()
        self._queue.put(None)

    def find(self, form: SchemaFormat, schema: int) -> Decoder | Unknown | None:
        asked = (form, schema)
        with self._lock:
            found = self._known.get(asked)
            if isinstance(found, _Expiring):
                if time.monotonic() < found.until:
                    return found.unknown
            elif found is not None:
                self._known.move_to_end(asked)
                return found
            if asked not in self._asked and len(self._asked) < self._limits.schemas:
                self._asked.add(asked)
                self._queue.put(asked)
        return None

    def find_subject(self, form: SchemaFormat, subject: str, version: int) -> Encoding | Unknown | None:
        """For rules. `version` 0: the latest, as of a minute ago or so."""
        asked = (form, subject, version)
        with self._lock:
            found, until = self._subjects.get(asked, (None, 0.0))
            if found is not None:
                self._subjects.move_to_end(asked)
                if time.monotonic() < until:
                    return found
            if asked not in self._asked and len(self._asked) < self._limits.schemas:
                self._asked.add(asked)
                self._queue.put(asked)
        return found if isinstance(found, Encoding) else None

    def wait(self, form: SchemaFormat, schema: int, timeout_s: float) -> Decoder | Unknown | None:
        """The same for somebody who has nothing else to do; None if it takes longer."""
        until = time.monotonic() + timeout_s
        while (found := self.find(form, schema)) is None and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def _run(self) -> None:
        while not self._closing.is_set():
            asked = self._queue.get()
            if asked is None:
                return
            found: Any
            try:
                found = self._fetch(*asked) if len(asked) == 2 else self._fetch_subject(*asked)
            except Exception as failed:  # of two HTTP libraries, of JSON, of TLS
                self.failures += 1
                status = failed.http_status_code if isinstance(failed, SchemaRegistryError) else None
                log.warning("schema registry: %s", f"answers {status}" if status else type(failed).__name__)
                self._closing.wait(RETRY_S)
                self._queue.put(asked)
                continue
            with self._lock:
                self._asked.discard(asked)
                if len(asked) == 3:
                    self._subjects[asked] = found
                    self._subjects.move_to_end(asked)
                    while len(self._subjects) > self._limits.schemas:
                        self._subjects.popitem(last=False)
                    continue
                self._known[asked] = found
                self._known.move_to_end(asked)
                while len(self._known) > self._limits.schemas:
                    self._known.popitem(last=False)

    def _fetch(self, form: SchemaFormat, schema: int) -> Decoder | _Expiring:
        """Raises whatever the client raises when the registry settles nothing."""
        client = self._client(form)
        try:
            found = client.get_schema(schema, fmt=_format(form))
            kind = found.schema_type or "AVRO"
            if kind != _KINDS[form]:
                return self._unknown(f"it is a schema of type {kind}")
            references: dict[str, str] = {}
            self._refer(client, form, found, references)
            return decoder(form, Source(found.schema_str or "", tuple(references.items())))
        except SchemaRegistryError as refused:
            if refused.http_status_code != 404:
                raise
            return self._unknown("the registry does not know it, or one that it refers to")
        except UnusableError as wrong:
            return self._unknown(str(wrong))

    def _fetch_subject(self, form: SchemaFormat, subject: str, version: int) -> tuple[Encoding | Unknown, float]:
        """Raises like `_fetch`."""
        # Half of what it needs is for encoding alone
        from core.rules.encoders import encoder  # noqa: PLC0415

        client, now = self._client(form), time.monotonic()
        try:
            found = (
                client.get_version(subject, version, fmt=_format(form)) if version else client.get_latest_version(subject, _format(form))
            )
            kind = found.schema.schema_type or "AVRO"
            if kind != _KINDS[form]:
                return Unknown(f"it is a schema of type {kind}"), now + UNKNOWN_S
            references: dict[str, str] = {}
            self._refer(client, form, found.schema, references)
            made = encoder(form, Source(found.schema.schema_str or "", tuple(references.items())))
            return Encoding(found.schema_id or 0, made), now + LATEST_S
        except SchemaRegistryError as refused:
            if refused.http_status_code != 404:
                raise
            return Unknown("the registry does not know it, or one that it refers to"), now + UNKNOWN_S
        except UnusableError as wrong:
            return Unknown(str(wrong)), now + UNKNOWN_S

    def _refer(self, client: SchemaRegistryClient, form: SchemaFormat, schema: Schema, into: dict[str, str]) -> None:
        """Those that others refer to come first."""
        for reference in schema.references or []:
            name, subject, version = reference.name, reference.subject, reference.version
            if name is None or subject is None or version is None:
                raise UnusableError("one of its references is incomplete")
            if name in into:
                continue
            if len(into) >= MAX_REFERENCES:
                raise UnusableError("it refers to too many schemas")
            found = client.get_version(subject, version, fmt=_format(form)).schema
            into[name] = ""  # a circle of references ends here
            self._refer(client, form, found, into)
            del into[name]
            into[name] = found.schema_str or ""

    def _unknown(self, why: str) -> _Expiring:
        return _Expiring(Unknown(why), time.monotonic() + UNKNOWN_S)

    def _client(self, form: SchemaFormat) -> SchemaRegistryClient:
        """One for each format: the client remembers schemas by id alone, and the texts of Protobuf ones depend on the format asked for."""
        client = self._clients.get(form)
        if client is None:
            client = self._clients[form] = SchemaRegistryClient(client_settings(self._config, self._limits))
        return client


def _format(form: SchemaFormat) -> str | None:
    return "serialized" if form == "protobuf" else None


def client_settings(config: SchemaRegistryConfig, limits: CoreLimits) -> dict[str, Any]:
    """As confluent-kafka's client names them."""
    settings: dict[str, Any] = {
        "url": config.url,
        "timeout": limits.schema_timeout_s,
        "max.retries": 0,  # ours are the retries
        "cache.capacity": limits.schemas,
        "cache.latest.ttl.sec": 1,  # we remember what is the latest
    }
    if config.username:
        settings["basic.auth.user.info"] = f"{config.username}:{config.password.reveal() if config.password else ''}"
    if config.ca is not None:
        settings["ssl.ca.location"] = str(config.ca)
    if config.certificate is not None:
        settings["ssl.certificate.location"] = str(config.certificate)
    if config.private_key is not None:
        settings["ssl.key.location"] = str(config.private_key)
    return settings
