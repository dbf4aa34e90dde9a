"""`python -m tests.chaos.rules --messages 100000 --seed 7 [--freeze]`: what SDKs publish and rules write while cores are killed or frozen.

Two cores and an edge as processes, on a real Kafka with ACLs. Two rules write the same to two topics; on one of the topics the right to
write comes and goes, so that its rule is parked and released. A `read_committed` consumer must find each message that was acknowledged in
both topics once, and those of a channel in order. With `--freeze` cores are stopped for a minute in the middle of a transaction, which the
brokers must refuse when they wake up.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from tests.chaos.run import answers, settings_of
from tests.support.product import NodeScript, Product, product
from tidegate.kafka_local import LocalKafka

ACLS = """\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
"""
CORES = 2
CLIENTS, CHANNELS = 20, 5
WINDOW = 50
"""Publishes of one client that wait for their ACK."""
FREEZE_S = 60.0
BETWEEN_S = (8.0, 20.0)
READY_WITHIN_S = 60.0
SETTLE_WITHIN_S = 120.0
PARK_AT = (0.0, 0.45)
"""Shares of the messages at which the one rule may not write any more."""
RELEASE_AT = (0.25, 0.65)
REFUSED = "transaction refused"


@dataclass
class Figures:
    seed: int
    messages: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    in_a_transaction: int = 0
    """Cores that were frozen while a transaction of theirs was open."""
    refused_transactions: list[str] = field(default_factory=list)
    """Lines of the cores' logs."""
    parked_seen: int = 0
    """Times that the status of a core said that the rule is parked."""
    acknowledged: int = 0
    publishes_refused: Counter[str] = field(default_factory=Counter)
    records: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    disordered: dict[str, int] = field(default_factory=dict)
    strange: int = 0
    publish_s: float = 0.0

    def __str__(self) -> str:
        return json.dumps(self.__dict__, indent=1)

    @property
    def right(self) -> bool:
        wrong = any(sum(each.values()) for each in (self.missing, self.doubled, self.disordered))
        return bool(self.records) and not wrong and not self.strange


