# SPDX-License-Identifier: Apache-2.0
"""What LeRobot writes around a policy, as data: training runs, data sets, and the folders of other projects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.bundles import plain_stats, write_folder, write_json, write_processors

JOINTS = ("shoulder.pos", "gripper.pos")


def training_run(run: Path, *, step: int = 60, dataset: Path | str = "me/pick", **config: Any) -> Path:
    """Write ``lerobot-train``'s output folder for a two-joint ACT with LeRobot's defaults; return its last checkpoint."""
    folder = run / "checkpoints" / f"{step:06d}" / "pretrained_model"
    settings = {"horizon": 100, "execute": 100, "pretrained_path": None, "use_peft": False, **config}
    write_folder(folder, policy_type="act", **settings)
    (folder / "stats.json").unlink()
    write_processors(folder, {feature: plain_stats(2) for feature in ("observation.state", "action")})
    is_folder = isinstance(dataset, Path)
    document = {
        "dataset": {"repo_id": "me/pick" if is_folder else dataset, "root": str(dataset) if is_folder else None},
        "policy": {"type": "act", "pretrained_path": None},
        "output_dir": "/home/me/outputs/train/run",
        "steps": 1000,
        "seed": 1,
    }
    write_json(folder / "train_config.json", document)
    (folder.parent / "training_state").mkdir()
    write_json(folder.parent / "training_state" / "training_step.json", {"step": step})
    (run / "checkpoints" / "last").symlink_to(f"{step:06d}")
    return folder


def write_dataset(folder: Path, *, fps: float = 30, names: Any = JOINTS, robot_type: str = "so101_follower") -> Path:
    """Write the part of a LeRobot data set that an import reads."""
    (folder / "meta").mkdir(parents=True)
    listed = list(names) if isinstance(names, Sequence) else names
    action = {"dtype": "float32", "shape": [2], "names": listed}
    write_json(folder / "meta" / "info.json", {"fps": fps, "robot_type": robot_type, "features": {"action": action}})
    return folder
