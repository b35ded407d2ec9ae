# SPDX-License-Identifier: Apache-2.0
"""What a step has in common with the others of its row and column: a product of small matrices predicts it.

The steps of a fine-tune are much alike: the gradient of a layer is a sum of few outer products, and a merged adapter is
nothing else. The encoder sends the leading factors as int8. Both sides multiply them in float32, exactly: every partial sum is an
integer below 2 ** 24, so neither the order of the sums nor fused operations can make a difference. Dividing by the unit in the
last place (ulp) is multiplying by a power of two, rounding to nearest even is IEEE 754's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.delta.numbers import FloatType, Integers, exponents, tiles

MAX_RANK = 16
_LIMIT = 127
_SCALE_LIMIT = 60
"""Largest power of two between a product and a step in ulp: what lies beyond is no prediction."""
_SAMPLE_ROWS = 512
_EXTRA = 8
_FACTOR_BITS = 6.5
"""What a factor costs, about [bit]."""
_SAMPLE = 1 << 14


@dataclass(frozen=True)
class Factors:
    """A prediction for a block of rows × columns."""

    rows: npt.NDArray[np.int8]
    """``[rows, rank]``"""
    columns: npt.NDArray[np.int8]
    """``[columns, rank]``"""
    scale: int
    """A product of 1 is a step of 2 ** (scale - exponent field) ulp."""

    @property
    def rank(self) -> int:
        """Number of products."""
        return int(self.rows.shape[1])

    def unit(self, kind: FloatType) -> float:
        """Return the real step that a product of 1 stands for."""
        return 2.0 ** (self.scale - kind.bias - kind.mantissa_bits)

    def products(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return the products of some rows, ``[rows, columns]``: integers."""
        product: npt.NDArray[np.float32] = self.rows[rows].astype(np.float32) @ self.columns.T.astype(np.float32)
        return product

    def add(self, steps: Integers, old: Integers, kind: FloatType, sign: int = 1) -> None:
        """Add the predicted differences of ``old``, times ``sign``, to ``steps`` [ulp]."""
        bound = np.float32(1 << (kind.nbytes * 8 - 2))
        for numbers, rows in tiles(len(old), len(self.columns)):
            tile = self.products(rows).ravel()
            powers = np.subtract(np.int16(self.scale), exponents(old[numbers], kind, 0))
            bits = np.clip(powers, -_SCALE_LIMIT, _SCALE_LIMIT, out=powers).astype(np.int32)
            tile *= ((bits + 127) << 23).view(np.float32)  # 2 ** powers
            np.rint(np.clip(tile, -bound, bound, out=tile), out=tile)
            steps[numbers] += sign * tile.astype(kind.integer)


def fit(steps: npt.NDArray[np.float32], kind: FloatType) -> Factors | None:
    """Return factors for real steps ``[rows, columns]``, of the rank that seems worth its bytes: the encoder's choice.

    The columns' space is that of a sample of the rows (Nyström); the rows are then projected onto it.
    """
    rows, columns = steps.shape
    most = min(MAX_RANK, rows // 4, columns // 4)
    if most < 1:
        return None
    sample = steps[:: max(1, rows // _SAMPLE_ROWS)]
    test = np.random.default_rng(0).standard_normal((len(sample), most + _EXTRA), np.float32)
    basis, _ = np.linalg.qr(sample.T @ test)
    basis, _ = np.linalg.qr(sample.T @ (sample @ basis))
    projected = steps @ basis
    values, turn = np.linalg.eigh(projected.T.astype(np.float64) @ projected)
    values, turn = values[::-1][:most], turn[:, ::-1][:, :most].astype(np.float32)
    total = float(np.vdot(steps, steps))
    if not np.isfinite(total) or total <= 0:
        return None
    left = np.maximum(1.0 - np.cumsum(np.maximum(values, 0.0)) / total, 1e-6)
    bits = 0.5 * steps.size * np.log2(left) + _FACTOR_BITS * (rows + columns) * np.arange(1, most + 1)
    rank = int(np.argmin(bits)) + 1
    if bits[rank - 1] >= 0:
        return None
    return _quantised(projected @ turn[:, :rank], basis @ turn[:, :rank], np.sqrt(np.sqrt(values[:rank])), kind)


def is_worth_it(factors: Factors, before: Integers, after: Integers) -> bool:
    """Return whether a prediction seems to save more than its factors cost, on a sample of the differences [ulp]."""
    stride = max(1, len(before) // _SAMPLE)
    one, other = (np.log2(1.0 + 2.0 * np.abs(steps[::stride].astype(np.float64))).mean() for steps in (before, after))
    return bool((one - other) * len(before) > _FACTOR_BITS * (factors.rows.size + factors.columns.size))


def _quantised(rows: Any, columns: Any, roots: Any, kind: FloatType) -> Factors | None:
    """Return int8 factors of ``rows @ columns.T``; ``roots`` [rank] divide it evenly between them."""
    roots = np.maximum(roots, np.finfo(np.float32).tiny)
    a, b = rows / roots, columns * roots
    largest = float(np.abs(a).max()) * float(np.abs(b).max())
    if not 0 < largest < np.inf:
        return None
    unit = int(np.ceil(np.log2(largest / _LIMIT**2)))  # a product of 1 is a step of 2 ** unit
    balance = np.sqrt(2.0**-unit * np.abs(b).max() / np.abs(a).max())
    a, b = np.rint(a * balance), np.rint(b * (2.0**-unit / balance))
    return Factors(a.astype(np.int8), b.astype(np.int8), unit + kind.bias + kind.mantissa_bits)
