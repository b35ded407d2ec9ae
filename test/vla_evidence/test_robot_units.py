# SPDX-License-Identifier: Apache-2.0
"""Where whole robots run a version the robot is the unit: errors stay rare however alike a robot's episodes are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vla_evidence import InputError
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.robot_cohort import LOOKS, RobotCohort, Tallies
from vla_evidence.canary.robot_units import RobotEProcess, RobotPrior, smallest_drop
from vla_evidence.canary.stages import Stage, Unit
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, log_e_paths

ALPHA = 0.05


def all_draws(means: list[float], k: int, margin: float, better: bool, prior: RobotPrior):
    """Yield the evidence for every way to draw k canaries among robots that come in this order with these means."""
    for canaries in itertools.combinations(range(len(means)), k):
        process, left = RobotEProcess(margin, prior=prior, better=better), k
        for index, mean in enumerate(means):
            group = int(index in canaries)
            x = min(1.0, max(0.0, mean - margin * group))  # the canary is worse by exactly the margin
            process.update(group, x, left / (len(means) - index))
            left -= group
        yield process.log_e


@pytest.mark.parametrize("better", [False, True], ids=["harm", "not worse"])
@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("prior", [RobotPrior(), RobotPrior(0.5, 0.03, 8.0, 0.3)], ids=["default", "wrong"])
def test_the_mean_over_all_draws_is_exactly_one_whatever_the_robots_are(better, margin, prior) -> None:
    """No normality, no equal robots: only the draw is random, and all draws of the cohort are summed over."""
    for means in ([0.9, 0.85, 0.2, 1.0, 0.95, 0.1, 0.8], [1.0] * 7, [0.1, 0.2, 0.3, 0.5, 0.8, 0.9, 1.0]):
        means = [max(mean, margin) for mean in means]
        for k in (1, 2, 3, 6):
            logs = list(all_draws(means, k, margin, better, prior))
            assert np.mean(np.exp(logs)) == pytest.approx(1.0, abs=1e-9)
            if not (better and margin):
                assert max(logs) <= math.log(math.comb(7, k)) + 1e-9


def largest_log_e(n: int, k: int, margin: float, better: bool) -> float:
    """Climb to the largest evidence over the robots' means and their groups."""
    rng, top = np.random.default_rng(12), -math.inf
    for _ in range(6):
        groups, xs = (rng.permutation(n) < k).astype(int).tolist(), rng.integers(0, 2, n).astype(float).tolist()
        best = -math.inf
        while True:
            swaps = [(i, j) for i in range(n) for j in range(i) if groups[i] != groups[j]]
            tries = [(groups, [*xs[:i], x, *xs[i + 1 :]]) for i in range(n) for x in (0.0, 0.5, 1.0)]
            tries += [([groups[{i: j, j: i}.get(at, at)] for at in range(n)], xs) for i, j in swaps]
            found = max((evidence(g, x, margin, better), g, x) for g, x in tries)
            if found[0] <= best + 1e-12:
                break
            best, groups, xs = found
        top = max(top, best)
    return top


def evidence(groups: list[int], xs: list[float], margin: float, better: bool) -> float:
    process, left = RobotEProcess(margin, better=better), sum(groups)
    for index, (group, x) in enumerate(zip(groups, xs, strict=True)):
        process.update(group, x, left / (len(xs) - index))
        left -= group
    return process.log_e


@pytest.mark.parametrize(("n", "k"), [(4, 1), (6, 3), (10, 1)])
def test_evidence_of_harm_never_exceeds_the_ways_to_draw_and_that_of_a_margin_may(n: int, k: int) -> None:
    """Whatever the data. So "it can never" may be said of harm, and of an improvement, and not of a margin."""
    ways = math.log(math.comb(n, k))
    for margin in (0.0, 0.1, 0.3):
        assert largest_log_e(n, k, margin, better=False) <= ways + 1e-9
    assert largest_log_e(n, k, 0.0, better=True) <= ways + 1e-9
    assert largest_log_e(n, k, 0.3, better=True) > ways + 0.1


@pytest.mark.parametrize("better", [False, True], ids=["harm", "not worse"])
def test_the_mean_is_at_most_one_inside_the_hypothesis(better: bool) -> None:
    """The canary is better by any amount (or worse, for the other test): draws with shifted canaries, margin or not."""
    means = [0.5, 0.45, 0.38, 0.6, 0.55, 0.4, 0.5]
    for margin, shift in itertools.product((0.0, 0.05), (0.0, 0.1, 0.3)):
        total = []
        for canaries in itertools.combinations(range(7), 2):
            process, left = RobotEProcess(margin, better=better), 2
            for index, mean in enumerate(means):
                group = int(index in canaries)
                x = mean + group * (-margin + (-shift if better else shift))
                process.update(group, x, left / (7 - index))
                left -= group
            total.append(math.exp(process.log_e))
        assert np.mean(total) <= 1.0 + 1e-9


