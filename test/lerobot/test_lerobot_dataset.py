"""A data set that we built is one for LeRobot: its own reader gives frames, pictures, tasks and chunks as recorded."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.episodes import CAMERA, FEATURES, STATE, make_episode, meta

from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.reading import open_dataset
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.episodes.format import Channel, Feature
from vla_learning.episodes.summary import summarize
from vla_learning.episodes.writing import write_episode

TOP = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("VLA_OTA_LEROBOT_PYTHON", str(TOP / ".venv-lerobot/bin/python"))
pytestmark = pytest.mark.timeout(300)


def read_by_lerobot(folder: Path, out: Path) -> None:
    assert Path(PYTHON).exists(), f"{PYTHON} is not there: run `make test-lerobot`, or set VLA_OTA_LEROBOT_PYTHON"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf"), "PYTHONPATH": ""}
    command = [PYTHON, str(Path(__file__).with_name("read_by_lerobot.py")), str(folder), str(out)]
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lerobot_reads_every_frame_as_it_was_recorded(tmp_path: Path) -> None:
    sources, made = [], []
    blue = {"instruction": "pick the blue block"}
    for number, options in enumerate([{}, blue, {"corrected": 4, "success": False}, {"steps": 30}]):
        path = tmp_path / f"{number}.mcap"
        made.append(make_episode(path, number, **options))
        sources.append(Source(summarize(path), path, number, new=number >= 2))
    build_dataset(sources, tmp_path / "set", BuildSettings(file_bytes=10_000))
    assert len(list((tmp_path / "set" / "data").rglob("*.parquet"))) > 1
    read_by_lerobot(tmp_path / "set", tmp_path)
    found = dict(np.load(tmp_path / "frames.npz"))
    about = json.loads((tmp_path / "about.json").read_text())

    for name in (STATE, CAMERA):
        np.testing.assert_array_equal(found[name], np.concatenate([episode["features"][name] for episode in made]))
    for name, ours in (("action", "actions"), ("policy_action", "policy_actions"), ("intervention", "intervention")):
        np.testing.assert_array_equal(found[name], np.concatenate([episode[ours] for episode in made]))
    dataset = open_dataset(tmp_path / "set")
    for name in ("sampling_weight", "timestamp", "frame_index", "episode_index", "index", "task_index"):
        np.testing.assert_array_equal(found[name], dataset.columns(name)[name])
    assert about["tasks"] == [dataset.tasks[index] for index in found["task_index"]]
    assert about["tasks"][12:24] == ["pick the blue block"] * 12

    # the chunk from each frame on, padded with the episode's last action
    for place, frames in enumerate(dataset.episodes):
        actions = made[place]["actions"]
        for step, frame in enumerate(frames):
            expected = actions[np.minimum(np.arange(step, step + 5), len(actions) - 1)]
            np.testing.assert_array_equal(found["chunks"][frame], expected)
            assert found["chunks_pad"][frame].sum() == max(0, step + 5 - len(actions))

    assert about["policy"] == {CAMERA: ["VISUAL", [3, 8, 10]], STATE: ["STATE", [2]], "action": ["ACTION", [2]]}
    assert about["stats"][CAMERA]["mean"] == [3, 1, 1] and about["stats"]["action"]["q01"] == [2]
    assert about["robot_type"] == "sim_arm" and about["fps"] == 10 and about["one_episode"] == 12


def test_lerobot_reads_a_robot_with_one_joint(tmp_path: Path) -> None:
    """LeRobot stores a single number otherwise than a list."""
    features = {STATE: Feature("float32", (1,)), CAMERA: FEATURES[CAMERA]}
    values = np.linspace(0.0, 1.0, 6, dtype=np.float32)[:, None]
    arrays = {STATE: values, CAMERA: np.zeros((6, 8, 10, 3), np.uint8)}
    sources = []
    for number in range(2):
        path = tmp_path / f"{number}.mcap"
        write_episode(path, meta(number, features=features, channels=(Channel("j1", "rad"),)), arrays, values * 2)
        sources.append(Source(summarize(path), path, number, new=True))
    build_dataset(sources, tmp_path / "set", BuildSettings(allow_no_corrections=True))
    read_by_lerobot(tmp_path / "set", tmp_path)
    found = dict(np.load(tmp_path / "frames.npz"))
    np.testing.assert_array_equal(found[STATE].reshape(-1), np.tile(values[:, 0], 2))
    np.testing.assert_array_equal(found["action"].reshape(-1), np.tile(values[:, 0] * 2, 2))
