# SPDX-License-Identifier: Apache-2.0
"""Tests on counted events err no more often than they promise, find what is bad, and not what is merely different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence import ExceedanceTest, FailureTest
from vla_evidence.sequential.bounds import exceedance_limit
from vla_evidence.sequential.exceedance import BernoulliEProcess

ALPHA = 0.05


def running_log_e(events: np.ndarray, p0: float) -> np.ndarray:
    """Return ``log_e`` after each observation for rows of outcomes [runs, time], as the class computes it for one."""
    alternatives = p0 + (1.0 - p0) * (np.arange(64) + 0.5) / 64
    counts, n = np.cumsum(events, axis=1), np.arange(1, events.shape[1] + 1)
    log_e = np.full(events.shape, -np.inf)
    for p in alternatives:
        log_e = np.logaddexp(log_e, counts * math.log(p / p0) + (n - counts) * (math.log1p(-p) - math.log1p(-p0)))
    return log_e - math.log(64)


def share_rejected(events: np.ndarray, p0: float) -> float:
    return float((running_log_e(events, p0).max(axis=1) >= -math.log(ALPHA)).mean())


def test_the_vectorised_form_is_the_class() -> None:
    events = np.random.default_rng(0).random((3, 200)) < 0.3
    expected = running_log_e(events, 0.2)
    for row, values in zip(events, expected, strict=True):
        process = BernoulliEProcess(0.2)
        assert np.allclose([process.update(bool(event)) for event in row], values)
        assert process.max_log_e == pytest.approx(max(0.0, values.max()))


@pytest.mark.parametrize("p0", [0.02, 0.15, 0.5, 0.9])
def test_under_the_null_it_rejects_at_most_alpha_of_runs(p0: float) -> None:
    runs = 1500
    rng = np.random.default_rng(1)
    for p in (p0, 0.7 * p0):
        share = share_rejected(rng.random((runs, 250)) < p, p0)
        standard_error = math.sqrt(ALPHA * (1 - ALPHA) / runs)
        assert share <= ALPHA + 3 * standard_error


def test_the_null_holds_also_for_dependent_observations() -> None:
    """After each event the next one is rarer, after each quiet one as likely as allowed: never above p0 given the past."""
    runs, p0 = 1500, 0.15
    rng = np.random.default_rng(2)
    events = np.zeros((runs, 300), dtype=bool)
    for t in range(300):
        p = np.where(events[:, t - 1] if t else False, 0.02, p0)
        events[:, t] = rng.random(runs) < p
    assert share_rejected(events, p0) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_the_mean_of_e_never_exceeds_one_under_the_null() -> None:
    """Exactly, by summing over all outcomes of n observations at p = p0."""
    p0, n = 0.3, 12
    total = 0.0
    for events in range(n + 1):
        process = BernoulliEProcess(p0)
        process.restore(events, n, 0.0)
        total += math.comb(n, events) * p0**events * (1 - p0) ** (n - events) * math.exp(process.log_e)
    assert total == pytest.approx(1.0, abs=1e-9)


@given(st.lists(st.booleans(), max_size=60), st.floats(0.01, 0.99))
def test_an_event_never_lowers_the_evidence_and_a_quiet_observation_never_raises_it(
    events: list[bool], p0: float
) -> None:
    process = BernoulliEProcess(p0)
    for event in events:
        before, top = process.log_e, process.max_log_e
        after = process.update(event)
        assert after >= before - 1e-9 if event else after <= before + 1e-9
        assert process.max_log_e >= top


def test_it_is_finite_after_ten_million_observations_and_recovers() -> None:
    process = BernoulliEProcess(0.15)
    process.restore(0, 10_000_000, 0.0)
    assert math.isfinite(process.log_e) and process.log_e < -1000
    process.restore(9_000_000, 10_000_000, 0.0)
    assert math.isfinite(process.log_e) and process.rejects(1e-9)


def test_impossible_arguments_are_refused() -> None:
    for p0 in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError):
            BernoulliEProcess(p0)
    for counts in ((2, 1, 0.0), (-1, 1, 0.0), (0, 1, math.inf)):
        with pytest.raises(ValueError):
            BernoulliEProcess(0.5).restore(*counts)


def rejected_share(shift: float, spread: float = 1.0, *, runs: int = 200, blocks: int = 150, seed: int = 0) -> float:
    """Return the share of runs, each with 100 calibration values of its own, that reject scores of N(shift, spread)."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(runs):
        history = rng.normal(size=100).tolist()
        test = ExceedanceTest.calibrated(history, quantile=0.95, tolerated=0.15, confidence=1 - ALPHA / 2)
        assert test is not None
        for value in rng.normal(shift, spread, blocks):
            test.update(float(value))
            if test.rejects(ALPHA / 2):
                count += 1
                break
    return count / runs


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.3, 1.0), (-2.0, 1.0), (-1.0, 1.6)])
def test_good_candidates_with_other_scores_are_rejected_in_at_most_alpha_of_runs(shift: float, spread: float) -> None:
    """Equal, a little higher, much lower, wider but lower: all exceed the limit in no more than the tolerated 15 %."""
    error = math.sqrt(ALPHA * (1 - ALPHA) / 200)
    assert rejected_share(shift, spread) <= ALPHA + 3 * error


