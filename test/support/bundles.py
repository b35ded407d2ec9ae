# SPDX-License-Identifier: Apache-2.0
"""Real, small bundles for tests of every part: ``make_bundle(tmp_path / "b", name="pick", version="1.0.0")``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from vla_checkpoint import (
    BaseRef,
    Channel,
    FileEntry,
    Golden,
    Manifest,
    build_manifest,
    load_manifest,
    sha256_file,
    write_golden,
    write_manifest,
)

Array = npt.NDArray[np.generic]
JOINTS = (Channel("j1", "rad", "absolute"), Channel("j2", "rad", "absolute"))


def make_bundle(
    path: Path,
    *,
    name: str = "pick_place",
    version: str = "1.0.0",
    policy_type: str = "scripted",
    robot_type: str = "sim_arm",
    channels: Sequence[Channel] = JOINTS,
    rate_hz: float = 50.0,
    horizon: int = 16,
    execute: int = 8,
    tensors: Mapping[str, Array] | None = None,
    shards: int = 1,
    images: Mapping[str, tuple[int, int]] | None = None,
    golden: Golden | None = None,
    base: BaseRef | None = None,
    lineage: Mapping[str, Any] | None = None,
    requires: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    created: str = "2026-11-20T08:00:00Z",
    seed: int = 0,
    **config: Any,
) -> Manifest:
    """Write a valid bundle into the new folder ``path`` and return its manifest (same arguments: same digest).

    Args:
        path: folder to create.
        channels: of the action; ``observation.state`` has as many numbers.
        horizon: H, actions in a chunk.
        execute: actions executed of it.
        tensors: the weights; by default two small float32 tensors drawn from ``seed``.
        shards: above 1, the weights are spread over so many files with an index.
        images: camera feature → (height, width); makes RGB inputs.
        golden: written as ``golden.safetensors`` when given.
        base: makes an adapter bundle on that base.
        files: further files, relative path → bytes; they may replace the generated ones.
        config: further keys of ``config.json``; they replace the generated ones, a value of ``...`` removes the key.
    """
    write_folder(
        path, policy_type=policy_type, channels=channels, horizon=horizon, execute=execute, tensors=tensors, shards=shards,
        images=images, golden=golden, adapter=base is not None, files=files, seed=seed, **config,
    )  # fmt: skip
    manifest = build_manifest(
        path, name=name, version=version, policy_type=policy_type, robot_type=robot_type, channels=channels, rate_hz=rate_hz,
        kind="full" if base is None else "adapter", base=base, lineage=lineage, requires=requires, created=created,
    )  # fmt: skip
    write_manifest(path, manifest)
    return manifest


def write_folder(
    path: Path,
    *,
    policy_type: str = "scripted",
    channels: Sequence[Channel] = JOINTS,
    horizon: int = 16,
    execute: int = 8,
    tensors: Mapping[str, Array] | None = None,
    shards: int = 1,
    images: Mapping[str, tuple[int, int]] | None = None,
    golden: Golden | None = None,
    adapter: bool = False,
    files: Mapping[str, bytes] | None = None,
    seed: int = 0,
    **config: Any,
) -> None:
    """Write a bundle's files without a manifest; see :func:`make_bundle`."""
    path.mkdir(parents=True)
    size = len(channels)
    inputs: dict[str, Any] = {"observation.state": {"type": "STATE", "shape": [size]}}
    for camera, (height, width) in (images or {}).items():
        inputs[camera] = {"type": "VISUAL", "shape": [3, height, width]}
    document: dict[str, Any] = {
        "type": policy_type,
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [size]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "chunk_size": horizon,
        "n_action_steps": execute,
        "n_obs_steps": 1,
        **config,
    }
    write_json(path / "config.json", {key: value for key, value in document.items() if value is not ...})
    write_json(path / "stats.json", {key: plain_stats(size) for key in ("observation.state", "action")})
    _write_weights(path, tensors if tensors is not None else random_tensors(size, seed), shards, adapter)
    if golden is not None:
        write_golden(
            path / "golden.safetensors",
            golden.observations,
            golden.action,
            golden.instructions,
            golden.tolerance,
            golden.seed,
        )
    for relative, data in (files or {}).items():
        (path / relative).parent.mkdir(parents=True, exist_ok=True)
        (path / relative).write_bytes(data)


