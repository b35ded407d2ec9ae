# SPDX-License-Identifier: Apache-2.0
"""The evidence of two groups is a martingale where they do not differ, unfavourable where the canary is good, and finds harm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_evidence.canary.config import CanaryConfig
from vla_evidence.planning.stopping import detection_times
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, BetaPrior, TwoSampleEProcess, log_e_paths

ALPHA = 0.05
PRIORS = {
    "uniform": {},
    "informed": {
        "incumbent": BetaPrior.from_history(870, 1000, 1000.0),
        "canary": BetaPrior.expecting_drop(870, 1000, drop=0.1, weight=8.0),
    },
}


def mean_of_e(rates: list[tuple[float, float]], pis: list[float], margin: float, **priors) -> float:
    """Return E[evidence] after all units, exactly, by summing over every group and outcome of each.

    Args:
        rates: success rates of (incumbent, canary) for each unit: another robot, another day.
        pis: probability of the canary for each.
    """
    total = 0.0
    for path in itertools.product(itertools.product((INCUMBENT, CANARY), (0, 1)), repeat=len(pis)):
        process, probability = TwoSampleEProcess(margin, **priors), 1.0
        for (group, y), rate, pi in zip(path, rates, pis, strict=True):
            p = rate[group]
            probability *= (pi if group == CANARY else 1.0 - pi) * (p if y else 1.0 - p)
            process.update(group, y, pi)
        total += probability * math.exp(process.log_e)
    return total


@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize(
    ("rates", "pis"),
    [
        ([0.87] * 6, [0.05] * 6),
        ([0.1, 0.95, 0.5, 0.99, 0.01, 0.7], [0.5] * 6),  # another robot each time
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.05, 0.05, 0.25, 0.25, 0.5, 0.9]),  # drift, and π grows with the stages
        ([1.0, 0.0, 1.0, 0.0, 1.0, 0.5], [0.2, 0.8, 0.2, 0.8, 0.2, 0.8]),  # certain successes and failures
    ],
)
def test_the_mean_is_exactly_one_where_the_groups_do_not_differ(rates: list[float], pis: list[float], priors) -> None:
    assert mean_of_e([(p, p) for p in rates], pis, 0.0, **priors) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("better_by", [0.0, 0.05, 0.4])
def test_the_mean_is_at_most_one_where_the_canary_is_no_worse_than_the_margin(margin, better_by, priors) -> None:
    incumbent = [0.9, 0.5, 0.75, 0.35, 0.6]
    rates = [(p, min(1.0, p - margin + better_by)) for p in incumbent]
    assert mean_of_e(rates, [0.05, 0.5, 0.25, 0.9, 0.1], margin, **priors) <= 1.0 + 1e-12


def test_the_mean_exceeds_one_where_the_canary_is_worse() -> None:
    """Else the bounds above would hold for evidence that never moves."""
    assert mean_of_e([(0.9, 0.2)] * 6, [0.5] * 6, 0.0) > 1.5
    assert mean_of_e([(0.9, 0.2)] * 6, [0.5] * 6, 0.1) > 1.3


def test_a_past_that_decides_the_next_rates_changes_nothing() -> None:
    """Rates may depend on everything before: an adversary who knows the evidence and moves the rate of both groups with it."""
    total = 0.0
    for path in itertools.product(itertools.product((0, 1), (0, 1)), repeat=6):
        process, probability = TwoSampleEProcess(), 1.0
        for group, y in path:
            p, pi = (0.95, 0.1) if process.log_e > 0 else (0.3, 0.6)
            probability *= (pi if group else 1.0 - pi) * (p if y else 1.0 - p)
            process.update(group, y, pi)
        total += probability * math.exp(process.log_e)
    assert total == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1), st.floats(0.01, 0.99)), min_size=1, max_size=80),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]),
)
def test_one_by_one_is_the_same_as_in_batches(units, margin: float) -> None:
    groups, ys, pis = (np.array(column) for column in zip(*units, strict=True))
    one = TwoSampleEProcess(margin)
    path = [one.update(int(g), float(y), float(pi)) for g, y, pi in units]
    assert np.allclose(path, log_e_paths(groups, ys, pis, margin=margin), atol=1e-9)
    cut = len(units) // 2
    batch = TwoSampleEProcess(margin)
    if cut:
        batch.update_many(groups[:cut], ys[:cut], pis[:cut])
    batch.update_many(groups[cut:], ys[cut:], pis[cut:])
    assert batch.log_e == pytest.approx(one.log_e, abs=1e-9)
    assert batch.max_log_e == pytest.approx(one.max_log_e, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.floats(0.01, 0.99)), max_size=60),
    st.floats(0.01, 0.99),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_at_any_point_what_speaks_for_harm_never_lowers_it_and_what_speaks_against_never_raises_it(past, pi, margin):
    """As the *next* unit: a failure of the canary or success of the incumbent, and the reverse.

    It does not hold for a unit that is changed in the past, because later factors rest on what was believed then; see below.
    """
    for group, y in itertools.product((INCUMBENT, CANARY), (0, 1)):
        process = TwoSampleEProcess(margin)
        for unit in past:
            process.update(*unit)
        before, top = process.log_e, process.max_log_e
        after = process.update(group, y, pi)
        speaks_for_harm = (group == CANARY) == (y == 0)
        assert after >= before - 1e-12 if speaks_for_harm else after <= before + 1e-12
        assert process.max_log_e >= top


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize(("incumbent", "canary"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_rates_of_zero_and_one_stay_finite(incumbent: int, canary: int, margin: float) -> None:
    process = TwoSampleEProcess(margin)
    rng = np.random.default_rng(0)
    groups = (rng.random(5000) < 0.2).astype(int)
    for group in groups:
        process.update(int(group), canary if group else incumbent, 0.2)
    assert math.isfinite(process.log_e)
    assert (process.max_log_e >= -math.log(1e-9)) == (incumbent == 1 and canary == 0)


@pytest.mark.parametrize(("group", "pi"), [(INCUMBENT, 0.05), (CANARY, 0.95)])
def test_an_empty_group_leaves_the_evidence_finite_and_where_belief_alone_may_bring_it(group: int, pi: float) -> None:
    """A group that never comes although it was drawn with π is an error of the assignment, which the judge checks for itself."""
    assert TwoSampleEProcess().log_e == TwoSampleEProcess().max_log_e == 0.0
    for y in (0, 1):
        process = TwoSampleEProcess()
        for n in range(1, 3001):
            process.update(group, y, pi)
            assert -1.0 <= process.log_e <= -n * math.log(pi if group == CANARY else 1.0 - pi)


def rejected(p0: float, p1: float, pi: float, *, runs: int, canary_episodes: int, seed: int, margin=0.0, **priors):
    """Return the share of runs that are rejected at ALPHA within about ``canary_episodes``."""
    rng, units, count = np.random.default_rng(seed), int(canary_episodes / pi), 0
    for _ in range(runs):
        groups = (rng.random(units) < pi).astype(np.int8)
        process = TwoSampleEProcess(margin, **priors)
        process.update_many(groups, rng.random(units) < np.where(groups, p1, p0), pi)
        count += process.max_log_e >= -math.log(ALPHA)
    return count / runs


INFORMED = CanaryConfig(history=(870, 1000)).priors


@pytest.mark.parametrize(("priors", "goal"), [(None, 90.4), (INFORMED, 75.3)], ids=["uniform", "informed"])
def test_a_drop_from_87_to_75_percent_is_found_in_the_documented_number_of_canary_episodes(priors, goal: float) -> None:
    rng = np.random.default_rng(2)
    found = detection_times(0.87, 0.75, 0.05, alpha=ALPHA, horizon=800, runs=300, rng=rng, priors=priors)
    mean, error = found.mean
    assert found.decided[0] == 1.0 and abs(mean - goal) <= 3 * error


def test_a_margin_forgives_what_it_covers() -> None:
    runs = 200
    share = rejected(0.87, 0.82, 0.25, runs=runs, canary_episodes=300, seed=3, margin=0.05)
    assert share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert rejected(0.87, 0.6, 0.25, runs=50, canary_episodes=300, seed=4, margin=0.05) >= 0.95


def test_priors_from_history_are_where_history_is_and_no_heavier_than_it() -> None:
    assert BetaPrior.from_history(870, 1000, 100.0).mean == pytest.approx(0.8696, abs=1e-3)
    prior = BetaPrior.from_history(3, 4, 1000.0)
    assert prior.successes + prior.failures == 4.0
    never, always = BetaPrior.from_history(0, 50, 20.0), BetaPrior.from_history(50, 50, 20.0)
    assert 0.0 < never.mean < 0.02 and 0.98 < always.mean < 1.0
    assert BetaPrior.from_history(0, 0, 5.0).mean == 0.5
    assert BetaPrior.expecting_drop(870, 1000, drop=0.1, weight=8.0).mean == pytest.approx(0.7696, abs=1e-3)
    assert 0.0 < BetaPrior.expecting_drop(5, 100, drop=0.1, weight=8.0).mean < 0.05  # nothing below zero


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_learning_anew_keeps_the_mean_of_the_evidence(margin: float) -> None:
    """Exactly, over all 4^6 outcomes of six units with a restart in between, at the edge of H0, π changing with it."""
    rates, pis, total = (0.7, 0.7 - margin), (0.25, 0.5), 0.0
    for units in itertools.product(itertools.product((0, 1), (0, 1)), repeat=6):
        process, chance = TwoSampleEProcess(margin), 1.0
        for index, (group, y) in enumerate(units):
            if index == 3:
                before = process.log_e
                process.restart()
                assert process.log_e == before
            pi = pis[index >= 3]
            chance *= (pi if group else 1.0 - pi) * (rates[group] if y else 1.0 - rates[group])
            process.update(group, y, pi)
        total += chance * math.exp(process.log_e)
    assert total == pytest.approx(1.0, abs=1e-9) if margin == 0.0 else total <= 1.0 + 1e-9


def test_estimates_of_a_restarted_process_follow_a_change_that_the_others_hardly_see() -> None:
    """8,000 equal units, then 400 with a drop from 0.9 to 0.75."""
    rng = np.random.default_rng(0)
    anew, on = TwoSampleEProcess(), TwoSampleEProcess()
    for units, rate in ((8000, 0.9), (400, 0.75)):
        groups = (rng.random(units) < 0.5).astype(int)
        ys = (rng.random(units) < np.where(groups, rate, 0.9)).astype(int)
        anew.restart()
        for process in (anew, on):
            process.update_many(groups, ys, 0.5)
    assert anew.log_e > on.log_e + 2.0


@pytest.mark.parametrize("sure", [BetaPrior(1e20, 1.0), BetaPrior(1e300, 1e-300), BetaPrior(1e-300, 1.0)])
def test_a_prior_that_is_sure_loses_a_bet_and_breaks_nothing(sure: BetaPrior) -> None:
    for incumbent, canary in ((sure, BetaPrior()), (BetaPrior(), sure), (sure, sure)):
        process = TwoSampleEProcess(0.02, incumbent=incumbent, canary=canary)
        for group, y in itertools.product((0, 1), (0, 1)):
            assert math.isfinite(process.update(group, y, 0.5))
        counts = ((incumbent.successes, canary.successes), (incumbent.successes + incumbent.failures,
                                                            canary.successes + canary.failures))  # fmt: skip
        path = log_e_paths([0, 0, 1, 1], [0, 1, 0, 1], 0.5, margin=0.02, counts=counts)
        assert path[-1] == pytest.approx(process.log_e, rel=1e-6)
