"""The Control API on a listener with TLS: who comes with which certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.control.io.peers import Peers
from relay.runtime import tls
from relay.runtime.listener import Listener, Refusal
from tests.unit.control.cores import SECRET, OneCore, Topic

MAIL = "alice@acme.example"
EDGE = "spiffe://relay.test/edge/eu/e1"


class Ca:
    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._sign(self.name, self.key, None, ca=True).public_bytes(Encoding.PEM))

    def _sign(self, subject: x509.Name, key: Any, names: list[x509.GeneralName] | None, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=1))
        builder = builder.not_valid_after(now + timedelta(hours=1)).add_extension(x509.BasicConstraints(ca, None), critical=True)
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, *names: x509.GeneralName) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, list(names), ca=False)
        paths = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths


@pytest.fixture
def world(tmp_path):
    """Asks `GET /v1/me` with a certificate and a token, on a listener as a core has it; (status, answer)."""
    ours, others = Ca(tmp_path, "ours"), Ca(tmp_path, "others")
    server = ours.issue("server", x509.DNSName("localhost"))
    core = OneCore(Topic(), certificates={MAIL: frozenset({"reader"}), EDGE: frozenset({"security"})})

    def ask(client: tuple[Path, Path] | None, token: str | None = None, **more: str) -> tuple[int, Any]:
        async def run() -> tuple[int, Any]:
            context = tls.admin_context(*server, ours.path)
            listener = Listener(context=context, app=core.app, make_listener=lambda *_: Refusal(404))
            await listener.start("127.0.0.1", 0)
            try:
                return await asyncio.to_thread(fetch, listener.port)
            finally:
                await listener.close()

        def fetch(port: int) -> tuple[int, Any]:
            context = ssl.create_default_context(cafile=ours.path)
            if client is not None:
                context.load_cert_chain(*client)
            headers = more if token is None else more | {"authorization": f"Bearer {token}"}
            request = urllib.request.Request(f"https://localhost:{port}/v1/me", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as refused:
                return refused.code, json.load(refused)
            except OSError as error:
                return 0, str(error)

        return asyncio.run(run())

    return ask, ours, others


def test_a_known_certificate_takes_the_place_of_a_token(world):
    ask, ours, _ = world
    status, me = ask(ours.issue("alice", x509.RFC822Name(MAIL)))
    assert (status, me["token"]["id"], me["token"]["scopes"]) == (200, MAIL, ["reader"])


def test_a_certificate_is_not_needed_with_a_token_and_does_not_help_a_bad_one(world):
    ask, ours, _ = world
    alice = ours.issue("alice", x509.RFC822Name(MAIL))
    assert ask(None, f"root.{SECRET}")[0] == 200
    assert ask(None)[0] == 401
    assert ask(alice, "root.wrong")[0] == 401
    assert ask(alice, f"root.{SECRET}")[1]["token"]["id"] == "root"


def test_a_page_in_a_browser_cannot_use_its_visitors_certificate(world):
    ask, ours, _ = world
    alice = ours.issue("alice", x509.RFC822Name(MAIL))
    assert ask(alice, Origin="https://evil.example")[0] == 403
    assert ask(alice, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask(alice, **{"Sec-Fetch-Site": "same-origin"})[0] == 401, "not even the console: who uses it types a token in"


def test_other_cores_are_asked_over_tls_if_their_certificate_is_of_the_named_authority(tmp_path):
    ours, others = Ca(tmp_path, "ours"), Ca(tmp_path, "others")
    server = ours.issue("server", x509.DNSName("localhost"))

    async def run() -> list[Any]:
        listener = Listener(
            context=tls.admin_context(*server, None), app=OneCore(Topic(), "core-2").app, make_listener=lambda *_: Refusal(404)
        )
        await listener.start("127.0.0.1", 0)
        found = []
        try:
            for ca in (ours, others):
                peers = Peers(lambda: {"node": "core-1"}, [f"https://localhost:{listener.port}"], ca.path)
                found.append((await peers.cluster())["cores"][1])
                await peers.close()
        finally:
            await listener.close()
        return found

    known, unknown = asyncio.run(run())
    assert known["node"] == "core-2"
    assert "CERTIFICATE_VERIFY_FAILED" in unknown["error"]


def test_other_certificates_are_nobody(world):
    ask, ours, others = world
    assert ask(ours.issue("bob", x509.RFC822Name("bob@acme.example")))[0] == 401
    assert ask(others.issue("mallory", x509.RFC822Name(MAIL)))[0] == 0, "the handshake fails"


def test_the_certificate_of_an_edge_is_nobody_whatever_is_configured(world):
    ask, ours, _ = world
    assert ask(ours.issue("edge", x509.UniformResourceIdentifier(EDGE)))[0] == 401
    assert ask(ours.issue("both", x509.UniformResourceIdentifier(EDGE), x509.RFC822Name(MAIL)))[0] == 401
