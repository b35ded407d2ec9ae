# SPDX-License-Identifier: Apache-2.0
"""A reader of the lesson finds its ``ABTest`` here, and it errs as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_evidence.ab.abtest import ABTest
from vla_evidence.errors import InputError

KEYS = {"rate_a", "rate_b", "ci_a", "ci_b", "significant", "winner", "n_a", "n_b", "reason"}


def test_the_lessons_calls_work() -> None:
    test = ABTest("v1.1", "v1.2", split=0.5)
    rng = np.random.default_rng(1)
    assert test.evaluate()["status"] == "insufficient_data"
    for i in range(4000):
        robot = f"robot_{i % 50}"
        rate = 0.9 if test.assign_robot(robot) == "B" else 0.7
        test.record(robot, bool(rng.random() < rate), latency=0.1)
        if i == 150:
            early = test.evaluate(min_samples=100)
            assert early["status"] == "insufficient_data"
            assert "100 of each are asked for" in early["reason"]
    result = test.evaluate(min_samples=100)
    assert set(result) == KEYS
    assert result["significant"] is True and result["winner"] == "B"
    assert result["n_a"] + result["n_b"] == 4000
    assert result["ci_a"][0] < result["rate_a"] < result["ci_a"][1] < result["ci_b"][0]


def test_an_episode_told_twice_counts_once_and_none_may_be_left_out() -> None:
    test = ABTest("a", "b")
    assert test.record("r", True, episode=0) and not test.record("r", True, episode=0)
    with pytest.raises(InputError) as caught:
        test.record("r", True, episode=2)
    assert caught.value.code == "INPUT_VALUE"
    assert test.record("r", True, episode=1)
    reason = test.evaluate(3)["reason"].split()
    assert {reason[0], reason[5]} == {"0", "2"}


def test_without_a_significant_difference_there_is_no_winner() -> None:
    test = ABTest("a", "b", planned_episodes=600)
    for i in range(600):
        test.record(i % 30, i % 3 != 0)
    result = test.evaluate()
    assert (result["significant"], result["winner"]) == (False, None)


def test_assignment_is_deterministic_and_salted_by_the_experiment() -> None:
    robots = [f"robot_{i}" for i in range(1000)]
    first, again, other = (ABTest("a", "b", experiment=name) for name in ("one", "one", "two"))
    arms = [[t.assign_robot(r) for r in robots] for t in (first, again, other)]
    assert arms[0] == arms[1] != arms[2]
    both = sum(x == y == "B" for x, y in zip(arms[0], arms[2], strict=True))
    assert abs(both - 250) < 4 * math.sqrt(1000 * 0.25 * 0.75)
    assert 100 < sum(ABTest("a", "b", 0.2).assign_robot(r) == "B" for r in robots) < 300


def test_asking_after_every_look_with_robots_that_differ_errs_as_promised() -> None:
    """Robots' rates are Beta around 0.85 (correlation 0.1). The lesson's rule would find a difference in far more of these."""
    rng = np.random.default_rng(2)
    runs, wrong, lesson = 120, 0, 0
    for run in range(runs):
        test = ABTest("a", "b", experiment=f"null {run}", planned_episodes=400)
        rates = rng.beta(0.85 * 9, 0.15 * 9, 20)
        overlap_free = False
        for i in range(400):
            robot = i % 20
            test.record(robot, bool(rng.random() < rates[robot]))
            if i % 100 == 99:
                result = test.evaluate(min_samples=30)
                if "ci_a" in result:
                    overlap_free |= result["ci_a"][1] < result["ci_b"][0] or result["ci_b"][1] < result["ci_a"][0]
        wrong += test.evaluate(min_samples=1).get("significant", False)
        lesson += overlap_free
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert lesson > wrong


def test_wrong_input_is_named() -> None:
    for call, code in (
        (lambda: ABTest("a", "b", split=0.0), "INPUT_PROBABILITY"),
        (lambda: ABTest("a", "b", split=1.2), "INPUT_PROBABILITY"),
        (lambda: ABTest("a", "b", planned_episodes=0), "INPUT_COUNT"),
        (lambda: ABTest("a", "b").record("r", 0.5), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: ABTest("a", "b").record("r", True, -1.0), "INPUT_VALUE"),
        (lambda: ABTest("a", "b").evaluate(0), "INPUT_COUNT"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