def robots_with_clusters(rng, robots: int, episodes: int, rate: float, icc: float) -> np.ndarray:
    """Return outcomes [robots, episodes]; episodes of a robot correlate by ``icc`` (beta-binomial)."""
    concentration = 1.0 / icc - 1.0
    rates = rng.beta(rate * concentration, (1.0 - rate) * concentration, robots)
    return rng.random((robots, episodes)) < rates[:, None]


def cluster_runs(drop: float, episodes: int, *, runs: int, seed: int) -> tuple[float, float]:
    """5 of 100 robots run a version of their own, ICC 0.05; return the shares convicted (by episode, by robot)."""
    rng = np.random.default_rng(seed)
    names = [f"r{n}" for n in range(100)]
    by_episode = by_robot = 0
    for run in range(runs):
        canary = np.zeros(100, dtype=int)
        canary[rng.choice(100, 5, replace=False)] = 1
        outcomes = robots_with_clusters(rng, 100, episodes, 0.87, 0.05)
        if drop:
            outcomes[canary == 1] = robots_with_clusters(rng, 5, episodes, 0.87 - drop, 0.05)
        paths = log_e_paths(np.tile(canary, episodes), outcomes.T.ravel(), 0.05)  # the robots in turn
        by_episode += paths.max() >= -math.log(ALPHA)
        cohort = RobotCohort({name: int(g) for name, g in zip(names, canary, strict=True)}, 1, f"run {run}")
        process, tallies = RobotEProcess(prior=RobotPrior(0.87, 0.08)), Tallies(1)
        for name, mean in zip(names, outcomes.mean(axis=1), strict=True):
            tallies.add(name, [float(mean)], silent=False)
        for group, (mean,), _, pi in cohort.heard(tallies):
            process.update(group, mean, pi)
        by_robot += process.rejects(ALPHA)
    return by_episode / runs, by_robot / runs


@pytest.mark.parametrize(("episodes", "wrong_at_least"), [(40, 0.0), (160, 0.1)])
def test_clusters_fool_the_episode_as_unit_and_not_the_robot(episodes: int, wrong_at_least: float) -> None:
    """As documented: 7 % instead of 5 % after 40 episodes a robot, 15 % after 160, and ever more: so the robot is the unit."""
    runs = 300
    by_episode, by_robot = cluster_runs(0.0, episodes, runs=runs, seed=1)
    error = math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert by_episode >= wrong_at_least and (not wrong_at_least or wrong_at_least > ALPHA + 3 * error)
    assert by_robot <= ALPHA + 3 * error


def test_the_same_clusters_do_no_harm_where_every_episode_is_drawn() -> None:
    """Each robot is then its own control, so the episode is the unit."""
    runs, rng, convicted = 300, np.random.default_rng(3), 0
    for _ in range(runs):
        ys = robots_with_clusters(rng, 100, 40, 0.87, 0.05).T.ravel()
        groups = (rng.random(ys.size) < 0.05).astype(int)
        convicted += log_e_paths(groups, ys, 0.05).max() >= -math.log(ALPHA)
    assert convicted / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_five_of_a_hundred_robots_find_a_large_drop() -> None:
    assert cluster_runs(0.25, 40, runs=60, seed=2)[1] >= 0.8


def rejections(
    potential: np.ndarray, k: int, *, margin: float = 0.0, better: bool = False, alpha: float = ALPHA
) -> float:
    """Return the share of runs that reject; potential: shape [runs, 2, robots], each robot's mean with either version."""
    rng, found = np.random.default_rng(5), 0
    for incumbent, canary in potential:
        process, left, n = RobotEProcess(margin, better=better), k, incumbent.size
        members = rng.permutation(n) < k
        for index, robot in enumerate(rng.permutation(n)):
            group = int(members[robot])
            process.update(group, float((canary if group else incumbent)[robot]), left / (n - index))
            left -= group
        found += process.rejects(alpha)
    return found / len(potential)


def broken(rng: np.random.Generator, rate: float, share: float, shape: tuple[int, int]) -> np.ndarray:
    """Return means over 40 episodes of robots of one rate, of which a share fails always."""
    return rng.binomial(40, rate, shape) / 40 * (rng.random(shape) >= share)


