# SPDX-License-Identifier: Apache-2.0
"""The A/B judges decide what their tests decide, and say so in words and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vla_evidence.ab import ABDecision, PairedABJudge, UnpairedABJudge
from vla_evidence.assignment import A, B, arm, arm_in_pair
from vla_evidence.errors import InputError
from vla_evidence.sign_test import SignTestDesign
from vla_evidence.sign_test_batch import stopping_times


def test_before_anything_is_known_it_goes_on() -> None:
    for judge in (PairedABJudge(100), UnpairedABJudge(100)):
        verdict = judge.verdict()
        assert verdict.decision is judge.decision is ABDecision.CONTINUE
        assert (verdict.a.rate, verdict.a.interval, verdict.used) == (None, (0.0, 1.0), 0)
        assert verdict.reason.startswith("not decided yet: success A no episode, B no episode")
        assert "latency was not recorded" in verdict.latency_reason


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_paired_judge_decides_as_the_test_does(two_sided: bool) -> None:
    rng = np.random.default_rng(1)
    design = SignTestDesign(150, 0.05, two_sided)
    decisions = set()
    for a_rate, b_rate in ((0.6, 0.9), (0.9, 0.6), (0.8, 0.8)):
        a, b = rng.random(150) < a_rate, rng.random(150) < b_rate
        pairs, sign = stopping_times((b.astype(int) - a)[None, :], design)
        judge = PairedABJudge(150, 0.05, two_sided=two_sided)
        for won_a, won_b in zip(a.tolist(), b.tolist(), strict=True):
            judge.update(won_a, won_b)
        verdict = judge.verdict()
        decisions.add(verdict.decision)
        assert verdict.used == pairs[0]
        assert (verdict.decision is ABDecision.B_BETTER) == (sign[0] == 1)
        assert (verdict.decision is ABDecision.A_BETTER) == (sign[0] == -1)
        assert (verdict.a.successes, verdict.b.successes, verdict.a.episodes) == (a.sum(), b.sum(), 150)
    assert decisions == set(ABDecision) - {ABDecision.CONTINUE} - (set() if two_sided else {ABDecision.A_BETTER})


def test_the_reason_has_words_and_numbers() -> None:
    judge = PairedABJudge(20, two_sided=False)
    for _ in range(3):
        judge.update(False, True)
    assert judge.verdict().reason == (
        "not decided yet: success A 0 of 3 = 0.0% [0.0%, 56.1%], B 3 of 3 = 100.0% [43.9%, 100.0%];"
        " B won 3 and A 0 of 3 pairs that differ, after 3 of at most 20 pairs; no lead is enough yet"
    )
    for _ in range(4):
        judge.update(False, True)
    reason = judge.verdict().reason
    assert reason.startswith("B is better (claimed wrongly in at most 5.0% of such tests): success A 0 of 7")
    assert reason.endswith("B won 7 and A 0 of 7 pairs that differ, after 7 of at most 20 pairs")


def test_nothing_shown_at_the_end_is_not_called_equal() -> None:
    judge = PairedABJudge(4)
    for _ in range(4):
        judge.update(True, True)
    assert judge.verdict().decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert "there may be one" in judge.verdict().reason


def test_episodes_find_their_partner_in_any_order() -> None:
    """Two robots, episodes of each in their own order of arms; as if they had come in pairs."""
    rng = np.random.default_rng(2)
    judge, pairs = PairedABJudge(60), PairedABJudge(60)
    episodes: list[tuple[str, int, bool, float]] = []
    found: dict[tuple[str, int], dict[str, tuple[bool, float]]] = {}
    for number in range(60):
        for robot in ("r1", "r2"):
            pair, which = arm_in_pair("exp", robot, number)
            success, latency = bool(rng.random() < (0.9 if which == B else 0.5)), 1.0 + rng.random()
            judge.assign(robot, number, which, 0.0)
            episodes.append((robot, number, success, latency))
            found.setdefault((robot, pair), {})[which] = (success, latency)
    for i in rng.permutation(len(episodes)):
        robot, number, success, latency = episodes[i]
        assert judge.finish(robot, number, success, 1.0, latency)
    for pair_of in found.values():  # in the order of assignment
        (a, latency_a), (b, latency_b) = pair_of[A], pair_of[B]
        pairs.update(a, b, latency_a, latency_b)
    assert judge.verdict() == pairs.verdict()
    assert judge.decision is ABDecision.B_BETTER


@pytest.mark.parametrize("judge", [PairedABJudge(60), UnpairedABJudge(60, arms={"r": A, "s": B})])
def test_an_episode_counts_once_however_often_it_is_told(judge: PairedABJudge | UnpairedABJudge) -> None:
    paired = isinstance(judge, PairedABJudge)
    for number in range(6):
        for robot in ("r", "s"):
            which = (A, B)[number % 2] if paired else (A if robot == "r" else B)
            judge.assign(robot, number, which, float(number))
            assert judge.finish(robot, number, True, number + 0.5)
            for again in range(number + 1):
                assert not judge.finish(robot, again, False, number + 0.5)
                with pytest.raises(InputError) as caught:
                    judge.assign(robot, again, which, number + 0.5)
                assert caught.value.code == "INPUT_VALUE"
    verdict = judge.verdict()
    assert (verdict.a.successes, verdict.a.episodes, verdict.b.successes, verdict.b.episodes) == (6, 6, 6, 6)
    assert verdict.used == (6 if paired else 12)


def test_silence_is_a_failure_of_its_arm_and_nothing_behind_it_counts_before() -> None:
    for judge, arms in (
        (PairedABJudge(60, deadline_s=100.0), {0: B, 1: A, 2: A, 3: B}),
        (UnpairedABJudge(60, deadline_s=100.0), dict.fromkeys(range(4), B)),
    ):
        for number, which in arms.items():
            judge.assign("r", number, which, 0.0)
            if number:
                judge.finish("r", number, True, 10.0)
        before = judge.verdict(50.0)
        assert (before.used, before.a.episodes, before.b.episodes, before.b.waiting) == (0, 0, 0, 1)
        assert "1 waited for" in before.reason
        assert not judge.finish("r", 0, True, 101.0)  # too late
        after = judge.verdict(101.0)
        assert after.used == len(arms) // (1 + isinstance(judge, PairedABJudge))
        assert (after.b.successes, after.b.episodes) == (
            sum(v == B for v in arms.values()) - 1,
            list(arms.values()).count(B),
        )
        assert (after.b.silent, after.b.waiting) == (1, 0) and "1 silent" in after.reason


def test_a_policy_that_breaks_the_robot_loses_the_pair_that_was_never_completed() -> None:
    """Its robot is silent by the deadline of 100 s, and stays away for 50 s more."""
    for which, score in ((A, 1), (B, -1)):
        judge = PairedABJudge(60, deadline_s=100.0, gone_s=50.0)
        judge.assign("r", 0, which, 0.0)
        before = judge.verdict(149.0)
        assert before.used == 0 and "waiting for the second episode of a pair of r" in before.reason
        verdict = judge.verdict(150.0)
        assert verdict.used == 1 and f"B won {int(score > 0)} and A {int(score < 0)} of 1 pairs" in verdict.reason
        assert "1 pairs lost by robots that fell silent and stayed away" in verdict.reason
        assert "was faster" in verdict.latency_reason and " 0 of 0 pairs that differ" in verdict.latency_reason


def test_a_robot_that_comes_back_too_late_counts_in_its_arm_and_in_no_pair() -> None:
    """Also if nobody has asked since, so that the pair is still in the queue when the robot comes back."""
    for waits in (False, True):
        judge = PairedABJudge(60, deadline_s=100.0, gone_s=50.0)
        if waits:
            judge.assign("earlier", 0, B, 0.0)
        judge.assign("r", 0, A, 0.0)
        if waits:
            judge.finish("earlier", 0, True, 99.5)
        else:
            judge.verdict(160.0)
        judge.assign("r", 1, B, 160.0)
        assert judge.finish("r", 1, False, 161.0)
        judge.assign("r", 2, B, 162.0)  # the next pair is whole
        judge.finish("r", 2, True, 163.0)
        judge.assign("r", 3, A, 163.0)
        judge.finish("r", 3, True, 164.0)
        verdict = judge.verdict(164.0)
        assert (verdict.a.successes, verdict.a.episodes) == (1, 2)
        assert (verdict.b.successes, verdict.b.episodes) == (1 + waits, 2 + waits)
        assert verdict.used == 2 and "B won 1 and A 0 of 1 pairs that differ" in verdict.reason


def test_a_pair_waits_over_night_for_its_second_episode_and_holds_back_what_was_assigned_later() -> None:
    judge = PairedABJudge(60)
    judge.assign("r", 0, A, 0.0)
    judge.finish("r", 0, False, 60.0)
    for number, which in ((0, B), (1, A)):
        judge.assign("s", number, which, 60.0 * number)
        judge.finish("s", number, True, 60.0 * number + 30.0)
    evening = judge.verdict(3600.0)
    assert evening.used == 0 and "waiting for the second episode of a pair of r" in evening.reason
    judge.assign("r", 1, B, 16 * 3600.0)
    judge.finish("r", 1, False, 16 * 3600.0 + 10.0)
    morning = judge.verdict(16 * 3600.0 + 10.0)
    assert morning.used == 2 and "of 0 pairs that differ" in morning.reason and "waiting" not in morning.reason


def test_a_pair_whose_first_outcome_was_told_steps_aside_and_counts_when_it_is_whole() -> None:
    judge = PairedABJudge(60, deadline_s=100.0, gone_s=50.0)
    judge.assign("r", 0, A, 0.0)
    judge.finish("r", 0, False, 1.0)
    for number, which in ((0, B), (1, A)):
        judge.assign("s", number, which, 2.0)
        judge.finish("s", number, True, 3.0)
    assert judge.verdict(50.0).used == 0
    aside = judge.verdict(51.0)
    assert (aside.used, aside.a.episodes, aside.b.episodes) == (1, 2, 1)
    assert "waiting for the second episode of a pair of r" in aside.reason and "lost" not in aside.reason
    judge.assign("r", 1, B, 9000.0)
    assert judge.verdict(9001.0).used == 1
    judge.finish("r", 1, True, 9002.0)
    whole = judge.verdict(9002.0)
    assert (whole.used, whole.a.episodes, whole.b.episodes) == (2, 2, 2)
    assert "B won 1 and A 0 of 1 pairs that differ" in whole.reason and "waiting" not in whole.reason


def run_with_durations(
    seed: int, rate: float, *, b_hangs: bool = False, b_takes_s: float = 300.0, idle_s: float, sessions: int
) -> ABDecision:
    """Return what pairs of 20 robots say; A and B succeed alike, A's episodes take 5 minutes, robots idle in between.

    ``sessions`` 0: 24 episodes each. Else so many, a week apart and of 4 hours: no episode is begun after, the running one ends.
    """
    rng = np.random.default_rng([seed, int(100 * rate)])
    events: list[tuple[float, int, str, int, str, bool]] = []
    for robot in (f"r{i}" for i in range(20)):
        number = 0
        for begin in range(max(1, sessions)):
            now = 7 * 24 * 3600.0 * begin + float(rng.uniform(0.0, 600.0))
            until = 7 * 24 * 3600.0 * begin + 4 * 3600.0
            while number < 24 if not sessions else now < until:
                which, success = arm_in_pair(f"run {seed}", robot, number)[1], bool(rng.random() < rate)
                events.append((now, 0, robot, number, which, success))
                if which == B and b_hangs and not success:
                    now += 3600.0 + float(rng.uniform(1.0, 20.0))  # its robot is freed by the deadline
                else:
                    now += b_takes_s if which == B else 300.0
                    events.append((now, 1, robot, number, which, success))
                now += float(rng.uniform(1.0, 1.0 + idle_s))
                number += 1
    judge = PairedABJudge(240)
    for now, ended, robot, number, which, success in sorted(events):
        if ended:
            judge.finish(robot, number, success, now)
        else:
            judge.assign(robot, number, which, now)
    return judge.verdict(now + 2 * 24 * 3600.0).decision


@pytest.mark.parametrize(
    ("rate", "how"),
    [
        (0.5, {"b_hangs": True, "idle_s": 20.0, "sessions": 0}),
        (0.8, {"b_hangs": True, "idle_s": 20.0, "sessions": 0}),
        (0.6, {"b_takes_s": 2700.0, "idle_s": 1800.0, "sessions": 0}),
        (0.5, {"b_takes_s": 2700.0, "idle_s": 20.0, "sessions": 4}),
    ],
)
def test_how_long_episodes_take_says_nothing_about_who_succeeds_more(rate: float, how: dict[str, Any]) -> None:
    """When a pair's deadline ran from its first episode, A was called better in 23 to 64 % of such tests.

    With every pair lost whose robot stayed away, in 20 % of those in weekly sessions. 80 tests each: the standard error at 5 % is
    2.4 %.
    """
    decisions = [run_with_durations(seed, rate, **how) for seed in range(80)]
    wrong = sum(decision in (ABDecision.A_BETTER, ABDecision.B_BETTER) for decision in decisions) / 80
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 80)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_policy_that_hangs_does_not_win(breaks: bool) -> None:
    """A succeeds in 80 %, B in 67.5 %: 90 % of those that do not hang. Without silence B was better in 68 % of such tests.

    100 runs: 2.5 % is 2.5 ± 1.6 % of them. ``breaks``: a robot whose
    episode hung is lost, and does not run the other one of that pair.
    """
    found: list[ABDecision] = []
    for run in range(100):
        rng = np.random.default_rng(run)
        judge = PairedABJudge(300, deadline_s=100.0)
        for pair in range(300):
            first = int(rng.random() < 0.5)
            for number in (0, 1):
                which = (A, B)[first ^ number]
                judge.assign(f"r{pair}", number, which, 10.0 * pair)
                if which == B and rng.random() < 0.25:
                    if breaks:
                        break
                    continue
                judge.finish(f"r{pair}", number, bool(rng.random() < (0.9 if which == B else 0.8)), 10.0 * pair + 1.0)
            if judge.decision is not ABDecision.CONTINUE:
                break
        found.append(judge.verdict(1e6).decision)
    assert found.count(ABDecision.B_BETTER) <= 100 * (0.025 + 3 * math.sqrt(0.025 * 0.975 / 100))
    assert found.count(ABDecision.A_BETTER) >= 60


def test_a_policy_that_hangs_does_not_win_where_each_robot_runs_one() -> None:
    """The same rates as above; without silence B was better in every test."""
    decisions = []
    for run in range(20):
        rng = np.random.default_rng(run)
        arms = {f"r{i}": (A, B)[i % 2] for i in range(40)}
        judge = UnpairedABJudge(2000, arms=arms, seed=str(run), draws=399, looks=10, deadline_s=100.0)
        for i in range(2000):
            number, robot = divmod(i, 40)
            which = (A, B)[robot % 2]
            judge.assign(f"r{robot}", number, which, float(i))
            if which == A or rng.random() >= 0.25:
                judge.finish(f"r{robot}", number, bool(rng.random() < (0.9 if which == B else 0.8)), i + 0.5)
        decisions.append(judge.verdict(1e6).decision)
    assert decisions.count(ABDecision.B_BETTER) == 0
    assert decisions.count(ABDecision.A_BETTER) >= 12


@pytest.mark.parametrize(("slow_arm", "members"), [(A, 5), (B, 5), (A, 25)])
def test_a_policy_that_is_only_faster_is_not_called_different(slow_arm: str, members: int) -> None:
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
        judge = UnpairedABJudge(5 * sum(a_round), arms=arms, seed=f"{run}", draws=399, looks=5, icc=0.01)
        for _ in range(5):
            for i in rng.permutation(50):
                for won in rng.random(a_round[i]) < rates[i]:
                    judge.record(f"r{i}", arms[f"r{i}"], bool(won))
        wrong += judge.decision in (ABDecision.A_BETTER, ABDecision.B_BETTER)
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
        judge = UnpairedABJudge(planned, arms=arms, seed=f"{run}", draws=399, looks=8)
        for number in range(rounds):
            for robot in rng.permutation(list(arms)):
                for _ in range(each_round(arms[str(robot)], order[str(robot)])):
                    judge.record(str(robot), arms[str(robot)], bool(rng.random() < rate_at(number / (rounds - 1))))
        claims += judge.decision in (ABDecision.A_BETTER, ABDecision.B_BETTER)
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


def test_robots_that_never_run_are_no_part_of_the_comparison_and_are_told() -> None:
    """5 of 50 robots run B, and of the others 30 never run: while they were left out without a word, 36 % of tests erred."""
    assert unpaired_claims(20, 6, 5, 400, 20, lambda which, number: which == B or number % 3 == 0, lambda _: 0.8) == 0.0
    judge = UnpairedABJudge(40, arms={f"r{i}": (A, B)[i % 2] for i in range(10)}, looks=4)
    for n in range(40):
        judge.record(f"r{n % 6}", (A, B)[n % 2], True)
    assert "more than a quarter of the robots of an arm have no episode yet" in judge.verdict().reason


def test_to_fail_fast_is_not_to_be_faster() -> None:
    """Both alike, but for failures: B's end at once."""
    rng = np.random.default_rng(9)
    paired = PairedABJudge(300)
    unpaired = UnpairedABJudge(600, arms={f"r{i}": (A, B)[i % 2] for i in range(30)}, draws=399)
    for number in range(300):
        (a, b), (slow_a, slow_b) = rng.random(2) < 0.6, 1.0 + rng.random(2)
        slow_b *= 1.0 if b else 0.1
        paired.update(bool(a), bool(b), slow_a, slow_b)
        unpaired.record(f"r{2 * number % 30}", A, bool(a), slow_a)
        unpaired.record(f"r{(2 * number + 1) % 30}", B, bool(b), slow_b)
    for verdict in (paired.verdict(), unpaired.verdict()):
        assert verdict.faster is None and "mean latency of successes A 1." in verdict.latency_reason


