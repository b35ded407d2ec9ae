# SPDX-License-Identifier: Apache-2.0
"""PEFT itself trains the clients of a merge and loads what it and training write: the outputs are those of a robot.

It is imported by whom runs this file, not by whom collects it: it takes eight seconds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.bundles import make_bundle, random_tensors
from support.demonstrations import demonstrations
from support.tiny_vla_bundles import CAMERA, CONFIG, STATE

import vla_learning.adapters.merging as merging
from vla_checkpoint import open_bundle
from vla_learning.adapters.reading import open_base, open_clients
from vla_learning.adapters.writing import write_merge
from vla_learning.running import load_policy
from vla_learning.training.sealing import seal
from vla_learning.training.tiny_vla import Settings, fine_tune
from vla_policy_node.policies.tiny_vla import TinyVLAPolicy
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor


@pytest.fixture(scope="module")
def peft() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about what it was built with
        import peft
    return peft


def layer(size: int, out: int, transposed: bool) -> torch.nn.Module:
    if not transposed:
        return torch.nn.Linear(size, out)
    from transformers.pytorch_utils import Conv1D

    return Conv1D(out, size)


class Net(torch.nn.Module):  # type: ignore[misc]
    """Linear layers under names of which one ends as another does, or the transposed layers of GPT-2."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.q = layer(8, 8, transposed)
        self.net = torch.nn.ModuleDict({"q": layer(8, 16, transposed), "k": layer(16, 8, transposed)})

    def forward(self, x: Any) -> Any:
        return self.net["k"](torch.tanh(self.net["q"](torch.tanh(self.q(x)))))


CONFIGS: tuple[dict[str, Any], ...] = (
    {"r": 2, "lora_alpha": 6, "target_modules": ["q", "k"]},
    {"r": 3, "lora_alpha": 4, "target_modules": ["net.q"], "use_rslora": True},
    {"r": 2, "lora_alpha": 2, "target_modules": ["q"], "rank_pattern": {"net.q": 4}, "alpha_pattern": {"net.q": 3}},
)
WEIGHTS = (0.5, 0.3, 0.2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [None, 4])
def test_peft_loads_a_merge_and_answers_as_the_exact_sum(
    peft: Any, tmp_path: Path, transposed: bool, rank: int | None
) -> None:
    torch.manual_seed(0)
    plain = Net(transposed)
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    make_bundle(tmp_path / "base", tensors={**random_tensors(2, 0), **{k: v.numpy() for k, v in state.items()}})
    exact = {name: tensor.double() for name, tensor in state.items()}
    for i, (config, weight) in enumerate(zip(CONFIGS, WEIGHTS, strict=True)):
        client = peft.get_peft_model(fresh(state, transposed), peft.LoraConfig(fan_in_fan_out=transposed, **config))
        for name, parameter in client.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        client.save_pretrained(tmp_path / f"{i}")
        for name, module in client.base_model.model.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                exact[f"{name}.weight"] += weight * module.get_delta_weight("default").detach().double()
    base = open_base(tmp_path / "base")
    clients = open_clients([tmp_path / f"{i}" for i in range(3)], base)
    merge = merging.merge(clients, merging.Settings(weights=WEIGHTS, rank=rank))
    _, certificate = write_merge(merge, base, tmp_path / "out")

    loaded = peft.PeftModel.from_pretrained(fresh(state, transposed), tmp_path / "out").eval()
    wanted, x = fresh(exact, transposed).double(), torch.randn(64, 8)
    with torch.no_grad():
        if rank is None:
            assert certificate["exactness_error"] < 1e-6
            assert torch.allclose(loaded(x).double(), wanted(x.double()), rtol=1e-4, atol=1e-4)
        else:  # the nearest of that rank; that it is the nearest is tested on the matrices
            assert 0 < certificate["tail_energy"] < 0.5
    merged = loaded.merge_and_unload()
    for name, tensor in merged.state_dict().items():
        error = (tensor.double() - exact[name]).norm() / (exact[name] - state[name].double()).norm().clamp(min=1e-9)
        assert error < (1e-6 if rank is None else 0.5), name


def fresh(state: dict[str, Any], transposed: bool) -> Any:
    net = Net(transposed)
    net.load_state_dict(state)
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_peft_computes_the_chunks_that_a_robot_computes(peft: Any, tiny_base: Path, tmp_path: Path) -> None:
    settings, examples = Settings(method="lora", steps=20, batch=16, learning_rate=3e-3), demonstrations(4)
    fine_tune(tiny_base, examples, tmp_path / "out", tmp_path / "work", settings, seed=1)
    base = open_bundle(tiny_base)
    ours = load_policy(seal(tmp_path / "out", base, "adapter", {}), base)

    network = TinyVLA(CONFIG)
    network.load_state_dict(safetensors.torch.load_file(tiny_base / "model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(network, str(tmp_path / "out"))
    theirs = TinyVLAPolicy(loaded.merge_and_unload().eval(), TinyVLAProcessor.from_files(CONFIG, tiny_base), "cpu")
    observation = {STATE: examples.states[0], CAMERA: examples.pictures(np.arange(1))[0]}
    with torch.inference_mode():
        chunks = [policy.predict_chunk(observation, "red block") for policy in (ours, theirs)]
    assert np.abs(chunks[0] - chunks[1]).max() < 1e-5
    own = load_policy(base).predict_chunk(observation, "red block")
    assert np.abs(chunks[0] - own).max() > 1e-2
