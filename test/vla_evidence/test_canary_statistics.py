# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary as a whole is wrong no more often than it promises, by simulation, up to three standard errors."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest

from vla_evidence import CANARY, INCUMBENT, TwoSampleEProcess
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.stages import Stage
from vla_evidence.canary.verdict import CanaryDecision

ALPHA = 0.05
STAGES = (Stage("a", 0.05, 10.0, 0.1), Stage("b", 0.25, 10.0, 0.05), Stage("c", 0.5, 10.0, 0.02))
EPISODES = (2400, 1200, 800)


def at_most(share: float, bound: float, runs: int) -> bool:
    return share <= bound + 3 * math.sqrt(bound * (1 - bound) / runs)


def rollout(rng: np.random.Generator, canary: float, slower: float = 0.0, shift: float = 0.0) -> CanaryJudge:
    """Return a judge after three stages; canary: its success rate, slower: of log latency, shift: of its scores [σ]."""
    history = {source: rng.normal(size=150).tolist() for source in ("tce", "reversal")}
    judge = CanaryJudge(CanaryConfig.informed(870, 1000, stages=STAGES, latency_limit_s=1.6), history)
    for index, (stage, episodes) in enumerate(zip(STAGES, EPISODES, strict=True)):
        judge.begin_stage(index, 10.0 * index)
        groups = (rng.random(episodes) < stage.share).astype(int)
        ys = (rng.random(episodes) < np.where(groups, canary, 0.87)).astype(int)
        scores = {source: rng.normal(shift * groups[:, None], 1.0, (episodes, 3)) for source in history}
        judge.add_many(groups, ys, stage.share, rng.lognormal(slower * groups, 0.3), scores)
    return judge


@pytest.mark.parametrize(
    ("slower", "shift"), [(0.0, 0.0), (0.05, 0.3)], ids=["equal", "a little slower, scores shifted"]
)
def test_a_good_canary_is_rolled_back_in_at_most_alpha_of_rollouts(slower: float, shift: float) -> None:
    """All stages, looks and judges together."""
    runs, rng = 200, np.random.default_rng(1)
    verdicts = [rollout(rng, 0.87, slower, shift).verdict(29.0) for _ in range(runs)]
    assert at_most(sum(v.decision is CanaryDecision.ROLLBACK for v in verdicts) / runs, ALPHA, runs)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"canary": 0.75}, "SUCCESS_WORSE"),
        ({"canary": 0.87, "slower": 0.5}, "LATENCY_WORSE"),
        ({"canary": 0.87, "shift": 2.0}, "SCORES_WORSE"),
    ],
)
def test_a_bad_canary_is_rolled_back_and_for_the_right_reason(change: dict[str, float], code: str) -> None:
    runs, rng = 40, np.random.default_rng(2)
    verdicts = [rollout(rng, **change).verdict(29.0) for _ in range(runs)]
    assert sum(v.code == code for v in verdicts) >= 0.9 * runs


@pytest.mark.parametrize(("stage", "drop"), [(0, 0.1), (1, 0.05)])
def test_a_canary_that_is_worse_by_the_margin_advances_in_at_most_alpha_of_stages(stage: int, drop: float) -> None:
    """Looked at twelve times; harm is forgiven, so that nothing but the margin stands in its way."""
    runs, rng, wrong = 150, np.random.default_rng(3), 0
    share = STAGES[stage].share
    config = CanaryConfig.informed(870, 1000, stages=STAGES, harm_margin=0.5, min_episodes=5, advance_max_evidence=1e9)
    for _ in range(runs):
        judge = CanaryJudge(config)
        judge.begin_stage(stage, 0.0)
        for look in range(12):
            groups = (rng.random(400) < share).astype(int)
            judge.add_many(groups, (rng.random(400) < 0.87 - drop * groups).astype(int), share)
            if judge.verdict(100.0 + look).decision is CanaryDecision.ADVANCE:
                wrong += 1
                break
    assert at_most(wrong / runs, ALPHA, runs)


