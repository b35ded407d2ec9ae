"""The ``scripted`` policy. With the instruction ``lose`` its CUDA context is lost: no work of its process succeeds after that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from support import scripted_policy

from vla_policy_node.policies.base import FloatArray, Observation, Policy, TensorView


class AssertingPolicy:
    def __init__(self, policy: Policy, device: str) -> None:
        self._policy, self._on_device = policy, torch.zeros(4, device=device)
        self.spec, self.reset = policy.spec, policy.reset

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        place = torch.tensor([1 << 20 if instruction == "lose" else 0], device=self._on_device.device)
        assert float(self._on_device[place].sum()) == 0.0  # an index out of range stops the kernel by an assertion
        return self._policy.predict_chunk(observation, instruction)


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    return AssertingPolicy(scripted_policy.load(bundle_dir, tensors, device), device)
