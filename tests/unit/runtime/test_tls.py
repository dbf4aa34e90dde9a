"""Who may speak on the link. Every refusal is seen by the end that refuses, with its own word."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import picows
import pytest

from certs.authority import Issued
from relay.model.limits import ListenerLimits
from relay.runtime import tls
from relay.runtime.head import Request
from relay.runtime.listener import Listener, Refusal, TransportInfo
from tests.support import bad_certs
from tests.unit.runtime.conftest import TRUST_DOMAIN, Pki

Run = Callable[[Any], Any]


class LinkEnd:
    """A core's link listener, as the link uses it: the chain in the handshake, the name before the upgrade is answered."""

    def __init__(self, context: ssl.SSLContext, **limits: Any) -> None:
        self.refused: list[str] = []
        self.peers: list[str] = []
        self.listener = Listener(
            context=context,
            app=None,
            make_listener=self.admit,
            on_refused=self.refused.append,
            limits=ListenerLimits(**limits),
        )

    def admit(self, request: Request, info: TransportInfo) -> picows.WSListener | Refusal:
        try:
            peer = tls.peer_identity(info.ssl_object, role="edge", trust_domain=TRUST_DOMAIN)
        except tls.PeerRefused as refused:
            return Refusal(403, reason=refused.reason)
        self.peers.append(peer.text)
        return picows.WSListener()

    async def __aenter__(self) -> LinkEnd:
        await self.listener.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close(1.0)

    async def settled(self) -> None:
        """Until someone was refused or admitted."""
        for _ in range(200):
            if self.refused or self.peers:
                return
            await asyncio.sleep(0.01)


async def dial(port: int, context: ssl.SSLContext) -> None:
    """A WebSocket as the edge dials it. In TLS 1.3 a refusal may only show at the first read: any error will do."""
    try:
        transport, _ = await picows.ws_connect(picows.WSListener, f"wss://127.0.0.1:{port}/link", ssl_context=context)
    except Exception:
        return
    transport.disconnect()


def core_context(pki: Pki) -> ssl.SSLContext:
    core = pki.files(pki.store.authority.core("core-1"))
    return tls.link_server_context(core.certificate, core.private_key, pki.ca)


