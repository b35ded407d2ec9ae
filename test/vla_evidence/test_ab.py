# SPDX-License-Identifier: Apache-2.0
"""The A/B judges decide what their tests decide, and say so in words and numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vla_evidence.ab.abtest import ABTest
from vla_evidence.ab.pairs import PairedABJudge
from vla_evidence.ab.robots import UnpairedABJudge
from vla_evidence.assignment import A, B, arm
from vla_evidence.errors import InputError
from vla_evidence.sequential.sign_test import SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.verdict import Decision, Verdict

ROBOTS = itertools.count()


def run_pairs(judge: PairedABJudge, pairs: Sequence[tuple], latencies_s: Sequence[tuple] = ()) -> Verdict:
    """Let another robot run pairs that come out so, (A, B) each; ``latencies_s`` likewise."""
    robot = f"r{next(ROBOTS)}"
    for number, outcome in enumerate(pairs):
        for half in "12":
            name = f"{robot}/{number}/{half}"
            version = judge.choose(robot, name, 0.0)
            judge.outcome(name, bool(outcome[version]), 0.0, latencies_s[number][version] if latencies_s else None)
    return judge.verdict()


def test_before_anything_is_known_it_goes_on() -> None:
    for judge in (PairedABJudge(100), UnpairedABJudge(100)):
        verdict = judge.verdict()
        assert verdict.decision is judge.decision is Decision.CONTINUE
        assert verdict.figures["A"]["rate"] is None and verdict.figures["A"]["interval"] == [0.0, 1.0]
        assert verdict.message.startswith("not decided yet: A no episode, B no episode")
        assert "latency was not recorded" in verdict.message


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_paired_judge_decides_as_the_test_does(two_sided: bool) -> None:
    rng = np.random.default_rng(1)
    design = SignTestDesign(150, 0.05, two_sided)
    decisions = set()
    for a_rate, b_rate in ((0.6, 0.9), (0.9, 0.6), (0.8, 0.8)):
        a, b = rng.random(150) < a_rate, rng.random(150) < b_rate
        pairs, sign = stopping_times((b.astype(int) - a)[None, :], design)
        judge = PairedABJudge(150, 0.05, two_sided=two_sided)
        verdict = run_pairs(judge, list(zip(a, b, strict=True)))
        decisions.add(verdict.decision)
        assert verdict.figures["pairs"] == pairs[0]
        assert (verdict.decision is Decision.B_BETTER) == (sign[0] == 1)
        assert (verdict.decision is Decision.A_BETTER) == (sign[0] == -1)
        counts = [verdict.figures[name]["successes"] for name in "AB"]
        assert counts == [a.sum(), b.sum()] and verdict.figures["A"]["episodes"] == 150
    found = {Decision.A_BETTER, Decision.B_BETTER, Decision.NO_DIFFERENCE_SHOWN}
    assert decisions == found - (set() if two_sided else {Decision.A_BETTER})


def test_the_message_has_words_and_numbers() -> None:
    judge = PairedABJudge(20, two_sided=False)
    message = run_pairs(judge, [(False, True)] * 3).message
    assert "A 0 of 3 = 0.0% [0.0%, 56.1%], B 3 of 3 = 100.0% [43.9%, 100.0%]" in message
    assert "B won 3 and A 0 of 3 pairs that differ, after 3 of at most 20 pairs; no lead is enough yet" in message
    message = run_pairs(judge, [(False, True)] * 4).message
    assert message.startswith("B is better (claimed wrongly in at most 5.0% of such tests): A 0 of 7")


def test_nothing_shown_at_the_end_is_not_called_equal() -> None:
    verdict = run_pairs(PairedABJudge(4), [(True, True)] * 4)
    assert verdict.decision is Decision.NO_DIFFERENCE_SHOWN and "there may be one" in verdict.message


@pytest.mark.parametrize(("slow_arm", "members"), [(A, 5), (B, 5), (A, 25)])
def test_a_policy_that_is_only_faster_is_not_called_different(slow_arm: int, members: int) -> None:
    """50 robots, equal rates, one policy runs five times the episodes. By all episodes 23 % of such tests found a difference.

    150 runs: the standard error at 5 % is 1.8 %.
    """
    wrong, runs = 0, 150
    for run in range(runs):
        rng = np.random.default_rng([members, run])
        drawn = rng.permutation(50) < members
        arms = {f"r{i}": (B if drawn[i] else A) for i in range(50)}
        rates = rng.beta(0.87 * 99, 0.13 * 99, 50)
        a_round = [4 if arms[f"r{i}"] == slow_arm else 20 for i in range(50)]
        judge = UnpairedABJudge(5 * sum(a_round), arms=arms, experiment=f"{run}", draws=399, looks=5, icc=0.01)
        for _ in range(5):
            for i in rng.permutation(50):
                for won in rng.random(a_round[i]) < rates[i]:
                    judge.record(f"r{i}", bool(won))
        wrong += judge.decision in (Decision.A_BETTER, Decision.B_BETTER)
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def unpaired_claims(runs: int, seed: int, in_b: int, planned: int, rounds: int, each_round: Any, rate_at: Any) -> float:
    """Return the share of tests of 50 robots that say something; in every round each robot runs ``each_round(arm, number)``.

    ``rate_at``: success rate of everybody, by round.
    """
    claims = 0
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        drawn = rng.permutation(50) < in_b
        arms = {f"r{i}": (B if drawn[i] else A) for i in range(50)}
        order = {robot: int(i) for i, robot in enumerate(rng.permutation(list(arms)))}
        judge = UnpairedABJudge(planned, arms=arms, experiment=f"{run}", draws=399, looks=8)
        for number in range(rounds):
            for robot in rng.permutation(list(arms)):
                for _ in range(each_round(arms[str(robot)], order[str(robot)])):
                    judge.record(str(robot), bool(rng.random() < rate_at(number / (rounds - 1))))
        claims += judge.decision in (Decision.A_BETTER, Decision.B_BETTER)
    return claims / runs


@pytest.mark.parametrize("faster", [2, 5])
def test_conditions_that_change_for_both_are_no_difference_though_one_is_faster(faster: int) -> None:
    """Success falls from 95 to 65 % during the test. By the first episodes of each, all of 60 tests at 5 x called B better.

    60 tests: the standard error at 5 % is 2.8 %.
    """
    planned = 25 * 10 * (1 + faster)
    found = unpaired_claims(
        60, 5, 25, planned, 10, lambda which, _: faster if which == B else 1, lambda t: 0.95 - 0.3 * t
    )
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_robots_that_never_run_are_not_compared_and_the_verdict_says_so() -> None:
    """5 of 50 robots run B, and of the others 30 never run: while they were left out without a word, 36 % of tests erred."""
    assert unpaired_claims(20, 6, 5, 400, 20, lambda which, number: which == B or number % 3 == 0, lambda _: 0.8) == 0.0
    judge = UnpairedABJudge(40, arms={f"r{i}": (A, B)[i % 2] for i in range(10)}, looks=4)
    for n in range(40):
        judge.record(f"r{n % 6}", True)
    assert "more than a quarter of a policy's robots have no episode yet" in judge.verdict().message


def test_one_robot_that_hardly_runs_does_not_make_all_others_count_for_as_little() -> None:
    judge = UnpairedABJudge(8 * 30 + 2, arms={f"r{i}": (A, B)[i % 2] for i in range(10)}, looks=1)
    for number in range(30):
        for i in range(10):
            if i < 8 or not number:
                judge.record(f"r{i}", number % 2 == 0)
    assert "look like this or more so in 30 episodes of each" in judge.verdict().message


def test_to_fail_fast_is_not_to_be_faster() -> None:
    """Both alike, but for failures: B's end at once."""
    rng = np.random.default_rng(9)
    paired = PairedABJudge(300)
    unpaired = UnpairedABJudge(600, arms={f"r{i}": (A, B)[i % 2] for i in range(30)}, draws=399)
    for number in range(300):
        (a, b), (slow_a, slow_b) = rng.random(2) < 0.6, (1.0 + rng.random(2)).tolist()
        slow_b *= 1.0 if b else 0.1
        run_pairs(paired, [(a, b)], [(slow_a, slow_b)])
        unpaired.record(f"r{2 * number % 30}", bool(a), slow_a)
        unpaired.record(f"r{(2 * number + 1) % 30}", bool(b), slow_b)
    for verdict in (paired.verdict(), unpaired.verdict()):
        assert verdict.figures["faster"] is None and "mean latency of successes A 1." in verdict.message


