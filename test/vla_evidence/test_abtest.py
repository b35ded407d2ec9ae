# SPDX-License-Identifier: Apache-2.0
"""A reader of the lesson finds its ``ABTest`` here, and it errs as often as it says."""

from __future__ import annotations

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
