# SPDX-License-Identifier: Apache-2.0
"""Any training program: a command line by template, run as a process of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME
from vla_learning.training.errors import TrainingError
from vla_learning.training.trainer import Task, Trained

PLACES = ("dataset", "base", "out", "work", "seed", "episodes")
"""What a template may name: folders, the seed, and the numbers of the episodes to learn from, with commas between."""
_LOG = "trainer.log"


@dataclass(frozen=True)
class CommandTrainer:
    """Runs a template such as ``python train.py --data {dataset} --init {base} --out {out}``.

    The program writes the candidate's files (``config.json``, weights, statistics) to ``{out}``; with ``adapter_config.json``
    among them it is an adapter on the base. To be interrupted and go on is its own business; ``{work}`` is kept for it.
    """

    template: str

    def describe(self) -> Mapping[str, Any]:
        """Return name and template."""
        return {"trainer": "command", "template": self.template}

    def train(self, task: Task) -> Trained:
        """See :class:`vla_learning.training.trainer.Trainer`."""
        values = {
            "dataset": task.dataset.resolve(),
            "base": task.base.path,
            "out": task.out.resolve(),
            "work": task.work.resolve(),
            "seed": task.seed,
            "episodes": ",".join(map(str, task.episodes)),
        }
        try:
            arguments = [part.format(**values) for part in shlex.split(self.template)]
        except (KeyError, IndexError, ValueError) as e:
            text = f"{e} cannot be filled in; it may name {', '.join(f'{{{p}}}' for p in PLACES)}"
            raise TrainingError("TRAINER_TEMPLATE", self.template, text) from e
        run_program(arguments, task.work, quiet=task.quiet)
        return Trained("adapter" if (task.out / ADAPTER_CONFIG_NAME).exists() else "full", {})


def run_program(
    arguments: Sequence[str], work: Path, *, quiet: bool, environment: Mapping[str, str] | None = None
) -> None:
    """Run a training program to its end; what it prints goes to ``work/trainer.log`` and, unless ``quiet``, to the terminal.

    Raises:
        TrainingError: ``TRAINER_MISSING``, ``TRAINER_FAILED`` with its last line.
    """
    if not arguments or shutil.which(arguments[0]) is None:
        name = arguments[0] if arguments else "the command"
        raise TrainingError("TRAINER_MISSING", name, "there is no such program; install it, or give its whole path")
    log = work / _LOG
    last = ""
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, **(environment or {})},
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                last = line.strip() or last
                if not quiet:
                    sys.stderr.write(line)
        except BaseException:  # this process is stopped: the program goes with it
            process.terminate()
            raise
    status = process.returncode
    if status:
        raise TrainingError("TRAINER_FAILED", log, f"{arguments[0]} ended with status {status}: {last[-200:]}")
