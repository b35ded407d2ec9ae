# SPDX-License-Identifier: Apache-2.0
"""Robots differ: what that does to tests that count episodes, where whole robots run the canary and where episodes are drawn.

A hundred robots with 40 episodes each; a robot's success rate is beta-distributed with mean 0.87, and the correlation between
two of its episodes (ICC) is 0.05. Either five robots, drawn at random, are canaries, or every episode goes to the canary with
probability 0.05, each robot holding both versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr  # type: ignore[import-untyped]

from benchmarks.evidence.montecarlo import Experiment, Outcome
from benchmarks.evidence.tables import EstimateTable, Figure
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.robot_cohort import LOOKS
from vla_evidence.canary.robot_units import RobotEProcess, RobotPrior
from vla_evidence.canary.stages import Unit
from vla_evidence.sequential.randomisation_test import RandomisationTest, cohort_assignments
from vla_evidence.sequential.two_sample import log_e_paths

ROBOTS, CANARIES, EPISODES, EARLIER = 100, 5, 40, 20
STAKE = CanaryConfig(unit=Unit.ROBOT).stake(0) * LOOKS[-1][1]
RATE, WORSE_RATE, ICC, ALPHA = 0.87, 0.75, 0.05, 0.05
_LOG_LIMIT = -math.log(ALPHA)
_DRAWS = 999
_LOOKS = (10, 20, 30, 40)

Bools = NDArray[np.bool_]


def draw(rng: np.random.Generator, runs: int, *, canary: float) -> Outcome:
    """Return, for each test, whether it says that the canary is worse."""
    strength = 1.0 / ICC - 1.0
    rates = rng.beta(RATE * strength, (1.0 - RATE) * strength, (runs, ROBOTS))
    whole = np.arange(ROBOTS) < CANARIES  # any five: robots are exchangeable
    by_robot = rng.random((runs, ROBOTS, EPISODES)) < (rates * np.where(whole, canary / RATE, 1.0))[:, :, None]
    groups = rng.random((runs, EPISODES, ROBOTS)) < CANARIES / ROBOTS
    by_episode = rng.random(groups.shape) < rates[:, None, :] * np.where(groups, canary / RATE, 1.0)
    orders = np.argsort(rng.random((runs, EPISODES, ROBOTS)), axis=2)
    in_order = np.take_along_axis(by_robot.transpose(0, 2, 1), orders, axis=2).reshape(runs, -1)
    found: dict[str, NDArray[Any]] = {
        _Z_ROBOT: _z_rejects(by_robot[:, whole].reshape(runs, -1), by_robot[:, ~whole].reshape(runs, -1)),
        _E_ROBOT: _e_rejects((orders < CANARIES).reshape(runs, -1), in_order),
        _WELCH: _welch_rejects(by_robot.mean(axis=2), whole),
        **_units(by_robot.mean(axis=2), rng),
        _RANDOMISATION: np.array([_randomisation_rejects(successes) for successes in by_robot]),
        _Z_EPISODE: _z_pooled(groups.reshape(runs, -1), by_episode.reshape(runs, -1)),
        _E_EPISODE: _e_rejects(groups.reshape(runs, -1), by_episode.reshape(runs, -1)),
    }
    return found


def _z_rejects(canary: Bools, incumbent: Bools) -> Bools:
    n1, n0 = float(canary.shape[1]), float(incumbent.shape[1])
    return _z(canary.sum(axis=1), n1, incumbent.sum(axis=1), n0)


def _z_pooled(groups: Bools, ys: Bools) -> Bools:
    return _z((ys & groups).sum(axis=1), groups.sum(axis=1), (ys & ~groups).sum(axis=1), (~groups).sum(axis=1))


def _z(x1: NDArray[Any], n1: Any, x0: NDArray[Any], n0: Any) -> Bools:
    pooled = (x1 + x0) / (n1 + n0)
    return np.asarray((x1 / n1 - x0 / n0) < ndtri(ALPHA) * np.sqrt(pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n0)))


def _e_rejects(groups: Bools, ys: Bools) -> Bools:
    return np.asarray(log_e_paths(groups.astype(np.int8), ys, CANARIES / ROBOTS).max(axis=1) >= _LOG_LIMIT)


def _welch_rejects(means: NDArray[np.float64], canaries: Bools) -> Bools:
    """Welch's t test of robots' means, one-sided: the canary's lie lower."""
    (m1, v1, n1), (m0, v0, n0) = (
        (x.mean(axis=1), x.var(axis=1, ddof=1) / x.shape[1], x.shape[1])
        for x in (means[:, canaries], means[:, ~canaries])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (v1 + v0) ** 2 / (v1**2 / (n1 - 1) + v0**2 / (n0 - 1))
        return np.asarray(stdtr(freedom, (m1 - m0) / np.sqrt(v1 + v0)) < ALPHA)


def _largest_log_e(means: NDArray[np.float64], order: NDArray[Any], prior: RobotPrior) -> float:
    process = RobotEProcess(prior=prior)
    left = CANARIES
    for seen, robot in enumerate(order.tolist()):
        canary = int(robot < CANARIES)
        process.update(canary, float(means[robot]), left / (ROBOTS - seen))
        left -= canary
    return process.max_log_e


def _units(means: NDArray[np.float64], rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Return what the e-process of robots says: plainly, at a stage's share of α, and with a prior from ``EARLIER`` robots."""
    runs = len(means)
    strength = 1.0 / ICC - 1.0
    rates = rng.beta(RATE * strength, (1.0 - RATE) * strength, (runs, EARLIER))
    history = rng.binomial(EPISODES, rates) / EPISODES
    orders = np.argsort(rng.random(means.shape), axis=1)
    plain, informed = RobotPrior(), [RobotPrior.from_history(earlier.tolist()) for earlier in history]
    largest = np.array([_largest_log_e(means[run], orders[run], plain) for run in range(runs)])
    largest_informed = np.array([_largest_log_e(means[run], orders[run], informed[run]) for run in range(runs)])
    return {
        _UNITS: largest >= _LOG_LIMIT,
        _UNITS_STAGE: largest >= _LOG_LIMIT - math.log(STAKE),
        _UNITS_INFORMED: largest_informed >= _LOG_LIMIT,
    }


@lru_cache(maxsize=1)
def _assignments() -> Bools:
    return cohort_assignments({str(robot): robot < CANARIES for robot in range(ROBOTS)}, "bench", _DRAWS)


def _randomisation_rejects(successes: Bools) -> bool:
    test = RandomisationTest(ALPHA, two_sided=False)
    for look in _LOOKS:
        failures = (~successes[:, :look]).sum(axis=1)
        if test.look(_assignments(), failures, np.full(ROBOTS, look), look / EPISODES).decision:
            return True
    return False


_Z_ROBOT = "whole robots: z test of episodes, once"
_E_ROBOT = "whole robots: e-process of episodes (the wrong unit)"
_WELCH = "whole robots: Welch on robots' means, once"
_UNITS = "whole robots: ours, e-process of robots"
_UNITS_STAGE = f"whole robots: ours, the same, at the last look of a first stage ({STAKE:g} α)"
_UNITS_INFORMED = "whole robots: ours, the same, prior from earlier robots"
_RANDOMISATION = f"whole robots: ours, randomisation test, {len(_LOOKS)} looks"
_Z_EPISODE = "per episode: z test of episodes, once"
_E_EPISODE = "per episode: ours, e-process of episodes"
_TESTS = (_Z_ROBOT, _E_ROBOT, _WELCH, _UNITS, _UNITS_STAGE, _UNITS_INFORMED, _RANDOMISATION, _Z_EPISODE, _E_EPISODE)
_CASES: dict[str, Callable[..., Outcome]] = {
    "clusters, equal": partial(draw, canary=RATE),
    "clusters, worse": partial(draw, canary=WORSE_RATE),
}


def experiments() -> list[Experiment]:
    """Return all of this part."""
    return [Experiment(name, case, 20) for name, case in _CASES.items()]


def tables() -> list[EstimateTable]:
    """Return the table that :func:`experiments` fill."""
    table = EstimateTable(
        f"Robots differ (ICC {ICC}): {CANARIES} of {ROBOTS} robots or {CANARIES} % of episodes, {EPISODES} a robot, α = {ALPHA}",
        ["assignment: test", "equal canary: blamed", f"canary of {WORSE_RATE}: found"],
    )
    for test in _TESTS:
        table.add(test, *(Figure(name, test, "share", ".2%") for name in _CASES))
    return [table]
