# SPDX-License-Identifier: Apache-2.0
"""The sign test errs exactly as often as it says, whatever pattern of discordance, and wastes next to nothing of α.

Where it says *exactly*, all sequences of signs are enumerated; simulated figures are asserted within three standard errors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_evidence.errors import InputError
from vla_evidence.sequential.sign_test import ExactSignTest, SignTestDesign, budgets
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import SpendingFunction, linear, obrien_fleming


def early(fraction, alpha):
    """A spending function that spends early (Pocock's)."""
    return alpha * np.log1p((np.e - 1.0) * np.minimum(fraction, 1.0))


def late(fraction, alpha):
    """One that spends late."""
    return alpha * np.minimum(fraction, 1.0) ** 3


SPENDING = st.sampled_from([linear, obrien_fleming, early, late])
ALPHAS = st.floats(0.001, 0.49)


def run(design: SignTestDesign, signs: list[int]) -> ExactSignTest:
    test = ExactSignTest(design)
    for sign in signs:
        test.update(sign)
    return test


def all_signs(pattern: list[bool]) -> np.ndarray:
    """Return every sequence of signs with this pattern of discordance, shape [2^k, pairs]."""
    at = np.flatnonzero(pattern)
    signs = np.zeros((2 ** len(at), len(pattern)), dtype=np.int8)
    signs[:, at] = list(itertools.product((-1, 1), repeat=len(at)))
    return signs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=13), ALPHAS, SPENDING, st.booleans())
def test_the_error_by_enumeration_of_all_signs_stays_below_f_at_every_pair(
    pattern: list[bool], alpha: float, spending: SpendingFunction, two_sided: bool
) -> None:
    design = SignTestDesign(len(pattern), alpha, two_sided, spending)
    signs = all_signs(pattern)
    pairs, decisions = stopping_times(signs, design)
    for side in (1, -1) if two_sided else (1,):
        for n in range(1, len(pattern) + 1):
            error = float(((decisions == side) & (pairs <= n)).mean())
            assert error <= budgets(design)[n] + 1e-15
    share = float((decisions != 0).mean())
    assert run(design, signs[0].tolist()).spent <= share + 1e-15  # of a run that may have stopped early
    never = signs[decisions == 0]
    assert len(never), "below α = 1/2 some runs are never stopped"
    assert run(design, never[0].tolist()).spent == share  # dyadic numbers: exact


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=13), ALPHAS, SPENDING, st.booleans())
def test_no_further_score_fits_into_what_is_left(
    pattern: list[bool], alpha: float, spending: SpendingFunction, two_sided: bool
) -> None:
    design = SignTestDesign(len(pattern), alpha, two_sided, spending)
    signs = all_signs(pattern)
    _, decisions = stopping_times(signs, design)
    scores = signs.sum(axis=1)
    best = scores[decisions == 0].max()
    next_one = float(((decisions == 0) & (scores == best)).mean())
    assert float((decisions == 1).mean()) + next_one > design.tail_alpha


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1), ALPHAS, SPENDING, st.booleans())
def test_many_at_once_are_the_same_as_one_by_one(
    n: int, seed: int, discordance: float, b_wins: float, alpha: float, spending: SpendingFunction, two_sided: bool
) -> None:
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random((6, n)) < discordance, np.where(rng.random((6, n)) < b_wins, 1, -1), 0)
    design = SignTestDesign(n, alpha, two_sided, spending)
    pairs, decisions = stopping_times(signs, design)
    for row, used, decision in zip(signs.tolist(), pairs, decisions, strict=True):
        test = run(design, row)
        assert (test.pairs, test.decision) == (used, decision)


def test_long_walks_many_at_once_are_the_same_as_one_by_one() -> None:
    """Long enough that the far end of the walk is dropped (after 133 discordant pairs)."""
    rng = np.random.default_rng(1)
    signs = np.where(rng.random((12, 900)) < 0.7, np.where(rng.random((12, 900)) < 0.53, 1, -1), 0)
    for two_sided in (False, True):
        design = SignTestDesign(900, 0.05, two_sided, obrien_fleming)
        pairs, decisions = stopping_times(signs, design)
        assert len(set(decisions.tolist())) > 1
        for row, used, decision in zip(signs.tolist(), pairs, decisions, strict=True):
            test = run(design, row)
            assert (test.pairs, test.decision) == (used, decision)


def test_a_boundary_computed_by_hand() -> None:
    """N = 10, α = 0.05, linear: 5 wins have 1/32 > 0.025, 6 have 1/64 <= 0.03; then 7 of 8 with 6 paths of 256."""
    design = SignTestDesign(10, 0.05, min_pairs=0)
    assert run(design, [1] * 5).decision == 0
    assert run(design, [1] * 6).pairs == 6 and run(design, [1] * 6).decision == 1
    assert run(design, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]).decision == 1  # 5 of 5 by pair 10: 1/32 <= 0.05
    assert run(design, [1, 1, 1, 1, 1, 0, 0]).pairs == 7  # a concordant pair gives the time that 1/32 <= 0.035 needs
    assert run(design, [-1] * 10).decision == 0


