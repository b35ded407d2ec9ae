"""Runs in LeRobot's own interpreter: ``python read_by_lerobot.py FOLDER OUT`` writes what LeRobot reads of a data set.

OUT/frames.npz: every frame's columns, pictures as uint8 ``[N, H, W, 3]``, and the chunk of actions from each frame on.
OUT/about.json: tasks, features of a policy, statistics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import dataset_to_policy_features

CHUNK = 5


def main(folder: Path, out: Path) -> None:
    # not in the cache and not on the Hub: all that it needs must be in the folder
    chunks = {"action": [step / 10.0 for step in range(CHUNK)]}
    dataset = LeRobotDataset("vla_ota/built", root=folder)
    chunked = LeRobotDataset("vla_ota/built", root=folder, delta_timestamps=chunks)
    frames = [dataset[index] for index in range(len(dataset))]
    arrays = {}
    for name, feature in dataset.features.items():
        values = np.stack([frame[name].numpy() for frame in frames])
        if feature["dtype"] == "image":
            values = (values.transpose(0, 2, 3, 1) * 255.0).round().astype(np.uint8)
        arrays[name] = values
    arrays["chunks"] = np.stack([chunked[index]["action"].numpy() for index in range(len(dataset))])
    arrays["chunks_pad"] = np.stack([chunked[index]["action_is_pad"].numpy() for index in range(len(dataset))])
    np.savez(out / "frames.npz", **arrays)
    features = dataset_to_policy_features(dataset.meta.features)
    about = {
        "tasks": [frame["task"] for frame in frames],
        "policy": {name: [feature.type.value, list(feature.shape)] for name, feature in features.items()},
        "stats": {name: {k: np.shape(v) for k, v in stats.items()} for name, stats in dataset.meta.stats.items()},
        "robot_type": dataset.meta.robot_type,
        "fps": dataset.fps,
        "one_episode": LeRobotDataset("vla_ota/built", root=folder, episodes=[1]).num_frames,
    }
    (out / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