def random_tensors(size: int, seed: int) -> dict[str, Array]:
    """Return two small float32 tensors."""
    rng = np.random.default_rng(seed)
    return {
        "head.weight": rng.standard_normal((size, 8), dtype=np.float32),
        "head.bias": rng.standard_normal(size, dtype=np.float32),
    }


def plain_stats(size: int) -> dict[str, list[float]]:
    """Return the statistics of a feature that normalisation leaves as it is."""
    return {
        "mean": [0.0] * size, "std": [1.0] * size, "min": [-3.0] * size, "max": [3.0] * size,
        "q01": [-2.0] * size, "q99": [2.0] * size,
    }  # fmt: skip


def plain_golden(horizon: int = 16, channels: int = 2, count: int = 2) -> Golden:
    """Return golden observations that ask for zero chunks."""
    return Golden(
        observations={"observation.state": np.zeros((count, channels), np.float32)},
        action=np.zeros((count, horizon, channels), np.float32),
        instructions=("reach the red block",) * count,
        tolerance=np.full(channels, 0.01, np.float32),
    )


def write_processors(
    folder: Path, stats: Mapping[str, Mapping[str, Any]], *, step: int = 3, class_name: bool = False
) -> None:
    """Write the processor files of a folder as LeRobot >= 0.4 does for the ``config.json`` in it.

    Args:
        folder: has ``config.json``.
        stats: feature → statistic → numbers; both state files hold all of them.
        step: place of the (un)normaliser, which stands in its state file's name.
        class_name: name steps by their class, as LeRobot does with those that it has not registered.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = {f"{key}.{name}": np.array(v, np.float32) for key, entry in stats.items() for name, v in entry.items()}
    outputs = config["output_features"]
    for processor, kind, features in (
        ("policy_preprocessor", "normalizer_processor", {**config["input_features"], **outputs}),
        ("policy_postprocessor", "unnormalizer_processor", outputs),
    ):
        state_file = f"{processor}_step_{step}_{kind}.safetensors"
        name = "lerobot.processor." + kind.title().replace("_", "") + "Step"
        norm = {
            **({"class": name} if class_name else {"registry_name": kind}),
            "config": {"eps": 1e-8, "features": features, "norm_map": config["normalization_mapping"]},
            "state_file": state_file,
        }
        steps = [{"registry_name": "to_batch_processor", "config": {}}, norm]
        write_json(folder / f"{processor}.json", {"name": processor, "steps": steps})
        safetensors.numpy.save_file(tensors, folder / state_file)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(document, indent=1))


def sign_again(path: Path) -> None:
    """Make the manifest fit files that were changed since, weights excepted: what is in them is not looked at."""
    manifest = load_manifest(path)
    entries = [FileEntry(e.path, (path / e.path).stat().st_size, sha256_file(path / e.path)) for e in manifest.files]
    write_manifest(path, replace(manifest, files=tuple(entries)))


def flip_last_byte(path: Path) -> None:
    """Damage a file as a failing disk would, read-only or not; whoever has a hard link to it has the damage too."""
    path.chmod(0o644)
    with path.open("r+b") as file:  # in place: nobody ever sees it truncated
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def _write_weights(path: Path, tensors: Mapping[str, Array], shards: int, adapter: bool) -> None:
    if adapter:
        write_json(path / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8})
        safetensors.numpy.save_file(dict(tensors), path / "adapter_model.safetensors")
        return
    if shards == 1:
        safetensors.numpy.save_file(dict(tensors), path / "model.safetensors")
        return
    weight_map = {}
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensor for j, (key, tensor) in enumerate(tensors.items()) if j % shards == i}
        safetensors.numpy.save_file(part, path / shard)
        weight_map.update(dict.fromkeys(part, shard))
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
