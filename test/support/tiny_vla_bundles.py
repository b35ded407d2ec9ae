"""Writes two small untrained ``tiny_vla`` bundles: ``good``, and ``wrong``, whose golden chunks are another policy's.

``python -m support.tiny_vla_bundles FOLDER``
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.bundles import JOINTS, plain_stats, write_json
from vla_checkpoint import build_manifest, write_golden, write_manifest
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import TinyVLAConfig
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_sim.bundle import load_policy, write_weights

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


def make(out: Path, golden_shift: float, version: str = "1.0.0", **config: Any) -> None:
    """``config``: of the network, over that of ``CONFIG``."""
    changed = dataclasses.replace(CONFIG, **config)
    out.mkdir()
    write_json(out / "config.json", changed.to_json())
    write_json(out / "stats.json", {STATE: plain_stats(2), "action": plain_stats(2)})
    torch.manual_seed(0)
    write_weights(out, {name: tensor.numpy() for name, tensor in TinyVLA(changed).state_dict().items()})
    rng = np.random.default_rng(0)
    observations = {
        STATE: rng.standard_normal((2, 2), dtype=np.float32),
        CAMERA: rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8),
    }
    policy = load_policy(out)
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
    make(Path(sys.argv[1]) / "wrong", 0.5)