def test_latency_is_judged_beside_success_and_does_not_change_it() -> None:
    rng = np.random.default_rng(3)
    judge, without = PairedABJudge(100), PairedABJudge(100)
    for _ in range(100):
        success = bool(rng.random() < 0.8)
        judge.update(success, success, 0.20 + 0.05 * rng.random(), 0.15 + 0.06 * rng.random())
        without.update(success, success)
    verdict = judge.verdict()
    assert verdict.decision is without.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert verdict.faster == B
    assert "B is faster" in verdict.latency_reason and "mean latency of successes A 0.2" in verdict.latency_reason
    assert without.verdict().faster is None


def test_unpaired_robots_of_a_fleet_that_comes_as_it_comes() -> None:
    rng = np.random.default_rng(4)
    judge = UnpairedABJudge(3000, seed="exp", draws=999)
    for i in range(3000):
        robot = f"r{int(rng.integers(0, 40 if i > 500 else 20))}"
        which = arm("exp", robot, None, 0.5)
        judge.record(
            robot, which, bool(rng.random() < (0.88 if which == A else 0.7)), math.exp(rng.normal(which == A, 0.3))
        )
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.A_BETTER
    assert verdict.faster == B
    assert verdict.used < 3000 and verdict.used % 150 == 0
    assert verdict.a.episodes + verdict.b.episodes == 3000
    assert "of the assignments that could have been drawn for" in verdict.reason