def test_latency_is_judged_beside_success_and_does_not_change_it() -> None:
    rng = np.random.default_rng(3)
    judge, without = PairedABJudge(100), PairedABJudge(100)
    successes = [(success, success) for success in (rng.random(100) < 0.8).tolist()]
    latencies = [(0.20 + 0.05 * a, 0.15 + 0.06 * b) for a, b in rng.random((100, 2)).tolist()]
    verdict, unknown = run_pairs(judge, successes, latencies), run_pairs(without, successes)
    assert verdict.decision is unknown.decision is Decision.NO_DIFFERENCE_SHOWN
    assert verdict.figures["faster"] == "B" and unknown.figures["faster"] is None
    assert "B is faster" in verdict.message and "mean latency of successes A 0.2" in verdict.message


def test_unpaired_robots_of_a_fleet_that_comes_as_it_comes() -> None:
    rng = np.random.default_rng(4)
    judge = UnpairedABJudge(3000, experiment="exp", draws=999)
    for i in range(3000):
        robot = f"r{int(rng.integers(0, 40 if i > 500 else 20))}"
        which = arm("exp", robot, None, 0.5)
        judge.record(robot, bool(rng.random() < (0.88 if which == A else 0.7)), math.exp(rng.normal(which == A, 0.3)))
    verdict = judge.verdict()
    assert verdict.decision is Decision.A_BETTER
    assert verdict.figures["faster"] == "B"
    assert verdict.figures["episodes"] < 3000 and verdict.figures["episodes"] % 150 == 0
    assert sum(verdict.figures[name]["episodes"] for name in "AB") == 3000
    assert "of the assignments that could have been drawn for" in verdict.message


