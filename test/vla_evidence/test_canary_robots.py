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
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.stages import DEFAULT_STAGES, Stage, Unit, design
from vla_evidence.canary.verdict import CanaryDecision
from vla_evidence.errors import InputError
from vla_evidence.sequential.two_sample import CANARY


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
        assert judge.verdict(DAY / 8 - 1.0).decision is CanaryDecision.HOLD
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
        for (
            robot,
            group,
        ) in groups.items():  # each has told of one since, while another one that it left was not heard of
            judge.assign(f"{robot} lost", robot, group, DAY - 2.0)
            judge.assign(f"{robot} told", robot, group, DAY - 1.0)
            judge.finish(f"{robot} told", True, DAY - 1.0)
        if asked:
            waits = judge.verdict(DAY)
            assert waits.decision is CanaryDecision.HOLD
            assert "40 episodes that the look at its end waits for" in waits.missing
            judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
        for robot, group in groups.items():  # what was begun and told in between is of no look
            judge.assign(f"{robot} new", robot, group, DAY + 1.0)
            judge.finish(f"{robot} new", not group, DAY + 1.0)
        if asked:
            verdict = judge.verdict(DAY + HOUR)
            assert verdict.decision is CanaryDecision.INCONCLUSIVE and verdict.excluded_drop is None
            assert "the stage's evidence is closed, so more takes another stage, or a longer one" in verdict.message
        feed_robots(judge, groups, range(5, 40), (0.0, 0.9), DAY + HOUR)
        later = judge.verdict(DAY + HOUR + 2.0)
        assert later.decision is CanaryDecision.INCONCLUSIVE and later.excluded_drop is None
        assert later.figures["canary"][1] == 860 and "what comes later is counted, and is no evidence" in later.message
        if asked:
            assert later.figures["tests"] == verdict.figures["tests"]
        states.append(judge.to_json())
    assert states[0] == states[1]


@pytest.mark.parametrize("asked", [True, False])
def test_the_episode_that_a_robot_runs_when_the_time_is_over_does_not_count_whoever_asks_when(asked: bool) -> None:
    """Nobody is heard of for a day after the end; what ran then has failed by now, and is no evidence."""
    judge, groups = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.1),))), drawn(40, 20)
    judge.begin_stage(0, 0.0, groups)
    feed_robots(judge, groups, range(40), (1.0, 1.0), DAY - 20.0)
    for robot, group in groups.items():
        judge.assign(f"{robot} runs", robot, group, DAY - 10.0)
    if asked:
        judge.verdict(DAY)
    verdict = judge.verdict(2 * DAY)
    assert verdict.figures["canary"] == [800, 820]
    last = judge.to_json()["comparison"]["cohort"]["looks"][-1]
    assert all(sums == [40.0, 0.0, 40.0] for sums in last["sums"].values()) and not last["pending"]


def test_what_a_version_does_after_many_episodes_still_counts() -> None:
    """It does well for four hours, many more episodes than a robot owes, and fails ever after."""
    judge, groups = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, DAY, 0.1),))), drawn(40, 20)
    judge.begin_stage(0, 0.0, groups)
    for minute in range(0, 24 * 60, 5):
        rate = 0.95 if minute < 240 else 0.0
        feed_robots(judge, groups, range(minute, minute + 1), (0.95, rate), 60.0 * minute)
    assert judge.verdict(6.1 * HOUR).code == judge.verdict(DAY).code == "SUCCESS_WORSE"


def conditions(seed: int, lengths_s: tuple[float, float], drop: float, begin: float, end: float) -> CanaryDecision:
    """Return what a day of 40 robots says; success changes for everybody meanwhile, the versions differ in how long they take."""
    stages = (Stage("one", 0.5, DAY, 0.1 if drop else None), DEFAULT_STAGES[-1])
    config = CanaryConfig(unit=Unit.ROBOT, stages=stages, salt=f"{seed}", episodes_per_robot=10, deadline_s=2 * HOUR)
    judge = CanaryJudge(config)
    groups, rng = drawn(40, 20, seed), random.Random(seed)
    judge.begin_stage(0, 0.0, groups)
    events = [(t, robot, n) for robot, group in groups.items()
              for n, t in enumerate(np.arange(rng.uniform(0.0, 600.0), DAY, lengths_s[group]).tolist())]  # fmt: skip
    for now, robot, n in sorted(events):
        group = groups[robot]
        if n:
            judge.finish(f"{robot} {n - 1}", rng.random() < begin + (end - begin) * now / DAY - drop * group, now)
        judge.assign(f"{robot} {n}", robot, group, now)
    return judge.verdict(DAY + 2 * HOUR).decision


def test_conditions_that_change_for_both_versions_convict_nobody_and_excuse_nobody() -> None:
    """By the first ten episodes of each a slower one that is equal is convicted while success falls."""
    for seed in range(6):
        assert conditions(seed, (600.0, 3600.0), 0.0, 0.95, 0.65) is not CanaryDecision.ROLLBACK
        assert conditions(seed, (600.0, 3600.0), 0.1, 0.75, 0.98) is not CanaryDecision.ADVANCE
        assert conditions(seed, (3600.0, 600.0), 0.1, 0.98, 0.75) is not CanaryDecision.ADVANCE


