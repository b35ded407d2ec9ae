# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet ab``: test version A against version B on the fleet."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Annotated, Any

import typer

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, counted, out, show, table, target_of, utc
from vla_fleet.client import Client

ab_app = typer.Typer(no_args_is_help=True, help="Test version A against version B on the fleet.")

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the experiment.")]


class Unit(str, Enum):
    """What is drawn."""

    ROBOT = "robot"
    EPISODE = "episode"


@ab_app.command()
def create(
    a: Annotated[str, typer.Argument(help="The control: NAME@VERSION, NAME@ALIAS or NAME.")],
    b: Annotated[str, typer.Argument(help="The candidate.")],
    robots: Annotated[list[str] | None, typer.Argument(help="Names of robots.")] = None,
    group: Annotated[str, typer.Option(help="All robots of a group.")] = "",
    tag: Annotated[str, typer.Option(help="All robots with a tag (and of the group, if one is named).")] = "",
    by: Annotated[Unit, typer.Option(help="Draw robots, or (where a robot can hold both) each episode.")] = Unit.ROBOT,
    difference: Annotated[float, typer.Option(help="In success rate, that is worth finding.")] = 0.05,
    rate: Annotated[float | None, typer.Option(help="Success rate of A; default: the last two weeks'.")] = None,
    per_day: Annotated[float | None, typer.Option(help="Episodes of a robot a day; default: the same.")] = None,
    alpha: Annotated[float, typer.Option(help="P(a difference is claimed that is not there).")] = 0.05,
    power: Annotated[float, typer.Option(help="P(the difference is found).")] = 0.8,
    max_days: Annotated[float, typer.Option(help="It ends then, decided or not.")] = 14.0,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show how long a decision takes, ask, and begin. With --json and without --yes: only the plan."""
    design = {
        "a": a, "b": b, "unit": by.value, "robots": robots or [], "group": group, "tag": tag, "difference": difference,
        "rate": rate, "per_day": per_day, "alpha": alpha, "power": power, "max_days": max_days,
    }  # fmt: skip
    with Client(server, key) as client:
        plan = client.plan_experiment(design)
        if not as_json:
            out.print("\n".join(plan["sentences"]), soft_wrap=True)
        elif not yes:
            show(plan, as_json, "")
            return
        if not yes:
            typer.confirm("Begin?", abort=True, err=True)
        name = client.create_experiment(design)
    show({"id": name, "plan": plan}, as_json, f"experiment {name} has begun; see: vla-fleet ab status {name}")


@ab_app.command("list")
def list_experiments(server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List the experiments, newest first."""
    with Client(server, key) as client:
        found = client.experiments()
    rows = [
        (e["id"], e["model"], e["a"], e["b"], e["unit"], e["state"], utc(e["created_s"]), e["created_by"])
        for e in found
    ]
    table(found, as_json, ("id", "model", "A", "B", "drawn", "state", "begun", "by"), rows)


@ab_app.command()
def status(name: Id, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """Show an experiment and its evidence."""
    with Client(server, key) as client:
        found = client.experiment(name)
    if as_json:
        show(found, as_json, "")
        return
    out.print(f"{found['id']}: {found['model']} {found['a']} (A) against {found['b']} (B), drawn by {found['unit']}")
    out.print(f"{found['state']}: {found['reason'] or found['message'] or 'no evidence yet'}", soft_wrap=True)
    rows = [(arm, v["version"], *_arm(v)) for arm, v in found["arms"].items()]
    table(found, as_json, ("arm", "version", "successes", "episodes", "rate", "duration", "unknown"), rows)
    if (found_difference := found["difference"]) is not None:
        out.print(_difference(found_difference))
    if found["waiting"]:
        out.print(f"{found['waiting']} episodes wait for the other one of their pair, or for pairs before theirs")
    if found["apart"]:
        out.print("not counted: " + ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in found["apart"].items()))
    out.print(_robots(found["robots"]), soft_wrap=True)


@ab_app.command()
def stop(
    name: Id,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """End an experiment; its robots go back to A."""
    with Client(server, key) as client:
        client.stop_experiment(name, reason)
        found = client.experiment(name)
    show(found, as_json, f"{name}: {found['state']}")


@ab_app.command()
def promote(
    name: Id,
    group: Annotated[str, typer.Option(help="Robots of a group; default: as the experiment.")] = "",
    tag: Annotated[str, typer.Option(help="Robots with a tag.")] = "",
    everyone: Annotated[bool, typer.Option("--all", help="Every robot.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Begin a rollout of a B that has won."""
    target = target_of(group, tag, everyone, default="")
    with Client(server, key) as client:
        found = client.promote_experiment(name, target)
    show(found, as_json, f"{found['id']}: {found['model']} {found['version']} begins")


@ab_app.command()
def log(name: Id, server: ServerOption = LOCAL, key: KeyOption = "") -> None:
    """Print the log from which every verdict can be computed again: vla-evidence replay FILE."""
    with Client(server, key) as client:
        typer.echo(client.experiment_log(name), nl=False)


def _arm(arm: dict[str, Any]) -> tuple[str, str, str, str, str]:
    rate = "" if arm["rate"] is None else f"{arm['rate']:.1%}"
    duration = "" if arm["duration_s"] is None else f"{arm['duration_s']:.1f} s"
    return str(arm["successes"]), str(arm["episodes"]), rate, duration, str(arm["unknown"])


def _difference(found: dict[str, Any]) -> str:
    text = f"B minus A: {100 * found['difference']:+.1f} points"
    if found["low"] is not None:
        text += f", at every look between {100 * found['low']:+.1f} and {100 * found['high']:+.1f}"
    return text


def _robots(robots: list[dict[str, Any]]) -> str:
    text = f"robots: {counted(Counter(robot['state'] for robot in robots))}"
    failed = [f"{robot['robot']} {robot['detail']}" for robot in robots if robot["detail"]]
    return text + (f" ({', '.join(failed)})" if failed else "")
