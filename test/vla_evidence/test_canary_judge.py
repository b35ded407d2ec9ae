# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary reaches each of its decisions on its grounds where episodes are drawn, and never on missing data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support.canaries import DAY, FLEET, FULL, HOUR, ONE_STAGE, judge_of, mixed, work

from vla_evidence import InputError
from vla_evidence.canary.config import DEFAULT_STAGES, HALF_STAGES, ROBOT_STAGES, CanaryConfig, Stage, Unit
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.episodes import Fate
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.verdict import Decision, Verdict

TWO_STAGES = (Stage("canary", 1.0, 0.25, DAY, 0.1), Stage("early", 1.0, 0.5, DAY, 0.05), FULL)


def test_a_good_canary_advances_when_time_episodes_and_margin_are_there() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.87, 4000)
    early = judge.verdict(DAY / 2)
    assert early.decision is Decision.HOLD and early.message.startswith("canary: waiting: 12 h left")
    verdict = judge.verdict(DAY)
    assert verdict.decision is Decision.ADVANCE and verdict.missing == ()
    assert 0.0 < verdict.figures["excluded_drop"] <= 0.1 and "97.5% sure" in verdict.message
    assert verdict.figures["canary"][1] + verdict.figures["incumbent"][1] == 4000


def test_a_worse_canary_is_rolled_back_at_once_and_for_good() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.5, 400)
    verdict = judge.verdict(60.0)
    assert (verdict.decision, verdict.code) == (Decision.ROLLBACK, "SUCCESS_WORSE")
    assert "lower success" in verdict.message and "rolled back at 20" in verdict.message
    mixed(judge, 0.2, 1.0, 5000, seed=2)
    assert judge.verdict(DAY).decision is Decision.ROLLBACK
    assert {judge.choose("r1", f"after {n}", DAY) for n in range(40)} == {INCUMBENT}
    with pytest.raises(InputError, match="begin another one"):
        judge.begin_stage(1, DAY, FLEET)


def test_a_stage_that_did_not_prove_its_margin_is_prolonged_once_and_then_a_person_decides() -> None:
    judge = judge_of(stages=(Stage("wide", 1.0, 0.5, DAY, 0.02), FULL))
    mixed(judge, 0.87, 0.86, 1200)
    prolonged = judge.verdict(DAY)
    assert prolonged.decision is Decision.HOLD and "prolonged once" in prolonged.message
    mixed(judge, 0.87, 0.86, 1200, seed=2)
    assert judge.verdict(1.5 * DAY).decision is Decision.HOLD
    verdict = judge.verdict(2 * DAY)
    assert verdict.decision is Decision.ASK and verdict.figures["look"] == 2
    assert "not yet shown that success fell by less than 2 points" in verdict.missing
    assert "a person decides" in verdict.message


def test_what_comes_after_a_look_does_not_change_it_and_who_asks_when_does_not_matter() -> None:
    asked, late = judge_of(), judge_of()
    for judge in (asked, late):
        mixed(judge, 0.87, 0.87, 4000)
        work(judge, DAY - HOUR, DAY, lambda version, robot: 0.87)
    first = asked.verdict(DAY + HOUR)
    assert first.decision is Decision.ADVANCE
    for judge in (asked, late):
        work(judge, DAY + HOUR, DAY + 2 * HOUR, lambda version, robot: 0.84, seed=1)
    assert late.verdict(DAY + 2 * HOUR).decision is asked.verdict(DAY + 2 * HOUR).decision is Decision.ADVANCE


def test_a_look_waits_for_what_was_assigned_before_it() -> None:
    judge = judge_of()
    mixed(judge, 0.87, 0.87, 4000)
    judge.choose("r1", "late", DAY - 1.0)
    waits = judge.verdict(DAY)
    assert waits.decision is Decision.HOLD and "the outcomes of 1 episode" in waits.message
    judge.outcome("late", True, DAY + 60.0)
    assert judge.verdict(DAY + 60.0).decision is Decision.ADVANCE


def test_an_improvement_is_asked_for_by_a_margin_of_zero() -> None:
    decisions = []
    for rate in (0.87, 0.95):
        judge = judge_of(stages=(Stage("wide", 1.0, 0.5, DAY, 0.0), FULL))
        mixed(judge, 0.87, rate, 4000)
        decisions.append(judge.verdict(DAY).decision)
    assert decisions == [Decision.HOLD, Decision.ADVANCE]


def test_evidence_that_leans_against_it_delays_an_advance() -> None:
    judge = judge_of(advance_max_evidence=1e-6)
    mixed(judge, 0.87, 0.87, 4000)
    judge.verdict(DAY)
    verdict = judge.verdict(2 * DAY)
    assert verdict.decision is Decision.ASK and any("lean against" in item for item in verdict.missing)


