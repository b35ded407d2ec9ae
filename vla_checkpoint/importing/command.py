# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint import``: what was typed, what the contract says and what LeRobot wrote, joined and made into a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_checkpoint.bundle import open_bundle
from vla_checkpoint.config import load_config
from vla_checkpoint.errors import FileError, ImportFolderError
from vla_checkpoint.files import Progress
from vla_checkpoint.importing.dataset import Dataset, find_dataset, read_dataset
from vla_checkpoint.importing.folder import Accept, import_folder
from vla_checkpoint.importing.plan import Target, identify
from vla_checkpoint.importing.source import find_source
from vla_checkpoint.importing.training import Training, lerobot_needed, read_training, releases_like
from vla_checkpoint.manifest import BaseRef, load_manifest


@dataclass(frozen=True)
class Robot:
    """A robot contract, as far as an import needs it."""

    target: Target
    accept: Accept


ReadRobot = Callable[[str], Robot]
"""Reads a robot contract; raises a CheckpointError."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only an import has."""
    parser.add_argument("--out", required=True, metavar="DIR", help="bundle to create; NAME/VERSION at its end name it")
    parser.add_argument(
        "--dataset", default="", metavar="DIR", help="its data set, a folder or org/name; default: as train_config.json"
    )  # fmt: skip
    parser.add_argument(
        "--execute", type=int, metavar="N", help="actions of a chunk to execute; default: the checkpoint's, or half if all"
    )  # fmt: skip
    parser.add_argument(
        "--lerobot-version",
        type=_releases,
        metavar="X.Y.Z",
        help="release that wrote it; default: guessed from its files",
    )
    parser.add_argument("--merge", action="store_true", help="merge this LoRA adapter into the bundle of --base")
    parser.set_defaults(contract="", read_robot=None)


def run(options: argparse.Namespace, progress: Progress | None) -> dict[str, Any]:
    """Import, and return what a person wants to know of it beside the bundle.

    Raises:
        CheckpointError: nothing was made.
    """
    folder, out = find_source(options.dir), Path(options.out)
    robot = options.read_robot(options.contract) if options.contract else None
    typed = Target(options.robot_type, options.rate_hz or 0.0, tuple(options.channel or ()))
    if robot is not None and typed != Target():
        raise ImportFolderError(
            "IMPORT_MISMATCH", options.contract, "says --robot-type, --rate-hz and --channel: leave them out"
        )
    if options.merge and options.base is None:
        raise ImportFolderError(
            "IMPORT_INCOMPLETE", folder, "--merge needs the bundle that the adapter was trained on: --base DIR"
        )
    training = read_training(folder)
    dataset = _dataset(options.dataset, training)
    who = identify(out, options.name, options.version, typed if robot is None else robot.target, dataset)
    config = load_config(folder)
    release = options.lerobot_version or lerobot_needed(config.type, config.raw, training.config)
    report = import_folder(
        folder,
        out,
        name=who.name,
        version=who.version,
        robot_type=who.robot_type,
        channels=who.channels,
        rate_hz=who.rate_hz,
        base=None if options.merge else base_ref(options.base),
        merge_into=options.base if options.merge else None,
        execute=options.execute,
        requires={"lerobot": release} if release else None,
        lineage={**training.lineage, **(options.lineage or {})},
        created=options.created,
        accept=(lambda bundle: ()) if robot is None else robot.accept,
        progress=progress,
    )
    notes = [*report.notes]
    if release and not options.lerobot_version:
        notes.append(f"lerobot {release} is guessed from the files; --lerobot-version X.Y.Z says it")
    if dataset is None:
        notes.append("no data set was found to compare names, order and rate with: --dataset DIR names it")
    return {
        "source": _shown(folder, report.manifest.lineage.get("revision")),
        "dataset": None if dataset is None else _described(dataset),
        "notes": notes,
        "left_out": dict(report.left_out),
        "bundle": open_bundle(out),
    }


def base_ref(folder: str | None) -> BaseRef | None:
    """Return the reference to a bundle."""
    if folder is None:
        return None
    try:
        manifest = load_manifest(folder)
    except FileError as e:
        reason = f"{e.reason}: a base is the bundle that the adapter was trained on; import it first"
        raise FileError(e.code, e.path, reason) from e
    return BaseRef(manifest.name, manifest.version, manifest.digest)


def _dataset(asked: str, training: Training) -> Dataset | None:
    found = find_dataset(asked or training.dataset, "" if asked else training.root)
    if found is None and asked:
        raise ImportFolderError(
            "IMPORT_DATASET", asked, "no meta/info.json in it, nor in LeRobot's folder of that name"
        )
    return None if found is None else read_dataset(found)


def _described(dataset: Dataset) -> str:
    parts = [f"{dataset.rate_hz:g} Hz", dataset.robot_type, f"{len(dataset.action)} actions" if dataset.action else ""]
    return f"{dataset.path.parent.parent}: {', '.join(part for part in parts if part)}"


def _shown(folder: Path, revision: object) -> str:
    return f"{folder}" if revision is None else f"{folder} (revision {revision})"


def _releases(text: str) -> str:
    found = releases_like(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no release such as 0.4.4")
    return found
