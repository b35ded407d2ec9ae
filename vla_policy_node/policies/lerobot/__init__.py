# SPDX-License-Identifier: Apache-2.0
"""LeRobot's policies (``vla_policy_node.worker.loading.LEROBOT_TYPES``) through LeRobot's own classes, in a worker that has it.

Written against LeRobot 0.4.4. What LeRobot does on a robot (``lerobot.utils.control_utils.predict_action``) is done here in its
order: picture to ``[0, 1]``, preprocessor, network, postprocessor. Instead of one action the whole chunk is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.utils import populate_queues, prepare_observation_for_inference
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, Policy, PolicySpec, TensorView
from vla_policy_node.policies.lerobot.building import Parts, build
from vla_policy_node.policies.torch_tensors import open_device


class LeRobotPolicy:
    """A loaded LeRobot policy; see :class:`vla_policy_node.policies.base.Policy`. It keeps nothing between chunks."""

    lets_tensors_go = True

    def __init__(self, parts: Parts, device: str) -> None:
        config = parts.policy.config
        self._policy, self._preprocess, self._postprocess = parts.policy, parts.preprocess, parts.postprocess
        self._device, self._use_amp = torch.device(device), config.use_amp
        self._cameras = list(config.image_features)
        self._has_queues = OBS_STATE in getattr(self._policy, "_queues", {})
        self.spec = PolicySpec(
            observation={key: _feature(feature) for key, feature in config.input_features.items()},
            horizon=parts.horizon,
            execute=parts.execute,
            action_dim=config.action_feature.shape[0],
            uses_instruction=hasattr(config, "tokenizer_max_length"),
            history=config.n_obs_steps,
        )

    def reset(self) -> None:
        """Nothing to forget: queues are filled anew for each chunk."""

    def seed(self, seed: int) -> None:
        """Make the noise that diffusion and flow matching begin with depend on nothing else (on one type of device)."""
        torch.manual_seed(seed)

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Actions float32 ``[H, A]`` in the action's physical units."""
        use_amp = self._use_amp and self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda") if use_amp else nullcontext():
            self._policy.reset()
            batch: dict[str, Any] = {}
            for i in range(self.spec.history):
                frame = {k: v[i] if self.spec.history > 1 else v for k, v in observation.items()}
                batch = self._preprocess(prepare_observation_for_inference(frame, self._device, instruction))
                batch.pop(ACTION, None)  # the preprocessor adds an empty one
                if self._has_queues:  # as select_action does; the first observation fills the queues
                    if self._cameras:
                        batch[OBS_IMAGES] = torch.stack([batch[camera] for camera in self._cameras], dim=-4)
                    populate_queues(self._policy._queues, batch)
            actions = self._postprocess(self._policy.predict_action_chunk(batch))
            chunk: FloatArray = actions[0].float().cpu().numpy()
            return np.ascontiguousarray(chunk)


def preload(device: str) -> None:
    """Ahead of a bundle: the device's context (LeRobot itself came with this module)."""
    open_device(device)


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    """Build the policy of a bundle on ``device``; on the CPU weights of the network's own type are used where they lie.

    Raises :class:`vla_policy_node.policies.errors.PolicyError`, and whatever LeRobot raises.
    """
    open_device(device)
    return LeRobotPolicy(build(bundle_dir, tensors, device), device)


def _feature(feature: Any) -> FeatureSpec:
    if feature.type.value == "VISUAL":
        channels, height, width = feature.shape
        return FeatureSpec((height, width, channels), "uint8")
    return FeatureSpec(tuple(feature.shape), "float32")
