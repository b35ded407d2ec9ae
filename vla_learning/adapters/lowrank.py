# SPDX-License-Identifier: Apache-2.0
"""Sums of low-rank matrices, computed on their factors: no matrix of a layer's size is ever formed.

A LoRA changes a weight by ``ΔW = s·B·A``. A weighted sum of several is again one product (FLoRA, Wang et al., arXiv 2409.05976)::

    Σ wᵢ sᵢ Bᵢ Aᵢ  =  [w₁s₁B₁ … wₖsₖBₖ] · [A₁; …; Aₖ]

exactly, for any ranks. Averaging A and B apart, as FedAvg on the factors does, adds products of one robot's B with another's A.
Everything here is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg  # type: ignore[import-untyped]
from scipy.linalg.lapack import dormqr  # type: ignore[import-untyped]

_LAPACK_BLOCK = 64
"""Columns that LAPACK works on at a time, for the size of its scratch memory."""
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LowRank:
    """The matrix ``b @ a``, ``[out, in]``; a LoRA's scale is in ``b``."""

    b: FloatArray
    """``[out, r]``"""
    a: FloatArray
    """``[r, in]``"""

    @property
    def rank(self) -> int:
        """r, the length of the inner side; the matrix itself may have a smaller rank."""
        return len(self.a)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the matrix."""
        return len(self.b), self.a.shape[1]

    def norm(self) -> float:
        """Frobenius norm, by QR of both factors: ``‖BA‖ = ‖R_B R_Aᵀ‖``.

        Differences of nearly equal products keep their digits here, which they do not in :func:`gram`.
        """
        b, a = _QR(self.b), _QR(self.a.T)
        return float(np.linalg.norm(b.r @ a.r.T))


def weighted_sum(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return ``Σ wᵢ · partᵢ`` by stacking; its rank is the sum of the ranks. Parts with weight 0 are left out."""
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight] or [(parts[0], 0.0)]
    return LowRank(
        np.concatenate([weight * part.b for part, weight in kept], axis=1),
        np.concatenate([part.a for part, _ in kept]),
    )


def difference(one: LowRank, other: LowRank) -> float:
    """Return the Frobenius norm of ``one - other``."""
    return weighted_sum((one, other), (1.0, -1.0)).norm()


def gram(parts: Sequence[LowRank | None]) -> FloatArray:
    """Return the inner products ``⟨ΔWᵢ, ΔWⱼ⟩ = tr(ΔWᵢᵀ ΔWⱼ) = Σ (BᵢᵀBⱼ ∘ AᵢAⱼᵀ)`` of every pair, ``[k, k]``.

    ``None`` is a part that changes nothing.
    """
    found = np.zeros((len(parts), len(parts)))
    there = [i for i, part in enumerate(parts) if part is not None]
    kept = [part for part in parts if part is not None]
    if kept:
        b, a = np.concatenate([part.b for part in kept], axis=1), np.concatenate([part.a for part in kept])
        starts = np.cumsum([0, *(part.rank for part in kept[:-1])])
        products = (b.T @ b) * (a @ a.T)
        found[np.ix_(there, there)] = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
    return found


def recompress(product: LowRank, rank: int) -> tuple[LowRank, FloatArray]:
    """Return the nearest product of at most this rank, and all singular values, largest first.

    Nearest in the Frobenius norm (Eckart and Young, 1936). With ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A`` the singular values of
    ``BA`` are those of the small ``R_B R_Aᵀ``. Each factor gets the root of the singular values, so that both round alike.
    """
    b, a = _QR(product.b), _QR(product.a.T)
    u, sigma, vt = np.linalg.svd(b.r @ a.r.T, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return LowRank(b.q_times(u[:, :rank] * root), a.q_times(vt[:rank].T * root).T), sigma


class _QR:
    """A QR decomposition whose Q is kept as LAPACK's reflections: to multiply a few columns by it costs less than to form it."""

    def __init__(self, matrix: FloatArray) -> None:
        (reflections, self._tau), r = scipy.linalg.qr(matrix, mode="raw", check_finite=False)
        self.r: FloatArray = r[: len(self._tau)]
        self._reflections = reflections[:, : len(self._tau)]

    def q_times(self, columns: FloatArray) -> FloatArray:
        """Return ``Q @ columns``."""
        padded = np.zeros((len(self._reflections), columns.shape[1]), order="F")
        padded[: len(columns)] = columns
        room = _LAPACK_BLOCK * columns.shape[1]
        product: FloatArray = dormqr("L", "N", self._reflections, self._tau, padded, room, overwrite_c=1)[0]
        return product
