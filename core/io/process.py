"""A core as a process: the pure node in the middle, Kafka on one side, the link on the other, admin and metrics beside it.

Order of things at start: admin and metrics first, so that whoever watches sees that the process lives; then Kafka, for as long as it takes;
then the node; the link last, since a `Welcome` names the streams. At the end the reverse.

A defect of the node that an edge's frame brings to light costs that edge's link. Any other (a record, a report, a tick) leaves a view of
the log that nobody can vouch for, so the process ends with status 1: other cores carry on, and a new one starts from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from core.config import CoreConfig
from core.control.control import Control
from core.control.io.api import ControlApi
from core.control.io.console import console_routes
from core.control.io.guard import Guard
from core.control.io.peers import Peers
from core.control.io.writer import ConfigWriter
from core.control.pipelines import MAPPING_RECORDS, Pipelines
from core.effects import (
    AskConfigEnd,
    AskEnd,
    AskSessionsEnd,
    Effect,
    LinkClose,
    LinkSend,
    Produce,
    ShowOccupancy,
    ShowRecord,
    WriteConfig,
    WriteSession,
)
from core.events import ConfigRead, ConfigWritten, EdgeFrame, EdgeLost, EdgeUp, EndOffset, Event, Gap, OccupancyWanted, Tick
from core.index import Index, MemoryIndex
from core.io.congestion import Congestion
from core.io.hosts import names_of
from core.io.http import admin_app, members_route, metrics_app, watch, watch_kafka
from core.io.index import RocksIndex
from core.io.tail import Tails
from core.kafka import (
    ConfigLog,
    EndOffsets,
    LogProducer,
    OwnerRunner,
    SessionsLog,
    Tail,
    TopicMisconfigured,
    Topics,
    Unreachable,
    prepare_topics,
    read_state,
)
from core.kafka.lanes import LogAppends
from core.kafka.mapping_set import MappingSet
from core.kafka.state_log import told
from core.mappings import Schemas
from core.node import CoreNode
from core.ownership import PartitionState
from core.registry import Registry, Streams
from core.rules import Rule, Version
from core.rules.schema import Encodings
from core.troubles import Troubles
from relay.link.calls import MemberPage
from relay.link.frames import Frame, Hello, Lane, Stream
from relay.link.io.accept import LinkServer
from relay.link.session import Ended
from relay.model.errors import RelayError
from relay.model.stats import Query
from relay.runtime import tls
from relay.runtime.driver import Driver
from relay.runtime.listener import Listener, Refusal
from relay.runtime.metrics import Metrics
from relay.runtime.shutdown import FAILED, Scope, run

if TYPE_CHECKING:
    from core.kafka.schema_registry import SchemaRegistry

log = structlog.get_logger("core")

T = TypeVar("T")

RETRY_S = 2.0
"""Between two attempts to reach Kafka at start."""
PROBE_S = 2.0
"""How often Kafka is asked whether it is there."""
TROUBLES_S = 1.0
"""How often rules and mappings are asked whether they are in trouble."""
SILENT_S = 10.0
"""A core is not ready once Kafka has not answered for this long. Edges go on asking it: what they publish waits."""
PROBE = 0
"""The number under which Kafka is asked; those of the node are positive."""
RUNNERS_CLOSE_S = 4.0
"""How long owner and mappings, all at once, may take to commit and leave. Beyond it they go on from their last commit elsewhere."""


def run_core(config: CoreConfig) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""

    async def main(scope: Scope) -> None:
        await CoreProcess(config, scope).start()

    return run(main)


class CoreProcess:
    """Owns every part of one core."""

    def __init__(self, config: CoreConfig, scope: Scope) -> None:
        self._config = config
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._metrics = Metrics()
        self._node: CoreNode | None = None
        self._driver: Driver[Event, Effect]
        self._links: LinkServer
        self._congestion: Congestion
        self._index: Index
        self._producer: LogProducer
        self._ends: EndOffsets
        self._config_log: ConfigLog
        self._sessions: SessionsLog
        self._writer: ConfigWriter | None = None
        self._config_read = False
        """Everything that `tidegate.config` held at the start has been read."""
        self._rules: list[Rule] = []
        """What the owner has been given to run."""
        self._rules_stale = False
        """A record has been read since that may have changed them."""
        self._static_rules: list[Rule] = []
        """Those of core.toml."""
        self._rule_schemas: Encodings | None = None
        """If rules need it."""
        self._owner: OwnerRunner | None = None
        self._mappings: MappingSet | None = None
        self._schema_registry: SchemaRegistry | None = None
        self._appends: LogAppends | None = None
        self._tails: Tails
        self._peers: Peers
        self._looking = asyncio.Lock()
        """One walk over all channels at a time."""
        self._log_ends: dict[int, int] = {}
        """Where the partitions of the log ended when Kafka was last asked."""

    async def start(self) -> None:
        config = self._config
        context = tls.link_server_context(config.link.certificate, config.link.private_key, config.link.ca)
        admin = config.admin
        admin_context = None
        if admin.certificate is not None and admin.private_key is not None:
            admin_context = tls.admin_context(admin.certificate, admin.private_key, admin.client_ca)
        keyring = config.ring()
        control = Control(
            keyring=keyring,
            limits=config.limits,
            random=os.urandom,
            core=config.node,
            account=(admin.account_id, admin.account_name),
            static=config.static_apps(),
            tokens=config.static_tokens(),
            certificates=config.admin_clients(),
        )
        self._tails = Tails(config.node, config.limits)
        await self._serve_http(admin_context, Guard(control.access, lambda: time.time_ns() // 1_000_000, everybody=config.dev))
        topics = await self._reach_kafka()
        if topics is None:
            return
        for warning in topics.warnings:
            log.warning("kafka", warning=warning)

        self._index = RocksIndex(Path(config.index_dir)) if config.index_dir else MemoryIndex()
        stream = Stream(topics.log.stream, topics.log.partitions, (0, topics.log.partitions - 1))
        self._node = CoreNode(
            name=config.node,
            streams=Streams([stream]),
            registry=Registry(config.static_apps(), keyring),
            keyring=keyring,
            index=self._index,
            random=os.urandom,
            limits=config.limits,
            dev=config.dev,
            sandbox=config.sandbox,
            region=config.region,
            connection_lifecycle=config.connection_lifecycle,
        )
        pipelines = Pipelines(
            control,
            make_rule=config.rule,
            make_mapping=config.mapping,
            static_rules=[(app.id, rule) for app in config.apps for rule in app.rules],
            static_mappings=[(app.id, mapping) for app in config.apps for mapping in app.mappings],
        )
        self._writer = writer = ConfigWriter(control, pipelines, config.limits)
        self._driver = Driver(self._node, self._perform, Tick(), self._failed)
        self._tails.post = self._driver.post
        self._scope.on_stop("node", self._close_node)
        watch(self._metrics, self._node)
        try:
            await self._start_kafka(topics, writer)
        except TopicMisconfigured as error:
            self._give_up(error)
            return
        await self._start_links(context, [stream])
        log.info("core is up", node=config.node, link=self._links.port, partitions=stream.partitions)

    @property
    def ready(self) -> bool:
        """Whether publishes and attaches are served: Kafka answers, the look-back is done, rules and mappings run."""
        return (
            self._node is not None
            and self._node.ready
            and not self._scope.stopping
            and self._kafka_answers()
            and self._owner is not None
            and self._owner.ready
            and self._mappings is not None
            and self._mappings.ready
        )

    def status(self) -> dict[str, Any]:
        if self._node is None:
            return {"node": self._config.node, "ready": False}
        status = self._node.status()
        for each in status["partitions"]:
            end = self._log_ends.get(each["partition"])
            each |= {"end": end, "lag": None if end is None else max(0, end - each["position"])}
        status["mappings"] = [] if self._mappings is None else self._mappings.status()
        parked = [] if self._owner is None else self._owner.parked_rules()
        rules = [] if self._owner is None else self._owner.status()
        remote = [] if self._owner is None else self._owner.remote_rules()
        return status | {"ready": self.ready, "tails": len(self._tails), "parkedRules": parked, "rules": rules, "remoteRules": remote}

    def _present(self, app: str, channel: str, after: int, limit: int) -> MemberPage:
        """Raises: RelayError."""
        if self._node is None or not self._node.ready:
            raise RelayError(50320, "The core is not ready; try another")
        return self._node.present(app, channel, after, limit)

    # --- what the Control API shows (core.control.io.api.Running) --------------------------------------------------------------------

    @property
    def node(self) -> str:
        return self._config.node

    async def channels(self, app: str, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
        """Raises: RelayError."""
        if self._node is None:
            raise RelayError(50320, "The core is not ready; try another")
        async with self._looking:
            found = await asyncio.to_thread(self._node.channels_in_use(app, prefix, after, limit))
        return self._node.channel_details(found)

    async def stats(self, apps: Sequence[str], query: Query) -> list[tuple[str, list[int]]]:
        """Raises: RelayError."""
        if self._node is None:
            raise RelayError(50320, "The core is not ready; try another")
        async with self._looking:
            return await asyncio.to_thread(self._node.statistics(apps, query))

    async def cluster(self, authorization: str) -> dict[str, Any]:
        return await self._peers.cluster(authorization)

    async def schemas(self) -> Schemas | None:
        return None if self._config.schema_registry is None else await self._schemas()

    async def _close_node(self) -> None:
        self._driver.close()
        self._index.close()

    # --- parts ---------------------------------------------------------------------------------------------------------------------

    async def _serve_http(self, admin_context: ssl.SSLContext | None, guard: Guard) -> None:
        """Admin and metrics: inside addresses, each a listener of its own."""
        admin = self._config.admin
        control = ControlApi(lambda: self._writer if self._config_read else None, self._config.limits, self)
        routes = [self._tails.route(guard, guard.allows), members_route(self._present, guard), *control.routes(), *console_routes()]
        names = [admin.host, *admin.names, *(names_of(admin.certificate) if admin.certificate is not None else ())]
        self._peers = Peers(self.status, admin.peers, admin.peers_ca)
        self._scope.on_stop("peers", self._peers.close)
        for name, context, listen, app in (
            ("admin", admin_context, admin, admin_app(lambda: self.ready, self.status, routes, guard, names)),
            ("metrics", None, self._config.metrics, metrics_app(self._metrics, lambda: self.ready)),
        ):
            listener = await Listener(context=context, app=app, make_listener=_no_websocket).start(listen.host, listen.port)
            self._scope.on_stop(name, listener.close)
        self._scope.on_stop("tails", self._tails.close)

    async def _reach_kafka(self) -> Topics | None:
        """Tries for ever while Kafka cannot be reached; None after a setting that must be put right first, which ends the process."""
        while True:
            try:
                return await _unawaited_at_the_end(lambda: prepare_topics(self._config.kafka))
            except Unreachable as error:
                await self._wait_for_kafka(error)
            except TopicMisconfigured as error:
                self._give_up(error)
                return None

    async def _wait_for_kafka(self, error: Unreachable) -> None:
        log.warning("kafka cannot be reached: trying again", error=str(error), retry_s=RETRY_S)
        await asyncio.sleep(RETRY_S)

    def _give_up(self, error: TopicMisconfigured) -> None:
        log.error("kafka topic has a wrong setting", error=str(error))
        self._scope.ask_stop(FAILED)

    async def _start_kafka(self, topics: Topics, writer: ConfigWriter) -> None:
        config, limits, loop = self._config, self._config.limits, self._loop
        self._appends = appends = LogAppends(topics.log)
        self._config_log = ConfigLog(config.kafka, topics.config, limits, loop, self._deliver)
        writer.use(self._config_log)
        self._producer = LogProducer(config.kafka, topics.log, limits, loop, appends.sort(self._deliver))
        self._ends = EndOffsets(config.kafka, topics.log, limits, loop, self._deliver)
        self._sessions = SessionsLog(config.kafka, topics.sessions, limits, loop, self._deliver)
        appends.use(self._producer)
        for name, part in (
            ("config log", self._config_log),
            ("sessions", self._sessions),
            ("producer", self._producer),
            ("ends", self._ends),
        ):
            part.start()
            self._scope.on_stop(name, part.close)
        self._scope.spawn("kafka probe", self._probe(topics.log.partitions))
        # Before the log, of which it is the sum so far.
        found = await self._read_state(topics)
        self._deliver([*told(found)])
        checkpoints = {(topics.log.topic, number): partition.checkpoint for number, partition in found.items()}
        tail = Tail(config.kafka, [topics.log], limits, loop, self._deliver, checkpoints)
        tail.start()
        self._scope.on_stop("tail", tail.close)
        await self._config_log.ready()
        self._config_read = True
        await self._sessions.ready()
        while True:
            try:
                await self._config_log.claim_stream(topics.log)
                break
            except Unreachable as error:
                await self._wait_for_kafka(error)

        self._scope.spawn("configuration", writer.run())
        self._scope.on_stop("owner and mappings", self._close_runners)
        self._static_rules = [config.rule(app.id, rule) for app in config.apps for rule in app.rules]
        self._rules = self._rules_now()
        self._owner = owner = OwnerRunner(
            config.kafka,
            topics.log,
            topics.state,
            self._rules,
            core=config.node,
            limits=limits,
            loop=loop,
            deliver=self._deliver,
            begun=all(partition.checkpoint is not None for partition in found.values()),
            create_topics=config.dev,
            version=Version(topics.config.stream, self._config_log.position),
        )
        writer.pipelines.runs, writer.pipelines.live = owner.runs, owner.state_of
        self._config_log.advanced = lambda position: self._take_up_rules(Version(topics.config.stream, position))
        owner.schemas = self._rule_schemas
        owner.start()
        self._want_occupancy()
        self._mappings = MappingSet(config.kafka, appends, limits=limits, loop=loop, schemas=self._schemas, create_topics=config.dev)
        self._want_mappings()
        watch_kafka(self._metrics, owner, self._mappings)
        self._scope.spawn("troubles", self._tell_troubles(owner))

    async def _tell_troubles(self, owner: OwnerRunner) -> None:
        """What no client is told of goes to the metachannel of the app."""
        troubles = Troubles()
        while True:
            await asyncio.sleep(TROUBLES_S)
            mappings = [] if self._mappings is None else self._mappings.status()
            for noticed in troubles.look(owner.waiting_rules(), dict(owner.dropped), mappings, time.time_ns() // 1_000_000):
                self._driver.post(noticed)

    def _rules_now(self) -> list[Rule]:
        assert self._writer is not None, "it is there before Kafka is"
        self._rules_stale = False
        static = {rule.label for rule in self._static_rules}
        made = self._writer.pipelines.rules_to_run(_cannot_run)
        rules = self._static_rules + [rule for rule in made if rule.label not in static]
        if self._rule_schemas is None and any(rule.config.target.schema is not None for rule in rules):
            self._rule_schemas = self._registry_of_schemas()
        for schema in [rule.config.target.schema for rule in rules if rule.enabled]:
            if schema is not None and self._rule_schemas is not None:  # asked for before the first record needs it
                self._rule_schemas.find_subject(schema.format, schema.subject, schema.version)
        return rules

    def _take_up_rules(self, version: Version) -> None:
        """`tidegate.config` has been read up to there. Rules that it has changed are the owner's from now on."""
        rules = self._rules_now() if self._rules_stale else self._rules
        self._runs.schemas = self._rule_schemas
        if [*map(id, rules)] == [*map(id, self._rules)]:
            self._runs.change(None, version)
            return
        self._runs.change(rules, version)
        self._rules = rules
        self._want_occupancy()

    @property
    def _runs(self) -> OwnerRunner:
        assert self._owner is not None, "asked once it is there"
        return self._owner

    def _want_occupancy(self) -> None:
        wanted = (rule.app for rule in self._rules if rule.enabled and rule.config.source.type == "channel.occupancy")
        self._driver.post(OccupancyWanted(frozenset(wanted)))

    def _want_mappings(self) -> None:
        """The mappings as they are configured now, in core.toml and by the Control API."""
        assert self._mappings is not None, "it has been made"
        assert self._writer is not None, "it is there before Kafka is"
        self._mappings.want(self._writer.pipelines.mappings_to_run(_cannot_run))

    async def _schemas(self) -> Schemas:
        await asyncio.to_thread(importlib.import_module, "core.kafka.schema_registry")
        return self._registry_of_schemas()

    def _registry_of_schemas(self) -> SchemaRegistry:
        """One for rules and mappings, made for the first that needs it."""
        if self._schema_registry is None:
            # The client, with its HTTP library and three decoders, costs a second: only who needs it pays
            from core.kafka.schema_registry import SchemaRegistry  # noqa: PLC0415

            assert self._config.schema_registry is not None, "the configuration was checked"
            self._schema_registry = SchemaRegistry(self._config.schema_registry, self._config.limits)
            self._schema_registry.start()
            self._scope.on_stop("schemas", self._schema_registry.close)
        return self._schema_registry

    async def _close_runners(self) -> None:
        """All at once: with a broker that hangs each of them takes its time."""
        runners = [runner for runner in (self._mappings, self._owner) if runner is not None]
        await asyncio.gather(*(runner.close(RUNNERS_CLOSE_S) for runner in runners))

    async def _read_state(self, topics: Topics) -> dict[int, PartitionState]:
        while True:
            try:
                return await _unawaited_at_the_end(lambda: read_state(self._config.kafka, topics.state, topics.log))
            except Unreachable as error:
                await self._wait_for_kafka(error)

    async def _probe(self, partitions: int) -> None:
        """Ask Kafka now and then where the log ends: so readiness knows of an outage while nobody publishes, and operators see the lag."""
        while True:
            for partition in range(partitions):
                self._ends.ask(PROBE, partition)
            await asyncio.sleep(PROBE_S)

    def _kafka_answers(self) -> bool:
        answered = self._ends.answered_at
        return answered is not None and self._loop.time() - answered < SILENT_S

    async def _start_links(self, context: ssl.SSLContext, streams: list[Stream]) -> None:
        refused = self._metrics.counter("link_refused", "Sockets that became no link, by reason.", "reason")
        link = self._config.link
        self._links = LinkServer(
            context=context,
            trust_domain=link.trust_domain,
            core=self._config.node,
            streams=lambda: streams,
            on_up=self._link_up,
            on_frames=self._link_frames,
            on_lost=lambda number, why: self._driver.post(EdgeLost(number, why)),
            on_refused=lambda reason: refused.labels(reason).inc(),
            limits=link.limits,
        )
        self._congestion = Congestion(self._links.bulk_queued, self._driver.post, link.limits.bulk_pause_bytes)
        self._scope.on_stop("congestion", self._close_congestion)
        await self._links.start(link.host, link.port)
        self._scope.on_stop("links", self._links.close)

    async def _close_congestion(self) -> None:
        self._congestion.close()

    # --- events in, effects out ----------------------------------------------------------------------------------------------------

    def _link_up(self, link: int, identity: str, hello: Hello) -> None:
        self._driver.post(EdgeUp(link, identity, hello.site, hello.node, hello.boot))

    def _link_frames(self, link: int, frames: list[Frame]) -> None:
        for frame in frames:
            self._driver.post(EdgeFrame(link, frame))  # type: ignore[arg-type]  # the session has refused what goes the other way

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Gap) and event.resumed < event.position:
                log.error("the log was made anew under this core: starting again", partition=event.partition)
                self._scope.ask_stop(FAILED)
                return
            if isinstance(event, EndOffset) and event.ask == PROBE:
                if event.offset is not None:
                    self._log_ends[event.partition] = event.offset
                    if self._appends is not None:
                        self._appends.ended(event.partition, event.offset)
                continue
            if self._writer is not None:
                if isinstance(event, ConfigRead):
                    self._rules_stale = self._rules_stale or event.key.startswith(("rule:", "app:"))
                    if not self._writer.read(event):
                        continue
                    if self._mappings is not None and event.key.startswith(MAPPING_RECORDS):
                        self._want_mappings()
                if isinstance(event, ConfigWritten | EndOffset) and self._writer.took(event):
                    continue
            self._driver.post(event)

    def _failed(self, event: Event, error: Exception) -> None:
        """See the module's docstring."""
        if isinstance(event, EdgeUp | EdgeFrame):
            frame = type(event.frame).__name__ if isinstance(event, EdgeFrame) else "Hello"
            log.error("the node failed on a frame: its link is closed", link=event.link, frame=frame, exc_info=error)
            self._links.close_link(event.link, Ended.INTERNAL)
        else:
            log.error("the node failed: ending", on=type(event).__name__, exc_info=error)
            self._scope.ask_stop(FAILED)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case LinkSend(link, frame, lane):
                self._links.send(link, frame, lane)
                if lane is Lane.BULK:
                    self._congestion.sent(link)
            case Produce(ticket, partition, key, value, kind, publish_id):
                self._producer.append(ticket, partition, key, value, kind, publish_id)
            case AskEnd(ask, partition):
                self._ends.ask(ask, partition)
            case AskConfigEnd(ask):
                self._config_log.ask_end(ask)
            case WriteConfig(ticket, key, value):
                self._config_log.write(ticket, key, value)
            case AskSessionsEnd(ask):
                self._sessions.ask_end(ask)
            case WriteSession(ticket, key, value):
                self._sessions.write(ticket, key, value)
            case LinkClose(link, why):
                self._links.close_link(link, why)
            case ShowRecord(record):
                self._tails.record(record)
            case ShowOccupancy(key, counts):
                self._tails.occupancy(key, counts)


async def _unawaited_at_the_end(work: Callable[[], T]) -> T:
    """`work` on a thread of its own. Unlike `asyncio.to_thread`, whose threads the end of the process waits for: a time-out of the driver
    must not hold up a core that is asked to end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # there is one when there is no error

    def run_it() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run_it, name="tidegate-start", daemon=True).start()
    return await done


def _cannot_run(record: str, why: str) -> None:
    log.error("a rule or mapping of the Control API cannot run", record=record, why=why)


def _no_websocket(_request: object, _info: object) -> Refusal:
    return Refusal(404)
