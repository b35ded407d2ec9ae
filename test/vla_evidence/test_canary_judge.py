# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary reaches each of its verdicts on its grounds, never advances without data, and survives a restart."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from vla_evidence import CANARY, INCUMBENT, InputError, LogError
from vla_evidence.canary import CanaryJudge
from vla_evidence.canary_config import CanaryConfig, latency_limit
from vla_evidence.canary_verdict import CanaryDecision
from vla_evidence.stages import DEFAULT_STAGES, Stage, Unit, design

HOUR = 3600.0
DAY = 24 * HOUR
ONE_STAGE = (Stage("canary", 0.25, DAY, 0.1), Stage("full", 1.0, 0.0, None))


def judge_of(**settings) -> CanaryJudge:
    judge = CanaryJudge(CanaryConfig(**{"stages": ONE_STAGE, **settings}))
    judge.begin_stage(0, 0.0)
    return judge


def feed(judge: CanaryJudge, group: int, successes: int, failures: int, pi: float = 0.25) -> None:
    """Take in so many ended episodes of a group, well mixed."""
    outcomes = [1] * successes + [0] * failures
    random.Random(0).shuffle(outcomes)
    judge.add_many([group] * len(outcomes), outcomes, pi)


def mixed(
    judge: CanaryJudge, incumbent: float, canary: float, episodes: int, *, pi: float = 0.25, seed: int = 0
) -> None:
    rng = np.random.default_rng(seed)
    groups = (rng.random(episodes) < pi).astype(int)
    judge.add_many(groups, (rng.random(episodes) < np.where(groups, canary, incumbent)).astype(int), pi)


# -- verdicts ---------------------------------------------------------------------------------------------------------------


def test_a_good_canary_advances_when_time_exposure_and_margin_are_there() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.9, 4000)
    early = judge.verdict(DAY / 2)
    assert early.decision is CanaryDecision.HOLD and early.missing == ("12 h of 24",)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.ADVANCE and verdict.missing == ()
    assert verdict.excluded_drop is not None and verdict.excluded_drop <= 0.1
    assert verdict.message.startswith("canary: no sign of harm") and "% " not in verdict.code
    assert verdict.figures["canary"][1] + verdict.figures["incumbent"][1] == 4000


def test_a_worse_canary_is_rolled_back_for_good_and_at_once() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.5, 400)
    verdict = judge.verdict(60.0)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "SUCCESS_WORSE")
    assert "success is worse" in verdict.message and "decides at 20" in verdict.message
    feed(judge, CANARY, 5000, 0)
    assert judge.verdict(DAY).decision is CanaryDecision.ROLLBACK  # what was found stays found


def test_a_slow_canary_is_rolled_back_though_it_succeeds() -> None:
    rng = np.random.default_rng(1)
    limit = latency_limit(rng.lognormal(0.0, 0.3, 400).tolist())
    judge = judge_of(latency_limit_s=limit)
    groups = (rng.random(800) < 0.25).astype(int)
    judge.add_many(groups, np.ones(800, int), 0.25, rng.lognormal(0.4 * groups, 0.3))
    verdict = judge.verdict(60.0)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "LATENCY_WORSE")


def test_a_latency_that_is_not_told_is_a_slow_one() -> None:
    judge = judge_of(latency_limit_s=0.1)
    rng = random.Random(0)
    for n in range(300):
        group = int(rng.random() < 0.25)
        judge.assign(f"e{n}", "r", group, float(n), 0.25)
        judge.finish(f"e{n}", True, float(n), None if group == CANARY else 0.05)
    assert judge.verdict(400.0).code == "LATENCY_WORSE"


def scored(judge: CanaryJudge, rng: np.random.Generator, shifts: tuple[float, float], episodes: int = 400) -> None:
    """Take in equally good episodes of 5 blocks each, whose scores are N(shift of the group, 1), of two sources."""
    groups = (rng.random(episodes) < 0.25).astype(int)
    tce = rng.normal(size=(episodes, 5)) + np.where(groups, shifts[1], shifts[0])[:, None]
    values = {"tce": tce, "reversal": rng.normal(size=(episodes, 5)), "unknown": np.full((episodes, 1), 1e9)}
    judge.add_many(groups, np.ones(episodes, int), 0.25, scores=values)


