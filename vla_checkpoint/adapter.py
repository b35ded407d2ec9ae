# SPDX-License-Identifier: Apache-2.0
"""Adapters in the PEFT layout: ``adapter_config.json`` beside ``adapter_model.safetensors``, and what one does to its base.

An adapter bundle also has ``config.json`` and statistics (LeRobot writes them beside the adapter), so that its inputs, outputs
and normalisation are known without its base. The base is the manifest's ``base``; ``base_model_name_or_path`` is a path on the
machine it was trained on and is not followed.

A LoRA is merged as PEFT's ``merge_and_unload`` does: ``W + s·(B·A)`` with ``A`` ``[r, in]``, ``B`` ``[out, r]``, and ``W``
``[out, in]`` (``[in, out]`` with ``fan_in_fan_out``). The scale ``s`` is ``alpha/r`` (Hu et al., arXiv 2106.09685), or
``alpha/√r`` with ``use_rslora`` (Kalajdzievski, arXiv 2312.03732). What this formula does not cover is refused by name: an
adapter that is merged wrongly acts, and wrongly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vla_checkpoint.errors import AdapterError
from vla_checkpoint.files import PathLike
from vla_checkpoint.header import Header, TensorInfo
from vla_checkpoint.strict_json import is_int, is_number, load_object

ADAPTER_CONFIG_NAME = "adapter_config.json"
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

_PATTERN_CHARS, _REPEATS = 256, 3
_REPEATED, _NESTED = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]")
"""A pattern comes from a file and is matched by backtracking: a repeated group takes exponential time."""

FloatArray = npt.NDArray[np.float32]
Read = Callable[[TensorInfo], npt.NDArray[Any]]


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight of its base."""

    base: TensorInfo
    a: TensorInfo | None = None
    b: TensorInfo | None = None
    scale: float = 0.0
    transposed: bool = False
    whole: TensorInfo | None = None
    """Takes the weight's place (``modules_to_save``)."""

    def apply(self, read_base: Read, read: Read) -> FloatArray:
        """Return the weight with the adapter in it, in float32.

        ``read_base`` returns a tensor of the base, ``read`` one of the adapter.
        """
        weight = (read_base(self.base) if self.whole is None else read(self.whole)).astype(np.float32)
        if self.a is None or self.b is None:
            return weight
        change = (read(self.b).astype(np.float32) @ read(self.a).astype(np.float32)) * np.float32(self.scale)
        return weight + (change.T if self.transposed else change)


def changes_of(folder: PathLike, adapter: Header, base: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """Return what an adapter changes of its base, by the base's tensor.

    Args:
        folder: holds ``adapter_config.json``.
        adapter: of ``adapter_model.safetensors``.
        base: every weight of the base, by name.

    Raises:
        FileError, JsonError: the configuration is missing, unreadable or no JSON object.
        AdapterError: ``ADAPTER_CONFIG``; ``ADAPTER_UNSUPPORTED``: it is more than a plain LoRA; ``ADAPTER_MISMATCH``: it is not
            one of this base.
    """
    check_adapter_config(folder)
    path = Path(folder) / ADAPTER_CONFIG_NAME
    config = load_object(path)
    _check_plain(path, config)
    changes: dict[str, Change] = {}
    for key, info in adapter.tensors.items():
        name = key.removeprefix(_PREFIX)
        if info.dtype not in _FLOATS:
            _refuse("ADAPTER_UNSUPPORTED", path, f"{key!r} is {info.dtype}, not one of {', '.join(sorted(_FLOATS))}")
        if name.endswith(_B):
            if key.removesuffix(_B) + _A not in adapter.tensors:
                _refuse("ADAPTER_MISMATCH", path, f"{key!r} has no lora_A")
        elif name.endswith(_A):
            module = name.removesuffix(_A)
            weight = _weight(path, base, f"{module}.weight")
            changes[weight.name] = _low_rank(
                path, config, module, weight, info, adapter.tensors.get(key[: -len(_A)] + _B)
            )
        elif _is_saved(name, config):
            weight = _weight(path, base, name)
            if weight.shape != info.shape:
                _refuse("ADAPTER_MISMATCH", path, f"{name!r} is {list(info.shape)}, the base has {list(weight.shape)}")
            changes[name] = Change(weight, whole=info)
        else:
            text = f"{key!r} is neither a LoRA of a linear layer nor one of modules_to_save"
            _refuse("ADAPTER_UNSUPPORTED", path, text)
    if not changes:
        _refuse("ADAPTER_MISMATCH", path, "it changes nothing")
    return changes


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    if config["peft_type"] != "LORA":
        _refuse("ADAPTER_UNSUPPORTED", path, f"peft_type is {config['peft_type']!r}; only LORA can be merged")
    for key in _FOREIGN_KEYS:
        if config.get(key) not in _OFF:
            _refuse("ADAPTER_UNSUPPORTED", path, f"{key} is {json.dumps(config[key])[:80]}; merge it with PEFT itself")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        _refuse("ADAPTER_UNSUPPORTED", path, f"init_lora_weights is {start!r}: its base is not the original one")


def _weight(path: Path, base: Mapping[str, TensorInfo], name: str) -> TensorInfo:
    weight = base.get(name)
    if weight is None:
        _refuse("ADAPTER_MISMATCH", path, f"it changes {name!r}, which the base does not have")
    if weight.dtype not in _FLOATS:
        _refuse(
            "ADAPTER_UNSUPPORTED",
            path,
            f"the base's {name!r} is {weight.dtype}, not one of {', '.join(sorted(_FLOATS))}",
        )
    return weight


def _low_rank(
    path: Path, config: Mapping[str, Any], module: str, weight: TensorInfo, a: TensorInfo, b: TensorInfo | None
) -> Change:
    if b is None:
        _refuse("ADAPTER_MISMATCH", path, f"{module} has no lora_B")
    try:
        rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    except (re.error, AttributeError) as e:
        _refuse("ADAPTER_UNSUPPORTED", path, f"rank_pattern or alpha_pattern: {e}")
    if not is_int(rank) or rank < 1 or not is_number(alpha):
        _refuse("ADAPTER_MISMATCH", path, f"{module}: rank {rank!r} and alpha {alpha!r} must be numbers above 0")
    transposed = bool(config.get("fan_in_fan_out"))
    shape = weight.shape[::-1] if transposed else weight.shape
    if len(shape) != 2 or a.shape != (rank, shape[1]) or b.shape != (shape[0], rank):
        shapes = f"lora_A is {list(a.shape)}, lora_B {list(b.shape)}, of rank {rank}; {weight.name!r} is {list(weight.shape)}"
        _refuse("ADAPTER_MISMATCH", path, f"{module}: {shapes}")
    return Change(weight, a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), transposed)


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name or the end of it, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if len(pattern) > _PATTERN_CHARS or _NESTED.search(pattern) or len(_REPEATED.findall(pattern)) > _REPEATS:
            raise re.error(f"{pattern[:80]!r} could take for ever to match")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_saved(name: str, config: Mapping[str, Any]) -> bool:
    modules = config.get("modules_to_save")
    listed = modules if isinstance(modules, list) else []
    return any(f".{module}." in f".{name}" for module in listed if isinstance(module, str))


def _refuse(code: str, path: Path, reason: str) -> NoReturn:
    raise AdapterError(code, path, reason)


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
