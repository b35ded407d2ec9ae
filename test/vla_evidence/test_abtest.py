# SPDX-License-Identifier: Apache-2.0
"""A reader of the lesson finds its ``ABTest`` here, and it errs as often as it says."""

from __future__ import annotations

import math

import numpy as np

from vla_evidence.ab.abtest import ABTest

KEYS = {"rate_a", "rate_b", "ci_a", "ci_b", "significant", "winner", "n_a", "n_b", "reason"}


def test_the_lessons_calls_work() -> None:
    test = ABTest("v1.1", "v1.2", split=0.5)
    rng = np.random.default_rng(1)
    assert test.evaluate()["status"] == "insufficient_data"
    for i in range(4000):
        robot = f"robot_{i % 50}"
        test.record(robot, bool(rng.random() < (0.9 if test.assign_robot(robot) == "B" else 0.7)), 0.1)
    result = test.evaluate(min_samples=100)
    assert set(result) == KEYS
    assert result["significant"] is True and result["winner"] == "B"
    assert result["n_a"] + result["n_b"] == 4000
    assert result["ci_a"][0] < result["rate_a"] < result["ci_a"][1] < result["ci_b"][0]


def test_without_a_significant_difference_there_is_no_winner() -> None:
    test = ABTest("a", "b", planned_episodes=600)
    for i in range(600):
        test.record(i % 30, i % 3 != 0)
    result = test.evaluate()
    assert (result["significant"], result["winner"]) == (False, None)


def test_assignment_is_deterministic_and_salted_by_the_experiment() -> None:
    robots = [f"robot_{i}" for i in range(1000)]
    arms = [[ABTest("a", other).assign_robot(r) for r in robots] for other in ("b", "b", "c")]
    assert arms[0] == arms[1] != arms[2]
    both = sum(x == y == "B" for x, y in zip(arms[0], arms[2], strict=True))
    assert abs(both - 250) < 4 * math.sqrt(1000 * 0.25 * 0.75)


def test_asking_after_every_look_with_robots_that_differ_errs_as_promised() -> None:
    """Robots' rates are Beta around 0.85 (correlation 0.1). The lesson's rule would find a difference in far more of these."""
    rng = np.random.default_rng(2)
    runs, wrong, lesson = 120, 0, 0
    for run in range(runs):
        test = ABTest("a", f"b{run}", planned_episodes=400)
        rates = rng.beta(0.85 * 9, 0.15 * 9, 20)
        apart = False
        for i in range(400):
            test.record(i % 20, bool(rng.random() < rates[i % 20]))
            if i % 100 == 99:
                result = test.evaluate(min_samples=30)
                if "ci_a" in result:
                    apart |= result["ci_a"][1] < result["ci_b"][0] or result["ci_b"][1] < result["ci_a"][0]
        wrong += test.evaluate(min_samples=1).get("significant", False)
        lesson += apart
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert lesson > wrong
