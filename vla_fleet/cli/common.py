# SPDX-License-Identifier: Apache-2.0
"""What all commands share: options, and how results look."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

ServerOption = Annotated[str, typer.Option("--server", envvar="VLA_FLEET_SERVER", help="URL of the fleet server.")]
KeyOption = Annotated[str, typer.Option("--key", envvar="VLA_FLEET_KEY", help="API key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LOCAL = "http://127.0.0.1:8080"


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a value as JSON, or as text for people."""
    out.print_json(json.dumps(value)) if as_json else out.print(text, soft_wrap=True)


def show_table(value: Any, as_json: bool, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a value as JSON, or as a table for people."""
    if as_json:
        out.print_json(json.dumps(value))
        return
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def utc(time_s: float) -> str:
    """Return a time as people read it."""
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
