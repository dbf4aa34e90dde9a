"""Who may have which name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from certs.profiles import BACKDATED, LONGEST_LIFETIME

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_TRUST_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class PolicyError(Exception):
    """A certificate that this authority does not issue. One line: what is wrong, and what would be right."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one authority vouches for."""

    trust_domain: str
    server_names: tuple[str, ...] = ()
    """DNS names and addresses that server certificates may carry. `*.example.com` stands for one label before the dot, and for itself."""

    def __post_init__(self) -> None:
        if len(self.trust_domain) > 255 or not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise PolicyError(f"{self.trust_domain!r} is not a trust domain: lower-case labels, as in relay.example.com")
        for name in self.server_names:
            if _address(name) is None and not _DNS.fullmatch(name):
                raise PolicyError(f"{name!r} is neither a DNS name in lower case nor an IP address")

    def edge(self, site: str, node: str) -> x509.UniformResourceIdentifier:
        return self._spiffe("edge", self._node("site", site), self._node("node", node))

    def core(self, node: str) -> x509.UniformResourceIdentifier:
        return self._spiffe("core", self._node("node", node))

    def server(self, names: Iterable[str]) -> list[x509.GeneralName]:
        """The DNS names and addresses of a server certificate, in their order. Raises: PolicyError."""
        found: list[x509.GeneralName] = []
        for name in dict.fromkeys(names):
            address = _address(name)
            if address is None and not _DNS.fullmatch(name):
                raise PolicyError(f"{name!r} is neither a DNS name in lower case nor an IP address")
            if not any(_covers(allowed, name) for allowed in self.server_names):
                allowed = ", ".join(self.server_names) or "none"
                raise PolicyError(f"{name} is not a name that this authority vouches for ({allowed}): add it to policy.toml")
            found.append(x509.DNSName(name) if address is None else x509.IPAddress(address))
        if not found:
            raise PolicyError("a server certificate needs at least one name: give DNS names or addresses")
        return found

    def lifetime(self, wanted: timedelta) -> timedelta:
        """`wanted`, if certificates may live so long. Raises: PolicyError."""
        if not BACKDATED / 5 <= wanted <= LONGEST_LIFETIME:
            raise PolicyError(f"a certificate lives between one minute and {LONGEST_LIFETIME.days} days, not {wanted}")
        return wanted

    def _spiffe(self, *path: str) -> x509.UniformResourceIdentifier:
        return x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}/{'/'.join(path)}")

    @staticmethod
    def _node(what: str, name: str) -> str:
        if not _NODE.fullmatch(name):
            raise PolicyError(f"{name!r} is no {what}: letters, digits, dots, - and _, at most 63, beginning with a letter or digit")
        return name


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _covers(allowed: str, name: str) -> bool:
    if allowed == name:
        return True
    address = _address(name)
    if address is not None:
        return _address(allowed) == address
    return allowed.startswith("*.") and name.partition(".")[2] == allowed[2:] and not name.startswith("*")
