# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet dataset``: from episodes to data sets. pyarrow is imported when one is built."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, err, seconds, show, table, utc
from vla_fleet.client import Client
from vla_fleet.errors import FleetError, InputError

if TYPE_CHECKING:
    from vla_learning.datasets.build import Engine
    from vla_learning.datasets.selection import Source

dataset_app = typer.Typer(no_args_is_help=True, help="Build data sets from episodes.")
_EVERY_EPISODE = 1_000_000
_CACHE = Path("~/.cache/vla_ota/episodes")

OutOption = Annotated[Path, typer.Option("--out", help="Folder to make.")]
EpisodesOption = Annotated[Path, typer.Option(help="Folder of episode files: what is missing there is fetched.")]
EngineOption = Annotated[str, typer.Option(help="local, or ray: side by side here or on a cluster (RAY_ADDRESS).")]


@dataset_app.command()
def build(
    out_dir: OutOption,
    policy: Annotated[str, typer.Option(help="Episodes of this policy; needed if the server has several.")] = "",
    robot: Annotated[list[str] | None, typer.Option(help="Only of this robot; may be repeated.")] = None,
    interface: Annotated[str, typer.Option(help="Only of this kind, as DATASET_MIXED lists them.")] = "",
    since: Annotated[str, typer.Option(help="New is what was received since then (UTC): 2026-11-20T14:02.")] = "",
    new_version: Annotated[str, typer.Option(help="New is what this version did.")] = "",
    seed: Annotated[int, typer.Option(help="Of the draw of old episodes.", min=0)] = 0,
    replay_share: Annotated[float, typer.Option(help="Share of what is drawn in training that is old.")] = 0.7,
    correction_weight: Annotated[
        float, typer.Option(help="How often a correction is drawn, relative to other new steps.")
    ] = 10.0,
    replay_frames: Annotated[int, typer.Option(help="Most old frames.")] = 100_000,
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Take failures that nobody corrected too.")
    ] = False,
    allow_no_corrections: Annotated[
        bool, typer.Option("--allow-no-corrections", help="Build though nothing new was corrected.")
    ] = False,
    episodes: EpisodesOption = _CACHE,
    engine: EngineOption = "local",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Build a LeRobotDataset v3.0: 70 % old episodes, 30 % new ones, corrections drawn 10 times as often.

    New is what was received since the last data set of the policy, unless --since or --new-version says otherwise.
    """
    if since and new_version:
        raise typer.BadParameter("give --since or --new-version, not both")
    write = _engine(engine)
    from vla_learning.datasets.build import build_dataset
    from vla_learning.datasets.selection import BuildSettings

    with Client(server, key) as client:
        chosen_from = " ".join(
            [*sorted(f"robot:{name}" for name in robot or []), *([f"interface:{interface}"] * bool(interface))]
        )
        found, of_none = _episodes(client, policy, robot or [], interface)
        rule, is_new = _new(client, found, chosen_from, seconds(since) if since else 0.0, new_version)
        sources = [_source(episode, episodes.expanduser(), is_new(episode)) for episode in found]
        settings = BuildSettings(
            seed, replay_share, correction_weight, replay_frames, keep_failures, allow_no_corrections, rule
        )
        with _shown(client) as shown:
            lineage = build_dataset(sources, out_dir, settings, engine=write, **shown)
        number = _record(client, out_dir, lineage, found[0], chosen_from)
    told = f"{out_dir}: data set {number}, {_told(lineage)}"
    if of_none:
        told += f"\n{'left out':12} {_episodes_text(of_none)}: recorded before the robot had a policy"
    show({"number": number, "folder": str(out_dir), "of_no_policy": of_none, **lineage}, as_json, told)


@dataset_app.command()
def rebuild(
    lineage_file: Annotated[Path, typer.Argument(metavar="LINEAGE", help="meta/vla_ota.json of a data set.")],
    out_dir: OutOption,
    episodes: EpisodesOption = _CACHE,
    engine: EngineOption = "local",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Build a data set again from its lineage, byte for byte."""
    write = _engine(engine)
    from vla_learning.datasets.build import rebuild_dataset

    try:
        before = json.loads(lineage_file.read_bytes())
    except (OSError, ValueError) as e:
        raise FleetError("DATASET_LINEAGE", f"{lineage_file}: {e}") from e
    if not isinstance(before, dict):
        raise FleetError("DATASET_LINEAGE", f"{lineage_file}: this is no lineage")
    with Client(server, key) as client, _shown(client) as shown:
        lineage = rebuild_dataset(before, episodes.expanduser(), out_dir, engine=write, **shown)
    show({"folder": str(out_dir), **lineage}, as_json, f"{out_dir}: {_told(lineage)}")


def _engine(name: str) -> Engine:
    if name not in ("local", "ray"):
        raise typer.BadParameter("must be local or ray", param_hint="--engine")
    try:
        importlib.import_module("pyarrow")
    except ImportError as e:
        raise FleetError(
            "LEARNING_MISSING", "pyarrow is not installed; pip install -r requirements/learning.txt"
        ) from e
    if name == "ray":
        from vla_learning.datasets.ray_engine import write_with_ray

        return write_with_ray
    from vla_learning.datasets.build import write_here

    return write_here


