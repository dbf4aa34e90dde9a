"""`tidegate dev`: the whole product on one machine, as separate processes joined by the real link.

Everything it makes (certificates, keys, configuration files, index) lives in one temporary directory and goes with it. People test their
own applications against it, so a process that dies is started again, as a deployment would do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from certs.authority import Authority
from certs.policy import Policy
from core.kafka import Unreachable
from core.kafka.embedded import EmbeddedBroker
from core.kafka.topics import create_missing
from tidegate.kafka_local import LocalKafka, free_port
from tidegate.tokens import mint
from tidegate.workers import die_with_parent

TRUST_DOMAIN = "dev.tidegate"
SITE = "dev"
LIFETIME = timedelta(days=7)
"""Of certificates: longer than anybody leaves it running, well within what authorities sign."""
APP = "dev"
READY_WITHIN_S = 60.0
RESTART_DELAY_S = 0.5
STOP_WITHIN_S = 10.0
TOKEN_TTL_S = 24 * 3600
EXAMPLE = Path(__file__).parents[1] / "examples" / "leaderboard"
BROWSER_SDK = Path(__file__).parents[1] / ".cache" / "node" / "node_modules" / "ably" / "build" / "ably.min.js"

EMBEDDED_PROMISES = (
    "embedded broker: nothing survives its end, 4 partitions, 5 MB each, no log-append time, no fencing; for trying things out only "
    "(--kafka local or --kafka HOST:PORT for the real one)"
)


class DevError(Exception):
    """What a person can put right: one line, with what to do."""


@dataclass(frozen=True)
class DevOptions:
    host: str = "127.0.0.1"
    port: int = 8443
    edges: int = 1
    cores: int = 1
    kafka: str | None = None
    """None: the embedded broker; `local`: a real one started here; else brokers as `host:port,…`."""
    mappings: Sequence[str] = ()
    """Each `TOPIC=CHANNEL`."""
    rules: Sequence[str] = ()
    """Each `FILTER=TOPIC`."""
    presence_members: int | None = None
    """Members that one channel may have; None: what cores do without a setting."""
    sandbox: bool = False
    demo: bool = False
    as_json: bool = False
    log_level: str = "warning"


class _Broker(Protocol):
    def stop(self) -> None: ...


ACCESS_TOKEN = "access-token"  # noqa: S105
"""File of the state directory with an access token of the Control API that may do everything."""


@dataclass
class _Child:
    name: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Beside this process's own; secrets go here, since arguments are there for every user of the machine to see."""
    process: asyncio.subprocess.Process | None = None


