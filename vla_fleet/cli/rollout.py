# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet rollout``: create, list, status, pause, resume, abort, approve, log."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Annotated, Any

import typer
from rich.live import Live

from vla_fleet.cli.common import (
    FAILED,
    LOCAL,
    AllOption,
    JsonOption,
    KeyOption,
    ServerOption,
    counted,
    err,
    out,
    show,
    table,
    target_of,
    utc,
)
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

rollout_app = typer.Typer(no_args_is_help=True, help="Bring a version to a part of the fleet, stage by stage.")

IdArgument = Annotated[str, typer.Argument(help="Id of the rollout, as `rollout list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the log.")]
NeededReason = Annotated[str, typer.Option("--reason", help="Why, for the log; must be said.")]
EndStates = ("DONE", "ROLLED_BACK", "ABORTED")


@rollout_app.command()
def create(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, NAME@ALIAS, or NAME for the highest release.")],
    group: Annotated[str, typer.Option(help="Robots of a group.")] = "",
    tag: Annotated[str, typer.Option(help="Robots with a tag.")] = "",
    everyone: AllOption = False,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:PERCENT:HOURS[:POINTS]; may be repeated. Default: canary:5:24:10 early:25:48:5 wide:50:24:2."
        ),
    ] = None,
    min_episodes: Annotated[int, typer.Option(help="That each version needs in a stage.", min=10)] = 50,
    judge: Annotated[str, typer.Option(help="'evidence', or 'simple': two means are compared.")] = "evidence",
    advance: Annotated[
        str, typer.Option(help="Robots with one version each: 'ask' a person, or 'same_shift'.")
    ] = "ask",
    window: Annotated[list[str] | None, typer.Option(help="When robots may install: 'mon-fri 22:00-04:00'.")] = None,
    time_zone: Annotated[str, typer.Option(help="Of the windows, for example Europe/Berlin.")] = "UTC",
    max_concurrent: Annotated[int | None, typer.Option(help="Robots that install at a time.", min=1)] = None,
    per_minute: Annotated[int | None, typer.Option(help="Orders given in a minute.", min=1)] = None,
    deadline_h: Annotated[float, typer.Option(help="Robots silent for so long count as failed [h].")] = 4.0,
    auto_rollback: Annotated[bool, typer.Option(help="Roll back when harm is found; else ask a person.")] = True,
    per_hour: Annotated[
        float | None, typer.Option(help="Episodes that a robot does an hour; default: as lately.")
    ] = None,
    drop: Annotated[float, typer.Option(help="Drop of the success rate that makes a version bad.")] = 0.10,
    reason: ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; begin.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say what a rollout would do in this fleet, ask, and begin it."""
    body: dict[str, Any] = {
        "model": model, "target": target_of(group, tag, everyone), "reason": reason,
        "stages": _stages(stage or []), "min_episodes": min_episodes, "judge": judge, "advance": advance,
        "windows": window or [], "time_zone": time_zone,
        "max_concurrent": max_concurrent, "per_minute": per_minute, "deadline_s": deadline_h * 3600.0,
        "auto_rollback": auto_rollback,
    }  # fmt: skip
    with Client(server, key) as client:
        forecast = _forecast(client, body, per_hour, drop, needed=not yes)
        if not as_json:
            _show_forecast(forecast)
        if not yes:
            typer.confirm("Begin?", abort=True, err=True)
        found = client.create_rollout(**body)
    show({**found, "forecast": forecast}, as_json, f"{found['id']}: {found['model']} {found['version']} begins")


def _forecast(client: Client, body: dict[str, Any], per_hour: float | None, drop: float, *, needed: bool) -> Any:
    with err.status("simulating this rollout in this fleet"):
        try:
            return client.forecast(body, per_hour, drop)
        except FleetError as e:
            if e.code != "RATE_UNKNOWN" or needed:
                raise
            return {"text": f"no forecast: {e.message}", "warnings": []}


def _show_forecast(forecast: dict[str, Any]) -> None:
    if "model" in forecast:
        drawn = "each episode is drawn" if forecast["unit"] == "episode" else "a robot runs one version"
        out.print(f"{forecast['model']} {forecast['version']} for {forecast['robots']} robots; {drawn}")
    out.print(forecast["text"], soft_wrap=True, markup=False)
    for warning in forecast["warnings"]:
        out.print(f"warning: {warning}", soft_wrap=True, markup=False)


def _stages(texts: list[str]) -> list[dict[str, Any]]:
    """Return stages from NAME:PERCENT:HOURS[:POINTS]; the last one, for every robot, is added."""
    stages: list[dict[str, Any]] = []
    for text in texts:
        name, *numbers = text.split(":")
        try:
            percent, hours, *points = [float(number) for number in numbers]
            if len(points) > 1:
                raise ValueError
        except ValueError as e:
            raise typer.BadParameter(f"{text!r} is not NAME:PERCENT:HOURS[:POINTS]", param_hint="--stage") from e
        margin = points[0] / 100.0 if points else None
        stages.append({"name": name, "share": percent / 100.0, "duration_s": hours * 3600.0, "margin": margin})
    return [*stages, {"name": "full", "share": 1.0}] if stages else []


@rollout_app.command("list")
def list_rollouts(server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List rollouts, newest first."""
    with Client(server, key) as client:
        found = client.rollouts()
    rows = [
        (
            r["id"], r["model"], r["version"], r["target"], _state(r), r["stages"][r["stage"]]["name"], r["created_by"],
            utc(r["created_s"]),
        )
        for r in found
    ]  # fmt: skip
    table(found, as_json, ("rollout", "model", "version", "for", "state", "stage", "by", "since"), rows)


