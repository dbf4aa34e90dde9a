#!/usr/bin/env python3
"""From scores to a leaderboard: an ordinary Kafka application that knows nothing of WebSockets.

Reads the enveloped messages that a rule writes to `score-ingestion`, adds them up in SQLite, and writes the top ten to
`leaderboard-update`, from where a mapping brings them to the browsers.

Every score counts once, whatever is killed when: a score and its message id are stored in one SQLite transaction, and the offset is
committed only after the new board is in Kafka. What is read again after a restart is recognised by its id.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

TOP = 10
BATCH = 500
PUBLISH_EVERY_S = 0.25
"""At most so often does a new board go out: people cannot read faster."""
REPEAT_EVERY_S = 3.0
"""An unchanged board goes out so often, for the browsers that came since."""
REMEMBER_IDS_S = 24 * 3600
MOST_POINTS = 1_000


class Score(NamedTuple):
    message_id: str
    player: str
    points: int


def scores_in(value: bytes) -> Iterator[Score]:
    """The scores of one enveloped record. Raises whatever its content leads to when it is not one.

    The player is named by the channel, `score:<player>`, not by the message: the relay checked who may publish there.
    """
    envelope = json.loads(value)
    player = envelope["channel"].removeprefix("score:")
    for message in envelope["messages"]:
        data = message["data"]
        points = (json.loads(data) if isinstance(data, str) else data)["points"]
        if type(points) is not int or not 0 < points <= MOST_POINTS:
            raise ValueError("points are a whole number from 1")
        yield Score(str(message["id"]), player, points)


class Board:
    """The scores, in SQLite."""

    def __init__(self, file: str) -> None:
        self._db = sqlite3.connect(file)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript("""
            CREATE TABLE IF NOT EXISTS player (name TEXT PRIMARY KEY, score INTEGER NOT NULL) WITHOUT ROWID;
            CREATE INDEX IF NOT EXISTS player_by_score ON player (score DESC, name);
            CREATE TABLE IF NOT EXISTS counted (message_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
            CREATE INDEX IF NOT EXISTS counted_by_time ON counted (at);
        """)

    def add(self, scores: list[Score], now: float) -> None:
        """Counts those that were not counted before, all in one transaction. `now` in seconds since 1970."""
        with self._db:
            for score in scores:
                if self._db.execute("INSERT OR IGNORE INTO counted VALUES (?, ?)", (score.message_id, now)).rowcount:
                    self._db.execute(
                        "INSERT INTO player VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET score = score + excluded.score",
                        (score.player, score.points),
                    )
            self._db.execute("DELETE FROM counted WHERE at < ?", (now - REMEMBER_IDS_S,))

    def top(self) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT name, score FROM player ORDER BY score DESC, name LIMIT ?", (TOP,))
        return [{"rank": rank, "player": name, "score": score} for rank, (name, score) in enumerate(rows, 1)]

    def close(self) -> None:
        self._db.close()


class Aggregator:
    def __init__(self, kafka: str, board: Board, source: str, target: str) -> None:
        self._board, self._target = board, target
        connection = {"bootstrap.servers": kafka, "reconnect.backoff.ms": 500, "reconnect.backoff.max.ms": 5_000}
        self._consumer = Consumer({
            **connection,
            "group.id": "leaderboard-aggregator",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "allow.auto.create.topics": True,
            "topic.metadata.refresh.interval.ms": 2_000,
        })  # fmt: skip
        self._producer = Producer({**connection, "enable.idempotence": True})
        self._consumer.subscribe([source])
        self._published: list[dict[str, Any]] = []
        self._published_at = 0.0
        self._uncommitted = False
        self._refused = False

    def turn(self) -> None:
        """Reads what is there, at most PUBLISH_EVERY_S long; then publishes the board and commits."""
        records = self._read_until(time.monotonic() + PUBLISH_EVERY_S)
        if records:
            self._uncommitted = True
            self._board.add([score for record in records for score in self._decode(record)], time.time())
        top, now = self._board.top(), time.monotonic()
        if top and (top != self._published or now - self._published_at > REPEAT_EVERY_S) and self._publish(top):
            self._published, self._published_at = top, now
        if self._uncommitted and top == self._published:
            self._commit()

    def close(self) -> None:
        self._consumer.close()

    def _read_until(self, deadline: float) -> list[Message]:
        records: list[Message] = []
        while (left := deadline - time.monotonic()) > 0 and len(records) < BATCH:
            for record in self._consumer.consume(BATCH - len(records), min(left, 0.05)):
                error = record.error()
                if error is None:
                    records.append(record)
                elif error.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._PARTITION_EOF):
                    print(f"aggregator: {error.str()}", file=sys.stderr)
        return records

    def _decode(self, record: Message) -> list[Score]:
        try:
            return list(scores_in(record.value() or b""))
        except Exception as error:
            # Anybody who may publish on a score channel chooses these bytes: one bad record must not stop the board.
            print(f"aggregator: skipped {record.topic()}/{record.partition()}/{record.offset()}: {type(error).__name__}", file=sys.stderr)
            return []

    def _publish(self, top: list[dict[str, Any]]) -> bool:
        """Whether Kafka has it. If not, the next turn tries again: the scores are safe, their offsets uncommitted."""
        self._refused = False
        board = json.dumps({"at": int(time.time() * 1000), "top": top})
        self._producer.produce(self._target, board, key="leaderboard", on_delivery=self._delivered)
        return self._producer.flush(5) == 0 and not self._refused

    def _commit(self) -> None:
        try:
            self._consumer.commit(asynchronous=False)
            self._uncommitted = False
        except KafkaException as error:
            # Partitions moved, or the broker is away. Read again or not, the ids keep the counts right.
            print(f"aggregator: commit: {error.args[0].str()}", file=sys.stderr)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._refused = True
            print(f"aggregator: {error.str()}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True, help="brokers, host:port[,host:port…]")
    parser.add_argument("--db", required=True, help="SQLite file; made if it is not there")
    parser.add_argument("--source", default="score-ingestion", help="topic that the rule writes")
    parser.add_argument("--target", default="leaderboard-update", help="topic that the mapping reads")
    options = parser.parse_args()

    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    parent = os.getppid()
    board = Board(options.db)
    aggregator = Aggregator(options.kafka, board, options.source, options.target)
    while not stopping and os.getppid() == parent:
        aggregator.turn()
    aggregator.close()
    board.close()


if __name__ == "__main__":
    main()
