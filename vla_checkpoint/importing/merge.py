# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter merged into its base: ``W + s·(B·A)``, exactly as PEFT's ``merge_and_unload`` has it.

``A`` is ``[r, in]``, ``B`` ``[out, r]``, ``W`` ``[out, in]`` (``[in, out]`` with ``fan_in_fan_out``). The scale ``s`` is
``alpha/r`` (Hu et al., arXiv 2106.09685), or ``alpha/√r`` with ``use_rslora`` (Kalajdzievski, arXiv 2312.03732). Computed in
float32, stored in the base's type, rounded to nearest even. One tensor is in memory at a time.

What this formula does not cover is refused by name: an adapter that is merged wrongly acts, and wrongly.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME, check_adapter_config
from vla_checkpoint.bundle import Bundle
from vla_checkpoint.config import CONFIG_NAME, load_config
from vla_checkpoint.errors import AdapterError
from vla_checkpoint.files import write_atomically
from vla_checkpoint.header import Header, TensorInfo, read_header
from vla_checkpoint.processors import PROCESSOR_NAMES
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME, INDEX_NAME
from vla_checkpoint.stats import STATS_NAME
from vla_checkpoint.strict_json import is_int, is_number, load_object
from vla_checkpoint.tensors import read_array

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_FLOATS = frozenset({"F32", "F16", "BF16"})
_OFF: tuple[Any, ...] = (None, False, [], {}, "none")
_FOREIGN_KEYS = (
    "alora_invocation_tokens", "arrow_config", "bias", "corda_config", "layer_replication", "lora_bias", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
"""Keys of PEFT's LoraConfig that change the formula, or train more than the two matrices."""
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base as it is; PiSSA, OLoRA, LoftQ and CorDA begin with another base."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Pair:
    """The two matrices of one module."""

    a: TensorInfo
    b: TensorInfo
    scale: float


@dataclass(frozen=True)
class _Adapter:
    """An adapter whose every tensor is accounted for."""

    path: Path
    pairs: Mapping[str, _Pair]
    """Base tensor → matrices."""
    whole: Mapping[str, TensorInfo]
    """Base tensor → the one that replaces it (``modules_to_save``)."""
    transposed: bool


def merge_adapter(folder: Path, base: Bundle) -> dict[str, Any]:
    """Turn a copied PEFT folder into a full checkpoint: the base's weights with the adapter in them.

    Configuration and statistics are the adapter's; statistics that it does not have are the base's.

    Args:
        folder: holds ``adapter_config.json``, ``adapter_model.safetensors`` and ``config.json``; is changed.
        base: the bundle that the adapter was trained on.

    Returns:
        For the lineage: the base's digest and the method.

    Raises:
        CheckpointError: a file is unreadable or malformed.
        AdapterError: ``MERGE_UNSUPPORTED``: it is more than a plain LoRA; ``MERGE_MISMATCH``: it is not one of this base.
    """
    if base.manifest.kind != "full":
        raise AdapterError(
            "MERGE_MISMATCH", base.path, "an adapter itself; name the full bundle that it was trained on"
        )
    config = load_config(folder)
    if config.type != base.config.type:
        _refuse("MERGE_MISMATCH", folder / CONFIG_NAME, f"type is {config.type!r}, the base's {base.config.type!r}")
    adapter = _read_adapter(folder)
    homes = {info.name: file for file in base.weight_files for info in base.headers[file].tensors.values()}
    for name in (*adapter.pairs, *adapter.whole):
        if name not in homes:
            _refuse("MERGE_MISMATCH", adapter.path, f"changes {name!r}, which the base does not have")
    for file in base.weight_files:
        shutil.copyfile(base.path / file, folder / file)
        with (folder / file).open("r+b") as out:
            for info in base.headers[file].tensors.values():
                merged = _merge_tensor(base.path / file, info, adapter)
                if merged is not None:
                    out.seek(info.start)
                    out.write(merged)
    _replace_small_files(folder, base)
    return {"parent": base.digest, "method": "merge"}


def _replace_small_files(folder: Path, base: Bundle) -> None:
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):
        (folder / name).unlink()
    document = load_object(folder / CONFIG_NAME)
    if document.get("use_peft"):
        write_atomically(folder / CONFIG_NAME, json.dumps({**document, "use_peft": False}, indent=4).encode())
    wanted = [INDEX_NAME]
    if not any((folder / name).exists() for name in (STATS_NAME, *PROCESSOR_NAMES)):
        wanted += [STATS_NAME, *PROCESSOR_NAMES, *(f for f in base.headers if f not in base.weight_files)]
    for name in wanted:
        if base.manifest.file(name) is not None and not name.startswith("golden"):
            shutil.copyfile(base.path / name, folder / name)