def presenting(pki: Pki, issued: Issued | None) -> ssl.SSLContext:
    """A dialler that checks nothing, so that only the core's refusal is seen, and may present what `link_client_context` would not load."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if issued is not None:
        pair = pki.files(issued)
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


def test_an_edge_is_known_by_its_spiffe_id(pki: Pki, run: Run) -> None:
    edge = pki.files(pki.store.authority.edge("eu", "edge-1"))

    async def scenario() -> None:
        async with LinkEnd(core_context(pki)) as core:
            await dial(core.listener.port, tls.link_client_context(edge.certificate, edge.private_key, pki.ca))
            await core.settled()
            assert core.peers == [f"spiffe://{TRUST_DOMAIN}/edge/eu/edge-1"]
            assert core.refused == []

    run(scenario())


REFUSALS: dict[str, tuple[str, Callable[[Pki], Issued | None]]] = {
    "no certificate": ("no_certificate", lambda pki: None),
    "another CA": ("unknown_ca", lambda pki: bad_certs.by_another_ca(TRUST_DOMAIN)),
    "expired": ("expired", lambda pki: bad_certs.expired(pki.store.authority)),
    "not yet valid": ("not_yet_valid", lambda pki: bad_certs.not_yet_valid(pki.store.authority)),
    "a core's certificate": ("wrong_role", lambda pki: pki.store.authority.core("core-1")),
    "an edge's usage with a core's name": ("wrong_role", lambda pki: bad_certs.edge_usage_core_name(pki.store.authority)),
    "two URI SANs": ("two_uri_sans", lambda pki: bad_certs.two_uri_sans(pki.store.authority)),
    "another trust domain": ("wrong_trust_domain", lambda pki: bad_certs.foreign_trust_domain(pki.store.authority)),
    "no SPIFFE id": ("not_spiffe", lambda pki: bad_certs.without_spiffe_id(pki.store.authority)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_core_refuses_and_counts(case: str, pki: Pki, run: Run) -> None:
    reason, make = REFUSALS[case]

    async def scenario() -> None:
        async with LinkEnd(core_context(pki)) as core:
            await dial(core.listener.port, presenting(pki, make(pki)))
            await core.settled()
            assert core.refused == [reason]
            assert core.peers == []

    run(scenario())


def test_a_core_refuses_tls_1_2(pki: Pki, run: Run) -> None:
    context = presenting(pki, pki.store.authority.edge("eu", "edge-1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def scenario() -> None:
        async with LinkEnd(core_context(pki)) as core:
            await dial(core.listener.port, context)
            await core.settled()
            assert core.refused == ["tls_version"]

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"GET / HTTP/1.1\r\n\r\n", "not_tls"), (b"\x00" * 64, "not_tls"), (b"", "closed"), (None, "timeout")]
)
def test_what_is_no_handshake_is_counted_too(sent: bytes | None, reason: str, pki: Pki, run: Run) -> None:
    async def scenario() -> None:
        async with LinkEnd(core_context(pki), handshake_deadline_s=0.2) as core:
            _, writer = await asyncio.open_connection("127.0.0.1", core.listener.port)
            if sent is not None:
                writer.write(sent)
                await writer.drain()
                if not sent:
                    writer.write_eof()
            await core.settled()
            assert core.refused == [reason]
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("wrong_role", lambda authority: authority.edge("eu", "edge-1")),
        ("wrong_role", bad_certs.core_usage_edge_name),
        ("not_spiffe", bad_certs.web_server_as_core),
        ("unknown_ca", lambda authority: bad_certs.core_by_another_ca(TRUST_DOMAIN)),
        ("expired", bad_certs.expired_core),
    ],
)
def test_an_edge_refuses_what_is_no_core(reason: str, make: Callable[[Any], Issued], pki: Pki, run: Run) -> None:
    edge = pki.files(pki.store.authority.edge("eu", "edge-1"))
    false = pki.files(make(pki.store.authority))

    async def scenario() -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(false.certificate, false.private_key)
        listener = await Listener(context=context, app=None, make_listener=lambda request, info: picows.WSListener()).start("127.0.0.1", 0)
        try:
            dialler = tls.link_client_context(edge.certificate, edge.private_key, pki.ca)
            transport, _ = await picows.ws_connect(picows.WSListener, f"wss://127.0.0.1:{listener.port}/link", ssl_context=dialler)
            try:
                tls.peer_identity(transport.underlying_transport.get_extra_info("ssl_object"), role="core", trust_domain=TRUST_DOMAIN)
            finally:
                transport.disconnect()
        except (tls.PeerRefused, OSError) as error:
            return tls.handshake_failure_reason(error)
        finally:
            await listener.close(1.0)
        return "accepted"

    assert run(scenario()) == reason


def test_the_public_side_speaks_tls_1_2_with_forward_secrecy_only(pki: Pki, run: Run) -> None:
    server = pki.files(pki.store.authority.server(["localhost"]))
    context = tls.client_side_context(server.certificate, server.private_key)
    offered = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"}
    assert offered == set(tls.INTERMEDIATE_TLS12.split(":"))

    async def connects(**options: Any) -> str | None:
        listener = await Listener(context=context, app=None, make_listener=lambda request, info: picows.WSListener()).start("127.0.0.1", 0)
        client = ssl.create_default_context(cafile=str(pki.ca))
        for name, value in options.items():
            setattr(client, name, value)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client, server_hostname="localhost")
            version: str = writer.get_extra_info("ssl_object").version()
            writer.close()
        except OSError:
            return None
        else:
            return version
        finally:
            await listener.close(1.0)

    assert run(connects(maximum_version=ssl.TLSVersion.TLSv1_2)) == "TLSv1.2"
    assert run(connects()) == "TLSv1.3"


def test_a_mismatched_pair_is_refused_in_words(pki: Pki) -> None:
    one, other = pki.files(pki.store.authority.core("a")), pki.files(pki.store.authority.core("b"))
    with pytest.raises(tls.TlsError, match=r"n\d+\.key is not the key of .*n\d+\.pem: give the pair that was issued together"):
        tls.link_server_context(one.certificate, other.private_key, pki.ca)


def test_an_expired_or_missing_certificate_is_refused_at_start(pki: Pki, tmp_path: Path) -> None:
    old = pki.files(bad_certs.expired(pki.store.authority))
    with pytest.raises(tls.TlsError, match="expired on"):
        tls.link_client_context(old.certificate, old.private_key, pki.ca)
    with pytest.raises(tls.TlsError, match="cannot be read"):
        tls.check_pair(tmp_path / "none.pem", old.private_key)
    with pytest.raises(tls.TlsError, match="is not a certificate"):
        tls.check_pair(old.private_key, old.private_key)
    with pytest.raises(tls.TlsError, match="is not a private key"):
        tls.check_pair(pki.ca, pki.ca)
    tls.check_pair(old.certificate, old.private_key, now=datetime.now(UTC) - timedelta(days=2))


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("spiffe://t.example/edge/eu/e1", "edge"),
        ("spiffe://t.example/core/c_1", "core"),
        ("spiffe://t.example/core/a/b", None),
        ("spiffe://t.example/edge/e1", None),
        ("spiffe://t.example/edge//e1", None),
        ("spiffe://t.example/edge/eu/e1/", None),
        ("spiffe://t.example/edge/eu/e%31", None),
        ("spiffe://t.example:443/core/c1", None),
        ("spiffe://t.example/core/c1?x", None),
        ("spiffe://T.example/core/c1", None),
        ("https://t.example/core/c1", None),
        ("spiffe:///core/c1", None),
        ("", None),
    ],
)
def test_spiffe_ids_have_two_forms_and_no_others(text: str, role: str | None) -> None:
    found = tls.SpiffeId.parse(text)
    assert (found.role if found else None) == role
    if found:
        assert found.text == text
