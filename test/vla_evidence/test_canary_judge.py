# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary reaches each of its verdicts on its grounds, stage by stage."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
from support.canaries import DAY, feed, judge_of, mixed, scored, scored_judge

from vla_evidence import CANARY, INCUMBENT, InputError
from vla_evidence.canary.config import CanaryConfig, latency_limit
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.stages import Stage
from vla_evidence.canary.verdict import CanaryDecision


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


def test_the_last_stage_has_nobody_to_compare_with_and_holds() -> None:
    judge = judge_of()
    judge.begin_stage(1, DAY)
    verdict = judge.verdict(2 * DAY)
    assert verdict.decision is CanaryDecision.HOLD and "nobody is left to compare with" in verdict.message
    with pytest.raises(InputError, match="nobody left"):
        judge.assign("e", "r", CANARY, 2 * DAY, 0.5)
    with pytest.raises(InputError, match="nobody left"):
        judge.add_many([1], [1], 0.5)


def test_a_stage_begins_when_the_clock_says_and_not_earlier() -> None:
    judge = judge_of()
    judge.assign("a", "r", INCUMBENT, 1e6, 0.25)
    judge.begin_stage(1, 0.0)
    assert judge.verdict(1.0).figures["elapsed_s"] == 0.0


def test_the_shares_of_alpha_add_up_to_it() -> None:
    judge = CanaryJudge(CanaryConfig(alpha=0.05, latency_limit_s=1.0), {"a": [0.0] * 200, "b": [0.0] * 200})
    judge.begin_stage(0, 0.0)
    levels = [math.exp(-test["decides_at"]) for test in judge.verdict(0.0).figures["tests"].values()]
    assert levels == pytest.approx([0.03, 0.01, 0.005, 0.005])
    assert math.exp(-judge_of().verdict(0.0).figures["tests"]["success"]["decides_at"]) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("rate", "episodes", "words"),
    [
        (0.9, 600, r"if it goes on like this, about [\d.]+ (h|days) more would exclude it"),
        (0.79, 600, "more of the same would not exclude it"),
    ],
)
def test_who_is_asked_is_told_how_much_longer_the_margin_would_take(rate: float, episodes: int, words: str) -> None:
    judge = judge_of(stages=(Stage("early", 0.25, DAY, 0.05),))
    mixed(judge, 0.87, rate, episodes, pi=0.25, seed=2)
    assert not re.search(words, judge.verdict(0.5 * DAY).message)
    verdict = judge.verdict(DAY)
    assert verdict.decision is CanaryDecision.INCONCLUSIVE and re.search(words, verdict.message)


def test_the_time_that_a_margin_would_still_take_is_that_of_outcomes_and_not_of_waiting() -> None:
    rng = np.random.default_rng(3)
    judge = judge_of(stages=(Stage("early", 0.25, DAY, 0.05),))
    for n in range(600):
        group = int(rng.random() < 0.25)
        judge.assign(f"e{n}", f"r{n % 20}", group, n * 144.0, 0.25)
        judge.finish(f"e{n}", bool(rng.random() < 0.9), n * 144.0 + 60.0)
    told = [re.findall("about .* more", judge.verdict(days * DAY).message) for days in (1, 30)]
    assert len(told[0]) == 1 and told[0] == told[1]