def _read_adapter(folder: Path) -> _Adapter:
    check_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS_NAME
    config = load_object(folder / ADAPTER_CONFIG_NAME)
    _check_plain(folder / ADAPTER_CONFIG_NAME, config)
    header = read_header(path)
    pairs, whole = {}, {}
    for key, info in header.tensors.items():
        name = key.removeprefix(_PREFIX)
        if info.dtype not in _FLOATS:
            _refuse("MERGE_UNSUPPORTED", path, f"{key!r} is {info.dtype}, not one of {', '.join(sorted(_FLOATS))}")
        if name.endswith(_A):
            module = name.removesuffix(_A)
            pairs[f"{module}.weight"] = _pair(path, header, key, module, config)
        elif name.endswith(_B):
            if key.removesuffix(_B) + _A not in header.tensors:
                _refuse("MERGE_MISMATCH", path, f"{key!r} has no lora_A")
        elif _is_saved(name, config):
            whole[name] = info
        else:
            _refuse(
                "MERGE_UNSUPPORTED", path, f"{key!r} is neither a LoRA of a linear layer nor one of modules_to_save"
            )
    if not pairs and not whole:
        _refuse("MERGE_MISMATCH", path, "changes nothing")
    return _Adapter(path, pairs, whole, bool(config.get("fan_in_fan_out")))


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    if config["peft_type"] != "LORA":
        _refuse("MERGE_UNSUPPORTED", path, f"peft_type is {config['peft_type']!r}; LORA can be merged")
    for key in _FOREIGN_KEYS:
        if config.get(key) not in _OFF:
            _refuse("MERGE_UNSUPPORTED", path, f"{key} is {json.dumps(config[key])[:80]}; merge it with PEFT itself")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        _refuse("MERGE_UNSUPPORTED", path, f"init_lora_weights is {start!r}: its base is not the original one")


def _pair(path: Path, header: Header, key: str, module: str, config: Mapping[str, Any]) -> _Pair:
    a, b = header.tensors[key], header.tensors.get(key.removesuffix(_A) + _B)
    if b is None:
        _refuse("MERGE_MISMATCH", path, f"{key!r} has no lora_B")
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    except (re.error, AttributeError) as e:
        _refuse("MERGE_UNSUPPORTED", path.with_name(ADAPTER_CONFIG_NAME), f"rank_pattern or alpha_pattern: {e}")
    if not is_int(rank) or rank < 1 or not is_number(alpha):
        _refuse("MERGE_MISMATCH", path, f"{module}: rank {rank!r} and alpha {alpha!r} are no numbers above 0")
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        shapes = f"lora_A is {list(a.shape)}, lora_B {list(b.shape)}"
        _refuse(
            "MERGE_MISMATCH",
            path,
            f"{module}: {shapes}; a linear layer of rank {rank} has [{rank}, in] and [out, {rank}]",
        )
    return _Pair(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name or the end of it, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_saved(name: str, config: Mapping[str, Any]) -> bool:
    modules = config.get("modules_to_save") or []
    return any(f".{module}." in f".{name}" for module in modules if isinstance(module, str))


def _merge_tensor(base_file: Path, info: TensorInfo, adapter: _Adapter) -> bytes | None:
    """Return the new bytes of a base tensor; ``None``: it stays."""
    pair, whole = adapter.pairs.get(info.name), adapter.whole.get(info.name)
    if pair is None and whole is None:
        return None
    if info.dtype not in _FLOATS:
        _refuse(
            "MERGE_UNSUPPORTED", base_file, f"{info.name!r} is {info.dtype}, not one of {', '.join(sorted(_FLOATS))}"
        )
    merged = _read(base_file, info) if whole is None else _read(adapter.path, whole)
    if pair is not None:
        delta = (_read(adapter.path, pair.b) @ _read(adapter.path, pair.a)) * np.float32(pair.scale)
        delta = delta.T if adapter.transposed else delta
        if delta.shape != merged.shape:
            shapes = f"the adapter's change is {list(delta.shape)}, the base has {list(merged.shape)}"
            _refuse("MERGE_MISMATCH", adapter.path, f"{info.name!r}: {shapes}")
        merged = merged + delta
    if merged.shape != info.shape:
        _refuse(
            "MERGE_MISMATCH", adapter.path, f"{info.name!r} is {list(merged.shape)}, the base has {list(info.shape)}"
        )
    return _bytes(merged, info.dtype)


def _read(path: Path, info: TensorInfo) -> FloatArray:
    return read_array(path, info).astype(np.float32)


def _bytes(array: FloatArray, dtype: str) -> bytes:
    if dtype != "BF16":
        return array.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded: bytes = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return rounded


def _refuse(code: str, path: Path, reason: str) -> NoReturn:
    raise AdapterError(code, path, reason)
