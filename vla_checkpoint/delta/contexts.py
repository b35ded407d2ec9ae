# SPDX-License-Identifier: Apache-2.0
"""How likely a number is to have changed: the step that is expected of it, over the size of its unit in the last place (ulp).

An optimiser moves the weights of a tensor by similar amounts, some rows and columns more than others; a small weight has a small
ulp, so that the same step is a difference of many of them, and a large weight of the same row may not change at all. Numbers of
one *level*, the logarithm of that ratio, have differences of one distribution. The encoder estimates a class for every row and
column and sends these; both sides compute the levels from them and from the old numbers, in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.delta.numbers import FloatType, Integers, exponents, tiles

Bytes = npt.NDArray[np.uint8]
UNIT_BITS = 2
"""Classes and levels count quarters (2 ** -UNIT_BITS) of an octave."""
LEVELS = 256
_UNIT = 1 << UNIT_BITS
_STILL = 0
"""Class of a row or column in which nothing changed."""
MIDDLE = 128
"""Class of a row or column of average step."""
_SAMPLE = 128
"""So many rows or columns are enough for an estimate."""


@dataclass(frozen=True)
class Classes:
    """What is known of a block beside the old numbers."""

    rows: Bytes
    columns: Bytes
    origin: int
    """Added to every level, so that they lie within 0 to ``LEVELS``: int16."""


def flat(count: int, origin: int) -> Classes:
    """Return the classes of ``count`` numbers of which only the ulp is known."""
    return Classes(np.zeros(count, np.uint8), np.zeros(1, np.uint8), origin)


def levels(old: Integers, kind: FloatType, classes: Classes) -> Bytes:
    """Return the level of every number of ``old``, in its order."""
    found = np.empty(len(old), np.uint8)
    of_columns = classes.columns.astype(np.int16) + np.int16(classes.origin)
    of_rows = classes.rows.astype(np.int16)[:, np.newaxis]
    for numbers, rows in tiles(len(old), len(classes.columns)):
        tile = exponents(old[numbers], kind, UNIT_BITS).reshape(-1, len(of_columns))
        np.subtract(of_columns, tile, out=tile)
        np.add(tile, of_rows[rows], out=tile)
        found[numbers] = np.clip(tile, 0, LEVELS - 1, out=tile).ravel()
    return found


def estimate(steps: npt.NDArray[np.float32]) -> Classes:
    """Return classes for real steps ``[rows, columns]``: the encoder's choice, for which any method will do.

    Fits |step| ≈ row factor × column factor, twice alternating, on a sample of the rows and columns.
    """
    row_stride, column_stride = (max(1, size // _SAMPLE) for size in steps.shape)
    with np.errstate(all="ignore"):
        of_rows, of_columns = np.abs(steps[:, ::column_stride]), np.abs(steps[::row_stride])
        row_means = _finite(of_rows.mean(axis=1))
        column_means = _finite(_inverse(row_means[::row_stride]) @ of_columns)
        row_means = _finite(of_rows @ _inverse(column_means[::column_stride]))
    return Classes(_classes(row_means), _classes(column_means), 0)


def _finite(means: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    means = means.astype(np.float64)
    means[~np.isfinite(means)] = 0.0
    return means


def _inverse(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.divide(1.0, means, out=np.zeros_like(means), where=means > 0).astype(np.float32)


def _classes(means: npt.NDArray[np.float64]) -> Bytes:
    """Return the logarithms of means as classes around ``MIDDLE``."""
    found = np.full(len(means), _STILL, np.uint8)
    moved = means > 0
    if moved.any():
        logs = np.log2(means[moved])
        found[moved] = np.clip(np.rint((logs - logs.mean()) * _UNIT) + MIDDLE, 1, 255).astype(np.uint8)
    return found
