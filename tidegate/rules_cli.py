"""`tidegate rules test`: what rules do, without doing it. Its other commands are those of `tidegate.control_cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.samples import try_out

rules_app = typer.Typer(
    help="Rules: what of the channels goes to which topics, and what they would make of an event.", no_args_is_help=True
)


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
    from tidegate.rule_samples import try_rules

    try_out(lambda: try_rules(event, config, app=of_app, only=only), as_json=as_json)
