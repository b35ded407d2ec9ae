# SPDX-License-Identifier: Apache-2.0
"""Whole rollouts in a simulated fleet: by the judge of a canary itself, and by a plain threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import Tick
from vla_evidence.canary.by_robot import LOOKS
from vla_evidence.canary.config import HOUR_S, CanaryConfig, Stage, Unit
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.simulate.fleet import RNG, FleetModel
from vla_evidence.simulate.rules import should_advance
from vla_evidence.verdict import Decision

ROLLED_BACK, ASKED, FULL = "rolled back", "a person was asked", "reached all robots"
OUTCOMES = (ROLLED_BACK, ASKED, FULL)
_STEPS = 48
"""So often the judge is asked in a stage where episodes are drawn."""
_HISTORY = 144
"""Episodes of each robot before the rollout, where robots are drawn."""


@dataclass(frozen=True)
class Rollouts:
    """How many rollouts ended.

    Attributes:
        outcome: of each run, an index into :data:`OUTCOMES`; shape [runs].
        stage: at whose end, or within which, it ended; shape [runs].
        hours: after which; shape [runs].
    """

    outcome: NDArray[np.int64]
    stage: NDArray[np.int64]
    hours: NDArray[np.float64]

    def share(self, outcome: str) -> float:
        """Return the share of runs that ended so."""
        return float((self.outcome == OUTCOMES.index(outcome)).mean())

    def found_in_first_stage(self) -> float:
        """Return the share of runs that were rolled back in the first stage."""
        return float(((self.outcome == 0) & (self.stage == 0)).mean())


def judged(
    fleet: FleetModel,
    means: tuple[float, float],
    per_hour: float,
    config: CanaryConfig,
    runs: int,
    rng: RNG,
    progress: Tick,
) -> Rollouts:
    """Simulate rollouts by the judge, which alone decides; success alone is judged.

    ``means``: success rates of incumbent and canary; ``per_hour``: episodes that a robot does an hour.
    """
    ended = []
    for run in range(runs):
        rates = fleet.rates(means, 1, rng)[:, 0]
        judge = CanaryJudge(config, f"run {run} {rng.integers(1 << 62)}")
        ended.append(_one(judge, rates, per_hour, rng))
        progress(1)
    outcome, stage, hours = (np.array(column) for column in zip(*ended, strict=True))
    return Rollouts(outcome.astype(np.int64), stage.astype(np.int64), hours / HOUR_S)


def _one(judge: CanaryJudge, rates: NDArray[np.float64], per_hour: float, rng: RNG) -> tuple[int, int, float]:
    """Return (outcome, stage, seconds) of one rollout."""
    names = [f"r{n}" for n in range(rates.shape[1])]
    past = None
    if judge.config.unit is Unit.ROBOT:
        drawn = rng.binomial(_HISTORY, rates[INCUMBENT])
        past = {name: (float(s), float(_HISTORY)) for name, s in zip(names, drawn, strict=True)}
    now_s = 0.0
    for index, stage in enumerate(judge.config.stages):
        if not stage.compares:
            break
        holders = judge.begin_stage(index, now_s, names, past)
        is_canary = np.isin(names, holders)
        steps = np.diff(LOOKS, prepend=0.0) if past is not None else np.full(2 * _STEPS, 1.0 / _STEPS)
        for step in steps:
            if past is not None:
                outcomes = _of_robots(names, rates, is_canary, round(per_hour * step * stage.duration_s / HOUR_S), rng)
                judge.add_robots(outcomes)
            else:
                _episodes(judge, stage, rates, is_canary, per_hour * step * stage.duration_s / HOUR_S, rng)
            now_s += step * stage.duration_s
            decision = judge.verdict(now_s).decision
            if decision is not Decision.HOLD:
                break
        if decision is not Decision.ADVANCE:
            return (0 if decision is Decision.ROLLBACK else 1), index, now_s
    return 2, len(judge.config.stages), now_s


def _episodes(
    judge: CanaryJudge, stage: Stage, rates: NDArray[np.float64], holds: NDArray[np.bool_], each: float, rng: RNG
) -> None:
    """Let the robots that hold both versions run ``each`` episodes, on average."""
    robot = rng.choice(np.flatnonzero(holds), size=rng.poisson(each * holds.sum()))
    if robot.size:
        versions = (rng.random(robot.size) < stage.probability).astype(np.int8)
        judge.add_many(versions, rng.random(robot.size) < rates[versions, robot])


def _of_robots(
    names: Sequence[str], rates: NDArray[np.float64], is_canary: NDArray[np.bool_], each: int, rng: RNG
) -> Mapping[str, list[bool]]:
    rate = np.where(is_canary, rates[CANARY], rates[INCUMBENT])
    ys = rng.random((len(names), each)) < rate[:, None]
    return dict(zip(names, ys.tolist(), strict=True))


def threshold_rule(
    fleet: FleetModel, means: tuple[float, float], per_hour: float, stages: Sequence[Stage], runs: int, rng: RNG
) -> Rollouts:
    """Simulate rollouts by "new mean >= old mean - 0.02 from 50 samples on", asked at the end of each stage.

    ``int(robots * share)`` robots run the new version for all of their episodes, the share being that of a stage's episodes; a
    refusal is taken as a rollback, too few samples as waiting, which ends a run here.
    """
    limited = [stage for stage in stages if stage.compares]
    rates = fleet.rates(means, runs, rng)
    rates = np.take_along_axis(rates, np.argsort(rng.random(rates.shape[1:]), axis=1)[None], axis=2)  # who is a canary
    outcome = np.full(runs, OUTCOMES.index(FULL))
    at, time = np.full(runs, len(limited)), np.full(runs, sum(stage.duration_s for stage in limited) / HOUR_S)
    going = np.ones(runs, dtype=bool)
    successes, episodes, elapsed = np.zeros((2, runs)), np.zeros(2), 0.0
    for index, stage in enumerate(limited):
        robots = int(fleet.robots * stage.share * stage.probability)
        each = round(per_hour * stage.duration_s / HOUR_S)
        elapsed += stage.duration_s / HOUR_S
        episodes += each * np.array([fleet.robots - robots, robots])
        successes[INCUMBENT] += rng.binomial(each, rates[INCUMBENT][:, robots:]).sum(axis=1)
        successes[CANARY] += rng.binomial(each, rates[CANARY][:, :robots]).sum(axis=1)
        enough, good = should_advance(successes[CANARY], episodes[CANARY], successes[INCUMBENT], episodes[INCUMBENT])
        for condition, result in ((~enough, ASKED), (enough & ~good, ROLLED_BACK)):
            stopped = going & condition
            outcome[stopped], at[stopped], time[stopped] = OUTCOMES.index(result), index, elapsed
            going &= ~stopped
    return Rollouts(outcome, at, time)