def test_unpaired_with_a_known_fleet() -> None:
    rng = np.random.default_rng(5)
    arms = {f"r{i}": B if i % 4 == 0 else A for i in range(24)}
    judge = UnpairedABJudge(2400, arms=arms, draws=999, two_sided=False)
    for i in range(2400):
        robot = f"r{i % 24}"
        judge.record(robot, arms[robot], bool(rng.random() < (0.9 if arms[robot] == B else 0.7)))
    assert judge.decision is ABDecision.B_BETTER
    with pytest.raises(InputError) as caught:
        judge.record("r24", A, True)
    assert caught.value.code == "INPUT_ARM"


def test_too_few_robots_are_told_that_episodes_do_not_help() -> None:
    judge = UnpairedABJudge(400, arms={"a": A, "b": B, "c": A, "d": B})
    for i in range(400):
        judge.record("abcd"[i % 4], (A, B)[i % 2], i % 2 == 1)
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert "with so few robots no result could be rarer than 16.7%, above the 2.5% that is asked" in verdict.reason


def test_one_arm_alone_is_no_evidence() -> None:
    judge = UnpairedABJudge(100, arms={f"r{i}": A for i in range(10)})
    for i in range(100):
        judge.record(f"r{i % 10}", A, i % 3 == 0)
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert verdict.b.interval == (0.0, 1.0)


