"""`tidegate mappings test`: what mappings do, without doing it. Its other commands are those of `tidegate.control_cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.samples import try_out

mappings_app = typer.Typer(
    help="Mappings: which records of topics go to which channels, and what they would make of a record.", no_args_is_help=True
)


@mappings_app.command("test")
def mappings_test(
    record: Annotated[str, typer.Argument(help="The record: JSON, a file with JSON, or `-` for standard input.")] = "-",
    config: Annotated[Path, typer.Option("--config", "-c", help="The `core.toml` with the mappings.")] = Path("core.toml"),
    of_app: Annotated[str, typer.Option("--app", help="The id of one app; all without.")] = "",
    only: Annotated[str, typer.Option("--mapping", help="The id of one mapping; all that read the topic without.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show what a record would become under the mappings of a configuration. Nothing is sent, and Kafka is not asked; Schema Registry is,
    if a mapping needs it.

    A record is a JSON object with `topic` and, if you like, `key`, `value`, `headers`, `partition` and `offset`. Keys and values are text,
    null, any other JSON, or `{"base64": "…"}` for bytes. Exit code 1 if no mapping makes a message of it.

    Examples:

        tidegate mappings test -c core.toml '{"topic": "orders", "key": "42", "value": {"state": "paid"}}'

        tidegate mappings test -c core.toml '{"topic": "orders", "value": {"base64": "AAAAAAcCYQ=="}}' --json
    """
    from tidegate.mapping_samples import try_mappings

    tried = try_out(lambda: try_mappings(record, config, app=of_app, only=only), as_json=as_json)
    raise typer.Exit(0 if any(each.message is not None for _, each in tried.found) else 1)
