# SPDX-License-Identifier: Apache-2.0
"""PEFT itself loads the adapters that training writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.demonstrations import demonstrations
from support.tiny_vla_bundles import CAMERA, CONFIG, STATE

from vla_checkpoint import open_bundle
from vla_learning.running import load_policy
from vla_learning.training.sealing import seal
from vla_learning.training.tiny_vla import Settings, fine_tune
from vla_policy_node.policies.tiny_vla import TinyVLAPolicy
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_peft_computes_the_chunks_that_a_robot_computes(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    settings, examples = Settings(method="lora", steps=20, batch=16, learning_rate=3e-3), demonstrations(4)
    fine_tune(tiny_base, examples, tmp_path / "out", tmp_path / "work", settings, seed=1)
    base = open_bundle(tiny_base)
    ours = load_policy(seal(tmp_path / "out", base, "adapter", {}), base)

    network = TinyVLA(CONFIG)
    network.load_state_dict(safetensors.torch.load_file(tiny_base / "model.safetensors"))
    loaded = PeftModel.from_pretrained(network, str(tmp_path / "out"))
    theirs = TinyVLAPolicy(loaded.merge_and_unload().eval(), TinyVLAProcessor.from_files(CONFIG, tiny_base), "cpu")
    observation = {STATE: examples.states[0], CAMERA: examples.pictures(np.arange(1))[0]}
    with torch.inference_mode():
        chunks = [policy.predict_chunk(observation, "red block") for policy in (ours, theirs)]
    assert np.abs(chunks[0] - chunks[1]).max() < 1e-5
    own = load_policy(base).predict_chunk(observation, "red block")
    assert np.abs(chunks[0] - own).max() > 1e-2