RARE_RUNS = 300
RARE_ERROR = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RARE_RUNS)


def test_equal_means_of_different_shape_are_not_convicted_more_often_than_promised() -> None:
    """The incumbent breaks a robot in twenty and is better on the others; in a fixed fleet some gain what the others lose."""
    rng, shape = np.random.default_rng(7), (RARE_RUNS, 100)
    drawn = np.stack([broken(rng, 0.87 / 0.95, 0.05, shape), broken(rng, 0.87, 0.0, shape)], axis=1)
    assert rejections(drawn, 50) <= ALPHA + RARE_ERROR
    better = np.stack([broken(rng, 0.95, 0.10, shape), broken(rng, 0.87, 0.0, shape)], axis=1)
    assert rejections(better, 50) <= ALPHA + RARE_ERROR
    incumbent = np.where(np.arange(100) < 5, 0.0, 1.0)
    fixed = np.broadcast_to(np.stack([incumbent, np.full(100, 0.95)]), (RARE_RUNS, 2, 100))
    assert rejections(fixed, 50) <= ALPHA + RARE_ERROR


@pytest.mark.parametrize(("k", "share", "rate", "margin"), [(50, 0.12, 0.87, 0.10), (25, 0.12, 0.97, 0.01)])
def test_a_drop_of_the_mean_that_few_robots_bear_is_not_excluded(k, share, rate, margin) -> None:
    rng, shape = np.random.default_rng(8), (RARE_RUNS, 100)
    drop = 0.87 - (1.0 - share) * rate
    assert drop >= margin
    drawn = np.stack([broken(rng, 0.87, 0.0, shape), broken(rng, rate, share, shape)], axis=1)
    assert rejections(drawn, k, margin=margin, better=True) <= ALPHA + RARE_ERROR


def test_the_price_of_holding_for_means_is_bounded() -> None:
    """5 of 100 robots find 0.87 -> 0.75 in a third of tests, in 6 % at the last look of a first stage; 25 in nearly all."""
    rng, runs, s = np.random.default_rng(9), 150, 1.0 / 0.05 - 1.0
    rates = [rng.beta(rate * s, (1.0 - rate) * s, (runs, 100)) for rate in (0.87, 0.75, 0.87)]
    incumbent, bad, good = (rng.binomial(40, rate) / 40 for rate in rates)
    error = 3 * math.sqrt(0.25 / runs)
    assert rejections(np.stack([incumbent, bad], axis=1), 5) >= 0.31 - error
    last_look = ALPHA * CanaryConfig(unit=Unit.ROBOT).stake(0) * LOOKS[-1][1]
    few_of_a_stage = rejections(np.stack([incumbent, bad], axis=1), 5, alpha=last_look)
    assert abs(few_of_a_stage - 0.06) <= 3 * math.sqrt(0.06 * 0.94 / runs)
    assert rejections(np.stack([incumbent, bad], axis=1), 25, alpha=last_look) >= 0.9
    assert rejections(np.stack([incumbent, good], axis=1), 50, margin=0.1, better=True) >= 0.9
    assert smallest_drop(30, ALPHA) == pytest.approx(0.095, abs=1e-3) and smallest_drop(0, ALPHA) == 1.0


def test_one_robot_among_few_can_never_convict_and_says_so() -> None:
    cohort = RobotCohort({f"r{n}": int(n == 0) for n in range(10)}, 1, "s")
    assert cohort.largest_log_e == pytest.approx(math.log(10))
    process, tallies = RobotEProcess(), Tallies(1)
    for n in range(10):
        tallies.add(f"r{n}", [float(n != 0)], silent=False)  # the canary fails, all others succeed
    for group, (mean,), _, pi in cohort.heard(tallies):
        process.update(group, mean, pi)
    assert 0.0 < process.log_e <= cohort.largest_log_e and not process.rejects(ALPHA)


def test_extreme_means_stay_finite() -> None:
    for incumbent, canary in itertools.product((0.0, 1.0), repeat=2):
        process = RobotEProcess()
        for n in range(2000):
            process.update(n % 2, canary if n % 2 else incumbent, 0.5)
        assert math.isfinite(process.log_e)
        assert process.rejects(1e-9) == (canary < incumbent)


