# SPDX-License-Identifier: Apache-2.0
"""A base with a few layers, LoRA adapters on it as robots train them, and what an adapter's files say that it changes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from support.bundles import Array, make_bundle, random_tensors
from vla_checkpoint import Manifest
from vla_checkpoint.manifest import BaseRef

LAYERS = {"net.q": (12, 9), "net.k": (10, 12), "net.out": (9, 9)}  # out, in
Deltas = dict[str, np.ndarray]


def make_base(path: Path, layers: Mapping[str, tuple[int, int]] = LAYERS, **arguments: Any) -> Manifest:
    """Write a full bundle with a linear layer for each entry of ``layers`` (beside those that every bundle has)."""
    rng = np.random.default_rng(1)
    weights = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in layers.items()}
    return make_bundle(path, tensors={**random_tensors(2, 0), **weights}, **arguments)


def make_adapter(
    path: Path,
    base: Manifest | None,
    seed: int = 0,
    *,
    ranks: Mapping[str, int] | None = None,
    tensors: Mapping[str, Array] | None = None,
    files: Mapping[str, bytes] | None = None,
    policy: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write an adapter and return its folder.

    Args:
        path: folder to create.
        base: what it acts on; ``None``: a plain PEFT folder without a manifest.
        seed: of its factors.
        ranks: layer → rank; default: 4 everywhere.
        tensors: in place of random ones.
        files: further files of the bundle.
        policy: further arguments of ``make_bundle``, keys of ``config.json`` included.
        config: further keys of ``adapter_config.json``.
    """
    rng = np.random.default_rng(seed)
    factors: dict[str, Array] = {}
    for layer, rank in (ranks or dict.fromkeys(LAYERS, 4)).items():
        out, size = LAYERS[layer]
        for side, shape in (("A", (rank, size)), ("B", (out, rank))):
            factors[f"base_model.model.{layer}.lora_{side}.weight"] = rng.standard_normal(shape).astype(np.float32)
    factors = dict(factors if tensors is None else tensors)
    document = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "k", "out"], **config}
    if base is None:
        path.mkdir(parents=True)
        (path / "adapter_config.json").write_text(json.dumps(document))
        safetensors.numpy.save_file(factors, path / "adapter_model.safetensors")
        return path
    ref = BaseRef(base.name, base.version, base.digest)
    files = {"adapter_config.json": json.dumps(document).encode(), **(files or {})}
    make_bundle(
        path, name=base.name, version=f"1.0.{seed + 1}", base=ref, tensors=factors, files=files, **(policy or {})
    )
    return path


def deltas_of(folder: Path) -> Deltas:
    """Return what a folder's files change, by layer, as a dense float64 matrix: PEFT's formula, written out here once more."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    found: Deltas = {}
    for key, a in tensors.items():
        if ".lora_A." not in key:
            continue
        layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[key.replace("lora_A", "lora_B")]
        rank = _pattern(config.get("rank_pattern"), layer, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
        assert a.shape[0] == b.shape[1] == rank
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        delta = scale * (b.astype(np.float64) @ a.astype(np.float64))
        found[layer] = delta.T if config.get("fan_in_fan_out") else delta
    return found


def weighted(parts: list[Deltas], weights: list[float]) -> Deltas:
    """Return the weighted sum; a layer that a part lacks is one that it does not change."""
    layers = {layer for part in parts for layer in part}
    return {
        layer: sum(weight * part[layer] for part, weight in zip(parts, weights, strict=True) if layer in part)
        for layer in layers
    }


def error(found: Deltas, wanted: Deltas) -> float:
    """Return the relative Frobenius error over all layers."""
    assert found.keys() == wanted.keys()
    return math.sqrt(
        sum(float(((found[layer] - wanted[layer]) ** 2).sum()) for layer in wanted)
        / sum(float((delta**2).sum()) for delta in wanted.values())
    )


def _pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), default)
