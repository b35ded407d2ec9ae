# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet episodes``: which episodes robots have uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, out, show, table, utc
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

episodes_app = typer.Typer(no_args_is_help=True, help="Look at the episodes that robots have uploaded.")
EpisodeArgument = Annotated[str, typer.Argument(help="First digits of its SHA-256, eight or more.")]


@episodes_app.command("list")
def list_episodes(
    robot: Annotated[str, typer.Option(help="Of one robot.")] = "",
    policy: Annotated[str, typer.Option(help="Of one policy.")] = "",
    version: Annotated[str, typer.Option(help="Of one version.")] = "",
    outcome: Annotated[str, typer.Option(help="success, failure or unknown.")] = "",
    corrected: Annotated[bool, typer.Option("--corrected", help="Only those with corrections.")] = False,
    limit: Annotated[int, typer.Option(help="So many of the newest.", min=1)] = 100,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List episodes, the newest first."""
    wanted = {"robot": robot, "policy": policy, "version": version, "outcome": outcome, "corrected": corrected}
    with Client(server, key) as client:
        found = client.episodes(limit, **wanted)
    rows = [
        (
            e["sha256"][:12], utc(e["started_s"]), e["robot"], f"{e['policy']} {e['version']}", outcome_of(e),
            str(e["corrections"] or ""), str(e["steps"]), f"{e['size_bytes'] / 1e3:,.0f} kB", e["instructions"][0],
        )
        for e in found
    ]  # fmt: skip
    columns = ("episode", "began", "robot", "policy", "outcome", "corrected", "steps", "size", "instruction")
    table(found, as_json, columns, rows)


@episodes_app.command("show")
def show_episode(
    episode: EpisodeArgument, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False
) -> None:
    """Show one episode."""
    with Client(server, key) as client:
        found = client.episode(episode)
    if as_json:
        out.print_json(json.dumps(found))
        return
    said: dict[str, Any] = {
        **found,
        "outcome": outcome_of(found),
        "instruction": "; ".join(found["instructions"]),
        "began": utc(found["started_s"]),
        "received": utc(found["received_s"]),
    }
    names = (
        "sha256 robot robot_type episode_id policy version digest arm experiment instruction outcome steps corrections rate_hz"
        " duration_s began received size_bytes interface"
    )
    rows = [(name.replace("_", " "), str(said[name])) for name in names.split() if said[name] not in ("", None)]
    table(found, False, ("episode", found["sha256"][:12]), rows)


@episodes_app.command("get")
def get_episode(
    episode: EpisodeArgument,
    file: Annotated[Path, typer.Argument(help="Where to write it, for example run.mcap; Foxglove opens it.")],
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch an episode's MCAP file."""
    if file.exists():
        raise FleetError("OUTPUT_NOT_WRITTEN", f"{file}: is there already; name another file")
    with Client(server, key) as client:
        found = client.episode(episode)
        client.download_episode(found["sha256"], file)
    show(found, as_json, f"{file}: episode {found['sha256'][:12]} of {found['robot']}, {found['steps']} steps")


def outcome_of(episode: dict[str, Any]) -> str:
    """Return an episode's outcome in a word."""
    return {True: "success", False: "failure", None: "unknown"}[episode["success"]]