def scored_judge(seed: int = 0, **settings) -> CanaryJudge:
    rng = np.random.default_rng(seed)
    history = {"tce": rng.normal(size=200).tolist(), "reversal": rng.normal(size=200).tolist()}
    judge = CanaryJudge(CanaryConfig(**{"stages": ONE_STAGE, **settings}), history)
    judge.begin_stage(0, 0.0)
    return judge


def test_scores_convict_a_bad_canary_and_not_one_that_is_only_shifted() -> None:
    decisions = {}
    for shift in (0.3, 2.0):
        judge = scored_judge()
        scored(judge, np.random.default_rng(2), (0.0, shift))
        decisions[shift] = judge.verdict(60.0)
    assert decisions[0.3].decision is CanaryDecision.HOLD and "score reversal worse: evidence" in decisions[0.3].message
    assert (decisions[2.0].decision, decisions[2.0].code) == (CanaryDecision.ROLLBACK, "SCORES_WORSE")
    assert "score tce is worse" in decisions[2.0].message


def test_what_raises_the_scores_of_both_versions_convicts_nobody() -> None:
    """Another task, a lower sun: 0.85 and 2 σ, 100 rollouts each. Against the past alone it would nearly always."""
    for shift in (0.85, 2.0):
        rng, rolled_back = np.random.default_rng(3), 0
        for seed in range(100):
            judge = scored_judge(seed)
            scored(judge, rng, (shift, shift))
            rolled_back += judge.verdict(60.0).decision is CanaryDecision.ROLLBACK
        assert rolled_back / 100 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


def test_scores_that_the_canary_alone_does_not_tell_exceed_their_limit() -> None:
    judge, rng = scored_judge(), random.Random(4)
    for n in range(300):
        group = int(rng.random() < 0.25)
        judge.assign(f"e{n}", f"r{n % 7}", group, float(n), 0.25)
        told = {"tce": [0.0, 0.1], "reversal": [0.0]}
        judge.finish(f"e{n}", True, float(n), scores={"tce": [0.0]} if group else told)
    verdict = judge.verdict(400.0)
    assert verdict.code == "SCORES_WORSE" and "score reversal is worse" in verdict.message


def test_a_margin_that_is_not_met_when_the_time_is_over_is_for_a_person_with_the_drop_that_is_excluded() -> None:
    judge = judge_of(stages=(Stage("wide", 0.5, DAY, 0.01),))
    mixed(judge, 0.87, 0.87, 1200, pi=0.5)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE
    assert verdict.excluded_drop is not None and 0.01 < verdict.excluded_drop <= 0.12
    assert f"a drop of {verdict.excluded_drop:.3g} or more can be excluded" in verdict.message
    assert "ask a person" in verdict.message and "not worse by 0.01" in verdict.message
    mixed(judge, 0.87, 0.93, 12_000, pi=0.5, seed=1)  # it is not final: more evidence settles it
    assert judge.verdict(2 * DAY).decision is CanaryDecision.ADVANCE


