"""The transactional producer of an owner: all of a span or nothing of it, with the position in the log that goes with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.config import KafkaConfig
from core.kafka.targets import TargetTopics, fault_of
from core.ownership import size_of
from core.parked import Fault
from core.rules import Output
from core.rules.schema import INVALID

CALL_S = 10.0
"""Longest wait for one answer of Kafka, and the transaction time-out."""
DELIVERY_S = 5.0
"""Longest time for a record to be taken, in seconds: so long a topic that takes nothing holds up all rules, once."""
MAX_REDO = 5
"""Attempts at one span before producer and consumer are made anew."""

TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD)
NOT_OURS = (
    *(KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.FENCED_INSTANCE_ID, KafkaError.REBALANCE_IN_PROGRESS),
    *(KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_TXN_STATE),
    *(KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.UNKNOWN_PRODUCER_ID),
)
"""Codes with which Kafka says that somebody has taken our place: in the group, or as the producer of our name."""


Encode = Callable[[Output], Output | Fault | None]
"""An output in the form of its schema, or as a dead letter; why that cannot be said now; None: it is not valid, and to be dropped."""


class Refused(Exception):  # noqa: N818 - an answer
    """The transaction was aborted because the group, or the producer's name, is somebody else's by now. `final`: this producer is of no
    use any more."""

    def __init__(self, error: KafkaError, *, final: bool) -> None:
        super().__init__(error.name())
        self.error = error
        self.final = final


class Blocked(Exception):  # noqa: N818 - an answer
    """Nothing was written: these topics cannot be written to. `faults` says of each what is wrong with it; `rules` the same of rules, by
    label, whose payloads cannot be encoded."""

    def __init__(self, faults: Mapping[str, Fault], rules: Mapping[str, Fault] = MappingProxyType({})) -> None:
        super().__init__(", ".join(sorted([*faults, *rules])))
        self.faults = faults
        self.rules = rules

    def of(self, output: Output) -> Fault | None:
        return self.rules.get(output.rule) or self.faults.get(output.topic)


class StateRecord(NamedTuple):
    partition: int
    key: bytes
    value: bytes | None


def transactional_id(config: KafkaConfig, core: str, *, parked: bool = False) -> str:
    return f"{config.prefix}.owner.{core}{'.parked' if parked else ''}"


def fence(config: KafkaConfig, name: str) -> None:
    """End the open transaction of a core that is gone, and its right to any further one until it begins anew. `name` is its transactional
    id. Raises KafkaException."""
    producer = confluent_kafka.Producer(config.client("fence", transactional_id=name, transaction_timeout_ms=int(CALL_S * 1000)))
    try:
        producer.init_transactions(CALL_S)
    finally:
        producer.close()


class Transactions:
    """Belongs to one thread."""

    def __init__(
        self,
        config: KafkaConfig,
        name: str,
        state_topic: str,
        targets: TargetTopics,
        *,
        checked_last: bool = False,
        drop: Callable[[Output, str, str], None],
        admit: Callable[[Output], bool],
        say: Callable[[str], None],
        encode: Encode,
    ) -> None:
        """`name` is the transactional id. `drop` is told of outputs that cannot be written, with reason and details; `admit` says whether a
        rule may write to one more topic; `say` is told what else went wrong. `checked_last`: the group is asked when all the rest is with
        the brokers, so that who takes over afterwards finds the transaction in the state."""
        self._config = config
        self._id = name
        self._checked_last = checked_last
        self.committing = False
        """The last transaction came as far as its commit, so that a failure does not say what became of it."""
        self._state_topic = state_topic
        self._targets = targets
        self._drop = drop
        self._admit = admit
        self._say = say
        self._encode = encode
        self._taken = False
        """The brokers have taken some record of the transaction: those that were not taken have only their topics to blame."""
        self._producer = self._new_producer()

    def _new_producer(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            self._config.client(
                "owner",
                transactional_id=self._id,
                transaction_timeout_ms=int(CALL_S * 1000),
                message_timeout_ms=int(DELIVERY_S * 1000),
                linger_ms=1,
                partitioner="murmur2_random",  # as Java producers place keys
                retry_backoff_ms=5,
                topic_metadata_propagation_max_ms=1_000,
                allow_auto_create_topics=False,
            )
        )

    def open(self) -> None:
        """Ends what a former life of this core has left open. Raises KafkaException."""
        self._producer.init_transactions(CALL_S)

    def poll(self) -> None:
        """The driver's log lines wait in memory until somebody polls."""
        self._producer.poll(0)

    def close(self) -> None:
        """What is left in the producer's queue belongs to a transaction that will never be committed."""
        self._producer.purge()
        self._producer.flush(1.0)

    def write(
        self, outputs: list[Output], states: Sequence[StateRecord], offsets: list[TopicPartition], group: Callable[[], Any]
    ) -> list[Output]:
        """All of it in one transaction, with positions in the name of the group's member (`group` gives its metadata). Outputs that cannot
        be written are dropped; returns those that were.

        Raises Blocked, Refused, and KafkaException when it cannot be told what became of it, or it failed repeatedly: begin again from
        what is committed.
        """
        self.committing = False
        alone: set[int] = set()
        outputs, invalid = self._encoded(outputs)
        tries = MAX_REDO
        while tries:
            outputs, alone = self._writable(outputs, alone)
            refused: dict[int, KafkaError] = {}
            try:
                self._transact(outputs, alone, refused, states, offsets, group)
            except KafkaException as failed:
                error = failed.args[0]
                if error.code() in NOT_OURS:
                    raise self._refused(error) from failed
                if error.fatal() or not (refused or error.txn_requires_abort()):
                    raise
                why = next(iter(refused.values()), error)
                self._say(f"transaction aborted: {why.name()}")
                alone, learnt = self._learn(outputs, refused)
                tries -= not learnt
                if not learnt:
                    self._targets.forget({output.topic for output in outputs})
                self._replace_producer()
            else:
                for output in invalid:
                    self._drop(output, INVALID, "")
                return outputs
        raise again("a transaction failed repeatedly")

    def _transact(
        self,
        outputs: list[Output],
        alone: set[int],
        refused: dict[int, KafkaError],
        states: Sequence[StateRecord],
        offsets: list[TopicPartition],
        group: Callable[[], Any],
    ) -> None:
        """Raises KafkaException; `refused` then has the outputs that the broker did not take, by index."""
        self._producer.begin_transaction()
        self.committing = self._taken = False
        for index, output in enumerate(outputs):
            self._produce(index, output, refused)
            if index in alone:
                self._producer.flush(CALL_S)
                if refused:
                    raise KafkaException(next(iter(refused.values())))
        for record in states:
            self._send(self._state_topic, record.value, record.key, partition=record.partition, on_delivery=self._delivered)
        if self._checked_last and self._producer.flush(CALL_S):
            raise again("records are not taken")
        if refused:
            raise KafkaException(next(iter(refused.values())))
        if self._config.capabilities.fencing:
            _insist(lambda: self._producer.send_offsets_to_transaction(offsets, group(), CALL_S))
        self.committing = True
        _insist(lambda: self._producer.commit_transaction(CALL_S))
        self.committing = False

    def _refused(self, error: KafkaError) -> Refused:
        final = error.fatal()
        if not final:
            try:
                self._replace_producer()
            except KafkaException:
                final = True
        return Refused(error, final=final)

    def _replace_producer(self) -> None:
        """After an abort. The same producer could go on by its documentation, but after a batch that was too large its next transaction
        fails with OUT_OF_ORDER_SEQUENCE_NUMBER, and after a refusal it sometimes does (librdkafka 2.16, Kafka 4.1)."""
        self.close()
        self._producer = self._new_producer()
        self._producer.init_transactions(CALL_S)

    def _encoded(self, outputs: list[Output]) -> tuple[list[Output], list[Output]]:
        """By their schemas; dead letters are among them. And those that are to be dropped, as they are not valid. Raises Blocked."""
        if not any(output.schema for output in outputs):
            return outputs, []
        made: list[Output] = []
        invalid: list[Output] = []
        rules: dict[str, Fault] = {}
        dead: list[Output] = []
        for output in outputs:
            if output.schema is None:
                made.append(output)
                continue
            encoded = self._encode(output)
            if isinstance(encoded, str):
                rules[output.rule] = encoded
            elif encoded is None:
                invalid.append(output)
            else:
                made.append(encoded)
                if encoded.topic == output.schema.dlq_topic:
                    dead.append(encoded)
        faults = self._targets.faults({output.topic for output in dead})
        rules |= {output.rule: faults[output.topic] for output in dead if output.topic in faults}
        if rules:
            raise Blocked({}, rules)
        return made, invalid

    def _writable(self, outputs: list[Output], alone: set[int]) -> tuple[list[Output], set[int]]:
        """Outputs without those that cannot be written, and where those to be sent alone are among them. Raises Blocked."""
        faults = self._targets.faults({output.topic for output in outputs})
        if faults:
            raise Blocked(faults)
        writable: list[Output] = []
        still: set[int] = set()
        for index, output in enumerate(outputs):
            if not self._admit(output):
                self._drop(output, "too_many_topics", "")
            elif self._targets.too_large(output.topic, size_of(output)):
                self._drop(output, "too_large", f" ({output.topic})")
            else:
                if index in alone:
                    still.add(len(writable))
                writable.append(output)
        return writable, still

    def _learn(self, outputs: list[Output], refused: dict[int, KafkaError]) -> tuple[set[int], bool]:
        """From the delivery reports of an aborted transaction, for the next attempt: which outputs to send alone, and whether a
        topic has turned out not to take what it was sent, so that the next attempt is another one.

        A broker that finds a batch too large refuses all of its records. Sent alone, a record shows what its topic takes.
        """
        too_large = {index for index, error in refused.items() if error.code() in TOO_LARGE}
        progress = False
        if len(too_large) == 1:
            (index,) = too_large
            self._targets.refuse_size(outputs[index].topic, size_of(outputs[index]))
            progress = True
        for index, error in refused.items():
            fault = fault_of(error)
            if fault is None and self._taken and error.code() == KafkaError._MSG_TIMED_OUT:
                fault = "unavailable_topic"
            if fault is not None:
                self._targets.mark(outputs[index].topic, fault)
                progress = True
        topics = {outputs[index].topic for index in too_large}
        return {index for index, output in enumerate(outputs) if output.topic in topics}, progress

    def _produce(self, index: int, output: Output, refused: dict[int, KafkaError]) -> None:
        def delivered(error: KafkaError | None, _message: confluent_kafka.Message) -> None:
            self._delivered(error)
            if error is not None:
                refused[index] = error

        try:
            self._send(output.topic, output.value, output.key, headers=output.headers, on_delivery=delivered)
        except KafkaException as failed:
            if failed.args[0].code() in TOO_LARGE:  # for the driver already, which has not been told otherwise
                refused[index] = failed.args[0]
            raise

    def _delivered(self, error: KafkaError | None, _message: object = None) -> None:
        self._taken = self._taken or error is None

    def _send(self, topic: str, value: bytes | None, key: bytes | None, **options: Any) -> None:
        give_up = time.monotonic() + CALL_S
        while True:
            try:
                return self._producer.produce(topic, value, key, **options)
            except BufferError:  # the producer's queue is full
                if time.monotonic() > give_up:
                    raise again("the producer's queue does not drain") from None
                self._producer.poll(0.05)


def _insist(call: Callable[[], Any]) -> None:
    """Once more, if it has only taken too long. A process that was frozen finds its time-out over before it hears that its place is
    somebody else's by now; who calls again is told. Raises KafkaException."""
    try:
        call()
    except KafkaException as failed:
        if not failed.args[0].retriable():
            raise
        call()


def again(reason: str) -> KafkaException:
    """Ends this run; the next one starts from what is committed."""
    return KafkaException(KafkaError(KafkaError._STATE, reason))
