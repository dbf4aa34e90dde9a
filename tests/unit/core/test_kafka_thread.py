"""A thread that reads Kafka goes on after whatever the driver raises."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from core.kafka.catch_up import CatchUp
from core.kafka.clusters import ClusterWriter
from core.kafka.consumer import KafkaThread, answer, wrapped
from core.kafka.producer import LogProducer


class Failing(KafkaThread):
    def __init__(self, failure: object) -> None:
        super().__init__("tidegate-failing")
        self.failure = failure
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        if self.runs == 1:
            raise self.failure  # type: ignore[misc]
        self.closing.wait(10)


@pytest.mark.parametrize("failure", [KafkaException(KafkaError(22)), KafkaError(22), ValueError("a defect")], ids=repr)
def test_it_runs_again(failure: object) -> None:
    async def story() -> None:
        thread = Failing(failure)
        thread.start()
        async with asyncio.timeout(5):
            while thread.runs < 2:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.01)
        await thread.close()
        assert thread.failures == 1

    asyncio.run(story())


def bare(run: Any, method: str) -> list[int]:
    """`method` of it raises what is no Exception; the second time it ends the thread. Returns its turns."""
    turns: list[int] = []

    def turn(*_: object) -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise KafkaError(22)  # type: ignore[misc]
        run._closing.set()

    setattr(run, method, turn)
    return turns


def test_what_catches_up_has_its_owner_begin_again() -> None:
    run: Any = object.__new__(CatchUp)
    run._closing, run.failed, run._transactions, run._take_in = threading.Event(), None, None, lambda: None
    run._consumer = SimpleNamespace(close=lambda: None)
    assert bare(run, "_turn") == []
    run._run()
    assert isinstance(run.failed, KafkaException)


def test_what_writes_to_another_cluster_begins_again() -> None:
    run: Any = object.__new__(ClusterWriter)
    run._closing, run._watched, run._consumer = threading.Event(), [], None
    run._drop_producer = run._stop_reading = lambda: None
    run._name, run._account = "c", SimpleNamespace(complain=lambda *_: None)
    turns = bare(run, "_turn")
    run._closing.wait = lambda _: None
    run._run()
    assert turns == [0, 1]


def test_a_producer_that_is_let_go_is_missed_by_nobody() -> None:
    """It holds what nobody asks for any more, of a cluster that is away. The turn ends there; the next one makes another."""
    run: Any = object.__new__(ClusterWriter)
    run._inbox, run._watched, run._abandoned = SimpleQueue(), [], deque([SimpleNamespace(unreported=1, begin_again=lambda: None)])
    run._producer = SimpleNamespace(poll=lambda _: 0, purge=lambda: None, flush=lambda _: 0)
    run._fatal, run._why = False, "unreachable_cluster"
    run._turn()
    assert (run._producer, list(run._abandoned)) == (None, [])


def test_a_refused_login_is_explained_by_the_token_that_could_not_be_had() -> None:
    """The driver says once that it gets none. What it has serves until it runs out; from then on brokers refuse it."""
    run: Any = object.__new__(ClusterWriter)
    run._name, run._account = "c", SimpleNamespace(complain=lambda *_: None)
    run._why = run._token = ""
    run._token_until, run._token_over, run._fatal = 0.0, False, False
    refusal = KafkaError(KafkaError._AUTHENTICATION, "SASL authentication error")
    for _ in range(2):
        run._trouble(KafkaError(KafkaError._AUTHENTICATION, "Failed to acquire SASL OAUTHBEARER token: Failed to connect to 127.0.0.1"))
        assert run._why == "no_token"
        run._fine()
        assert run._why == ""
        run._trouble(refusal)
        assert run._why == "no_token"
        run._fine()  # there are tokens again
        run._trouble(refusal)
        assert run._why == "refused_login"


def test_what_appends_to_the_log_goes_on() -> None:
    class Producer(LogProducer):
        def _finish(self) -> None:
            pass

    run: Any = object.__new__(Producer)
    run._closing, run._trouble, run._limits = threading.Event(), None, SimpleNamespace(publish_timeout_s=10.0)
    turns = bare(run, "_turn")
    run._run()
    assert turns == [0, 1]


@pytest.mark.parametrize("failure", [KafkaException(KafkaError(22)), None], ids=repr)
def test_what_was_asked_of_an_admin_client_fails_with_a_kafka_exception(failure: Any) -> None:
    future: Future[int] = Future()
    if failure is not None:
        future.set_exception(failure)
    with pytest.raises(KafkaException) as raised:
        answer(future, 0.01)
    assert raised.value.args[0].code() == (22 if failure else KafkaError._TIMED_OUT)


def test_nothing_of_a_bare_error_is_left_to_stumble_over() -> None:
    """Whoever writes a traceback of what happened while it was handled fails."""

    def call() -> None:
        raise KafkaError(22)  # type: ignore[misc]

    with pytest.raises(KafkaException) as raised:
        wrapped(call)
    assert raised.value.__context__ is None
    assert raised.value.args[0].code() == 22
