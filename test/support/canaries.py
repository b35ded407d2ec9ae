# SPDX-License-Identifier: Apache-2.0
"""Judges of canaries with short stages, and fleets that run episodes for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.canary.judge import CanaryJudge

HOUR = 3600.0
DAY = 24 * HOUR
FULL = Stage("full", 1.0, 1.0, 0.0, None)
ONE_STAGE = (Stage("canary", 1.0, 0.25, DAY, 0.1), FULL)
FLEET = [f"r{n}" for n in range(40)]


def judge_of(*, experiment: str = "canary", **settings) -> CanaryJudge:
    judge = CanaryJudge(CanaryConfig(**{"stages": ONE_STAGE, **settings}), experiment)
    judge.begin_stage(0, 0.0, FLEET)
    return judge


def mixed(judge: CanaryJudge, incumbent: float, canary: float, episodes: int, *, seed: int = 1) -> None:
    """Take in so many ended episodes, drawn as the stage says."""
    rng = np.random.default_rng(seed)
    versions = (rng.random(episodes) < judge.stage.probability).astype(int)
    judge.add_many(versions, rng.random(episodes) < np.where(versions, canary, incumbent))


def work(
    judge: CanaryJudge,
    begin_s: float,
    until_s: float,
    rate: Callable[[int, str], float],
    *,
    robots: Sequence[str] = FLEET,
    every_s: Callable[[int], float] = lambda version: 600.0,
    lost: Callable[[int], float] = lambda version: 0.0,
    clock: list[float] | None = None,
    seed: int = 0,
) -> None:
    """Let every robot run one episode after the other; ``rate(version, robot)``, ``every_s(version)``, ``lost(version)``.

    ``clock[0]`` is the time at which ``rate`` is asked.
    """
    rng = np.random.default_rng(seed)
    running = [(begin_s + float(rng.uniform(0.0, 600.0)), robot, "", 0) for robot in robots]
    number = 0
    while True:
        running.sort()
        now, robot, episode, version = running[0]
        if now >= until_s:
            return
        if clock is not None:
            clock[0] = now
        if episode and rng.random() >= lost(version):
            judge.outcome(episode, bool(rng.random() < rate(version, robot)), now)
        number += 1
        name = f"{begin_s}/{number}"
        version = judge.choose(robot, name, now)
        running[0] = (now + every_s(version) * float(rng.uniform(0.7, 1.3)), robot, name, version)
