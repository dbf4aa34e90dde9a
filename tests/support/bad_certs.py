"""Certificates that the link must refuse, each for one reason. Never issued by `certs`: its policy would not allow them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509

from certs.authority import Authority, Issued
from certs.policy import Policy
from certs.profiles import CORE, EDGE, SERVER, Profile

HOUR = timedelta(hours=1)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def by_another_ca(trust_domain: str, site: str = "eu", node: str = "edge-1") -> Issued:
    """A root of the same name and a good profile: only the key differs."""
    return Authority.create(Policy(trust_domain)).edge(site, node)


def core_by_another_ca(trust_domain: str, node: str = "core-1") -> Issued:
    return Authority.create(Policy(trust_domain)).core(node)


def expired(authority: Authority, site: str = "eu", node: str = "edge-1") -> Issued:
    return authority.edge(site, node, now=datetime.now(UTC) - 48 * HOUR)


def expired_core(authority: Authority, node: str = "core-1") -> Issued:
    return authority.core(node, now=datetime.now(UTC) - 48 * HOUR)


def not_yet_valid(authority: Authority, site: str = "eu", node: str = "edge-1") -> Issued:
    return authority.edge(site, node, now=datetime.now(UTC) + 48 * HOUR)


def with_names(authority: Authority, profile: Profile, *names: x509.GeneralName) -> Issued:
    """The profile of one kind with the names of any."""
    return authority.sign(profile, "bad", names, HOUR, datetime.now(UTC))


def two_uri_sans(authority: Authority) -> Issued:
    domain = authority.policy.trust_domain
    return with_names(authority, EDGE, uri(f"spiffe://{domain}/edge/eu/edge-1"), uri(f"spiffe://{domain}/edge/eu/edge-2"))


def edge_usage_core_name(authority: Authority) -> Issued:
    """May dial (clientAuth), but calls itself a core."""
    return with_names(authority, EDGE, uri(f"spiffe://{authority.policy.trust_domain}/core/core-1"))


def core_usage_edge_name(authority: Authority) -> Issued:
    """May answer (serverAuth), but calls itself an edge."""
    return with_names(authority, CORE, uri(f"spiffe://{authority.policy.trust_domain}/edge/eu/edge-1"))


def foreign_trust_domain(authority: Authority) -> Issued:
    return with_names(authority, EDGE, uri("spiffe://elsewhere.example/edge/eu/edge-1"))


def without_spiffe_id(authority: Authority) -> Issued:
    return with_names(authority, EDGE, x509.DNSName("edge-1.example"))


def web_server_as_core(authority: Authority) -> Issued:
    return with_names(authority, SERVER, x509.DNSName("localhost"))


def core_with_two_uri_sans(authority: Authority) -> Issued:
    domain = authority.policy.trust_domain
    return with_names(authority, CORE, uri(f"spiffe://{domain}/core/core-1"), uri(f"spiffe://{domain}/core/core-2"))
