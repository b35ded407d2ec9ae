# SPDX-License-Identifier: Apache-2.0
"""The planner gives the textbook's figures, and sequential ones that the judges keep."""

from __future__ import annotations

import itertools
import math

import pytest

from vla_evidence.assignment import cohort
from vla_evidence.canary.config import HALF_STAGES, ROBOT_STAGES, CanaryConfig, Stage
from vla_evidence.planning import sample_size
from vla_evidence.planning.feasible import feasible
from vla_evidence.planning.plan import Fleet, Question, plan_ab, plan_detect, plan_noninferiority


def question(fleet: Fleet = Fleet(50, 40), runs: int = 0, **more) -> Question:  # noqa: B008
    return Question(fleet, runs=runs, **more)


@pytest.mark.parametrize(
    ("rates", "power", "normal"),
    [((0.85, 0.88), 0.8, 2036), ((0.85, 0.88), 0.9, 2725), ((0.87, 0.75), 0.8, 167), ((0.87, 0.75), 0.9, 223)],
)
def test_an_ab_test_needs_as_many_episodes_as_the_textbook_says(
    rates: tuple[float, float], power: float, normal: int
) -> None:
    assert math.ceil(sample_size.two_proportions(*rates, power=power)) == normal
    plan = plan_ab(*rates, question(power=power))
    assert plan.fixed["episodes"] == normal and f"{normal:,}" in str(plan)


@pytest.mark.parametrize(
    ("margin", "share", "power", "episodes"),
    [(0.02, 0.5, 0.8, 3496), (0.02, 0.5, 0.9, 4843), (0.10, 0.05, 0.8, 74), (0.05, 0.25, 0.8, 373)],
)
def test_a_margin_needs_as_many_canary_episodes_as_the_textbook_says(
    margin: float, share: float, power: float, episodes: int
) -> None:
    exact = sample_size.non_inferiority(0.87, margin, power=power, share=share)
    assert round(exact) == episodes
    assert plan_noninferiority(0.87, margin, question(power=power), share).fixed["episodes"] == math.ceil(exact)


def test_robots_that_differ_cost_episodes_or_make_it_impossible() -> None:
    assert sample_size.design_effect(40, 0.05) == pytest.approx(2.95)
    assert sample_size.episodes_per_robot(100, 25, 0.0) == pytest.approx(4.0)
    each = sample_size.episodes_per_robot(100, 25, 0.05)
    assert 25 * each / sample_size.design_effect(each, 0.05) == pytest.approx(100)
    assert sample_size.episodes_per_robot(500, 25, 0.05) == math.inf  # worth at most 25 / 0.05 = 500, never quite
    robots, worth = sample_size.robots_needed(500, 0.05, 40), 40 / sample_size.design_effect(40, 0.05)
    assert robots * worth >= 500 > (robots - 1) * worth
    never = plan_ab(0.85, 0.88, question(Fleet(50, 40, "robot", 0.05), days=10))
    assert math.isinf(never.fixed["episodes"]) and "no number of episodes is enough" in str(never)
    assert never.fixed["robots"] > 200


def test_days_and_robots_follow_from_the_task_frequency() -> None:
    row = plan_ab(0.85, 0.88, question(days=1)).fixed
    assert row["per_robot"] == pytest.approx(2 * 2036 / 50) and row["days"] == pytest.approx(2 * 2036 / 50 / 40)
    assert row["robots"] == math.ceil(2 * sample_size.two_proportions(0.85, 0.88) / 40)


def test_the_sequential_ab_test_has_the_power_asked_for_and_is_shorter() -> None:
    plan = plan_ab(0.87, 0.75, question(runs=1500, seed=1))
    power, error = plan.sequential["power"]
    assert 0.8 - 3 * error <= power <= 0.8 + 5 * error  # neither short of it, nor far too long
    assert plan.sequential["episodes"] + 3 * plan.sequential["error"] < plan.fixed["episodes"]


def test_a_bad_canary_is_found_with_the_power_asked_for_and_the_days_follow() -> None:
    plan = plan_detect(0.87, 0.75, question(runs=400, seed=2))
    row = plan.sequential
    assert row["power"][0] >= 0.95 and row["days"] == pytest.approx(row["episodes"] / 0.05 / 50 / 40)
    assert "With this share for 24 h" in str(plan)


def test_an_arm_has_as_many_robots_as_a_stage_and_a_cohort() -> None:
    for robots, share in itertools.product((2, 19, 20, 30, 39, 100), (0.05, 0.25, 0.5)):
        drawn = len(cohort("x", [f"{n}" for n in range(robots)], share))
        assert Fleet(robots, 1.0, "robot").arm(share) == Stage("s", share, 1.0, 1.0, None).robots(robots) == drawn


def test_plans_are_the_same_for_the_same_seed() -> None:
    first, again, other = (plan_detect(0.87, 0.75, question(runs=50, seed=seed)).sequential for seed in (4, 4, 5))
    assert first == again != other


def test_a_rollout_that_a_fleet_can_live_with_is_called_feasible_and_others_say_what_stands_in_their_way() -> None:
    good = feasible(CanaryConfig(history=(870, 1000)), 50, 6.0, drop=0.12, runs=20)
    assert good.good_passes[0] >= 0.7 and good.bad_found_first[0] >= 0.9 and 3.9 < good.days[0] < 5.1
    assert good.warnings == () and "without a person" in str(good)
    few = feasible(CanaryConfig(stages=ROBOT_STAGES, deadline_s=60.0), 20, 6.0, drop=0.12, runs=4)
    assert few.good_passes[0] == 0.0
    for words in ("cannot be judged", "a person is asked", "is shorter than an episode", "no history"):
        assert any(words in warning for warning in few.warnings), words
    known = CanaryConfig.of_incumbent(870, 1000, [10.0 + n % 7 for n in range(50)])
    assert feasible(known, 50, 6.0, drop=0.12, runs=4).bad_found[0] == 1.0, "how long episodes take is not simulated"
    simple = feasible(CanaryConfig(rule="simple"), 50, 6.0, drop=0.12, runs=30)
    assert 0.2 < simple.good_passes[0] < 0.8 and simple.bad_found[0] > 0.8 and not simple.warnings
    half = feasible(CanaryConfig(stages=HALF_STAGES, history=(870, 1000)), 50, 6.0, drop=0.12, runs=10)
    assert half.bad_found[0] >= 0.9
