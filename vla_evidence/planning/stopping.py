# SPDX-License-Identifier: Apache-2.0
"""When does a sequential test stop? Stopping times by simulation, each figure with its Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import Bar, Tick, no_bar
from vla_evidence.errors import InputError, check_probability, check_rate
from vla_evidence.sequential.sign_test import MAX_PAIRS, SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import SpendingFunction, obrien_fleming
from vla_evidence.sequential.two_sample import CANARY, BetaPrior, log_e_paths

_UNITS_AT_ONCE, _MOST_UNITS = 1 << 20, 1 << 22
_FEWEST_RUNS, _MOST_RUNS, _SIZING_RUNS = 2, 10_000_000, 4000
_LARGEST_GROWTH = 4.0
_FIRST_UNITS = 512
_quantile = NormalDist().inv_cdf


@dataclass(frozen=True)
class Stopping:
    """When each of many simulated runs was decided.

    Attributes:
        times: shape [runs]: canary episodes (or pairs) until the decision; infinite: undecided at the horizon.
        horizon: how long each run was looked at.
        units: the same in episodes of both groups together.
    """

    times: NDArray[np.float64]
    horizon: float
    units: NDArray[np.float64]

    @property
    def decided(self) -> tuple[float, float]:
        """Share of runs decided within the horizon, and its Monte-Carlo standard error."""
        return share_and_error(float(np.isfinite(self.times).mean()), self.times.size)

    @property
    def mean(self) -> tuple[float, float]:
        """Mean time in the test (an undecided run counts the whole horizon), and its Monte-Carlo standard error."""
        spent = np.minimum(self.times, self.horizon)
        return float(spent.mean()), float(spent.std(ddof=1) / math.sqrt(spent.size))

    @property
    def mean_decided(self) -> tuple[float, float]:
        """Mean time of the runs that were decided, and its Monte-Carlo standard error; infinite if there are none."""
        spent = self.times[np.isfinite(self.times)]
        if spent.size < 2:
            return math.inf, math.inf
        return float(spent.mean()), float(spent.std(ddof=1) / math.sqrt(spent.size))

    def quantile(self, q: float) -> float:
        """Return the time at which the share ``q`` of all runs is decided; infinite if that lies beyond the horizon."""
        return float(np.quantile(self.times, check_probability("q", q), method="inverted_cdf"))


class TooLargeError(InputError):
    """INPUT_COUNT: there are formulas for this design, but it is too large to be simulated."""


def share_and_error(share: float, runs: int) -> tuple[float, float]:
    """Return a share of runs with its Monte-Carlo standard error (not 0 where the share is 0)."""
    smoothed = (share * runs + 2.0) / (runs + 4.0)
    return share, math.sqrt(smoothed * (1.0 - smoothed) / (runs + 4.0))


def check_runs(runs: int, seed: int = 0) -> None:
    """Refuse a number of runs that gives no Monte-Carlo error or does not fit into memory, and a seed that is none."""
    if not _FEWEST_RUNS <= runs <= _MOST_RUNS:
        raise InputError("INPUT_COUNT", "runs", f"{runs} does not lie between {_FEWEST_RUNS} and {_MOST_RUNS:,}")
    if not 0 <= seed < 1 << 64:
        raise InputError("INPUT_COUNT", "seed", f"{seed} does not lie between 0 and 2^64 - 1")


def batches(runs: int, units: int) -> Iterator[int]:
    """Yield numbers of runs that add up to ``runs`` and keep memory bounded."""
    check_runs(runs)
    if units > _MOST_UNITS:
        reason = f"{units:,} episodes a run, more than {_MOST_UNITS:,}: too small a difference, or too large a fleet, to simulate"
        raise TooLargeError("INPUT_COUNT", "runs", reason)
    size = max(1, _UNITS_AT_ONCE // max(1, units))
    for begin in range(0, runs, size):
        yield min(size, runs - begin)


def detection_times(
    incumbent: float,
    canary: float,
    share: float,
    *,
    alpha: float,
    horizon: int,
    runs: int,
    rng: np.random.Generator,
    priors: tuple[BetaPrior, BetaPrior] | None = None,
    earlier: Sequence[tuple[float, int]] = (),
    progress: Tick | None = None,
) -> Stopping:
    """Simulate the canary's e-process on episodes randomised one by one; return canary episodes until it rejects.

    Stages before, in which the canary was as good as the incumbent, cost evidence that must be won back; their episodes are not
    counted.

    Args:
        incumbent, canary: success rates.
        share: probability with which an episode goes to the canary.
        horizon: canary episodes, on average, after which a run is given up.
        priors: of incumbent and canary; uniform by default.
        earlier: (share, episodes) of each stage before.
    """
    check_rate("incumbent", incumbent)
    check_rate("canary", canary)
    check_probability("share", share)
    units = math.ceil(horizon / share)
    prior = priors or (BetaPrior(), BetaPrior())
    counts = (tuple(p.successes for p in prior), tuple(p.successes + p.failures for p in prior))
    limit = -math.log(check_probability("alpha", alpha))
    times, total = [], []
    for size in batches(runs, units + sum(episodes for _, episodes in earlier)):
        begin = np.zeros((size, 1))
        for its_share, episodes in earlier:
            groups = (rng.random((size, episodes)) < its_share).astype(np.int8)
            ys = rng.random(groups.shape) < incumbent
            begin += log_e_paths(groups, ys, its_share, counts=counts)[:, -1:]
        exposed, when, running = np.full(size, np.inf), np.full(size, np.inf), np.arange(size)
        groups, ys = np.empty((size, 0), np.int8), np.empty((size, 0), np.bool_)
        while running.size and groups.shape[1] < units:  # twice as long each time, for those that are not decided
            more = (running.size, min(max(groups.shape[1], _FIRST_UNITS), units - groups.shape[1]))
            drawn = (rng.random(more) < share).astype(np.int8)
            success = rng.random(more) < np.where(drawn == CANARY, canary, incumbent)
            groups, ys = np.concatenate([groups, drawn], axis=1), np.concatenate([ys, success], axis=1)
            crossed = begin[running] + log_e_paths(groups, ys, share, counts=counts) >= limit
            found, first = crossed.any(axis=1), crossed.argmax(axis=1)
            canaries = np.cumsum(groups, axis=1, dtype=np.int64)[np.arange(len(first)), first]
            exposed[running[found]], when[running[found]] = canaries[found], first[found] + 1
            running, groups, ys = running[~found], groups[~found], ys[~found]
        times.append(exposed)
        total.append(when)
        if progress:
            progress(size)
    return Stopping(np.concatenate(times), horizon, np.concatenate(total))


def sign_test_pairs(
    rate_a: float, rate_b: float, *, alpha: float, power: float, first: int, runs: int, seed: int,
    spending: SpendingFunction = obrien_fleming, bar: Bar = no_bar,
) -> Stopping:  # fmt: skip
    """Return the stopping times at the number of pairs (``horizon``) that gives the power: from ``first``, scaled twice.

    A test's standardised effect grows with the root of its size: N is multiplied by ((z_α + z_power) / (z_α + z_reached))². So an
    error of 0.01 in the power is one of about 2.5 % in N: at least 4,000 runs are made.
    """
    check_runs(runs, seed)
    runs = max(runs, _SIZING_RUNS)
    z_alpha, z_power = -_quantile(check_probability("alpha", alpha) / 2.0), _quantile(check_probability("power", power))
    pairs = first
    for step in range(3):
        if pairs > MAX_PAIRS:
            reason = f"it would take {pairs:,} or more, and the exact sign test is limited to {MAX_PAIRS:,}"
            raise TooLargeError("INPUT_COUNT", "pairs", reason)
        rng, times = np.random.default_rng([seed, step]), []
        design = SignTestDesign(pairs, alpha, two_sided=True, spending=spending)
        with bar(f"exact sign test, at most {pairs:,} pairs", runs) as tick:
            for size in batches(runs, pairs):
                signs = (rng.random((size, pairs)) < rate_b).astype(np.int8) - (rng.random((size, pairs)) < rate_a)
                used, decisions = stopping_times(signs, design)
                times.append(np.where(decisions == (1 if rate_b >= rate_a else -1), used, np.inf))
                tick(size)
        stopped = np.concatenate(times)
        stopping = Stopping(stopped, pairs, 2.0 * stopped)
        reached, error = stopping.decided
        if reached >= power - error or step == 2:
            break
        growth = ((z_alpha + z_power) / (z_alpha + _quantile(max(reached, alpha)))) ** 2
        pairs = math.ceil(pairs * min(growth, _LARGEST_GROWTH))
    return stopping
