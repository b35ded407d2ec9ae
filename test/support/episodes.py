# SPDX-License-Identifier: Apache-2.0
"""Episodes of a small robot: two joints and a camera of 8 x 10, in which every step can be told from every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_learning.episodes.format import Channel, EpisodeMeta, Feature
from vla_learning.episodes.writing import write_episode

CAMERA, STATE = "observation.images.top", "observation.state"
RATE_HZ = 10.0
FEATURES = {STATE: Feature("float32", (2,), ("j1", "j2")), CAMERA: Feature("image", (8, 10, 3))}
CHANNELS = (Channel("j1", "rad"), Channel("j2", "rad"))


def meta(number: int = 0, **changes: Any) -> EpisodeMeta:
    """Return what is known of an episode; ``changes`` are fields of EpisodeMeta."""
    known: dict[str, Any] = {
        "episode_id": f"e-{number}",
        "policy": "pick",
        "version": "1.0.0",
        "rate_hz": RATE_HZ,
        "channels": CHANNELS,
        "features": FEATURES,
        "robot": "arm",
        "robot_type": "sim_arm",
        "instruction": "pick the red block",
        "success": True,
        "started_ns": 1_800_000_000_000_000_000 + number * 10**12,
    }
    return EpisodeMeta(**known | changes)


def arrays(number: int, steps: int) -> dict[str, Any]:
    """Return an episode's features and actions, different in every step of every episode."""
    rng = np.random.default_rng(number)
    pictures = rng.integers(0, 256, (steps, 8, 10, 3), np.uint8)
    pictures[1::2] = pictures[: steps - steps % 2 : 2][
        : len(pictures[1::2])
    ]  # every second step sees what the one before saw
    features = {STATE: rng.normal(size=(steps, 2)).astype(np.float32), CAMERA: pictures}
    return {"features": features, "actions": rng.normal(size=(steps, 2)).astype(np.float32)}


def make_episode(path: Path, number: int = 0, steps: int = 12, corrected: int = 0, **changes: Any) -> dict[str, Any]:
    """Write an episode whose last ``corrected`` steps an operator commanded; return its arrays."""
    made = arrays(number, steps)
    made["intervention"] = np.arange(steps) >= steps - corrected
    made["policy_actions"] = np.where(made["intervention"][:, None], made["actions"] + 1.0, made["actions"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_episode(path, meta(number, **changes), **made)
    return made
