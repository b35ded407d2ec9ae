# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in raw tensor bytes, without turning them into numbers.

A float is NaN or infinite by its bits alone, so one masked comparison a type is enough and works for types that numpy lacks.
Bit layouts: IEEE 754; OCP 8-bit Floating Point Specification 1.0 (E4M3 has NaN but no infinity); OCP Microscaling Formats 1.0
(E8M0: 0xFF is NaN; F4 and F6 have neither NaN nor infinity); the FNUZ variants have one NaN, 0x80.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

# dtype: (unsigned type of the same size, bits looked at, their value in NaN or infinity)
_NOT_FINITE: Mapping[str, tuple[str, int, int]] = MappingProxyType({
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000, 0x7F80_0000),  # two F32
    "F16": ("<u2", 0x7C00, 0x7C00),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F8_E5M2": ("<u1", 0x7C, 0x7C),
    "F8_E4M3": ("<u1", 0x7F, 0x7F),
    "F8_E8M0": ("<u1", 0xFF, 0xFF),
    "F8_E4M3FNUZ": ("<u1", 0xFF, 0x80),
    "F8_E5M2FNUZ": ("<u1", 0xFF, 0x80),
})  # fmt: skip


def count_not_finite(dtype: str, data: bytes | bytearray | memoryview) -> int:
    """Return how many elements are NaN or infinite; 0 for types that have neither.

    Args:
        dtype: safetensors name.
        data: little-endian elements, a whole number of them.
    """
    if dtype not in _NOT_FINITE or not len(data):
        return 0
    unsigned, mask, value = _NOT_FINITE[dtype]
    bits = np.frombuffer(data, dtype=unsigned)
    sign = 1 << (8 * bits.itemsize - 1)
    if mask == value < sign and bits.view(f"<i{bits.itemsize}").max() < value and bits.max() < sign | value:
        return 0  # neither a positive nor a negative one: two reductions, and no array is made
    scalar = bits.dtype.type
    return int(np.count_nonzero((bits & scalar(mask)) == scalar(value)))
