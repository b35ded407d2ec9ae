# SPDX-License-Identifier: Apache-2.0
"""The randomisation test keeps its α exactly with robots that differ, at any number of looks, and finds what is there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_evidence.sequential.randomisation_test import (
    RandomisationTest,
    bernoulli_column,
    cohort_assignments,
    common_number,
    one_look,
    shift_interval,
    spread,
)
from vla_evidence.sequential.spending import SpendingFunction, linear, obrien_fleming


def early(fraction, alpha):
    """A spending function that spends early (Pocock's)."""
    return alpha * np.log1p((np.e - 1.0) * np.minimum(fraction, 1.0))


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
    st.sampled_from([linear, obrien_fleming, early]),
    st.booleans(),
)
def test_the_error_by_enumeration_of_all_assignments_stays_below_f_at_every_look(
    seed: int, robots: int, looks: int, alpha: float, spending: SpendingFunction, two_sided: bool
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
    assert (look.decision, look.as_extreme) == (0, 1.0)


@pytest.mark.parametrize("totals", [[0, 0, 0, 0, 0, 0], [10, 10, 10, 10, 10, 10]])
@pytest.mark.parametrize("counts", [[10] * 6, [10, 20, 10, 30, 10, 10], [0] * 6])
def test_equal_rates_show_nothing(totals: list[int], counts: list[int]) -> None:
    """Rates of 0, of 1 and of nothing; ties are never stopped."""
    assignments = cohort_assignments(dict(zip("abcdef", [True, False] * 3, strict=True)), "s")
    totals = [min(a, b) for a, b in zip(totals, counts, strict=True)] if not any(totals) else counts
    look = RandomisationTest(0.4).look(assignments, totals, counts, 1.0)
    assert (look.decision, look.as_extreme) == (0, 1.0)


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


def fleet(rng: np.random.Generator, effect: float, canaries: int = 10, robots: int = 60) -> tuple[np.ndarray, ...]:
    """Return (assignments, totals, counts, baseline) of robots with 100 episodes each that differ much."""
    rates = rng.beta(6, 2, robots)
    drawn = cohort_assignments(
        {f"r{i}": bool(b) for i, b in enumerate(rng.permutation(robots) < canaries)}, f"{rng.random()}", 400
    )
    counts = np.full(robots, 100.0)
    totals = rng.binomial(100, np.clip(rates + effect * drawn[0], 0, 1)).astype(float)
    return drawn, totals, counts, rng.binomial(100, rates) / 100


def test_taking_out_what_robots_did_before_keeps_the_error_and_finds_more() -> None:
    rng, runs = np.random.default_rng(4), 400
    rejected = {(effect, adjusted): 0 for effect in (0.0, -0.07) for adjusted in (False, True)}
    for effect, adjusted in rejected:
        for _ in range(runs):
            drawn, totals, counts, baseline = fleet(rng, effect)
            known = baseline if adjusted else np.full(60, math.nan)
            rejected[effect, adjusted] += one_look(drawn, -totals, counts, known) <= 0.05
    shares = {key: number / runs for key, number in rejected.items()}
    assert shares[0.0, False] < 0.085 and shares[0.0, True] < 0.085  # 0.05 + 3 standard errors
    assert shares[-0.07, True] > shares[-0.07, False] + 0.2


def test_the_interval_holds_the_shift_as_often_as_it_says() -> None:
    rng, runs = np.random.default_rng(5), 150
    inside = 0
    for _ in range(runs):
        drawn, totals, counts, baseline = fleet(rng, 0.0)
        totals = totals - 5.0 * drawn[0]  # five points less on every canary robot
        low, high = shift_interval(drawn, totals, counts, baseline)
        inside += low <= -0.05 <= high
    assert inside / runs > 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)


def test_episodes_are_spread_evenly_over_all_that_a_robot_ran() -> None:
    assert spread(list(range(10)), 5) == [1, 3, 5, 7, 9]
    assert spread([1, 2], 5) == [1, 2]
    assert common_number([1, 40, 40, 40, 40, 90, 80, 100], [False] * 5 + [True] * 3) == 40
    assert common_number([5], [True]) == 5
