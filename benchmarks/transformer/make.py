# SPDX-License-Identifier: Apache-2.0
"""Writes bundles of ``bench_transformer``: ``python -m benchmarks.transformer.make FOLDER RATE… [--large]``.

Into ``FOLDER/RATE/VERSION``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from benchmarks.robot import ROBOT_TYPE
from benchmarks.transformer import STATE, TransformerPolicy
from benchmarks.transformer.model import Transformer, TransformerConfig
from vla_checkpoint import Channel, build_manifest, write_golden, write_manifest

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
_INSTRUCTION = "reach the red block"
_TOLERANCE_RAD = 1e-3


def make(folder: Path, version: str, config: TransformerConfig, rates_hz: list[int], seed: int) -> None:
    """Write one version for each rate; the weights are one file with several names."""
    torch.manual_seed(seed)
    model = Transformer(config).eval().requires_grad_(False)
    rng = np.random.default_rng(seed)
    states = rng.uniform(-0.1, 0.1, (2, config.joints)).astype(np.float32)
    policy = TransformerPolicy(model)
    chunks = np.stack([policy.predict_chunk({STATE: state}, _INSTRUCTION) for state in states])
    weights = folder / f"{version}.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    channels = [Channel(f"j{i}", "rad", "absolute") for i in range(config.joints)]
    for rate_hz in rates_hz:
        bundle = folder / str(rate_hz) / version
        bundle.mkdir(parents=True)
        os.link(weights, bundle / "model.safetensors")
        (bundle / "config.json").write_text(json.dumps(config.to_json()))
        (bundle / "stats.json").write_text("{}")
        write_golden(
            bundle / "golden.safetensors", {STATE: states}, chunks, [_INSTRUCTION] * len(states), _TOLERANCE_RAD
        )
        manifest = build_manifest(
            bundle, name="bench", version=version, policy_type="bench_transformer", robot_type=ROBOT_TYPE,
            channels=channels, rate_hz=float(rate_hz),
        )  # fmt: skip
        write_manifest(bundle, manifest)


def main() -> None:
    """Write all versions and wait until they are on the disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rates_hz", type=int, nargs="+")
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    config = TransformerConfig.large() if arguments.large else TransformerConfig()
    for seed, version in enumerate(VERSIONS):
        make(arguments.folder, version, config, arguments.rates_hz, seed)
    os.sync()


if __name__ == "__main__":
    main()
