# SPDX-License-Identifier: Apache-2.0
"""A rollout by whole robots: those that are not heard of, or have too few episodes, let no bad version pass."""

from __future__ import annotations

import json
import random

import pytest

from vla_evidence.canary import CanaryJudge
from vla_evidence.canary_config import CanaryConfig
from vla_evidence.canary_verdict import CanaryDecision
from vla_evidence.errors import InputError
from vla_evidence.stages import DEFAULT_STAGES, Stage, Unit
from vla_evidence.two_sample import CANARY

DAY = 86400.0


def drawn(fleet: int, k: int, seed: int = 0) -> dict[str, int]:
    canaries = set(random.Random(seed).sample(range(fleet), k))
    return {f"r{n}": int(n in canaries) for n in range(fleet)}


def feed_robots(
    judge: CanaryJudge, groups: dict[str, int], episodes: range, rates: tuple[float, float], at_s: float
) -> None:
    rng = random.Random(episodes.start)
    for robot, group in groups.items():
        for n in episodes:
            judge.assign(f"{robot} {n}", robot, group, at_s)
            judge.finish(f"{robot} {n}", rng.random() < rates[group], at_s)


def test_robots_short_of_episodes_convict_at_the_end_of_the_stage_but_prove_nothing() -> None:
    groups = drawn(80, 40)
    for rates, decision in (((0.9, 0.9), CanaryDecision.INCONCLUSIVE), ((0.9, 0.4), CanaryDecision.ROLLBACK)):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
        judge.begin_stage(0, 0.0, groups)
        feed_robots(judge, groups, range(10), rates, 1.0)
        assert judge.verdict(DAY - 1.0).decision is CanaryDecision.HOLD
        verdict = judge.verdict(DAY)
        assert verdict.decision is decision and verdict.excluded_drop is None
        assert "40 canary robots and 40 others have not all of their 40 episodes" in verdict.message
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
    judge.begin_stage(0, 0.0, groups)
    feed_robots(judge, groups, range(40), (0.9, 0.9), 1.0)
    assert judge.verdict(DAY).decision is CanaryDecision.ADVANCE


@pytest.mark.parametrize("fleet", [40, 200])
def test_robots_that_were_never_heard_of_let_no_bad_version_pass(fleet: int) -> None:
    """Three of either group report, 0.9 against 0.3; or nobody at all does."""
    groups = drawn(fleet, fleet // 2)
    for heard in (0, 3):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.3), DEFAULT_STAGES[-1])))
        judge.begin_stage(0, 0.0, groups)
        few = {
            robot: group for robot, group in groups.items() if [*groups.values()][: int(robot[1:])].count(group) < heard
        }
        assert len(few) == 2 * heard
        feed_robots(judge, few, range(40), (0.9, 0.3), 1.0)
        verdict = judge.verdict(DAY)
        assert verdict.decision is not CanaryDecision.ADVANCE and verdict.excluded_drop is None


def test_evidence_of_robots_goes_on_after_the_end_of_the_stage_also_over_a_restart() -> None:
    """The end is by the clock, whoever asks when: half of the evidence is staked on what is known at that time."""
    states, groups = [], drawn(40, 20)
    for asked in (True, False):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.1), DEFAULT_STAGES[-1])))
        judge.begin_stage(0, 0.0, groups)
        feed_robots(judge, groups, range(5), (0.9, 0.9), 0.0)
        if asked:
            assert judge.verdict(DAY).decision is CanaryDecision.INCONCLUSIVE
            judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
        feed_robots(judge, groups, range(5, 40), (0.9, 0.0), DAY + 1.0)
        assert judge.verdict(DAY + 2.0).code == "SUCCESS_WORSE"
        states.append(judge.to_json())
    assert states[0] == states[1]


def test_a_stage_of_robots_without_duration_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, 0.0, 0.1), DEFAULT_STAGES[-1]))
    assert caught.value.code == "INPUT_VALUE"


def test_what_robots_proved_in_one_stage_lets_nothing_pass_in_the_next() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(*DEFAULT_STAGES[:1], Stage("two", 0.9, DAY, 0.1))))
    first = drawn(100, 50)
    judge.begin_stage(0, 0.0, first)
    feed_robots(judge, first, range(40), (0.9, 0.9), 1.0)
    assert judge.verdict(DAY).decision is CanaryDecision.ADVANCE
    second = first | dict.fromkeys([robot for robot, group in first.items() if not group][:40], CANARY)
    judge.begin_stage(1, DAY, second)
    assert judge.verdict(DAY + 1.0).excluded_drop is None


def test_a_mean_needs_robots_and_the_judge_says_how_little_few_can_exclude() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
    judge.begin_stage(0, 0.0, drawn(100, 5))
    verdict = judge.verdict(1.0)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE
    assert "so few canary robots exclude a drop of 45.1% at best" in verdict.message
