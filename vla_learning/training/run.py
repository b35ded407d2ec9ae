# SPDX-License-Identifier: Apache-2.0
"""A training run from data set to gated candidate, recorded in ``RUNS/<id>/run.json`` as it goes.

The id is a hash of data set, base, trainer, seed and gate: the same command goes on with a run that was interrupted, and shows
one that has ended. Publishing is the caller's business (``vla-fleet train``).

::

    <runs>/<id>/run.json    what went in, where it stands, what came out
                work/       the trainer's checkpoint, loss.png, event files
                bundle/     the candidate
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vla_checkpoint import Bundle, sha256_file, verify_bundle
from vla_checkpoint.files import write_atomically
from vla_learning.datasets import layout
from vla_learning.datasets.reading import DataSet, open_dataset
from vla_learning.gate.checks import GateSettings
from vla_learning.gate.gate import Held, judge
from vla_learning.training.errors import TrainingError
from vla_learning.training.recordings import observations_of
from vla_learning.training.sealing import add_golden, add_lineage, seal
from vla_learning.training.trainer import Task, Trainer

RUN_FILE = "run.json"
_GOLDEN_COUNT = 6
Json = dict[str, Any]


@dataclass(frozen=True)
class RunSettings:
    """What a run is, beside trainer, data set and base.

    Attributes:
        seed: of everything that is drawn.
        held_out: share of the episodes that the trainer does not see; the gate asks about them.
        gate: what it asks.
    """

    seed: int = 0
    held_out: float = 0.1
    gate: GateSettings = field(default_factory=GateSettings)


class Run:
    """One run, as its file has it."""

    def __init__(self, folder: Path, document: Json) -> None:
        self.folder, self.document = folder, document

    @property
    def id(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def ended(self) -> bool:
        """Whether the gate has spoken."""
        return "gate" in self.document

    @property
    def passed(self) -> bool:
        """Whether the gate let the candidate pass."""
        return self.ended and bool(self.document["gate"]["passed"])

    @property
    def bundle(self) -> Path:
        """Folder of the candidate."""
        return self.folder / "bundle"

    def note(self, **values: Any) -> None:
        """Record something; written atomically.

        Raises:
            FileError: it cannot be written.
        """
        self.document.update(values)
        write_atomically(self.folder / RUN_FILE, (json.dumps(self.document, indent=1) + "\n").encode())


def train(
    dataset: Path, base: Path, trainer: Trainer, runs: Path, settings: RunSettings, *, quiet: bool = False
) -> Run:
    """Train a candidate and ask the gate; go on with the same run if it was begun before.

    Args:
        dataset: folder of a LeRobotDataset v3.0.
        base: folder of the bundle to begin with.
        trainer: how.
        runs: folder of all runs.
        settings: see there.
        quiet: show no progress.

    Raises:
        LearningError: the data set or the trainer.
        CheckpointError: the base, or what the trainer wrote, is no bundle.
    """
    opened = verify_bundle(base)
    data = open_dataset(dataset)
    run = _begin(data, opened, trainer, runs, settings)
    if run.ended:
        return run
    held = _hold_out(data, settings)
    kept = {*held.old, *held.new}
    learned = tuple(n for n in range(len(data.episodes)) if n not in kept)
    work, out = run.folder / "work", run.bundle
    work.mkdir(exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)  # of an interrupted run; what a trainer goes on from lies in ``work``
    out.mkdir()
    task = Task(dataset, opened, learned, out, work, settings.seed, quiet)
    trained = trainer.train(task)
    run.note(training=dict(trained.figures), held_out=sorted(kept))
    candidate = seal(out, opened, trained.kind, {**_lineage(run), "training": dict(trained.figures)})
    if not candidate.has_golden:
        add_golden(out, candidate, opened, *golden_observations(data, opened, settings.seed))
        candidate = seal(out, opened, trained.kind, {**_lineage(run), "training": dict(trained.figures)})
    verdict = judge(opened, candidate, held, settings.gate, quiet=quiet)
    candidate = add_lineage(candidate, {"gate": verdict.as_json()})
    manifest = candidate.manifest
    run.note(
        candidate={
            "name": manifest.name,
            "version": manifest.version,
            "digest": candidate.digest,
            "kind": manifest.kind,
        },
        gate={**verdict.as_json(), "lines": verdict.lines()},
    )
    return run


def dataset_digest(folder: Path) -> str:
    """SHA-256 over the names and SHA-256 of a data set's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(path: Path) -> Run:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Run(path.parent, {"begun": document["begun"], **document})
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise TrainingError("TRAINING_RUN", path, f"is no record of a run ({e}); remove its folder") from e


def _begin(data: DataSet, base: Bundle, trainer: Trainer, runs: Path, settings: RunSettings) -> Run:
    what = {
        "dataset": {"digest": dataset_digest(data.folder), "episodes": len(data.episodes), "frames": data.frames},
        "base": {"name": base.manifest.name, "version": base.manifest.version, "digest": base.digest},
        "trainer": dict(trainer.describe()),
        "seed": settings.seed,
        "held_out_share": settings.held_out,
        "gate_settings": asdict(settings.gate),
    }
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    path = runs / name / RUN_FILE
    if path.exists():
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = Run(path.parent, {})
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    run.note(id=name, begun=now, dataset_folder=str(data.folder), **what)
    return run


def _lineage(run: Run) -> Json:
    """Where the candidate comes from, for its manifest."""
    document = run.document
    return {
        "training_run": run.id,
        "data_set": f"sha256:{document['dataset']['digest']}",
        "trainer": document["trainer"],
        "seed": document["seed"],
    }


def _hold_out(data: DataSet, settings: RunSettings) -> Held:
    """Choose the episodes that are kept for the gate: by the seed, so many of the old and of the corrected ones."""
    old, corrected, new = parts_of(data)
    rng = np.random.default_rng(settings.seed)

    def kept(numbers: Sequence[int]) -> list[int]:
        count = round(settings.held_out * len(numbers))
        return sorted(int(n) for n in rng.choice(numbers, count, replace=False)) if count else []

    asked = corrected or new
    task_of = data.task_of_episode
    return Held(data, kept(old), kept(asked), [task_of[n] for n in old], [task_of[n] for n in asked])


def parts_of(data: DataSet) -> tuple[list[int], list[int], list[int]]:
    """Return the episodes that are replayed, those that were corrected, and all new ones; a foreign data set is all new."""
    path = data.folder / layout.LINEAGE
    if not path.exists():
        return [], [], list(range(len(data.episodes)))
    entries: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["episodes"]
    new = [n for n, entry in enumerate(entries) if entry["part"] == "new"]
    corrected = [n for n in new if entries[n]["corrections"]]
    return [n for n, entry in enumerate(entries) if entry["part"] == "replay"], corrected, new


def golden_observations(
    data: DataSet, base: Bundle, seed: int, count: int = _GOLDEN_COUNT
) -> tuple[dict[str, Any], list[str]]:
    """Return moments of the data set for the golden file."""
    frames = np.sort(np.random.default_rng(seed).choice(data.frames, min(count, data.frames), replace=False))
    tasks = data.columns("task_index")["task_index"][frames]
    return observations_of(data, frames, base.config.input_features), [data.tasks[task] for task in tasks]
