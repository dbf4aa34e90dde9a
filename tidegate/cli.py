"""The command line. It joins the parts and explains them; whatever it does is done elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from relay.runtime import logs
from relay.runtime.settings import SettingsError
from relay.runtime.shutdown import CannotStart
from tidegate import control_cli
from tidegate.certs_cli import certs_app
from tidegate.mappings_cli import mappings_app
from tidegate.rules_cli import rules_app

if TYPE_CHECKING:
    from edge.config import EdgeConfig

app = typer.Typer(
    name="tidegate",
    help="A secure edge relay for Apache Kafka. Clients are the official Ably SDKs, unmodified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
config_app = typer.Typer(help="Look at configuration files.", no_args_is_help=True)
app.add_typer(certs_app, name="certs")
app.add_typer(config_app, name="config")
app.add_typer(control_cli.apps_app, name="apps")
app.add_typer(control_cli.keys_app, name="keys")
app.add_typer(control_cli.revocations_app, name="revocations")
app.add_typer(control_cli.namespaces_app, name="namespaces")
app.add_typer(rules_app, name="rules")
app.add_typer(mappings_app, name="mappings")
app.add_typer(control_cli.tokens_app, name="tokens")
app.command("audit")(control_cli.audit)
app.command("can")(control_cli.can)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The TOML file of this process.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="How much to log.")]
LogFormat = Annotated[Literal["text", "json"], typer.Option(help="`text` for people, `json` for machines.")]


def main() -> None:
    app()


def fail(reason: object) -> NoReturn:
    """One line, and exit code 2."""
    typer.echo(f"tidegate: {reason}", err=True)
    raise typer.Exit(2)


@app.command()
def dev(
    host: Annotated[str, typer.Option(help="Address that the edges listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the first edge (the others follow it); 0 takes free ones.")] = 8443,
    edges: Annotated[int, typer.Option(min=1, max=16, help="How many edge processes.")] = 1,
    cores: Annotated[int, typer.Option(min=1, max=16, help="How many core processes.")] = 1,
    kafka: Annotated[str | None, typer.Option(help="Brokers (`host:port,…`), or `local` for a real one started here.")] = None,
    mapping: Annotated[list[str] | None, typer.Option(help="`TOPIC=CHANNEL`: records of the topic reach the channel. Repeatable.")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="`FILTER=TOPIC`: messages on matching channels reach the topic.")] = None,
    presence_members: Annotated[int | None, typer.Option(min=1, help="Members that one channel may have (200 without).")] = None,
    sandbox: Annotated[bool, typer.Option(help="Serve `POST /apps`, so that client test suites provision themselves.")] = False,
    demo: Annotated[bool | None, typer.Option(help="The leaderboard; on in a source checkout, off with --json or --sandbox.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line when everything is ready.")] = False,
    log_level: LogLevel = "warning",
) -> None:
    """Run everything on this machine: a broker, cores, edges, throw-away certificates, a key and a token.

    Examples:

        tidegate dev                                        # nothing else is needed

        tidegate dev --kafka localhost:9092 --mapping orders=orders:#{key} --rule '^chat:=chat'

        tidegate dev --json --edges 2 --cores 2             # for your own test suite
    """
    from tidegate.dev import EXAMPLE, Dev, DevError, DevOptions

    logs.configure("text", log_level)
    options = DevOptions(
        host=host,
        port=port,
        edges=edges,
        cores=cores,
        kafka=kafka,
        mappings=mapping or (),
        rules=rule or (),
        presence_members=presence_members,
        sandbox=sandbox,
        demo=demo if demo is not None else not (as_json or sandbox) and EXAMPLE.is_dir(),
        as_json=as_json,
        log_level=log_level,
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        running = Dev(options, say=lambda text: typer.echo(f"tidegate dev: {text}", err=True))
        try:
            starting = asyncio.create_task(running.start())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                typer.echo(json.dumps(starting.result()) if as_json else _banner(starting.result(), options.demo))
                sys.stdout.flush()
                await stopping
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        finally:
            await running.stop()

    try:
        asyncio.run(run())
    except DevError as error:
        fail(error)


def _banner(found: dict[str, Any], demo: bool) -> str:
    page = f"\n  leaderboard   {found['rest']}/demo/   (the certificate is throw-away: let the browser pass it)" if demo else ""
    url, rest = found["url"], found["rest"]
    return f"""
Tidegate is ready (Ctrl-C ends it).
{page}
  clients       {url}
  REST          {rest}
  console       {found["console"]}   (sign in with the access token)
  admin         {found["admin"]}
  access token  {found["accessToken"]}   (Control API; `tidegate apps list` and the like find it by themselves)
  CA            {found["ca"]}
  API key       {found["key"]}
  token         {found["token"]}
  Kafka         {found["kafka"]}

  With the ably package of npm:
    NODE_EXTRA_CA_CERTS={found["ca"]} node -e '
      const ably = new (require("ably").Realtime)({{ endpoint: "127.0.0.1", tlsPort: {url.rsplit(":", 1)[1]}, key: "{found["key"]}" }});
      ably.channels.get("hello").subscribe((m) => console.log(m.data));
      ably.channels.get("hello").publish("greeting", "it works");'
"""


@app.command()
def edge(
    config: ConfigFile,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the port (one per core of the machine).")] = 1,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Run an edge node: the public tier.

    Example: `tidegate edge -c edge.toml --workers 4`
    """
    from edge.io.process import run_edge
    from tidegate.workers import run_workers

    logs.configure(log_format, log_level)
    settings = _edge_settings(config)
    if workers == 1:
        raise typer.Exit(run_edge(settings))
    if settings.listen.port == 0:
        fail(f"{config}: listen.port: name one that the workers can share, not 0")

    raise typer.Exit(run_workers(workers, lambda worker: run_edge(settings, worker=worker)))


