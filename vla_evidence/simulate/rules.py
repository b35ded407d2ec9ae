# SPDX-License-Identifier: Apache-2.0
"""Rules that look plausible and promise more than they hold, over many runs at once: for comparison only."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_TO_COMPARE, _LEAST_TO_ADVANCE, _MARGIN = 100, 50, 0.02


@dataclass(frozen=True)
class Rule:
    """What one rule does: shares of runs and mean episodes on each robot if versions differ, with Monte-Carlo errors."""

    rule: str
    looks: str
    false_alarm: tuple[float, float]
    power: tuple[float, float]
    per_robot: tuple[float, float]


def wilson_ends(successes: Any, n: Any) -> tuple[Any, Any]:
    """Return the ends of the 95 % Wilson interval for arrays of counts."""
    p, z = successes / n, 1.96
    denominator = 1.0 + z**2 / n
    centre = (p + z**2 / (2.0 * n)) / denominator
    half = z * np.sqrt((p * (1.0 - p) + z**2 / (4.0 * n)) / n) / denominator
    return centre - half, centre + half


def intervals_apart(successes_a: Any, n_a: Any, successes_b: Any, n_b: Any) -> NDArray[np.bool_]:
    """Return where two 95 % Wilson intervals do not overlap, once both arms have 100 episodes."""
    low_a, high_a = wilson_ends(successes_a, n_a)
    low_b, high_b = wilson_ends(successes_b, n_b)
    enough = np.minimum(n_a, n_b) >= _LEAST_TO_COMPARE
    return np.asarray(enough & ((high_a < low_b) | (high_b < low_a)))


def z_test(successes_a: Any, n_a: Any, successes_b: Any, n_b: Any, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Return where the pooled two-sided z test of two proportions rejects."""
    pooled = (successes_a + successes_b) / (n_a + n_b)
    spread = np.sqrt(pooled * (1.0 - pooled) * (1.0 / n_a + 1.0 / n_b))
    difference = np.abs(successes_b / n_b - successes_a / n_a)
    return np.asarray(difference > -NormalDist().inv_cdf(alpha / 2.0) * spread)


def should_advance(
    successes_new: Any, n_new: Any, successes_old: Any, n_old: Any
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (are there 50 episodes of each, is the new mean then at least the old one minus 0.02)."""
    enough = np.asarray(np.minimum(n_new, n_old) >= _LEAST_TO_ADVANCE)
    new, old = successes_new / np.maximum(n_new, 1), successes_old / np.maximum(n_old, 1)
    return enough, np.asarray(enough & (new >= old - _MARGIN))