def test_the_last_stage_has_nobody_to_compare_with_and_holds() -> None:
    judge = judge_of(stages=(FULL,))
    assert judge.choose("r1", "e", 1.0) == CANARY
    assert judge.outcome("e", False, 2.0) is Fate.COUNTED
    verdict = judge.verdict(3.0)
    assert verdict.decision is Decision.HOLD and "nobody is left to compare with" in verdict.message


def test_the_shares_of_alpha_add_up_to_it() -> None:
    judge = CanaryJudge(CanaryConfig(latency_limit_s=1.0), score_history={"a": [0.0] * 200, "b": [0.0] * 200})
    judge.begin_stage(0, 0.0, FLEET)
    levels = [math.exp(-test["decides_at"]) for test in judge.verdict(0.0).figures["tests"].values()]
    assert levels == pytest.approx([0.03, 0.01, 0.005, 0.005])
    config = CanaryConfig(stages=ROBOT_STAGES)
    assert [config.stage_alpha(index) for index in range(3)] == pytest.approx([0.025, 0.0125, 0.0125])


HISTORY = {"tce": np.random.default_rng(1).normal(size=200).tolist(), "short": [0.0] * 5}


def judged_by(
    episodes: int,
    latency_s: Callable[[int], float | None],
    scores: Callable[[int], Sequence[float]],
    experiment: str = "canary",
) -> Verdict:
    """Return what is said of episodes that all succeed; ``latency_s`` and ``scores`` by version."""
    judge = CanaryJudge(CanaryConfig(stages=ONE_STAGE, latency_limit_s=1.6), experiment, HISTORY)
    judge.begin_stage(0, 0.0, FLEET)
    for n in range(episodes):
        version = judge.choose(f"r{n % 7}", f"e{n}", 0.1 * n)
        judge.outcome(f"e{n}", True, 0.1 * n, latency_s(version), {"tce": scores(version)})
    return judge.verdict(0.1 * episodes)


@pytest.mark.parametrize(
    ("slower", "shift", "code"), [(0.0, 0.3, ""), (0.5, 0.3, "LATENCY_WORSE"), (0.0, 2.0, "SCORES_WORSE")]
)
def test_latency_and_scores_are_judged_beside_success(slower: float, shift: float, code: str) -> None:
    rng = np.random.default_rng(1)
    verdict = judged_by(1200, lambda v: rng.lognormal(slower * v, 0.3), lambda v: rng.normal(shift * v, 1.0, 5))
    assert verdict.code == code
    assert "not judged: short (5 of 20 past values)" in verdict.message


def test_what_raises_the_scores_of_both_versions_blames_nobody() -> None:
    """Another task, a lower sun: 2 σ, 60 rollouts."""
    rng = np.random.default_rng(3)
    found = [judged_by(400, lambda v: 1.0, lambda v: rng.normal(2.0, 1.0, 5), f"{n}") for n in range(60)]
    rolled_back = sum(verdict.decision is Decision.ROLLBACK for verdict in found)
    assert rolled_back / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_a_latency_or_a_score_that_the_canary_alone_does_not_report_counts_against_it() -> None:
    assert judged_by(300, lambda v: None if v else 0.5, lambda v: [0.0, 0.1]).code == "LATENCY_WORSE"
    assert judged_by(300, lambda v: 0.5, lambda v: [] if v else [0.0, 0.1]).code == "SCORES_WORSE"


def test_without_data_it_never_advances() -> None:
    judge = judge_of()
    for now in (DAY, 2 * DAY):
        verdict = judge.verdict(now)
    assert verdict.decision is Decision.ASK and "0 of 50 canary episodes" in verdict.missing


def test_a_stage_of_which_nothing_is_heard_never_advances_and_robots_are_named() -> None:
    judge = judge_of()
    work(judge, 0.0, DAY, lambda version, robot: 1.0, lost=lambda version: 1.0, robots=FLEET[:8])
    for now in (DAY + HOUR, 2 * DAY):
        verdict = judge.verdict(now)
    assert verdict.decision is not Decision.ADVANCE
    assert "silent, their episodes counted as failures: r0, r1, r2, r3, r4 and 3 more" in verdict.message


