"""Rules into other clusters: a thread and a producer for each cluster, so that one that is away, slow or wrong holds up nobody else.

What a rule has to send is handed over by the owner as it commits its spans, or read from the log again when that was too much to be kept.
The driver tries each record again for as long as it takes, in order and without repeating it, so that an outage of the other cluster ends
as if nothing had been. What is sent again is what a core that went, or was taken for dead, had not yet noted as acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.catch_up import Account
from core.kafka.config import KafkaConfig
from core.kafka.consumer import open_consumer, wrapped
from core.kafka.log_reader import LogReader, open_reader
from core.kafka.logs import log
from core.kafka.targets import TargetTopics, fault_of
from core.kafka.tokens import why_no_token
from core.kafka.topics import StreamInfo
from core.kafka.transactions import CALL_S, TOO_LARGE, again
from core.ownership import OwnedPartition
from core.parked import FIRST_RETRY_S, LAST_RETRY_S
from core.remote import Place, RemoteRule, Sending, size_of
from core.rules import Cluster, Output
from core.rules.schema import INVALID

ASK_S = 5.0
"""Longest wait for the other cluster to say something about its topics, in seconds."""
STUCK_S = 5.0
"""A rule counts as parked when the other cluster has acknowledged nothing of what it was sent for so long, in seconds."""
IDLE_S = 0.02
"""Longest wait for something to do, in seconds."""
SLICE_S = 0.05
"""How long the log is read for one rule before the others are looked after, in seconds."""
TURN_S = 5.0
"""How long the log is read for one rule on one partition while others wait for it, in seconds."""
REST_S = 0.5
"""How long an owner that gives up a partition in order waits for acknowledgements, in seconds."""
CLOSE_S = 12.0
"""Longest wait for a thread to end, in seconds."""
BATCH_BYTES = 65_536
"""Largest batch, but for a record that is larger by itself. A broker that finds a batch too large refuses all of it."""
TOKEN_S = 3600.0
"""How long a token that could not be had explains that brokers refuse the login, in seconds: they do once the last one has run out, and the
driver does not say again what was wrong."""
UNREACHABLE = "unreachable_cluster"
REFUSED = "refused_login"
_TROUBLES = {
    KafkaError._AUTHENTICATION: REFUSED,
    KafkaError.SASL_AUTHENTICATION_FAILED: REFUSED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: REFUSED,
    KafkaError._SSL: "tls_failed",
    KafkaError._RESOLVE: "unknown_host",
}
"""What a client says when it cannot connect. Otherwise nobody answers."""
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._DESTROY)


class OtherCluster(KafkaConfig, frozen=True, kw_only=True):
    """How to reach it."""

    trouble: Callable[[KafkaError], None]
    """Told of what goes wrong with a connection."""

    def client(self, role: str, **overrides: Any) -> dict[str, Any]:
        settings = super().client(role, **overrides)
        # Said once a minute, by rule; the driver would say it for each attempt
        return settings | {"error_cb": self.trouble, "log_level": 2, "reconnect.backoff.max.ms": 5_000}


class Clusters:
    """All that the rules of a core write to. Called by the owner's thread."""

    def __init__(self, config: KafkaConfig, stream: StreamInfo, account: Account) -> None:
        self._config = config
        self._stream = stream
        self._account = account
        self._writers: dict[Cluster, ClusterWriter] = {}
        self._leaving: list[ClusterWriter] = []
        """No rule names their clusters any more: their threads end by themselves."""

    def watch(self, one: RemoteRule, partition: OwnedPartition) -> None:
        """It goes on from its cursor."""
        cluster = one.by.cluster
        assert cluster is not None, "it is a rule into another cluster"
        writer = self._writers.get(cluster)
        if writer is None:
            writer = self._writers[cluster] = ClusterWriter(cluster, self._config, self._stream, self._account)
        writer.watch(one, partition)

    def keep(self, clusters: Collection[Cluster]) -> None:
        """These are named by some rule. The others are left alone from now on."""
        self._leaving = [writer for writer in self._leaving if writer.running]
        for cluster in self._writers.keys() - set(clusters):
            writer = self._writers.pop(cluster)
            writer.stop()
            self._leaving.append(writer)

    def rest(self, partitions: Iterable[OwnedPartition]) -> None:
        """Nothing further is sent of these; what is on its way may arrive, so that the next owner need not repeat it."""
        resting = [one for each in partitions for one in each.remote.all()]
        for one in resting:
            one.closing = True
        until = time.monotonic() + REST_S
        while any(one.unreported and not one.reason for one in resting) and time.monotonic() < until:
            time.sleep(IDLE_S)

    def stop(self) -> None:
        for writer in self._writers.values():
            writer.stop()

    def close(self) -> None:
        self.stop()
        for writer in (*self._writers.values(), *self._leaving):
            writer.close()


