"""Bundles of the numpy-only ``scripted`` policy (``scripted_policy.py``), and what workers need to run them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.bundles import JOINTS, make_bundle
from vla_checkpoint import Channel, Golden, Manifest
from vla_checkpoint.manifest import BaseRef
from vla_policy_node.worker.api import WorkerConfig
from vla_policy_node.worker.inference import WARM_UP_INFERENCES

TEST_FOLDER = str(Path(__file__).resolve().parents[1])
POLICY_MODULES = {"scripted": "support.scripted_policy"}

Array = npt.NDArray[np.generic]


def worker_config(**changes: Any) -> WorkerConfig:
    """Workers that know the policy type ``scripted`` and start fast."""
    defaults: dict[str, Any] = {
        "paths": (TEST_FOLDER,),
        "policy_modules": POLICY_MODULES,
        "imports": (),
        "memory_reserve_bytes": 0,
        "spare_delay_s": 0.0,
        "load_timeout_s": 60.0,
        "inference_timeout_s": 20.0,
        "observation_max_age_s": 20.0,
    }
    return WorkerConfig(**{**defaults, **changes})


def scripted_bundle(
    path: Path,
    version: str = "1.0.0",
    *,
    channels: Sequence[Channel] = JOINTS,
    rate_hz: float = 50.0,
    horizon: int = 100,
    execute: int = 8,
    amplitude: float | Sequence[float] = 0.3,
    frequency_hz: float | Sequence[float] = 0.2,
    offset: float | Sequence[float] = 0.0,
    phase: float | Sequence[float] = 0.0,
    golden: bool | Golden = True,
    more_tensors: Mapping[str, Array] | None = None,
    ignore_more: bool = True,
    **behaviour: Any,
) -> Manifest:
    """Write a bundle whose policy draws sinusoids; ``behaviour``: keys of ``scripted_policy.py`` and of :func:`make_bundle`.

    The policy ignores ``more_tensors``, or refuses them with ``ignore_more=False``.
    It counts its calls from after the golden observations and the warm-up.
    """
    size = len(channels)
    weights = {"amplitude": amplitude, "frequency": frequency_hz, "offset": offset, "phase": phase}
    tensors: dict[str, Array] = {k: np.broadcast_to(np.asarray(v, np.float32), size).copy() for k, v in weights.items()}
    replayed = (
        golden_of(tensors, horizon, rate_hz, images=behaviour.get("images")) if golden is True else golden or None
    )
    return make_bundle(
        path,
        version=version,
        channels=channels,
        rate_hz=rate_hz,
        horizon=horizon,
        execute=execute,
        tensors={**tensors, **(more_tensors or {})},
        golden=replayed,
        calls_before_ready=WARM_UP_INFERENCES + (0 if replayed is None else len(replayed) - (len(replayed) > 1)),
        ignored_tensors=sorted(more_tensors or {}) if ignore_more else [],
        **{"script_rate_hz": rate_hz, **behaviour},
    )


def golden_of(tensors: Mapping[str, Array], horizon: int, rate_hz: float, count: int = 2, images: Any = None) -> Golden:
    """What the policy answers to the instruction ``golden``."""
    times = np.arange(horizon)[:, None] / rate_hz
    wave = {k: v.astype(np.float64) for k, v in tensors.items()}
    chunk = wave["offset"] + wave["amplitude"] * np.sin(2 * np.pi * wave["frequency"] * times + wave["phase"])
    size = chunk.shape[1]
    pictures = {name: np.zeros((count, *shape, 3), np.uint8) for name, shape in (images or {}).items()}
    return Golden(
        observations={"observation.state": np.zeros((count, size), np.float32), **pictures},
        action=np.repeat(chunk[None].astype(np.float32), count, 0),
        instructions=("golden",) * count,
        tolerance=np.full(size, 1e-3, np.float32),
    )


_RANK, _SCALE = 4, 2.0  # of the LoRA that ``make_bundle`` writes: r 4, lora_alpha 8
BALLAST = np.random.default_rng(1).standard_normal((512, 512)).astype(np.float32)
_MORE = {"mix.weight": np.zeros((2, 2), np.float32), "ballast.weight": BALLAST}


def base_bundle(folder: Path, **behaviour: Any) -> Manifest:
    """Write ``folder/1.0.0``, whose ``mix`` adapters change."""
    return scripted_bundle(
        folder / "1.0.0", horizon=16, amplitude=0.0, offset=(0.1, 0.2), more_tensors=_MORE, **behaviour
    )


def adapter_bundle(folder: Path, version: str, base: Manifest, seed: int, **config: Any) -> np.ndarray:
    """Write an adapter on ``mix``; return the offsets with which it acts."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(scale=0.1, size=shape).astype(np.float32) for shape in ((_RANK, 2), (2, _RANK)))
    names = "base_model.model.mix.lora_A.weight", "base_model.model.mix.lora_B.weight"
    document = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _SCALE * _RANK, **config}
    make_bundle(
        folder / version, version=version, rate_hz=50.0, base=BaseRef(base.name, base.version, base.digest),
        tensors=dict(zip(names, (a, b), strict=True)), files={"adapter_config.json": json.dumps(document).encode()},
        calls_before_ready=WARM_UP_INFERENCES, ignored_tensors=sorted(_MORE), script_rate_hz=50.0,
    )  # fmt: skip
    return np.array([0.1, 0.2]) + _SCALE * (b.astype(np.float64) @ a).sum(axis=1)
