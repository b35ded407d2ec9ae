# SPDX-License-Identifier: Apache-2.0
"""Each episode of an A/B test counts once, in the order of assignment, and silence or slowness deceives nobody."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vla_evidence.ab.pairs import EPISODES_OF_A_DRAWN_PAIR, PairedABJudge
from vla_evidence.ab.robots import UnpairedABJudge
from vla_evidence.assignment import A, B, arm, arm_in_pair
from vla_evidence.episodes import Fate
from vla_evidence.errors import InputError
from vla_evidence.verdict import Decision, Verdict


def used(verdict: Verdict) -> int:
    return verdict.figures["pairs"] if "pairs" in verdict.figures else verdict.figures["episodes"]


def both(verdict: Verdict, name: str) -> tuple[int, int]:
    return verdict.figures["A"][name], verdict.figures["B"][name]


def first_runs(version: int) -> str:
    """Return a robot whose first episode runs this version in the experiment "ab"."""
    return next(f"r{n}" for n in range(99) if arm_in_pair("ab", f"r{n}", 0)[1] == version)


def test_a_clock_that_goes_back_counts_as_one_that_stands() -> None:
    for judge in (PairedABJudge(60, deadline_s=100.0), UnpairedABJudge(60, deadline_s=100.0)):
        judge.choose("r", "r0", 100.0)
        judge.choose("s", "s0", 40.0)
        assert sum(both(judge.verdict(150.0), "open")) == 2
        assert sum(both(judge.verdict(199.0), "open")) == 2
        over = judge.verdict(200.0)
        assert sum(both(over, "lost")) == 2 or sum(both(over, "open")) == 2  # a pair waits for its second episode
        assert judge.outcome("s0", True, 0.0) is Fate.LATE


def test_episodes_find_their_partner_in_any_order_of_ending() -> None:
    """Two robots; as if their episodes had ended in the order in which they began."""
    rng = np.random.default_rng(2)
    shuffled, in_order = PairedABJudge(60, experiment="exp"), PairedABJudge(60, experiment="exp")
    episodes = []
    for number in range(60):
        for robot in ("r1", "r2"):
            name = f"{robot}/{number}"
            which = shuffled.choose(robot, name, 0.0)
            assert which == in_order.choose(robot, name, 0.0) == arm_in_pair("exp", robot, number)[1]
            episodes.append((name, bool(rng.random() < (0.9 if which == B else 0.5)), 1.0, 1.0 + rng.random()))
    for judge, order in ((shuffled, rng.permutation(len(episodes))), (in_order, range(len(episodes)))):
        for i in order:
            assert judge.outcome(*episodes[i]) is Fate.COUNTED
    assert shuffled.verdict() == in_order.verdict()
    assert shuffled.decision is Decision.B_BETTER


@pytest.mark.parametrize("judge", [PairedABJudge(60), UnpairedABJudge(60, arms={"r": A, "s": B})])
def test_an_episode_counts_once_however_often_it_is_reported(judge: PairedABJudge | UnpairedABJudge) -> None:
    for number in range(6):
        for robot in ("r", "s"):
            name, now = f"{robot}{number}", float(number)
            version = judge.choose(robot, name, now)
            assert judge.choose(robot, name, now) == version  # asked again
            assert judge.outcome(name, True, now + 0.5) is Fate.COUNTED
            for again in range(number + 1):
                assert judge.outcome(f"{robot}{again}", False, now + 0.5) is Fate.REPEATED
            with pytest.raises(InputError):
                judge.choose("t", name, now + 0.5)
    verdict = judge.verdict()
    assert both(verdict, "successes") == both(verdict, "episodes") == (6, 6)
    assert used(verdict) == (6 if isinstance(judge, PairedABJudge) else 12)
    assert judge.outcome("never assigned", True, 9.0) is Fate.UNKNOWN


def test_silence_is_a_failure_and_nothing_behind_it_counts_before() -> None:
    for judge in (PairedABJudge(60, deadline_s=100.0), UnpairedABJudge(60, deadline_s=100.0)):
        versions = [judge.choose("r", f"e{number}", 0.0) for number in range(4)]
        for number in (1, 2, 3):
            judge.outcome(f"e{number}", True, 10.0)
        before = judge.verdict(50.0)
        assert used(before) == 0 and both(before, "episodes") == (0, 0) and "1 open" in before.message
        assert judge.outcome("e0", True, 101.0) is Fate.LATE
        after = judge.verdict(101.0)
        assert used(after) == 4 // (1 + isinstance(judge, PairedABJudge))
        name = "AB"[versions[0]]
        assert after.figures[name]["lost"] == 1 and "1 lost" in after.message
        assert after.figures[name]["episodes"] - after.figures[name]["successes"] == 1


@pytest.mark.parametrize("version", [A, B])
def test_a_policy_that_breaks_the_robot_loses_the_pair_that_was_never_completed(version: int) -> None:
    """Its robot is silent by the deadline of 100 s, and stays away for 50 s more."""
    judge, robot = PairedABJudge(60, deadline_s=100.0, gone_s=50.0), first_runs(version)
    judge.choose(robot, "e", 0.0)
    before = judge.verdict(149.0)
    assert used(before) == 0 and f"waiting for the second episode of a pair on {robot}" in before.message
    verdict = judge.verdict(150.0)
    assert used(verdict) == 1 and verdict.figures["lead_of_b"] == (1 if version == A else -1)
    assert "1 pair lost by robots that fell silent" in verdict.message


@pytest.mark.parametrize("waits", [False, True])
def test_a_robot_that_comes_back_too_late_counts_in_its_policy_and_in_no_pair(waits: bool) -> None:
    """Also if nobody has asked since, so that the pair is still in the queue when the robot comes back."""
    judge, robot = PairedABJudge(60, deadline_s=100.0, gone_s=50.0), first_runs(A)
    if waits:
        judge.choose("other", "o", 0.0)
    judge.choose(robot, "e0", 0.0)
    if waits:
        judge.outcome("o", True, 99.5)
    else:
        judge.verdict(160.0)
    for number, success in ((1, False), (2, True), (3, True)):  # the pair of 2 and 3 is whole
        judge.choose(robot, f"e{number}", 160.0 + number)
        assert judge.outcome(f"e{number}", success, 160.5 + number) is Fate.COUNTED
    verdict = judge.verdict(164.0)
    assert sum(both(verdict, "episodes")) == 4 + waits and sum(both(verdict, "successes")) == 2 + waits
    assert used(verdict) == 2 and verdict.figures["lead_of_b"] == 1


def test_a_pair_waits_over_night_for_its_second_episode_and_holds_back_what_was_assigned_later() -> None:
    judge = PairedABJudge(60)
    judge.choose("r", "r0", 0.0)
    judge.outcome("r0", False, 60.0)
    for number in (0, 1):
        judge.choose("s", f"s{number}", 60.0 * number)
        judge.outcome(f"s{number}", True, 60.0 * number + 30.0)
    evening = judge.verdict(3600.0)
    assert used(evening) == 0 and "waiting for the second episode of a pair on r" in evening.message
    judge.choose("r", "r1", 16 * 3600.0)
    judge.outcome("r1", False, 16 * 3600.0 + 10.0)
    morning = judge.verdict(16 * 3600.0 + 10.0)
    assert used(morning) == 2 and morning.figures["discordant"] == 0 and "waiting" not in morning.message


def test_a_pair_whose_first_outcome_is_known_steps_aside_and_counts_when_it_is_whole() -> None:
    judge, robot = PairedABJudge(60, deadline_s=100.0, gone_s=50.0), first_runs(A)
    judge.choose(robot, "r0", 0.0)
    judge.outcome("r0", False, 1.0)
    for number in (0, 1):
        judge.choose("s", f"s{number}", 2.0)
        judge.outcome(f"s{number}", True, 3.0)
    assert used(judge.verdict(50.0)) == 0
    aside = judge.verdict(51.0)
    assert used(aside) == 1 and sum(both(aside, "episodes")) == 3
    assert "waiting for the second episode" in aside.message and "lost" not in aside.message
    judge.choose(robot, "r1", 9000.0)
    assert used(judge.verdict(9001.0)) == 1
    judge.outcome("r1", True, 9002.0)
    whole = judge.verdict(9002.0)
    assert used(whole) == 2 and sum(both(whole, "episodes")) == 4
    assert whole.figures["lead_of_b"] == 1 and "waiting" not in whole.message


def run_with_durations(
    seed: int, rate: float, *, b_hangs: bool = False, b_takes_s: float = 300.0, idle_s: float, sessions: int
) -> Decision:
    """Return what pairs of 20 robots say; A and B succeed alike, A's episodes take 5 minutes, robots idle in between.

    ``sessions`` 0: 24 episodes each. Else so many, a week apart and of 4 hours: no episode is begun after, the running one ends.
    """
    rng = np.random.default_rng([seed, int(100 * rate)])
    events: list[tuple[float, int, str, int, bool]] = []
    for robot in (f"r{i}" for i in range(20)):
        number = 0
        for begin in range(max(1, sessions)):
            now = 7 * 24 * 3600.0 * begin + float(rng.uniform(0.0, 600.0))
            until = 7 * 24 * 3600.0 * begin + 4 * 3600.0
            while number < 24 if not sessions else now < until:
                which, success = arm_in_pair(f"run {seed}", robot, number)[1], bool(rng.random() < rate)
                events.append((now, 0, robot, number, success))
                if which == B and b_hangs and not success:
                    now += 3600.0 + float(rng.uniform(1.0, 20.0))  # its robot is freed by the deadline
                else:
                    now += b_takes_s if which == B else 300.0
                    events.append((now, 1, robot, number, success))
                now += float(rng.uniform(1.0, 1.0 + idle_s))
                number += 1
    judge = PairedABJudge(240, experiment=f"run {seed}")
    for now, ended, robot, number, success in sorted(events):
        if ended:
            judge.outcome(f"{robot}/{number}", success, now)
        else:
            judge.choose(robot, f"{robot}/{number}", now)
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
    """80 tests each: the standard error at 5 % is 2.4 %."""
    decisions = [run_with_durations(seed, rate, **how) for seed in range(80)]
    wrong = sum(decision in (Decision.A_BETTER, Decision.B_BETTER) for decision in decisions) / 80
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 80)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_policy_that_hangs_does_not_win(breaks: bool) -> None:
    """A succeeds in 80 %, B in 67.5 %: 90 % of those that do not hang.

    100 runs: 2.5 % is 2.5 ± 1.6 % of them. ``breaks``: a robot whose episode hung does not run the other one of that pair.
    """
    found: list[Decision] = []
    for run in range(100):
        rng = np.random.default_rng(run)
        judge = PairedABJudge(300, deadline_s=100.0, experiment=f"run {run}")
        for pair in range(300):
            for number in (0, 1):
                which = judge.choose(f"r{pair}", f"{pair}/{number}", 10.0 * pair)
                if which == B and rng.random() < 0.25:
                    if breaks:
                        break
                    continue
                judge.outcome(f"{pair}/{number}", bool(rng.random() < (0.9 if which == B else 0.8)), 10.0 * pair + 1.0)
            if judge.decision is not Decision.CONTINUE:
                break
        found.append(judge.verdict(1e6).decision)
    assert found.count(Decision.B_BETTER) <= 100 * (0.025 + 3 * math.sqrt(0.025 * 0.975 / 100))
    assert found.count(Decision.A_BETTER) >= 60


def test_a_policy_that_hangs_does_not_win_where_each_robot_runs_one() -> None:
    decisions = []
    for run in range(20):
        rng = np.random.default_rng(run)
        arms = {f"r{i}": (A, B)[i % 2] for i in range(40)}
        judge = UnpairedABJudge(2000, arms=arms, experiment=str(run), draws=399, looks=10, deadline_s=100.0)
        for i in range(2000):
            robot = f"r{i % 40}"
            which = judge.choose(robot, f"e{i}", float(i))
            if which == A or rng.random() >= 0.25:
                judge.outcome(f"e{i}", bool(rng.random() < (0.9 if which == B else 0.8)), i + 0.5)
        decisions.append(judge.verdict(1e6).decision)
    assert decisions.count(Decision.B_BETTER) == 0
    assert decisions.count(Decision.A_BETTER) >= 12


def drawn(judge: PairedABJudge, robot: str, number: int, success: dict[int, bool]) -> None:
    """Run one episode of a robot that draws by itself; ``success``: by version."""
    name = f"{robot}/{number}"
    version = judge.choose(robot, name, float(number))
    assert version == arm(judge.experiment, robot, str(number), 0.5)
    assert judge.outcome(name, success[version], float(number)) is Fate.COUNTED


def test_robots_that_draw_by_themselves_give_a_pair_for_three_episodes() -> None:
    judge = PairedABJudge(5000, drawn_by_robot=True, experiment="own draw")
    for number in range(1000):
        for robot in ("r1", "r2", "r3"):
            drawn(judge, robot, number, {A: True, B: True})
    verdict = judge.verdict(1e9)
    assert 3000 / verdict.figures["pairs"] == pytest.approx(EPISODES_OF_A_DRAWN_PAIR, rel=0.05)
    assert sum(both(verdict, "episodes")) >= 2990, "what is in no pair counts in its policy all the same"


def test_robots_that_draw_by_themselves_err_as_seldom_as_promised_whatever_their_episodes_have_in_common() -> None:
    """Robots of all qualities whose luck comes in long runs; 250 runs: 5 % is 5 ± 1.4 % of them."""
    wrong = 0
    for run in range(250):
        rng = np.random.default_rng(run)
        judge = PairedABJudge(40, drawn_by_robot=True, experiment=f"run {run}", min_pairs=0)
        good = rng.random(4) < 0.5
        for number in range(50):
            good ^= rng.random(4) < 0.1
            for i in range(4):
                outcome = bool(rng.random() < (0.95 if good[i] else 0.2))
                drawn(judge, f"r{i}", number, {A: outcome, B: outcome})
        wrong += judge.verdict(1e9).decision in (Decision.A_BETTER, Decision.B_BETTER)
    assert wrong <= 250 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 250))


def test_a_pair_of_own_draws_that_was_lost_is_charged_to_the_policy_that_ran() -> None:
    judge = PairedABJudge(20, drawn_by_robot=True, deadline_s=10.0, gone_s=100.0)
    version = judge.choose("r", "r/0", 0.0)
    figures = judge.verdict(111.0).figures
    assert (figures["pairs"], figures["lead_of_b"]) == (1, 1 if version == A else -1)
    drawn(judge, "r", 200, {A: True, B: True})
    assert sum(both(judge.verdict(400.0), "episodes")) == 2
