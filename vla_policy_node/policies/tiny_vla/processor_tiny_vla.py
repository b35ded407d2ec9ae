# SPDX-License-Identifier: Apache-2.0
"""Between physical units and the network's: normalisation by ``stats.json``, words to numbers, pictures to floats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vla_policy_node.policies.errors import PolicyConfigError
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import ACTION, STATE, TinyVLAConfig

_PAD, _UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Affine:
    """``normalised = (physical - offset) / scale``, for one feature ``[D]``; every normalisation mode is one of these."""

    offset: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any], feature: str, mode: str, dim: int) -> Affine:
        """LeRobot's modes: MEAN_STD → zero mean, unit variance; MIN_MAX and QUANTILES → [-1, 1]; IDENTITY → as it is.

        Raises :class:`PolicyConfigError` when the statistics are missing, not finite, of the wrong length or without spread.
        """
        if mode == "IDENTITY":
            return cls(torch.zeros(dim), torch.ones(dim))
        first, second = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}[mode]
        try:
            low = torch.tensor(stats[feature][first], dtype=torch.float32)
            high = torch.tensor(stats[feature][second], dtype=torch.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyConfigError(
                f"stats.json: {feature}: {first} and {second} are needed for {mode}: {error!r}"
            ) from error
        offset, scale = (low, high) if mode == "MEAN_STD" else ((low + high) / 2, (high - low) / 2)
        if low.shape != (dim,) or high.shape != (dim,):
            raise PolicyConfigError(f"stats.json: {feature}: {first} and {second} need {dim} values")
        if not (torch.isfinite(offset).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            raise PolicyConfigError(f"stats.json: {feature}: {first} and {second} must be finite and have a spread")
        return cls(offset, scale)

    def normalise(self, physical: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` physical → normalised."""
        return (physical - self.offset) / self.scale

    def unnormalise(self, normalised: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` normalised → physical."""
        return normalised * self.scale + self.offset


class Tokenizer:
    """Lower-case words of a closed vocabulary; unknown words become ``<unk>``, what is too long is cut."""

    def __init__(self, vocabulary: Sequence[str], length: int) -> None:
        self._index = {word: i for i, word in enumerate(vocabulary)}
        self._length = length

    def __call__(self, instruction: str) -> list[int]:
        """Token numbers, always ``length`` of them."""
        words = [self._index.get(word, _UNKNOWN) for word in _WORD.findall(instruction.lower())][: self._length]
        return words + [_PAD] * (self._length - len(words))


class TinyVLAProcessor:
    """One policy's normalisation and tokenizer; they belong to the weights and change with them."""

    def __init__(self, config: TinyVLAConfig, stats: Mapping[str, Any]) -> None:
        mapping = config.normalization_mapping
        self.state = Affine.from_stats(stats, STATE, mapping["STATE"], config.state_dim)
        self.action = Affine.from_stats(stats, ACTION, mapping["ACTION"], config.action_dim)
        self.tokenize = Tokenizer(config.vocabulary, config.max_instruction_tokens)
        if config.state_dim != config.action_dim:
            raise PolicyConfigError("config.json: actions are offsets from the state, so both need the same dimension")

    @classmethod
    def from_files(cls, config: TinyVLAConfig, bundle_dir: Path) -> TinyVLAProcessor:
        """Read ``stats.json``; raises :class:`PolicyConfigError`."""
        try:
            stats = json.loads((bundle_dir / "stats.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PolicyConfigError(f"stats.json: {error}") from error
        if not isinstance(stats, dict):
            raise PolicyConfigError("stats.json: must be an object")
        return cls(config, stats)

    @staticmethod
    def picture(images: npt.NDArray[np.generic]) -> torch.Tensor:
        """uint8 ``[B, H, W, 3]`` → float32 ``[B, 3, H, W]`` in [-1, 1]."""
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def actions(self, offsets: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The network's offsets ``[B, H, A]`` and the measured state ``[B, S]`` (physical) → actions in physical units."""
        return self.action.unnormalise(offsets + self.action.normalise(state)[:, None])

    def offsets(self, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`actions`: what the network is to predict."""
        return self.action.normalise(actions) - self.action.normalise(state)[:, None]