def _edge_settings(config: Path) -> EdgeConfig:
    """Settings that an edge can start with, certificates included."""
    from edge.config import EdgeConfig
    from edge.io.process import check, contexts
    from relay.runtime.settings import load

    try:
        settings = load(EdgeConfig, config)
        check(settings)
        contexts(settings)
    except SettingsError as error:
        fail(error)
    except CannotStart as error:
        fail(f"{config}: {error}")
    return settings


@app.command()
def core(config: ConfigFile, log_level: LogLevel = "info", log_format: LogFormat = "text") -> None:
    """Run a core: the private tier, the only one that talks to Kafka.

    Example: `tidegate core -c core.toml`
    """
    from core.config import CoreConfig
    from core.io.process import run_core
    from relay.runtime.settings import load

    logs.configure(log_format, log_level)
    try:
        settings = load(CoreConfig, config)
    except SettingsError as error:
        fail(error)
    raise typer.Exit(run_core(settings))


@app.command()
def token(
    key: Annotated[str | None, typer.Option(envvar="TIDEGATE_KEY", help="`appId.keyId:secret`; better given as $TIDEGATE_KEY.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file that holds the key.")] = None,
    capability: Annotated[str | None, typer.Option(help='JSON, as in `{"chat:*":["subscribe"]}`; all that the key may do.')] = None,
    client_id: Annotated[str | None, typer.Option(help="The identity; `*` for any; anonymous without.")] = None,
    ttl: Annotated[int, typer.Option(min=1, max=86_400, help="Lifetime in seconds.")] = 3600,
) -> None:
    """Mint a JWT for a client, as your auth server would.

    Example: `TIDEGATE_KEY=app.key:secret tidegate token --client-id bob --capability '{"chat:*":["publish","subscribe"]}'`
    """
    from relay.model.capability import Capability
    from relay.model.errors import RelayError
    from tidegate.tokens import mint

    try:
        if key_file:
            key = key_file.read_text().strip()
        if not key:
            fail("no key: set TIDEGATE_KEY, or pass --key-file or --key")
        canonical = Capability.parse(capability).canonical() if capability is not None else None
        typer.echo(mint(key, capability=canonical, client_id=client_id, ttl_s=ttl, now_s=int(time.time())))
    except (OSError, ValueError, RelayError) as error:
        fail(error)


Cores = Annotated[list[str] | None, typer.Option("--core", help="Admin address of a core, `http://HOST:PORT`. Repeatable.")]
CoreConfigs = Annotated[list[Path] | None, typer.Option("--config", "-c", help="A `core.toml` that says it. Repeatable.")]
StateDirectory = Annotated[Path | None, typer.Option("--state", help="The state directory of a `tidegate dev`.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with an access token that may read; or set $TIDEGATE_ACCESS_TOKEN.")]


@app.command()
def status(
    core: Cores = None,
    config: CoreConfigs = None,
    state: StateDirectory = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show cores, edges, who owns which partition, and how far behind the log they are.

    Without options it asks the `tidegate dev` that runs here. Exit code 1 if a core does not answer or is not ready.

    Example: `tidegate status --core http://10.0.0.4:9101 --core http://10.0.0.5:9101`
    """
    from rich.console import Console

    from tidegate.operators import ask_status, show_status

    found = ask_status(_cores(core, config, state), _access_token(token_file))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        show_status(found, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if all(each.get("ready") for each in found["cores"]) else 1)


@app.command()
def tail(
    channel: Annotated[str, typer.Argument(help="The channel's name.")],
    of_app: Annotated[str, typer.Option("--app", help="The id of its app.")] = "dev",
    core: Cores = None,
    config: CoreConfigs = None,
    state: StateDirectory = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print what happens on a channel as it happens: messages, presence, lifecycle, occupancy. Payloads included; Ctrl-C ends it.

    Example: `tidegate tail chat:lobby --app shop --core http://10.0.0.4:9101`
    """
    from tidegate.operators import Unfound, as_text, follow

    chosen, token = _cores(core, config, state)[0], _access_token(token_file)
    try:
        for event in follow(chosen, of_app, channel, token):
            typer.echo(json.dumps(event) if as_json else as_text(event))
            sys.stdout.flush()
    except Unfound as error:
        fail(error)
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except OSError as error:
        fail(f"{chosen} is lost: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    fail(f"{chosen} has stopped")


def _cores(core: list[str] | None, config: list[Path] | None, state: Path | None) -> list[str]:
    from relay.runtime.settings import SettingsError
    from tidegate.operators import Unfound, find_cores

    try:
        return find_cores(core or [], config or [], state)
    except (Unfound, SettingsError) as error:
        fail(error)


def _access_token(file: Path | None) -> str | None:
    try:
        token = file.read_text().strip() if file is not None else os.environ.get("TIDEGATE_ACCESS_TOKEN")
    except (OSError, ValueError) as error:
        fail(error)
    if token and not token.isprintable():
        fail("the access token has control characters")
    return token or None


@config_app.command("check")
def config_check(config: ConfigFile) -> None:
    """Read a configuration file as the process would, and say what is wrong with it.

    Example: `tidegate config check -c core.toml`
    """
    from relay.runtime.settings import load

    try:
        content = tomllib.loads(config.read_text())
    except OSError as error:
        fail(f"{config}: cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"{config}: is not TOML: {error}")
    kind = "core" if "kafka" in content else "edge"
    try:
        if kind == "core":
            from core.config import CoreConfig

            load(CoreConfig, config)
        else:
            _edge_settings(config)
    except SettingsError as error:
        fail(error)
    typer.echo(f"{config}: a valid {kind} configuration")
