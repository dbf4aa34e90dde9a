"""The owner of partitions: runs the rules and keeps the state, each partition on one core at a time, exactly once.

Cores form a consumer group on the log. Whoever a partition is assigned to reads what the state says of it, and goes on from there. Each
transaction holds what a span of the log gives (records for your topics, changes of the state, and its checkpoint) and the position behind
it, in the name of this member of the group: one that was taken for dead, and wakes up, can write nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core import state
from core.events import Event, Owned
from core.fold import Fold
from core.kafka.catch_up import CatchUp
from core.kafka.clusters import Clusters
from core.kafka.config import SKEW_S, WINDOW_S, KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer
from core.kafka.logs import log
from core.kafka.outlet import Deliver, Outlet
from core.kafka.records import log_record
from core.kafka.state_log import StateReader
from core.kafka.targets import TargetTopics
from core.kafka.topics import StreamInfo
from core.kafka.transactions import CALL_S, MAX_REDO, Blocked, Refused, StateRecord, Transactions, again, fence, transactional_id
from core.ownership import OwnedPartition, PartitionState
from core.parked import Fault, GivenUp, ParkedRule, summary
from core.remote import summary as remote_summary
from core.rules import Batcher, Output, Rule, RuleSet, Version
from core.rules.schema import Encodings, encoded
from relay.model.limits import CoreLimits

COMMIT_S = 0.05
"""Shortest time between two commits that write something, in seconds."""
QUIET_COMMIT_S = 5.0
"""Time between looks at the clock, and between commits of positions behind which there is nothing to write, in seconds."""
IDLE_POLL_S = 0.1
"""Longest wait for a record of the log, and so for `close` to be noticed."""
BATCH = 1_000
"""Records taken from the driver at once: a few milliseconds."""
TROUBLES = 1_000
"""Rules whose last complaint is remembered. Above it: the oldest is forgotten."""
COMPLAIN_S = 60.0
"""The same rule's same trouble is logged at most this often."""
GROUP_WAIT_S = 0.2
"""How long the group is listened to after it refused a transaction, before the next attempt."""
CLOSE_S = 15.0
"""Longest wait for the thread to end."""

