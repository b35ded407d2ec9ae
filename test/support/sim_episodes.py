# SPDX-License-Identifier: Apache-2.0
"""Episodes of the simulated arm as files, with an operator who takes over."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import numpy as np

from vla_learning.episodes.format import Channel, EpisodeMeta, Feature
from vla_learning.episodes.writing import write_episode
from vla_learning.simulate.operator import Recording
from vla_sim.arm import CONTROL_HZ, JOINT_NAMES, ROBOT_TYPE
from vla_sim.observation import IMAGE_KEY, STATE_KEY

FEATURES = {STATE_KEY: Feature("float32", (3,), JOINT_NAMES), IMAGE_KEY: Feature("image", (64, 64, 3))}
CHANNELS = tuple(Channel(name, "rad") for name in JOINT_NAMES)


def write_recording(path: Path, number: int, recording: Recording, version: str) -> None:
    """Write one episode as a robot's recorder does; between two pictures the last one is seen."""
    steps = np.arange(len(recording.states))
    intervention = steps >= (len(steps) if recording.taken_over is None else recording.taken_over)
    meta = EpisodeMeta(
        episode_id=f"e-{number}", policy="reach_block", version=version, rate_hz=float(CONTROL_HZ), channels=CHANNELS,
        features=FEATURES, robot="arm", robot_type=ROBOT_TYPE, instruction=recording.episode.instruction,
        success=recording.success, started_ns=1_800_000_000_000_000_000 + number * 10**12,
    )  # fmt: skip
    features = {STATE_KEY: recording.states, IMAGE_KEY: recording.pictures[steps // recording.every]}
    write_episode(path, meta, features, recording.actions, intervention=intervention)


def upload(url: str, token: str, path: Path) -> None:
    """Send an episode to the server as a robot does."""
    data = path.read_bytes()
    address = f"{url}/v1/robot/episodes/{hashlib.sha256(data).hexdigest()}"
    query, headers = {"offset": 0, "total_bytes": len(data)}, {"Authorization": f"Bearer {token}"}
    assert httpx.put(address, params=query, headers=headers, content=data, timeout=30.0).json()["complete"]