class Right:
    """To write to a topic: it comes and goes."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": kafka})
        self._topic = topic
        self._add(AclOperation.READ, AclOperation.DESCRIBE)

    def _add(self, *operations: AclOperation) -> None:
        made = [
            AclBinding(ResourceType.TOPIC, self._topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", each, AclPermissionType.ALLOW)
            for each in operations
        ]
        for done in self._admin.create_acls(made).values():
            done.result(10)

    def give(self) -> None:
        self._add(AclOperation.WRITE)

    def take(self) -> None:
        which = AclBindingFilter(
            ResourceType.TOPIC, self._topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", AclOperation.WRITE, AclPermissionType.ANY
        )
        for done in self._admin.delete_acls([which]).values():
            done.result(10)


class Cores:
    """Killed or frozen, one at a time."""

    def __init__(self, relay: Product, chance: random.Random, figures: Figures, say: Callable[[str], None]) -> None:
        self._relay, self._chance, self._figures, self._say = relay, chance, figures, say
        self._admin = AdminClient({"bootstrap.servers": relay.kafka})
        self._down: tuple[int, float, bool] | None = None
        """Which, from when on it may be asked whether it is ready, and whether it has to be woken up then."""
        self.due_at = time.monotonic() + chance.uniform(*BETWEEN_S)

    def turn(self, *, freeze_s: float, may_begin: bool) -> None:
        now = time.monotonic()
        if self._down is not None:
            number, at, frozen = self._down
            if now >= at:
                if frozen:
                    self._relay.kill("core", number, signal.SIGCONT)
                    self._say(f"core {number + 1} goes on")
                    self._down = (number, now, False)
                elif self._status(number).get("ready"):
                    self._say(f"core {number + 1} is ready")
                    self._down = None
                    self.due_at = now + self._chance.uniform(*BETWEEN_S)
            return
        if may_begin and now >= self.due_at:
            number = self._chance.randrange(CORES)
            if freeze_s:
                self._freeze(number, freeze_s)
            else:
                self._relay.kill("core", number)
                self._figures.faults["SIGKILL"] += 1
                self._say(f"core {number + 1} is killed")
                self._down = (number, now + 1.0, False)

    def rest(self) -> None:
        until = time.monotonic() + READY_WITHIN_S + FREEZE_S
        while self._down is not None:
            assert time.monotonic() < until, f"not ready again: {self._down}"
            self.turn(freeze_s=0.0, may_begin=False)
            time.sleep(0.2)

    def _freeze(self, number: int, freeze_s: float) -> None:
        """In the middle of a transaction, which shows in the state: records behind its last stable offset."""
        owned = [each["partition"] for each in self._status(number).get("partitions", []) if each["owned"]]
        if not owned:
            return
        for _ in range(60):
            self._relay.kill("core", number, signal.SIGSTOP)
            if self._in_a_transaction(owned):
                self._figures.in_a_transaction += 1
                self._figures.faults["SIGSTOP"] += 1
                self._say(f"core {number + 1} is frozen in a transaction")
                self._down = (number, time.monotonic() + freeze_s, True)
                return
            self._relay.kill("core", number, signal.SIGCONT)
            time.sleep(self._chance.uniform(0.005, 0.08))

    def _in_a_transaction(self, owned: list[int]) -> bool:
        """What it has sent is with the broker after a moment; should that be the end of the transaction, so is that."""
        return all(self._is_open(owned, after) for after in (0.01, 0.3))

    def _is_open(self, owned: list[int], after_s: float) -> bool:
        time.sleep(after_s)
        asked = {TopicPartition("tidegate.state", each): OffsetSpec.latest() for each in owned}  # type: ignore[no-untyped-call]
        ends = []
        for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
            told = self._admin.list_offsets(asked, isolation_level=level, request_timeout=5)
            ends.append({at.partition: future.result(6).offset for at, future in told.items()})
        stable, all_of_it = ends
        return any(stable[each] < all_of_it[each] for each in stable)

    def status_of_all(self) -> list[dict[str, Any]]:
        return [self._status(number) for number in range(CORES) if self._down is None or self._down[0] != number]

    def _status(self, number: int) -> dict[str, Any]:
        admin = settings_of(self._relay, "core", number)["admin"]
        status, body = answers(f"http://127.0.0.1:{admin['port']}/v1/status")
        return dict(json.loads(body)) if status == 200 else {}


def rules(
    messages: int, seed: int, kafka: str, say: Callable[[str], None] = print, *, freeze_s: float = 0.0, rate: float = 500.0
) -> Figures:
    """One run; `kafka` is host:port of a broker with ACLs. Raises AssertionError when things do not come to rest."""
    figures = Figures(seed, messages)
    chance = random.Random(seed)
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {text}")

    prefix = f"flood{secrets.token_hex(3)}"
    always, sometimes = f"{prefix}-always", f"{prefix}-sometimes"
    with ExitStack() as stack:
        options = ["--cores", str(CORES), "--kafka", kafka]
        for topic in (always, sometimes):
            options += ["--rule", f"^{prefix}:={topic}"]
        relay = stack.enter_context(product(*options))
        tell("the product is up")
        right = Right(kafka, sometimes)
        cores = Cores(relay, chance, figures, tell)
        settings = {"messages": messages, "clients": CLIENTS, "channels": CHANNELS, "window": WINDOW, "rate": rate, "prefix": prefix}
        flood = NodeScript("flood", relay, **settings)
        stack.callback(flood.stop)
        changes = sorted([(share, False) for share in PARK_AT[1:]] + [(share, True) for share in RELEASE_AT])
        while not (done := flood.every("done")):
            assert flood.process.poll() is None, "the clients have ended"
            progress = flood.every("progress")
            sent = progress[-1]["acked"] if progress else 0
            if changes and sent >= changes[0][0] * messages:
                _, gives = changes.pop(0)
                right.give() if gives else right.take()
                tell(f"{sent} messages: the rule {'may' if gives else 'must not'} write to {sometimes}")
            cores.turn(freeze_s=freeze_s, may_begin=sent < 0.95 * messages)
            figures.parked_seen += any(each.get("parkedRules") for each in cores.status_of_all())
            time.sleep(0.2)
        figures.publish_s = round(time.monotonic() - began, 1)
        (report,) = done
        tell(f"all is published: {report['acked']} acknowledged")
        for _, gives in changes:
            right.give() if gives else right.take()
        cores.rest()
        figures.acknowledged = report["acked"]
        refused = {channel: {number for number, _ in each} for channel, each in report["failed"].items()}
        for each in report["failed"].values():
            figures.publishes_refused.update(str(code) for _, code in each)
        for topic in (always, sometimes):
            judge(figures, kafka, topic, report["counts"], refused)
            tell(f"{topic}: {figures.records[topic]} records, {figures.missing[topic]} missing, {figures.doubled[topic]} doubled")
        time.sleep(1.0)
        lines = relay.log_path.read_text(errors="replace").splitlines()
        figures.refused_transactions = [line[:300] for line in lines if REFUSED in line]
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def judge(figures: Figures, kafka: str, topic: str, counts: dict[str, int], refused: dict[str, set[int]]) -> None:
    """Read the topic until everything is there that must be, and for some seconds more."""
    settings = {
        "group.id": f"{topic}-reader",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
    }
    consumer = Consumer({"bootstrap.servers": kafka, **settings})
    partitions = len(AdminClient({"bootstrap.servers": kafka}).list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found: dict[str, Counter[int]] = {channel: Counter() for channel in counts}
    last: dict[str, int] = {}
    owed = sum(counts.values()) - sum(map(len, refused.values()))
    records = disordered = 0
    give_up = time.monotonic() + SETTLE_WITHIN_S
    complete_at = 0.0
    while time.monotonic() < give_up and (not complete_at or time.monotonic() < complete_at + 5.0):
        for message in consumer.consume(1_000, 0.2):
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                continue
            records += 1
            envelope = json.loads(message.value() or b"")
            channel, number = envelope["channel"], int(envelope["messages"][0]["data"])
            if channel not in found:
                figures.strange += 1
                continue
            found[channel][number] += 1
            disordered += number <= last.get(channel, -1)
            last[channel] = max(last.get(channel, -1), number)
        if not complete_at and records >= owed:
            complete_at = time.monotonic()
    consumer.close()
    figures.records[topic] = records
    figures.disordered[topic] = disordered
    figures.doubled[topic] = sum(times - 1 for each in found.values() for times in each.values())
    figures.missing[topic] = sum(
        number not in found[channel]
        for channel, count in counts.items()
        for number in range(count)
        if number not in refused.get(channel, ())
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rules", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second")
    parser.add_argument("--freeze", action="store_true", help="cores are stopped instead of killed")
    parser.add_argument("--freeze-s", type=float, default=FREEZE_S, help="for so long, in seconds")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left running
    broker = LocalKafka(extra=ACLS)
    kafka = broker.start()
    try:
        figures = rules(
            options.messages,
            options.seed,
            kafka,
            lambda text: print(text, flush=True),
            freeze_s=options.freeze_s if options.freeze else 0.0,
            rate=options.rate,
        )
    finally:
        broker.stop()
    print(figures)
    woken = not options.freeze or len(figures.refused_transactions) >= figures.in_a_transaction > 0
    return 0 if figures.right and woken else 1


if __name__ == "__main__":
    sys.exit(main())
