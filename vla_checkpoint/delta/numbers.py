# SPDX-License-Identifier: Apache-2.0
"""Floating-point bits as integers in the same order, and the differences of two such arrays.

Reversing the lower bits of negative numbers makes the bits of IEEE 754 ascend with the values: a step of one unit in the last
place is then a difference of 1, also across zero. Differences wrap around, so every pair of bit patterns, NaN included, has one.
Only integers are computed here: the result is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

TILE = 1 << 16
"""So many numbers at a time: what is made on the way stays in the cache."""
Integers = npt.NDArray[Any]


@dataclass(frozen=True)
class FloatType:
    """A floating-point type of safetensors."""

    code: int
    """Its number in a delta file."""
    integer: np.dtype[Any]
    """Signed integers of its size, little-endian."""
    mantissa_bits: int
    exponent_bits: int

    @property
    def bias(self) -> int:
        """What an exponent field of 2 ** 0 holds."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def nbytes(self) -> int:
        """Size of one number [bytes]."""
        return int(self.integer.itemsize)


FLOAT_TYPES: Mapping[str, FloatType] = MappingProxyType({
    "BF16": FloatType(1, np.dtype("<i2"), 7, 8),
    "F16": FloatType(2, np.dtype("<i2"), 10, 5),
    "F32": FloatType(3, np.dtype("<i4"), 23, 8),
})  # fmt: skip
FLOAT_TYPES_BY_CODE: Mapping[int, FloatType] = MappingProxyType({kind.code: kind for kind in FLOAT_TYPES.values()})


def tiles(count: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of ``count`` numbers, and of their rows, by whole rows of ``columns``."""
    step = max(1, TILE // columns)
    for row in range(0, count // columns, step):
        rows = slice(row, min(row + step, count // columns))
        yield slice(rows.start * columns, rows.stop * columns), rows


def ordered(bits: Integers) -> Integers:
    """Return signed integers that ascend with the values; applied twice it gives the bits again."""
    width = bits.dtype.itemsize * 8
    found: Integers = bits ^ ((bits >> (width - 1)) & np.array((1 << (width - 1)) - 1, bits.dtype))
    return found


def difference(old: Integers, new: Integers) -> Integers:
    """Return how many units in the last place ``new`` lies above ``old``, modulo the integers' range."""
    return np.subtract(ordered(new), ordered(old))


def restore(old: Integers, steps: Integers) -> Integers:
    """Return the bits that lie ``steps`` units in the last place above ``old``: the inverse of :func:`difference`."""
    return ordered(np.add(ordered(old), steps))


def exponents(bits: Integers, kind: FloatType, unit_bits: int) -> npt.NDArray[np.int16]:
    """Return the exponent fields times ``2 ** unit_bits``, as int16."""
    mask = ((1 << kind.exponent_bits) - 1) << unit_bits
    shifted = bits >> (kind.mantissa_bits - unit_bits)
    found: npt.NDArray[np.int16] = np.bitwise_and(shifted, np.array(mask, bits.dtype)).astype(np.int16, copy=False)
    return found


def values(bits: Integers, kind: FloatType) -> npt.NDArray[np.float32]:
    """Return the numbers themselves as float32: for estimates of the encoder, never for decoding."""
    if kind.nbytes == 4:
        return bits.view("<f4")
    if kind.exponent_bits == 5:
        return bits.view("<f2").astype(np.float32)
    return (bits.astype("<i4") << 16).view("<f4")