_LOST_POSITION = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class OwnerRunner(KafkaThread):
    """One thread, one member of the group, one transactional producer. Delivers `Owned` whenever partitions come or go.

    After a failure (fenced, fatal, unreachable) producer and consumer are made anew, with backoff, and go on from what is committed.
    """

    def __init__(
        self,
        config: KafkaConfig,
        stream: StreamInfo,
        state_topic: StreamInfo,
        rules: Iterable[Rule],
        *,
        core: str,
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        begun: bool = False,
        create_topics: bool = False,
        version: Version = Version(),  # noqa: B008 - immutable
    ) -> None:
        """`core` is this core's name and no other core's: whoever was called so before is fenced. Records name it as their site. `begun`:
        every partition has had an owner. `create_topics`: make target topics that are missing (dev only). `version`: of `rules`.

        Raises ConfigError when two rules of an app share an id.
        """
        super().__init__("tidegate-owner")
        self.config = config
        self.stream = stream
        self.state_topic = state_topic
        self.core = core
        self.rules = RuleSet(rules, site=core, version=version)
        """The newest. Replaced as a whole, by `change`; the thread takes it up between two spans."""
        self._known = threading.Condition()
        self._known_to = version
        """The rules are what `tidegate.config` says up to here, if not further."""
        self.limits = limits
        self.create_topics = create_topics
        self.schemas: Encodings | None = None
        """Set before rules that need them."""
        self._ready = threading.Event()
        if begun:
            self._ready.set()
        self._outlet = Outlet(loop, deliver)
        self._complained: dict[tuple[str, str], float] = {}
        self._troubles: dict[str, tuple[int, str]] = {}
        """The last complaint about each rule, and when (milliseconds since 1970)."""
        self._rule_topics: dict[str, set[str]] = {}
        self._counting = threading.Lock()
        """Rules that are parked are counted by a thread of their own."""
        self.group = f"{config.prefix}.owner"
        self.written: Counter[str] = Counter()
        """Records written, by rule. Readable from any thread, like all counters here."""
        self.dropped: Counter[tuple[str, str]] = Counter()
        """Records that could not be written, by (rule, reason)."""
        self.owned: frozenset[int] = frozenset()
        self.records = 0
        """Records of the log that were read as their owner."""
        self.duplicates = 0
        self.states = 0
        """Records of the state that were written, checkpoints not counted."""
        self.commits = 0
        self.refused = 0
        """Transactions that were refused because another core had taken over."""
        self.lost = 0
        """Records of the log that retention had deleted before any owner saw them."""
        self.missed: Counter[str] = Counter()
        """Records of the log that retention had deleted before a rule that was parked came to them, by rule."""
        self.parked: tuple[tuple[ParkedRule, OwnedPartition], ...] = ()
        """Rules that are parked on this core's partitions. Replaced as a whole, like the next."""
        self.partitions: tuple[OwnedPartition, ...] = ()
        self._stopped: dict[str, dict[int, int]] = {}
        """Rule → partition → the first offset that it has left to nobody: where it was removed or disabled here."""

    @property
    def ready(self) -> bool:
        """No message published from now on will be missed by the rules that there are, or will be, whoever reads it: each partition's
        position is known, or the group has taken this core in and the positions of what it was given are committed."""
        return self._ready.is_set()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Commits and leaves the group, so that others take over at once."""
        await super().close(timeout_s)
        self._outlet.close()

    # --- rules come and go, on any thread ----------------------------------------------------------------------------------------------

    def change(self, rules: Iterable[Rule] | None, version: Version) -> None:
        """From now on these run; None: still those that do. `version` says how far `tidegate.config` has been read for that. They take
        effect between two spans, within a tenth of a second if Kafka answers. Raises ConfigError as at the start: then nothing changes.
        """
        made = None if rules is None else RuleSet(rules, site=self.core, version=version)
        with self._known:
            if made is not None:
                kept = {id(rule) for rule in made.rules}
                changed = {rule.label for rule in self.rules.rules if id(rule) not in kept}
                self.rules = made
                with self._counting:
                    for label in changed:
                        self._rule_topics.pop(label, None)
            self._known_to = version
            self._known.notify_all()

    def rules_since(self, version: Version) -> RuleSet:
        """The newest rules, which are no older than `version`. Raises KafkaException if they are, after a while: begin again."""
        with self._known:
            if not self._known.wait_for(lambda: self.closing.is_set() or self._known_to.reaches(version), CALL_S):
                raise again("another owner knows of newer rules than have been read here")
            return self.rules

    def stop(self) -> None:
        super().stop()
        with self._known:
            self._known.notify_all()

    def runs(self, rule: Rule) -> bool:
        """Whether the rule, just so, is in force on all partitions that this core owns."""
        label = rule.label
        return rule in self.rules.rules and all(
            each.rules_said and each.rules.by_label.get(label) is (rule if rule.enabled else None) for each in self.partitions
        )

    def state_of(self, label: str) -> dict[str, Any]:
        """What this core has to say of a rule, for the Control API. `positions`: partition → offset of the log before which all that is the
        rule's is written, of the partitions that this core owns; of a rule that has stopped, where."""
        partitions = self.partitions
        parked = [(each, owned.committed or 0) for each, owned in self.parked if each.rule == label]
        remote = [(each, owned.committed or 0) for owned in partitions for each in owned.remote.all() if each.rule == label]
        behind: dict[int, int] = {}
        for number, cursor in [
            *((each.partition, each.cursor) for each, _ in parked),
            *((each.partition, each.at.offset) for each, _ in remote),
        ]:
            behind[number] = min(cursor, behind.get(number, cursor))
        running = {
            str(each.number): min(each.committed, behind.get(each.number, each.committed))
            for each in partitions
            if label in each.rules.by_label and each.committed is not None
        }
        stopped = {str(number): offset for number, offset in sorted(self._stopped.get(label, {}).items())}
        enabled = label in self.rules.by_label
        if not enabled:
            state = "stopped"
        elif remote:
            states = [each["state"] for each in remote_summary(remote)]
            state = next((each for each in ("parked", "catching up") if each in states), "running")
        elif parked:
            state = "catching up" if all(each.catching_up for each, _ in parked) else "parked"
        else:
            state = "running"
        return {
            "core": self.core,
            "state": state,
            "positions": running if enabled else stopped,
            "parked": [{name: value for name, value in each.items() if name != "rule"} for each in summary(parked)],
            "remote": [{name: value for name, value in each.items() if name != "rule"} for each in remote_summary(remote)],
            "written": self.written[label],
            "dropped": {reason: count for (rule, reason), count in list(self.dropped.items()) if rule == label},
            "missed": self.missed[label],
        }

    # --- the thread ------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        _Run(self).run()

    def tell_changes(self, before: RuleSet, after: RuleSet, places: dict[int, int], given_up: dict[int, list[GivenUp]]) -> None:
        """Log what a change of rules means on these partitions: number → the first offset for which it counts."""
        places = dict(sorted(places.items()))
        old, new = before.by_label, after.by_label
        for label in sorted(old.keys() | new.keys()):
            if old.get(label) is new.get(label):
                continue
            stops = label not in new
            what = "stops" if stops else "begins" if label not in old else "is changed"
            log.info("rule %s %s: partition and first offset %s", label, what, places)
            if stops:
                self._stopped[label] = self._stopped.get(label, {}) | places
            else:
                self._stopped.pop(label, None)
        while len(self._stopped) > self.limits.stopped_rules:
            self._forget(next(iter(self._stopped)))
        for number, cursors in given_up.items():
            self.tell_given_up(number, cursors)

    def _forget(self, label: str) -> None:
        """Rules come and go for as long as a core runs; what they counted does not stay for ever."""
        del self._stopped[label]
        with self._counting:
            self.written.pop(label, None)
            self.missed.pop(label, None)
            self._rule_topics.pop(label, None)
            for each in [each for each in self.dropped if each[0] == label]:
                del self.dropped[each]

    def tell_given_up(self, number: int, cursors: Iterable[GivenUp]) -> None:
        for each in cursors:
            log.warning(
                "rule %s%s: what was waiting on partition %d, from offset %d on, is given up",
                each.rule, f" ({each.topic})" if each.topic else "", number, each.cursor,
            )  # fmt: skip

    def is_ready(self) -> None:
        self._ready.set()

    def own(self, partitions: frozenset[int]) -> None:
        if partitions != self.owned:
            self.owned = partitions
            events: list[Event] = [Owned(partitions)]
            self._outlet.put(events)

    def complain(self, who: str, what: str, detail: str = "") -> None:
        """Log, at most once a minute for the same trouble, whatever its detail."""
        now = time.monotonic()
        with self._counting:
            self._troubles.pop(who, None)
            self._troubles[who] = (time.time_ns() // 1_000_000, what + detail)
            if len(self._troubles) > TROUBLES:
                del self._troubles[next(iter(self._troubles))]
            if self._complained.get((who, what), 0.0) > now:
                return
            if len(self._complained) > 1_000:
                self._complained.clear()
            self._complained[who, what] = now + COMPLAIN_S
        log.warning("%s: %s%s", who, what, detail)

    def drop(self, rule: str, reason: str, detail: str = "") -> None:
        with self._counting:
            self.dropped[rule, reason] += 1
        self.complain(f"rule {rule}", f"records are dropped: {reason.replace('_', ' ')}", detail)

    def within_topics(self, output: Output) -> bool:
        """Whether the rule may write to one more topic, if this is one."""
        with self._counting:
            topics = self._rule_topics.setdefault(output.rule, set())
            if output.topic not in topics:
                if len(topics) >= self.limits.rule_topics:
                    return False
                topics.add(output.topic)
            return True

    def encode(self, output: Output) -> Output | Fault | None:
        return encoded(output, self.schemas)

    def wrote(self, outputs: Iterable[Output]) -> None:
        with self._counting:
            self.written.update(output.rule for output in outputs)

    def lose(self, rule: str, partition: int, records: int) -> None:
        """`records` of the log are gone, which the rule has not seen."""
        with self._counting:
            self.missed[rule] += records
        log.warning("rule %s: retention deleted %d records of partition %d while it was parked", rule, records, partition)

    def parked_rules(self) -> list[dict[str, Any]]:
        """What is parked on this core's partitions, by rule and topic, for `GET /v1/status` and metrics. Any thread."""
        return summary([(each, owned.committed or 0) for each, owned in self.parked])

    def remote_rules(self) -> list[dict[str, Any]]:
        """How rules into other clusters get on with this core's partitions, by rule. Any thread."""
        return remote_summary((each, owned.committed or 0) for owned in self.partitions for each in owned.remote.all())

    def waiting_rules(self) -> list[dict[str, Any]]:
        """Those that cannot write, wherever to, by rule and topic with the reason. Any thread."""
        return [*self.parked_rules(), *(each for each in self.remote_rules() if each["reason"])]

    def status(self) -> list[dict[str, Any]]:
        """Each enabled rule since this core's start, on its partitions: records written, dropped (by reason) and missed, and the last
        complaint. For `GET /v1/status`. Any thread."""
        with self._counting:
            dropped: dict[str, dict[str, int]] = {}
            for (label, reason), count in self.dropped.items():
                dropped.setdefault(label, {})[reason] = count
            troubles = dict(self._troubles)
        found = []
        for rule in self.rules.enabled:
            trouble = troubles.get(f"rule {rule.label}")
            found.append(
                {
                    "rule": rule.label,
                    "written": self.written[rule.label],
                    "dropped": dropped.get(rule.label, {}),
                    "missed": self.missed[rule.label],
                    "trouble": None if trouble is None else {"at": trouble[0], "what": trouble[1]},
                }
            )
        return found


class _Run:
    """From one start to the next: a producer, a member of the group, and what it owns."""

    _clusters: Clusters | None = None
    """Begun with the first rule into another cluster."""

    def __init__(self, owner: OwnerRunner) -> None:
        self._owner = owner
        self._config, self._stream, self._limits = owner.config, owner.stream, owner.limits
        self._consumer = open_consumer(
            self._config,
            "owner",
            owner.group,
            heartbeat_interval_ms=1_000,  # how soon the others learn that they may take over
            isolation_level="read_committed",  # also waits for offsets of a transaction that is just being finished
            allow_auto_create_topics=False,
            fetch_wait_max_ms=10,
        )
        # Not the group's consumer: asked for metadata within a rebalance, the driver's binding forgets which call it is in, and its next
        # callback in that call (another rebalance, a log line) aborts the process (measured with confluent-kafka 2.16).
        self._looks = open_consumer(self._config, "targets", allow_auto_create_topics=False)
        self._transactions = Transactions(
            self._config,
            transactional_id(self._config, owner.core),
            owner.state_topic.topic,
            TargetTopics(self._config, self._looks, create=owner.create_topics, written=True, timeout_s=CALL_S),
            drop=lambda output, reason, detail: owner.drop(output.rule, reason, detail),
            admit=owner.within_topics,
            say=lambda what: owner.complain("owner", what),
            encode=lambda output: encoded(output, owner.schemas),
        )
        self._states = StateReader(self._config, owner.state_topic, self._stream, owner.closing)
        self._fold = Fold(self._limits.fold_ids, os.urandom(16))
        self._owned: dict[int, OwnedPartition] = {}
        self._catch_up: CatchUp | None = None
        """Begun when the first rule is parked."""
        self._member: Any = None
        """The group's metadata of this member, as of the last assignment."""
        self._fenced: Counter[str] = Counter()
        """How often each core was, in the take-over under way."""
        self._held: list[Any] = []
        """Messages that came while only the group was to be heard: the next ones to be taken."""
        self._open_records = 0
        self._open_size = 0
        """What the spans have come to since the last transaction, roughly."""
        self._committed_at = 0.0
        self._swept_at = time.monotonic()
        self._joined = False

    def run(self) -> None:
        """Until `close`. Raises KafkaException."""
        owner = self._owner
        try:
            self._transactions.open()
            self._consumer.subscribe(
                [self._stream.topic], on_assign=self._assigned, on_revoke=self._guarded(self._revoked), on_lost=self._guarded(self._lost)
            )
            while not owner.closing.is_set():
                self._take_up_rules()
                self._read()
                self._commit_what_is_due()
                if self._catch_up is not None and self._catch_up.failed is not None:
                    raise self._catch_up.failed
                if not owner.ready and self._joined and all(each.committed is not None for each in self._owned.values()):
                    owner.is_ready()
            self._settle_clusters(list(self._owned.values()))
            self._commit([partition for partition in self._owned.values() if partition.moved or partition.writes])
        finally:
            # What was committed is given up in order; what was not is dropped, and done again by whoever comes next.
            self._give_up(list(self._owned))
            if self._catch_up is not None:
                self._catch_up.stop()
            if self._clusters is not None:
                self._clusters.stop()
            self._consumer.close()  # first of all, so that the others can take over
            self._looks.close()
            self._transactions.close()
            if self._catch_up is not None:
                self._catch_up.close()
            if self._clusters is not None:
                self._clusters.close()

    # --- partitions come and go ------------------------------------------------------------------------------------------------------

    def _assigned(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        numbers = [at.partition for at in partitions]
        starts = self._take_over(numbers) if numbers else {}
        places = [TopicPartition(self._stream.topic, number, at) for number, at in starts.items()]
        self._consumer.incremental_assign(places)
        if places:
            self._consumer.resume(places)  # a pause outlives an assignment (measured with librdkafka 2.16)
        self._watch_clusters()
        self._joined = True
        self._owner.own(frozenset(self._owned))
        self._member = self._consumer.consumer_group_metadata()
        if self._catch_up is not None:
            self._catch_up.group = self._member
        self._tell_parked()

    def _begin_to_catch_up(self, partition: OwnedPartition) -> None:
        """Rules whose cursors are in the state by now, and the name of this core with them: whoever comes next has to know whose the
        transactions are."""
        started = partition.parked.started()
        if started and self._catch_up is None:
            self._catch_up = CatchUp(self._config, self._stream, self._owner.state_topic, self._owner)
        if self._catch_up is not None:
            self._catch_up.group = self._member
            for each in started:
                self._catch_up.watch(each, partition)

    # --- rules come and go -----------------------------------------------------------------------------------------------------------

    def _take_up_rules(self) -> None:
        """Where the rules are not the newest, the span ends, and they run from there on. Raises KafkaException."""
        rules = self._owner.rules
        behind = [each for each in self._owned.values() if each.rules is not rules]
        if not behind:
            return
        self._commit([each for each in behind if each.moved or each.writes])
        told: dict[int, tuple[RuleSet, dict[int, int], dict[int, list[GivenUp]]]] = {}
        for each in behind:
            if self._owned.get(each.number) is not each:
                continue  # somebody else has it now
            before = each.rules
            given_up = each.change_rules(rules)
            if given_up is not None:
                _, places, cursors = told.setdefault(id(before), (before, {}, {}))
                places[each.number] = each.position
                cursors[each.number] = given_up
        self._watch_clusters()
        for before, places, cursors in told.values():
            self._owner.tell_changes(before, rules, places, cursors)
        self._tell_parked()

    def _watch_clusters(self) -> None:
        """Rules into other clusters go on, or begin."""
        if self._clusters is not None:
            self._clusters.keep({rule.cluster for rule in self._owner.rules.remote.values() if rule.cluster is not None})
        for each in self._owned.values():
            for one in each.remote.started():
                if self._clusters is None:
                    self._clusters = Clusters(self._config, self._stream, self._owner)
                self._clusters.watch(one, each)

    def _tell_parked(self) -> None:
        owner = self._owner
        owner.partitions = tuple(self._owned.values())
        if owner.parked or any(each.parked for each in self._owned.values()):
            owner.parked = tuple((rule, each) for each in self._owned.values() for rule in each.parked.rules.values())

    def _revoked(self, partitions: list[TopicPartition]) -> None:
        """The others wait for this member: nobody has these partitions yet."""
        numbers = [at.partition for at in partitions]
        self._owner.own(frozenset(self._owned) - frozenset(numbers))
        self._settle_clusters([self._owned[n] for n in numbers if n in self._owned])
        try:
            self._commit(
                [self._owned[n] for n in numbers if n in self._owned and (self._owned[n].moved or self._owned[n].changes)], listen=False
            )
        except KafkaException as failed:  # the next owner does it again
            self._owner.complain("owner", f"commit before a rebalance: {failed.args[0].name()}")
        self._give_up(numbers)
        self._consumer.incremental_unassign(partitions)

    def _lost(self, partitions: list[TopicPartition]) -> None:
        """The group has gone on without this member, and somebody else has its partitions already: nothing to commit."""
        numbers = [at.partition for at in partitions]
        spans = [self._owned[number] for number in numbers if number in self._owned]
        log.warning(
            "partitions %s lost to other cores: %d records for topics and %d of the state are left to them",
            numbers, sum(len(each.outputs) for each in spans), sum(len(each.changes) for each in spans),
        )  # fmt: skip
        self._give_up(numbers)
        self._consumer.incremental_unassign(partitions)

    def _guarded(self, then: Callable[[list[TopicPartition]], None]) -> Callable[[object, list[TopicPartition]], None]:
        return lambda _consumer, partitions: then(partitions)

    def _give_up(self, numbers: list[int]) -> None:
        for number in numbers:
            partition = self._owned.pop(number, None)
            if partition is not None:
                partition.given_up = True
                partition.parked.give_up()
                partition.remote.give_up()
            self._fold.forget(number)
        self._held = [message for message in self._held if message.partition() not in numbers]
        self._tell_parked()
        self._owner.own(frozenset(self._owned))

    def _take_over(self, numbers: list[int]) -> dict[int, int]:
        """What is to be known of these partitions. Returns where to read each from. Raises KafkaException."""
        fence = self._fence if self._config.capabilities.fencing else None
        self._fenced.clear()
        found = self._states.read(numbers, fence)
        if self._owner.closing.is_set():
            return {}
        committed = self._committed(numbers)
        # The group's positions wait for transactions that may still be committed; the state waits only for those that have written to it
        # by now. What a core has sent since, after it stood still, is found by reading once more.
        if behind := [number for number, position in committed.items() if _is_behind(found[number], position)]:
            found |= self._states.read(behind, fence)
            if self._owner.closing.is_set():
                return {}
        rules = self._owner.rules
        for number in numbers:
            rules = self._owner.rules_since(found[number].rules)
        if self._owner.closing.is_set():
            return {}
        low: dict[int, int] = {}
        seen: dict[int, int] = {}
        for number in numbers:
            bottom, top = self._consumer.get_watermark_offsets(TopicPartition(self._stream.topic, number), timeout=CALL_S)
            low[number] = bottom
            self._owned[number] = partition = self._begin(number, found[number], committed[number], bottom, top, rules)
            self._fold.forget(number)
            seen[number] = partition.time if partition.first > bottom else 0
        return self._look_back(seen, low)

    def _committed(self, numbers: list[int]) -> dict[int, int | None]:
        """The group's positions in this stream. Raises KafkaException."""
        found = self._consumer.committed([TopicPartition(self._stream.topic, number) for number in numbers], timeout=CALL_S)
        for at in found:
            if at.error is not None:
                raise KafkaException(at.error)
        return {at.partition: _position(at, self._stream.stream) for at in found}

    def _begin(self, number: int, found: PartitionState, committed: int | None, low: int, top: int, rules: RuleSet) -> OwnedPartition:
        """`committed` is the group's position in this stream; it says no more than the checkpoint, unless there is none."""
        owner, checkpoint = self._owner, found.checkpoint
        if checkpoint is None:
            # Presence is what the whole log adds up to; rules begin where they ended. New ones begin now, those of a log that was made anew
            # at its beginning: all of it is news.
            rules_from = low if found.made_anew else top if committed is None else min(max(committed, low), top)
            first, at = low, _now_ms() if low == top else 0
        else:
            first, at = min(max(checkpoint.offset, low), top), checkpoint.time
            rules_from = first
            if committed is not None and committed != checkpoint.offset:
                detail = f" ({committed}, {checkpoint.offset})"
                owner.complain("owner", "the group's position is not the state's, which counts", detail)
            if checkpoint.offset < low:
                gone, topic = low - checkpoint.offset, self._stream.topic
                owner.lost += gone
                log.warning("retention deleted %d records of %s/%d before their owner read them", gone, topic, number)
        partition = OwnedPartition(
            number,
            found,
            stream=self._stream.stream,
            core=owner.core,
            low=low,
            first=first,
            rules_from=rules_from,
            time=at,
            channels=self._limits.quiet_channels // self._stream.partitions,
            now=time.monotonic(),
            batcher=Batcher(self._limits.rule_batch_events, self._limits.rule_batch_bytes),
            rules=rules,
            limits=self._limits,
        )
        owner.tell_given_up(number, partition.forgotten)
        return partition

    def _look_back(self, seen: dict[int, int], low: dict[int, int]) -> dict[int, int]:
        """Where to read from, so that every record from the first one on gets the verdict that all other readers give it.

        `seen` is the broker time of the last record before it (0: the log has none). What follows is no older, so a look-back from there
        covers the window of all of it.
        """
        starts = dict(low)
        if not self._config.capabilities.offsets_for_times:
            return starts
        topic, window = self._stream.topic, int((WINDOW_S + SKEW_S) * 1000)
        asked = [TopicPartition(topic, number, max(0, at - window)) for number, at in seen.items() if at]
        for at in self._consumer.offsets_for_times(asked, timeout=CALL_S) if asked else []:
            if at.error is not None:
                raise KafkaException(at.error)
            first = self._owned[at.partition].first
            starts[at.partition] = first if at.offset < 0 else max(low[at.partition], min(at.offset, first))
        return starts

    def _fence(self, core: str) -> None:
        """First the transaction of its parked rules, which may well be slow and not its last one; then that of the owner."""
        parked, self._fenced[core] = self._fenced[core] == 0, self._fenced[core] + 1
        if core == self._owner.core and (not parked or (self._catch_up is not None and self._catch_up.opened)):
            return  # our own former life was ended when this one began
        log.warning("core %s has left a transaction open%s: it is ended", core, " for parked rules" if parked else "")
        fence(self._config, transactional_id(self._config, core, parked=parked))

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        wait = IDLE_POLL_S
        if any(partition.writes for partition in self._owned.values()):
            wait = max(0.0, min(wait, self._committed_at + COMMIT_S - time.monotonic()))
        self._take_in_order([])
        first = self._consumer.poll(wait)
        owned = dict(self._owned)
        self._commit([partition for partition in self._owned.values() if partition.claims])
        self._take_in_order([] if first is None else [first], owned)  # before `consume`, in which a rebalance may happen
        if first is not None:
            self._take_in_order(self._consumer.consume(BATCH - 1, 0))
        self._transactions.poll()
        self._looks.poll(0)

    def _take_in_order(self, messages: list[Any], owned: dict[int, OwnedPartition] | None = None) -> None:
        """These, and then what has come meanwhile, before anything else is read. `owned`: when they were read, unless it was just now."""
        self._take(messages, owned)
        while self._held:
            held, self._held = self._held, []
            self._take(held)

    def _take(self, messages: list[Any], owned: dict[int, OwnedPartition] | None = None) -> None:
        owner, see, stream = self._owner, self._fold.see, self._stream.stream
        if owned is None:
            owned = dict(self._owned)  # a partition that comes back while these are taken begins with what is read then
        now = time.monotonic()
        for message in messages:
            error = message.error()
            if error is not None:
                self._trouble(error)
                continue
            record = log_record(message, stream)
            number, offset = record.partition, record.offset
            partition = owned.get(number)
            if partition is None or partition.given_up or partition.first <= offset < partition.position:
                continue
            duplicate = see(number, record.key, record.id, record.timestamp, offset) is not None
            if offset < partition.first:
                if not duplicate:
                    partition.look_back(record)
                continue
            owner.records += 1
            owner.duplicates += duplicate
            size = partition.size
            for drop in partition.take(record, duplicate=duplicate, rules=partition.rules, now=now):
                owner.drop(drop.rule, drop.reason)
            if partition.size != size:
                self._open_size += partition.size - size
                self._open_records += 1
                if self._open_size >= self._limits.owner_span_bytes or self._open_records >= self._limits.owner_span_records:
                    self._commit([each for each in self._owned.values() if each.writes])

    def _trouble(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _LOST_POSITION:
            raise KafkaException(error)
        self._owner.complain("owner", f"reading the log: {error.name()}")  # librdkafka goes on by itself

    def _settle_clusters(self, partitions: list[OwnedPartition]) -> None:
        """These are given up in order: what other clusters have acknowledged by now is noted."""
        if self._clusters is None:
            return
        self._clusters.rest(partitions)
        for each in partitions:
            each.remote.settle(time.monotonic(), each.changes, at_once=True)

    # --- writing ---------------------------------------------------------------------------------------------------------------------

    def _commit_what_is_due(self) -> None:
        now = time.monotonic()
        for partition in self._owned.values():
            partition.remote.settle(now, partition.changes)
        if now - self._swept_at >= QUIET_COMMIT_S:
            self._swept_at = now
            for partition in self._owned.values():
                partition.sweep(now)
            self._commit([partition for partition in self._owned.values() if partition.moved or partition.writes])
        elif now - self._committed_at >= COMMIT_S:
            due = [each for each in self._owned.values() if each.due]
            if due:
                self._commit(due)

    def _commit(self, partitions: list[OwnedPartition], *, listen: bool = True) -> None:
        """The spans of these partitions, in one transaction. Without `listen` the group is not waited for (within a rebalance).

        Raises KafkaException: begin again from what is committed.
        """
        owner = self._owner
        for attempt in range(MAX_REDO):
            held = (each for each in partitions if self._owned.get(each.number) is each)
            partitions = list(held)
            for each in partitions:
                each.combine()
            partitions = [each for each in partitions if each.moved or each.writes or each.claims]
            if not partitions:
                return
            for each in partitions:
                each.sweep(time.monotonic())
            try:
                written = self._write(partitions)
            except Refused as refused:
                ours = listen and not refused.final and self._still_ours(partitions)
                if ours and attempt < MAX_REDO - 1:
                    continue  # the group was just being put together anew
                self._say_refused(refused.error, partitions)
                if ours or refused.final:
                    raise again("another core has taken over") from refused
                return
            finally:
                self._committed_at = time.monotonic()
                self._open_records = self._open_size = 0
            self._commit_plainly(partitions)
            owner.wrote(written)
            owner.states += sum(len(each.changes) for each in partitions)
            owner.commits += 1
            for each in partitions:
                each.done()
                self._begin_to_catch_up(each)
            self._tell_parked()
            return

    def _write(self, partitions: list[OwnedPartition]) -> list[Output]:
        """Rules whose topics cannot be written to are left out, and parked. Raises Refused, KafkaException."""
        while True:  # each time at least one topic less
            try:
                return self._transactions.write(
                    [output for each in partitions for output in each.outputs],
                    _states(partitions),
                    self._positions(partitions),
                    self._consumer.consumer_group_metadata,
                )
            except Blocked as blocked:
                for output in [output for each in partitions for output in each.outputs if blocked.of(output) is not None]:
                    fault = str(blocked.of(output)).replace("_", " ")
                    self._owner.complain(f"rule {output.rule}", f"is parked: {fault}", f" ({output.topic})")
                for each in partitions:
                    for output in each.park(blocked.faults, _now_ms(), blocked.rules):
                        self._owner.drop(output.rule, str(blocked.of(output)), f" ({output.topic})")

    def _positions(self, partitions: list[OwnedPartition]) -> list[TopicPartition]:
        topic, stream = self._stream.topic, self._stream.stream
        return [TopicPartition(topic, each.number, each.position, stream) for each in partitions]

    def _commit_plainly(self, partitions: list[OwnedPartition]) -> None:
        """The embedded broker forgets offsets that are sent to a transaction (measured): they follow it, which makes it at least once."""
        if not self._config.capabilities.fencing:
            self._consumer.commit(offsets=self._positions(partitions), asynchronous=False)

    def _still_ours(self, partitions: list[OwnedPartition]) -> bool:
        """Listen to the group for a moment, reading nothing: whether any of the partitions is still this member's."""
        with contextlib.suppress(KafkaException):  # what is not assigned any more cannot be paused
            self._consumer.pause(self._consumer.assignment())
        until = time.monotonic() + GROUP_WAIT_S
        while time.monotonic() < until:
            message = self._consumer.poll(0.02)
            if message is not None:
                self._held.append(message)
        with contextlib.suppress(KafkaException):
            self._consumer.resume(self._consumer.assignment())
        return any(self._owned.get(each.number) is each for each in partitions)

    def _say_refused(self, error: KafkaError, partitions: list[OwnedPartition]) -> None:
        self._owner.refused += 1
        log.warning(
            "transaction refused: another core owns these partitions (%s): %s; %d records for topics and %d of the state are left to it",
            error.name(), [each.number for each in partitions], sum(len(each.outputs) for each in partitions),
            sum(len(each.changes) for each in partitions),
        )  # fmt: skip


def _states(partitions: list[OwnedPartition]) -> list[StateRecord]:
    """The checkpoint of each partition is its last record."""
    records = [StateRecord(each.number, key, value) for each in partitions for key, value in each.changes.items()]
    return records + [StateRecord(each.number, state.CHECKPOINT, each.checkpoint()) for each in partitions]


def _position(at: TopicPartition, stream: str) -> int | None:
    """The group's position, if it is one in this stream."""
    return at.offset if at.offset >= 0 and at.metadata == stream else None


def _is_behind(found: PartitionState, position: int | None) -> bool:
    """Whether the group's position says that there is more than was found."""
    return position is not None and (found.checkpoint is None or found.checkpoint.offset < position)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
