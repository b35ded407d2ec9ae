# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet train``: data set → trainer → gate → published version → rollout or A/B test."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_fleet.cli.common import (
    FAILED,
    LOCAL,
    NOT_FINISHED,
    JsonOption,
    KeyOption,
    ServerOption,
    byte_bar,
    err,
    out,
    show,
)
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

if TYPE_CHECKING:
    from vla_learning.training.run import Run
    from vla_learning.training.trainer import Trainer

app = typer.Typer()
_RUNS = Path("runs")


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder of the data set, from `vla-fleet dataset build`.")],
    base: Annotated[str, typer.Option(help="What to begin with: a bundle's folder, NAME@VERSION or NAME@ALIAS.")],
    trainer: Annotated[str, typer.Option(help="tiny_vla, lerobot or command.")] = "tiny_vla",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the trainer, such as steps=800; may be repeated.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help="NAME=VALUE of the gate, such as margin_old=0.03; may be repeated."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = _RUNS,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    held_out: Annotated[
        float, typer.Option(help="Share of the episodes that is kept for the gate.", min=0.0, max=0.9)
    ] = 0.1,
    publish: Annotated[bool, typer.Option("--publish", help="Publish a candidate that the gate lets pass.")] = False,
    alias: Annotated[str, typer.Option(help="Let this alias point to it.")] = "",
    rollout: Annotated[str, typer.Option(help="Begin a rollout to: all, group:NAME or tag:NAME.")] = "",
    ab: Annotated[
        str, typer.Option("--ab", help="Begin an A/B test against the base on: group:NAME or tag:NAME.")
    ] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Train a candidate, let the gate compare it with its base, and publish what passes.

    The same command goes on with a run that was interrupted. Exit status 1: the gate stopped it.
    """
    if rollout and ab:
        raise typer.BadParameter("a version is either rolled out or tested; give one of --rollout and --ab")
    try:
        from vla_learning.training import run as training  # torch takes seconds that no other command needs
    except ImportError as e:
        raise FleetError("LEARNING_MISSING", f"{e.name} is not installed; training needs it") from e

    settings = training.RunSettings(seed=seed, held_out=held_out, gate=_gate(gate or []))
    with Client(server, key) as client, tempfile.TemporaryDirectory() as downloads:
        folder = _base(client, base, Path(downloads))
        run = training.train(dataset, folder, _trainer(trainer, setting or []), runs, settings, quiet=as_json)
        if run.passed and (publish or alias or rollout or ab):
            _publish(client, run, alias)
            _begin(client, run, rollout, ab)
    _show(run, as_json)
    if not run.passed:
        raise typer.Exit(FAILED)


@app.command()
def due(
    policy: Annotated[str, typer.Argument(help="Name of the model.")],
    corrections: Annotated[int, typer.Option(help="Corrected episodes that make it due.", min=1)] = 20,
    every_days: Annotated[float, typer.Option(help="Days after the last data set that make it due.", min=0.0)] = 7.0,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say whether training is due: enough new corrections, or enough days with at least one. Exit status 3: not yet.

    For cron: vla-fleet due NAME && vla-fleet dataset build … && vla-fleet train …
    """
    with Client(server, key) as client:
        last = next(iter(client.data_sets(policy, 1)), None)
        since = 0 if last is None else last["last_episode"]
        found = client.episodes(10 * corrections, policy=policy, corrected=True)
    fresh = [episode for episode in found if episode["number"] > since]
    days = (time.time() - (last["created_s"] if last else min((e["received_s"] for e in fresh), default=0.0))) / 86400.0
    is_due = len(fresh) >= corrections or (bool(fresh) and days >= every_days)
    count = f"{len(fresh)} corrected episodes since {'the last data set' if last else 'the beginning'}"
    text = f"{'due' if is_due else 'not yet due'}: {count} ({corrections} make it due)"
    if fresh:
        text += f", {days:.1f} days after {'it' if last else 'the first of them'} ({every_days:g} make it due)"
    show({"due": is_due, "corrections": len(fresh), "days": days if fresh else None}, as_json, text)
    if not is_due:
        raise typer.Exit(NOT_FINISHED)


