# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet``: serve, publish, enrol robots, deploy, roll back, look."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from vla_checkpoint import CheckpointError
from vla_fleet.cli.ab import ab_app
from vla_fleet.cli.rollout import rollout_app
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Manage the policies of a fleet of robots."
)
app.add_typer(rollout_app, name="rollout")
app.add_typer(ab_app, name="ab")
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

ServerOption = Annotated[str, typer.Option("--server", envvar="VLA_FLEET_SERVER", help="URL of the fleet server.")]
KeyOption = Annotated[str, typer.Option("--key", envvar="VLA_FLEET_KEY", help="API key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RobotsArgument = Annotated[list[str] | None, typer.Argument(help="Names of robots.")]
GroupOption = Annotated[str, typer.Option("--group", help="All robots of a group.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every robot.")]
WaitOption = Annotated[float, typer.Option("--wait", help="Follow the commands for so long [s]; 0 = do not wait.")]
LOCAL = "http://127.0.0.1:8080"


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="Folder of the database and the files; made if it is missing.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 = any free one.")] = 8080,
    public_url: Annotated[str, typer.Option(help="How robots reach this server; default: what it listens on.")] = "",
    heartbeat_s: Annotated[float, typer.Option(help="How often a robot says something [s].", min=0.1)] = 10.0,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM); without it, put a proxy in front.")
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
) -> None:
    """Run the server. The first start writes an admin's key to DATA/admin.key."""
    from vla_fleet.server.run import run  # fastapi and sqlalchemy take a second that no other command needs

    run(data, host, port, public_url, heartbeat_s, certificate, certificate_key)


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    version: Annotated[str, typer.Option(help="Publish it under this version instead of the manifest's.")] = "",
    bump: Annotated[str, typer.Option(help="'auto': the least step over the highest published version.")] = "",
    alias: Annotated[str, typer.Option(help="Let this alias point to it.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, upload it and publish it."""
    if bump not in ("", "auto"):
        raise typer.BadParameter("must be 'auto'", param_hint="--bump")
    with _client(server, key) as client, _bar(bundle.name) as progress:
        found = client.publish(bundle, version=version, bump=bump, alias=alias, progress=progress)  # type: ignore[arg-type]
    _print(found, as_json, f"{found['name']} {found['version']} is published ({found['digest'][:12]}…)")


@app.command()
def models(name: str = "", server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List what was published."""
    with _client(server, key) as client:
        found = client.models(name)
    rows = [
        (m["name"], m["version"], " ".join(m["aliases"]), f"{m['size_bytes'] / 1e6:.1f} MB", m["published_by"])
        for m in found
    ]
    _table(found, as_json, ("model", "version", "aliases", "size", "by"), rows)


@app.command()
def alias(name: str, alias: str, version: str, server: ServerOption = LOCAL, key: KeyOption = "") -> None:
    """Let NAME@ALIAS mean a version."""
    with _client(server, key) as client:
        client.set_alias(name, alias, version)
    out.print(f"{name}@{alias} is {version}")


@app.command()
def robots(server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List the robots."""
    with _client(server, key) as client:
        found = client.robots()
    rows = [
        (
            r["name"], r["group"], "online" if r["online"] else "offline", r["status"].get("state", ""),
            r["status"].get("active_version", ""), r["status"].get("committed_version", ""), r["status"].get("error_code", ""),
        )
        for r in found
    ]  # fmt: skip
    _table(found, as_json, ("robot", "group", "line", "state", "acts", "committed", "error"), rows)


@app.command()
def enroll(
    robot: str,
    group: Annotated[str, typer.Option(help="Group of the robot.")] = "default",
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a code with which ROBOT enrols once, within an hour."""
    with _client(server, key) as client:
        code = client.make_code(robot, group, tag or [])
    line = server.replace("http", "ws", 1)
    hint = f"on the robot: ros2 launch vla_ota robot.launch.py … fleet:={line} fleet_code:={code}"
    _print({"code": code}, as_json, f"{code}\n{hint}")


@app.command("key")
def make_key(name: str, role: str, server: ServerOption = LOCAL, key: KeyOption = "") -> None:
    """Make an API key for a person or a program: viewer, operator, publisher or admin."""
    with _client(server, key) as client:
        out.print(client.make_key(name, role))


@app.command()
def deploy(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, NAME@ALIAS, or NAME for the highest release.")],
    robots: RobotsArgument = None,
    group: GroupOption = "",
    everyone: AllOption = False,
    urgent: Annotated[bool, typer.Option(help="May replace a running trial of another version.")] = False,
    wait: WaitOption = 0.0,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Order robots to install a version now."""
    with _client(server, key) as client:
        commands = client.deploy(model, robots or [], group, everyone=everyone, urgent=urgent)
        _follow(client, commands, wait, as_json)


@app.command()
def rollback(
    robots: RobotsArgument = None,
    group: GroupOption = "",
    everyone: AllOption = False,
    version: Annotated[str, typer.Option(help="Version to go back to; default: the robot's previous one.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    wait: WaitOption = 30.0,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Order robots to go back."""
    with _client(server, key) as client:
        commands = client.rollback(robots or [], group, everyone=everyone, version=version, reason=reason)
        _follow(client, commands, wait, as_json)


@app.command()
def events(robot: str = "", server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """Show what happened on robots, newest first."""
    with _client(server, key) as client:
        found = client.events(robot)
    rows = [
        (_utc(e["time_s"]), e["robot"], e["from_state"], e["to_state"], e["version"], e["error_code"], e["message"])
        for e in found
    ]
    _table(found, as_json, ("time", "robot", "from", "to", "version", "error", "message"), rows)


@app.command()
def log(server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """Show who did what, newest first."""
    with _client(server, key) as client:
        found = client.log()
    rows = [(_utc(e["time_s"]), e["who"], e["action"], e["subject"]) for e in found]
    _table(found, as_json, ("time", "who", "did", "to"), rows)


# -- how it looks -----------------------------------------------------------------------------------------------------------


@contextmanager
def _client(server: str, key: str) -> Iterator[Client]:
    with Client(server, key) as client:
        yield client


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _follow(client: Client, commands: Sequence[dict[str, Any]], wait_s: float, as_json: bool) -> None:
    """Show what was ordered; with ``wait_s`` follow it, and fail unless every robot did it."""
    shown: dict[str, tuple[str, str]] = {}
    final = list(commands)
    for standing in client.follow([c["id"] for c in commands], wait_s) if wait_s else [final]:
        final = standing
        for c in standing:
            now = c["state"], c["robot_state"]
            if not as_json and shown.get(c["id"]) != now:
                shown[c["id"]] = now
                out.print(f"{c['robot']}: {c['state']} {c['robot_state']} {c['error_code']} {c['message']}".rstrip())
    if as_json:
        out.print_json(json.dumps(final))
    if wait_s and not all(c["state"] == "DONE" for c in final):
        raise typer.Exit(1)


def _print(value: Any, as_json: bool, text: str) -> None:
    out.print_json(json.dumps(value)) if as_json else out.print(text, soft_wrap=True)


def _table(value: Any, as_json: bool, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if as_json:
        out.print_json(json.dumps(value))
        return
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _utc(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def main() -> None:
    """Entry point of ``vla-fleet``."""
    try:
        app()
    except (FleetError, CheckpointError) as e:
        err.print(f"vla-fleet: {e}", soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
