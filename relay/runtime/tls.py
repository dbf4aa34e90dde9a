"""TLS: what clients meet, what the link demands, and who is at the other end of it.

The public side follows Mozilla's "intermediate" profile (server side TLS guidelines 5.7): TLS 1.2 with forward-secret AEAD suites, or
TLS 1.3. The link is TLS 1.3 only, with a certificate on both sides; identity is the one SPIFFE id in it, so host names play no part (SPIFFE
X.509-SVID section 5: a validator checks the chain and the URI, not DNS names).

In TLS 1.3 a server learns of a bad client certificate after the client believes the handshake to be over. `listener` reports every failed
handshake with the word that `handshake_failure_reason` gives it.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from relay.runtime.shutdown import CannotStart

Role = Literal["edge", "core"]

INTERMEDIATE_TLS12 = ":".join((
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
))  # fmt: skip
"""Mozilla intermediate without its DHE suites, which would need a parameter file and serve no client of this decade."""

ALPN = ["h2", "http/1.1"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?")


class TlsError(CannotStart):
    """A certificate, key or authority that cannot be used. One line, with the file."""


class PeerRefused(Exception):  # noqa: N818 - a decision
    """The other end of a link is not who it must be. `reason` is one of REASONS, the label of the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


REASONS = {
    "no_certificate": "no certificate was presented",
    "unknown_ca": "the certificate is not signed by the link's authority",
    "expired": "the certificate has expired",
    "not_yet_valid": "the certificate is not valid yet; compare the clocks",
    "wrong_role": "an edge's certificate in place of a core's, or the reverse",
    "wrong_trust_domain": "the SPIFFE id belongs to another trust domain",
    "two_uri_sans": "the certificate carries more than one URI name",
    "not_spiffe": "the certificate carries no SPIFFE id of an edge or a core",
    "bad_certificate": "the certificate cannot be used for another reason",
    "tls_version": "the peer does not speak a TLS version that is served here",
    "no_shared_cipher": "no cipher suite in common",
    "not_tls": "what arrived was not TLS",
    "rejected_by_peer": "the peer ended the handshake: it refused our certificate or parameters",
    "closed": "the peer went away during the handshake",
    "timeout": "the handshake took too long",
    "other": "the handshake failed otherwise",
}
"""Every word by which a handshake or a peer is counted as refused, and what it means."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://<trust domain>/edge/<site>/<node>` or `spiffe://<trust domain>/core/<node>` (site is then empty)."""

    trust_domain: str
    role: Role
    site: str
    node: str

    @property
    def text(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role}/" + (f"{self.site}/{self.node}" if self.site else self.node)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> SpiffeId | None:
        """None for anything but the two exact forms: no escapes, ports, queries or empty segments."""
        scheme, _, rest = text.partition("://")
        domain, *path = rest.split("/")
        if scheme != "spiffe" or not _TRUST_DOMAIN.fullmatch(domain) or not all(_NAME.fullmatch(part) for part in path):
            return None
        match path:
            case ["edge", site, node]:
                return cls(domain, "edge", site, node)
            case ["core", node]:
                return cls(domain, "core", "", node)
        return None


class SslObject(Protocol):
    """What is asked of a connection's TLS object (that of `ssl` or of aiofastnet)."""

    def getpeercert(self, binary_form: bool = ...) -> object: ...


def client_side_context(certificate: str | Path, private_key: str | Path) -> ssl.SSLContext:
    """For the listener that the internet reaches: TLS 1.2 or later, HTTP/2 and HTTP/1.1 by ALPN. Raises: TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(INTERMEDIATE_TLS12)
    # Mozilla intermediate: all suites left are good, so the client may prefer the one that its hardware does fast.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    _present(context, certificate, private_key)
    return context


def admin_context(certificate: str | Path, private_key: str | Path, client_ca: str | Path | None) -> ssl.SSLContext:
    """For a core's admin listener: like that for clients; with `client_ca` whoever presents a certificate must have it from there, and who
    presents none is let in to show a token. Raises: TlsError."""
    context = client_side_context(certificate, private_key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        _trust(context, client_ca)
    return context


def link_server_context(certificate: str | Path, private_key: str | Path, ca: str | Path) -> ssl.SSLContext:
    """For the core's link listener: TLS 1.3, a client certificate of `ca` required. Raises: TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not show its certificate again, and so outlive it. Links are dialled rarely: no tickets.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _link(context, certificate, private_key, ca)
    return context


