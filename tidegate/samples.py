"""What `tidegate rules test` and `tidegate mappings test` have in common: where a sample comes from, and how what became of it is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

MAX_SAMPLE_BYTES = 4_194_304
SHOWN_CHARACTERS = 2_000
"""Of a value, in a table; `--json` has all of it."""
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code != 10}


class Shown(Protocol):
    def shape(self) -> dict[str, Any]:
        """For machines."""

    def show(self, console: Console) -> None: ...


T = TypeVar("T", bound=Shown)


def read(sample: str) -> bytes:
    """`sample` is JSON, a file with JSON, or `-` for standard input. Raises ValueError, OSError."""
    if sample.lstrip().startswith("{"):
        raw = sample.encode(errors="replace")
    elif sample == "-":
        raw = sys.stdin.buffer.read(MAX_SAMPLE_BYTES + 1)
    else:
        with Path(sample).open("rb") as file:
            raw = file.read(MAX_SAMPLE_BYTES + 1)
    if len(raw) > MAX_SAMPLE_BYTES:
        raise ValueError(f"a sample has at most {MAX_SAMPLE_BYTES} bytes")
    return raw


def visible(text: str) -> str:
    """Samples are written by others, and do not steer the terminal of who tries them."""
    return text.translate(_CONTROL)


def try_out(make: Callable[[], T], *, as_json: bool) -> T:
    """Shows what `make` finds; ends the command with a line if it raises ValueError or OSError."""
    from rich.console import Console  # noqa: PLC0415 - not for every command

    try:
        found = make()
    except (ValueError, OSError) as wrong:
        typer.echo(f"tidegate: {wrong}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(found.shape()))
    else:
        found.show(Console(width=None if sys.stdout.isatty() else 160))
    return found