@dataclass
class Dev:
    """Owns every process it starts; `stop` ends them in the order clients would want (demo, edges, cores, broker)."""

    options: DevOptions
    say: Callable[[str], None]
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="tidegate-dev-")))
    children: list[_Child] = field(default_factory=list)
    keepers: list[asyncio.Task[None]] = field(default_factory=list)
    broker: _Broker | None = None
    stopping: bool = False
    _access_secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Of the access token `dev`, with which the Control API is used."""

    async def start(self) -> dict[str, Any]:
        """Brings everything up. Returns what `--json` prints; raises DevError."""
        rules = [_pair(text, "--rule", "FILTER=TOPIC") for text in self.options.rules]
        mappings = [_pair(text, "--mapping", "TOPIC=CHANNEL") for text in self.options.mappings]
        if self.options.demo:
            if not EXAMPLE.is_dir():
                raise DevError("the demo is part of the source checkout, not of the installed package: run without --demo")
            rules.append(("^score:", "score-ingestion"))
            mappings.append(("leaderboard-update", "leaderboard"))
        ports = self._edge_ports()

        brokers = await self._start_broker()
        topics = sorted({topic for _, topic in rules} | {topic for topic, _ in mappings})
        try:
            await asyncio.to_thread(create_missing, brokers, topics)
        except Unreachable:
            raise DevError(f"no broker answers at {brokers}: is it running?") from None

        secret = secrets.token_urlsafe(24)
        key = f"{APP}.key:{secret}"
        token = mint(key, capability='{"*":["*"]}', client_id="*", ttl_s=TOKEN_TTL_S, now_s=int(time.time()))
        self._issue_certificates()
        link_ports, admin_ports, metrics_ports = (_free_ports(n) for n in (self.options.cores, self.options.cores, self.options.cores))
        for n in range(self.options.cores):
            self._write(
                f"core-{n + 1}.toml",
                self._core(n + 1, brokers, secret, rules, mappings, link_ports[n], admin_ports, metrics_ports[n]),
            )
        _write_private(self.directory / ACCESS_TOKEN, f"dev.{self._access_secret}".encode())
        edge_metrics = _free_ports(self.options.edges)
        for n in range(self.options.edges):
            self._write(f"edge-{n + 1}.toml", self._edge(n + 1, ports[n], link_ports, edge_metrics[n]))

        if self.options.demo:
            self._lay_out_page()
        await self._run("core", self.options.cores)
        await self._until_ready([f"http://127.0.0.1:{port}/readyz" for port in metrics_ports])
        await self._run("edge", self.options.edges)
        await self._until_ready([f"https://127.0.0.1:{port}/readyz" for port in ports])

        host = self.options.host if self.options.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
        found = {
            "url": f"wss://{host}:{ports[0]}",
            "rest": f"https://{host}:{ports[0]}",
            "edges": [f"wss://{host}:{port}" for port in ports],
            "admin": f"http://127.0.0.1:{admin_ports[0]}",
            "admins": [f"http://127.0.0.1:{port}" for port in admin_ports],
            "console": f"http://127.0.0.1:{admin_ports[0]}/console/",
            "accessToken": f"dev.{self._access_secret}",
            "ca": str(self.directory / "ca.pem"),
            "key": key,
            "token": token,
            "kafka": brokers,
            "processes": self.pids(),
            "state": str(self.directory),
        }
        if self.options.demo:
            await self._start_demo(found)
        self._note_processes()
        return found

    def pids(self) -> dict[str, list[int]]:
        """Process ids by role, those of processes that were started again included; also in `processes.json` of the state directory."""
        by_role: dict[str, list[int]] = {"edge": [], "core": []}
        for child in self.children:
            role = child.name.partition("-")[0]
            if child.process and role in by_role:
                by_role[role].append(child.process.pid)
        return by_role

    async def stop(self) -> None:
        self.stopping = True
        for prefix in ("demo", "edge", "core"):
            group = [c for c in self.children if c.name.startswith(prefix) and c.process and c.process.returncode is None]
            for child in group:
                assert child.process
                child.process.terminate()
            for child in group:
                assert child.process
                try:
                    await asyncio.wait_for(child.process.wait(), STOP_WITHIN_S)
                except TimeoutError:
                    self.say(f"{child.name} did not stop within {STOP_WITHIN_S:.0f} s: killed")
                    child.process.kill()
        for keeper in self.keepers:
            keeper.cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        if self.broker:
            await asyncio.to_thread(self.broker.stop)
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- parts ---------------------------------------------------------------------------------------------------------------------

    async def _start_broker(self) -> str:
        match self.options.kafka:
            case None:
                self.say(EMBEDDED_PROMISES)
                embedded = EmbeddedBroker()
                self.broker = embedded
                return await asyncio.to_thread(embedded.start)
            case "local":
                self.say("starting a real Apache Kafka (the first time it is fetched, which takes a minute)")
                local = LocalKafka(directory=self.directory / "kafka")
                self.broker = local
                return await asyncio.to_thread(local.start)
            case brokers:
                return brokers

    def _issue_certificates(self) -> None:
        names = sorted({"127.0.0.1", "localhost", "::1", self.options.host} - {"0.0.0.0", "::"})  # noqa: S104
        authority = Authority.create(Policy(TRUST_DOMAIN, tuple(names)))
        (self.directory / "ca.pem").write_bytes(authority.root.certificate_pem())
        issued = {"server": authority.server(names, lifetime=LIFETIME)}
        issued |= {name: authority.core(name, lifetime=LIFETIME) for name in self._names("core", self.options.cores)}
        issued |= {name: authority.edge(SITE, name, lifetime=LIFETIME) for name in self._names("edge", self.options.edges)}
        for name, leaf in issued.items():
            (self.directory / f"{name}.pem").write_bytes(leaf.certificate_pem())
            _write_private(self.directory / f"{name}.key", leaf.private_key_pem())
        _write_private(self.directory / "ring.secret", base64.b64encode(secrets.token_bytes(32)))

    def _names(self, kind: str, count: int) -> list[str]:
        return [f"{kind}-{n + 1}" for n in range(count)]

    def _core(
        self,
        n: int,
        brokers: str,
        secret: str,
        rules: list[tuple[str, str]],
        mappings: list[tuple[str, str]],
        link: int,
        admins: list[int],
        metrics: int,
    ) -> dict[str, Any]:
        return {
            "node": f"core-{n}",
            "dev": True,
            "sandbox": self.options.sandbox,
            "index_dir": str(self.directory / f"index-{n}"),
            "link": {"host": "127.0.0.1", "port": link, **self._identity(f"core-{n}")},
            "admin": {
                "host": "127.0.0.1",
                "port": admins[n - 1],
                "peers": [f"http://127.0.0.1:{port}" for port in admins],
                "tokens": [{"id": "dev", "secret": self._access_secret, "scopes": ["reader", "operator", "security", "secrets"]}],
            },
            "metrics": {"host": "127.0.0.1", "port": metrics},
            "kafka": {"brokers": brokers, "embedded": self.options.kafka is None},
            "keyring": [{"id": "dev1", "secret_file": str(self.directory / "ring.secret")}],
            "apps": [
                {
                    "id": APP,
                    "name": "development",
                    **({} if self.options.presence_members is None else {"presence_members": self.options.presence_members}),
                    "keys": [{"id": "key", "secret": secret, "capability": '{"[*]*":["*"]}'}],
                    "rules": [
                        {
                            "id": f"rule-{i}",
                            "source": {"type": "channel.message", "channel_filter": pattern},
                            "target": {"routing_key": f"{topic}:#{{channelName}}", "enveloped": True, "format": "json"},
                        }
                        for i, (pattern, topic) in enumerate(rules, 1)
                    ],
                    "mappings": [
                        {"id": f"mapping-{i}", "topics": [topic], "channel": channel, "on_failed_record_mapping": "skip"}
                        for i, (topic, channel) in enumerate(mappings, 1)
                    ],
                }
            ],
        }

    def _edge(self, n: int, port: int, link_ports: list[int], metrics: int) -> dict[str, Any]:
        return {
            "site": SITE,
            "node": f"edge-{n}",
            "dev": True,
            "sandbox": self.options.sandbox,
            "basic_auth": "all",
            "demo": str(self.directory / "web") if self.options.demo else "",
            "listen": {
                "host": self.options.host,
                "port": port,
                "certificate": str(self.directory / "server.pem"),
                "private_key": str(self.directory / "server.key"),
            },
            "metrics": {"host": "127.0.0.1", "port": metrics},
            "link": {"cores": [f"127.0.0.1:{p}" for p in link_ports], **self._identity(f"edge-{n}")},
        }

    def _identity(self, name: str) -> dict[str, str]:
        return {
            "trust_domain": TRUST_DOMAIN,
            "certificate": str(self.directory / f"{name}.pem"),
            "private_key": str(self.directory / f"{name}.key"),
            "ca": str(self.directory / "ca.pem"),
        }

    def _write(self, name: str, settings: dict[str, Any]) -> None:
        _write_private(self.directory / name, tomli_w.dumps(settings).encode())

    def _edge_ports(self) -> list[int]:
        if self.options.port == 0:
            return _free_ports(self.options.edges)
        ports = [self.options.port + n for n in range(self.options.edges)]
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.options.host, port))
                except OSError as error:
                    raise DevError(f"port {port} cannot be used ({error.strerror}): pass another with --port, or --port 0") from None
        return ports

    def _lay_out_page(self) -> None:
        """The files that edges serve under /demo/. With the SDK's browser build the page uses it, else a bare WebSocket."""
        web = self.directory / "web"
        shutil.copytree(EXAMPLE / "web", web)
        if BROWSER_SDK.exists():
            shutil.copy(BROWSER_SDK, web / "ably.min.js")

    async def _start_demo(self, found: dict[str, Any]) -> None:
        config = {"url": found["url"], "token": found["token"], "channel": "leaderboard"}
        (self.directory / "web" / "config.json").write_text(json.dumps(config))
        aggregator = [str(EXAMPLE / "aggregator.py"), "--kafka", found["kafka"], "--db", str(self.directory / "scores.db")]
        players = [str(EXAMPLE / "players.py"), "--url", found["url"], "--ca", found["ca"]]
        await self._spawn(_Child("demo-aggregator", [sys.executable, *aggregator]))
        await self._spawn(_Child("demo-players", [sys.executable, *players], {"TIDEGATE_TOKEN": found["token"]}))

    async def _run(self, kind: str, count: int) -> None:
        for name in self._names(kind, count):
            settings = str(self.directory / f"{name}.toml")
            await self._spawn(_Child(name, [sys.executable, "-m", "tidegate", kind, "-c", settings, "--log-level", self.options.log_level]))

    async def _spawn(self, child: _Child) -> None:
        # stdin is a pipe that nobody writes to: a child that reads it sees the end when this process dies, however it dies
        child.process = await asyncio.create_subprocess_exec(
            *child.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr,
            stderr=sys.stderr,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env={**os.environ, **child.environment},
        )
        if child not in self.children:
            self.children.append(child)
            self.keepers.append(asyncio.create_task(self._keep(child)))

    async def _keep(self, child: _Child) -> None:
        while True:
            assert child.process
            code = await child.process.wait()
            if self.stopping:
                return
            self.say(f"{child.name} ended ({_ending(code)}): started again in {RESTART_DELAY_S} s")
            await asyncio.sleep(RESTART_DELAY_S)
            await self._spawn(child)
            self._note_processes()

    def _note_processes(self) -> None:
        new = self.directory / "processes.json.new"
        new.write_text(json.dumps(self.pids()))
        new.replace(self.directory / "processes.json")  # whoever reads it meanwhile finds one or the other, whole

    async def _until_ready(self, urls: list[str]) -> None:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        deadline = time.monotonic() + READY_WITHIN_S
        for url in urls:
            while not await asyncio.to_thread(_answers, url, context):
                if time.monotonic() > deadline:
                    raise DevError(f"{url} was not ready within {READY_WITHIN_S:.0f} s: run again with --log-level info to see why")
                await asyncio.sleep(0.1)


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise DevError(f"{option} takes {form}, not {text!r}")
    return left, right


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