def _base(client: Client, reference: str, downloads: Path) -> Path:
    folder = Path(reference)
    if folder.is_dir():
        return folder
    if "@" not in reference:
        raise typer.BadParameter(f"{reference} is no folder, nor NAME@VERSION or NAME@ALIAS", param_hint="--base")
    with byte_bar(reference) as progress:
        return client.download(reference, downloads, progress=progress)


def _trainer(name: str, given: list[str]) -> Trainer:
    values = dict(_pair(text, "--set") for text in given)
    if name == "tiny_vla":
        from vla_learning.training.lora import LoRASettings
        from vla_learning.training.tiny_vla import Settings, TinyVLATrainer

        own = {key[len("lora_") :]: values.pop(key) for key in list(values) if key.startswith("lora_")}
        settings = _filled(Settings(), values, "--set", without=("lora",))
        return TinyVLATrainer(replace(settings, lora=_filled(LoRASettings(), own, "--set")))
    if name == "lerobot":
        from vla_learning.training.lerobot import LeRobotTrainer

        lerobot: Trainer = _filled(LeRobotTrainer(), values, "--set")
        return lerobot
    if name == "command":
        from vla_learning.training.command import CommandTrainer

        if "template" not in values:
            raise typer.BadParameter("needs template=COMMAND with {dataset}, {base} and {out}", param_hint="--set")
        return CommandTrainer(values["template"])
    raise typer.BadParameter(f"{name!r} is none of tiny_vla, lerobot, command", param_hint="--trainer")


def _gate(given: list[str]) -> Any:
    from vla_learning.gate.checks import GateSettings

    return _filled(GateSettings(), dict(_pair(text, "--gate") for text in given), "--gate")


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r}: write NAME=VALUE", param_hint=option)
    return name, value


def _filled(settings: Any, values: Mapping[str, str], option: str, without: tuple[str, ...] = ()) -> Any:
    """Return settings with values from the command line, of each field's own type."""
    known = {f.name: type(getattr(settings, f.name)) for f in fields(settings) if f.name not in without}
    typed: dict[str, Any] = {}
    for name, text in values.items():
        kind = known.get(name)
        if kind is None:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
        try:
            typed[name] = _value(text, kind)
        except ValueError as e:
            raise typer.BadParameter(f"{name}={text}: needs {kind.__name__}", param_hint=option) from e
    return replace(settings, **typed)


def _value(text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(text.split())
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return kind(text)


def _publish(client: Client, run: Run, alias: str) -> None:
    if "published" in run.document:
        return
    with byte_bar(run.id) as progress:
        version = client.publish(run.bundle, bump="auto", alias=alias, progress=progress)
    run.note(published={"name": version["name"], "version": version["version"], "digest": version["digest"]})


def _begin(client: Client, run: Run, rollout: str, ab: str) -> None:
    published, base = run.document["published"], run.document["base"]
    model = f"{published['name']}@{published['version']}"
    if rollout and "rollout" not in run.document:
        run.note(rollout=client.create_rollout(model, rollout)["id"])
    if ab and "experiment" not in run.document:
        kind, _, name = ab.partition(":")
        if kind not in ("group", "tag") or not name:
            raise typer.BadParameter(f"{ab!r}: say group:NAME or tag:NAME", param_hint="--ab")
        design = {"a": f"{base['name']}@{base['version']}", "b": model, "unit": "episode", kind: name}
        run.note(experiment=client.create_experiment(design))


def _show(run: Run, as_json: bool) -> None:
    document = run.document
    if as_json:
        out.print_json(json.dumps(document))
        return
    candidate, console = document["candidate"], out if run.passed else err
    console.print(
        f"run {run.id}: {candidate['name']} {candidate['version']}, {candidate['kind']}, in {run.bundle}",
        soft_wrap=True,
    )
    for line in document["gate"]["lines"]:
        console.print(line, soft_wrap=True, markup=False)
    for what in ("published", "rollout", "experiment"):
        if what in document:
            console.print(f"{what}: {json.dumps(document[what])}", soft_wrap=True, markup=False)
