# SPDX-License-Identifier: Apache-2.0
"""When do the tests whose unit is the robot decide? By simulation of fleets whose robots differ (intraclass correlation)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import Tick
from vla_evidence.canary.robot_units import RobotEProcess, RobotPrior
from vla_evidence.errors import InputError
from vla_evidence.planning.stopping import Stopping, batches, check_runs
from vla_evidence.sequential.randomisation_test import RandomisationTest, cohort_assignments
from vla_evidence.sequential.spending import OBRIEN_FLEMING
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.simulate.fleet import FleetModel

_LOOKS = 10
_DRAWS, _MOST_ROBOTS = 999, 20_000


def check_robots(robots: int) -> None:
    """Refuse a fleet whose randomisation test is too large to simulate.

    Raises:
        InputError: INPUT_COUNT.
    """
    if robots > _MOST_ROBOTS:
        raise InputError(
            "INPUT_COUNT", "robots", f"{robots:,}, more than {_MOST_ROBOTS:,}: too many to simulate as units"
        )


def look_that_decides(
    is_b: NDArray[np.bool_], totals: NDArray[np.int64], done: NDArray[np.int64], alpha: float, icc: float, seed: str
) -> float:
    """Return the look (from 1) at which the exact randomisation test rejects, either way; infinite if it does not.

    Args:
        is_b: which robots run B, drawn with this number of them; shape [robots].
        totals: successes so far, shape [looks, robots].
        done: episodes on each robot so far, shape [looks].
        alpha, icc: of the test, two-sided, O'Brien-Fleming spending.
        seed: of its draws.
    """
    check_robots(is_b.size)
    drawn = cohort_assignments({f"{robot}": bool(b) for robot, b in enumerate(is_b)}, seed, _DRAWS)
    test = RandomisationTest(alpha, spending=OBRIEN_FLEMING, icc=icc)
    for look, episodes in enumerate(done):
        if test.look(drawn, totals[look], np.full(is_b.size, episodes), float(episodes / done[-1])).decision:
            return look + 1.0
    return math.inf


def randomisation_times(
    rate_a: float,
    rate_b: float,
    fleet: FleetModel,
    episodes: int,
    *,
    alpha: float,
    runs: int,
    rng: np.random.Generator,
    progress: Tick,
) -> Stopping:
    """Simulate an A/B test by robot, half of them each; return episodes of B (all its robots) until a difference is declared.

    Args:
        rate_a, rate_b: mean success rates.
        fleet: the robots.
        episodes: on each robot, looked at ten times.
        alpha, runs, rng, progress: as everywhere.
    """
    check_runs(runs)
    done = look_schedule(episodes)
    treated = fleet.robots // 2
    times = np.full(runs, np.inf)
    for run in range(sum(batches(runs, 1))):
        is_b, totals = robots_totals((rate_a, rate_b), fleet, treated, done, rng)
        look = look_that_decides(is_b, totals, done, alpha, fleet.icc, f"run {run}")
        if math.isfinite(look):
            times[run] = treated * float(done[int(look) - 1])
        progress(1)
    return Stopping(times, treated * episodes, times * fleet.robots / treated)


def cohort_times(
    incumbent: float,
    canary: float,
    fleet: FleetModel,
    treated: int,
    episodes: int,
    *,
    margin: float = 0.0,
    better: bool = False,
    alpha: float,
    runs: int,
    rng: np.random.Generator,
    progress: Tick,
) -> Stopping:
    """Simulate the e-process of whole robots; return episodes of the canaries, all that were planned or infinitely many.

    Robots run side by side and are looked at together, so a cohort decides at its end or never. This is one look of one stage:
    in a rollout stages and looks share α (:meth:`CanaryConfig.stake`, :data:`~vla_evidence.canary.robot_cohort.LOOKS`).

    Args:
        incumbent, canary: mean success rates.
        fleet: the robots.
        treated: how many of them run the canary.
        episodes: on each robot.
        margin, better: as for :class:`vla_evidence.canary.robot_units.RobotEProcess`.
        alpha: of this stage alone.
        runs, rng, progress: as everywhere.
    """
    check_runs(runs)
    limit = -math.log(alpha)
    done = np.array([episodes])
    prior = RobotPrior(mean=incumbent)
    times = np.full(runs, np.inf)
    for run in range(sum(batches(runs, 1))):
        is_canary, totals = robots_totals((incumbent, canary), fleet, treated, done, rng)
        process, left = RobotEProcess(margin, prior=prior, better=better), treated
        for index, (member, successes) in enumerate(zip(is_canary, totals[0], strict=True)):
            process.update(CANARY if member else INCUMBENT, float(successes) / episodes, left / (fleet.robots - index))
            left -= int(member)
        if (process.log_e if better else process.max_log_e) >= limit:  # as the judge of a canary
            times[run] = treated * episodes
        progress(1)
    return Stopping(times, treated * episodes, times * fleet.robots / treated)


def look_schedule(episodes: int) -> NDArray[np.int64]:
    """Return episodes on each robot at each of ten looks (fewer if there are fewer episodes)."""
    looks = min(_LOOKS, episodes)
    return np.round(np.linspace(episodes / looks, episodes, looks)).astype(np.int64)


def robots_totals(
    means: tuple[float, float], fleet: FleetModel, treated: int, done: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return who was drawn for B, shape [robots], and successes of each robot so far, shape [looks, robots]."""
    is_b = rng.permutation(fleet.robots) < treated
    rates = fleet.rates(means, 1, rng)[:, 0]
    steps = np.diff(done, prepend=0)
    return is_b, np.cumsum(rng.binomial(steps[:, None], np.where(is_b, rates[1], rates[0])), axis=0)
