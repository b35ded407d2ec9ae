# SPDX-License-Identifier: Apache-2.0
"""Commands about robots: enrol, look, order, what ran where."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vla_fleet.cli.common import (
    FAILED,
    LOCAL,
    AllOption,
    GroupOption,
    JsonOption,
    KeyOption,
    RobotsArgument,
    ServerOption,
    WaitOption,
    follow,
    out,
    seconds,
    show,
    table,
    utc,
)
from vla_fleet.client import Client

app = typer.Typer()


class _Robots(TyperGroup):
    """``robots NAME`` is short for ``robots show NAME``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


about = typer.Typer(cls=_Robots, invoke_without_command=True, help="List the robots; `robots NAME` shows one.")
app.add_typer(about, name="robots")


@about.callback()
def robots(ctx: typer.Context, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List the robots; `robots NAME` shows one."""
    if ctx.invoked_subcommand is not None:
        return
    with Client(server, key) as client:
        found = client.robots()
    rows = [
        (
            r["name"], r["group"], _line(r), r["status"].get("state", ""), r["status"].get("active_version", ""),
            _committed(r["status"]), r["status"].get("error_code", ""),
        )
        for r in found
    ]  # fmt: skip
    table(found, as_json, ("robot", "group", "line", "state", "acts", "committed", "error"), rows)


@about.command("show")
def show_robot(name: str, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """Show one robot."""
    with Client(server, key) as client:
        found = client.robot(name)
    if as_json:
        out.print_json(json.dumps(found))
        return
    seen = utc(found["last_seen_s"]) if found["last_seen_s"] else "never"
    about = {"group": found["group"], "tags": " ".join(found["tags"]), "line": _line(found), "last seen": seen}
    about |= {"software": found["software"], "token": "rotating" if found["rotating"] else ""}
    status = {k.replace("_", " "): v for k, v in found["status"].items() if v not in ("", [], 0, False, None)}
    rows = [(str(k), _text(v)) for k, v in {**about, **status}.items() if v]
    table(found, False, (found["name"], ""), rows)


@about.command()
def rotate(
    robots: RobotsArgument = None,
    group: GroupOption = "",
    everyone: AllOption = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let robots trade their tokens for new ones, at once or when they connect next."""
    with Client(server, key) as client:
        names = client.rotate_tokens(robots or [], group, everyone=everyone)
    show(
        names,
        as_json,
        f"{len(names)} robots get a new token when they connect next; `vla-fleet robots NAME` shows which have not",
    )


@about.command()
def revoke(name: str, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """End a robot's token and its line; it comes back with a new code from `enroll`."""
    with Client(server, key) as client:
        client.revoke_token(name)
    show({"robot": name}, as_json, f"{name} is shut out; to let it in again: vla-fleet enroll {name}")


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
    with Client(server, key) as client:
        code = client.make_code(robot, group, tag or [])
    line = server.replace("http", "ws", 1)
    hint = f"on the robot: ros2 launch vla_ota robot.launch.py … fleet:={line} fleet_code:={code}"
    show({"code": code}, as_json, f"{code}\n{hint}")


@app.command()
def deploy(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, NAME@ALIAS, or NAME for the highest release.")],
    robots: RobotsArgument = None,
    group: GroupOption = "",
    everyone: AllOption = False,
    urgent: Annotated[bool, typer.Option(help="May replace a running trial of another version.")] = False,
    allow_older: Annotated[
        bool,
        typer.Option("--allow-older", help="Also where a newer one is committed; asked by robots with a trust root."),
    ] = False,
    wait: WaitOption = 0.0,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Order robots to install a version now."""
    with Client(server, key) as client:
        commands = client.deploy(model, robots or [], group, everyone=everyone, urgent=urgent, allow_older=allow_older)
        follow(client, commands, wait, as_json)


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
    with Client(server, key) as client:
        commands = client.rollback(robots or [], group, everyone=everyone, version=version, reason=reason)
        follow(client, commands, wait, as_json)


@app.command()
def events(
    robot: Annotated[str, typer.Option(help="Of one robot.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what happened on robots, newest first."""
    with Client(server, key) as client:
        found = client.events(robot)
    rows = [
        (utc(e["time_s"]), e["robot"], e["from_state"], e["to_state"], e["version"], e["error_code"], e["message"])
        for e in found
    ]
    table(found, as_json, ("time", "robot", "from", "to", "version", "error", "message"), rows)


@app.command("what-ran")
def what_ran(
    robot: str,
    at: Annotated[str, typer.Option(help="At that time (UTC): 14:02 or 2026-11-20T14:02.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what ran on ROBOT, when, who decided it, and how it ended; newest first."""
    at_s = seconds(at) if at else None
    with Client(server, key) as client:
        runs = client.history(robot, at_s)
    rows = [
        (utc(r["begin_s"]), _until(r, at_s), r["version"] or "nothing", r["digest"][:12], _decided(r), _ended(r))
        for r in runs
    ]
    if at_s is not None and not runs:
        show([], as_json, f"the server knows nothing of {robot} at {utc(at_s)}")
        raise typer.Exit(FAILED)
    table(runs, as_json, ("from", "until", "version", "digest", "by", "ended"), rows)


def _committed(status: dict[str, Any]) -> str:
    """Return what a robot has committed; an adapter of its own is named with what it is on."""
    committed, base = status.get("committed_version", ""), status.get("adapted_version", "")
    return f"{committed} on {base}" if base else str(committed)


def _line(robot: dict[str, Any]) -> str:
    return "revoked" if robot["revoked"] else "online" if robot["online"] else "offline"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _until(run: dict[str, Any], at_s: float | None) -> str:
    if run["end_s"] is not None:
        return utc(run["end_s"])
    known = f"at least {utc(run['known_until_s'])}"
    return f"{known}; not heard since" if at_s is not None and at_s > run["known_until_s"] else known


def _decided(run: dict[str, Any]) -> str:
    return f"{run['ordered_by'] or 'on the robot:'} {run['cause']} {run['command_id']}".rstrip()


def _ended(run: dict[str, Any]) -> str:
    if run["end_s"] is None:
        return ""
    return f"{run['ended_by'] or 'on the robot:'} {run['ended_cause']} {run['error_code']}".rstrip()
