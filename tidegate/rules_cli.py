"""`tidegate rules`: what rules do, without doing it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

rules_app = typer.Typer(help="Look at what rules do.", no_args_is_help=True)


@rules_app.command("test")
def rules_test(
    event: Annotated[str, typer.Argument(help="The event: JSON, a file with JSON, or `-` for standard input.")] = "-",
    config: Annotated[Path, typer.Option("--config", "-c", help="The `core.toml` with the rules.")] = Path("core.toml"),
    of_app: Annotated[str, typer.Option("--app", help="The id of the app; needed if several have rules.")] = "",
    only: Annotated[str, typer.Option("--rule", help="The id of one rule; all of the app's without.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show what an event would become under the rules of a configuration. Nothing is sent, and Kafka is not asked.

    An event is a JSON object with `channel` and one of `messages`, `presence` and `lifecycle`.

    Examples:

        tidegate rules test -c core.toml '{"channel": "chat:lobby", "messages": {"name": "greet", "data": "hello"}}'

        tidegate rules test -c core.toml '{"channel": "chat:lobby", "presence": {"action": "enter", "clientId": "bob"}}'

        tidegate rules test -c core.toml '{"channel": "chat:lobby", "lifecycle": "channel.opened"}' --json
    """
    from rich.console import Console

    from tidegate.rule_samples import try_rules

    try:
        found = try_rules(event, config, app=of_app, only=only)
    except (ValueError, OSError) as wrong:
        typer.echo(f"tidegate: {wrong}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(found.shape()))
    else:
        found.show(Console(width=None if sys.stdout.isatty() else 160))
