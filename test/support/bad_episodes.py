# SPDX-License-Identifier: Apache-2.0
"""Files of episodes that nothing can be learned from, among those of a robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.adaptive_robot import FEATURES, STEPS, write_own_episode
from support.tiny_vla_bundles import CAMERA, STATE
from vla_learning.episodes.format import Channel, EpisodeMeta
from vla_learning.episodes.writing import write_episode

REASONS = ("nan.mcap", "short.mcap", "other.mcap")


def write_bad_episodes(folder: Path) -> None:
    """Write an episode with a NaN, one that was cut off, and one of a robot with another unit; names sort behind all others."""
    channels = (Channel("j1", "rad"), Channel("j2", "rad"))
    meta = EpisodeMeta(
        episode_id="nan", policy="tiny", version="1.0.0", rate_hz=20.0, channels=channels, features=FEATURES,
        robot_type="sim_arm", instruction="block", success=True,
    )  # fmt: skip
    states, actions = np.zeros((STEPS, 2), np.float32), np.zeros((STEPS, 2), np.float32)
    actions[3] = np.nan
    write_episode(folder / "nan.mcap", meta, {STATE: states, CAMERA: np.zeros((STEPS, 32, 32, 3), np.uint8)}, actions)
    write_own_episode(folder / "short.mcap", 1, corrected=False)
    whole = (folder / "short.mcap").read_bytes()
    (folder / "short.mcap").write_bytes(whole[:-500])
    degrees = (Channel("j1", "deg"), Channel("j2", "deg"))
    write_own_episode(folder / "other.mcap", 2, corrected=True, channels=degrees)