def link_client_context(certificate: str | Path, private_key: str | Path, ca: str | Path) -> ssl.SSLContext:
    """For an edge that dials: presents its certificate, checks the core's chain against `ca`. Raises: TlsError.

    Host names are not checked: call `peer_identity(..., role="core")` on the connection before the first byte is sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _link(context, certificate, private_key, ca)
    return context


def _link(context: ssl.SSLContext, certificate: str | Path, private_key: str | Path, ca: str | Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    _trust(context, ca)
    _present(context, certificate, private_key)


def _trust(context: ssl.SSLContext, ca: str | Path) -> None:
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise TlsError(f"{ca} is not a certificate in PEM form") from None
    except OSError as error:
        raise TlsError(f"{ca} cannot be read: {error.strerror}") from None


def _present(context: ssl.SSLContext, certificate: str | Path, private_key: str | Path) -> None:
    check_pair(certificate, private_key)
    try:
        context.load_cert_chain(certificate, private_key, password=lambda: b"")
    except ssl.SSLError as error:
        raise TlsError(f"{certificate} with {private_key} cannot be used: {error.reason or error}") from None


def check_pair(certificate: str | Path, private_key: str | Path, now: datetime | None = None) -> x509.Certificate:
    """The leaf in `certificate`, once it is known to be in date and to belong to `private_key` (both PEM files).

    Raises: TlsError, which names the file and what to do.
    """
    try:
        leaf = x509.load_pem_x509_certificates(Path(certificate).read_bytes())[0]
    except OSError as error:
        raise TlsError(f"{certificate} cannot be read: {error.strerror}") from None
    except ValueError:
        raise TlsError(f"{certificate} is not a certificate in PEM form") from None
    try:
        key = load_pem_private_key(Path(private_key).read_bytes(), password=None)
    except OSError as error:
        raise TlsError(f"{private_key} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise TlsError(f"{private_key} is not a private key in PEM form without a password") from None
    public = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*public) != key.public_key().public_bytes(*public):
        raise TlsError(f"{private_key} is not the key of {certificate}: give the pair that was issued together")
    if (now or datetime.now(UTC)) >= leaf.not_valid_after_utc:
        raise TlsError(f"{certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: issue a new one")
    return leaf


def spiffe_id(der: bytes) -> SpiffeId:
    """The one SPIFFE id of a certificate. Raises: PeerRefused. Source: SPIFFE X.509-SVID section 2 (exactly one URI SAN)."""
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        uris = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        raise PeerRefused("not_spiffe") from None
    if len(uris) > 1:
        raise PeerRefused("two_uri_sans")
    found = SpiffeId.parse(uris[0]) if uris else None
    if found is None:
        raise PeerRefused("not_spiffe")
    return found


def peer_identity(ssl_object: SslObject | None, *, role: Role, trust_domain: str) -> SpiffeId:
    """Who is at the other end of an established link. Raises: PeerRefused unless it is a `role` of `trust_domain`."""
    der = ssl_object.getpeercert(True) if ssl_object is not None else None
    if not isinstance(der, bytes):
        raise PeerRefused("no_certificate")
    peer = spiffe_id(der)
    if peer.trust_domain != trust_domain:
        raise PeerRefused("wrong_trust_domain")
    if peer.role != role:
        raise PeerRefused("wrong_role")
    return peer


_VERIFY = {9: "not_yet_valid", 10: "expired", 26: "wrong_role"} | dict.fromkeys((2, 7, 18, 19, 20, 21, 24, 30, 31, 37), "unknown_ca")
"""X509_V_ERR_* of OpenSSL. 26 is "unsuitable certificate purpose": an edge's certificate is for clients only, a core's for servers only."""
_SSL = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "no_certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "tls_version",
    "UNSUPPORTED_PROTOCOL": "tls_version",
    "VERSION_TOO_LOW": "tls_version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNEXPECTED_EOF_WHILE_READING": "closed",
}


def handshake_failure_reason(error: BaseException | None) -> str:
    """The word (of REASONS) by which a failed handshake, or the loss of a fresh connection, is counted. Either side of the link."""
    if isinstance(error, PeerRefused):
        return error.reason
    if isinstance(error, ssl.SSLCertVerificationError) or getattr(error, "reason", None) == "CERTIFICATE_VERIFY_FAILED":
        return _VERIFY.get(getattr(error, "verify_code", 0), "bad_certificate")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        return _SSL.get(reason, "rejected_by_peer" if "_ALERT_" in reason else "other")
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return "timeout"
    if error is None or isinstance(error, ConnectionError | EOFError):
        return "closed"
    return "other"