@pytest.mark.parametrize(("lost", "decision"), [(0.02, Decision.ADVANCE), (0.10, Decision.HOLD)])
def test_few_lost_outcomes_are_failures_of_both_versions_and_many_keep_it_from_advancing(
    lost: float, decision: Decision
) -> None:
    judge = judge_of()
    work(judge, 0.0, DAY, lambda version, robot: 0.95, lost=lambda version: lost, every_s=lambda version: 1200.0)
    verdict = judge.verdict(DAY + HOUR)
    assert verdict.decision is decision
    assert (sum(verdict.figures["lost_in_stage"]) > 0.01 * sum(verdict.figures["in_stage"])) is True
    assert any("lost, more than 5%" in item for item in verdict.missing) is (decision is Decision.HOLD)


def test_an_incumbent_that_loses_more_outcomes_does_not_hide_a_drop() -> None:
    """The incumbent loses 4.5 % of its outcomes, the canary none, and success falls by 4 points: the margin is 3."""
    passed = 0
    for seed in range(6):
        judge = judge_of(stages=(Stage("early", 1.0, 0.5, DAY, 0.03), FULL), experiment=f"{seed}", alpha=1e-9)
        work(
            judge,
            0.0,
            DAY,
            lambda v, robot: 0.86 if v else 0.9,
            lost=lambda v: 0.0 if v else 0.045,
            robots=FLEET[:20],
            seed=seed,
        )
        verdict = judge.verdict(DAY + HOUR)
        passed += verdict.decision is Decision.ADVANCE
    assert passed == 0 and any("comparable losses" in item for item in verdict.missing)


def test_an_outcome_is_counted_late_repeated_or_unknown() -> None:
    judge = judge_of(deadline_s=100.0)
    version = judge.choose("r1", "a", 0.0)
    assert judge.choose("r1", "a", 50.0) == version
    assert judge.outcome("a", True, 10.0) is Fate.COUNTED
    assert judge.outcome("a", False, 11.0) is Fate.REPEATED
    judge.choose("r1", "b", 20.0)
    assert judge.outcome("b", True, 120.0) is Fate.LATE
    assert judge.outcome("c", True, 121.0) is Fate.UNKNOWN
    verdict = judge.verdict(121.0)
    assert sum(verdict.figures[name][1] for name in ("incumbent", "canary")) == 2
    assert "outcomes ignored: 1 repeated, 1 late, 1 unknown" in verdict.message
    for wrong in (("r2", "b", 121.0), ("stranger", "d", 121.0), ("r1", "e", 20.0)):
        with pytest.raises(InputError):
            judge.choose(*wrong)


def test_outcomes_count_in_the_order_of_assignment() -> None:
    judge = judge_of(deadline_s=100.0)
    for n in range(5):
        judge.choose(f"r{n}", f"e{n}", 0.0)
    for n in (4, 3, 2, 1):
        judge.outcome(f"e{n}", True, 1.0)
    held = judge.verdict(2.0)
    assert sum(held.figures["in_stage"]) == 0
    assert "5 episodes open, 4 of them ended and waiting for one assigned before" in held.message
    judge.outcome("e0", True, 3.0)
    assert sum(judge.verdict(3.0).figures["in_stage"]) == 5


def test_only_a_persons_decision_begins_a_stage_without_an_advance() -> None:
    judge = judge_of(stages=TWO_STAGES)
    with pytest.raises(InputError, match="a person must decide"):
        judge.begin_stage(1, DAY, FLEET)
    judge.decide("anna", "advance", "a holiday", DAY)
    assert "anna decided that the next stage may begin" in judge.verdict(DAY).message
    judge.begin_stage(1, DAY, FLEET)
    with pytest.raises(InputError, match="stages only go forward, to 2: now 1, asked for 0"):
        judge.begin_stage(0, DAY, FLEET)
    mixed(judge, 0.87, 0.9, 4000)
    assert judge.verdict(2 * DAY).decision is Decision.ADVANCE
    judge.begin_stage(2, 2 * DAY, FLEET)
    judge.decide("anna", "rollback", "a customer asked", 2 * DAY)
    assert (judge.verdict(2 * DAY).decision, judge.verdict(2 * DAY).code) == (Decision.ROLLBACK, "PERSON_DECIDED")


def test_what_one_stage_showed_lets_nothing_pass_in_the_next_and_harm_is_looked_for_anew() -> None:
    judge = judge_of(stages=TWO_STAGES)
    mixed(judge, 0.9, 0.9, 8000)
    assert judge.verdict(DAY).decision is Decision.ADVANCE
    judge.begin_stage(1, DAY, FLEET)
    mixed(judge, 0.9, 0.84, 400)
    assert judge.verdict(2 * DAY).decision is not Decision.ADVANCE
    mixed(judge, 0.9, 0.7, 1000, seed=2)
    assert judge.verdict(2 * DAY + 1).decision is Decision.ROLLBACK


