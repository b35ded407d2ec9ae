# SPDX-License-Identifier: Apache-2.0
"""What an adapter adds to a weight, and in which bytes it is kept."""

from __future__ import annotations

import numpy as np
import pytest

from vla_checkpoint.adapter import merged, to_array, to_bytes
from vla_checkpoint.header import TensorInfo


def test_the_change_is_the_scaled_product_in_float32() -> None:
    rng = np.random.default_rng(0)
    weight, a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((5, 3), (2, 3), (5, 2)))
    expected = weight.astype(np.float64) + 1.5 * (b.astype(np.float64) @ a.astype(np.float64))
    result = merged(weight, a, b, 1.5)
    assert result.dtype == np.float32 and np.allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_numbers_that_a_type_has_come_back_and_others_are_rounded_to_the_nearest_even(dtype: str) -> None:
    numbers = np.array([[0.0, -1.5, 2.0**-10, 300.0]], np.float32)
    info = TensorInfo("w", dtype, (1, 4), 0, len(to_bytes(numbers, dtype)))
    assert np.array_equal(to_array(to_bytes(numbers, dtype), info), numbers)
    if dtype == "BF16":  # 8 bits of mantissa: half-way cases go to the even neighbour
        half_way = np.array([[1 + 2**-8, 1 + 3 * 2**-8, 1.0, 1.0]], np.float32)
        assert to_array(to_bytes(half_way, dtype), info)[0, :2].tolist() == [1.0, 1 + 2**-6]
