"""What a certificate of each kind is for. A profile says nothing about names (policy) or keys (authority)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID

Kind = Literal["edge", "core", "server"]

DEFAULT_LIFETIME = timedelta(hours=24)
LONGEST_LIFETIME = timedelta(days=30)
"""There is no revocation list on the link: a lost key is worth something until its certificate ends."""
BACKDATED = timedelta(minutes=5)
"""How far certificates begin in the past, for machines whose clocks are behind."""


@dataclass(frozen=True, slots=True)
class Profile:
    kind: Kind
    usage: ObjectIdentifier
    """The one extended key usage: OpenSSL then refuses an edge's certificate as a server's and the reverse, before any name is read."""


EDGE = Profile("edge", ExtendedKeyUsageOID.CLIENT_AUTH)
"""Dials the link. Exactly one URI name, `spiffe://<trust domain>/edge/<site>/<node>`."""
CORE = Profile("core", ExtendedKeyUsageOID.SERVER_AUTH)
"""Answers the link. Exactly one URI name, `spiffe://<trust domain>/core/<node>`."""
SERVER = Profile("server", ExtendedKeyUsageOID.SERVER_AUTH)
"""Answers browsers and SDKs. DNS names and addresses, no SPIFFE id: it opens no link."""

PROFILES: dict[str, Profile] = {profile.kind: profile for profile in (EDGE, CORE, SERVER)}