@pytest.mark.parametrize(
    ("n", "min_pairs", "first"), [(9, None, 0), (100, None, 10), (1000, None, 20), (50, 30, 30), (1, 0, 0)]
)
def test_the_first_pairs_are_not_decided_on(n: int, min_pairs: int | None, first: int) -> None:
    design = SignTestDesign(n, 0.4, True, early, min_pairs)
    assert budgets(design)[first] == 0.0 and (budgets(design)[first + 1 :] > 0.0).all()
    assert budgets(design)[n] == 0.2


def test_two_sided_is_symmetric_and_its_sides_share_alpha() -> None:
    rng = np.random.default_rng(2)
    signs = rng.integers(-1, 2, (400, 60))
    design = SignTestDesign(60, 0.1, True)
    pairs, decisions = stopping_times(signs, design)
    mirrored_pairs, mirrored = stopping_times(-signs, design)
    assert (pairs == mirrored_pairs).all() and (decisions == -mirrored).all()
    assert {-1, 0, 1} == set(decisions.tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40), st.data(), SPENDING)
def test_a_win_more_never_takes_a_rejection_away_nor_delays_it(
    signs: list[int], data: st.DataObject, spending: SpendingFunction
) -> None:
    lost = [i for i, sign in enumerate(signs) if sign == -1]
    if not lost:
        return
    better = list(signs)
    better[data.draw(st.sampled_from(lost))] = 1
    design = SignTestDesign(len(signs), 0.2, False, spending)
    before, after = run(design, signs), run(design, better)
    assert after.decision >= before.decision
    assert after.pairs <= before.pairs


def test_the_boundary_shown_is_where_the_test_rejects() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        test = ExactSignTest(SignTestDesign(120, 0.05))
        for sign in np.where(rng.random(120) < 0.4, np.where(rng.random(120) < 0.65, 1, -1), 0).tolist():
            test.update(sign)
            reached = test.boundary is not None and test.score >= test.boundary
            assert reached == (test.decision == 1)
            if test.ended:
                break


def outcomes(rng: np.random.Generator, runs: int, n: int, a: float, b: float) -> np.ndarray:
    """Return signs of pairs, shape [runs, n]."""
    won_b, won_a = rng.random((runs, n)) < b, rng.random((runs, n)) < a
    return won_b.astype(np.int8) - won_a.astype(np.int8)


def test_power_and_length_reach_the_reference_values() -> None:
    """0.87 against 0.75, one-sided 0.05 (docs/evidence.md); 4,000 runs: standard errors 0.005 of power, 0.9 of pairs."""
    runs = 4000
    rng = np.random.default_rng(5)
    for n, power, mean_pairs in ((200, 0.896, 109.0), (500, 0.998, 150.0)):
        pairs, decisions = stopping_times(outcomes(rng, runs, n, 0.75, 0.87), SignTestDesign(n, 0.05))
        share = float((decisions == 1).mean())
        assert abs(share - power) <= 0.015 + 3 * math.sqrt(power * (1 - power) / runs)
        assert abs(float(pairs.mean()) - mean_pairs) <= 3.0 + 3 * float(pairs.std()) / math.sqrt(runs)


@pytest.mark.parametrize(("a", "b", "decision"), [(0.0, 0.0, 0), (1.0, 1.0, 0), (0.0, 1.0, 1), (1.0, 0.0, -1)])
def test_extreme_rates(a: float, b: float, decision: int) -> None:
    design = SignTestDesign(50, 0.05, True)
    signs = outcomes(np.random.default_rng(6), 3, 50, a, b)
    pairs, decisions = stopping_times(signs, design)
    assert (decisions == decision).all()
    assert (pairs == (50 if decision == 0 else 9)).all()
    test = run(design, signs[0].tolist())
    assert (test.decision, test.pairs) == (decision, pairs[0])


def test_after_the_end_nothing_changes() -> None:
    test = run(SignTestDesign(20, 0.05), [1] * 20)
    assert (test.decision, test.ended) == (1, True)
    pairs, score, spent = test.pairs, test.score, test.spent
    assert test.update(-1) == 1
    assert (test.pairs, test.score, test.spent) == (pairs, score, spent)
    test = run(SignTestDesign(3, 0.05), [1, 1, 1, 1])
    assert (test.pairs, test.decision, test.ended) == (3, 0, True)
    assert test.boundary is None


def test_wrong_input_is_named() -> None:
    for call, code in (
        (lambda: SignTestDesign(0), "INPUT_COUNT"),
        (lambda: SignTestDesign(10**9), "INPUT_COUNT"),
        (lambda: SignTestDesign(2.5), "INPUT_COUNT"),  # type: ignore[arg-type]
        (lambda: SignTestDesign(True), "INPUT_COUNT"),
        (lambda: SignTestDesign(5, min_pairs=5), "INPUT_COUNT"),
        (lambda: SignTestDesign(5, min_pairs=-1), "INPUT_COUNT"),
        (lambda: SignTestDesign(5, 0.0), "INPUT_PROBABILITY"),
        (lambda: SignTestDesign(5, 0.5), "INPUT_PROBABILITY"),
        (lambda: SignTestDesign(5, math.nan), "INPUT_PROBABILITY"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
