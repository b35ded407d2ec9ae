# SPDX-License-Identifier: Apache-2.0
"""Whole rollouts, many at once: what the judge of a canary does at the end of each stage, and what a plain threshold does.

The judge's decisions are those of :class:`judge.CanaryJudge` with success alone judged (a test compares them):
roll back when the e-process reaches 1/α, at once; at a stage's end go on if nothing leans against the canary and the stage's
margin is excluded, else hold and ask a person, which ends a run here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import Tick
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.stages import Stage
from vla_evidence.planning.stopping import batches
from vla_evidence.sequential.non_inferiority import NonInferiority
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, log_e_paths
from vla_evidence.simulate.fleet import RNG, FleetModel
from vla_evidence.simulate.rules import should_advance

ROLLED_BACK, HELD, FULL = "rolled back", "held for a person", "reached all robots"
OUTCOMES = (ROLLED_BACK, HELD, FULL)


@dataclass(frozen=True)
class Rollouts:
    """How many rollouts ended.

    Attributes:
        outcome: of each run, an index into :data:`OUTCOMES`; shape [runs].
        stage: at whose end, or within which, it ended; shape [runs].
        hours: after which; shape [runs].
        canary_episodes: run by the new version until then (the last stage aside); shape [runs].
    """

    outcome: NDArray[np.int64]
    stage: NDArray[np.int64]
    hours: NDArray[np.float64]
    canary_episodes: NDArray[np.float64]

    def share(self, outcome: str) -> float:
        """Return the share of runs that ended so."""
        return float((self.outcome == OUTCOMES.index(outcome)).mean())


def judged(
    fleet: FleetModel,
    means: tuple[float, float],
    per_hour: float,
    config: CanaryConfig,
    runs: int,
    rng: RNG,
    progress: Tick,
) -> Rollouts:
    """Simulate rollouts by the judge; every robot holds both versions, and each episode is drawn with the stage's share.

    Args:
        fleet: the robots.
        means: success rates of incumbent and canary.
        per_hour: episodes that a robot does an hour.
        config: of the judge; success alone is judged.
        runs, rng, progress: as everywhere.
    """
    stages = [stage for stage in config.stages if stage.share < 1.0]
    hours = np.array([stage.duration_s / 3600.0 for stage in stages])
    units = np.round(fleet.robots * per_hour * hours).astype(np.int64)
    share = np.repeat([stage.share for stage in stages], units)
    priors = (config.incumbent_prior, config.canary_prior)
    counts = (tuple(p.successes for p in priors), tuple(p.successes + p.failures for p in priors))
    ended = []
    for size in batches(runs, int(units.sum())):
        rates = fleet.rates(means, size, rng)
        robot = rng.integers(fleet.robots, size=(size, len(share)))
        groups = (rng.random(robot.shape) < share).astype(np.int8)
        rate = np.where(groups == CANARY, *(np.take_along_axis(rates[g], robot, axis=1) for g in (CANARY, INCUMBENT)))
        ys = rng.random(robot.shape) < rate
        paths, begin = np.zeros(groups.shape), 0
        for stage_units in units:  # each stage learns anew, and goes on from the evidence there is
            part = slice(begin, begin + int(stage_units))
            path = log_e_paths(groups[:, part], ys[:, part], share[part], margin=config.harm_margin, counts=counts)
            paths[:, part] = path + (paths[:, begin - 1 : begin] if begin else 0.0)
            begin = part.stop
        drawn = zip(paths, groups, ys, strict=True)
        ended += [_end_of(path, group, y, stages, units, hours, config) for path, group, y in drawn]
        progress(size)
    outcome, stage, time, episodes = (np.array(column) for column in zip(*ended, strict=True))
    return Rollouts(outcome.astype(np.int64), stage.astype(np.int64), time, episodes)


def _end_of(
    path: NDArray[np.float64],
    groups: NDArray[np.int8],
    ys: NDArray[np.bool_],
    stages: Sequence[Stage],
    units: NDArray[np.int64],
    hours: NDArray[np.float64],
    config: CanaryConfig,
) -> tuple[int, int, float, float]:
    """Return (outcome, stage, hours, canary episodes) of one run."""
    crossed = path >= -math.log(config.alpha)
    harm = int(crossed.argmax()) if crossed.any() else len(path)
    margins = [stage.margin for stage in stages if stage.margin is not None]
    begin, elapsed = 0, 0.0
    for index, (stage, size, length) in enumerate(zip(stages, units, hours, strict=True)):
        end = begin + int(size)
        if harm < end:
            into = (harm - begin + 1) / size * length
            return OUTCOMES.index(ROLLED_BACK), index, elapsed + into, float(groups[: harm + 1].sum())
        elapsed += length
        excluded = NonInferiority(margins, incumbent=config.incumbent_prior)  # by this stage alone
        excluded.add_many(groups[begin:end], ys[begin:end], stage.share)
        drop = excluded.excluded_drop(config.advance_alpha)
        enough = min(np.bincount(groups[begin:end], minlength=2)) >= config.min_episodes
        proven = stage.margin is None or (drop is not None and drop <= stage.margin)
        leans = end > 0 and path[end - 1] > math.log(config.advance_max_evidence)
        if not (enough and proven) or leans:
            return OUTCOMES.index(HELD), index, elapsed, float(groups[:end].sum())
        begin = end
    return OUTCOMES.index(FULL), len(stages), elapsed, float(groups.sum())


def threshold_rule(
    fleet: FleetModel, means: tuple[float, float], per_hour: float, stages: Sequence[Stage], runs: int, rng: RNG
) -> Rollouts:
    """Simulate rollouts by "new mean >= old mean - 0.02 from 50 samples on", asked at the end of each stage.

    ``int(robots * share)`` robots run the new version for all of their episodes; a refusal is taken as a rollback, too few
    samples as waiting, which ends a run here.
    """
    limited = [stage for stage in stages if stage.share < 1.0]
    rates = fleet.rates(means, runs, rng)
    rates = np.take_along_axis(rates, np.argsort(rng.random(rates.shape[1:]), axis=1)[None], axis=2)  # who is a canary
    outcome = np.full(runs, OUTCOMES.index(FULL))
    at, time = np.full(runs, len(limited)), np.full(runs, sum(stage.duration_s for stage in limited) / 3600.0)
    exposed, going = np.zeros(runs), np.ones(runs, dtype=bool)
    successes, episodes, elapsed = np.zeros((2, runs)), np.zeros(2), 0.0
    for index, stage in enumerate(limited):
        robots, each = int(fleet.robots * stage.share), round(per_hour * stage.duration_s / 3600.0)
        elapsed += stage.duration_s / 3600.0
        episodes += each * np.array([fleet.robots - robots, robots])
        successes[INCUMBENT] += rng.binomial(each, rates[INCUMBENT][:, robots:]).sum(axis=1)
        successes[CANARY] += rng.binomial(each, rates[CANARY][:, :robots]).sum(axis=1)
        exposed[going] += each * robots
        enough, good = should_advance(successes[CANARY], episodes[CANARY], successes[INCUMBENT], episodes[INCUMBENT])
        for condition, result in ((~enough, HELD), (enough & ~good, ROLLED_BACK)):
            stopped = going & condition
            outcome[stopped], at[stopped], time[stopped] = OUTCOMES.index(result), index, elapsed
            going &= ~stopped
    return Rollouts(outcome, at, time, exposed)


def passes_if_asked_always(
    fleet: FleetModel, means: tuple[float, float], per_hour: float, stage: Stage, runs: int, rng: RNG
) -> float:
    """Return the share of updates that pass a stage where that rule is asked after every canary episode, and once is enough."""
    robots, each = int(fleet.robots * stage.share), round(per_hour * stage.duration_s / 3600.0)
    if robots < 1:
        return 0.0
    beside = (fleet.robots - robots) / robots  # episodes of the incumbent beside each of the canary
    n = np.arange(1, robots * each + 1)
    n_old = np.round(beside * n).astype(np.int64)
    passed = 0
    for size in batches(runs, robots * each):
        rates = fleet.rates(means, size, rng)
        own = np.take_along_axis(rates[CANARY], rng.integers(robots, size=(size, n.size)), axis=1)
        new = np.cumsum(rng.random(own.shape) < own, axis=1)
        old_rate = rates[INCUMBENT][:, robots:].mean(axis=1, keepdims=True)
        old = np.cumsum(rng.binomial(np.diff(n_old, prepend=0), np.broadcast_to(old_rate, own.shape)), axis=1)
        passed += int(should_advance(new, n, old, n_old)[1].any(axis=1).sum())
    return passed / runs
