# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity are found in every float type, and nowhere else: torch is the judge of what is finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_checkpoint.header import DTYPE_BITS
from vla_checkpoint.values import count_not_finite

EVERY_BYTE = np.arange(256, dtype=np.uint8)
EVERY_U16 = np.arange(65536, dtype=np.uint16)
EDGES_32 = np.array(
    [0, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0xFF800000, 0xFFFFFFFF, 0x80000000, 0x00800000], np.uint32
)
EDGES_64 = np.array(
    [0, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF0000000000001, 0xFFF8000000000000, 1 << 63], np.uint64
)

CASES = {
    "F8_E4M3": (EVERY_BYTE, torch.float8_e4m3fn),
    "F8_E5M2": (EVERY_BYTE, torch.float8_e5m2),
    "F8_E8M0": (EVERY_BYTE, torch.float8_e8m0fnu),
    "F8_E4M3FNUZ": (EVERY_BYTE, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (EVERY_BYTE, torch.float8_e5m2fnuz),
    "F16": (EVERY_U16, torch.float16),
    "BF16": (EVERY_U16, torch.bfloat16),
    "F32": (EDGES_32, torch.float32),
    "F64": (EDGES_64, torch.float64),
    "C64": (EDGES_32, torch.float32),
}


@pytest.mark.parametrize("dtype", CASES)
def test_agrees_with_torch_on_every_bit_pattern(dtype: str) -> None:
    bits, torch_type = CASES[dtype]
    values = torch.from_numpy(bits.view(np.uint8).copy()).view(torch_type).to(torch.float64)
    finite = torch.isfinite(values).numpy()
    assert 0 < np.count_nonzero(~finite) < bits.size
    found = np.array(
        [count_not_finite(dtype, bits[i : i + 1].tobytes() * (2 if dtype == "C64" else 1)) for i in range(bits.size)]
    )
    assert np.array_equal(found > 0, ~finite)
    assert count_not_finite(dtype, bits.tobytes()) == np.count_nonzero(~finite)


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - set(CASES)))
def test_types_without_nan_have_none(dtype: str) -> None:
    assert count_not_finite(dtype, b"\xff" * 64) == 0


def test_empty_tensors_are_finite() -> None:
    assert count_not_finite("F32", b"") == 0
