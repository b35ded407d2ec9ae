# SPDX-License-Identifier: Apache-2.0
"""Simulated A/B tests: the same episodes given to several rules, and when each declares a winner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr  # type: ignore[import-untyped]

from vla_evidence.analysis import Tick
from vla_evidence.planning.stopping import batches, look_schedule, look_that_decides, robots_totals
from vla_evidence.sequential.sign_test import SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import OBRIEN_FLEMING
from vla_evidence.simulate.fleet import RNG, FleetModel
from vla_evidence.simulate.rules import intervals_apart, z_test

INTERVALS, Z_TEST, WELCH = "Wilson intervals apart", "z test of episodes", "Welch's test of robots"
SIGN_TEST, RANDOMISATION_TEST = "exact sign test", "exact randomisation test"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """What the rules said in many runs of one situation.

    Attributes:
        runs: how many.
        looks: made at most.
        looks_text: how often they look, in words.
        episodes_a_look: on each robot, all versions together.
        at_look: rule → share of runs in which it would declare a winner if look k were its only one, shape [looks].
        first: rule → the look at which it first declares one, infinite if it does not; shape [runs].
    """

    runs: int
    looks: int
    looks_text: str
    episodes_a_look: float
    at_look: dict[str, Floats]
    first: dict[str, Floats]

    def share_by(self, rule: str) -> Floats:
        """Return the share of runs in which the rule has declared a winner by each look."""
        return np.asarray((self.first[rule][:, None] <= np.arange(1, self.looks + 1)).mean(axis=0))


def paired_runs(
    robots: int,
    icc: float,
    means: tuple[float, float],
    rounds: int,
    pairs: int,
    alpha: float,
    runs: int,
    rng: RNG,
    progress: Tick,
) -> Runs:
    """Simulate rounds of one pair (one episode with either version) on each robot.

    Args:
        robots, icc: the fleet.
        means: success rates of A and B.
        rounds: made.
        pairs: at which the exact sign test ends.
        alpha, runs, rng, progress: as everywhere.
    """
    fleet = FleetModel(robots, icc)
    design = SignTestDesign(pairs, alpha, two_sided=True, spending=OBRIEN_FLEMING)
    n = robots * np.arange(1, rounds + 1)
    at_look = {Z_TEST: np.zeros(rounds), INTERVALS: np.zeros(rounds)}
    first: dict[str, list[Floats]] = {Z_TEST: [], INTERVALS: [], SIGN_TEST: []}
    for size in batches(runs, 2 * robots * rounds):
        rates = fleet.rates(means, size, rng)
        y = rng.random((2, size, rounds, robots)) < rates[:, :, None, :]
        a, b = np.cumsum(y.sum(axis=3), axis=2)
        for rule, flags in ((Z_TEST, z_test(a, n, b, n, alpha)), (INTERVALS, intervals_apart(a, n, b, n))):
            at_look[rule] += flags.sum(axis=0) / runs
            first[rule].append(_first(flags))
        signs = (y[1].astype(np.int8) - y[0]).reshape(size, -1)[:, :pairs]
        used, decisions = stopping_times(signs, design)
        first[SIGN_TEST].append(np.where(decisions != 0, used / robots, np.inf))
        progress(size)
    found = {rule: np.concatenate(parts) for rule, parts in first.items()}
    return Runs(runs, rounds, "every round", 2.0, at_look, found)


def by_robot_runs(
    robots: int,
    icc: float,
    means: tuple[float, float],
    episodes: int,
    alpha: float,
    runs: int,
    rng: RNG,
    progress: Tick,
) -> Runs:
    """Simulate a fleet of which a random half runs B: ``episodes`` on each robot, looked at ten times."""
    fleet = FleetModel(robots, icc)
    done = look_schedule(episodes)
    looks = len(done)
    rules: dict[str, Callable[[Floats, Floats, NDArray[np.int64]], bool]] = {
        Z_TEST: lambda a, b, m: bool(z_test(a.sum(), a.size * m, b.sum(), b.size * m, alpha)),
        INTERVALS: lambda a, b, m: bool(intervals_apart(a.sum(), a.size * m, b.sum(), b.size * m)),
        WELCH: lambda a, b, m: _welch(a / m, b / m) < alpha,
    }
    flags = {rule: np.zeros((runs, looks), dtype=bool) for rule in rules}
    ours = np.full(runs, np.inf)
    for run in range(runs):
        is_b, totals = robots_totals(means, fleet, robots // 2, done, rng)
        for look, m in enumerate(done):
            for rule, decides in rules.items():
                flags[rule][run, look] = decides(totals[look, ~is_b], totals[look, is_b], m)
        ours[run] = look_that_decides(is_b, totals, done, alpha, icc, f"run {run}")
        progress(1)
    first = {rule: _first(found) for rule, found in flags.items()}
    at_look = {rule: np.asarray(found.mean(axis=0)) for rule, found in flags.items()}
    return Runs(runs, looks, f"{looks}", episodes / looks, at_look, {**first, RANDOMISATION_TEST: ours})


def _first(flags: NDArray[np.bool_]) -> Floats:
    """Return the first look (from 1) that is flagged, infinite if none is; flags: shape [runs, looks]."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1) + 1.0, np.inf)


def _welch(a: Floats, b: Floats) -> float:
    """Return the two-sided p-value of Welch's t test; 1 where nothing varies or an arm has one robot."""
    if min(a.size, b.size) < 2:
        return 1.0
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if va + vb == 0.0:
        return 1.0
    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    return float(2.0 * stdtr(freedom, -abs(a.mean() - b.mean()) / np.sqrt(va + vb)))
