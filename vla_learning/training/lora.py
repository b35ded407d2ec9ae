# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on the linear layers of a network, written in PEFT's layout.

Beside a frozen ``W`` ``[out, in]`` stand ``A`` ``[r, in]`` and ``B`` ``[out, r]``: the layer is ``(W + α/r · B A) x``. ``B``
begins at zero, so an adapter begins as its base. What is written is what ``vla_checkpoint.adapter`` merges on a robot and
``peft.PeftModel`` loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME
from vla_checkpoint.files import write_atomically
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_learning.training.errors import check_range

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoRASettings:
    """Size of an adapter.

    Attributes:
        rank: r of every layer.
        alpha: scale α; the layer's change is ``α/r · B A``.
        freeze_a: train ``B`` alone (FFA-LoRA, arXiv 2403.12313): adapters of one seed then share ``A``, and average exactly.
    """

    rank: int = 8
    alpha: float = 16.0
    freeze_a: bool = False

    def __post_init__(self) -> None:
        """Raise TRAINING_SETTING for what no adapter can have."""
        check_range(self, rank=(1, 1024), alpha=(1e-3, 1e4))


class LoRALinear(nn.Module):
    """A linear layer with an adapter beside it; only the adapter learns."""

    def __init__(self, base: nn.Linear, settings: LoRASettings, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = settings.alpha / settings.rank
        bound = 1.0 / math.sqrt(base.in_features)  # PEFT's start of A: Kaiming's uniform with a = √5
        start = torch.rand(settings.rank, base.in_features, generator=generator) * 2.0 - 1.0
        self.lora_a = nn.Parameter(start * bound, requires_grad=not settings.freeze_a)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., out]``."""
        low = functional.linear(functional.linear(x, self.lora_a), self.lora_b)
        result: Tensor = self.base(x) + self.scale * low
        return result


def insert(model: nn.Module, settings: LoRASettings, seed: int) -> dict[str, LoRALinear]:
    """Freeze a network and put an adapter beside each of its linear layers; return them by the layer's name.

    The same ``seed`` gives the same ``A`` in every network of this architecture.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoRALinear] = {}
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        layers[name] = LoRALinear(module, settings, generator)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layers[name])
    return layers


def write_adapter(folder: Path, layers: Mapping[str, LoRALinear], settings: LoRASettings, base_name: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: of the bundle.
        layers: as :func:`insert` returned them.
        settings: as :func:`insert` had them.
        base_name: for people; robots find the base by the manifest's digest.

    Raises:
        FileError: they cannot be written.
    """
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_a.detach().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_b.detach().contiguous()
    write_atomically(folder / ADAPTER_WEIGHTS_NAME, safetensors.torch.save(tensors, {"format": "pt"}))
    text = json.dumps(_peft_config(sorted(layers), settings, base_name), indent=2) + "\n"
    write_atomically(folder / ADAPTER_CONFIG_NAME, text.encode())


def _peft_config(modules: list[str], settings: LoRASettings, base_name: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": modules,
    }
