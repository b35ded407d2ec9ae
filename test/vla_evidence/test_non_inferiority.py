# SPDX-License-Identifier: Apache-2.0
"""Which drop can be excluded: hardly ever one that is there, from counts alone, and monotone in every one of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_evidence import BetaPrior, InputError
from vla_evidence.sequential.non_inferiority import MAX_PROBABILITIES, NonInferiority
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT

ALPHA = 0.05


def counted(old: tuple[int, int], new: tuple[int, int], pi: float = 0.05, **settings_) -> NonInferiority:
    """Return the evidence of (successes, units) of incumbent and canary."""
    evidence = NonInferiority(**settings_)
    for group, (successes, units) in ((INCUMBENT, old), (CANARY, new)):
        evidence.add(group, True, pi, successes)
        evidence.add(group, False, pi, units - successes)
    return evidence


@pytest.mark.parametrize("prior", [BetaPrior(), BetaPrior(870.0, 130.0)], ids=["uniform", "informed"])
@pytest.mark.parametrize("excess", [0.0, 0.1])
@pytest.mark.parametrize("pis", [[0.05] * 5, [0.5, 0.1, 0.5, 0.9, 0.1]])
def test_the_mean_is_at_most_one_for_every_margin_that_the_drop_reaches(pis, excess, prior) -> None:
    """Exactly, by summing over groups and outcomes; another robot for each unit, π changes, the drop is m or more."""
    margins = NonInferiority().margins
    rates = [0.9, 0.55, 0.75, 0.99, 0.6]
    totals = np.zeros(len(margins))
    for index, margin in enumerate(margins):
        for path in itertools.product(itertools.product((INCUMBENT, CANARY), (0, 1)), repeat=len(pis)):
            probability = 1.0
            for (group, y), p0, pi in zip(path, rates, pis, strict=True):
                p = p0 if group == INCUMBENT else max(0.0, p0 - margin - excess)
                probability *= (pi if group else 1 - pi) * (p if y else 1 - p)
            if probability:
                totals[index] += probability * math.exp(_log_e_of(path, tuple(pis), prior)[index])
    assert (totals <= 1.0 + 1e-9).all()


_CACHE: dict[object, np.ndarray] = {}


def _log_e_of(path, pis, prior) -> np.ndarray:
    counts: dict[float, list[int]] = {}
    for (group, y), pi in zip(path, pis, strict=True):
        counts.setdefault(pi, [0] * 4)[2 * group + (not y)] += 1
    key = (prior, tuple(sorted((pi, tuple(c)) for pi, c in counts.items())))
    if key not in _CACHE:
        evidence = NonInferiority(incumbent=prior)
        evidence.restore([[pi, *c] for pi, c in counts.items()])
        _CACHE[key] = evidence.log_e()
    return _CACHE[key]


def test_the_evidence_grows_where_the_canary_is_as_good() -> None:
    """Else the bounds above would hold for evidence that never moves."""
    evidence = counted((8700, 10_000), (435, 500))
    assert (evidence.log_e()[np.array(evidence.margins) >= 0.1] > 5).all()
    assert evidence.excluded_drop(ALPHA) <= 0.1


@pytest.mark.parametrize(("margin", "pi"), [(0.1, 0.05), (0.05, 0.25), (0.02, 0.5), (0.0, 0.5)])
def test_how_much_more_is_needed_is_what_is_needed(margin: float, pi: float) -> None:
    """The units so far, all alike so many times, exclude the margin, and 3 % fewer do not."""
    units = round(400 * pi)
    rate = 0.87 if margin else 0.92
    evidence = counted((round(0.87 * (400 - units)), 400 - units), (round(rate * units), units), pi)
    factor = evidence.growth_needed(margin, ALPHA, most=1e4)
    assert factor is not None and factor > 1.0
    for times, enough in ((factor, True), (0.97 * factor, False)):
        grown = NonInferiority()
        grown.restore([[p, *(round(1000 * times * n) for n in counts)] for p, *counts in evidence.to_json()])
        for counts in grown._counts.values():
            counts /= 1000.0
        drop = grown.excluded_drop(ALPHA)
        assert (drop is not None and drop <= margin) == enough
    assert counted((348, 400), (348, 400), 0.5).growth_needed(0.5, ALPHA) == 1.0
    assert evidence.growth_needed(margin, ALPHA, most=1.01) is None
    lucky = counted((160, 200), (75, 100), 0.25)  # a third of the episodes instead of a quarter: no reason for hope
    assert lucky.growth_needed(0.04, ALPHA) is None
    worse = counted((400 - units, 400 - units), (units // 2, units), pi)
    assert worse.growth_needed(margin, ALPHA) is None


@pytest.mark.parametrize(
    ("p0", "drop", "pi"), [(0.87, 0.1, 0.05), (0.87, 0.05, 0.25), (0.6, 0.02, 0.5), (0.99, 0.1, 0.05)]
)
def test_a_drop_that_is_there_is_excluded_in_at_most_alpha_of_runs_however_often_one_looks(p0, drop, pi) -> None:
    runs, wrong = 200, 0
    rng = np.random.default_rng(1)
    for _ in range(runs):
        evidence = NonInferiority([drop])
        for _ in range(25):
            treated = int(rng.binomial(400, pi))
            for group, units, rate in ((INCUMBENT, 400 - treated, p0), (CANARY, treated, p0 - drop)):
                successes = int(rng.binomial(units, rate))
                evidence.add(group, True, pi, successes)
                evidence.add(group, False, pi, units - successes)
            found = evidence.excluded_drop(ALPHA)
            if found is not None and found <= drop:
                wrong += 1
                break
    assert wrong / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


@pytest.mark.parametrize(
    ("margin", "pi", "episodes", "prior"),
    [
        (0.1, 0.05, 300, BetaPrior()),
        (0.1, 0.05, 250, BetaPrior(870.0, 130.0)),
        (0.1, 0.05, 330, BetaPrior(920.0, 80.0)),  # history was better than today
        (0.05, 0.25, 1000, BetaPrior(870.0, 130.0)),
    ],
)
def test_the_margin_of_a_stage_is_excluded_for_an_equal_canary_within_reach(margin, pi, episodes, prior) -> None:
    rng, reached, runs = np.random.default_rng(2), 0, 120
    for _ in range(runs):
        others = int(episodes / pi) - episodes
        incumbent, canary = rng.binomial(others, 0.87), rng.binomial(episodes, 0.87)
        drop = counted((incumbent, others), (canary, episodes), pi, incumbent=prior).excluded_drop(ALPHA)
        reached += drop is not None and drop <= margin
    assert reached / runs >= 0.8


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300)),
    st.sampled_from([0.05, 0.5]),
)
def test_every_success_of_the_canary_helps_and_every_failure_hurts_whenever_it_came(counts, pi) -> None:
    """The drop that is excluded, too, once each group has a unit."""
    s0, f0, s1, f1 = counts

    def state(ds0: int = 0, df0: int = 0, ds1: int = 0, df1: int = 0) -> tuple[np.ndarray, float]:
        evidence = counted((s0 + ds0, s0 + ds0 + f0 + df0), (s1 + ds1, s1 + ds1 + f1 + df1), pi)
        drop = evidence.excluded_drop(ALPHA) if s0 + f0 and s1 + f1 else None
        return evidence.log_e(), 2.0 if drop is None else drop

    log_e, drop = state()
    for better in (state(ds1=1), state(df0=1)):
        assert (better[0] >= log_e - 1e-9).all() and better[1] <= drop
    for worse in (state(df1=1), state(ds0=1)):
        assert (worse[0] <= log_e + 1e-9).all() and worse[1] >= drop


def test_one_by_one_is_the_same_as_in_batches() -> None:
    rng = np.random.default_rng(3)
    groups, ys = (rng.random(500) < 0.3).astype(int), rng.random(500) < 0.8
    one, many = NonInferiority(), NonInferiority()
    for group, y in zip(groups, ys, strict=True):
        one.add(int(group), bool(y), 0.3)
    many.add_many(groups[:100], ys[:100], 0.3)
    many.add_many(groups[100:], ys[100:], 0.3)
    assert one.to_json() == many.to_json() and np.array_equal(one.log_e(), many.log_e())
    expected = [(int(ys[groups == group].sum()), int((groups == group).sum())) for group in (0, 1)]
    assert one.counts() == tuple(expected)


@pytest.mark.parametrize("successes", [0, 200, 400])
def test_an_empty_group_proves_nothing(successes: int) -> None:
    assert NonInferiority().excluded_drop(ALPHA) is None
    assert counted((0, 0), (successes, 400), 0.5).excluded_drop(ALPHA) is None
    assert counted((successes, 400), (0, 0), 0.5).excluded_drop(ALPHA) is None


def test_extreme_rates_and_many_units_stay_finite() -> None:
    for incumbent, canary in itertools.product((0, 1), repeat=2):
        evidence = counted((incumbent * 9_500_000, 9_500_000), (canary * 500_000, 500_000))
        assert np.isfinite(evidence.log_e()).all()
        drop = evidence.excluded_drop(ALPHA)
        assert drop == (None if (incumbent, canary) == (1, 0) else 0.0 if canary > incumbent else 0.01)


def test_no_margin_is_excluded_beyond_one_that_is_not() -> None:
    """Else every margin would need a share of α of its own."""

    class Gap(NonInferiority):
        def log_e(self) -> np.ndarray:
            values = np.full(len(self.margins), 10.0)
            values[[5, 9]] = 0.0
            return values

    evidence = Gap()
    evidence.restore([[0.5, 1, 1, 1, 1]])
    assert evidence.excluded_drop(ALPHA) == evidence.margins[4]


def test_a_margin_that_is_asked_about_is_one_of_the_answers() -> None:
    evidence = counted((8700, 10_000), (870, 1000), margins=[0.0375])
    assert 0.0375 in evidence.margins and evidence.margins == tuple(sorted(evidence.margins, reverse=True))


def test_a_copy_is_independent_and_a_restored_one_the_same() -> None:
    first = counted((80, 100), (8, 10))
    first.add(CANARY, True, 0.25)
    copy = first.copy()
    copy.add(CANARY, False, 0.05, 100)
    assert first.counts() == ((80, 100), (9, 11)) and copy.counts() == ((80, 100), (9, 111))
    second = NonInferiority()
    second.restore(first.to_json())
    assert np.array_equal(second.log_e(), first.log_e())
    assert second.units() == [(0.05, 100.0, 10.0), (0.25, 0.0, 1.0)]


def test_what_cannot_be_is_refused() -> None:
    evidence = NonInferiority()
    for call, code in (
        (lambda: evidence.add(2, True, 0.5), "INPUT_ARM"),
        (lambda: evidence.add(0, True, 0.5, -1), "INPUT_COUNT"),
        (lambda: evidence.add(0, True, 0.0), "INPUT_PROBABILITY"),
        (lambda: evidence.add(0, True, math.nan), "INPUT_PROBABILITY"),
        (lambda: evidence.add_many([0, 3], [1, 1], 0.5), "INPUT_ARM"),
        (lambda: evidence.add_many([0, 1], [1], 0.5), "INPUT_ARM"),
        (lambda: evidence.add_many([0, 1], [1, 0.5], 0.5), "INPUT_RATE"),
        (lambda: evidence.excluded_drop(0.0), "INPUT_PROBABILITY"),
        (lambda: NonInferiority([1.0]), "INPUT_MARGIN"),
        (lambda: evidence.restore([[0.5, 1, 2]]), "INPUT_COUNT"),
        (lambda: evidence.restore([[0.5, 1, 2, 3, -4]]), "INPUT_COUNT"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    many = NonInferiority()
    for n in range(MAX_PROBABILITIES):
        many.add(CANARY, True, (n + 1) / 100)
    with pytest.raises(InputError, match="different"):
        many.add(CANARY, True, 0.9)
