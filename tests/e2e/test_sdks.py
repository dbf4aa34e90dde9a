"""Unmodified client libraries, TLS verified against our own authority, two edges, two cores, real Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support.product import NodeScript, Product

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
COUNT = 1000


@pytest.mark.node
@pytest.mark.parametrize("binary", [False, True], ids=["json", "msgpack"])
def test_npm_client_gets_a_thousand_messages_in_order_none_lost_or_doubled(relay: Product, binary: bool) -> None:
    script = NodeScript("pubsub", relay, channel=f"order:{'msgpack' if binary else 'json'}", count=COUNT, binary=binary)
    try:
        script.wait_for("published", 90)
        deadline = time.monotonic() + 30
        while len(script.every("message")) < COUNT and time.monotonic() < deadline:
            time.sleep(0.1)
        messages = script.every("message")
        assert [m["data"] for m in messages] == list(range(COUNT))
        assert sorted(m["serial"] for m in messages) == [m["serial"] for m in messages]
        assert len(script.every("acked")) == COUNT
        assert {m["connectionId"] for m in messages} == {script.wait_for("ready")["connectionId"]}
    finally:
        script.stop()


def test_pypi_client_gets_a_thousand_messages_in_order_none_lost_or_doubled(relay: Product) -> None:
    # In a process of its own: the library takes its trust from the environment at import
    script = Path(__file__).parent / "python_client.py"
    environment = {**os.environ, "SSL_CERT_FILE": relay.ca, "HOST": f"127.0.0.1:{relay.port}", "TOKEN": relay.token, "COUNT": str(COUNT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == list(range(COUNT))


def test_pypi_client_reads_a_history_page_by_page_while_messages_arrive(relay: Product) -> None:
    script = Path(__file__).parent / "python_history.py"
    environment = {**os.environ, "SSL_CERT_FILE": relay.ca, "HOST": f"127.0.0.1:{relay.port}", "TOKEN": relay.token}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[4, 3], [2, 1], [0], [4, 3]]


def token_of(relay: Product, *, secret: str | None = None, age_s: int = 0, capability: dict[str, list[str]] | None = None) -> str:
    name, _, real = relay.key.partition(":")
    now = int(time.time()) - age_s
    claims = {"iat": now, "exp": now + 60, "x-ably-capability": json.dumps(capability or {"*": ["*"]}), "x-ably-clientId": "bob"}
    return jwt.encode(claims, secret or real, algorithm="HS256", headers={"kid": name})


@pytest.mark.node
@pytest.mark.parametrize("binary", [False, True], ids=["json", "msgpack"])
class TestRefusals:
    def first(self, relay: Product, what: str, channel: str, token: str, binary: bool) -> dict[str, Any]:
        script = NodeScript("refused", relay, channel=channel, options={"token": token}, binary=binary)
        try:
            return script.wait_for(what, 20)
        finally:
            script.stop()

    def test_channel_outside_the_capability_is_40160(self, relay: Product, binary: bool) -> None:
        token = token_of(relay, capability={"news:*": ["subscribe"]})
        assert self.first(relay, "channel", "chat:1", token, binary) == {"what": "channel", "code": 40160, "statusCode": 401}
        assert self.first(relay, "attached", "news:1", token, binary)

    def test_expired_token_is_40142(self, relay: Product, binary: bool) -> None:
        assert self._connection_codes(relay, token_of(relay, age_s=3600), binary) & {40142}

    def test_forged_token_is_40144(self, relay: Product, binary: bool) -> None:
        assert self._connection_codes(relay, token_of(relay, secret="x" * 40), binary) & {40144}

    def _connection_codes(self, relay: Product, token: str, binary: bool) -> set[int]:
        """A client that cannot renew reports 40171, with the server's code as the cause or before it."""
        script = NodeScript("refused", relay, channel="any", options={"token": token}, binary=binary)
        try:
            script.wait_for("connection", 20)
            time.sleep(0.5)
            return {code for line in script.every("connection") for code in (line["code"], line.get("cause")) if code}
        finally:
            script.stop()


@pytest.mark.parametrize("code", [40160, 40142, 40144])
def test_pypi_client_is_refused_with_the_same_codes(relay: Product, code: int) -> None:
    token = {
        40160: lambda: token_of(relay, capability={"news:*": ["subscribe"]}),
        40142: lambda: token_of(relay, age_s=3600),
        40144: lambda: token_of(relay, secret="x" * 40),
    }[code]()
    script = Path(__file__).parent / "python_refused.py"
    environment = {**os.environ, "SSL_CERT_FILE": relay.ca, "HOST": f"127.0.0.1:{relay.port}", "TOKEN": token, "CHANNEL": "chat:1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == str(code), done.stderr[-2000:]