@rollout_app.command()
def status(
    rollout: IdArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it until it has ended; the exit status is 0 if DONE.")
    ] = False,
    robots: Annotated[bool, typer.Option("--robots", help="Show every robot.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a rollout: its stage, its robots, its evidence, and what is missing."""
    with Client(server, key) as client:
        found = client.rollout(rollout)
        if watch:
            found = _watch(client, found, robots, as_json)
        elif as_json:
            out.print_json(json.dumps(found))
        else:
            out.print(_words(found, robots), soft_wrap=True, markup=False)
    if watch and found["state"] != "DONE":
        raise typer.Exit(FAILED)


def _watch(client: Client, found: dict[str, Any], robots: bool, as_json: bool) -> dict[str, Any]:
    with Live(console=out, auto_refresh=False, transient=as_json) as live:
        while True:
            live.update(_words(found, robots), refresh=True)
            if found["state"] in EndStates:
                break
            time.sleep(2.0)
            found = client.rollout(found["id"])
    if as_json:
        out.print_json(json.dumps(found))
    return found


def _state(rollout: dict[str, Any]) -> str:
    return f"{rollout['state']}, paused" if rollout["paused"] else str(rollout["state"])


def _words(found: dict[str, Any], all_robots: bool) -> str:
    stage = found["stages"][found["stage"]]
    drawn = f"{stage['probability']:.0%} of episodes" if stage["probability"] < 1.0 else "every episode"
    where = f"{stage['share']:.0%} of robots, {drawn}, {stage['duration_s'] / 3600.0:g} h"
    lines = [
        f"{found['id']}: {found['model']} {found['version']} for {found['target']}, by {found['created_by']}",
        f"state     {_state(found)}",
        f"stage     {found['stage'] + 1} of {len(found['stages'])}: {stage['name']}, {where}",
        f"robots    {counted(Counter(robot['standing'] for robot in found['robots']))}",
        f"outcomes  {counted(found['outcomes']) or 'none yet'}",
    ]
    if verdict := found["verdict"]:
        lines.append(
            f"verdict   {' '.join(filter(None, (verdict['decision'], verdict['code'])))}: {verdict['message']}"
        )
        lines += [f"missing   {text}" for text in verdict["missing"]]
    lines += [f"warning   {text}" for text in found["warnings"]]
    for robot in found["robots"]:
        if all_robots or robot["standing"] in ("FAILED", "SILENT"):
            lines.append(f"  {robot['robot']}: {robot['standing']} {robot['detail']}".rstrip())
    lines += [f"  {utc(h['time_s'])} {h['who']}: {h['action']} {h['why']}".rstrip() for h in found["history"]]
    return "\n".join(lines)


@rollout_app.command()
def pause(
    rollout: IdArgument, reason: ReasonOption = "", server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False
) -> None:  # fmt: skip
    """Give no order and begin no stage; the judge goes on, and harm is rolled back."""
    _steer(rollout, "pause", reason, server, key, as_json)


@rollout_app.command()
def resume(
    rollout: IdArgument, reason: ReasonOption = "", server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False
) -> None:  # fmt: skip
    """Go on after a pause."""
    _steer(rollout, "resume", reason, server, key, as_json)


@rollout_app.command()
def approve(
    rollout: IdArgument, reason: NeededReason, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False
) -> None:  # fmt: skip
    """Begin the next stage without the judge: a person's decision, kept in the evidence log."""
    _steer(rollout, "approve", reason, server, key, as_json)


@rollout_app.command()
def abort(
    rollout: IdArgument,
    reason: NeededReason,
    keep: Annotated[bool, typer.Option("--keep", help="Robots stay with what they have committed.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """End a rollout; every robot goes back to the version it came from."""
    _steer(rollout, "abort", reason, server, key, as_json, keep=keep)


def _steer(rollout: str, action: str, reason: str, server: str, key: str, as_json: bool, **more: Any) -> None:
    with Client(server, key) as client:
        found = client.steer_rollout(rollout, action, reason, **more)
    show(found, as_json, f"{found['id']}: {_state(found)}")


@rollout_app.command()
def log(
    rollout: IdArgument,
    words: Annotated[
        bool, typer.Option("--words", help="What happened, in words, by the time since the beginning.")
    ] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
) -> None:
    """Print the evidence log, from which `vla-evidence replay` computes every verdict again."""
    with Client(server, key) as client:
        text = client.rollout_log(rollout)
    if words:
        from vla_evidence.log.records import read_lines  # numpy and scipy take a second that no other command needs
        from vla_evidence.log.rollout import report

        out.print(report(read_lines(text.splitlines(keepends=True), rollout)), soft_wrap=True, markup=False)
    else:
        sys.stdout.buffer.write(text)