@pytest.mark.parametrize("hangs", [INCUMBENT, CANARY])
def test_a_failure_that_is_told_and_one_that_is_silent_weigh_the_same(hangs: int) -> None:
    """Equal success; one version's failures send nothing, and the robot goes on."""
    for seed in range(6):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, deadline_s=600.0, salt=f"{seed}"))
        groups, rng = drawn(40, 20, seed), random.Random(seed)
        judge.begin_stage(0, 0.0, groups)
        for n in range(40):
            for robot, group in groups.items():
                judge.assign(f"{robot} {n}", robot, group, n * 300.0)
                if (won := rng.random() < 0.8) or group != hangs:
                    judge.finish(f"{robot} {n}", won, n * 300.0 + 60.0)
        assert judge.verdict(DAY).decision is not CanaryDecision.ROLLBACK


def test_robots_that_were_never_heard_of_convict_nobody_and_are_told() -> None:
    judge, groups = CanaryJudge(CanaryConfig(unit=Unit.ROBOT)), drawn(60, 20)
    judge.begin_stage(0, 0.0, groups)
    feed_robots(judge, {r: g for r, g in groups.items() if not g}, range(40), (1.0, 1.0), 1.0)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE
    assert (
        "20 canary robots and 0 others have no episode that counts yet: they tell nothing about harm" in verdict.message
    )
    canary = next(robot for robot, group in groups.items() if group)
    judge.assign("e", canary, CANARY, DAY)
    judge.finish("e", True, DAY)
    assert judge.verdict(DAY + 1.0).decision is CanaryDecision.INCONCLUSIVE


def test_robots_that_join_later_run_and_are_no_units() -> None:
    """Drawn with any rank, while those who were incumbents have a high one: worse joiners convicted in 32 of 40 rollouts."""
    stages = (Stage("one", 0.5, DAY, None), Stage("two", 0.6, DAY, None), DEFAULT_STAGES[-1])
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, stages=stages))
    first = drawn(40, 20)
    judge.begin_stage(0, 0.0, first)
    new = first | dict.fromkeys([robot for robot, group in first.items() if not group][:4], 1)
    judge.begin_stage(1, DAY, new | {f"j{n}": int(n < 30) for n in range(40)})
    judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
    for n in range(40):
        judge.assign(f"e{n}", f"j{n}", int(n < 30), DAY + 1.0)
        assert judge.finish(f"e{n}", n >= 30, DAY + 2.0)
    with pytest.raises(InputError):
        judge.assign("e", "j0", INCUMBENT, DAY + 2.0)
    verdict = judge.verdict(2 * DAY)
    assert verdict.decision is not CanaryDecision.ROLLBACK and verdict.figures["canary"] == [0, 30]
    assert verdict.figures["in_stage"] == [0, 0]


def test_a_stage_that_is_ended_early_is_judged_by_the_looks_that_it_had_and_no_conviction_is_lost() -> None:
    groups = drawn(40, 10)
    others = [robot for robot, group in groups.items() if not group]
    for looks, next_stage in ((0, 1), (1, 1), (1, 3)):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
        judge.begin_stage(0, 0.0, groups)
        feed_robots(judge, groups, range(2), (1.0, 0.0), 1.0)
        judge.begin_stage(next_stage, 1.5 + looks * DAY / 8, groups | dict.fromkeys(others[:5], CANARY))
        judge = CanaryJudge.from_json(json.loads(json.dumps(judge.to_json())))
        verdict = judge.verdict(2.0 + DAY / 8)  # nobody had asked in the stage before
        assert verdict.code == ("SUCCESS_WORSE" if looks else "")
        stake = judge.config.stake(next_stage) if next_stage < 3 else 1.0
        assert verdict.figures["tests"]["success"]["log_e"] == math.log(stake)


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
        CanaryConfig(unit=Unit.ROBOT, stages=(Stage("one", 0.5, 0.1, 0.1), DEFAULT_STAGES[-1]))
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
    verdict = judge.verdict(DAY + 7 * HOUR)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "SUCCESS_WORSE")


def test_so_few_robots_that_no_harm_can_be_proven_are_told_at_once() -> None:
    for fleet, canaries, told in ((10, 1, True), (20, 1, True), (70, 1, False)):
        judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
        judge.begin_stage(0, 0.0, drawn(fleet, canaries))
        verdict = judge.verdict(1.0)
        assert verdict.decision is CanaryDecision.HOLD and "evidence 0.5, decides at 20" in verdict.message
        note = f"only {fleet} ways to draw them: evidence of harm cannot exceed {0.35 * fleet:g}"
        assert (note in verdict.message) == told


def test_silent_robots_have_failed() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT, deadline_s=600.0, min_episodes=1))
    groups = drawn(60, 6)
    judge.begin_stage(0, 0.0, groups)
    for n in range(40):
        for robot, group in groups.items():
            judge.assign(f"{robot} {n}", robot, group, n * 60.0)
            if group == INCUMBENT:
                judge.finish(f"{robot} {n}", True, n * 60.0)
    verdict = judge.verdict(4 * HOUR)
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
    assert judge.verdict(DAY).code == "LATENCY_WORSE"


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
        codes.append(judge.verdict(DAY).code)
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