def slow_canary(rng: np.random.Generator) -> tuple[CanaryJudge, TwoSampleEProcess]:
    """60 robots; equal, but ten times as long with the canary. Return the judge, and a test in the order of ending."""
    judge, in_order_of_ending = CanaryJudge(CanaryConfig(stages=(Stage("c", 0.5, 1e6, 0.1),))), TwoSampleEProcess()
    judge.begin_stage(0, 0.0)
    numbers, running = itertools.count(), []

    def start(robot: int, now: float) -> None:
        group, name = int(rng.random() < 0.5), f"e{next(numbers)}"
        judge.assign(name, f"r{robot}", group, now, 0.5)
        length = rng.exponential(600.0 if group == CANARY else 60.0)
        heapq.heappush(running, (now + length, name, robot, group))

    for robot in range(60):
        start(robot, 0.0)
    for _ in range(240):
        now, name, robot, group = heapq.heappop(running)
        success = bool(rng.random() < 0.87)
        judge.finish(name, success, now)
        in_order_of_ending.update(group, success, 0.5)
        start(robot, now)
    return judge, in_order_of_ending


def test_a_version_that_takes_longer_is_not_convicted_for_being_late() -> None:
    """In the order of ending, the outcomes known at first are the quick version's, and the test would be void."""
    runs, rng = 250, np.random.default_rng(4)
    results = [slow_canary(rng) for _ in range(runs)]
    rolled_back = sum(judge.verdict(0.0).decision is CanaryDecision.ROLLBACK for judge, _ in results) / runs
    in_order_of_ending = sum(process.rejects(ALPHA) for _, process in results) / runs
    assert at_most(rolled_back, ALPHA, runs)
    assert in_order_of_ending >= 0.12  # 0.2 or so


def test_one_by_one_is_the_same_as_in_batches() -> None:
    rng = np.random.default_rng(5)
    config = CanaryConfig(stages=STAGES, latency_limit_s=1.0)
    one, many = CanaryJudge(config), CanaryJudge(config)
    groups, ys, latencies = (
        (rng.random(400) < 0.25).astype(int),
        (rng.random(400) < 0.8).astype(int),
        rng.random(400) * 1.1,
    )
    for judge in (one, many):
        judge.begin_stage(1, 0.0)
    for n in range(400):
        one.assign(f"e{n}", "r", int(groups[n]), 0.0, 0.25)
        assert one.finish(f"e{n}", bool(ys[n]), 0.0, float(latencies[n]))
    many.add_many(groups[:150], ys[:150], 0.25, latencies[:150])
    many.add_many(groups[150:], ys[150:], 0.25, latencies[150:])
    first, second = one.verdict(5.0), many.verdict(5.0)
    assert (first.decision, first.excluded_drop, first.message) == (
        second.decision,
        second.excluded_drop,
        second.message,
    )
    for name, figures in first.figures["tests"].items():
        assert figures == pytest.approx(second.figures["tests"][name], abs=1e-9)


def test_ten_million_episodes_pass_in_bounded_memory() -> None:
    rng = np.random.default_rng(6)
    judge = CanaryJudge(CanaryConfig(stages=STAGES))
    judge.begin_stage(0, 0.0)
    part = 250_000
    tracemalloc.start()
    for n in range(40):
        groups = (rng.random(part) < 0.05).view(np.int8)
        judge.add_many(groups, rng.random(part) < 0.87, 0.05)
        if n % 10 == 0:
            judge.verdict(float(n))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    verdict = judge.verdict(50.0)
    assert verdict.decision is CanaryDecision.ADVANCE
    assert verdict.figures["canary"][1] + verdict.figures["incumbent"][1] == 10_000_000
    assert peak < 64 * 2**20 and len(json.dumps(judge.to_json())) < 4096


def test_what_waits_is_bounded_by_what_runs() -> None:
    """One robot that never answers holds others back for its deadline, no longer; nothing of the past is kept."""
    judge = CanaryJudge(CanaryConfig(stages=STAGES, deadline_s=100.0))
    judge.begin_stage(0, 0.0)
    longest = 0
    for n in range(20_000):
        judge.assign(f"e{n}", f"r{n % 50}", INCUMBENT if n % 20 else CANARY, float(n), 0.05)
        if n % 50:
            judge.finish(f"e{n}", True, float(n))
        longest = max(longest, judge.verdict(float(n)).figures["open"] if n % 500 == 99 else 0)
    assert 0 < longest <= 101
    assert len(json.dumps(judge.to_json())) < 40_000
