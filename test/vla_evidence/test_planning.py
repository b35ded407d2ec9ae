# SPDX-License-Identifier: Apache-2.0
"""The planner gives the textbook's figures, and sequential ones that the judges keep."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vla_evidence.assignment import cohort
from vla_evidence.canary.robot_units import RobotEProcess
from vla_evidence.canary.stages import Stage
from vla_evidence.errors import InputError
from vla_evidence.planning import plan as planning
from vla_evidence.planning import sample_size, stopping_robots
from vla_evidence.planning.plan import Fleet, Simulation, describe, plan_ab, plan_detect, plan_noninferiority
from vla_evidence.simulate.fleet import FleetModel

FIXED_ONLY = Simulation(runs=0)


@pytest.mark.parametrize(
    ("rates", "power", "normal", "arcsine"),
    [
        ((0.85, 0.88), 0.8, 2036, 2031),
        ((0.85, 0.88), 0.9, 2725, 2719),
        ((0.87, 0.75), 0.8, 167, None),
        ((0.87, 0.75), 0.9, 223, None),
    ],
)
def test_an_ab_test_needs_as_many_episodes_as_the_textbook_says(
    rates: tuple[float, float], power: float, normal: int, arcsine: int | None
) -> None:
    assert math.ceil(sample_size.two_proportions(*rates, power=power)) == normal
    if arcsine is not None:
        assert round(sample_size.two_proportions_arcsine(*rates, power=power)) == arcsine
    plan = plan_ab(*rates, Fleet(50, 40), power=power, simulation=FIXED_ONLY)
    assert plan.rows[0].episodes == normal
    assert f"{normal:,}" in plan.sentence


@pytest.mark.parametrize(
    ("margin", "share", "power", "episodes"),
    [(0.02, 0.5, 0.8, 3496), (0.02, 0.5, 0.9, 4843), (0.10, 0.05, 0.8, 74), (0.05, 0.25, 0.8, 373)],
)
def test_a_margin_needs_as_many_canary_episodes_as_the_textbook_says(
    margin: float, share: float, power: float, episodes: int
) -> None:
    exact = sample_size.non_inferiority(0.87, margin, power=power, share=share)
    assert round(exact) == episodes
    plan = plan_noninferiority(0.87, margin, Fleet(50, 40), share=share, power=power, simulation=FIXED_ONLY)
    assert plan.rows[0].episodes == math.ceil(exact)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("sides", [1, 2])
def test_power_and_size_are_inverse(share: float, sides: sample_size.Sides) -> None:
    n = sample_size.two_proportions(0.87, 0.75, power=0.8, share=share, sides=sides)
    assert sample_size.power_of_two_proportions(n, 0.87, 0.75, share=share, sides=sides) == pytest.approx(0.8, abs=1e-9)
    assert sample_size.two_proportions_arcsine(0.87, 0.75, share=share, sides=sides) == pytest.approx(n, rel=0.3)


def test_robots_that_differ_cost_episodes_or_make_it_impossible() -> None:
    assert sample_size.design_effect(40, 0.05) == pytest.approx(2.95)
    assert sample_size.episodes_per_robot(100, 25, 0.0) == pytest.approx(4.0)
    each = sample_size.episodes_per_robot(100, 25, 0.05)
    assert 25 * each / sample_size.design_effect(each, 0.05) == pytest.approx(100)
    assert sample_size.episodes_per_robot(500, 25, 0.05) == math.inf  # worth at most 25 / 0.05 = 500, never quite
    robots = sample_size.robots_needed(500, 0.05, 40)
    assert (
        robots * 40 / sample_size.design_effect(40, 0.05)
        >= 500
        > (robots - 1) * 40 / sample_size.design_effect(40, 0.05)
    )
    never = plan_ab(0.85, 0.88, Fleet(50, 40, "robot", 0.05), days=10, simulation=FIXED_ONLY)
    assert math.isinf(never.rows[0].episodes) and "never suffice" in never.sentence
    assert never.rows[0].robots is not None and never.rows[0].robots > 200
    assert "never" in describe(never)


def test_days_and_robots_follow_from_the_task_frequency() -> None:
    plan = plan_ab(0.85, 0.88, Fleet(50, 40), days=1, simulation=FIXED_ONLY)
    row = plan.rows[0]
    assert row.per_robot == pytest.approx(2 * 2036 / 50) and row.days == pytest.approx(2 * 2036 / 50 / 40)
    assert row.robots == math.ceil(2 * sample_size.two_proportions(0.85, 0.88) / 40)


def test_the_sequential_ab_test_has_the_power_asked_for_and_is_shorter() -> None:
    plan = plan_ab(0.87, 0.75, Fleet(50, 40), simulation=Simulation(runs=1500, seed=1))
    fixed, sequential = plan.rows[0], plan.rows[-1]
    power, error = sequential.power
    assert 0.8 - 3 * error <= power <= 0.8 + 5 * error  # neither short of it, nor far too long
    assert sequential.episodes + 3 * sequential.error < fixed.episodes
    assert sequential.error > 0.0 and f"± {sequential.error:,.0f}" in plan.sentence


def test_a_bad_canary_is_found_as_soon_as_the_reference_says() -> None:
    plan = plan_detect(0.87, 0.75, Fleet(50, 40), simulation=Simulation(runs=400, seed=2))
    row = plan.rows[-1]
    assert row.episodes == pytest.approx(92, abs=3 * row.error + 5)  # the reference's own error is about 4
    assert row.power[0] >= 0.95
    assert row.days == pytest.approx(row.episodes / 0.05 / 50 / 40)


def test_a_margin_is_excluded_sequentially_and_by_more_episodes_than_at_one_look() -> None:
    plan = plan_noninferiority(0.87, 0.10, Fleet(50, 40), share=0.25, simulation=Simulation(runs=60, seed=3))
    fixed, row = plan.rows[0], plan.rows[-1]
    assert row.power[0] > 0.8
    assert fixed.episodes < row.episodes < 5 * fixed.episodes


def test_a_design_by_robot_is_judged_by_the_tests_of_robots_and_no_better_than_one_look() -> None:
    fleet, few = Fleet(50, 40, "robot", 0.05), Simulation(runs=80, seed=6)
    for plan in (plan_ab(0.87, 0.75, fleet, simulation=few), plan_detect(0.87, 0.75, fleet, share=0.3, simulation=few)):
        row = plan.rows[-1]
        assert row.simulated and "robots" in plan.sentence
        assert 0.2 < row.power[0] <= 0.8 + 3 * row.power[1]
    few_robots, more = (plan_noninferiority(0.87, 0.15, fleet, share=s, simulation=few).rows[-1] for s in (0.3, 0.5))
    assert 0.05 < few_robots.power[0] < more.power[0] <= 0.8 + 3 * more.power[1]


def test_an_arm_has_as_many_robots_as_a_stage_and_a_cohort() -> None:
    for robots, share in itertools.product((2, 19, 20, 30, 39, 100), (0.05, 0.25, 0.5)):
        stage = Stage("s", share, 1.0, None).robots(robots)
        assert (
            Fleet(robots, 1.0, "robot").arm(share) == stage == len(cohort("x", [f"{n}" for n in range(robots)], share))
        )


@pytest.mark.parametrize("better", [False, True])
def test_a_plan_by_robot_decides_as_the_judge_does(better: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harm at its highest, for it is final; a drop is excluded by what the evidence is now."""

    class Fallen(RobotEProcess):
        max_log_e, log_e = 10.0, 0.0

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def update(self, *_: object) -> float:
            return 0.0

    monkeypatch.setattr(stopping_robots, "RobotEProcess", Fallen)
    fleet, rng = FleetModel(10, 0.05), np.random.default_rng(0)
    stopping = stopping_robots.cohort_times(
        0.8, 0.8, fleet, 5, 4, better=better, alpha=0.05, runs=3, rng=rng, progress=lambda _: None
    )
    assert stopping.decided[0] == (not better)


