# SPDX-License-Identifier: Apache-2.0
"""Spending functions begin at 0, never fall, end at α exactly, and are what the literature tabulates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence.errors import InputError
from vla_evidence.sequential.spending import LINEAR, OBRIEN_FLEMING, POCOCK, Spending

ALL = st.one_of(
    st.sampled_from([LINEAR, OBRIEN_FLEMING, POCOCK]), st.floats(0.1, 8.0).map(lambda rho: Spending("power", rho))
)


@given(ALL, st.floats(1e-9, 0.499), st.lists(st.floats(0.0, 1.5), min_size=2, max_size=20))
def test_monotone_from_zero_to_alpha(spending: Spending, alpha: float, times: list[float]) -> None:
    spent = spending(np.array([0.0, *sorted(times), 1.0]), alpha)
    assert spent[0] == 0.0
    assert spent[-1] == alpha
    assert (np.diff(spent[:-1]) >= 0.0).all()
    assert (spent <= alpha).all()


def test_values_of_the_literature() -> None:
    """Two-sided 0.05, five looks, as cumulative one-sided probabilities (Lan and DeMets; Jennison and Turnbull, chapter 7)."""
    fifths = np.arange(1, 6) / 5
    assert OBRIEN_FLEMING(fifths, 0.025) == pytest.approx([5.4e-7, 0.00039, 0.0038, 0.0122, 0.025], rel=0.02)
    assert POCOCK(fifths, 0.025) == pytest.approx([0.0074, 0.0131, 0.0177, 0.0216, 0.025], rel=0.01)
    assert LINEAR(fifths, 0.025) == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.025])
    assert Spending("power", 3.0)(fifths, 0.025) == pytest.approx(0.025 * fifths**3)


@given(ALL)
def test_the_text_form_names_the_function(spending: Spending) -> None:
    assert Spending.parse(str(spending)) == spending


def test_wrong_input_is_named() -> None:
    for text in (
        "",
        "bonferroni",
        "power",
        "power:",
        "power:0",
        "power:-1",
        "power:nan",
        "power:x",
        "linear:2",
        "linear:",
    ):
        with pytest.raises(InputError) as caught:
            Spending.parse(text)
        assert caught.value.code == "INPUT_VALUE"
    with pytest.raises(InputError):
        Spending("linear", 2.0)
    for fraction in (-0.1, math.nan):
        with pytest.raises(InputError, match="fraction"):
            LINEAR(fraction, 0.05)
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(InputError) as caught:
            LINEAR(0.5, alpha)
        assert caught.value.code == "INPUT_PROBABILITY"