def test_unpaired_with_a_known_fleet() -> None:
    rng = np.random.default_rng(5)
    arms = {f"r{i}": B if i % 4 == 0 else A for i in range(24)}
    judge = UnpairedABJudge(2400, arms=arms, draws=999, two_sided=False)
    for i in range(2400):
        robot = f"r{i % 24}"
        judge.record(robot, bool(rng.random() < (0.9 if arms[robot] == B else 0.7)))
    assert judge.decision is Decision.B_BETTER
    with pytest.raises(InputError) as caught:
        judge.record("r24", True)
    assert caught.value.code == "INPUT_ARM"


def test_with_too_few_robots_the_verdict_says_that_episodes_do_not_help() -> None:
    judge = UnpairedABJudge(400, arms={"a": A, "b": B, "c": A, "d": B})
    for i in range(400):
        judge.record("abcd"[i % 4], i % 2 == 1)
    verdict = judge.verdict()
    assert verdict.decision is Decision.NO_DIFFERENCE_SHOWN
    assert "with so few robots no result could be rarer than 16.7%, above the 2.5% that is asked" in verdict.message


def test_one_arm_alone_is_no_evidence() -> None:
    judge = UnpairedABJudge(100, arms={f"r{i}": A for i in range(10)})
    for i in range(100):
        judge.record(f"r{i % 10}", i % 3 == 0)
    verdict = judge.verdict()
    assert verdict.decision is Decision.NO_DIFFERENCE_SHOWN
    assert verdict.figures["B"]["interval"] == [0.0, 1.0]


def test_the_lessons_calls_work() -> None:
    test = ABTest("v1.1", "v1.2", split=0.5)
    rng = np.random.default_rng(1)
    assert test.evaluate()["status"] == "insufficient_data"
    for i in range(4000):
        robot = f"robot_{i % 50}"
        test.record(robot, bool(rng.random() < (0.9 if test.assign_robot(robot) == "B" else 0.7)), 0.1)
    result = test.evaluate(min_samples=100)
    figures = {f"{name}_{version}" for name in ("rate", "ci", "n") for version in "ab"}
    assert set(result) == {*figures, "significant", "winner", "reason"}
    assert result["significant"] is True and result["winner"] == "B"
    assert result["n_a"] + result["n_b"] == 4000
    assert result["ci_a"][0] < result["rate_a"] < result["ci_a"][1] < result["ci_b"][0]


def test_without_a_significant_difference_there_is_no_winner() -> None:
    test = ABTest("a", "b", planned_episodes=600)
    for i in range(600):
        test.record(i % 30, i % 3 != 0)
    result = test.evaluate()
    assert (result["significant"], result["winner"]) == (False, None)
