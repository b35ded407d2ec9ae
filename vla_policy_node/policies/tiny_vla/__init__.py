# SPDX-License-Identifier: Apache-2.0
"""``tiny_vla``: a vision-language-action policy small enough for a demo and for tests, real in every other respect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, Policy, PolicySpec, TensorView
from vla_policy_node.policies.errors import PolicyInputError
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import STATE, TinyVLAConfig
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor
from vla_policy_node.policies.torch_tensors import as_state_dict, load_strictly, open_device


class TinyVLAPolicy:
    """A loaded ``tiny_vla``; see :class:`vla_policy_node.policies.base.Policy`. It keeps nothing between chunks."""

    lets_tensors_go = True

    def __init__(self, model: TinyVLA, processor: TinyVLAProcessor, device: torch.device) -> None:
        config = model.config
        self._model, self._processor, self._device = model, processor, device
        self._image_key = config.image_key
        self.spec = PolicySpec(
            observation={
                STATE: FeatureSpec((config.state_dim,), "float32"),
                config.image_key: FeatureSpec((*config.image_shape, 3), "uint8"),
            },
            horizon=config.chunk_size,
            execute=config.n_action_steps,
            action_dim=config.action_dim,
        )

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Actions float32 ``[H, A]`` in the action's physical units.

        Raises :class:`PolicyInputError` when a feature is missing or has another shape or dtype than :attr:`spec` says.
        """
        for key, feature in self.spec.observation.items():
            given = observation.get(key)
            if given is None or given.shape != feature.shape or given.dtype != feature.dtype:
                raise PolicyInputError(f"{key}: need {feature.dtype} {list(feature.shape)}, got {_describe(given)}")
        with torch.inference_mode():
            picture = self._processor.picture(observation[self._image_key][None])
            state = torch.from_numpy(np.array(observation[STATE], dtype=np.float32))[None]
            words = torch.tensor([self._processor.tokenize(instruction)])
            arguments = (picture, self._processor.state.normalise(state), words)
            offsets = self._model(*(argument.to(self._device) for argument in arguments)).float().cpu()
            chunk: FloatArray = self._processor.actions(offsets, state)[0].numpy()
            return chunk


def preload(device: str) -> None:
    """Ahead of a bundle: torch imports some 800 modules of its own with the first random numbers on the meta device."""
    with torch.device("meta"):
        torch.nn.Embedding(1, 1)
    open_device(device)


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    """Build the policy of a bundle on ``device`` ("cpu" or a torch device); on the CPU float32 weights are used where they lie.

    Raises :class:`vla_policy_node.policies.errors.PolicyError`.
    """
    where = open_device(device)
    config = TinyVLAConfig.from_file(bundle_dir / "config.json")
    processor = TinyVLAProcessor.from_files(config, bundle_dir)
    with torch.device("meta"):
        model = TinyVLA(config)
    state = as_state_dict(tensors)
    load_strictly(model, state, where, {k: torch.float32 for k, v in state.items() if v.is_floating_point()})
    model.eval().requires_grad_(False)
    return TinyVLAPolicy(model, processor, where)


def _describe(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None) -> str:
    return "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
