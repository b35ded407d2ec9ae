# SPDX-License-Identifier: Apache-2.0
"""What every command shares: its options, how it prints, and its exit status.

Exit status: 0 done · 1 refused or failed · 2 wrong usage · 3 not finished in the time that ``--wait`` gave.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from vla_fleet.client import Client

FAILED, NOT_FINISHED = 1, 3
LOCAL = "http://127.0.0.1:8080"

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

ServerOption = Annotated[str, typer.Option("--server", envvar="VLA_FLEET_SERVER", help="URL of the fleet server.")]
KeyOption = Annotated[str, typer.Option("--key", envvar="VLA_FLEET_KEY", help="API key.", show_envvar=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RobotsArgument = Annotated[list[str] | None, typer.Argument(help="Names of robots.")]
GroupOption = Annotated[str, typer.Option("--group", help="All robots of a group.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every robot.")]
WaitOption = Annotated[float, typer.Option("--wait", help="Follow the commands for so long [s]; 0 = do not wait.")]


@contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many bytes are done, on stderr; give what to call with bytes done and bytes in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def follow(client: Client, commands: Sequence[dict[str, Any]], wait_s: float, as_json: bool) -> None:
    """Show what was ordered; with ``wait_s`` follow it, and exit with a status other than 0 unless every robot did it."""
    shown: dict[str, tuple[str, str]] = {}
    final = list(commands)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not wait_s) as progress:
        task = progress.add_task("robots that have finished", total=len(final))
        for standing in client.follow([c["id"] for c in commands], wait_s) if wait_s else [final]:
            final = standing
            progress.update(task, completed=sum(c["final"] for c in final))
            for c in standing:
                now = c["state"], c["robot_state"]
                if not as_json and shown.get(c["id"]) != now:
                    shown[c["id"]] = now
                    text = f"{c['robot']}: {c['state']} {c['robot_state']} {c['error_code']} {c['message']}"
                    out.print(text.rstrip(), markup=False, soft_wrap=True)
    if as_json:
        out.print_json(json.dumps(final))
    if not wait_s:
        return
    if any(c["final"] and c["state"] != "DONE" for c in final):
        raise typer.Exit(FAILED)
    if not all(c["final"] for c in final):
        waiting = sum(not c["final"] for c in final)
        err.print(
            f"{waiting} of {len(final)} have not finished after {wait_s:g} s; the orders stand. See: vla-fleet events"
        )
        raise typer.Exit(NOT_FINISHED)


def target_of(group: str, tag: str, everyone: bool, *, default: str | None = None) -> str:
    """Return whom a rollout is for, from its three options; ``default``: if none is given."""
    targets = [f"group:{group}"] * bool(group) + [f"tag:{tag}"] * bool(tag) + ["all"] * everyone
    if not targets and default is not None:
        return default
    if len(targets) != 1:
        raise typer.BadParameter("say for which robots: one of --group, --tag and --all")
    return targets[0]


def counted(counts: Mapping[str, int]) -> str:
    """Return "2 FAILED, 3 RUNNING"."""
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a value as JSON, or a text."""
    out.print_json(json.dumps(value)) if as_json else out.print(text, soft_wrap=True, markup=False)


def table(value: Any, as_json: bool, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a value as JSON, or rows as a table."""
    if as_json:
        out.print_json(json.dumps(value))
        return
    drawn = Table(box=None, header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*(text.replace("[", "\\[") for text in row))
    out.print(drawn)


def utc(time_s: float) -> str:
    """Return a time as people read it, in UTC."""
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(text: str) -> float:
    """Return the time [s since 1970 UTC] of ``14:02`` (today) or any ISO 8601 time; UTC unless it says otherwise."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        clock = datetime.time.fromisoformat(text)
        return datetime.datetime.combine(now.date(), clock, clock.tzinfo or datetime.UTC).timestamp()
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is not a time; write 14:02 or 2026-11-20T14:02 (UTC)") from e
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
