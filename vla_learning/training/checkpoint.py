# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, in one safetensors file that is replaced as a whole: a run that is killed at any time goes on from it.

Weights and the optimiser's moments are tensors; the losses so far, and the run that they belong to, are JSON in the header. No
state of a random number generator is needed: what a step draws depends on the seed and the step's number only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vla_checkpoint.files import write_atomically
from vla_learning.training.errors import TrainingError

FILE_NAME = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


@dataclass
class Standing:
    """How far a run is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def save(
    folder: Path, run: Mapping[str, Any], standing: Standing, learned: Mapping[str, nn.Parameter], optimizer: Any
) -> None:
    """Write the checkpoint of a run.

    Args:
        folder: of the run's own files.
        run: what the run is, as JSON values; only the same run may go on from here.
        standing: how far it is.
        learned: the parameters that learn, by name.
        optimizer: their ``torch.optim.AdamW``.

    Raises:
        FileError: it cannot be written; the one before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in learned.items():
        tensors[f"weights/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
    state = {"run": run, "step": standing.step, "losses": standing.losses, "held_out": standing.held_out}
    write_atomically(folder / FILE_NAME, safetensors.torch.save(tensors, {"state": json.dumps(state)}))


def restore(
    folder: Path, run: Mapping[str, Any], learned: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> Standing:
    """Put parameters and optimiser where the run stood; without a checkpoint they stay as they are.

    Raises:
        TrainingError: ``TRAINING_CHECKPOINT``: the file is of another run, or is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Standing()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as e:
        raise TrainingError("TRAINING_CHECKPOINT", path, f"cannot be read ({e}); remove it to begin anew") from e
    if state["run"] != json.loads(json.dumps(run)):
        differs = sorted(key for key in {*run, *state["run"]} if state["run"].get(key) != run.get(key))
        text = f"it is of another run ({', '.join(differs)} differ); use another folder, or remove it to begin anew"
        raise TrainingError("TRAINING_CHECKPOINT", path, text)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(tensors[f"weights/{name}"])
            moments = {m: torch.zeros_like(parameter).copy_(tensors[f"{m}/{name}"]) for m in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(state["step"])), **moments}
    return Standing(state["step"], state["losses"], [(int(s), float(v)) for s, v in state["held_out"]])
