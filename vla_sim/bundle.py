# SPDX-License-Identifier: Apache-2.0
"""Bundles of policies for the simulated arm: written by training and recipes, loaded for evaluation."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from vla_checkpoint import Channel, Manifest, build_manifest, load_config, read_header, write_golden, write_manifest
from vla_policy_node.policies.base import Policy, TensorView
from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, CONTROL_HZ, JOINT_NAMES, ROBOT_TYPE, Arm
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.observation import observe
from vla_sim.task import begin, sample_episode

Weights = dict[str, npt.NDArray[np.generic]]

NAME = "reach_block"
WEIGHTS_FILE = "model.safetensors"
SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / NAME / "1.0.0"
"""The trained bundle that comes with the package."""

GOLDEN_TOLERANCE_RAD = 0.005
"""Far above the rounding differences between machines, far below what another policy would answer."""
_GOLDEN_COUNT = 6
_GOLDEN_SEED = 77


def load_policy(bundle_dir: Path) -> Policy:
    """Load a bundle's policy into this process, as a worker does into its own; nothing is verified here.

    Raises whatever the policy type or ``vla_checkpoint`` says of a bundle that does not load.
    """
    weights = bundle_dir / WEIGHTS_FILE
    data = memoryview(bytearray(weights.read_bytes()))
    tensors = {
        name: TensorView(info.dtype, info.shape, data[info.start : info.start + info.nbytes])
        for name, info in read_header(weights).tensors.items()
    }
    policy_type = load_config(bundle_dir).type
    module = importlib.import_module(f"vla_policy_node.policies.{policy_type}")
    return cast(Policy, module.load(bundle_dir, tensors, "cpu"))


def write_weights(bundle_dir: Path, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write ``model.safetensors``."""
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    (bundle_dir / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(arrays, {"format": "pt"}))


def read_weights(bundle_dir: Path) -> Weights:
    """Read ``model.safetensors`` of a bundle whose dtypes numpy has."""
    return dict(safetensors.numpy.load_file(bundle_dir / WEIGHTS_FILE))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a readable JSON file."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_own_golden(bundle_dir: Path) -> None:
    """Write ``golden.safetensors``: seeded observations, and what this bundle's own weights answer to them."""
    policy = load_policy(bundle_dir)
    rng = np.random.default_rng(_GOLDEN_SEED)
    arm = Arm()
    observations, instructions, chunks = [], [], []
    for _ in range(_GOLDEN_COUNT):
        episode = sample_episode(rng)
        begin(arm, episode)
        block = arm.blocks()[BLOCK_COLOURS.index(episode.colour)]
        ticks = int(rng.integers(1, CONTROL_HZ))
        for command in expert_chunk(arm.state().position, goal_point(block, BLOCK_SIZE_M), ticks):
            arm.command(command.tolist())
            arm.step_control_period()
        observations.append(observe(arm))
        instructions.append(episode.instruction)
        policy.reset()
        chunks.append(policy.predict_chunk(observations[-1], episode.instruction))
    stacked = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    write_golden(bundle_dir / "golden.safetensors", stacked, np.stack(chunks), instructions, GOLDEN_TOLERANCE_RAD)


def seal(bundle_dir: Path, version: str, lineage: Mapping[str, Any], created: str | None = None) -> Manifest:
    """Write the manifest over what is in the folder; ``created`` None: now."""
    manifest = build_manifest(
        bundle_dir,
        name=NAME,
        version=version,
        policy_type=load_config(bundle_dir).type,
        robot_type=ROBOT_TYPE,
        channels=[Channel(name, "rad", "absolute") for name in JOINT_NAMES],
        rate_hz=CONTROL_HZ,
        lineage=lineage,
        created=created,
    )
    write_manifest(bundle_dir, manifest)
    return manifest


def statistics(values: npt.NDArray[np.floating[Any]]) -> dict[str, list[float]]:
    """``mean, std, min, max, q01, q99`` of ``[N, D]`` for ``stats.json``."""
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    rows = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": q01,
        "q99": q99,
    }
    return {key: [round(float(v), 6) for v in row] for key, row in rows.items()}
