"""`tidegate status` and `tidegate tail` against running processes."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.real import RealWorld
from tests.support.product import ROOT, Product, product


@pytest.fixture(scope="module")
def running() -> Iterator[Product]:
    with product("--edges", "2", "--cores", "2") as found:
        yield found


@pytest.fixture
def world(running: Product) -> Iterator[RealWorld]:
    real = RealWorld(running)
    yield real
    real.close()


def tidegate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidegate", *arguments]


def said(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(tidegate(*arguments), check=False, capture_output=True, cwd=ROOT, timeout=60, text=True)


class Tail:
    """`tidegate tail --json` in a process of its own."""

    def __init__(self, running: Product, channel: str, *more: str) -> None:
        command = tidegate("tail", channel, "--core", running.found["admin"], *more)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.decode())

    def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            event: dict[str, Any] = json.loads(self.lines.get(timeout=20))
            if fits(event):
                return event
        raise AssertionError("it did not come")

    def all_of(self, **wanted: Callable[[dict[str, Any]], bool]) -> None:
        """One event of each kind that fits, in any order."""
        while wanted:
            event = self.until(lambda event: event["event"] in wanted)
            if wanted[event["event"]](event):
                del wanted[event["event"]]

    def event(self, kind: str, **members: Any) -> dict[str, Any]:
        return self.until(lambda event: event["event"] == kind and all(event.get(name) == value for name, value in members.items()))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def status_of(running: Product) -> tuple[int, dict[str, Any]]:
    done = said("status", "--state", running.found["state"], "--json")
    return done.returncode, json.loads(done.stdout)


def test_status_puts_together_what_all_cores_say(running: Product, world: RealWorld) -> None:
    client = world.client()
    client.gets(4)
    code, status = status_of(running)
    assert code == 0
    assert [(core["node"], core["ready"]) for core in status["cores"]] == [("core-1", True), ("core-2", True)]
    assert len(status["edges"]) == 2
    for edge in status["edges"]:
        assert (edge["alive"], sorted(edge["cores"])) == (True, ["core-1", "core-2"])
        assert edge["ageMs"] < 10_000
    assert len(status["partitions"]) == 4
    assert all(each["end"] is not None and each["lag"] >= 0 for each in status["partitions"])


def test_status_is_readable_and_says_which_core_is_silent(running: Product) -> None:
    done = said("status", "--state", running.found["state"])
    assert done.returncode == 0, done.stderr
    for text in ("core-1", "core-2", "ready", "spiffe://dev.tidegate/edge/dev/edge-1", "alive"):
        assert text in done.stdout
    done = said("status", "--core", running.found["admin"], "--core", "http://127.0.0.1:1", "--json")
    assert done.returncode == 1
    assert [("error" in core) for core in json.loads(done.stdout)["cores"]] == [False, True]


def test_tail_shows_messages_and_occupancy_of_one_channel_as_they_come(running: Product, world: RealWorld) -> None:
    tail = Tail(running, "ops:room", "--app", "dev", "--json")
    try:
        assert tail.event("watching")["channel"] == "ops:room"
        assert tail.event("occupancy")["metrics"]["connections"] == 0
        client = world.client(edge=1)
        client.gets(4)
        client.sends(action=10, channel="ops:room")
        client.gets(11)
        tail.all_of(
            occupancy=lambda event: event["metrics"]["subscribers"] == 1,
            lifecycle=lambda event: (event["name"], event["number"]) == ("channel.opened", 1),
        )
        assert world.rest("POST", "/channels/ops:elsewhere/messages", {"name": "other", "data": "no"})[0] == 201
        assert world.rest("POST", "/channels/ops:room/messages", [{"name": "a", "data": {"n": 1}}, {"name": "b", "data": "x"}])[0] == 201
        first = tail.event("message")
        assert (first["name"], first["data"], first["encoding"]) == ("a", '{"n":1}', "json")
        second = tail.event("message")
        assert (second["name"], second["data"], second["serial"]) == ("b", "x", first["serial"])
        client.sends(action=14, channel="ops:room", msgSerial=0, presence=[{"action": 2, "clientId": "ann", "data": "hi"}])
        tail.all_of(
            occupancy=lambda event: event["metrics"]["presenceMembers"] == 1,
            presence=lambda event: (event["action"], event["clientId"], event["data"]) == ("enter", "ann", "hi"),
        )
        client.sends(action=7)
        tail.all_of(
            occupancy=lambda event: event["metrics"]["connections"] == event["metrics"]["presenceMembers"] == 0,
            presence=lambda event: event["action"] == "leave",
        )
    finally:
        tail.stop()


def test_a_reader_that_goes_costs_the_core_nothing_more(running: Product) -> None:
    def readers() -> int:
        with urllib.request.urlopen(running.found["admin"] + "/v1/status", timeout=5) as answer:
            return int(json.load(answer)["tails"])

    tails = [Tail(running, f"ops:gone-{n}", "--json") for n in range(3)]
    for tail in tails:
        tail.event("watching")
    assert readers() == 3
    for tail in tails:
        tail.stop()
    end = time.monotonic() + 15
    while readers() and time.monotonic() < end:
        time.sleep(0.2)
    assert readers() == 0


def test_there_is_a_most_of_readers(running: Product) -> None:
    tails = [Tail(running, "ops:many", "--json") for _ in range(3)]
    opened = []
    try:
        for tail in tails:
            tail.event("watching")
        url = running.found["admin"] + "/v1/tail?app=dev&channel=x"
        for _ in range(13):
            opened.append(urllib.request.urlopen(url, timeout=5))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=5)
        assert refused.value.code == 503
    finally:
        for tail in tails:
            tail.stop()
        for each in opened:
            each.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tail", "x", "--core", "http://127.0.0.1:1"], "does not answer"),
        (["tail", "x", "--core", "127.0.0.1:9101"], "http://"),
        (["status", "--state", "/nowhere"], "state directory"),
        (["status", "-c", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str) -> None:
    done = said(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_tail_refuses_what_is_no_channel(running: Product) -> None:
    done = said("tail", ":bad", "--core", running.found["admin"])
    assert done.returncode == 2
    assert "channel name" in done.stderr


def test_tail_ends_when_its_core_stops() -> None:
    with product() as alone:
        tail = Tail(alone, "ops:end", "--json")
        try:
            tail.event("watching")
            began = time.monotonic()
            alone.process.send_signal(signal.SIGTERM)
            assert tail.process.wait(20) == 2
            assert alone.process.wait(30) == 0
            assert time.monotonic() - began < 15
        finally:
            tail.stop()
        assert not Path(alone.found["state"]).exists()
