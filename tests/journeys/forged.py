"""An edge with a good certificate and no manners, in either world. It reaches core-1, and shares nothing with the honest edges there."""

from __future__ import annotations

import base64
import contextlib
import itertools
import queue
import re
import threading
import time
import tomllib
import urllib.request
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge.events import LinkFrames, LinkLost
from relay.link.codec import encode
from relay.link.frames import (
    BULK,
    Admit,
    Admitted,
    Append,
    Appended,
    Depart,
    Fetch,
    Frame,
    Lane,
    Open,
    Page,
    Present,
    Record,
    Refused,
    Renew,
    ToCore,
    Welcome,
)
from relay.link.io.dial import Dialer
from relay.model.grants import open_grant, seal_grant
from relay.model.keyring import Keyring
from relay.model.message import Message
from relay.runtime import tls
from tests.journeys import world as fake
from tests.journeys.real import RealWorld
from tests.journeys.world import World

ANSWER_S = 15.0
SILENCE_S = 0.7


class Forged(ABC):
    """Says to a core whatever it is told to. `identity` is what its certificate says, `boot` what it says of itself."""

    def __init__(self, forge: Forge, identity: str, boot: str) -> None:
        self.forge, self.identity, self.boot = forge, identity, boot
        self._numbers = itertools.count(1)

    @abstractmethod
    def sends(self, frame: ToCore) -> None:
        """A frame that has no answer, or whose answer does not matter."""

    @abstractmethod
    def answer(self, req: int) -> Frame:
        """The answer to a request."""

    @abstractmethod
    def learns(self) -> list[Frame]:
        """Everything that came without being the answer to a request, once nothing more comes."""

    def number(self) -> int:
        return next(self._numbers)

    def asks(self, frame: Admit | Renew | Open | Append | Fetch) -> Frame:
        self.sends(frame)
        return self.answer(frame.req)

    def refused(self, frame: Admit | Renew | Open | Append | Fetch) -> int:
        """The code of the refusal."""
        answer = self.asks(frame)
        assert isinstance(answer, Refused), answer
        return answer.error.code

    # --- what an edge asks -----------------------------------------------------------------------------------------------------------

    def admit(self, credential: str, **more: Any) -> Admit:
        return Admit(self.number(), credential, ":" in credential, more.pop("realtime", True), True, 6, **more)

    def admitted(self, credential: str, **more: Any) -> Admitted:
        """A session that a client's own credential has paid for: this much a captured edge can do."""
        answer = self.asks(self.admit(credential, **more))
        assert isinstance(answer, Admitted), answer
        return answer

    def open(self, channel: str, witness: str, app: str = "") -> Open:
        return Open(self.number(), app or self.forge.app, channel, witness)

    def append(self, session: str, channel: str, publish_id: str = "", data: str = "forged", **more: Any) -> Append:
        messages = more.pop("messages", None) or [Message(data=data)]
        req = self.number()
        return Append(req, session, channel, publish_id or f"s:{self.boot}{req}:0", True, messages, **more)

    def renew(self, session: str) -> Renew:
        return Renew(self.number(), session)

    def presents(self, grant: bytes) -> None:
        self.sends(Present(grant))

    def departs(self, session: str) -> None:
        self.sends(Depart(session, closed=True))

    def publishes(self, session: str, channel: str, **more: Any) -> None:
        """It may."""
        assert isinstance(self.asks(self.append(session, channel, **more)), Appended)

    def reworked(self, admitted: Admitted, **changes: Any) -> bytes:
        """A grant that the cluster might have given out: signed by its ring, with other contents."""
        grant = open_grant(self.forge.ring, admitted.grant, edge=self.identity, boot=self.boot, now_ms=self.forge.world.now_ms)
        return seal_grant(self.forge.ring, msgspec.structs.replace(grant, **changes))


class Forge(ABC):
    """Makes forged edges for one world, and reads what its core-1 has counted."""

    world: World | RealWorld
    app: str
    ring: Keyring

    @abstractmethod
    def edge(self, number: int = 0, boot: str = "forged") -> Forged:
        """With the certificate of that honest edge, as if it had been stolen."""

    @abstractmethod
    def counters(self) -> Counter[str]:
        """All that core-1 has counted so far, by reason."""

    @contextlib.contextmanager
    def counts(self, **reasons: int) -> Iterator[None]:
        """Within, the core counts these (`open__capability` for `open.capability`), as often, and nothing else."""
        before = self.counters()
        yield
        expected = Counter({reason.replace("__", "."): count for reason, count in reasons.items()})
        end = time.monotonic() + 5.0
        while not self._are(self.counters() - before, expected) and self.world.real and time.monotonic() < end:
            time.sleep(0.05)
        counted = self.counters() - before
        assert self._are(counted, expected), (counted, expected)

    def _are(self, counted: Counter[str], expected: Counter[str]) -> bool:
        """Of real processes what an earlier test has left behind may come to its end meanwhile: it counts once more, or members leave."""
        if not self.world.real:
            return counted == expected
        refused = {reason for reason in counted if not reason.startswith(("lifecycle.", "presence."))}
        return refused == set(expected) and counted >= expected

    @abstractmethod
    def close(self) -> None:
        """Ends what it has made."""


# --- the fake wire -----------------------------------------------------------------------------------------------------------------------


