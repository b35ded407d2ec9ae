# SPDX-License-Identifier: Apache-2.0
"""Where a robot runs one version, the judge of a canary compares robots, and says at the start if there are too few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.canaries import DAY, FLEET, FULL, HOUR, work

from vla_evidence import InputError
from vla_evidence.canary.config import ROBOT_STAGES, CanaryConfig, Stage
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.rollouts import ROLLED_BACK, judged
from vla_evidence.verdict import Decision, Verdict

STAGE = Stage("canary", 0.25, 1.0, DAY, 0.1)
TWO = (STAGE, Stage("early", 0.5, 1.0, DAY, 0.1), FULL)


def judge_of(
    experiment: str = "robots", fleet: list[str] = FLEET, stages=(STAGE, FULL), history=None, **settings
) -> CanaryJudge:
    judge = CanaryJudge(CanaryConfig(stages=stages, **settings), experiment)
    judge.begin_stage(0, 0.0, fleet, history)
    return judge


def day(judge: CanaryJudge, rate, seed: int = 0, **how) -> Verdict:
    work(judge, 0.0, DAY, rate, seed=seed, **{"every_s": lambda version: 1800.0, **how})
    return judge.verdict(DAY + 2 * HOUR)


def test_a_worse_version_is_rolled_back_and_an_equal_one_is_a_persons_decision_with_what_they_need() -> None:
    history = {robot: (90.0, 100.0) for robot in FLEET}
    bad = day(judge_of(history=history), lambda version, robot: 0.65 if version else 0.9)
    assert (bad.decision, bad.code) == (Decision.ROLLBACK, "SUCCESS_WORSE")
    good = day(judge_of(history=history), lambda version, robot: 0.9)
    assert good.decision is Decision.ASK and good.missing == ()
    low, high = good.figures["difference"]
    assert -0.1 < low < 0.0 < high < 0.1
    assert len(good.figures["worst"]) == 3 and "worst canaries: r" in good.message and "(before 90%)" in good.message
    assert "on 10 new canary robots and" in good.message and "a person decides" in good.message


def test_it_advances_by_itself_only_if_that_was_chosen_and_no_robot_fell_far() -> None:
    history = {robot: (90.0, 100.0) for robot in FLEET}
    alike = day(judge_of(history=history, advance="same_shift"), lambda version, robot: 0.9)
    assert alike.decision is Decision.ADVANCE and "changes every robot alike" in alike.message
    judge = judge_of(history=history, advance="same_shift")
    broken = judge.begin_stage(0, 0.0, FLEET)[0]
    one_broken = day(judge, lambda version, robot: 0.3 if robot == broken else 0.92)
    assert one_broken.decision is Decision.ASK and any(broken in item for item in one_broken.missing)
    judge = judge_of(history=history, advance="same_shift")
    judge.robots_changed(HOUR, failed=[broken])
    failed = day(judge, lambda version, robot: 0.9)
    assert failed.decision is Decision.ASK and any("own trial" in item for item in failed.missing)
    worse = day(
        judge_of(history=history, advance="same_shift", alpha=1e-6), lambda version, robot: 0.78 if version else 0.9
    )
    assert worse.decision is Decision.ASK and any("less than 10 points" in item for item in worse.missing)


def test_below_thirty_robots_it_says_at_the_start_that_robots_cannot_be_judged() -> None:
    judge = judge_of(fleet=FLEET[:20], advance="same_shift")
    said = judge.verdict(0.0).message
    assert (
        "20 robots with one version each cannot be judged (30 are needed)" in said and "draw episodes or hours" in said
    )
    over = day(judge, lambda version, robot: 0.9, robots=FLEET[:20])
    assert over.decision is Decision.ASK and any("cannot be judged" in item for item in over.missing)


def rolled_back(canary: float, runs: int, seed: int, per_hour: float) -> float:
    """Return the share of rollouts of 60 robots that are rolled back; all three stages pass otherwise."""
    stages = tuple(Stage(s.name, s.share, 1.0, DAY / 3, 0.999) for s in ROBOT_STAGES[:3])
    config = CanaryConfig(stages=(*stages, FULL), advance="same_shift", min_episodes=1)
    rng = np.random.default_rng(seed)
    found = judged(FleetModel(60, 0.05), (0.87, canary), per_hour, config, runs, rng, lambda done: None)
    return found.share(ROLLED_BACK)


def test_a_version_that_does_the_same_on_every_robot_is_rolled_back_in_at_most_alpha_of_rollouts() -> None:
    """Robots differ, all three stages and twelve looks, 60 rollouts: the standard error at 5 % is 2.8 %."""
    assert rolled_back(0.87, 60, 1, per_hour=2.0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_a_drop_from_87_to_75_percent_is_found() -> None:
    assert rolled_back(0.75, 40, 2, per_hour=6.0) >= 0.95


@pytest.mark.parametrize("slow", [INCUMBENT, CANARY])
def test_a_version_that_is_only_slower_is_not_blamed_though_conditions_change_for_both(slow: int) -> None:
    """Three times as long, success falls from 95 to 65 % during the day; 40 stages: the standard error at 5 % is 3.4 %."""
    rolled_back = 0
    for seed in range(40):
        judge, clock = judge_of(f"{seed}", deadline_s=2 * HOUR), [0.0]

        def rate(version: int, robot: str, clock=clock) -> float:
            return 0.95 - 0.3 * clock[0] / DAY

        verdict = day(judge, rate, seed, every_s=lambda v: 3600.0 if v == slow else 1200.0, clock=clock)
        rolled_back += verdict.decision is Decision.ROLLBACK
    assert rolled_back / 40 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)


@pytest.mark.parametrize("hangs", [INCUMBENT, CANARY])
def test_a_failure_that_is_reported_and_one_that_is_silent_weigh_the_same(hangs: int) -> None:
    """Every failure of one version is silence until the deadline; both succeed alike."""
    rolled_back = 0
    for seed in range(40):
        judge, rng, events = judge_of(f"{seed}", deadline_s=3600.0), np.random.default_rng(seed), []
        canaries = judge.begin_stage(0, 0.0, FLEET)
        for robot in FLEET:
            now, number, version = float(rng.uniform(0, 1800)), 0, int(robot in canaries)
            while now < DAY:
                success = bool(rng.random() < 0.8)
                events.append((now, 0, robot, f"{robot}/{number}", success))
                silent = version == hangs and not success
                now += 3601.0 if silent else 1800.0
                if not silent:
                    events.append((now, 1, robot, f"{robot}/{number}", success))
                now, number = now + 1.0, number + 1
        for now, ended, robot, name, success in sorted(events):
            _ = judge.outcome(name, success, now) if ended else judge.choose(robot, name, now)
        rolled_back += judge.verdict(DAY + HOUR).decision is Decision.ROLLBACK
    assert rolled_back / 40 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)


def test_looks_are_by_the_clock_whoever_asks_when() -> None:
    asked, late = judge_of("who"), judge_of("who")
    for hour in range(24):
        for judge in (asked, late):
            work(judge, hour * HOUR, (hour + 1) * HOUR, lambda v, robot: 0.6 if v else 0.8, seed=hour)
        asked.verdict((hour + 1) * HOUR)
    first, second = asked.verdict(DAY + 2 * HOUR), late.verdict(DAY + 2 * HOUR)
    assert (first.decision, first.code, first.figures) == (second.decision, second.code, second.figures)


def test_a_rollback_that_was_found_is_not_lost_when_nobody_asked_for_it() -> None:
    judge = judge_of(stages=TWO)
    work(judge, 0.0, DAY / 2, lambda version, robot: 0.1 if version else 0.9)
    judge.decide("anna", "advance", "in a hurry", DAY / 2)
    judge.begin_stage(1, DAY / 2, FLEET)
    assert judge.verdict(DAY / 2).code == "SUCCESS_WORSE"


def test_a_later_stage_compares_only_its_new_canaries_with_those_who_remain() -> None:
    judge = judge_of(stages=TWO)
    first = set(judge.begin_stage(0, 0.0, FLEET))
    day(judge, lambda version, robot: 0.9)
    judge.decide("anna", "advance", "looks good", DAY + 2 * HOUR)
    joined = [*FLEET, "new1", "new2"]
    second = set(judge.begin_stage(1, DAY + 2 * HOUR, joined))
    assert first <= second and len(second - first - {"new1", "new2"}) >= 8
    begin = DAY + 2 * HOUR
    # Only the canaries of the first stage and the robots that joined fail now: they are no part of the comparison.
    work(judge, begin, begin + DAY, lambda v, r: 0.1 if r in first or r.startswith("new") else 0.9, robots=joined)
    verdict = judge.verdict(begin + DAY + 2 * HOUR)
    assert verdict.decision is Decision.ASK
    assert f"on {len(second - first - {'new1', 'new2'})} new canary robots" in verdict.message


def test_robots_of_which_nothing_is_heard_show_nothing_and_let_nothing_pass() -> None:
    judge = judge_of(advance="same_shift")
    work(judge, 0.0, DAY, lambda version, robot: 0.9, robots=FLEET[:4])
    verdict = judge.verdict(DAY + 2 * HOUR)
    assert verdict.decision is Decision.ASK and "robots of both versions to compare" in verdict.missing


def test_slow_robots_and_those_whose_scores_exceed_the_limit_are_rolled_back_though_they_succeed() -> None:
    rng = np.random.default_rng(1)
    for slow, shift, code in ((3.0, 0.0, "LATENCY_WORSE"), (1.0, 2.0, "SCORES_WORSE"), (1.0, 0.0, "")):
        config = CanaryConfig(stages=(STAGE, FULL), latency_limit_s=2.0)
        judge = CanaryJudge(config, "scores", {"tce": rng.normal(size=200).tolist()})
        judge.begin_stage(0, 0.0, FLEET)
        for n in range(12):
            for robot in FLEET:
                version = judge.choose(robot, f"{robot}/{n}", 1000.0 * n)
                latency = float(rng.lognormal(0.0, 0.2)) * (slow if version else 1.0)
                scores = {"tce": rng.normal(shift * version, 1.0, 4).tolist()}
                judge.outcome(f"{robot}/{n}", True, 1000.0 * n + 500.0, latency, scores)
        assert judge.verdict(DAY).code == code


def test_an_episode_of_a_robot_runs_its_robots_version_and_a_stranger_is_refused() -> None:
    judge = judge_of()
    canaries = set(judge.begin_stage(0, 0.0, FLEET))
    assert all(judge.choose(robot, f"e{robot}", 0.0) == int(robot in canaries) for robot in FLEET)
    with pytest.raises(InputError, match="robots_changed"):
        judge.choose("stranger", "x", 0.0)
