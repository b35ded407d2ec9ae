# SPDX-License-Identifier: Apache-2.0
"""Policy type ``reach``: goes to the pose in its weights. The rules are in ``vla_policy_node/policies/base.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, PolicySpec, TensorView

STATE = "observation.state"


class ReachPolicy:
    """Moves every joint towards its target by at most ``step`` an action [rad]."""

    def __init__(self, target: FloatArray, step: float, horizon: int, execute: int) -> None:
        self._target, self._step = target, step
        self.spec = PolicySpec({STATE: FeatureSpec(target.shape, "float32")}, horizon, execute, target.size)

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Return float32 ``[H, A]`` [rad]."""
        state = observation[STATE]
        reach = self._step * np.arange(1, self.spec.horizon + 1)[:, None]
        chunk: FloatArray = (state + np.clip(self._target - state, -reach, reach)).astype(np.float32)
        return chunk


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> ReachPolicy:
    """Load a bundle; see ``vla_policy_node.policies.base``."""
    config = json.loads((bundle_dir / "config.json").read_text())
    target = np.frombuffer(tensors["target"].data, np.float32)
    return ReachPolicy(target, config["step"], config["chunk_size"], config["n_action_steps"])
