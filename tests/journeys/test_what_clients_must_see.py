"""Clients as the SDKs are, edges and cores as they run, and chance between them; a model says what each client must have seen.

What is promised, whatever dies or expires and whenever:

* a publish is answered once, ACK or NACK, in the order of its connection's msgSerials; refused is only what has to be refused;
* a subscriber gets every acknowledged publish once, in the order of each publisher and channel, under the serial that the ACK told;
* or it is told that it may have missed something: then only what came before it was told is missing;
* a client that is back within two minutes has its connection and its channels back, as if nothing had been.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, AUTH, CONNECTED, DETACHED, DISCONNECTED, MESSAGE, NACK
from tests.journeys.test_resume import key_of
from tests.journeys.world import Client, World

RESUMED, HAS_BACKLOG = 4, 2
CHANNELS = ("c:1", "c:2", "c:3")
"""The first and the last share a partition of the log."""
FORBIDDEN = "elsewhere"
TOKEN_TTL_S = 70
RESUMABLE_S = 115.0
"""Whoever is away for less must be resumed; beyond it a client may be told that it is too late."""


class Publish(NamedTuple):
    publisher: str
    channel: str
    n: int


class Told(NamedTuple):
    """How a publish ended, as its publisher was told."""

    acked: bool
    serial: str = ""


class Sdk:
    """One client, for all its connections."""

    def __init__(self, world: World, name: str, everybody: dict[str, Sdk], *, renews: bool) -> None:
        self.world, self.name, self.everybody, self.renews = world, name, everybody, renews
        self.socket: Client | None = None
        self.connected = False
        self.away_since: float | None = None
        self.apart_since: dict[str, float] = {}
        """Since when it has not been attached, by channel."""
        self.key = self.identity = ""
        self.serial = 0
        self.sent: Counter[str] = Counter()
        """How many publishes, by channel."""
        self.unanswered: dict[int, Publish] = {}
        self.told: dict[Publish, Told] = {}
        self.given_up: set[Publish] = set()
        """Their fate is unknown: the connection that they were sent on is gone."""
        self.position: dict[str, str] = {}
        """What it attaches with."""
        self.read: dict[str, str] = {}
        """Of the last message, by channel."""
        self.remnant: set[str] = set()
        """Channels of which it gets the part that is still there, up to where it was attached, after it was told that some is lost."""
        self.got: dict[Publish, str] = {}
        """What was delivered, with its serial."""
        self.last: dict[tuple[str, str], int] = {}
        """By publisher and channel."""
        self.owed_from: dict[tuple[str, str], int] = {}
        """From which publish on all must come, by publisher and channel; without an entry none."""
        self.lapses = 0

    # --- what it does ------------------------------------------------------------------------------------------------------------------

    def comes(self, edge: int) -> None:
        """A new transport, the old one forgotten (and perhaps still open)."""
        resume = {"resume": self.key} if self.key else {}
        token = self.world.token(client_id=self.name, ttl_s=TOKEN_TTL_S, capability={"c:*": ["*"]})
        params = {"v": "6", "format": "json", "access_token": token, **resume}
        self.socket = Client(self.world, self.world.edges[edge], False, params, run=False)
        self.connected = False
        self._is_apart()

    def drops(self) -> None:
        if self.socket is not None:
            self.socket.leaves()
            self.goes()

    def goes(self) -> None:
        self.socket, self.connected = None, False
        self._is_apart()
        if self.away_since is None:
            self.away_since = self.world.now

    def _is_apart(self) -> None:
        for channel in CHANNELS:
            self.apart_since.setdefault(channel, self.world.now)

    def publishes(self, channel: str) -> None:
        publish = Publish(self.name, channel, self.sent[channel])
        self.sent[channel] += 1
        self.unanswered[self.serial] = publish
        if self.connected:
            self._send(self.serial, publish)
        self.serial += 1

    def _send(self, serial: int, publish: Publish) -> None:
        assert self.socket is not None
        self.socket.posts(
            action=MESSAGE, channel=publish.channel, msgSerial=serial, messages=[{"data": f"{publish.publisher}:{publish.n}"}]
        )

    def _attach(self, channel: str) -> None:
        assert self.socket is not None
        at = {"channelSerial": self.position[channel]} if channel in self.position else {}
        self.socket.posts(action=ATTACH, channel=channel, **at)

    # --- what it is told -----------------------------------------------------------------------------------------------------------------

    def listens(self) -> None:
        """Takes in what has come. A transport that was closed is given up."""
        while self.socket is not None and self.socket.has_more():
            self._takes(self.socket.next())
        if self.socket is not None and self.socket.closed is not None:
            self.goes()

    def _takes(self, frame: dict[str, Any]) -> None:
        match frame["action"]:
            case action if action == CONNECTED:
                self._is_connected(frame)
            case action if action == ATTACHED:
                self._is_attached(frame)
            case action if action == MESSAGE:
                self._receives(frame)
            case action if action == ACK:
                serials = [entry["serials"][0] for entry in frame["res"]]
                assert len(serials) == frame["count"]
                for n, serial in enumerate(serials):
                    self._answered(frame["msgSerial"] + n, Told(acked=True, serial=serial))
            case action if action == NACK:
                for n in range(frame["count"]):
                    publish = self._answered(frame["msgSerial"] + n, Told(acked=False))
                    assert (publish.channel, frame["error"]["code"]) == (FORBIDDEN, 40160), frame
            case action if action == AUTH:
                if self.renews:
                    assert self.socket is not None
                    token = self.world.token(client_id=self.name, ttl_s=TOKEN_TTL_S, capability={"c:*": ["*"]})
                    self.socket.posts(action=AUTH, auth={"accessToken": token})
            case action if action == DISCONNECTED:
                assert frame["error"]["code"] in (40142, 50003, 50320, 80003), frame
                assert frame["error"]["code"] != 40142 or not self.renews, frame
                self.connected = False
            case action if action == DETACHED:
                assert frame["error"]["code"] == 50003, frame
                self._attach(frame["channel"])
            case _:
                raise AssertionError(frame)

    def _is_connected(self, frame: dict[str, Any]) -> None:
        if self.connected:  # a new token was accepted
            assert frame["connectionId"] == self.identity, frame
            return
        if self.identity and frame["connectionId"] != self.identity:
            assert self.away_since is not None
            assert self.world.now - self.away_since > RESUMABLE_S, "the connection was lost too early"
            assert frame["error"]["code"] == 80008, frame
            self.given_up |= set(self.unanswered.values())
            self.unanswered.clear()
            self.serial = 0
        else:
            assert "error" not in frame, frame
        self.identity, self.key, self.connected = frame["connectionId"], key_of(frame), True
        self.away_since = None
        for channel in CHANNELS:
            self._attach(channel)
        for serial, publish in self.unanswered.items():
            self._send(serial, publish)

    def _is_attached(self, frame: dict[str, Any]) -> None:
        channel = frame["channel"]
        resumed = bool(frame["flags"] & RESUMED)
        assert resumed == ("error" not in frame) or channel not in self.position, frame
        if channel in self.position and not resumed:
            away = self.world.now - self.apart_since[channel]
            assert away > RESUMABLE_S, f"continuity was lost after {away} s away: {frame}"
            self.lapses += 1
        assert not resumed or channel in self.position, frame
        if not resumed:
            for other in self.everybody.values():
                self.owed_from[other.name, channel] = other.sent[channel]
        if resumed:
            assert frame["channelSerial"] >= self.position[channel]
        self.apart_since.pop(channel, None)
        self.remnant.discard(channel)
        if not resumed and frame["flags"] & HAS_BACKLOG:
            self.remnant.add(channel)
        self.position[channel] = frame["channelSerial"]

    def _receives(self, frame: dict[str, Any]) -> None:
        channel = frame["channel"]
        at = frame["channelSerial"]
        assert at > self.read.get(channel, ""), "positions only go forward"
        assert at > self.position[channel] or channel in self.remnant
        self.position[channel] = self.read[channel] = at
        (message,) = frame["messages"]
        publisher, _, n = message.get("data", frame.get("data")).partition(":")
        publish = Publish(publisher, channel, int(n))
        assert publish not in self.got, "delivered twice"
        assert self.last.get((publisher, channel), -1) < publish.n, "out of order"
        self.last[publisher, channel] = publish.n
        self.got[publish] = message["serial"]

    def _answered(self, serial: int, told: Told) -> Publish:
        assert serial == next(iter(self.unanswered)), "answers come in the order of the publishes"
        publish = self.unanswered.pop(serial)
        assert publish not in self.told
        self.told[publish] = told
        return publish


def check(everybody: dict[str, Sdk]) -> None:
    """At the end, when all are connected and nothing moves any more."""
    told = {publish: answer for sdk in everybody.values() for publish, answer in sdk.told.items()}
    given_up = {publish for sdk in everybody.values() for publish in sdk.given_up}
    for sdk in everybody.values():
        assert sdk.connected
        assert sdk.unanswered == {}
        assert {publish for publish, answer in sdk.told.items() if not answer.acked} == {p for p in sdk.told if p.channel == FORBIDDEN}
        for publish, serial in sdk.got.items():
            assert publish in given_up or told[publish] == Told(acked=True, serial=serial), (
                "delivered under another serial than acknowledged"
            )
        owed = {
            publish
            for publish, answer in told.items()
            if answer.acked and publish.n >= sdk.owed_from.get((publish.publisher, publish.channel), 1 << 30)
        }
        assert not owed - set(sdk.got), "acknowledged, never delivered, and nobody said so"


WHO = ("ann", "bob", "eve")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish"] * 6
            + ["forbidden", "drop", "drop", "come", "come", "move", "kill edge", "kill core", "kill core", "start core", "start core"]
            + ["wait", "wait", "expire", "stay away"]
        ),
        st.sampled_from(WHO),
        st.integers(0, 2),
        st.integers(0, 60),
    ),
    min_size=8,
    max_size=50,
)


# Without shrinking, which would outlast the time that a test may take. Whoever looks into a failure adds it, and `@reproduce_failure`
@settings(max_examples=100, print_blob=True, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**32), STEPS)
def test_whatever_happens_clients_see_what_they_must(seed: int, steps: list[tuple[str, str, int, int]]) -> None:
    world = World(edges=2, cores=2, seed=seed)
    everybody: dict[str, Sdk] = {}
    for n, name in enumerate(WHO):
        everybody[name] = Sdk(world, name, everybody, renews=n != 1)
        everybody[name].comes(n % 2)
    settle(world, everybody)
    for what, who, which, some in steps:
        sdk = everybody[who]
        alive = [n for n, core in enumerate(world.cores) if core.alive]
        match what:
            case "publish":
                for _ in range(1 + some % 3):
                    sdk.publishes(CHANNELS[which])
            case "forbidden":
                sdk.publishes(FORBIDDEN)
            case "drop":
                sdk.drops()
            case "come" if sdk.socket is None:
                sdk.comes(which % 2)
            case "move":
                sdk.comes(which % 2)
            case "kill edge":
                world.kill_edge(which % 2, run=False)
            case "kill core" if len(alive) == 2:
                world.kill_core(which % 2, run=False)
            case "start core" if len(alive) == 1:
                world.start_core(1 - alive[0], run=False)
            case "wait":
                passes(world, everybody, some / 10)
            case "expire":
                passes(world, everybody, TOKEN_TTL_S - 35 + some / 2)
            case "stay away":
                sdk.drops()
                passes(world, everybody, 90 + some)
            case _:
                pass
        world.run(steps=some)
        for each in everybody.values():
            each.listens()
    for number, core in enumerate(world.cores):
        if not core.alive:
            world.start_core(number)
    for _ in range(8):
        settle(world, everybody)
        world.wait(5)
    settle(world, everybody)
    check(everybody)
    event(f"explicit losses of continuity: {min(3, sum(sdk.lapses for sdk in everybody.values()))}")
    event(f"delivered: {sum(len(sdk.got) for sdk in everybody.values()) // 10 * 10}+")


def passes(world: World, everybody: dict[str, Sdk], seconds: float) -> None:
    """Time; clients answer what they are asked, and those whose connection the server has ended come back."""
    until = world.now + seconds
    while world.now < until:
        world.wait(min(5.0, until - world.now))
        for number, sdk in enumerate(everybody.values()):
            ended = sdk.socket is not None
            sdk.listens()
            if ended and sdk.socket is None:
                sdk.comes(number % 2)


def settle(world: World, everybody: dict[str, Sdk]) -> None:
    """Everybody who is away comes back, and what can happen at once does."""
    for _ in range(3):
        for number, sdk in enumerate(everybody.values()):
            sdk.listens()
            if sdk.socket is None:
                sdk.comes(number % 2)
        world.run()
    for sdk in everybody.values():
        sdk.listens()
