"""The root key, and signing. Whether a name may be signed is asked of the policy first; this module decides nothing.

ECDSA on P-256 throughout: every TLS stack verifies it fast. Leaves follow RFC 5280 strictly (key identifiers, critical basic constraints
and key usage), so that they pass OpenSSL's X509_STRICT, which the link asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from certs.policy import Policy
from certs.profiles import BACKDATED, CORE, DEFAULT_LIFETIME, EDGE, SERVER, Profile

ROOT_LIFETIME = timedelta(days=3650)


class AuthorityError(Exception):
    """A root that cannot sign. One line."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, which exists nowhere else."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def private_key_pem(self) -> bytes:
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """A root and the policy under which it signs. Time is given: `now` is an aware datetime, the present if left out."""

    def __init__(self, root: Issued, policy: Policy) -> None:
        self.root, self.policy = root, policy

    @classmethod
    def create(cls, policy: Policy, *, lifetime: timedelta = ROOT_LIFETIME, now: datetime | None = None) -> Authority:
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([
            x509.NameAttribute(NameOID.COMMON_NAME, "Tidegate root"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, policy.trust_domain[:64]),
        ])  # fmt: skip
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(Issued(certificate, key), policy)

    @classmethod
    def load(cls, certificate_pem: bytes, private_key_pem: bytes, policy: Policy) -> Authority:
        """Raises: AuthorityError."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(private_key_pem, password=None)
        except (ValueError, TypeError):
            raise AuthorityError("the root's certificate or key is not in PEM form") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityError("the root's key does not belong to its certificate")
        return cls(Issued(certificate, key), policy)

    def edge(self, site: str, node: str, *, lifetime: timedelta = DEFAULT_LIFETIME, now: datetime | None = None) -> Issued:
        """Raises: PolicyError, AuthorityError; so do the others."""
        return self._issue(EDGE, f"edge {site}/{node}", [self.policy.edge(site, node)], lifetime, now)

    def core(self, node: str, *, lifetime: timedelta = DEFAULT_LIFETIME, now: datetime | None = None) -> Issued:
        return self._issue(CORE, f"core {node}", [self.policy.core(node)], lifetime, now)

    def server(self, names: Iterable[str], *, lifetime: timedelta = DEFAULT_LIFETIME, now: datetime | None = None) -> Issued:
        allowed = self.policy.server(names)
        return self._issue(SERVER, str(allowed[0].value), allowed, lifetime, now)

    def _issue(
        self, profile: Profile, common_name: str, names: Sequence[x509.GeneralName], lifetime: timedelta, now: datetime | None
    ) -> Issued:
        return self.sign(profile, common_name, names, self.policy.lifetime(lifetime), now or datetime.now(UTC))

    def sign(self, profile: Profile, common_name: str, names: Sequence[x509.GeneralName], lifetime: timedelta, now: datetime) -> Issued:
        """Sign whatever is asked, with a new key: the policy has been asked before. Raises: AuthorityError once the root has expired."""
        root = self.root.certificate
        if now >= root.not_valid_after_utc:
            raise AuthorityError(f"the root expired on {root.not_valid_after_utc:%Y-%m-%d}: make a new one with `tidegate certs init`")
        key = ec.generate_private_key(ec.SECP256R1())
        ends = min(now + lifetime, root.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
            .issuer_name(root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([profile.usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root.private_key.public_key()), critical=False)
            .sign(self.root.private_key, hashes.SHA256())
        )
        return Issued(certificate, key)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
