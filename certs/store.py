"""An authority as files: `ca.pem` (give it to everyone), `ca.key` (0600, give it to nobody), `policy.toml` (edit it)."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from certs.authority import ROOT_LIFETIME, Authority, Issued
from certs.policy import Policy
from certs.profiles import DEFAULT_LIFETIME


class StoreError(Exception):
    """Files that are missing, in the way, or open to others. One line, with what to do."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Where an issued certificate and its key lie."""

    certificate: Path
    private_key: Path


class Store:
    """One directory with one authority."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.directory, self.authority = directory, authority

    @property
    def ca(self) -> Path:
        """The root's certificate: the `ca` of both ends of a link, and what clients of a private deployment trust."""
        return self.directory / "ca.pem"

    @property
    def trust_domain(self) -> str:
        return self.authority.policy.trust_domain

    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        trust_domain: str,
        server_names: Iterable[str] = (),
        lifetime: timedelta = ROOT_LIFETIME,
        now: datetime | None = None,
    ) -> Store:
        """A new root in `directory`, which is made. Raises: StoreError if there is one already; PolicyError."""
        directory = Path(directory)
        policy = Policy(trust_domain, tuple(dict.fromkeys(server_names)))
        for name in ("ca.key", "ca.pem", "policy.toml"):
            if (directory / name).exists():
                raise StoreError(f"{directory / name} exists: choose another directory, or remove the old authority yourself")
        authority = Authority.create(policy, lifetime=lifetime, now=now)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(directory / "ca.key", authority.root.private_key_pem(), 0o600, new=True)
            _write(directory / "ca.pem", authority.root.certificate_pem(), 0o644)
            _write(directory / "policy.toml", _policy_toml(policy).encode(), 0o644)
        except OSError as error:
            raise StoreError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
        return cls(directory, authority)

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """The authority in `directory`. Raises: StoreError, PolicyError, AuthorityError."""
        directory = Path(directory)
        try:
            mode = (directory / "ca.key").stat().st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StoreError(f"{directory / 'ca.key'} is open to others: chmod 600 {directory / 'ca.key'}")
            settings = tomllib.loads((directory / "policy.toml").read_text())
            certificate, key = (directory / "ca.pem").read_bytes(), (directory / "ca.key").read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"{error.filename} is missing: make an authority with `tidegate certs init`") from None
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise StoreError(f"{directory / 'policy.toml'}: {error}") from None
        trust_domain, names = settings.get("trust_domain"), settings.get("server_names", [])
        unknown = settings.keys() - {"trust_domain", "server_names"}
        if unknown or not isinstance(trust_domain, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise StoreError(f"{directory / 'policy.toml'}: expected trust_domain (text) and server_names (list of texts), nothing else")
        return cls(directory, Authority.load(certificate, key, Policy(trust_domain, tuple(names))))

    def edge(self, site: str, node: str, *, lifetime: timedelta = DEFAULT_LIFETIME, out: str | Path | None = None) -> Pair:
        """Issue and write `edge-<site>-<node>.pem` and `.key`, replacing earlier ones. Raises: as `Authority`, and StoreError."""
        return self.write(self.authority.edge(site, node, lifetime=lifetime), f"edge-{site}-{node}", out)

    def core(self, node: str, *, lifetime: timedelta = DEFAULT_LIFETIME, out: str | Path | None = None) -> Pair:
        return self.write(self.authority.core(node, lifetime=lifetime), f"core-{node}", out)

    def server(self, names: Iterable[str], *, lifetime: timedelta = DEFAULT_LIFETIME, out: str | Path | None = None) -> Pair:
        """The files are called after the first name: `server-<name>.pem`."""
        names = list(names)
        issued = self.authority.server(names, lifetime=lifetime)
        return self.write(issued, "server-" + names[0].replace("*", "any").replace(":", "-"), out)

    def write(self, issued: Issued, name: str, out: str | Path | None = None) -> Pair:
        directory = Path(out) if out is not None else self.directory
        pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(pair.private_key, issued.private_key_pem(), 0o600)
            _write(pair.certificate, issued.certificate_pem(), 0o644)
        except OSError as error:
            raise StoreError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
        return pair


def _write(path: Path, content: bytes, mode: int, *, new: bool = False) -> None:
    """Whole or not at all, and never for a moment readable by more than `mode` allows."""
    if new and path.exists():
        raise FileExistsError(17, "exists already", str(path))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _policy_toml(policy: Policy) -> str:
    names = ", ".join(f'"{name}"' for name in policy.server_names)
    return (
        "# What this authority vouches for.\n"
        "# Edges and cores: spiffe://<trust_domain>/edge/<site>/<node> and spiffe://<trust_domain>/core/<node>.\n"
        f'trust_domain = "{policy.trust_domain}"\n\n'
        "# Names and addresses that server certificates may carry; *.example.com stands for one label before the dot.\n"
        f"server_names = [{names}]\n"
    )
