# SPDX-License-Identifier: Apache-2.0
"""The randomisation test keeps its α exactly with robots that differ, at any number of looks, and finds what is there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_evidence.errors import InputError
from vla_evidence.sequential.randomisation_test import RandomisationTest, bernoulli_column, cohort_assignments
from vla_evidence.sequential.spending import LINEAR, OBRIEN_FLEMING, POCOCK, Spending


def every_assignment(robots: int, members: int) -> np.ndarray:
    rows = np.zeros((math.comb(robots, members), robots), dtype=bool)
    for row, chosen in enumerate(itertools.combinations(range(robots), members)):
        rows[row, list(chosen)] = True
    return rows


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 7),
    st.integers(1, 5),
    st.floats(0.02, 0.45),
    st.sampled_from([LINEAR, OBRIEN_FLEMING, POCOCK]),
    st.booleans(),
)
def test_the_error_by_enumeration_of_all_assignments_stays_below_f_at_every_look(
    seed: int, robots: int, looks: int, alpha: float, spending: Spending, two_sided: bool
) -> None:
    """Any results whatever, fixed; each assignment in turn is the real one."""
    rng = np.random.default_rng(seed)
    every = every_assignment(robots, robots // 2)
    counts = np.cumsum(rng.integers(0, 5, (looks, robots)), axis=0)
    totals = np.minimum(np.cumsum(rng.integers(0, 5, (looks, robots)), axis=0), counts)
    rejected = np.zeros((len(every), looks), dtype=bool)
    for real in range(len(every)):
        assignments = np.roll(every, -real, axis=0)
        test = RandomisationTest(alpha, spending=spending, two_sided=two_sided)
        for k in range(looks):
            rejected[real, k] = test.look(assignments, totals[k], counts[k], (k + 1) / looks).decision != 0
    for k in range(looks):
        assert rejected[:, k].mean() <= float(spending((k + 1) / looks, alpha)) + 1e-9


def simulate(
    rng: np.random.Generator, robots: int, episodes: int, looks: int, rates: tuple[float, float], icc: float
) -> tuple[int, float]:
    """Return (decision, share of the planned episodes used) of one experiment with robots assigned by coins."""
    in_b = rng.random(robots) < 0.5
    draws = rng.random((400, robots)) < 0.5
    draws[0] = in_b
    p = np.where(in_b, rates[1], rates[0])
    if icc:
        p = rng.beta(p * (1 / icc - 1), (1 - p) * (1 / icc - 1))
    steps = rng.multinomial(episodes // looks, np.full(robots, 1 / robots), size=looks)
    counts, totals = np.cumsum(steps, axis=0), np.cumsum(rng.binomial(steps, p), axis=0)
    test = RandomisationTest(0.05)
    for k in range(looks):
        if test.look(draws, totals[k], counts[k], (k + 1) / looks).decision:
            return test.decision, (k + 1) / looks
    return 0, 1.0


def test_the_null_error_with_robots_that_differ_is_alpha() -> None:
    """A z test on episodes errs in 17 % and more here; 2,000 runs, standard error 0.5 %."""
    rng = np.random.default_rng(1)
    runs = 2000
    error = sum(simulate(rng, 20, 800, 5, (0.87, 0.87), 0.1)[0] != 0 for _ in range(runs)) / runs
    standard_error = math.sqrt(0.05 * 0.95 / runs)
    assert 0.035 - 3 * standard_error <= error <= 0.05 + 3 * standard_error


def test_a_difference_is_found_early_and_on_the_right_side() -> None:
    rng = np.random.default_rng(2)
    found = [simulate(rng, 40, 2000, 5, (0.87, 0.75), 0.02) for _ in range(200)]
    assert sum(decision == -1 for decision, _ in found) / 200 > 0.9
    assert not any(decision == 1 for decision, _ in found)
    assert float(np.mean([used for _, used in found])) < 0.75


def test_it_is_the_classical_permutation_test_at_one_look() -> None:
    """Five and five robots with equal weights: p is the share of assignments with at least this difference of means."""
    every = every_assignment(10, 5)
    real = [0, 2, 3, 5, 8]
    order = sorted(range(len(every)), key=lambda i: list(np.flatnonzero(every[i])) != real)
    assignments = every[order]
    x = np.array([9, 4, 8, 7, 3, 9, 2, 5, 6, 4], dtype=float)
    differences = (assignments * x).sum(axis=1) / 5 - (~assignments * x).sum(axis=1) / 5
    look = RandomisationTest(0.49).look(assignments, x, np.full(10, 10.0), 1.0)
    assert look.as_extreme == pytest.approx((differences >= differences[0] - 1e-9).mean())
    assert look.smallest == 1 / 252
    assert look.decision == (1 if look.as_extreme <= 0.245 else 0)


def test_too_few_robots_can_never_be_evidence_and_it_is_said() -> None:
    """Two and two robots: 6 assignments, so nothing is rarer than 1/6; with one robot there is nothing to compare at all."""
    arms = {"a": True, "b": False, "c": True, "d": False}
    assignments = cohort_assignments(arms, "seed")
    assert assignments.shape == (6, 4)
    look = RandomisationTest(0.05).look(assignments, [1000, 0, 1000, 0], [1000] * 4, 1.0)
    assert look.decision == 0
    assert look.smallest == 1 / 6
    one = bernoulli_column("seed", "only", 0.5, True, 99)[:, None]
    look = RandomisationTest(0.05).look(one, [10], [10], 1.0)
    assert (look.decision, look.statistic, look.as_extreme) == (0, 0.0, 1.0)


@pytest.mark.parametrize("totals", [[0, 0, 0, 0, 0, 0], [10, 10, 10, 10, 10, 10]])
@pytest.mark.parametrize("counts", [[10] * 6, [10, 20, 10, 30, 10, 10], [0] * 6])
def test_equal_rates_show_nothing(totals: list[int], counts: list[int]) -> None:
    """Rates of 0, of 1 and of nothing; ties are never stopped."""
    assignments = cohort_assignments(dict(zip("abcdef", [True, False] * 3, strict=True)), "s")
    totals = [min(a, b) for a, b in zip(totals, counts, strict=True)] if not any(totals) else counts
    look = RandomisationTest(0.4).look(assignments, totals, counts, 1.0)
    assert (look.decision, look.statistic) == (0, 0.0)


def test_a_robot_without_episodes_says_nothing() -> None:
    rng = np.random.default_rng(3)
    draws = rng.random((500, 12)) < 0.5
    totals, counts = np.array([*rng.integers(0, 9, 10), 0, 0]), np.array([10] * 10 + [0, 0])
    with_empty = RandomisationTest().look(draws, totals, counts, 1.0)
    without = RandomisationTest().look(draws[:, :10], totals[:10], counts[:10], 1.0)
    assert with_empty == without


def test_robots_may_come_later_and_their_draws_do_not_depend_on_the_order() -> None:
    columns = {robot: bernoulli_column("e", robot, 0.3, True, 2000) for robot in ("a", "b")}
    assert columns["a"][0] and (columns["a"] != columns["b"]).any()
    assert (columns["b"] == bernoulli_column("e", "b", 0.3, True, 2000)).all()
    assert abs(columns["a"].mean() - 0.3) < 4 * math.sqrt(0.21 / 2000)
    test = RandomisationTest()
    test.look(columns["a"][:, None], [5], [10], 0.5)
    assert test.look(np.stack(list(columns.values()), axis=1), [5, 9], [10, 10], 1.0).decision == 0


def test_draws_of_a_large_fleet_keep_the_size_of_the_groups() -> None:
    arms = {f"r{i}": i < 7 for i in range(40)}
    assignments = cohort_assignments(arms, "s", 300)
    assert assignments.shape == (301, 40)
    assert (assignments.sum(axis=1) == 7).all()
    assert (assignments[0] == list(arms.values())).all()
    assert abs(assignments[1:, 20].mean() - 7 / 40) < 4 * math.sqrt(0.175 * 0.825 / 300)
    assert (assignments == cohort_assignments(arms, "s", 300)).all()
    assert (assignments != cohort_assignments(arms, "t", 300)).any()


def test_wrong_input_is_named() -> None:
    draws = np.ones((20, 3), dtype=bool)

    def later(fraction: float, rows: int = 20) -> None:
        test = RandomisationTest()
        test.look(draws, [1, 1, 1], [2, 2, 2], 0.5)
        test.look(np.ones((rows, 3), dtype=bool), [1, 1, 1], [2, 2, 2], fraction)

    for call, code in (
        (lambda: RandomisationTest(0.5), "INPUT_PROBABILITY"),
        (lambda: RandomisationTest(icc=1.5), "INPUT_RATE"),
        (lambda: RandomisationTest().look(draws, [1, 1], [2, 2], 1.0), "INPUT_VALUE"),
        (lambda: RandomisationTest().look(draws[0], [1, 1, 1], [2, 2, 2], 1.0), "INPUT_VALUE"),
        (lambda: RandomisationTest().look(draws, [1, 1, 1], [2, -2, 2], 1.0), "INPUT_COUNT"),
        (lambda: RandomisationTest().look(draws, [1, math.nan, 1], [2, 2, 2], 1.0), "INPUT_COUNT"),
        (lambda: RandomisationTest().look(draws, [1, 1, 1], [2, 2, 2], math.nan), "INPUT_VALUE"),
        (lambda: later(0.4), "INPUT_VALUE"),
        (lambda: later(1.0, rows=21), "INPUT_VALUE"),
        (lambda: bernoulli_column("s", "r", 0.0, True), "INPUT_PROBABILITY"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
