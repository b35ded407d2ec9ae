# SPDX-License-Identifier: Apache-2.0
"""Episodes of the simulated arm as files, with an operator who takes over, and data sets of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.episodes.format import Channel, EpisodeMeta, Feature
from vla_learning.episodes.summary import summarize
from vla_learning.episodes.writing import write_episode
from vla_learning.simulate.operator import Recording
from vla_sim.arm import CONTROL_HZ, JOINT_NAMES, ROBOT_TYPE
from vla_sim.observation import IMAGE_KEY, STATE_KEY

FEATURES = {STATE_KEY: Feature("float32", (3,), JOINT_NAMES), IMAGE_KEY: Feature("image", (64, 64, 3))}
CHANNELS = tuple(Channel(name, "rad") for name in JOINT_NAMES)


def write_recording(path: Path, number: int, recording: Recording) -> None:
    """Write one episode as a robot's recorder does; between two pictures the last one is seen."""
    steps = np.arange(len(recording.states))
    intervention = steps >= (len(steps) if recording.taken_over is None else recording.taken_over)
    meta = EpisodeMeta(
        episode_id=f"e-{number}", policy="reach_block", version="1.0.0", rate_hz=float(CONTROL_HZ), channels=CHANNELS,
        features=FEATURES, robot="arm", robot_type=ROBOT_TYPE, instruction=recording.episode.instruction,
        success=recording.success, started_ns=1_800_000_000_000_000_000 + number * 10**12,
    )  # fmt: skip
    features = {STATE_KEY: recording.states, IMAGE_KEY: recording.pictures[steps // recording.every]}
    write_episode(path, meta, features, recording.actions, intervention=intervention)


def data_set(folder: Path, old: list[Recording], new: list[Recording]) -> Path:
    """Build a data set of old and new episodes."""
    folder.mkdir(parents=True)
    sources = []
    for number, recording in enumerate([*old, *new]):
        path = folder / f"{number}.mcap"
        write_recording(path, number, recording)
        sources.append(Source(summarize(path), path, number, number >= len(old)))
    build_dataset(sources, folder / "set", BuildSettings())
    return folder / "set"