@pytest.mark.parametrize(("shift", "spread"), [(2.0, 1.0), (0.0, 4.0)])
def test_bad_candidates_are_rejected(shift: float, spread: float) -> None:
    """Two standard deviations higher, or as high on average and wild."""
    assert rejected_share(shift, spread, runs=60) >= 0.95


def test_a_limit_itself_is_not_exceeded_but_not_a_number_is() -> None:
    test = ExceedanceTest(1.0, 0.15)
    for value, events in ((1.0, 0), (math.nextafter(1.0, 2.0), 1), (math.nan, 2), (-math.inf, 2), (math.inf, 3)):
        test.update(value)
        assert test.process.events == events


def test_its_limit_is_that_of_the_exceedances_and_too_few_values_give_none() -> None:
    values = [float(v) for v in np.random.default_rng(1).normal(size=80)]
    test = ExceedanceTest.calibrated(values, quantile=0.95, tolerated=0.15, confidence=0.975)
    assert test is not None and test.limit == exceedance_limit(values, 0.95, 0.15, 0.975)
    assert ExceedanceTest.calibrated(values[:5], quantile=0.95, tolerated=0.15, confidence=0.975) is None
    with pytest.raises(ValueError):
        ExceedanceTest.calibrated([*values, math.nan], quantile=0.95, tolerated=0.15, confidence=0.975)
    for limit, tolerated in ((math.nan, 0.1), (0.0, 0.0), (0.0, 1.0)):
        with pytest.raises(ValueError):
            ExceedanceTest(limit, tolerated)


def test_the_words_name_counts_rate_and_where_it_decides() -> None:
    test = ExceedanceTest(1.25, 0.15)
    for value in (0.0, 2.0, 3.0):
        test.update(value)
    text = test.describe("tce", "blocks of 4", 0.05)
    assert text.startswith("tce: 2 of 3 blocks of 4 above 1.25, tolerated 15%, evidence ") and text.endswith(
        "decides at 20"
    )
    failures = FailureTest.below(0.8)
    assert failures is not None
    for success in (True, False):
        failures.update(success)
    text = failures.describe(0.01)
    assert text.startswith("success: 1 of 2 episodes failed, tolerated 20%, evidence ") and text.endswith(
        "decides at 100"
    )


def test_failures_are_the_same_test_on_the_complement_of_the_rate() -> None:
    failures, process = FailureTest.below(0.8), BernoulliEProcess(1 - 0.8)
    assert failures is not None
    for success in (True, False, False, True, False):
        assert failures.update(success) == process.update(not success)
    assert FailureTest.below(0.005) is None and FailureTest.below(-0.1) is None
    perfect = FailureTest.below(1.0)
    assert perfect is not None and 0 < perfect.process.p0 < 0.01


def test_both_go_on_where_another_was_and_leave_alone_what_is_of_another_limit() -> None:
    first, second = ExceedanceTest(1.0, 0.15), ExceedanceTest(1.0, 0.15)
    for value in (2.0, 0.0, 3.0):
        first.update(value)
    assert second.restore(first.to_json()) and second.to_json() == first.to_json()
    other = ExceedanceTest(1.1, 0.15)
    assert not other.restore(first.to_json()) and other.process.observations == 0
    one, two, three = FailureTest(0.2), FailureTest(0.2), FailureTest(0.3)
    one.update(False)
    assert two.restore(one.to_json()) and two.to_json() == one.to_json()
    assert not three.restore(one.to_json()) and three.process.observations == 0
    with pytest.raises(ValueError):
        second.restore([1.0, 5, 3, 0.0])
