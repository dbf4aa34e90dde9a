"""What the authority issues, and what it does not."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from certs.authority import Authority, AuthorityError, Issued
from certs.policy import Policy, PolicyError
from certs.reading import read
from certs.store import Store, StoreError
from tidegate.certs_cli import certs_app, parse_lifetime

DOMAIN = "relay.example"
NAMES = ("localhost", "127.0.0.1", "::1", "*.relay.example")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(Policy(DOMAIN, NAMES))


def issue(authority: Authority, kind: str) -> Issued:
    match kind:
        case "edge":
            return authority.edge("eu-west", "edge-7")
        case "core":
            return authority.core("core-1")
        case _:
            return authority.server(["localhost", "127.0.0.1", "edge-7.relay.example"])


@pytest.mark.parametrize("kind", ["edge", "core", "server"])
def test_a_leaf_signs_nothing_and_does_one_thing(kind: str, authority: Authority) -> None:
    issued = issue(authority, kind)
    certificate, root = issued.certificate, authority.root.certificate
    certificate.verify_directly_issued_by(root)
    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if kind == "edge" else ExtendedKeyUsageOID.SERVER_AUTH
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert own == x509.SubjectKeyIdentifier.from_public_key(issued.private_key.public_key()).digest
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer == root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert isinstance(issued.private_key.curve, ec.SECP256R1)
    assert certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)
    assert certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(hours=23)


def test_edge_and_core_carry_exactly_one_uri_and_nothing_else(authority: Authority) -> None:
    assert read(issue(authority, "edge").certificate).names == (f"URI spiffe://{DOMAIN}/edge/eu-west/edge-7",)
    assert read(issue(authority, "core").certificate).names == (f"URI spiffe://{DOMAIN}/core/core-1",)


def test_a_server_carries_its_names(authority: Authority) -> None:
    assert read(issue(authority, "server").certificate).names == ("DNS localhost", "IP 127.0.0.1", "DNS edge-7.relay.example")


def test_the_root_signs_leaves_only(authority: Authority) -> None:
    constraints = authority.root.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_a_leaf_does_not_outlive_its_root() -> None:
    authority = Authority.create(Policy(DOMAIN), lifetime=timedelta(hours=3))
    assert authority.core("c").certificate.not_valid_after_utc == authority.root.certificate.not_valid_after_utc
    with pytest.raises(AuthorityError, match="the root expired on"):
        authority.core("c", now=datetime.now(UTC) + timedelta(hours=4))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", ".a", "ä", "a%2f", "a" * 64, "..", "a\n", "a:b", "a@b"])
def test_names_that_would_not_stay_one_segment_are_refused(name: str, authority: Authority) -> None:
    for ask in (lambda: authority.core(name), lambda: authority.edge(name, "e"), lambda: authority.edge("s", name)):
        with pytest.raises(PolicyError):
            ask()


@given(st.text(max_size=12), st.text(max_size=12))
def test_whatever_is_asked_an_edge_is_named_as_an_edge_of_the_trust_domain(site: str, node: str) -> None:
    try:
        name = Policy(DOMAIN).edge(site, node).value
    except PolicyError:
        return
    assert name == f"spiffe://{DOMAIN}/edge/{site}/{node}"
    assert name.count("/") == 5
    assert name.isascii()


@pytest.mark.parametrize("domain", ["", "UPPER.example", "a/b", "a..b", "-a", "a b", "x" * 300, "spiffe://a"])
def test_trust_domains_that_are_none(domain: str) -> None:
    with pytest.raises(PolicyError, match="is not a trust domain"):
        Policy(domain)


@pytest.mark.parametrize(
    "name",
    ["example.com", "relay.example", "a.b.relay.example", "evilrelay.example", "10.0.0.1", "::2", "*.example", "*.localhost", "a b", ""],
)
def test_server_names_that_the_policy_does_not_cover(name: str, authority: Authority) -> None:
    with pytest.raises(PolicyError):
        authority.server([name])


@pytest.mark.parametrize("name", ["localhost", "0:0:0:0:0:0:0:1", "a.relay.example", "*.relay.example"])
def test_server_names_that_it_covers(name: str, authority: Authority) -> None:
    authority.server([name])


def test_a_server_without_a_name_is_refused(authority: Authority) -> None:
    with pytest.raises(PolicyError, match="at least one name"):
        authority.server([])


@pytest.mark.parametrize("hours", [0, -1, 24 * 31])
def test_lifetimes_have_bounds(hours: int, authority: Authority) -> None:
    with pytest.raises(PolicyError, match="lives between"):
        authority.core("c", lifetime=timedelta(hours=hours))


def test_a_store_keeps_its_keys_to_itself(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store.create(tmp_path / "pki", trust_domain=DOMAIN, server_names=NAMES)
        pairs = [store.edge("eu", "e1"), store.core("c1"), store.server(["::1"], out=tmp_path / "out")]
    finally:
        os.umask(before)
    for key in (tmp_path / "pki" / "ca.key", *(pair.private_key for pair in pairs)):
        assert key.stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    again = Store.open(tmp_path / "pki")
    assert again.trust_domain == DOMAIN
    assert again.authority.policy == store.authority.policy
    again.core("c1")


def test_an_authority_is_not_overwritten(tmp_path: Path) -> None:
    Store.create(tmp_path, trust_domain=DOMAIN)
    with pytest.raises(StoreError, match="exists: choose another directory"):
        Store.create(tmp_path, trust_domain=DOMAIN)


def test_a_root_key_open_to_others_is_not_used(tmp_path: Path) -> None:
    Store.create(tmp_path, trust_domain=DOMAIN)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        Store.open(tmp_path)


def test_a_policy_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path, trust_domain=DOMAIN)
    other = Store.create(tmp_path / "other", trust_domain=DOMAIN)
    for text in ("trust_domain = 5", "trust_domain = ", f'trust_domain = "{DOMAIN}"\nmore = 1', 'trust_domain = "a"\nserver_names = [1]'):
        (tmp_path / "policy.toml").write_text(text)
        with pytest.raises(StoreError, match=r"policy\.toml"):
            Store.open(tmp_path)
    (tmp_path / "policy.toml").write_text(f'trust_domain = "{DOMAIN}"')
    store.ca.write_bytes(other.ca.read_bytes())
    with pytest.raises(AuthorityError, match="does not belong"):
        Store.open(tmp_path)


# --- the command line ----------------------------------------------------------------------------------------------------------------


def tidegate_certs(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(certs_app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_init_issue_show(tmp_path: Path) -> None:
    pki = str(tmp_path / "pki")
    assert tidegate_certs("init", "--dir", pki, "--trust-domain", DOMAIN, "--server-name", "localhost")[0] == 0
    assert tidegate_certs("issue", "edge", "--dir", pki, "eu", "e1")[0] == 0
    assert tidegate_certs("issue", "core", "--dir", pki, "c1", "--for", "90m")[0] == 0
    assert tidegate_certs("issue", "server", "--dir", pki, "localhost", "--out", str(tmp_path / "out"))[0] == 0
    status, shown = tidegate_certs("show", f"{pki}/edge-eu-e1.pem")
    assert status == 0
    assert f"URI spiffe://{DOMAIN}/edge/eu/e1" in shown
    assert "dials (clientAuth)" in shown
    assert "valid for 23 hours" in shown
    assert "signs certificates" in tidegate_certs("show", f"{pki}/ca.pem")[1]
    assert (tmp_path / "out" / "server-localhost.key").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("issue", "core", "c1"), "make an authority with `tidegate certs init`"),
        (("init", "--trust-domain", "NOT/ONE"), "is not a trust domain"),
        (("show", "none.pem"), "none.pem cannot be read"),
    ],
)
def test_errors_are_one_line_with_what_to_do(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    where = () if arguments[0] == "show" else ("--dir", str(tmp_path))
    status, output = tidegate_certs(*arguments, *where)
    assert status == 2
    assert says in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("init", "--help"), ("issue", "--help"), ("issue", "edge", "--help"), ("show", "--help")])
def test_help_has_examples(arguments: tuple[str, ...]) -> None:
    _, output = tidegate_certs(*arguments)
    assert "tidegate certs" in output or "Issue a certificate" in output


def test_lifetimes_are_spelled_with_a_unit() -> None:
    assert parse_lifetime("90m") == timedelta(minutes=90)
    assert parse_lifetime("7d") == timedelta(days=7)
    for text in ("7", "d", "1.5h", "-1h", "1w"):
        with pytest.raises(PolicyError, match="no lifetime"):
            parse_lifetime(text)