@pytest.mark.parametrize(
    ("robots", "shares", "rate"), [(20, tuple(n / 10 for n in range(1, 10)), 0.8), (30, (0.2, 0.4, 0.6, 0.8), 0.9)]
)
def test_incumbents_that_come_again_in_later_stages_convict_nobody_more_often_than_promised(
    robots, shares, rate
) -> None:
    """Each robot always fails or never does, with the incumbent; with the canary all have the rate: the means are equal.

    What stage 1 showed of a robot is known in stage 2. A process that goes on through the stages convicts 9 % of such rollouts at
    α = 5 % (2,000 runs; Monte-Carlo error at α: 0.5 %).
    """
    stages = (*(Stage(f"{share}", share, 1.0, None) for share in shares), Stage("full", 1.0, 0.0, None))
    config = CanaryConfig(unit=Unit.ROBOT, stages=stages)
    assert math.fsum(map(config.stake, range(len(shares)))) == pytest.approx(1.0)
    rng, runs, convicted = np.random.default_rng(13), 2000, 0
    for _ in range(runs):
        traits = (rng.random(robots) < rate).astype(float)
        process, before = RobotEProcess(prior=RobotPrior(rate, 0.4)), 0
        for stage, share in enumerate(shares):
            after = int(share * robots + 1e-9)
            left = after - before
            process.restart(config.stake(stage))
            order = before + rng.permutation(robots - before)  # robots are exchangeable: any are drawn
            for index, robot in enumerate(order):
                canary = int(robot < after)
                process.update(canary, rate if canary else float(traits[robot]), left / (robots - before - index))
                left -= canary
            before = after
        convicted += process.rejects(ALPHA)
    assert convicted / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_a_drop_that_comes_with_a_later_stage_is_not_hidden_by_the_earlier_ones() -> None:
    """25 of 100 robots with an equal version, then 25 of the other 75 with 0.75, each stage with half of α."""
    runs, s, found = 300, 19.0, 0
    rng = np.random.default_rng(11)
    for _ in range(runs):
        process = RobotEProcess()
        for robots, rate in ((100, 0.87), (75, 0.75)):
            process.restart(0.5)
            canary, left = rng.permutation(robots) < 25, 25
            rates = rng.beta(np.where(canary, rate, 0.87) * s, np.where(canary, 1.0 - rate, 0.13) * s)
            for index, x in enumerate(rng.binomial(40, rates) / 40):
                process.update(int(canary[index]), float(x), left / (robots - index))
                left -= int(canary[index])
        found += process.rejects(ALPHA)
    assert found / runs >= 0.8 - 3 * math.sqrt(0.25 / runs)


def test_a_new_stage_begins_from_nothing_and_keeps_only_how_strong_the_evidence_was() -> None:
    first, second = RobotEProcess(0.05), RobotEProcess(0.05)
    for n in range(20):
        first.update(n % 2, 0.1 if n % 2 else 0.9, 0.5)
    top = first.max_log_e
    assert top > 3.0
    first.restart()
    assert first.log_e == 0.0 and first.max_log_e == top
    for x in np.random.default_rng(0).random(10):
        assert first.update(0, float(x), 0.5) == second.update(0, float(x), 0.5)


def test_a_prior_from_history_has_its_mean_and_spread() -> None:
    prior = RobotPrior.from_history([0.8, 0.9, 1.0])
    assert prior.mean == pytest.approx(0.9) and prior.sd == pytest.approx(0.1) and prior.robots == 3
    assert RobotPrior.from_history([0.9] * 50).sd > 0 and RobotPrior.from_history([0.9] * 50).robots == 10


def test_what_cannot_be_is_refused() -> None:
    process = RobotEProcess()
    for call, code in (
        (lambda: process.update(2, 0.5, 0.5), "INPUT_ARM"),
        (lambda: process.update(0, 1.5, 0.5), "INPUT_RATE"),
        (lambda: process.update(0, 0.5, 1.5), "INPUT_PROBABILITY"),
        (lambda: process.update(CANARY, 0.5, 0.0), "INPUT_PROBABILITY"),
        (lambda: process.update(INCUMBENT, 0.5, 1.0), "INPUT_PROBABILITY"),
        (lambda: process.rejects(1.0), "INPUT_PROBABILITY"),
        (lambda: RobotEProcess(-0.1), "INPUT_MARGIN"),
        (lambda: RobotPrior(sd=0.0), "INPUT_VALUE"),
        (lambda: RobotPrior(sd=1e300), "INPUT_VALUE"),
        (lambda: RobotPrior(robots=math.inf), "INPUT_VALUE"),
        (lambda: RobotPrior(mean=1.5), "INPUT_RATE"),
        (lambda: RobotPrior.from_history([0.5]), "INPUT_COUNT"),
        (lambda: RobotPrior.from_history([0.5, 1.5]), "INPUT_RATE"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