class WireForge(Forge):
    def __init__(self, world: World) -> None:
        self.world: World = world
        self.app = fake.APP
        self.ring = Keyring([("k1", b"\1" * 32)])

    def edge(self, number: int = 0, boot: str = "forged") -> WireForged:
        return WireForged(self, self.world.edges[number].name, boot)

    def counters(self) -> Counter[str]:
        return Counter(self.world.cores[0].node.counters)

    def close(self) -> None:
        """Nothing outlives the world."""


class WireForged(Forged, fake.Edge):
    """The world delivers to its inbox and never runs its node."""

    forge: WireForge

    def __init__(self, forge: WireForge, name: str, boot: str) -> None:
        fake.Edge.__init__(self, forge.world, name)
        Forged.__init__(self, forge, f"spiffe://test/edge/eu/{name}", boot)
        self._came: list[Frame] = []
        forge.world._connect(self, forge.world.cores[0])
        (self.wire,) = (wire for wire in forge.world.wires.values() if wire.edge is self)
        forge.world.run()

    def sends(self, frame: ToCore) -> None:
        self.sends_bytes(encode([frame]), Lane.BULK if type(frame) in BULK else Lane.LIVE)
        self.world.run()

    def sends_bytes(self, batch: bytes, lane: Lane) -> None:
        self.wire.up[lane].append(batch)

    @property
    def lost(self) -> bool:
        self._take()
        return self.wire.number not in self.world.wires

    def answer(self, req: int) -> Frame:
        for _ in range(10):  # what a core does in its own time, such as asking for the end of its configuration
            self._take()
            found = [frame for frame in self._came if getattr(frame, "req", None) == req]
            if found:
                self._came.remove(found[0])
                return found[0]
            self.world.wait(1.0)
        raise AssertionError(f"no answer to {req}: {self._came}")

    def learns(self) -> list[Frame]:
        self.world.run()
        self._take()
        return [frame for frame in self._came if not isinstance(frame, Refused | Page | Appended)]

    def _take(self) -> None:
        while self.inbox:
            match self.inbox.popleft():
                case LinkFrames(_, frames):
                    self._came += frames
                case LinkLost():
                    self.world.wires.pop(self.wire.number, None)


# --- TLS ----------------------------------------------------------------------------------------------------------------------------------


class TlsForge(Forge):
    def __init__(self, world: RealWorld) -> None:
        self.world: RealWorld = world
        self.state = Path(world.product.found["state"])
        self.settings = tomllib.loads((self.state / "core-1.toml").read_text())
        (self.app,) = (app["id"] for app in self.settings["apps"])
        (key,) = self.settings["keyring"]
        self.ring = Keyring([(key["id"], base64.b64decode(Path(key["secret_file"]).read_bytes()))])
        self._made: list[TlsForged] = []

    def edge(self, number: int = 0, boot: str = "forged") -> TlsForged:
        made = TlsForged(self, f"edge-{number + 1}", boot)
        self._made.append(made)
        return made

    def counters(self) -> Counter[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings['metrics']['port']}/metrics", timeout=ANSWER_S) as page:
            text = page.read().decode()
        return Counter(
            {reason: int(float(n)) for reason, n in re.findall(r'^tidegate_core_events_total\{event="([^"]+)"\} (\S+)', text, re.M)}
        )

    def close(self) -> None:
        for made in self._made:
            made.close()


class TlsForged(Forged):
    """A `Dialer`, as in an edge."""

    forge: TlsForge

    def __init__(self, forge: TlsForge, name: str, boot: str) -> None:
        settings = tomllib.loads((forge.state / f"{name}.toml").read_text())
        link = settings["link"]
        super().__init__(forge, f"spiffe://{link['trust_domain']}/edge/{settings['site']}/{name}", boot)
        self._came: queue.Queue[Frame] = queue.Queue()
        self._unasked: list[Frame] = []
        self._answers: dict[int, Frame] = {}
        self._link = 0
        up = threading.Event()

        def on_up(number: int, _: Welcome) -> None:
            self._link = number
            up.set()

        async def dial() -> Dialer:
            return Dialer(
                cores=[f"127.0.0.1:{forge.settings['link']['port']}"],
                context=tls.link_client_context(link["certificate"], link["private_key"], link["ca"]),
                trust_domain=link["trust_domain"],
                site=settings["site"],
                node=name,
                boot=boot,
                on_up=on_up,
                on_frames=lambda _, frames: [self._came.put(frame) for frame in frames],  # type: ignore[arg-type,return-value]
                on_lost=lambda *_: None,
            ).start()

        self._dialer = forge.world.loop.run(dial(), ANSWER_S)
        assert up.wait(ANSWER_S), self._dialer.refusals

    def sends(self, frame: ToCore) -> None:
        self.forge.world.loop.call(self._dialer.send, self._link, frame)

    def answer(self, req: int) -> Frame:
        end = time.monotonic() + ANSWER_S
        while req not in self._answers:
            self._take(self._came.get(timeout=max(0.0, end - time.monotonic())))
        return self._answers.pop(req)

    def learns(self) -> list[Frame]:
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._came.get(timeout=SILENCE_S))
        return [*self._unasked, *(frame for frame in self._answers.values() if not isinstance(frame, Refused | Page | Appended))]

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Record) or not hasattr(frame, "req"):
            self._unasked.append(frame)
        else:
            self._answers[frame.req] = frame

    def close(self) -> None:
        self.forge.world.loop.run(self._dialer.close(), ANSWER_S)


def forge_of(world: World | RealWorld) -> Forge:
    return TlsForge(world) if isinstance(world, RealWorld) else WireForge(world)
