#!/usr/bin/env python3
"""Simulated players: each publishes its scores on a channel of its own, `score:<player>`.

With the `ably` package of PyPI installed this is an ordinary application of the official SDK, over one realtime connection. Without it,
the same messages go through the REST interface by the standard library, so that the example runs on a machine with nothing but Tidegate.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import importlib.util
import json
import math
import os
import random
import secrets
import signal
import ssl
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

# fmt: off
NAMES = [
    "Ada", "Alan", "Barbara", "Bela", "Chen", "Dana", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "Joan", "Ken", "Leslie", "Margaret",
    "Niklaus", "Olga", "Peter", "Quinn", "Radia", "Shafi", "Tim", "Ursula", "Vint", "Whit", "Xiao", "Yukihiro", "Zoe", "Annie", "Bjarne",
]
# fmt: on

CATCH_UP = 400.0
"""Points behind the average at which a player plays e times as often. It keeps the field together, so that the order keeps changing."""

NEW_CONNECTION_AFTER_S = 1.0


class RefusedError(Exception):
    """The relay wants none of it, now or later: the credentials are wrong or do not suffice."""


class Publisher(Protocol):
    async def publish(self, channel: str, name: str, data: dict[str, Any]) -> None:
        """Returns when the message is acknowledged, that is, when it is in Kafka. Raises RefusedError when no further one will be."""


class SdkPublisher:
    """The official SDK, over one realtime connection."""

    def __init__(self, url: str, ca: str | None, credentials: dict[str, str]) -> None:
        if ca:
            os.environ["SSL_CERT_FILE"] = ca  # the SDK has no option for it; OpenSSL and httpx both read this
        from ably import AblyRealtime  # noqa: PLC0415 (it may not be there)

        # With its port: the realtime part of this SDK knows `tls_port` but does not use it.
        self._ably = AblyRealtime(endpoint=urlsplit(url).netloc, **credentials)
        self._ably.connection.on(self._changed)

    async def publish(self, channel: str, name: str, data: dict[str, Any]) -> None:
        if self._ably.connection.state == "failed":
            raise RefusedError(self._ably.connection.error_reason)
        await self._ably.channels.get(channel).publish(name, data)

    def _changed(self, change: Any) -> None:
        if change.reason:
            print(f"players: {change.current.value}: {change.reason}", file=sys.stderr)


class RestPublisher:
    """The REST interface by the standard library: one kept connection, one request at a time."""

    def __init__(self, url: str, ca: str | None, credentials: dict[str, str]) -> None:
        at = urlsplit(url)
        self._connection = http.client.HTTPSConnection(
            at.hostname or "localhost", at.port or 443, timeout=20, context=ssl.create_default_context(cafile=ca)
        )
        if "token" in credentials:
            authorization = f"Bearer {credentials['token']}"
        else:
            authorization = f"Basic {base64.b64encode(credentials['key'].encode()).decode()}"
        self._headers = {"Authorization": authorization, "Content-Type": "application/json"}
        self._turn = asyncio.Lock()

    async def publish(self, channel: str, name: str, data: dict[str, Any]) -> None:
        # Sent again under the same id after a failure, so that a lost answer cannot count a score twice.
        message = {"id": secrets.token_urlsafe(9), "name": name, "data": data}
        async with self._turn:
            for _ in range(2):
                try:
                    return await asyncio.to_thread(self._post, f"/channels/{quote(channel, safe='')}/messages", json.dumps(message))
                except (OSError, http.client.HTTPException) as error:
                    self._connection.close()
                    failed = error
                    await asyncio.sleep(NEW_CONNECTION_AFTER_S)
            raise failed

    def _post(self, path: str, body: str) -> None:
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 500:
            raise OSError(f"{answer.status} {answer.reason}")
        if answer.status != 201:
            raise RefusedError(content.decode(errors="replace"))


class Season:
    """The running totals, as far as this process knows them; they only decide who plays next."""

    def __init__(self, players: list[str], rate: float) -> None:
        self._totals = dict.fromkeys(players, 0)
        self._mean_wait_s = len(players) / rate

    def wait_s(self, player: str) -> float:
        behind = sum(self._totals.values()) / len(self._totals) - self._totals[player]
        return random.expovariate(1 / self._mean_wait_s) * math.exp(-behind / CATCH_UP)

    def score(self, player: str) -> int:
        points = random.randint(1, 20)
        self._totals[player] += points
        return points


async def play(player: str, season: Season, publisher: Publisher) -> None:
    while True:
        await asyncio.sleep(season.wait_s(player))
        try:
            await publisher.publish(f"score:{player}", "score", {"points": season.score(player)})
        except RefusedError:
            raise
        except Exception as error:
            # Whatever the SDK raises while the relay is away: the score is lost to this player, the game goes on.
            print(f"players: {player}: {error}", file=sys.stderr)


async def until_told_to_stop() -> None:
    """SIGTERM, SIGINT, or the process that started this one is gone."""
    stop, parent = asyncio.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while os.getppid() == parent and not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)


async def run(options: argparse.Namespace, make: Callable[[str, str | None, dict[str, str]], Publisher]) -> None:
    credentials = {"token": options.token} if options.token else {"key": options.key}
    publisher = make(options.url, options.ca, credentials)
    names = [NAMES[n % len(NAMES)] + (f"-{n // len(NAMES) + 1}" if n >= len(NAMES) else "") for n in range(options.players)]
    season = Season(names, options.rate)
    games = [asyncio.create_task(play(name, season, publisher)) for name in names]
    ending = asyncio.create_task(until_told_to_stop())
    done, _ = await asyncio.wait({*games, ending}, return_when=asyncio.FIRST_COMPLETED)
    for task in (*games, ending):
        task.cancel()
    await asyncio.gather(*games, ending, return_exceptions=True)
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: players.py --url wss://127.0.0.1:8443 --ca ca.pem --key app.key:secret --players 30 --rate 5"
    )
    parser.add_argument("--url", required=True, help="the relay, wss://host:port")
    parser.add_argument("--ca", help="PEM file of the certificate authority to trust; without it, those of the system")
    parser.add_argument("--token", default=os.environ.get("TIDEGATE_TOKEN"), help="better given as $TIDEGATE_TOKEN")
    parser.add_argument("--key", default=os.environ.get("TIDEGATE_KEY"), help="app.id:secret; better given as $TIDEGATE_KEY")
    parser.add_argument("--players", type=int, default=30)
    parser.add_argument("--rate", type=float, default=8.0, help="scores a second, of all players together")
    parser.add_argument("--sdk", choices=("auto", "ably", "none"), default="auto", help="the ably package, if it is there")
    options = parser.parse_args()
    if not (options.token or options.key):
        parser.error("a --token or a --key is needed")
    sdk = options.sdk == "ably" or (options.sdk == "auto" and importlib.util.find_spec("ably") is not None)
    try:
        asyncio.run(run(options, SdkPublisher if sdk else RestPublisher))
    except RefusedError as error:
        sys.exit(f"players: refused: {error}")


if __name__ == "__main__":
    main()
