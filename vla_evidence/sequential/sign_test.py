# SPDX-License-Identifier: Apache-2.0
"""Which of two policies wins more often? An exact sign test on pairs, to be looked at after every pair.

A pair is one episode of A and one of B under like conditions (same robot, same task). Only *discordant* pairs, where one succeeds
and the other fails, speak: their signs are +1 (B won) or -1. H0: in a discordant pair either sign is equally likely, whatever the
signs before. Given which pairs were discordant, the score S (sum of signs) is then a fair random walk, without any unknown rate,
so the test is exact for every pattern of discordance, every mix of robots and every drift that hits both of a pair alike.

The probability of having rejected by pair n of at most N is kept at or below f((n-m)/(N-m)), f a spending function and m a few
pairs at the beginning, on which α would be wasted: they find only what a few pairs more find as well. For that the walk's
distribution under H0, restricted to paths that have not been stopped, is carried along. After every pair, also a concordant
one (time passes, and f grows), the outermost score is cut off for as long as its probability fits into what f allows and has not
been spent: who stands on it rejects. What the lattice leaves over is not lost: it is spent as soon as it suffices for a score.

One-sided, the test also holds against P(+1) <= 1/2 given all before: the walk then runs below a fair one. Not covered: pairs
whose being discordant depends on who won earlier ones (say, harder tasks chosen for the one that leads).

Armitage, Sequential Medical Trials (1960); Lan and DeMets, Biometrika 70 (1983).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_evidence.errors import InputError, check_probability, is_integer, shown
from vla_evidence.sequential.spending import SpendingFunction, linear

MAX_PAIRS = 100_000
NEGLIGIBLE = 1e-40
"""Probabilities below this at the far end of the walk are dropped: no sum that decides can change by it in 53 bits."""


@dataclass(frozen=True)
class SignTestDesign:
    """What must be fixed before the first pair.

    Args:
        max_pairs: N, after which the test ends.
        alpha: probability of rejecting at all under H0, below 1/2; two-sided: half of it for each side.
        two_sided: False: rejects only for "B wins more often".
        spending: f; hashable.
        min_pairs: m, so many pairs are not decided on, 0 to N - 1; None: a tenth of N, at most 20.
    """

    max_pairs: int
    alpha: float = 0.05
    two_sided: bool = False
    spending: SpendingFunction = linear
    min_pairs: int | None = None

    def __post_init__(self) -> None:
        _check_count("max_pairs", self.max_pairs, 1, MAX_PAIRS)
        if self.min_pairs is not None:
            _check_count("min_pairs", self.min_pairs, 0, self.max_pairs - 1)
        check_probability("alpha", self.alpha, below=0.5)

    @property
    def tail_alpha(self) -> float:
        """What may be spent on one side."""
        return self.alpha / 2.0 if self.two_sided else self.alpha

    @property
    def undecided_pairs(self) -> int:
        """m: so many pairs at the beginning are not decided on."""
        return min(self.max_pairs // 10, 20) if self.min_pairs is None else self.min_pairs


def _check_count(field: str, value: Any, least: int, most: int) -> None:
    if not is_integer(value) or not least <= value <= most:
        raise InputError("INPUT_COUNT", field, f"{shown(value)} must be an integer from {least} to {most}")


@lru_cache(maxsize=64)
def budgets(design: SignTestDesign) -> NDArray[np.float64]:
    """Return what one side may have spent by pair 0 … N, shape [N + 1], read-only."""
    alpha, first = design.tail_alpha, design.undecided_pairs
    fractions = np.maximum(np.arange(design.max_pairs + 1) - first, 0) / (design.max_pairs - first)
    values = np.array(design.spending(fractions, alpha), dtype=np.float64)
    values.setflags(write=False)
    return values


class _Walk:
    """The fair walk's distribution over paths that have not been stopped, and where it is cut off.

    ``mass[i]`` is the probability of ``low + i`` wins of B in the discordant pairs so far, without ever having been stopped.
    """

    def __init__(self, design: SignTestDesign) -> None:
        self.two_sided = design.two_sided
        self.mass = np.ones(1)
        self.low = 0
        self.spent = 0.0  # on one side

    @property
    def top(self) -> int:
        """Most wins that do not reject."""
        return self.low + len(self.mass) - 1

    def step(self) -> None:
        """One discordant pair."""
        old = self.mass
        new = np.empty(len(old) + 1)
        new[:-1] = old
        new[-1] = 0.0
        new[1:] += old
        new *= 0.5
        if not self.two_sided and new[0] < NEGLIGIBLE:
            new = new[1:]
            self.low += 1
        self.mass = new

    def cut(self, budget: float) -> None:
        """Cut off the outermost scores that fit into ``budget``."""
        while True:
            spent = self.spent + float(self.mass[-1])
            if spent > budget:
                return
            self.spent = spent
            if self.two_sided:  # symmetric: the lowest entry is as large as the highest
                self.mass = self.mass[1:-1]
                self.low += 1
            else:
                self.mass = self.mass[:-1]


class ExactSignTest:
    """The test, pair by pair.

    Attributes:
        pairs, discordant: counts so far, up to the decision.
        score: wins of B minus wins of A.
        decision: 0 so far; +1: B wins more often, -1: A does (two-sided only). Final.
    """

    def __init__(self, design: SignTestDesign) -> None:
        self.design = design
        self._budgets: list[float] = budgets(design).tolist()
        self._walk = _Walk(design)
        self._wins = 0
        self.pairs = 0
        self.discordant = 0
        self.decision = 0

    @property
    def score(self) -> int:
        """Wins of B minus wins of A."""
        return 2 * self._wins - self.discordant

    @property
    def boundary(self) -> int | None:
        """Score at which (two-sided: also minus which) B is now declared better; None: more than any score can be by now."""
        wins = self._walk.top + 1
        return 2 * wins - self.discordant if wins <= self.discordant else None

    @property
    def spent(self) -> float:
        """P(a fair walk with these discordant pairs would have been stopped by now), both sides together."""
        return self._walk.spent * (2.0 if self.design.two_sided else 1.0)

    @property
    def ended(self) -> bool:
        """Whether it is decided, or all pairs are there."""
        return self.decision != 0 or self.pairs >= self.design.max_pairs

    def update(self, sign: int) -> int:
        """Take one pair in; return ``decision``. After the end nothing changes.

        Args:
            sign: +1 B won, -1 A won, 0 both succeeded or both failed.
        """
        if self.ended:
            return self.decision
        self.pairs += 1
        if sign:
            self.discordant += 1
            self._wins += sign > 0
            self._walk.step()
        self._walk.cut(self._budgets[self.pairs])
        if self._wins > self._walk.top:
            self.decision = 1
        elif self.design.two_sided and self._wins < self._walk.low:
            self.decision = -1
        return self.decision
