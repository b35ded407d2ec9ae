# SPDX-License-Identifier: Apache-2.0
"""What was not heard, comes late or twice, or was not drawn as stated, is never good news."""

from __future__ import annotations

import random

import numpy as np
import pytest
from support.canaries import DAY, HOUR, ONE_STAGE, feed, judge_of, mixed

from vla_evidence import CANARY, INCUMBENT, InputError
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.stages import DEFAULT_STAGES, Stage
from vla_evidence.canary.verdict import CanaryDecision


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


def test_blocks_count_when_their_episode_does() -> None:
    """One that ended but waits for another that was assigned before it is no exposure yet."""
    judge = CanaryJudge(CanaryConfig(stages=ONE_STAGE, deadline_s=600.0), {"tce": [0.0] * 100})
    judge.begin_stage(0, 0.0)
    judge.assign("open", "r", INCUMBENT, 0.0, 0.25)
    for n in range(20):
        judge.assign(f"e{n}", f"r{n}", int(n % 4 == 0), 1.0, 0.25)
        judge.finish(f"e{n}", True, 2.0, scores={"tce": [0.0] * 4})
    assert "blocks of tce of the canary (0 of 20)" in judge.verdict(3.0).missing
    judge.finish("open", True, 4.0)
    missing = judge.verdict(5.0).missing
    assert missing and not any("blocks" in text for text in missing)


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
