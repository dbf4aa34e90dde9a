"""The admin listener and browsers: which hosts it answers to, and whose requests."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from core.control.io.console import console_routes
from core.io.hosts import names_of
from core.io.http import admin_app, metrics_app
from relay.runtime.metrics import Metrics


def ask(host: str, path: str = "/v1/status", *, method: str = "GET", scheme: str = "http", **headers: str) -> httpx.Response:
    app = admin_app(lambda: True, lambda: {"payload": "secret"}, console_routes(), names=["admin.internal", "*.cores.internal"])

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"{scheme}://x") as client:
            return await client.request(method, path, headers={"host": host} | {n.replace("_", "-"): v for n, v in headers.items()})

    return asyncio.run(run())


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:9444", "[::1]:9444", "10.0.0.4", "localhost:9444", "LOCALHOST", "admin.internal", "Admin.Internal.:9444"),
        "core-1.cores.internal",
    ],
)
def test_an_address_and_a_name_of_its_own_are_answered(host):
    assert ask(host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9444", "127.0.0.1.evil.example", "localhost.evil.example", "admin.internal.evil.example"),
        *("a.b.cores.internal", "cores.internal", "", "admin.internal@evil.example", "evil.example#admin.internal", "2130706433.example"),
        *("admin.internal:x", "[::1", "a b"),
    ],
)
def test_a_name_that_a_page_made_up_is_refused_everywhere_but_at_the_probes(host):
    """DNS rebinding."""
    for path in ("/v1/status", "/console/", "/v1/tail?app=a&channel=c", "/v1/members", "/nowhere"):
        answer = ask(host, path)
        assert (answer.status_code, answer.json()["code"]) == (421, 40300)
        assert "secret" not in answer.text
    assert ask(host, "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("scheme", "origin", "status"),
    [
        ("http", "http://10.0.0.4:9444", 200),
        ("http", "https://10.0.0.4:9444", 200),  # a proxy has taken the TLS off
        ("https", "https://10.0.0.4:9444", 200),
        ("https", "http://10.0.0.4:9444", 403),
        ("http", "http://10.0.0.4:9445", 403),
        ("http", "http://10.0.0.4", 403),
        ("http", "http://10.0.0.4:9444.evil.example", 403),
        ("http", "http://evil.example", 403),
        ("http", "null", 403),
        ("http", "", 403),
        ("http", "file://", 403),
    ],
)
def test_pages_of_other_origins_are_refused(scheme, origin, status):
    for method in ("GET", "HEAD"):
        assert ask("10.0.0.4:9444", method=method, scheme=scheme, origin=origin).status_code == status


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
def test_pages_of_other_sites_are_refused_and_may_link_to_the_console(site):
    assert ask("10.0.0.4", sec_fetch_site=site).status_code == 403
    visit = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask("10.0.0.4", "/console/", **visit).status_code == 200
    assert ask("10.0.0.4", **visit).status_code == 403
    assert ask("10.0.0.4", "/console/", **visit | {"sec_fetch_dest": "iframe"}).status_code == 403
    assert ask("10.0.0.4", "/console/main.js", **visit | {"sec_fetch_dest": "script", "sec_fetch_mode": "no-cors"}).status_code == 403
    for own in ("same-origin", "none"):
        assert ask("10.0.0.4", sec_fetch_site=own).status_code == 200


def test_refusals_have_the_shape_of_the_api():
    answer = ask("evil.example")
    assert set(json.loads(answer.text)) == {"message", "code", "statusCode", "href", "details"}
    assert "admin.names" in answer.json()["message"]


def test_the_names_of_a_certificate_are_its_dns_names(tmp_path: Path):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "common.internal")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(hours=1))
    bare, named = tmp_path / "bare.pem", tmp_path / "named.pem"
    bare.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    names = x509.SubjectAlternativeName([x509.DNSName("core-1.internal"), x509.UniformResourceIdentifier("spiffe://a/core/b")])
    named.write_bytes(builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    assert list(names_of(named)) == ["core-1.internal"]
    assert list(names_of(bare)) == []


def test_the_metrics_port_has_no_console_and_no_control_api():
    app = metrics_app(Metrics(), lambda: True)

    async def run(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
            answer = await client.get(path)
            assert b"<html" not in answer.content
            assert b"openapi" not in answer.content
            return 404 if answer.content.startswith(b"# HELP") else answer.status_code  # it has metrics for whatever path

    for path in ("/console", "/console/", "/console/main.js", "/v1/me", "/v1/openapi.json", "/v1/status"):
        assert asyncio.run(run(path)) == 404
