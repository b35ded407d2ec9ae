# SPDX-License-Identifier: Apache-2.0
"""Policy type ``bench_transformer``: a transformer of a realistic size (50 million parameters) with random weights.

Its actions stay near zero, so that it can be swapped on a robot that is not there; everything else is as in a real policy:
float32 weights in safetensors, chunks of 100 actions from 29 tokens, tens of milliseconds an inference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.transformer.model import Transformer, TransformerConfig
from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, Policy, PolicySpec, TensorView
from vla_policy_node.policies.torch_tensors import as_state_dict, load_strictly, open_device

STATE = "observation.state"
_CPU = torch.device("cpu")


class TransformerPolicy:
    """A loaded model; see :class:`vla_policy_node.policies.base.Policy`."""

    lets_tensors_go = True

    def __init__(self, model: Transformer, device: torch.device = _CPU) -> None:
        config = model.config
        self._model, self._device = model, device
        self.spec = PolicySpec(
            {STATE: FeatureSpec((config.joints,), "float32")}, config.horizon, config.execute, config.joints
        )

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Actions float32 ``[H, A]`` [rad]."""
        config = self._model.config
        words = np.zeros(config.words, np.int64)
        text = np.frombuffer(instruction.encode()[: config.words], np.uint8)
        words[: len(text)] = text
        with torch.inference_mode():
            state = torch.from_numpy(np.array(observation[STATE], np.float32))[None]
            arguments = (state, torch.from_numpy(words)[None])
            chunk: FloatArray = self._model(*(argument.to(self._device) for argument in arguments))[0].cpu().numpy()
        return chunk


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    """Build the policy on the weights where they lie, as our policies do."""
    config = TransformerConfig.from_json(json.loads((bundle_dir / "config.json").read_text()))
    with torch.device("meta"):
        model = Transformer(config)
    where = open_device(device)
    load_strictly(model, as_state_dict(tensors), where, {})
    return TransformerPolicy(model.eval().requires_grad_(False), where)


def preload(device: str) -> None:
    """First use of the meta device imports much of torch."""
    with torch.device("meta"):
        torch.nn.Embedding(1, 1)
    open_device(device)
