# SPDX-License-Identifier: Apache-2.0
"""The contract of a trainer: from a data set and a base to the files of a candidate.

A trainer may be stopped at any time, and is called again with the same arguments: it goes on from its own checkpoint in
``Task.work``. Which episodes it must not see is decided before, so that the gate can ask about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vla_checkpoint import Bundle
from vla_checkpoint.manifest import Kind


@dataclass(frozen=True)
class Task:
    """What a trainer is given.

    Attributes:
        dataset: folder of a LeRobotDataset v3.0.
        base: the bundle to begin with; never changed.
        episodes: those of the data set to learn from; the others are kept for the gate.
        out: folder for the candidate's files, empty.
        work: folder for what the trainer keeps for itself: checkpoints, plots, logs.
        seed: of everything that is drawn.
        quiet: show no progress.
        plots: draw the loss and write event files.
    """

    dataset: Path
    base: Bundle
    episodes: tuple[int, ...]
    out: Path
    work: Path
    seed: int
    quiet: bool = False
    plots: bool = True


@dataclass(frozen=True)
class Trained:
    """What came out: ``kind`` of the candidate, and figures for the record (JSON values)."""

    kind: Kind
    figures: Mapping[str, Any]


class Trainer(Protocol):
    """One way to train."""

    def describe(self) -> Mapping[str, Any]:
        """Return name and settings as JSON values: for the record, and to know whether a run that was stopped is the same."""

    def train(self, task: Task) -> Trained:
        """Write the candidate's files (without manifest) to ``task.out``.

        Raises:
            TrainingError: it cannot begin, or did not end.
            CheckpointError: what is wrong with the base.
        """
