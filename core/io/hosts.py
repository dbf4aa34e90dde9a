"""Which requests the admin listener takes from a browser: none that another page had it send.

An admin listener stands where its operators' browsers can reach it, so any page that they open can try to use them as a way in. Two tricks:

* *DNS rebinding*: a page at `http://evil.example:9444`, whose name turns into the listener's address once the page has loaded. To the
  browser it is the same origin, so it may read the answers. Its `Host` gives it away: it must be an IP address, `localhost`, the address
  configured, a name of the listener's certificate, or one of `admin.names`; else 421. (Who gives none is no browser.)
* *Cross-site requests*: `Origin` and `Sec-Fetch-Site`, if they are there, must say that the request comes from this very listener, else
  403. A link from elsewhere to the console itself may be followed.

`/healthz` and `/readyz` are left out: probes call them by any name, and they say one word.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from starlette.types import ASGIApp, Receive, Scope, Send

from core.control.io.api import refusal
from relay.model.errors import RelayError

PROBES = ("/healthz", "/readyz")
CONSOLE = ("/console", "/console/")


class Hosts:
    """ASGI middleware. `names`: further hosts, `*.example` for one label of anything."""

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset(map(_plain, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES and (fault := self._fault(scope)) is not None:
            await refusal(fault)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> RelayError | None:
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = headers.get(b"host", [])
        if len(hosts) > 1 or not all(map(self._knows, hosts)):
            return RelayError(40300, "This listener has another name: use its address, or see admin.names in core.toml", 421)
        origins = headers.get(b"origin", [])
        if any(not hosts or not _same(origin, hosts[0], scope["scheme"]) for origin in origins):
            return RelayError(40300, "Requests of pages of other origins are refused", 403)
        site = headers.get(b"sec-fetch-site", ["none"])
        if site not in (["none"], ["same-origin"]) and not _visit(scope, headers):
            return RelayError(40300, "Requests of pages of other sites are refused", 403)
        return None

    def _knows(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        if name == "localhost" or name in self._names or f"*.{name.partition('.')[2]}" in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _name(host: str) -> str | None:
    """Of `name`, `name:port`, `[::1]:port`; None for anything else."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.path or parts.query or parts.fragment or "@" in parts.netloc or parts.netloc != host:
            return None
        _ = parts.port
        return None if parts.hostname is None else _plain(parts.hostname)
    except ValueError:
        return None


def _same(origin: str, host: str, scheme: str) -> bool:
    """Over TLS the origin's scheme must be `https`. Else it may be either: a proxy may have taken the TLS off."""
    given, _, authority = origin.partition("://")
    return authority.lower() == host.lower() and given in (("https",) if scheme == "https" else ("http", "https"))


def _visit(scope: Scope, headers: dict[bytes, list[str]]) -> bool:
    """A person follows a link to the console."""
    return (
        scope["method"] == "GET"
        and scope["path"] in CONSOLE
        and headers.get(b"sec-fetch-mode") == ["navigate"]
        and headers.get(b"sec-fetch-dest") == ["document"]
    )


def names_of(certificate: Path) -> Iterable[str]:
    """The DNS names of a PEM file's first certificate. A browser that was led astray by DNS finds none of its own among them."""
    try:
        found = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        return []