def test_one_canary_among_ten_robots_can_never_decide_and_the_plan_says_so() -> None:
    plan = plan_detect(0.87, 0.3, Fleet(10, 40, "robot"), simulation=Simulation(runs=30))
    assert "only 10 ways" in plan.rows[-1].method and plan.rows[-1].power[0] == 0.0
    assert "the last look of a first stage has 0.35" in describe(plan)
    margin = plan_noninferiority(0.87, 0.3, Fleet(10, 40, "robot"), share=0.1, simulation=Simulation(runs=30))
    assert "never" not in margin.rows[-1].method  # that holds for harm alone
    two_of_forty = plan_detect(0.87, 0.3, Fleet(40, 40, "robot"), simulation=Simulation(runs=30))
    assert "never" not in two_of_forty.rows[-1].method


def test_a_small_drop_is_simulated_in_as_many_runs_as_are_affordable_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "_EPISODES", 1e6)
    row = plan_detect(0.87, 0.75, Fleet(50, 40), simulation=Simulation(runs=400, seed=2)).rows[-1]
    assert row.method.endswith(" runs") and 20 < int(row.method.split()[-2]) < 400


def test_plans_are_the_same_for_the_same_seed() -> None:
    first, again, other = (
        plan_detect(0.87, 0.75, Fleet(50, 40), simulation=Simulation(runs=50, seed=seed)).rows[-1] for seed in (4, 4, 5)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: plan_ab(1.2, 0.5, Fleet(2, 1)), "INPUT_RATE"),
        (lambda: plan_ab(0.5, 0.5, Fleet(2, 1)), "INPUT_RATE"),
        (lambda: plan_ab(0.5, 0.6, Fleet(0, 1)), "INPUT_COUNT"),
        (lambda: plan_ab(0.5, 0.6, Fleet(1, 1, "robot")), "INPUT_COUNT"),
        (lambda: plan_ab(0.5, 0.6, Fleet(2, 0.0)), "INPUT_VALUE"),
        (lambda: plan_ab(0.5, 0.6, Fleet(2, 1), alpha=0.0), "INPUT_PROBABILITY"),
        (lambda: plan_ab(0.5, 0.6, Fleet(2, 1), days=0.1, simulation=FIXED_ONLY), "INPUT_VALUE"),
        (lambda: plan_ab(0.5, 0.6, Fleet(2, 1), simulation=Simulation(runs=1)), "INPUT_COUNT"),
        (lambda: plan_detect(0.75, 0.87, Fleet(2, 1)), "INPUT_RATE"),
        (lambda: plan_ab(0.5, 0.50000001, Fleet(2, 1)), "INPUT_RATE"),
        (lambda: Fleet(1_000_001, 1), "INPUT_COUNT"),
        (lambda: Simulation(runs=-1), "INPUT_COUNT"),
        (lambda: Simulation(seed=-1), "INPUT_COUNT"),
        (lambda: plan_detect(0.87, 0.75, Fleet(2, 1), share=0.0), "INPUT_PROBABILITY"),
        (lambda: plan_noninferiority(0.87, 0.0, Fleet(2, 1)), "INPUT_MARGIN"),
        (lambda: plan_noninferiority(0.87, -0.1, Fleet(2, 1)), "INPUT_MARGIN"),
        (lambda: sample_size.design_effect(0.5, 0.1), "INPUT_COUNT"),
        (lambda: sample_size.design_effect(5, 1.1), "INPUT_RATE"),
    ],
)
def test_what_cannot_be_is_refused_by_its_code(call: object, code: str) -> None:
    with pytest.raises(InputError) as e:
        call()  # type: ignore[operator]
    assert e.value.code == code
