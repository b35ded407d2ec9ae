# SPDX-License-Identifier: Apache-2.0
"""A rollout by whole robots: those that are not heard of, or have too few episodes, let no bad version pass."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from support.canaries import DAY, HOUR, ONE_STAGE, drawn, judge_of

from vla_evidence import INCUMBENT
from vla_evidence.canary import CanaryJudge
from vla_evidence.canary_config import CanaryConfig
from vla_evidence.canary_verdict import CanaryDecision
from vla_evidence.errors import InputError
from vla_evidence.stages import DEFAULT_STAGES, Stage, Unit, design
from vla_evidence.two_sample import CANARY


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


def test_a_stage_of_robots_is_judged_by_what_they_have_when_its_time_is_over_whoever_asks_when() -> None:
    """By the clock. Later outcomes are shown, and are no evidence: not of harm, and not that there is none."""
    states, groups = [], drawn(40, 20)
    for asked in (True, False):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.1), DEFAULT_STAGES[-1])))
        judge.begin_stage(0, 0.0, groups)
        feed_robots(judge, groups, range(5), (0.9, 0.9), 0.0)
        if asked:
            verdict = judge.verdict(DAY)
            assert verdict.decision is CanaryDecision.INCONCLUSIVE and verdict.excluded_drop is None
            assert (
                "the evidence of its robots is closed, so more takes another stage, or a longer one" in verdict.message
            )
            judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
        feed_robots(judge, groups, range(5, 40), (0.0, 0.9), DAY + 1.0)
        later = judge.verdict(DAY + 2.0)
        assert later.decision is CanaryDecision.INCONCLUSIVE and later.excluded_drop is None
        assert later.figures["canary"][1] == 800 and "what comes later is counted, and is no evidence" in later.message
        if asked:
            assert later.figures["tests"] == verdict.figures["tests"]
        states.append(judge.to_json())
    assert states[0] == states[1]


def test_an_episode_that_runs_at_the_end_of_the_stage_holds_back_no_other_robot() -> None:
    """What ended before the end is judged, whatever another robot does; also over a restart, and once."""
    groups = drawn(40, 20)
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.2), DEFAULT_STAGES[-1])))
    judge.begin_stage(0, 0.0, groups)
    late_s = DAY - 60.0
    judge.assign("runs", "r0", groups["r0"], late_s)
    feed_robots(judge, groups, range(40), (0.9, 0.9), late_s)
    assert judge.verdict(DAY - 1.0).figures["tests"]["success"]["log_e"] == 0.0
    verdict = judge.verdict(DAY)
    assert verdict.figures["waiting"] == 1600 and verdict.excluded_drop is not None and verdict.excluded_drop <= 0.2
    state = judge.to_json()["comparison"]
    judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
    assert judge.finish("runs", False, DAY + 1.0)
    later = judge.verdict(DAY + 2.0)
    assert later.decision is CanaryDecision.ADVANCE and sum(later.figures["in_stage"]) == 1601
    assert later.figures["tests"] == verdict.figures["tests"] and judge.to_json()["comparison"] == state


def test_whoever_ends_a_stage_early_cannot_choose_the_moment_at_which_robots_look_bad() -> None:
    """Robots short of episodes are left out then; those before them in the order, with all of theirs, count."""
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, episodes_per_robot=2))
    groups = drawn(40, 10)
    judge.begin_stage(0, 0.0, groups)
    feed_robots(judge, groups, range(1), (1.0, 0.0), 1.0)
    judge.begin_stage(
        1, 2.0, groups | dict.fromkeys([robot for robot, group in groups.items() if not group][:5], CANARY)
    )
    test = judge.verdict(3.0).figures["tests"]["success"]
    assert test["max_log_e"] == 0.0
    for stages, next_stage in ((DEFAULT_STAGES, 1), ((*DEFAULT_STAGES[:1], DEFAULT_STAGES[-1]), 1)):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, episodes_per_robot=2, stages=stages))
        judge.begin_stage(0, 0.0, groups)
        feed_robots(judge, groups, range(2), (1.0, 0.0), 1.0)
        judge.begin_stage(next_stage, 2.0, groups | dict.fromkeys([r for r, g in groups.items() if not g][:5], CANARY))
        judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
        verdict = judge.verdict(3.0)  # nobody had asked in the stage before
        assert verdict.code == "SUCCESS_WORSE"
        assert verdict.figures["tests"]["success"]["log_e"] == math.log(judge.config.stake(next_stage))


@pytest.mark.parametrize("unit", Unit)
def test_each_stage_of_robots_begins_with_its_stake_and_decides_at_the_same_evidence(unit: Unit) -> None:
    judge = CanaryJudge(CanaryConfig(unit=unit, latency_limit_s=1.0))
    stakes, groups = [], None
    for stage, canaries in enumerate((5, 10, 20)):
        if unit is Unit.ROBOT:
            groups = {f"r{n}": int(n < canaries) for n in range(40)}
        judge.begin_stage(stage, float(stage), groups)
        verdict = judge.verdict(float(stage))
        tests = verdict.figures["tests"]
        assert [math.exp(-test["decides_at"]) for test in tests.values()] == pytest.approx([0.05 * 3 / 4, 0.05 / 4])
        stakes.append(math.exp(tests["success"]["log_e"]))
    assert stakes == pytest.approx([0.5, 0.25, 0.25] if unit is Unit.ROBOT else [1.0, 1.0, 1.0])
    assert f"success worse: evidence {stakes[-1]:g}, decides at 27" in verdict.message


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
    assert verdict.decision is CanaryDecision.HOLD
    note = "5 canary robots without a fault exclude a drop of 45.1% at best where the incumbent never fails"
    assert note in verdict.message and note in judge.verdict(DAY).message and "ways to draw" not in verdict.message


@pytest.mark.parametrize(("margin", "incumbent"), [(0.0, 0.3), (0.02, 0.5), (0.1, 0.4)])
def test_a_canary_that_is_far_better_advances_though_few_robots_exclude_little_at_best(
    margin: float, incumbent: float
) -> None:
    """So what they exclude where the incumbent never fails is a note, and never an end before the time."""
    stages = (Stage("one", 0.25, DAY, margin), DEFAULT_STAGES[-1])
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=stages, episodes_per_robot=20))
    groups = drawn(80, 20)
    judge.begin_stage(0, 0.0, groups)
    first = judge.verdict(1.0)
    assert first.decision is CanaryDecision.HOLD and ("13.9% at best" in first.message) == (margin > 0.0)
    feed_robots(judge, groups, range(20), (incumbent, 0.95), 1.0)
    assert judge.verdict(2.0).decision is CanaryDecision.HOLD
    assert judge.verdict(DAY).decision is CanaryDecision.ADVANCE


def run_robots(
    judge: CanaryJudge, groups: dict[str, int], rates: tuple[float, float], begin_s: float, seed: int = 0
) -> None:
    rng = random.Random(seed)
    for n in range(40):
        for robot, group in groups.items():
            now = begin_s + n * 60.0
            judge.assign(f"{begin_s} {robot} {n}", robot, group, now)
            judge.finish(f"{begin_s} {robot} {n}", rng.random() < rates[group], now)


def test_whole_robots_are_compared_and_a_later_stage_counts_only_its_new_ones() -> None:
    settings = {"unit": Unit.ROBOT, "stages": DEFAULT_STAGES, "min_episodes": 40}
    judge = CanaryJudge(CanaryConfig(**settings))
    first = drawn(100, 5)
    judge.begin_stage(0, 0.0, first)
    run_robots(judge, first, (0.85, 0.85), 0.0)
    verdict = judge.verdict(DAY)
    assert verdict.decision is not CanaryDecision.ROLLBACK
    second = {robot: int(group or robot in list(first)[:20]) for robot, group in first.items()}
    judge.begin_stage(1, DAY, second)
    run_robots(judge, second, (0.85, 0.45), DAY, seed=1)
    verdict = judge.verdict(DAY + HOUR)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "SUCCESS_WORSE")


def test_so_few_robots_that_no_harm_can_be_proven_are_told_at_once() -> None:
    for fleet, canaries, told in ((10, 1, True), (20, 1, True), (70, 1, False)):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
        judge.begin_stage(0, 0.0, drawn(fleet, canaries))
        verdict = judge.verdict(1.0)
        assert verdict.decision is CanaryDecision.HOLD and "evidence 0.5, decides at 20" in verdict.message
        note = f"only {fleet} ways to draw them: evidence of harm cannot exceed {fleet / 2:g}"
        assert (note in verdict.message) == told


def test_a_silent_robot_fails_the_episodes_that_it_owes() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, deadline_s=600.0, min_episodes=1))
    groups = drawn(60, 6)
    judge.begin_stage(0, 0.0, groups)
    for n in range(40):
        for robot, group in groups.items():
            judge.assign(f"{robot} {n}", robot, group, n * 60.0)
            if group == INCUMBENT:
                judge.finish(f"{robot} {n}", True, n * 60.0)
    verdict = judge.verdict(2 * HOUR)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "SUCCESS_WORSE")


def test_an_episode_of_the_stage_before_is_not_a_robots_of_this_one() -> None:
    """It was assigned when the robot ran the incumbent, and ends when it is a canary."""
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
    judge.begin_stage(0, 0.0, {"a": 1, "b": 0, "c": 0})
    judge.assign("e", "b", INCUMBENT, 1.0)
    judge.begin_stage(1, 2.0, {"a": 1, "b": 1, "c": 0})
    assert judge.finish("e", True, 3.0)
    assert judge.to_json()["comparison"]["cohort"]["sums"] == {}
    assert judge.verdict(4.0).figures["in_stage"] == [0, 0]


def test_slow_robots_are_rolled_back_though_they_succeed() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, latency_limit_s=1.0, episodes_per_robot=10))
    groups, rng = drawn(60, 6), random.Random(7)
    judge.begin_stage(0, 0.0, groups)
    for robot, group in groups.items():
        for n in range(10):
            judge.assign(f"{robot} {n}", robot, group, n * 60.0)
            judge.finish(f"{robot} {n}", True, n * 60.0, rng.uniform(0.8, 1.3) if group else rng.uniform(0.5, 1.02))
    assert judge.verdict(HOUR).code == "LATENCY_WORSE"


def test_robots_whose_scores_exceed_the_limit_are_rolled_back_and_not_those_of_a_fleet_that_all_do() -> None:
    codes = []
    for incumbent in (0.0, 3.0):
        config = CanaryConfig(unit=Unit.ROBOT, episodes_per_robot=10, stages=ONE_STAGE)
        judge = CanaryJudge(config, {"tce": np.random.default_rng(0).normal(size=200).tolist()})
        groups, rng = drawn(80, 20), random.Random(9)
        judge.begin_stage(0, 0.0, groups)
        for n in range(10):
            for robot, group in groups.items():
                judge.assign(f"{robot} {n}", robot, group, n * 60.0)
                blocks = [rng.gauss(3.0 if group else incumbent, 1.0) for _ in range(3)]
                judge.finish(f"{robot} {n}", True, n * 60.0, scores={"tce": blocks})
        codes.append(judge.verdict(HOUR).code)
    assert codes == ["SCORES_WORSE", ""]


def test_one_robot_that_holds_both_versions_is_evidence_enough() -> None:
    """Of a fleet of three, where by robot nothing could ever be proven."""
    design_ = design(DEFAULT_STAGES[0], 3, holds_both=True, alpha=0.05)
    judge, rng = CanaryJudge(CanaryConfig.informed(87, 100)), random.Random(8)
    judge.begin_stage(0, 0.0)
    for n in range(200):
        group = int(rng.random() < design_.probability)
        judge.assign(f"e{n}", "arm-0", group, n * 60.0, design_.probability)
        judge.finish(f"e{n}", rng.random() < (0.5 if group else 0.87), n * 60.0 + 30.0)
        if judge.verdict(n * 60.0 + 30.0).decision is CanaryDecision.ROLLBACK:
            break
    assert judge.verdict(200 * 60.0).code == "SUCCESS_WORSE" and n < 150


def test_a_cohort_must_fit() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
    for groups in (None, {}, {"a": 2}):
        with pytest.raises(InputError) as caught:
            judge.begin_stage(0, 0.0, groups)
        assert caught.value.code == "INPUT_ARM"
    groups = drawn(20, 2)
    judge.begin_stage(0, 0.0, groups)
    canary = next(robot for robot, group in groups.items() if group)
    for robot, group in ((canary, INCUMBENT), ("nobody", INCUMBENT), ("nobody", CANARY)):
        with pytest.raises(InputError) as caught:
            judge.assign("e", robot, group, 1.0)
        assert caught.value.code == "INPUT_ARM"
    with pytest.raises(InputError, match="none any more"):
        judge.begin_stage(1, 1.0, {robot: int(robot != canary) for robot in groups})
    left = {robot: group for robot, group in groups.items() if robot != canary}
    judge.begin_stage(1, 1.0, left)  # one that is gone for good holds up nobody
    judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
    with pytest.raises(InputError, match="none any more"):
        judge.begin_stage(2, 2.0, {**left, canary: INCUMBENT})  # and is not forgotten
    judge.begin_stage(2, 2.0, {**left, canary: CANARY})
    judge.assign("back", canary, CANARY, 3.0)
    assert judge.finish("back", True, 4.0) and judge.to_json()["comparison"]["cohort"]["sums"] == {}
    with pytest.raises(InputError) as caught:
        judge.assign("e", canary, CANARY, 1.0, 0.5)
    assert caught.value.code == "INPUT_PROBABILITY"
    with pytest.raises(InputError):
        judge.add_many([0], [1], 0.5)
    with pytest.raises(InputError):
        judge_of().begin_stage(1, 0.0, groups) or CanaryJudge(CanaryConfig()).begin_stage(0, 0.0, groups)
