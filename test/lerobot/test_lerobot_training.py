# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own ``lerobot-train`` fine-tunes a bundle on a data set that we built, is resumed, and what it writes is a bundle."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.episodes import make_episode

from vla_checkpoint import Channel, import_folder, open_bundle, verify_bundle
from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.episodes.summary import summarize
from vla_learning.training.lerobot import LeRobotTrainer
from vla_learning.training.sealing import seal
from vla_learning.training.trainer import Task

TOP = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("VLA_OTA_LEROBOT_PYTHON", str(TOP / ".venv-lerobot/bin/python")))
PROGRAM = str(PYTHON.with_name("lerobot-train"))
CHANNELS = [Channel("j1", "rad", "absolute"), Channel("j2", "rad", "absolute")]
pytestmark = pytest.mark.timeout(600)


def data_set(folder: Path) -> Path:
    sources = []
    for number in range(4):
        path = folder / f"{number}.mcap"
        make_episode(path, number, steps=20, corrected=5 if number == 3 else 0)
        sources.append(Source(summarize(path), path, number, new=number >= 2))
    build_dataset(sources, folder / "set", BuildSettings())
    return folder / "set"


def from_scratch(dataset: Path, out: Path) -> Path:
    """A small ACT of LeRobot's own making, as a bundle."""
    sizes = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    policy = {"type": "act", "push_to_hub": "false", "device": "cpu", "chunk_size": 10, "n_action_steps": 5}
    policy |= {"pretrained_backbone_weights": "null", **sizes}
    arguments = [f"--policy.{name}={value}" for name, value in policy.items()]
    arguments += ["--dataset.repo_id=local/set", f"--dataset.root={dataset}", f"--output_dir={out / 'run'}"]
    arguments += ["--steps=1", "--batch_size=2", "--num_workers=0", "--wandb.enable=false"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    made = out / "run" / "checkpoints" / "last" / "pretrained_model"
    import_folder(made, out / "base", name="pick", version="1.0.0", robot_type="arm", channels=CHANNELS, rate_hz=10.0)
    return out / "base"


def test_lerobot_train_goes_on_from_a_bundle_and_from_its_own_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PYTHON.exists(), f"{PYTHON} is not there: run `make test-lerobot`, or set VLA_OTA_LEROBOT_PYTHON"
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dataset = data_set(tmp_path)
    base = open_bundle(from_scratch(dataset, tmp_path))
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    task = Task(dataset, base, (0, 2, 3), tmp_path / "out", tmp_path / "work", 7, quiet=True)
    LeRobotTrainer(PROGRAM, steps=2, batch=2, more=("--num_workers=0",)).train(task)
    first = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")

    trained = LeRobotTrainer(PROGRAM, steps=3, batch=2, more=("--num_workers=0",)).train(task)
    candidate = verify_bundle(seal(task.out, base, trained.kind, {}).path)
    assert candidate.manifest.version == "1.1.0" and candidate.manifest.policy_type == "act"
    again = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    old = safetensors.numpy.load_file(base.path / "model.safetensors")
    assert old.keys() == first.keys() == again.keys()
    for before, after in ((old, first), (first, again)):
        moved = [np.abs(after[name] - before[name]).max() for name in old if before[name].dtype == np.float32]
        assert 0.0 < max(moved) < 0.1, "fine-tuned, not begun anew"
