# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own ``lerobot-train`` as a process: it loads the data set and the base as they are, its checkpoint becomes a bundle.

LeRobot draws every step of the data set equally often: ``sampling_weight`` is a column that it does not know.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vla_checkpoint import BaseRef, import_folder
from vla_learning.training.command import run_program
from vla_learning.training.errors import TrainingError
from vla_learning.training.trainer import Task, Trained

_CHECKPOINT = "checkpoints/last/pretrained_model"
_OFFLINE = {"HF_HUB_OFFLINE": "1"}  # base and data set lie here


@dataclass(frozen=True)
class LeRobotTrainer:
    """Fine-tunes a LeRobot policy.

    Attributes:
        program: ``lerobot-train``, of the environment that has LeRobot.
        steps, batch: of the optimiser.
        device: as LeRobot names it.
        more: further arguments, such as ``--num_workers=2``.
    """

    program: str = "lerobot-train"
    steps: int = 5000
    batch: int = 8
    device: str = "cpu"
    more: tuple[str, ...] = ()

    def describe(self) -> Mapping[str, Any]:
        """Return name and settings."""
        return {"trainer": "lerobot", **asdict(self), "more": list(self.more)}

    def train(self, task: Task) -> Trained:
        """See :class:`vla_learning.training.trainer.Trainer`."""
        run_program(self.arguments(task), task.work, quiet=task.quiet, environment=_OFFLINE)
        checkpoint = task.work / "lerobot" / _CHECKPOINT
        if not checkpoint.is_dir():
            raise TrainingError(
                "TRAINER_FAILED", checkpoint, "lerobot-train ended without a checkpoint; see trainer.log"
            )
        return self._imported(task)

    def arguments(self, task: Task) -> list[str]:
        """Return the command line: a new run, or one that goes on from LeRobot's last checkpoint."""
        output = task.work / "lerobot"
        resumed = output / _CHECKPOINT / "train_config.json"
        if resumed.exists():
            return [self.program, f"--config_path={resumed.resolve()}", "--resume=true", f"--steps={self.steps}"]
        if output.exists():  # interrupted before its first checkpoint; LeRobot refuses a folder that exists
            shutil.rmtree(output)
        return [
            self.program,
            f"--policy.path={task.base.path}",
            "--policy.push_to_hub=false",
            f"--policy.device={self.device}",
            f"--dataset.repo_id=local/{task.dataset.name}",
            f"--dataset.root={task.dataset.resolve()}",
            f"--dataset.episodes=[{','.join(map(str, task.episodes))}]",
            f"--output_dir={output.resolve()}",
            f"--steps={self.steps}",
            f"--batch_size={self.batch}",
            f"--save_freq={max(1, self.steps // 10)}",
            f"--seed={task.seed}",
            "--wandb.enable=false",
            *self.more,
        ]

    def _imported(self, task: Task) -> Trained:
        """Bring LeRobot's files into the form of a bundle, as ``vla-checkpoint import`` does."""
        old, aside = task.base.manifest, task.work / "imported"
        shutil.rmtree(aside, ignore_errors=True)
        report = import_folder(
            task.work / "lerobot" / _CHECKPOINT,
            aside,
            name=old.name,
            version=old.version,
            robot_type=old.robot_type,
            channels=old.action.channels,
            rate_hz=old.action.rate_hz,
            base=BaseRef(old.name, old.version, task.base.digest)
            if (task.work / "lerobot" / _CHECKPOINT / "adapter_config.json").exists()
            else None,
            requires=old.requires,
        )
        shutil.copytree(aside, task.out, dirs_exist_ok=True)
        return Trained(report.manifest.kind, {"steps": self.steps, "notes": list(report.notes)})