def test_the_same_episodes_give_the_same_verdict_again() -> None:
    def once() -> object:
        rng = np.random.default_rng(6)
        judge = UnpairedABJudge(500, seed="again", draws=499)
        for _ in range(500):
            robot = f"r{int(rng.integers(0, 12))}"
            judge.record(robot, arm("again", robot, None, 0.5), bool(rng.random() < 0.8))
        return judge.verdict()

    assert once() == once()


def test_wrong_input_is_named_and_nothing_is_counted() -> None:
    paired, unpaired = PairedABJudge(10), UnpairedABJudge(10)
    paired.assign("p", 0, A, 0.0)
    unpaired.record("r", A, True)
    for call, code in (
        (lambda: PairedABJudge(0), "INPUT_COUNT"),
        (lambda: PairedABJudge(10, 0.7), "INPUT_PROBABILITY"),
        (lambda: PairedABJudge(10, latency_alpha=0.0), "INPUT_PROBABILITY"),
        (lambda: PairedABJudge(10, spending="none"), "INPUT_VALUE"),
        (lambda: PairedABJudge(10, confidence=95), "INPUT_PROBABILITY"),
        (lambda: paired.update(2, True), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, math.nan), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, None), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, True, 1.0, -1.0), "INPUT_VALUE"),
        (lambda: paired.update(True, True, math.inf, 1.0), "INPUT_VALUE"),
        (lambda: PairedABJudge(10, deadline_s=0.0), "INPUT_VALUE"),
        (lambda: PairedABJudge(10, deadline_s=10**400), "INPUT_VALUE"),
        (lambda: PairedABJudge(10, gone_s=0.0), "INPUT_VALUE"),
        (lambda: paired.assign("p", 1, A, 0.0), "INPUT_ARM"),
        (lambda: paired.assign("p", 0, A, 0.0), "INPUT_VALUE"),
        (lambda: paired.assign("p", 2, B, 0.0), "INPUT_VALUE"),
        (lambda: paired.assign("p", True, B, 0.0), "INPUT_VALUE"),
        (lambda: paired.assign("q", 0, "C", 0.0), "INPUT_ARM"),
        (lambda: paired.assign("", 0, B, 0.0), "INPUT_VALUE"),
        (lambda: paired.assign("\ud800", 0, B, 0.0), "INPUT_VALUE"),
        (lambda: paired.assign("q", 0, B, math.nan), "INPUT_VALUE"),
        (lambda: paired.finish("p", 0, True, 10**400), "INPUT_VALUE"),
        (lambda: paired.finish("p", 1, True, 1.0), "INPUT_VALUE"),
        (lambda: paired.finish("p", 0, 2, 1.0), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.verdict(math.inf), "INPUT_VALUE"),
        (lambda: unpaired.assign("r", 0, B, 0.0), "INPUT_ARM"),
        (lambda: unpaired.assign("t", 1, B, 1e9), "INPUT_VALUE"),
        (lambda: UnpairedABJudge(0), "INPUT_COUNT"),
        (lambda: UnpairedABJudge(10, looks=0), "INPUT_COUNT"),
        (lambda: UnpairedABJudge(10**9, looks=10**9), "INPUT_COUNT"),
        (lambda: UnpairedABJudge(10, draws=10**13), "INPUT_COUNT"),
        (lambda: unpaired.assign("\ud800", 0, A, 0.0), "INPUT_VALUE"),
        (lambda: unpaired.record("\ud800", A, True), "INPUT_VALUE"),
        (lambda: UnpairedABJudge(10, split=0.0), "INPUT_PROBABILITY"),
        (lambda: UnpairedABJudge(10, arms={"r": "C"}), "INPUT_ARM"),
        (lambda: unpaired.record("r", B, True), "INPUT_ARM"),
        (lambda: unpaired.record("s", "C", True), "INPUT_ARM"),
        (lambda: unpaired.record("", A, True), "INPUT_VALUE"),
        (lambda: unpaired.record("r", A, "yes"), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: unpaired.record("r", A, True, 0.0), "INPUT_VALUE"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    assert paired.verdict().a.episodes == 0 and paired.verdict().a.waiting == 1
    assert paired.finish("p", 0, True, 1.0)  # no refused call has moved its clock
    assert (unpaired.verdict().a.episodes, unpaired.verdict().b.episodes) == (1, 0)