def test_a_margin_out_of_reach_is_said_before_the_time_is_over() -> None:
    judge = judge_of(min_episodes=5)
    mixed(judge, 0.9, 0.9, 40)
    assert judge.verdict(0.2 * DAY).decision is CanaryDecision.HOLD  # too early for a forecast
    verdict = judge.verdict(0.9 * DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and "too few even if all succeed" in verdict.message
    mixed(judge, 0.87, 0.9, 4000, seed=1)
    assert judge.verdict(0.95 * DAY).decision is CanaryDecision.HOLD  # more came than was expected


def test_an_improvement_is_asked_for_by_a_margin_of_zero() -> None:
    judges = []
    for rate in (0.87, 0.95):
        judge = judge_of(stages=(Stage("wide", 0.5, DAY, 0.0),))
        mixed(judge, 0.87, rate, 4000, pi=0.5)
        judges.append(judge.verdict(DAY))
    assert judges[0].decision is CanaryDecision.INCONCLUSIVE and "proof of an improvement" in judges[0].message
    assert judges[1].decision is CanaryDecision.ADVANCE and judges[1].excluded_drop == 0.0


def test_evidence_that_leans_against_it_delays_an_advance() -> None:
    judge = judge_of(advance_max_evidence=1e-6)
    mixed(judge, 0.87, 0.9, 4000)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and any("leans against" in item for item in verdict.missing)


# -- no data is no success --------------------------------------------------------------------------------------------------


def test_without_data_it_never_advances() -> None:
    judge = judge_of()
    assert judge.verdict(0.0).decision is CanaryDecision.HOLD
    verdict = judge.verdict(100 * DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and "no drop can be excluded" in verdict.message
    assert "episodes of the canary (0 of 50)" in verdict.message


@pytest.mark.parametrize("group", [INCUMBENT, CANARY])
@pytest.mark.parametrize("success", [True, False])
def test_with_one_group_alone_it_neither_advances_nor_rolls_back(group: int, success: bool) -> None:
    judge = judge_of()
    feed(judge, group, 2000 * success, 2000 * (not success))
    for now in (HOUR, 2 * DAY):
        assert judge.verdict(now).decision in (CanaryDecision.HOLD, CanaryDecision.INCONCLUSIVE)


def test_the_minimum_of_episodes_counts_in_each_stage_anew() -> None:
    judge = judge_of(stages=DEFAULT_STAGES)
    mixed(judge, 0.87, 0.9, 8000, pi=0.05)
    assert judge.verdict(DAY).decision is CanaryDecision.ADVANCE
    judge.begin_stage(1, DAY)
    verdict = judge.verdict(3 * DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and "episodes of the canary (0 of 50)" in verdict.missing


def test_a_judged_score_source_that_says_nothing_in_a_stage_keeps_it_from_advancing() -> None:
    stages = (Stage("one", 0.25, DAY, 0.1), Stage("two", 0.25, DAY, 0.1))
    judge = CanaryJudge(CanaryConfig(stages=stages), {"tce": [0.0] * 100})
    rng, now = np.random.default_rng(5), 0.0
    for stage, told in ((0, True), (1, False)):
        judge.begin_stage(stage, now)
        groups = (rng.random(3000) < 0.25).astype(int)
        scores = {"tce": np.zeros((3000, 2))} if told else None
        judge.add_many(groups, (rng.random(3000) < 0.9).astype(int), 0.25, scores=scores)
        now += DAY
        verdict = judge.verdict(now)
        assert (verdict.decision is CanaryDecision.ADVANCE) == told
    assert verdict.missing[:1] == ("blocks of tce of the canary (0 of 20)",)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_source_with_too_short_a_past_keeps_it_from_advancing_unless_that_is_allowed(allowed: bool) -> None:
    judge = CanaryJudge(CanaryConfig(stages=ONE_STAGE, allow_unjudged_scores=allowed), {"new": [0.0]})
    judge.begin_stage(0, 0.0)
    mixed(judge, 0.87, 0.9, 4000)
    verdict = judge.verdict(DAY)
    assert "not judged: new (1 of 20 past values)" in verdict.message
    assert verdict.missing == (() if allowed else ("a limit for new (1 of 20 past values)",))
    assert (verdict.decision is CanaryDecision.ADVANCE) == allowed


def later_drop(seed: int) -> str:
    """A canary that is as good in the first stage, and from the second on, where it runs elsewhere, 10 points worse."""
    stages = (Stage("one", 0.5, DAY, 0.1), Stage("two", 0.5, DAY, 0.05))
    judge = CanaryJudge(CanaryConfig(stages=stages))
    judge.begin_stage(0, 0.0)
    mixed(judge, 0.9, 0.9, 8000, pi=0.5, seed=seed)
    if judge.verdict(DAY).decision is not CanaryDecision.ADVANCE:
        return "stage one"
    judge.begin_stage(1, DAY)
    mixed(judge, 0.9, 0.8, 400, pi=0.5, seed=1000 + seed)
    return judge.verdict(2 * DAY).decision.value


def test_what_was_proven_in_an_early_stage_lets_no_later_drop_pass() -> None:
    """40 rollouts, none advances (at most 9 % at 95 % confidence); some are taken back, with 200 episodes of it."""
    ends = [later_drop(seed) for seed in range(40)]
    assert ends.count("ADVANCE") == 0 and ends.count("stage one") <= 8
    assert ends.count("ROLLBACK") >= 8


def test_a_share_that_is_not_the_stated_one_is_noticed() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.9, 4000, pi=0.25)
    assert judge.verdict(DAY).decision is CanaryDecision.ADVANCE
    rng = np.random.default_rng(1)
    groups = (rng.random(2000) < 0.15).astype(int)  # 15 % get it, and 25 % were to
    judge.add_many(groups, (rng.random(2000) < 0.87).astype(int), 0.25)
    verdict = judge.verdict(DAY)
    assert (
        verdict.decision is CanaryDecision.INCONCLUSIVE
        and "of 6000 episodes, which is not the share" in verdict.message
    )
    assert verdict.excluded_drop is None


def test_a_wrong_share_voids_evidence_for_harm_too() -> None:
    """An equal canary that gets half of the episodes though a twentieth was stated: no rollback, a person is asked."""
    for seed in range(20):
        judge = judge_of()
        rng = np.random.default_rng(seed)
        groups = (rng.random(600) < 0.5).astype(int)
        judge.add_many(groups, (rng.random(600) < 0.87).astype(int), 0.05)
        assert judge.verdict(60.0).decision is CanaryDecision.INCONCLUSIVE


def test_robots_that_stay_with_one_version_are_noticed_and_drawn_episodes_are_not_blamed() -> None:
    """5 of 100 robots run it for good, where 5 % of each robot's episodes were to: the share is right, the unit is not."""
    verdicts = []
    for sticks in (True, False):
        judge, rng = judge_of(stages=(Stage("canary", 0.05, DAY, 0.1),)), random.Random(6)
        for n in range(2000):
            robot = n % 100
            group = int(robot < 5) if sticks else int(rng.random() < 0.05)
            judge.assign(f"e{n}", f"r{robot}", group, float(n), 0.05)
            judge.finish(f"e{n}", rng.random() < 0.87, float(n))
        verdicts.append(judge.verdict(DAY))
    assert verdicts[0].decision is CanaryDecision.INCONCLUSIVE and "robots stay with one version" in verdicts[0].message
    assert "robots stay" not in verdicts[1].message


def run_with_losses(seed: int, lost: float, canary: float, episodes: int = 480) -> CanaryJudge:
    """Return a judge after a stage in which this share of all outcomes was lost, of whichever group."""
    rng = random.Random(seed)
    judge = judge_of(deadline_s=10.0, stages=(Stage("canary", 0.5, DAY, 0.1),))
    for n in range(episodes):
        now, group = n * 180.0, int(rng.random() < 0.5)
        judge.assign(f"e{n}", f"r{n % 20}", group, now, 0.5)
        if rng.random() >= lost:
            judge.finish(f"e{n}", rng.random() < (canary if group else 0.87), now + 5.0)
    return judge


def test_a_stage_of_which_nothing_was_heard_never_advances() -> None:
    """Every episode of both groups is silent: 0 of n against 0 of n is no proof of anything."""
    judge = run_with_losses(1, 1.0, 0.87)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and verdict.excluded_drop is None
    assert "episodes of the canary (0 of 50)" in verdict.missing and verdict.figures["in_stage"] == [0, 0]


def test_lost_outcomes_do_not_dilute_a_drop_until_it_looks_harmless() -> None:
    """70 % lost, 0.87 → 0.76, margin 0.1: never in 20 runs (at most 14 %, at 95 % confidence)."""
    for seed in range(20):
        assert run_with_losses(seed, 0.7, 0.76).verdict(DAY).decision is not CanaryDecision.ADVANCE


# -- silence ----------------------------------------------------------------------------------------------------------------


def test_silent_canary_robots_are_failures_and_are_named() -> None:
    judge = judge_of(deadline_s=600.0)
    rng = random.Random(3)
    for n in range(120):
        group, robot = int(rng.random() < 0.25), f"r{n % 10}"
        judge.assign(f"e{n}", f"{robot}", group, n * 60.0, 0.25)
        if group == INCUMBENT:
            assert judge.finish(f"e{n}", True, n * 60.0 + 50.0)
    verdict = judge.verdict(3 * HOUR)
    assert (verdict.decision, verdict.code) == (CanaryDecision.ROLLBACK, "SUCCESS_WORSE")
    assert "silent, their episodes counted as failures: r" in verdict.message
    assert verdict.figures["canary"][0] == 0 and verdict.figures["open"] == 0


def test_an_outcome_after_its_deadline_or_told_twice_changes_nothing() -> None:
    judge = judge_of(deadline_s=600.0)
    judge.assign("late", "r1", CANARY, 0.0, 0.25)
    judge.assign("twice", "r2", INCUMBENT, 1.0, 0.25)
    assert judge.finish("twice", True, 10.0)
    assert not judge.finish("twice", False, 11.0)
    assert judge.verdict(500.0).figures["incumbent"] == [0, 0]  # it waits for the one that was assigned before it
    assert not judge.finish("late", True, 600.0)
    figures = judge.verdict(700.0)
    assert figures.figures["canary"] == [0, 1] and figures.figures["incumbent"] == [1, 1]
    assert "2 outcomes ignored" in figures.message
    assert not judge.finish("never assigned", True, 700.0)


def test_outcomes_count_in_the_order_of_assignment() -> None:
    """Whatever order they come in; so a canary that takes longer is not under-represented among what is known."""
    states = []
    for seed in (0, 1):
        judge = judge_of()
        for n in range(50):
            judge.assign(f"e{n}", f"r{n}", n % 4 == 0, 0.0, 0.25)
        order = list(range(50))
        random.Random(seed).shuffle(order)
        for n in order:
            judge.finish(f"e{n}", n % 3 > 0, 1.0)
        states.append(judge.verdict(2.0))
    assert states[0] == states[1] and states[0].figures["open"] == 0


def test_what_is_delivered_twice_counts_once() -> None:
    """Assignments and outcomes, at once or a while after the end, with the time of sending again or with their own."""
    judge = judge_of(deadline_s=600.0)
    for n in range(30):
        now = 60.0 * n
        judge.assign(f"e{n}", "r", n % 2, now, 0.25)
        assert judge.finish(f"e{n}", n % 2 == 0, now + 30.0)
        for earlier in (n, n // 2, 0):  # 0: told again up to half an hour later, with its own time
            again = 60.0 * earlier if earlier == 0 else now + 31.0
            if earlier and n - earlier > 9:
                continue  # after a deadline, with another time: nobody can tell
            with pytest.raises(InputError):
                judge.assign(f"e{earlier}", "r", earlier % 2, again, 0.25)
            assert not judge.finish(f"e{earlier}", False, now + 31.0)
    figures = judge.verdict(1900.0).figures
    assert (figures["incumbent"], figures["canary"], figures["open"]) == ([15, 15], [0, 15], 0)


def test_a_message_says_how_many_are_open_and_how_many_wait_for_them() -> None:
    judge = judge_of()
    for n in range(10):
        judge.assign(f"e{n}", f"r{n}", CANARY, float(n), 0.25)
        if n:
            judge.finish(f"e{n}", False, float(n))
    verdict = judge.verdict(10.0)
    assert "10 episodes open, 9 of them ended and waiting for one assigned before" in verdict.message
    assert (verdict.figures["open"], verdict.figures["waiting"]) == (10, 9)


# -- units of robots --------------------------------------------------------------------------------------------------------


def run_robots(
    judge: CanaryJudge, groups: dict[str, int], rates: tuple[float, float], begin_s: float, seed: int = 0
) -> None:
    rng = random.Random(seed)
    for n in range(40):
        for robot, group in groups.items():
            now = begin_s + n * 60.0
            judge.assign(f"{begin_s} {robot} {n}", robot, group, now)
            judge.finish(f"{begin_s} {robot} {n}", rng.random() < rates[group], now)


def drawn(fleet: int, k: int, seed: int = 0) -> dict[str, int]:
    canaries = set(random.Random(seed).sample(range(fleet), k))
    return {f"r{n}": int(n in canaries) for n in range(fleet)}


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


def test_so_few_robots_that_nothing_can_be_proven_are_told_at_once() -> None:
    judge = CanaryJudge(CanaryConfig(unit=Unit.ROBOT))
    judge.begin_stage(0, 0.0, drawn(10, 1))
    verdict = judge.verdict(1.0)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE
    assert "so few robots can give evidence of 10 at most" in verdict.message


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
    with pytest.raises(InputError) as caught:
        judge.assign("e", canary, CANARY, 1.0, 0.5)
    assert caught.value.code == "INPUT_PROBABILITY"
    with pytest.raises(InputError):
        judge.add_many([0], [1], 0.5)
    with pytest.raises(InputError):
        judge_of().begin_stage(1, 0.0, groups) or CanaryJudge(CanaryConfig()).begin_stage(0, 0.0, groups)


# -- stages, input, restarts ------------------------------------------------------------------------------------------------


def test_the_last_stage_has_nobody_to_compare_with_and_holds() -> None:
    judge = judge_of()
    judge.begin_stage(1, DAY)
    verdict = judge.verdict(2 * DAY)
    assert verdict.decision is CanaryDecision.HOLD and "nobody is left to compare with" in verdict.message
    with pytest.raises(InputError, match="nobody left"):
        judge.assign("e", "r", CANARY, 2 * DAY, 0.5)
    with pytest.raises(InputError, match="nobody left"):
        judge.add_many([1], [1], 0.5)


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    judge = judge_of()
    judge.assign("open", "r", CANARY, 0.0, 0.25)
    before = judge.to_json()
    staged = judge_of(stages=DEFAULT_STAGES)
    staged.verdict(1e6)
    staged_before = staged.to_json()
    for call, code in (
        (lambda: judge.assign("e", "r", 2, 0.0, 0.25), "INPUT_ARM"),
        (lambda: judge.assign("e", "r", "canary", 0.0, 0.25), "INPUT_ARM"),
        (lambda: judge.assign("e", "r", CANARY, 0.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, 0.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, 1.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, math.nan), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, math.nan, 0.25), "INPUT_VALUE"),
        (lambda: judge.assign("open", "r", CANARY, 0.0, 0.25), "INPUT_VALUE"),
        (lambda: judge.finish("open", 0.5, 0.0), "INPUT_RATE"),
        (lambda: judge.finish("open", True, 0.0, -1.0), "INPUT_VALUE"),
        (lambda: judge.finish("open", True, 0.0, math.nan), "INPUT_VALUE"),
        (lambda: judge.add_many([1], [1], 0.25), "INPUT_VALUE"),  # one is open
        (lambda: judge.begin_stage(0, 0.0), "INPUT_VALUE"),
        (lambda: judge.begin_stage(2, 0.0), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig()).verdict(0.0), "INPUT_VALUE"),
        (lambda: CanaryConfig(alpha=0.0), "INPUT_PROBABILITY"),
        (lambda: CanaryConfig(harm_margin=-0.1), "INPUT_MARGIN"),
        (
            lambda: judge.assign("open", "r", CANARY, 4000.0, 0.25),
            "INPUT_VALUE",
        ),  # told twice, and late: no time passes
        (lambda: judge.assign("", "r", CANARY, 4000.0, 0.25), "INPUT_VALUE"),
        (lambda: staged.begin_stage(1, 4000.0, {"r": 1}), "INPUT_ARM"),
        (lambda: staged.assign("e", "r", CANARY, 1e6 - 3600.0, 0.25), "INPUT_VALUE"),  # its deadline has passed
        (lambda: judge.begin_stage(1, 10**400), "INPUT_VALUE"),
        (lambda: judge.verdict(10**400), "INPUT_VALUE"),
        (lambda: judge.finish("open", True, 4000.0, -1.0), "INPUT_VALUE"),
        (lambda: scored_judge().finish("e", True, 0.0, scores={"tce": ["high"]}), "INPUT_VALUE"),
        (lambda: scored_judge().finish("e", True, 0.0, scores={"tce": "high"}), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig(), {"tce": [math.nan] * 30}), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig(), {"tce": ["x"] * 30}), "INPUT_VALUE"),
        (lambda: CanaryConfig(min_episodes=0), "INPUT_COUNT"),
        (lambda: CanaryConfig(min_episodes=math.nan), "INPUT_COUNT"),
        (lambda: CanaryConfig(deadline_s=math.inf), "INPUT_VALUE"),
        (lambda: CanaryConfig(latency_limit_s=0.0), "INPUT_VALUE"),
        (lambda: CanaryConfig(stages=()), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(11, 10), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(-1, 10), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(5, 10, expected_drop=1.0), "INPUT_MARGIN"),
        (lambda: latency_limit([0.1] * 19), "INPUT_VALUE"),
        (lambda: latency_limit([0.1] * 30 + [-1.0]), "INPUT_VALUE"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    assert judge.to_json() == before and staged.to_json() == staged_before
    with pytest.raises(InputError, match="latencies"):
        judge_of(latency_limit_s=1.0).add_many([0, 1], [1, 1], 0.25, [0.5])
    for groups, ys, pi in (([0, 3], [1, 1], 0.25), ([0, 1], [1, 2], 0.25), ([0, 1], [1, 1], 0.0)):
        fresh = judge_of()
        state = fresh.to_json()
        with pytest.raises(InputError):
            fresh.add_many(groups, ys, pi)
        assert fresh.to_json() == state


def test_too_many_probabilities_are_refused_when_they_are_assigned_and_no_outcome_is_lost() -> None:
    judge = judge_of()
    for n in range(16):
        judge.assign(f"e{n}", "r", n % 2, 0.0, 0.3 + 0.01 * n)
    with pytest.raises(InputError) as caught:
        judge.assign("e16", "r", CANARY, 5.0, 0.5)
    assert caught.value.code == "INPUT_PROBABILITY"
    assert all(judge.finish(f"e{n}", True, 1.0) for n in range(16))
    assert sum(judge.verdict(2.0).figures[name][1] for name in ("incumbent", "canary")) == 16
    judge.begin_stage(1, 3.0)  # the next stage may have others
    staged = CanaryJudge(CanaryConfig(stages=DEFAULT_STAGES))
    for stage in range(3):
        staged.begin_stage(stage, float(stage))
        for n in range(12):
            staged.assign(f"{stage} {n}", "r", n % 2, float(stage), 0.1 + 0.2 * stage + 0.01 * n)
    assert staged.verdict(4000.0).figures["open"] == 0


def test_a_stage_begins_when_the_clock_says_and_not_earlier() -> None:
    judge = judge_of()
    judge.assign("a", "r", INCUMBENT, 1e6, 0.25)
    judge.begin_stage(1, 0.0)
    assert judge.verdict(1.0).figures["elapsed_s"] == 0.0


@pytest.mark.parametrize("unit", [Unit.EPISODE, Unit.ROBOT])
def test_after_a_restart_it_goes_on_exactly_where_it_was(unit: Unit) -> None:
    rng = random.Random(4)
    history = {"tce": [rng.gauss(0, 1) for _ in range(100)], "few": [1.0]}
    config = CanaryConfig.informed(870, 1000, unit=unit, latency_limit_s=1.0, deadline_s=900.0, episodes_per_robot=5)
    one = CanaryJudge(config, history)
    groups = drawn(40, 10)
    one.begin_stage(0, 0.0, groups if unit is Unit.ROBOT else None)
    robots = list(groups)
    two = CanaryJudge.from_json(json.loads(json.dumps(one.to_json())))
    for n in range(400):
        robot = robots[n % 40]
        group = groups[robot] if unit is Unit.ROBOT else int(rng.random() < 0.25)
        pi = None if unit is Unit.ROBOT else 0.25
        success, latency, silent, score = rng.random() < 0.8, rng.random() * 1.1, rng.random() < 0.05, rng.gauss(0, 1)
        for judge in (one, two):
            judge.assign(f"e{n}", robot, group, n * 60.0, pi)
            if not silent:
                judge.finish(f"e{n}", success, n * 60.0 + 30.0, latency, {"tce": [score, score / 2]})
        if n % 37 == 0:
            two = CanaryJudge.from_json(json.loads(json.dumps(two.to_json())))
    assert two.verdict(DAY) == one.verdict(DAY)
    assert two.to_json() == one.to_json()


def changed(document: dict, *path: object, to: object) -> dict:
    """Return a copy in which what lies at this path is another value."""
    copy = json.loads(json.dumps(document))
    *way, last = path
    inner = copy
    for key in way:
        inner = inner[key]
    inner[last] = to
    return copy


def test_what_is_no_state_of_a_judge_is_refused_with_its_code() -> None:
    """Also if only its parts do not fit each other. (It is not signed: who forges all of it consistently is not found.)"""
    judge = scored_judge(latency_limit_s=5.0)
    for n in range(60):
        judge.assign(f"e{n}", "r", n % 2, 1.0, 0.5)
    for n in range(40):
        judge.finish(f"e{n}", True, 2.0, 1.0, {"tce": [0.0], "reversal": [0.0]})
    document = json.loads(json.dumps(judge.to_json()))
    assert CanaryJudge.from_json(document).to_json() == judge.to_json()
    row = document["open"]["units"][0]
    for nonsense in (
        {},
        {**document, "schema": 2},
        {**document, "config": {}},
        changed(document, "config", "alpha", to=2.0),
        changed(document, "totals", to=3),
        changed(document, "totals", to=[[0, 0]]),
        changed(document, "totals", 0, to=[5, -1]),
        changed(document, "totals", 0, to=[20, 20.0]),
        changed(document, "totals", 0, to=[20, 400]),
        changed(document, "stage_units", 0, to=21),
        *(changed(document, "stage", to=value) for value in (7, -2, 0.5, True, "0")),
        *(changed(document, "since_s", to=value) for value in (math.nan, 1e9, "x")),
        changed(document, "canaries", to=5),
        changed(document, "limits", "limits", to={}),
        changed(document, "limits", "limits", "tce", to=math.nan),
        changed(document, "blocks", "tce", to=[1]),
        changed(document, "probabilities", to=[2.0]),
        changed(document, "assignment", "units", to=[[0.5, 1, 1]]),
        changed(document, "assignment", "last", "r", to=7),
        changed(document, "comparison", to={"harm": {"success": [1.0]}, "counts": [], "last_probability": 0.5}),
        changed(document, "comparison", "counts", to=[[0.5, 0, 0, 1000, 0], [0.4, 1000, 1000, 0, 0]]),
        changed(document, "comparison", "harm", "success", 5, to=50.0),  # 60 units at 1/2 give 41.6 at most
        changed(document, "comparison", "harm", "success", 4, to=1.0),  # above its maximum
        changed(document, "open", "units", to=[["e"]]),
        *(changed(document, "open", "units", 0, at, to=value)
          for at, value in ((0, 5), (0, ""), (1, None), (2, 7), (2, True), (3, 2.0), (4, 1),
                            (5, "x"), (5, 1e9), (6, 1), (6, True))),
        changed(document, "open", "units", to=[row, *document["open"]["units"]]),
        changed(document, "open", "left", 0, to=["e0", math.inf]),
    ):  # fmt: skip
        with pytest.raises(LogError) as caught:
            CanaryJudge.from_json(nonsense)
        assert caught.value.code == "LOG_VALUE"


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of everything in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def test_a_state_with_nonsense_anywhere_is_refused_or_can_be_used() -> None:
    """It never raises anything else, when it is read or afterwards."""
    judge = scored_judge(latency_limit_s=5.0)
    for n in range(12):
        judge.assign(f"e{n}", f"r{n % 2}", n % 2, 1.0, 0.5)
        if n < 10 and n != 7:
            judge.finish(f"e{n}", True, 2.0, 1.0, {"tce": [0.0]})
    document = json.loads(json.dumps(judge.to_json()))
    refused = 0
    for path in places(document)[1:]:
        if path[0] == "config":
            continue
        for nonsense in (None, -1, "x", math.nan, 1e300, 10**400, [], {}):
            try:
                other = CanaryJudge.from_json(changed(document, *path, to=nonsense))
            except LogError:
                refused += 1
                continue
            other.verdict(9e4)
            assert not other.finish("e7", True, 9e4)
    assert refused > 700


def test_the_shares_of_alpha_add_up_to_it() -> None:
    judge = CanaryJudge(CanaryConfig(alpha=0.05, latency_limit_s=1.0), {"a": [0.0] * 200, "b": [0.0] * 200})
    judge.begin_stage(0, 0.0)
    levels = [math.exp(-test["decides_at"]) for test in judge.verdict(0.0).figures["tests"].values()]
    assert levels == pytest.approx([0.03, 0.01, 0.005, 0.005])
    assert math.exp(-judge_of().verdict(0.0).figures["tests"]["success"]["decides_at"]) == pytest.approx(0.05)