class _Watched(NamedTuple):
    rule: RemoteRule
    owned: OwnedPartition


class _Reading:
    """The log is read for this rule."""

    __slots__ = ("each", "reader", "sent", "since")

    def __init__(self, each: _Watched, reader: LogReader, since: float) -> None:
        self.each = each
        self.reader = reader
        self.since = since
        self.sent = each.rule.sent
        """As far as this has brought it."""


class ClusterWriter:
    """A thread of its own. `watch`, `stop` and `close` are called by the owner's."""

    def __init__(self, cluster: Cluster, config: KafkaConfig, stream: StreamInfo, account: Account) -> None:
        self._name = cluster.name
        self._config = config
        self._stream = stream
        self._account = account
        self._limits = account.limits
        self._other = OtherCluster(brokers=cluster.name, prefix=config.prefix, properties=dict(cluster.properties), trouble=self._trouble)
        self._why = ""
        """What was last wrong with a connection."""
        self._token = ""
        """What was last wrong with tokens."""
        self._token_until = 0.0
        self._token_over = False
        """Brokers have refused the login since."""
        self._fatal = False
        """The producer is of no use any more."""
        self._closing = threading.Event()
        self._inbox: SimpleQueue[_Watched] = SimpleQueue()
        self._watched: list[_Watched] = []
        self._active: list[_Watched] = []
        """Those for whom there is something to be done."""
        self._abandoned: deque[RemoteRule] = deque()
        """Somebody else's by now, with records that the driver still has."""
        self._targets = TargetTopics(self._other, None, create=False, written=True, timeout_s=ASK_S)
        self._solo: RemoteRule | None = None
        """Who sends its records one by one, while the others wait."""
        self._away_until = 0.0
        self._failures = 0
        self._producer: confluent_kafka.Producer | None = None
        self._consumer: confluent_kafka.Consumer | None = None
        self._read_from = 0.0
        """After a failure."""
        self._reading: _Reading | None = None
        self._thread = threading.Thread(target=self._run, name="tidegate-cluster", daemon=True)
        self._thread.start()

    def watch(self, rule: RemoteRule, owned: OwnedPartition) -> None:
        self._inbox.put(_Watched(rule, owned))

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks the thread to end."""
        self._closing.set()

    def close(self) -> None:
        self.stop()
        self._thread.join(CLOSE_S)

    # --- the thread ------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    wrapped(self._turn)
                except KafkaException as failed:
                    self._say("another attempt follows", f": {failed.args[0].name()}")
                    self._start_anew()
                except Exception:
                    log.exception("cluster %s: writing failed", self._name)
                    self._start_anew()
        finally:
            self._drop_producer()
            self._stop_reading()
            if self._consumer is not None:
                self._consumer.close()

    def _start_anew(self) -> None:
        """Whatever was wrong: with another producer, from what is acknowledged."""
        for rule, _ in self._watched:
            rule.stands("client_failed", _now_ms())
        self._drop_producer()
        self._stop_reading()
        self._closing.wait(1.0)

    def _turn(self) -> None:
        while not self._inbox.empty():
            self._watched.append(self._inbox.get())
        if self._producer is None:
            self._producer = self._new_producer()
        self._producer.poll(0)
        if self._fatal:
            self._fatal = False
            raise again("the producer has failed for good")
        now = time.monotonic()
        self._active = [each for each in self._watched if not each.rule.idle]
        for each in self._active:
            each.rule.advance()
            if each.rule.alone and not each.rule.sending:
                each.rule.alone = False
            if each.rule.caught_up():
                log.info("rule %s: caught up on topic %s", each.rule.rule, each.rule.topic)
        if not self._let_go():
            return
        self._solo = next((each.rule for each in self._active if each.rule.alone), None)
        busy = False
        if now >= self._away_until:
            try:
                for each in self._active:
                    busy = self._go_on(each, now) or busy
            except KafkaException as failed:  # of a question about topics
                self._away(failed.args[0], now)
        if now >= self._read_from:
            try:
                busy = self._read(now) or busy
            except KafkaException as failed:  # of the core's own cluster
                self._stop_reading()
                self._read_from = now + 1.0
                self._say("reading the log", f": {failed.args[0].name()}")
        self._look_for_stuck(now)
        if not busy:
            self._producer.poll(IDLE_S)

    def _let_go(self) -> bool:
        """Of those who are gone. Returns whether the producer is left."""
        gone = [each.rule for each in self._watched if each.rule.gone]
        if gone:
            self._watched = [each for each in self._watched if not each.rule.gone]
            self._abandoned.extend(rule for rule in gone if rule.unreported)
        while self._abandoned and not self._abandoned[0].unreported:
            self._abandoned.popleft()
        if self._abandoned and (self._why or any(each.rule.reason for each in self._watched)):
            self._drop_producer()  # nobody asks any more for what it holds, and it may do so for long
            return False
        return True

    # --- the producer ----------------------------------------------------------------------------------------------------------------

    def _new_producer(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            self._other.client(
                "rules",
                enable_idempotence=True,
                acks="all",
                message_timeout_ms=0,  # for as long as it takes: a record that is given up leaves a gap
                linger_ms=2,
                batch_size=BATCH_BYTES,
                partitioner="murmur2_random",  # as Java producers place keys
                queue_buffering_max_kbytes=self._limits.remote_queue_bytes // 1024,
                topic_metadata_propagation_max_ms=1_000,
                allow_auto_create_topics=False,
            )
        )

    def _drop_producer(self) -> None:
        """What it has not sent is refused, and so sent again."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer.purge()
        producer.flush(1.0)
        for rule in [each.rule for each in self._watched] + list(self._abandoned):
            if rule.unreported:  # its reports will not come any more
                rule.begin_again()
        self._abandoned.clear()

    def _trouble(self, error: KafkaError) -> None:
        """Called as a client is polled."""
        why, now = _TROUBLES.get(error.code(), ""), time.monotonic()
        no_token = why_no_token(error)
        if no_token is not None:
            self._token, cause = no_token
            self._say(f"the token endpoint gives no token: {cause}")
        if no_token is not None or (why == REFUSED and now < self._token_until):
            why, self._token_until = self._token, now + TOKEN_S
            self._token_over = no_token is None
        if why or error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            self._why = why or self._why or UNREACHABLE
        self._fatal = self._fatal or error.fatal()

    def _away(self, error: KafkaError, now: float) -> None:
        """The cluster does not answer."""
        reason = _TROUBLES.get(error.code(), "") or self._why or UNREACHABLE
        self._away_until = now + min(FIRST_RETRY_S * 2**self._failures, LAST_RETRY_S)
        self._failures = min(self._failures + 1, 10)
        for rule, _ in self._watched:
            if rule.sending or rule.reason:
                rule.stands(reason, _now_ms())
        self._say(reason.replace("_", " "), f" ({error.name()})")

    def _look_for_stuck(self, now: float) -> None:
        for rule, _ in self._active:
            if rule.unreported and now - rule.heard > STUCK_S and not rule.reason:
                rule.stands(self._why or UNREACHABLE, _now_ms())
                self._say((self._why or UNREACHABLE).replace("_", " "))

    def _say(self, what: str, detail: str = "") -> None:
        self._account.complain(f"cluster {self._name}", what, detail)

    # --- one rule --------------------------------------------------------------------------------------------------------------------

    def _go_on(self, each: _Watched, now: float) -> bool:
        """Send what there is to send. Returns whether there may be more. Raises KafkaException when the cluster does not answer."""
        rule = each.rule
        if rule.gone or rule.closing:
            return False
        if rule.refused:
            if not rule.unreported:
                self._recover(each, now)
            return False
        if rule.retry_at > now or self._solo not in (None, rule):
            return False
        for entry in rule.sending:
            if entry.waiting and not self._send(each, entry, now):
                return False
        if rule.unreported >= self._limits.remote_unreported_records or rule.awaits_follower:
            return False
        span = rule.take()
        if span is None:
            return False
        rule.send(span.end, span.outputs)
        entry = rule.sending[-1]
        return not entry.waiting or self._send(each, entry, now)

    def _send(self, each: _Watched, entry: Sending, now: float) -> bool:
        """Give the driver what waits; False if some of it has to wait further."""
        rule, producer = each.rule, self._producer
        assert producer is not None
        if rule.by.config.target.schema is not None and not self._encode(rule, entry, now):
            return False
        faults = self._targets.faults({output.topic for output in entry.waiting})
        self._answered()
        if faults and not self._set_apart(each, faults, now):
            return False
        if not rule.unreported:
            rule.goes_on()
        while entry.waiting:
            if rule.alone and any(other.unreported for other, _ in self._watched):
                return False
            output = entry.waiting[0]
            if not self._account.within_topics(output):
                self._account.drop(output.rule, "too_many_topics")
            elif self._targets.too_large(output.topic, size_of(output)):
                self._account.drop(output.rule, "too_large", f" ({output.topic})")
            else:
                try:
                    told = partial(self._reported, rule, entry, output)
                    producer.produce(output.topic, output.value, output.key, headers=output.headers, on_delivery=told)
                except BufferError:  # the producer's queue is full
                    return False
                except KafkaException as failed:
                    if failed.args[0].code() not in TOO_LARGE:
                        raise
                    self._account.drop(output.rule, "too_large", f" ({output.topic})")
                else:
                    if not rule.unreported:
                        rule.heard = now
                    rule.unreported += 1
                    entry.unreported += 1
            entry.waiting.popleft()
        return True

    def _encode(self, rule: RemoteRule, entry: Sending, now: float) -> bool:
        """What waits, by its schema; False if that has to wait. Those that are not valid are dropped, or become dead letters."""
        made: deque[Output] = deque()
        invalid = []
        for output in entry.waiting:
            encoded = output if output.schema is None else self._account.encode(output)
            if isinstance(encoded, str):
                rule.failed(encoded, now, _now_ms())
                self._account.complain(f"rule {rule.rule}", f"is parked: {encoded.replace('_', ' ')}")
                return False
            if encoded is None:
                invalid.append(output)
            else:
                made.append(encoded)
        entry.waiting = made
        for output in invalid:
            self._account.drop(output.rule, INVALID)
        return True

    def _answered(self) -> None:
        self._fine()
        self._failures = 0

    def _fine(self) -> None:
        self._why = ""
        if self._token_over:
            self._token_over, self._token_until = False, 0.0

    def _reported(self, rule: RemoteRule, entry: Sending, output: Output, error: KafkaError | None, _message: object) -> None:
        rule.report(entry, output, error, time.monotonic())
        if error is None:
            self._fine()
            self._account.wrote([output])

    def _set_apart(self, each: _Watched, faults: dict[str, Any], now: float) -> bool:
        """Topics cannot be written to. Whoever has only this one waits for it; else the topics wait, and what is for others goes on.
        Returns whether it does."""
        rule = each.rule
        found = Counter(output.topic for entry in rule.sending for output in entry.waiting)
        for topic, fault in sorted(faults.items()):
            if rule.topic or rule.by.topic is not None:
                rule.failed(fault, now, _now_ms())
                self._account.complain(f"rule {rule.rule}", f"is parked: {fault.replace('_', ' ')}", f" ({topic} of {self._name})")
                return False
            one = rule.follow(topic)
            if each.owned.remote.join(one):
                one.failed(fault, now, _now_ms())
                self._watched = [*self._watched, _Watched(one, each.owned)]  # not while it is gone through
                self._account.complain(f"rule {rule.rule}", f"topic is parked: {fault.replace('_', ' ')}", f" ({topic} of {self._name})")
            else:
                del rule.followers[topic]
                for _ in range(found[topic]):
                    self._account.drop(rule.rule, fault, f" ({topic} of {self._name})")
        return True

    def _recover(self, each: _Watched, now: float) -> None:
        """All that was sent was reported on, and some of it was refused."""
        rule, alone = each.rule, each.rule.alone
        for entry in rule.sending:
            refused, entry.refused = entry.refused, []
            back = []
            for output, error in refused:
                if not rule.covers(output):
                    continue  # somebody follows for its topic
                if error.code() in TOO_LARGE:
                    if alone or size_of(output) > BATCH_BYTES:
                        self._targets.refuse_size(output.topic, size_of(output))
                    else:
                        rule.alone = True
                elif (fault := fault_of(error)) is not None:
                    self._targets.mark(output.topic, fault)
                elif error.code() not in _PURGED:
                    rule.failed("refused_records", now, _now_ms())
                    self._account.complain(f"rule {rule.rule}", "records are refused and sent again", f": {error.name()}")
                back.append(output)
            entry.waiting.extendleft(reversed(back))

    # --- reading the log again -------------------------------------------------------------------------------------------------------

    def _read(self, now: float) -> bool:
        """For one of those who are behind. Returns whether anything was read. Raises KafkaException."""
        if self._reading is not None and not self._goes_on_reading(now):
            self._stop_reading()
        if self._reading is None:
            each = next((each for each in self._active if self._is_behind(each, now)), None)
            if each is None:
                return False
            self._watched = [*(other for other in self._watched if other is not each), each]
            self._reading = _Reading(each, self._reader(each), now)
            each.rule.reading = True
        each, reader = self._reading.each, self._reading.reader
        rule, span = each.rule, reader.span
        if not self._has_room(rule, now):
            return False
        until = time.monotonic() + SLICE_S
        reader.read(rule.gap(each.owned.committed or 0), lambda: rule.gone or rule.closing or time.monotonic() > until)
        span.combine()
        if span.position > rule.sent:
            rule.send(Place(span.position, span.time), span.outputs)
            self._reading.sent = rule.sent
        span.done()
        return True

    def _is_behind(self, each: _Watched, now: float) -> bool:
        rule = each.rule
        return self._has_room(rule, now) and rule.gap(each.owned.committed or 0) > rule.sent

    def _has_room(self, rule: RemoteRule, now: float) -> bool:
        if rule.gone or rule.closing or rule.retry_at > now or rule.awaits_follower or rule.waits:
            return False
        return rule.unreported < self._limits.remote_unreported_records

    def _goes_on_reading(self, now: float) -> bool:
        reading = self._reading
        assert reading is not None
        each = reading.each
        rule = each.rule
        if rule.gone or rule.closing or rule.retry_at > now or rule.sent != reading.sent:
            return False
        if rule.gap(each.owned.committed or 0) <= rule.sent:
            return False
        return now - reading.since < TURN_S or not any(other is not each and self._is_behind(other, now) for other in self._active)

    def _reader(self, each: _Watched) -> LogReader:
        rule = each.rule
        if self._consumer is None:
            self._consumer = open_consumer(self._config, "clusters", allow_auto_create_topics=False)
        low, _ = self._consumer.get_watermark_offsets(TopicPartition(self._stream.topic, rule.partition), timeout=CALL_S)
        missed = rule.lost(low)
        if missed:
            self._account.lose(rule.rule, rule.partition, missed)
        return open_reader(
            self._config, self._stream, self._consumer, rule.by, rule.partition, rule.sent_at,
            low=low, core=self._account.core, limits=self._limits, closing=self._closing,
        )  # fmt: skip

    def _stop_reading(self) -> None:
        if self._reading is None:
            return
        self._reading.each.rule.reading = False
        self._reading = None
        if self._consumer is not None:
            self._consumer.unassign()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
