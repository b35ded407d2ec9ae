"""Writes small untrained ``tiny_vla`` bundles: ``good``, ``half`` (precision), ``wrong`` with another policy's golden chunks.

``python -m support.tiny_vla_bundles FOLDER``
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from support.bundles import JOINTS, plain_stats, write_json
from vla_checkpoint import build_manifest, write_golden, write_manifest
from vla_policy_node.policies.tiny_vla import TinyVLAPolicy
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import TinyVLAConfig
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor

CAMERA = "observation.images.top"
STATE = "observation.state"
INSTRUCTIONS = ["red block", "block"]
CONFIG = TinyVLAConfig(
    state_dim=2,
    action_dim=2,
    image_key=CAMERA,
    image_shape=(32, 32),
    chunk_size=20,
    n_action_steps=10,
    normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    vocabulary=("<pad>", "<unk>", "red", "block"),
    dim_model=32,
    n_layers=1,
    dim_feedforward=64,
)


def make(
    out: Path, golden_shift: float, version: str = "1.0.0", dtype: torch.dtype = torch.float32, **config: Any
) -> None:
    """``dtype``: of the weights; ``config``: of the network, over that of ``CONFIG``."""
    changed = dataclasses.replace(CONFIG, **config)
    out.mkdir()
    write_json(out / "config.json", changed.to_json())
    write_json(out / "stats.json", {STATE: plain_stats(2), "action": plain_stats(2)})
    torch.manual_seed(0)
    model = TinyVLA(changed).to(dtype)
    safetensors.torch.save_file(model.state_dict(), out / "model.safetensors", {"format": "pt"})
    rng = np.random.default_rng(0)
    observations = {
        STATE: rng.standard_normal((2, 2), dtype=np.float32),
        CAMERA: rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8),
    }
    policy = TinyVLAPolicy(model.float().eval(), TinyVLAProcessor.from_files(changed, out), torch.device("cpu"))
    chunks = [
        policy.predict_chunk({name: array[i] for name, array in observations.items()}, instruction)
        for i, instruction in enumerate(INSTRUCTIONS)
    ]
    write_golden(
        out / "golden.safetensors", observations, np.stack(chunks) + np.float32(golden_shift), INSTRUCTIONS, 0.01
    )
    manifest = build_manifest(
        out, name="tiny", version=version, policy_type="tiny_vla", robot_type="sim_arm", channels=JOINTS, rate_hz=20.0
    )
    write_manifest(out, manifest)


if __name__ == "__main__":
    make(Path(sys.argv[1]) / "good", 0.0)
    make(Path(sys.argv[1]) / "half", 0.0, dtype=torch.float16)
    make(Path(sys.argv[1]) / "wrong", 0.5)
