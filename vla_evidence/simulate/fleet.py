# SPDX-License-Identifier: Apache-2.0
"""A fleet whose robots are not alike: some stand in better light, some have worn grippers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_evidence.errors import InputError, check_probability

RNG = np.random.Generator
MAX_ROBOTS = 1_000_000


@dataclass(frozen=True)
class FleetModel:
    """Robots and how they differ.

    Attributes:
        robots: how many.
        icc: intraclass correlation of outcomes within a robot: rates of robots follow Beta(p s, q s), s = (1 - icc) / icc.
    """

    robots: int
    icc: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.robots <= MAX_ROBOTS:
            raise InputError(
                "INPUT_COUNT", "robots", f"{str(self.robots)[:20]} does not lie between 1 and {MAX_ROBOTS:,}"
            )
        if not 0.0 <= self.icc < 1.0:
            raise InputError("INPUT_RATE", "icc", f"{self.icc} does not lie between 0 and 1, without 1")

    def rates(self, means: tuple[float, float], runs: int, rng: RNG) -> NDArray[np.float64]:
        """Return success rates of every robot with either version, shape [2, runs, robots].

        A robot has the same rank in both versions' distributions: what makes it good with one makes it good with the other.
        """
        for mean in means:
            check_probability("success rate", mean)
        if self.icc == 0.0:
            return np.broadcast_to(np.array(means)[:, None, None], (2, runs, self.robots))
        from scipy.special import betaincinv  # type: ignore[import-untyped]  # see intervals.py

        rank = rng.random((runs, self.robots))
        strength = (1.0 - self.icc) / self.icc
        return np.stack([np.asarray(betaincinv(mean * strength, (1.0 - mean) * strength, rank)) for mean in means])