def test_where_only_a_stages_robots_hold_both_versions_the_others_are_no_evidence() -> None:
    judge = CanaryJudge(CanaryConfig(stages=HALF_STAGES))
    holders = judge.begin_stage(0, 0.0, FLEET)
    assert len(holders) == 8
    versions = {robot: {judge.choose(robot, f"{robot}/{n}", float(n)) for n in range(20)} for robot in FLEET}
    assert all(versions[robot] == ({0, 1} if robot in holders else {0}) for robot in FLEET)
    for robot in FLEET:
        for n in range(20):
            judge.outcome(f"{robot}/{n}", True, 30.0)
    assert sum(judge.verdict(40.0).figures["in_stage"]) == 20 * len(holders)
    judge.robots_changed(50.0, joined=["new"])
    assert judge.choose("new", "n", 60.0) == INCUMBENT


def test_one_by_one_is_the_same_as_many_at_once() -> None:
    rng = np.random.default_rng(5)
    one, many = judge_of(), judge_of()
    versions, ys = [], rng.random(400) < 0.8
    for n in range(400):
        versions.append(one.choose("r1", f"e{n}", 0.0))
        assert one.outcome(f"e{n}", bool(ys[n]), 0.0) is Fate.COUNTED
    many.add_many(versions[:150], ys[:150])
    many.add_many(versions[150:], ys[150:])
    first, second = one.verdict(5.0), many.verdict(5.0)
    assert (first.decision, first.message) == (second.decision, second.message)
    assert first.figures["tests"]["success"] == pytest.approx(second.figures["tests"]["success"], abs=1e-9)


def test_a_version_that_takes_longer_is_not_blamed_for_being_late() -> None:
    """60 robots; equal, but ten times as long with the canary. In the order of ending, a test errs in 20 % of such rollouts."""
    runs, rolled_back = 60, 0
    fleet = [f"r{n}" for n in range(60)]
    for seed in range(runs):
        judge = CanaryJudge(CanaryConfig(stages=(Stage("c", 1.0, 0.5, 1e6, 0.1), FULL)), f"{seed}")
        judge.begin_stage(0, 0.0, fleet)
        work(judge, 0.0, 900.0, lambda v, robot: 0.87, every_s=lambda v: 600.0 if v else 60.0, robots=fleet, seed=seed)
        rolled_back += judge.verdict(900.0).decision is Decision.ROLLBACK
    assert rolled_back / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_priors_come_from_the_registry_and_limits_from_what_the_incumbent_did() -> None:
    config = CanaryConfig.of_incumbent(870, 1000, [60.0] * 98 + [300.0, 400.0])
    assert config.priors[0].mean == pytest.approx(0.87, abs=1e-3) and config.priors[1].mean < 0.78
    assert config.deadline_s == 2000.0 and config.latency_limit_s == 60.0
    assert CanaryConfig.of_incumbent(870, 1000, [1.0] * 5).deadline_s == 3600.0


def test_settings_go_through_json_and_those_that_cannot_be_are_refused() -> None:
    config = CanaryConfig(stages=ROBOT_STAGES, history=(870.0, 1000.0))
    assert CanaryConfig.from_json(config.to_json()) == config
    assert config.unit is Unit.ROBOT and CanaryConfig().unit is Unit.EPISODE
    good = CanaryConfig().to_json()
    stage = good["stages"][0]
    for change in (
        {"alpha": 0.0},
        {"alpha": "0.05"},
        {"deadline_s": 0.0},
        {"min_episodes": 0},
        {"advance": "always"},
        {"history": [11, 10]},
        {"harm_margin": 1.0},
        {"stages": []},
        {"stages": [{**stage, "share": 0.0}]},
        {"stages": [{**stage, "margin": -0.1}]},
        {"stages": [{**stage, "duration_s": math.nan}]},
        {"stages": [stage, {**stage, "share": 0.5, "probability": 1.0}]},
        {"colour": "red"},
    ):
        with pytest.raises(InputError):
            CanaryConfig.from_json({**good, **change})


@pytest.mark.parametrize("fleet", [1, 2, 7, 19, 20, 21, 40, 1000])
def test_a_stage_has_at_least_one_robot_and_as_many_as_are_drawn(fleet: int) -> None:
    robots = [f"r{n}" for n in range(fleet)]
    for stage in (*ROBOT_STAGES, *DEFAULT_STAGES):
        judge = CanaryJudge(CanaryConfig(stages=(stage, FULL)))
        assert len(judge.begin_stage(0, 0.0, robots)) == stage.robots(fleet) >= 1
