# SPDX-License-Identifier: Apache-2.0
"""Scores reject a version that exceeds the incumbent's limit too often, and not one that is merely different."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_evidence import ExceedanceTest, FailureTest
from vla_evidence.sequential.bounds import exceedance_limit
from vla_evidence.sequential.exceedance import BernoulliEProcess

ALPHA = 0.05


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
