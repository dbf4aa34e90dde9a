"""`tidegate certs`: the certificate authority on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from certs.authority import ROOT_LIFETIME, AuthorityError
from certs.policy import PolicyError
from certs.reading import read_pem
from certs.store import Pair, Store, StoreError

certs_app = typer.Typer(
    name="certs",
    help="""Make certificates for edges, cores and listeners.

    A deployment in four lines:

        tidegate certs init --dir pki --trust-domain relay.example.com --server-name '*.relay.example.com'

        tidegate certs issue core --dir pki core-1

        tidegate certs issue edge --dir pki eu-west edge-1

        tidegate certs issue server --dir pki edge-1.relay.example.com
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)
issue_app = typer.Typer(
    name="issue",
    help="""Issue a certificate with a new key (ECDSA P-256), for 24 hours unless told otherwise.

    Writes NAME.pem, and NAME.key which only its owner may read; earlier ones of that name are replaced.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)
certs_app.add_typer(issue_app)

_UNITS = {"m": 60, "h": 3600, "d": 86_400}

Directory = Annotated[Path, typer.Option("--dir", help="The directory of the authority.", show_default=True)]
For = Annotated[str, typer.Option("--for", help="Lifetime: a number and m, h or d, as in 90m, 24h or 7d.", metavar="TIME")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write; the authority's directory unless given.", metavar="DIR")]


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Say what went wrong, and what to do, in one line; exit status 2."""
    try:
        yield
    except (PolicyError, AuthorityError, StoreError) as error:
        typer.echo(f"tidegate certs: {error}", err=True)
        raise typer.Exit(2) from None


def parse_lifetime(text: str) -> timedelta:
    """`90m`, `24h` or `7d`. Raises: PolicyError."""
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if found is None:
        raise PolicyError(f"{text!r} is no lifetime: write a number and m, h or d, as in 24h")
    return timedelta(seconds=int(found.group(1)) * _UNITS[found.group(2)])


@certs_app.command()
def init(
    trust_domain: Annotated[str, typer.Option(help="The name under which edges and cores know each other.", metavar="NAME")],
    directory: Directory = Path("pki"),
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name or address that server certificates may carry, *.example.com too; repeat it.", metavar="NAME"),
    ] = None,
    days: Annotated[int, typer.Option(help="Lifetime of the root.", min=1, max=36_500)] = ROOT_LIFETIME.days,
) -> None:
    """Make an authority: a root certificate, its key, and a policy.

    Example: tidegate certs init --dir pki --trust-domain relay.example.com --server-name '*.relay.example.com'
    """
    with _in_one_line():
        store = Store.create(directory, trust_domain=trust_domain, server_names=server_name or (), lifetime=timedelta(days=days))
    typer.echo(f"{store.ca}  the root certificate: `ca` in edge.toml and core.toml")
    typer.echo(f"{directory / 'ca.key'}  its key: keep it off edges and cores")
    typer.echo(f"{directory / 'policy.toml'}  which names it vouches for")


@issue_app.command("edge")
def issue_edge(
    site: Annotated[str, typer.Argument(help="Where the edge stands, as `site` in edge.toml.")],
    node: Annotated[str, typer.Argument(help="Its name there, as `node` in edge.toml.")],
    directory: Directory = Path("pki"),
    lifetime: For = "24h",
    out: Out = None,
) -> None:
    """For an edge: it dials the link as spiffe://TRUST-DOMAIN/edge/SITE/NODE.

    Example: tidegate certs issue edge --dir pki eu-west edge-1
    """
    with _in_one_line():
        _say(Store.open(directory).edge(site, node, lifetime=parse_lifetime(lifetime), out=out))


@issue_app.command("core")
def issue_core(
    node: Annotated[str, typer.Argument(help="The core's name, as `node` in core.toml.")],
    directory: Directory = Path("pki"),
    lifetime: For = "24h",
    out: Out = None,
) -> None:
    """For a core: it answers the link as spiffe://TRUST-DOMAIN/core/NODE.

    Example: tidegate certs issue core --dir pki core-1
    """
    with _in_one_line():
        _say(Store.open(directory).core(node, lifetime=parse_lifetime(lifetime), out=out))


@issue_app.command("server")
def issue_server(
    names: Annotated[list[str], typer.Argument(help="DNS names and addresses, each allowed by policy.toml.")],
    directory: Directory = Path("pki"),
    lifetime: For = "24h",
    out: Out = None,
) -> None:
    """For a listener that browsers and SDKs reach, by its DNS names and addresses.

    Example: tidegate certs issue server --dir pki --for 7d edge-1.relay.example.com 192.0.2.7
    """
    with _in_one_line():
        _say(Store.open(directory).server(names, lifetime=parse_lifetime(lifetime), out=out))


@certs_app.command()
def show(certificate: Annotated[Path, typer.Argument(help="A certificate in PEM form.", metavar="FILE")]) -> None:
    """Say what a certificate says.

    Example: tidegate certs show pki/edge-eu-west-edge-1.pem
    """
    with _in_one_line():
        try:
            found = read_pem(certificate.read_bytes())
        except OSError as error:
            raise StoreError(f"{certificate} cannot be read: {error.strerror}") from None
        except ValueError:
            raise StoreError(f"{certificate} holds no certificate in PEM form; keys and requests are not shown") from None
    for number, facts in enumerate(found):
        if number:
            typer.echo()
        rows = [
            ("subject", facts.subject),
            ("names", ", ".join(facts.names) or "none"),
            ("purpose", ", ".join(facts.usages) or ("any" if not facts.can_sign else "signs certificates")),
            ("may sign", "yes" if facts.can_sign else "no"),
            ("issuer", facts.issuer),
            ("begins", f"{facts.begins:%Y-%m-%d %H:%M:%S} UTC"),
            ("ends", f"{facts.ends:%Y-%m-%d %H:%M:%S} UTC ({facts.state()})"),
            ("key", facts.key),
            ("sha256", facts.fingerprint),
        ]
        for label, text in rows:
            typer.echo(f"{label:<9} {text}")


def _say(pair: Pair) -> None:
    typer.echo(f"{pair.certificate}  `certificate`")
    typer.echo(f"{pair.private_key}  `private_key`")
