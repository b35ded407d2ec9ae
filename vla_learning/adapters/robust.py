# SPDX-License-Identifier: Apache-2.0
"""How much each client counts in a merge, from the inner products of what they change.

Factors are not comparable between clients: ``(B M)(M⁻¹ A)`` is the same change for every invertible ``M``. What clients change,
``ΔW``, is. Every rule here sees the clients only through their Gram matrix ``⟨ΔWᵢ, ΔWⱼ⟩`` over all modules and returns weights,
so that its result is a weighted sum and merges exactly. Rules that trim coordinates are not of this kind.
"""

from __future__ import annotations

import numpy as np

from vla_learning.adapters.lowrank import FloatArray

_STEPS = 2000
_STEADY = 1e-12
_SMOOTHING = 1e-9
"""Distance to the median below which a client weighs as if it were that far away, as a share of the mean distance."""


def clip_factors(gram: FloatArray, multiple: float) -> FloatArray:
    """Return by what each client is shortened, so that none is longer than ``multiple`` times the median client, ``[k]``."""
    norms = np.sqrt(np.diagonal(gram))
    bound = multiple * float(np.median(norms))
    return np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)


def geometric_median(gram: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weights ``[k]`` of the geometric median, the point with the least weighted sum of distances to the clients.

    Weiszfeld's iteration, smoothed as in RFA (Pillutla, Kakade and Harchaoui, arXiv 1912.13445). It stays near the honest
    clients as long as they have more than half of ``weights``, which sum to 1.
    """
    lengths = np.diagonal(gram)
    found = weights
    for _ in range(_STEPS):
        squares = lengths - 2.0 * (gram @ found) + found @ gram @ found
        distances = np.sqrt(np.maximum(squares, 0.0))
        if not distances.any():
            return found
        nearer = weights / np.maximum(distances, _SMOOTHING * distances.mean())
        nearer /= nearer.sum()
        moved, found = float(np.abs(nearer - found).max()), nearer
        if moved < _STEADY:
            break
    return found


def most_attackers(clients: int) -> int:
    """Return how many of so many clients multi-Krum can stand: the largest f with ``k ≥ 2f + 3``."""
    return max(0, (clients - 3) // 2)


def multi_krum(gram: FloatArray, weights: FloatArray, attackers: int) -> FloatArray:
    """Return ``weights`` for the ``k - attackers`` clients that lie closest to their neighbours, 0 for the others; sum 1.

    A client's score is the sum of its squared distances to the nearest ``k - attackers - 2`` others (Blanchard et al., NeurIPS
    2017, arXiv 1703.02757), which needs ``k ≥ 2·attackers + 3``. Of equal scores the earlier client's counts as smaller.
    """
    clients = len(gram)
    lengths = np.diagonal(gram)
    squares = np.maximum(lengths[:, None] + lengths[None, :] - 2.0 * gram, 0.0)
    np.fill_diagonal(squares, np.inf)
    scores = np.sort(squares, axis=1)[:, : clients - attackers - 2].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[: clients - attackers]
    found = np.zeros(clients)
    found[chosen] = weights[chosen]
    found /= found.sum()
    return found
