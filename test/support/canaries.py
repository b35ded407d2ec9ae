# SPDX-License-Identifier: Apache-2.0
"""Judges of canaries with short stages, and episodes, scores and cohorts for them."""

from __future__ import annotations

import random

import numpy as np

from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.stages import Stage

HOUR = 3600.0
DAY = 24 * HOUR
ONE_STAGE = (Stage("canary", 0.25, DAY, 0.1), Stage("full", 1.0, 0.0, None))


def judge_of(**settings) -> CanaryJudge:
    judge = CanaryJudge(CanaryConfig(**{"stages": ONE_STAGE, **settings}))
    judge.begin_stage(0, 0.0)
    return judge


def feed(judge: CanaryJudge, group: int, successes: int, failures: int, pi: float = 0.25) -> None:
    """Take in so many ended episodes of a group, well mixed."""
    outcomes = [1] * successes + [0] * failures
    random.Random(0).shuffle(outcomes)
    judge.add_many([group] * len(outcomes), outcomes, pi)


def mixed(
    judge: CanaryJudge, incumbent: float, canary: float, episodes: int, *, pi: float = 0.25, seed: int = 0
) -> None:
    rng = np.random.default_rng(seed)
    groups = (rng.random(episodes) < pi).astype(int)
    judge.add_many(groups, (rng.random(episodes) < np.where(groups, canary, incumbent)).astype(int), pi)


def scored(judge: CanaryJudge, rng: np.random.Generator, shifts: tuple[float, float], episodes: int = 400) -> None:
    """Take in equally good episodes of 5 blocks each, whose scores are N(shift of the group, 1), of two sources."""
    groups = (rng.random(episodes) < 0.25).astype(int)
    tce = rng.normal(size=(episodes, 5)) + np.where(groups, shifts[1], shifts[0])[:, None]
    values = {"tce": tce, "reversal": rng.normal(size=(episodes, 5)), "unknown": np.full((episodes, 1), 1e9)}
    judge.add_many(groups, np.ones(episodes, int), 0.25, scores=values)


def scored_judge(seed: int = 0, **settings) -> CanaryJudge:
    rng = np.random.default_rng(seed)
    history = {"tce": rng.normal(size=200).tolist(), "reversal": rng.normal(size=200).tolist()}
    judge = CanaryJudge(CanaryConfig(**{"stages": ONE_STAGE, **settings}), history)
    judge.begin_stage(0, 0.0)
    return judge


def drawn(fleet: int, k: int, seed: int = 0) -> dict[str, int]:
    canaries = set(random.Random(seed).sample(range(fleet), k))
    return {f"r{n}": int(n in canaries) for n in range(fleet)}