@contextmanager
def _shown(client: Client) -> Iterator[Any]:
    """Show progress; give what fetches episodes, and what tells of frames."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        bar = bars.add_task("frames", total=None)

        def fetch(files: Mapping[Path, str]) -> None:
            missing = [(path, sha256) for path, sha256 in files.items() if not path.exists()]
            for path, sha256 in bars.track(missing, description="episodes"):
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_episode(sha256, path)

        yield {"fetch": fetch, "progress": lambda done, total: bars.update(bar, completed=done, total=total)}


def _record(client: Client, folder: Path, lineage: dict[str, Any], newest: dict[str, Any], chosen_from: str) -> int:
    """Let the server know, so that the next data set knows what is new; return the data set's number."""
    fields = {
        "policy": newest["policy"],
        "chosen_from": chosen_from,
        "lineage_sha256": hashlib.sha256((folder / "meta" / "vla_ota.json").read_bytes()).hexdigest(),
        "seed": lineage["seed"],
        "new_rule": lineage["new"],
        "last_episode": newest["number"],
        "episodes": len(lineage["episodes"]),
        "frames": lineage["mix"]["frames"],
        "corrections": lineage["mix"]["corrections"],
    }
    try:
        return int(client.record_data_set(**fields)["number"])
    except FleetError as e:
        text = f"{folder} is built, but not recorded, so that the next data set takes the same episodes for new: {e.message}"
        raise type(e)(e.code, text) from e


@dataset_app.command("list")
def list_data_sets(
    policy: Annotated[str, typer.Option(help="Of one policy.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List data sets that were built, the newest first."""
    with Client(server, key) as client:
        found = client.data_sets(policy)
    rows = [
        (
            str(d["number"]), d["policy"], utc(d["created_s"]), d["created_by"], str(d["episodes"]), str(d["frames"]),
            str(d["corrections"]), str(d["seed"]), d["lineage_sha256"][:12],
        )
        for d in found
    ]  # fmt: skip
    columns = ("data set", "policy", "built", "by", "episodes", "frames", "corrections", "seed", "lineage")
    table(found, as_json, columns, rows)


def _episodes(client: Client, policy: str, robots: list[str], interface: str) -> tuple[list[dict[str, Any]], int]:
    """Return the episodes that a data set may take, the newest first, of one policy; and how many there are of none."""
    found = client.episodes(_EVERY_EPISODE, policy=policy)
    found = [e for e in found if (not robots or e["robot"] in robots) and interface in ("", e["interface"])]
    policies = sorted({episode["policy"] for episode in found} - {""})
    if len(policies) > 1:
        raise InputError(
            "DATASET_MIXED", f"episodes are of several policies ({', '.join(policies)}); choose one with --policy"
        )
    return [episode for episode in found if episode["policy"]], sum(not episode["policy"] for episode in found)


def _new(
    client: Client, found: list[dict[str, Any]], chosen_from: str, since_s: float, version: str
) -> tuple[str, Callable[[dict[str, Any]], bool]]:
    """Return what is new: in words, and as a function of an episode."""
    if since_s:
        return f"received since {utc(since_s)} UTC", lambda episode: episode["received_s"] >= since_s
    if version:
        return f"done by version {version}", lambda episode: episode["version"] == version
    policy = found[0]["policy"] if found else ""
    before = [d for d in client.data_sets(policy, limit=1000) if d["chosen_from"] == chosen_from]
    if not before:
        return "all, as this is the first data set", lambda episode: True
    last = before[0]
    return f"received after data set {last['number']}", lambda episode: episode["number"] > last["last_episode"]


def _source(episode: dict[str, Any], folder: Path, new: bool) -> Source:
    from vla_learning.datasets.selection import Source
    from vla_learning.episodes.summary import EpisodeSummary

    known = {field.name: episode[field.name] for field in fields(EpisodeSummary)}
    summary = EpisodeSummary(**known | {"instructions": tuple(episode["instructions"])})
    return Source(summary, folder / f"{summary.sha256}.mcap", episode["number"], new)


def _told(lineage: dict[str, Any]) -> str:
    """Return what was built, for people."""
    mix, parts = lineage["mix"], [episode["part"] for episode in lineage["episodes"]]
    drawn, weight = mix["corrections_of_new"], lineage["asked"]["correction_weight"]
    rows = [
        ("new", f"{_episodes_text(parts.count('new'))}, {mix['new_frames']} frames: {lineage['new']}"),
        ("corrections", f"{mix['corrections']} frames, {mix['corrections'] / mix['new_frames']:.1%} of the new ones"),
        ("", f"weighted {weight:g} x: {drawn:.1%} of new draws, {drawn * (1 - mix['replay_share']):.1%} of all draws"),
    ]
    failures = "failures" if lineage["asked"]["keep_failures"] else "corrected failures"
    if mix["replay_frames"]:
        old = f"{_episodes_text(parts.count('replay'))}, {mix['replay_frames']} frames, {mix['replay_share']:.0%} of all draws"
        rows.append(("replay", old))
        for s in lineage["strata"]:
            outcome = "successes" if s["success"] else failures
            rows.append(("", f"{s['chosen_episodes']} of {s['episodes']} {outcome}: {s['instruction']}"))
    else:
        rows.append(("replay", "none: nothing keeps older tasks from being forgotten"))
    rows.append(("effective", f"{mix['effective_frames']:.0f} of {mix['frames']} frames (Kish), after weighting"))
    rows += [("left out", f"{_episodes_text(count)}: {why}") for why, count in lineage["left_out"].items()]
    head = f"{_episodes_text(len(parts))}, {mix['frames']} frames"
    return "\n".join([head, *(f"{name:12} {text}" for name, text in rows)])


def _episodes_text(count: int) -> str:
    return f"{count} episode{'s' if count != 1 else ''}"
