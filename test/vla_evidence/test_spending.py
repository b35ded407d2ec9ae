# SPDX-License-Identifier: Apache-2.0
"""Spending functions begin at 0, never fall, end at α exactly, and are what the literature tabulates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence.sequential.spending import SpendingFunction, linear, obrien_fleming


@given(
    st.sampled_from([linear, obrien_fleming]),
    st.floats(1e-9, 0.499),
    st.lists(st.floats(0, 1.5), min_size=2, max_size=20),
)
def test_monotone_from_zero_to_alpha(spending: SpendingFunction, alpha: float, times: list[float]) -> None:
    spent = spending(np.array([0.0, *sorted(times), 1.0]), alpha)
    assert spent[0] == 0.0 and spent[-1] == pytest.approx(alpha, rel=1e-12)
    assert (np.diff(spent[:-1]) >= 0.0).all() and (spent <= alpha).all()


def test_values_of_the_literature() -> None:
    """Two-sided 0.05, five looks, as cumulative one-sided probabilities (Lan and DeMets; Jennison and Turnbull, chapter 7)."""
    fifths = np.arange(1, 6) / 5
    assert obrien_fleming(fifths, 0.025) == pytest.approx([5.4e-7, 0.00039, 0.0038, 0.0122, 0.025], rel=0.02)
    assert linear(fifths, 0.025) == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.025])
