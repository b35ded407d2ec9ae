# SPDX-License-Identifier: Apache-2.0
"""Adapters in the PEFT layout: ``adapter_config.json`` beside ``adapter_model.safetensors``.

An adapter bundle also has ``config.json`` and statistics (LeRobot writes them beside the adapter), so that its inputs, outputs
and normalisation are known without its base. The base is the manifest's ``base``; ``base_model_name_or_path`` is a path on the
machine it was trained on and is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.errors import AdapterError
from vla_checkpoint.files import PathLike
from vla_checkpoint.header import Header, TensorInfo
from vla_checkpoint.strict_json import is_int, is_number, load_object

ADAPTER_CONFIG_NAME = "adapter_config.json"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""As numpy reads them; numpy has no BF16, only its bits."""
_PLAIN: tuple[Any, ...] = (None, False, [], {}, "none")
_FOREIGN_KEYS = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "bias", "corda_config", "layer_replication", "lora_bias",
    "modules_to_save", "rank_pattern", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
"""Keys of PEFT's LoraConfig that make it more than two matrices a module, each of rank r and scale alpha."""
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base as it is."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one weight of its base: ``scale`` times ``b`` ``[out, r]`` times ``a`` ``[r, in]``."""

    base: TensorInfo
    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool


def merged(weight: npt.NDArray[Any], a: npt.NDArray[Any], b: npt.NDArray[Any], scale: float) -> FloatArray:
    """Return ``weight + scale * (b @ a)`` in float32: ``[out, in]``, ``[r, in]``, ``[out, r]`` (Hu et al., arXiv 2106.09685)."""
    change = b.astype(np.float32) @ a.astype(np.float32)
    result: FloatArray = weight.astype(np.float32) + np.float32(scale) * change
    return result


def to_array(data: memoryview | bytes, info: TensorInfo) -> npt.NDArray[Any]:
    """Return a tensor's bytes as an array; BF16 as float32 (exact)."""
    if info.dtype == "BF16":
        return (np.frombuffer(data, _FLOATS[info.dtype]).astype("<u4") << 16).view("<f4").reshape(info.shape)
    return np.frombuffer(data, _FLOATS[info.dtype]).reshape(info.shape)


def to_bytes(array: FloatArray, dtype: str) -> bytes:
    """Return float32 numbers as the bytes of F32, F16 or BF16, rounded to the nearest even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(_FLOATS[dtype]).tobytes())
    return bytes(array.astype(_FLOATS[dtype]).tobytes())


def low_rank_changes(bundle_dir: PathLike, adapter: Header, base: Mapping[str, TensorInfo]) -> dict[str, LowRank]:
    """Return what a plain LoRA changes of its base, by the base's tensor.

    Args:
        bundle_dir: holds ``adapter_config.json``.
        adapter: of ``adapter_model.safetensors``.
        base: every weight of the base, by name.

    Raises:
        AdapterError: ``ADAPTER_UNSUPPORTED``: it is more than a plain LoRA; ``ADAPTER_MISMATCH``: it is none of this base.
    """
    path = Path(bundle_dir) / ADAPTER_CONFIG_NAME
    config = load_object(path)
    foreign = [key for key in _FOREIGN_KEYS if config.get(key) not in _PLAIN]
    if config.get("peft_type") != "LORA" or foreign or config.get("init_lora_weights") not in _PLAIN_STARTS:
        what = foreign[0] if foreign else "peft_type or init_lora_weights"
        raise AdapterError(
            "ADAPTER_UNSUPPORTED", path, f"{what}: only a plain LoRA acts on its base; merge it and publish that"
        )
    rank, transposed = config["r"], bool(config.get("fan_in_fan_out"))
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    changes: dict[str, LowRank] = {}
    for key, a in adapter.tensors.items():
        module = key.removeprefix(_PREFIX).removesuffix(_A)
        name, b = f"{module}.weight", adapter.tensors.get(key.removesuffix(_A) + _B)
        if key.endswith(_B) and key.removesuffix(_B) + _A in adapter.tensors:
            continue
        if not key.endswith(_A) or b is None:
            raise AdapterError("ADAPTER_UNSUPPORTED", path, f"tensor {key!r} is no matrix of a LoRA pair")
        weight = base.get(name)
        if weight is None:
            raise AdapterError("ADAPTER_MISMATCH", path, f"changes {name!r}, which the base does not have")
        shape = weight.shape[::-1] if transposed else weight.shape
        fits = len(a.shape) == len(b.shape) == 2 and (b.shape[0], b.shape[1], *a.shape) == (
            *shape[:1],
            rank,
            rank,
            *shape[1:],
        )
        if not fits or not all(info.dtype in _FLOATS for info in (a, b, weight)):
            shapes = f"{list(b.shape)} times {list(a.shape)} of rank {rank}, the base has {weight.dtype} {list(weight.shape)}"
            raise AdapterError("ADAPTER_MISMATCH", path, f"{module}: {shapes}")
        changes[name] = LowRank(weight, a, b, scale, transposed)
    return changes


def check_adapter_config(bundle_dir: PathLike) -> None:
    """Check that ``adapter_config.json`` names its kind, and a LoRA its rank and scale.

    Raises:
        FileError, JsonError: it is missing, unreadable or no JSON object.
        AdapterError: ``ADAPTER_CONFIG``.
    """
    path = Path(bundle_dir) / ADAPTER_CONFIG_NAME
    document = load_object(path)
    peft_type = document.get("peft_type")
    if not isinstance(peft_type, str) or not peft_type:
        raise AdapterError("ADAPTER_CONFIG", path, "peft_type must be a non-empty string")
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if peft_type == "LORA" and not (is_int(rank) and rank > 0 and is_number(alpha) and alpha > 0):
        raise AdapterError("ADAPTER_CONFIG", path, "a LoRA needs r, an integer > 0, and lora_alpha > 0")
