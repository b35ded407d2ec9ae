# SPDX-License-Identifier: Apache-2.0
"""A stage has at least one robot, never the whole fleet by accident, and says beforehand what it can prove."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vla_evidence import InputError
from vla_evidence.assignment import cohort
from vla_evidence.canary.assignment_check import assignment_log_e
from vla_evidence.canary.stages import DEFAULT_STAGES, Stage, Unit, design


def test_the_stages_are_those_of_the_rollout() -> None:
    assert [(s.name, s.share, s.duration_s / 3600, s.margin) for s in DEFAULT_STAGES] == [
        ("canary", 0.05, 24, 0.1),
        ("early", 0.25, 48, 0.05),
        ("wide", 0.5, 24, 0.02),
        ("full", 1.0, 0, None),
    ]


@pytest.mark.parametrize("fleet", [1, 2, 7, 19, 20, 21, 40, 100, 1000])
def test_a_stage_has_at_least_one_robot_and_as_many_as_its_cohort(fleet: int) -> None:
    sizes = [stage.robots(fleet) for stage in DEFAULT_STAGES]
    assert sizes == sorted(sizes) and sizes[0] >= 1 and sizes[-1] == fleet
    robots = [f"r{n}" for n in range(fleet)]
    assert sizes == [len(cohort("x", robots, stage.share)) for stage in DEFAULT_STAGES]


def test_a_small_fleet_is_drawn_by_episode_and_one_robot_of_few_is_said_to_prove_nothing() -> None:
    stage = DEFAULT_STAGES[0]
    by_episode = design(stage, 3, holds_both=True, alpha=0.05)
    assert (by_episode.unit, by_episode.robots, by_episode.probability) == (Unit.EPISODE, 1, 0.5)
    assert by_episode.largest_evidence == math.inf
    by_robot = design(stage, 10, holds_both=False, alpha=0.05)
    assert (by_robot.unit, by_robot.robots, by_robot.largest_evidence) == (Unit.ROBOT, 1, 10.0)
    assert "can never reach 20" in by_robot.reason
    assert "can reach 20" in design(stage, 100, holds_both=False, alpha=0.05).reason
    reason = design(stage, 100, holds_both=False, alpha=0.05).reason
    assert reason.endswith("where the incumbent never fails, they exclude a drop of 45.1% at best")
    large = design(DEFAULT_STAGES[2], 1100, holds_both=False, alpha=0.05)
    assert large.largest_evidence == math.inf and "evidence of harm of at most 10^329: it can reach" in large.reason
    largest = design(DEFAULT_STAGES[2], 20_000, holds_both=False, alpha=0.05)
    assert largest.largest_evidence == math.inf and largest.robots == 10_000
    with pytest.raises(InputError, match="nothing to compare"):
        design(stage, 1, holds_both=False, alpha=0.05)


def test_impossible_stages_are_refused() -> None:
    for arguments, code in (
        (("", 0.5, 1.0, 0.1), "INPUT_VALUE"),
        (("s", 0.0, 1.0, 0.1), "INPUT_RATE"),
        (("s", 1.1, 1.0, 0.1), "INPUT_RATE"),
        (("s", math.nan, 1.0, 0.1), "INPUT_RATE"),
        (("s", 0.5, -1.0, 0.1), "INPUT_VALUE"),
        (("s", 0.5, 1.0, 1.0), "INPUT_MARGIN"),
    ):
        with pytest.raises(InputError) as caught:
            Stage(*arguments)
        assert caught.value.code == code
    with pytest.raises(InputError):
        DEFAULT_STAGES[0].robots(0)


def test_the_check_of_the_assignment_is_fair_if_it_was_made_as_stated() -> None:
    """The mean is exactly 1, by summing over all groups of units with different probabilities."""
    pis = [0.05, 0.05, 0.25, 0.5, 0.9]
    total = 0.0
    for groups in itertools.product((0, 1), repeat=len(pis)):
        probability = math.prod(pi if g else 1 - pi for g, pi in zip(groups, pis, strict=True))
        total += probability * math.exp(assignment_log_e([(pi, 1 - g, g) for g, pi in zip(groups, pis, strict=True)]))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_the_check_of_the_assignment_finds_a_canary_that_gets_another_share() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        canaries = np.cumsum(rng.binomial(50, 0.05, 40))
        alarms += any(assignment_log_e([(0.05, 50 * (n + 1) - k, k)]) >= math.log(1000) for n, k in enumerate(canaries))
    assert alarms <= 2  # 0.3 expected at most
    assert assignment_log_e([(0.05, 1000, 0)]) > math.log(1000)
    assert assignment_log_e([(0.05, 850, 150)]) > math.log(1000)
    assert assignment_log_e([]) == pytest.approx(0.0)
    for units in ([(0.0, 1, 1)], [(0.5, -1, 1)], [(0.5, 1, math.inf)]):
        with pytest.raises(InputError):
            assignment_log_e(units)
