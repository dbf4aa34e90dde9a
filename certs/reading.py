"""What a certificate says, for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

_USAGE = {ExtendedKeyUsageOID.CLIENT_AUTH: "dials (clientAuth)", ExtendedKeyUsageOID.SERVER_AUTH: "answers (serverAuth)"}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that matters about one certificate here."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    usages: tuple[str, ...]
    can_sign: bool
    begins: datetime
    ends: datetime
    key: str
    fingerprint: str

    def state(self, now: datetime | None = None) -> str:
        now = now or datetime.now(UTC)
        if now < self.begins:
            return "not yet valid"
        if now >= self.ends:
            return "expired"
        hours = int((self.ends - now).total_seconds() // 3600)
        return f"valid for {hours // 24} days" if hours >= 48 else f"valid for {hours} hours"


def read(certificate: x509.Certificate) -> Facts:
    return Facts(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=_names(certificate),
        usages=_usages(certificate),
        can_sign=_can_sign(certificate),
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        key=_key(certificate),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":"),
    )


def read_pem(pem: bytes) -> list[Facts]:
    """The certificates of a PEM file, in order. Raises: ValueError if there is none."""
    return [read(certificate) for certificate in x509.load_pem_x509_certificates(pem)]


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    words: dict[type, str] = {x509.UniformResourceIdentifier: "URI", x509.DNSName: "DNS", x509.IPAddress: "IP"}
    return tuple(f"{words.get(type(name), 'other')} {name.value}" for name in names)


def _usages(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(_USAGE.get(usage, usage.dotted_string) for usage in usages)


def _can_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"ECDSA {key.curve.name}"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size} bits"
        case other:
            return type(other).__name__
