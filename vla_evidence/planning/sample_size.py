# SPDX-License-Identifier: Apache-2.0
"""How many episodes does a test at one look need? The textbook's normal formulas, and what clusters cost.

All sizes are of the *treated* arm (B, the canary) and real numbers: round up. ``share`` is the part of all episodes that goes
there: 1/2 for an A/B test, 0.05 for a canary of 5 %.

Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), chapter 4; Donner and Klar, Design and Analysis of
Cluster Randomization Trials (2000).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

from vla_evidence.errors import InputError, check_margin, check_probability, check_rate

Sides = Literal[1, 2]
LEAST_DIFFERENCE = 1e-6
"""Closer rates are not told apart: it would take a million million episodes."""


def two_proportions(
    rate_a: float, rate_b: float, *, alpha: float = 0.05, power: float = 0.8, share: float = 0.5, sides: Sides = 2
) -> float:
    """Return the episodes of B after which a z test tells the two rates apart with this power (normal formula).

    With r = share / (1 - share) and p̄ the mean rate of all episodes:
    n = [z_{α/sides} √((1+r) p̄ q̄) + z_β √(p_B q_B + r p_A q_A)]² / (p_B - p_A)².
    """
    spread_0, spread_1 = _spreads(rate_a, rate_b, share)
    z_alpha, z_beta = _z(alpha, sides), _z_power(power, alpha)
    return float((z_alpha * spread_0 + z_beta * spread_1) / (rate_b - rate_a)) ** 2


def non_inferiority(
    rate: float, margin: float, *, alpha: float = 0.05, power: float = 0.8, share: float = 0.5
) -> float:
    """Return the episodes of B after which "B is at most ``margin`` worse" is shown with this power if it is not worse at all.

    n = (z_α + z_β)² p q / ((1 - share) δ²), one-sided; at share 1/2 the textbook's (z_α + z_β)² 2pq / δ².
    """
    check_probability("rate", rate)
    check_probability("share", share)
    if check_margin("margin", margin) < LEAST_DIFFERENCE:
        raise InputError("INPUT_MARGIN", "margin", f"no number of episodes excludes a drop of {margin}")
    z = _z(alpha, 1) + _z_power(power, alpha)
    return z**2 * rate * (1.0 - rate) / ((1.0 - share) * margin**2)


def design_effect(episodes_per_robot: float, icc: float) -> float:
    """Return by what factor the variance grows when robots differ: 1 + (m - 1) ρ.

    Args:
        episodes_per_robot: m, at least 1.
        icc: ρ, the intraclass correlation: the part of the outcome's variance that lies between robots.
    """
    return 1.0 + (episodes_per_robot - 1.0) * icc


def episodes_per_robot(independent_episodes: float, robots: int, icc: float) -> float:
    """Return how many episodes each of an arm's robots needs, when whole robots are assigned; infinite if none suffices.

    ``robots`` times m episodes are worth robots·m / (1 + (m - 1) ρ) independent ones, which grows towards robots / ρ and no
    further. Normal theory: with fewer than about ten robots an arm it promises too much.
    """
    spare = robots - independent_episodes * icc
    return max(1.0, independent_episodes * (1.0 - icc) / spare) if spare > 0.0 else math.inf


def robots_needed(independent_episodes: float, icc: float, episodes_each: float) -> int:
    """Return how many robots an arm needs if each gives ``episodes_each`` episodes."""
    return math.ceil(independent_episodes * design_effect(episodes_each, icc) / episodes_each - 1e-9)


def _spreads(rate_a: float, rate_b: float, share: float) -> tuple[float, float]:
    """Return the standard deviations of the difference, times √n, if there is none and as it is."""
    check_rate("rate_a", rate_a)
    check_rate("rate_b", rate_b)
    ratio = check_probability("share", share) / (1.0 - share)
    if abs(rate_a - rate_b) < LEAST_DIFFERENCE:
        raise InputError("INPUT_RATE", "rate_b", f"no number of episodes tells {rate_b} from {rate_a}")
    mean = share * rate_b + (1.0 - share) * rate_a
    same = math.sqrt((1.0 + ratio) * mean * (1.0 - mean))
    return same, math.sqrt(rate_b * (1.0 - rate_b) + ratio * rate_a * (1.0 - rate_a))


def _z_power(power: float, alpha: float) -> float:
    if not check_probability("power", power) > alpha:
        raise InputError("INPUT_PROBABILITY", "power", f"{power} is not above α = {alpha}: a coin does as well")
    return NormalDist().inv_cdf(power)


def _z(alpha: float, sides: Sides) -> float:
    return -NormalDist().inv_cdf(check_probability("alpha", alpha) / sides)
