# SPDX-License-Identifier: Apache-2.0
"""One layer's LoRA factors of several robots, merged exactly: the arithmetic of ``vla-fleet adapters merge`` without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vla_learning.adapters.lowrank import FloatArray, LowRank, recompress, weighted_sum

Factors = Mapping[str, npt.ArrayLike]
"""``A`` ``[r, base_dim]`` and ``B`` ``[base_dim, r]``; r may differ from adapter to adapter."""


class LoRAFederatedMerger:
    """Merge LoRA adapters from fleet robots.

    Not the average of the factors, ``(Σ wB)(Σ wA)``, which adds products of one robot's B with another's A; the merged factors
    have the sum of the ranks, or ``merge_rank``.
    """

    def __init__(self, base_dim: int = 256, lora_rank: int = 8) -> None:
        self.base_dim, self.lora_rank = base_dim, lora_rank
        self._rng = np.random.default_rng()

    def create_lora(self) -> dict[str, FloatArray]:
        """Return random factors A ``[lora_rank, base_dim]`` and B ``[base_dim, lora_rank]``."""
        sides = {"A": (self.lora_rank, self.base_dim), "B": (self.base_dim, self.lora_rank)}
        return {name: self._rng.normal(scale=0.01, size=shape) for name, shape in sides.items()}

    def merge_adapters(
        self, adapters: Sequence[Factors], weights: Sequence[float] | None = None, merge_rank: int | None = None
    ) -> dict[str, FloatArray]:
        """Return factors whose product is ``Σ wᵢ BᵢAᵢ``; ``weights`` default to the mean.

        Args:
            adapters: at least one.
            weights: one an adapter, used as they are.
            merge_rank: the nearest product of at most this rank instead.
        """
        if weights is None:
            weights = [1.0 / len(adapters)] * len(adapters)
        merged = weighted_sum([_low_rank(adapter) for adapter in adapters], weights)
        if merge_rank is not None and merge_rank < merged.rank:
            merged, _ = recompress(merged, merge_rank)
        return {"A": merged.a, "B": merged.b}

    def compute_adapter_delta(self, lora: Factors) -> FloatArray:
        """Return the change of the weight, ``ΔW = BA``, ``[base_dim, base_dim]``."""
        product = _low_rank(lora)
        delta: FloatArray = product.b @ product.a
        return delta


def _low_rank(lora: Factors) -> LowRank:
    return LowRank(np.asarray(lora["B"], np.float64), np.asarray(lora["A"], np.float64))
