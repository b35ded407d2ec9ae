# SPDX-License-Identifier: Apache-2.0
"""Is the canary good enough? Which drop of the success rate can be excluded, at any time and from counts alone.

For each margin m of a fixed grid there is an e-process against H0(m): P(success | canary) <= P(success | incumbent) - m,
whatever the past. With an alternative (q₀, q₁), q₁ > q₀ - m, and p* the point of H0(m) nearest to it in Kullback-Leibler
divergence of the pair (group, outcome), each unit multiplies the evidence by ``q_g(y) / p*_g(y)``, of mean <= 1 under H0(m) (see
:mod:`two_sample`). With the alternative fixed beforehand the product depends on the counts alone; so does the
mixture over a grid of alternatives that :class:`NonInferiority` uses, and Ville's inequality bounds P(it ever reaches 1/α).

H0(m) shrinks as m grows. Margins are excluded from the largest downwards, until one is not: the first wrong exclusion would be of
the largest margin that the true drop reaches, so P(anything wrong is ever said) <= α for all margins and looks together.

One more success of the canary, or failure of the incumbent, never lowers the evidence, in whatever order they came; one more
failure of the canary, or success of the incumbent, never raises it: p*₁ < q₁ and p*₀ > q₀ for every alternative.

Turner and Grünwald, Statistics and Probability Letters 198 (2023); fixed sequences: Maurer, Hothorn and Lehmacher (1995).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp  # type: ignore[import-untyped]

from vla_evidence.errors import InputError, check_counts, check_margin, check_probability
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, BetaPrior, project

MARGINS = (
    *(0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.18, 0.16, 0.14, 0.12),
    *(0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01, 0.0),
)
"""Drops that are asked about."""
MAX_PROBABILITIES = 16
"""Different assignment probabilities in one judgement: one a stage is usual, and each costs memory."""
_RATES = np.concatenate([[0.002, 0.005, 0.01, 0.015], np.arange(0.02, 0.981, 0.01), [0.985, 0.99, 0.995, 0.998]])
_ABOVE = (0.02, 0.05, 0.1, 0.2)
_EDGE = 0.001
_FIRST = 0.7
_EVEN = 0.2
_LARGEST_BELIEF = 200.0
_FACTOR_TOLERANCE = 0.01


class NonInferiority:
    """Counts of both groups by assignment probability, and the evidence that each of several drops is excluded.

    Args:
        margins: beside :data:`MARGINS`, those that are asked about.
        incumbent: what is believed of the incumbent's rate; a fifth of the weight is spread
            evenly and it counts for 200 episodes at most, so that a wrong belief costs little.

    Raises:
        InputError: a margin outside [0, 1).
    """

    def __init__(self, margins: Iterable[float] = (), *, incumbent: BetaPrior | None = None) -> None:
        asked = {check_margin("margin", margin) for margin in margins}
        self.margins = tuple(sorted(asked.union(MARGINS), reverse=True))
        self._log_weights = _log_weights(incumbent or BetaPrior())
        self._counts: dict[float, NDArray[np.float64]] = {}

    def add(self, group: int, success: bool, probability: float, units: int = 1) -> None:
        """Count ``units`` equal outcomes of a group, assigned with this probability of the canary.

        Raises:
            InputError: an unknown group, a negative count, a probability not strictly between 0 and 1, or too many
                different ones.
        """
        if group not in (INCUMBENT, CANARY):
            raise InputError("INPUT_ARM", "group", f"{group!r} is neither {INCUMBENT} nor {CANARY}")
        check_counts("units", 0, units)
        self._at(probability)[2 * group + (not success)] += units

    def add_many(self, groups: ArrayLike, successes: ArrayLike, probability: float) -> None:
        """Count outcomes (0 or 1) of groups (0 or 1), arrays of shape [units]."""
        g, y = np.asarray(groups), np.asarray(successes)
        if not (np.isin(g, (INCUMBENT, CANARY)).all() and g.shape == y.shape):
            raise InputError("INPUT_ARM", "groups", f"not all are {INCUMBENT} or {CANARY}, or not as many as successes")
        if not np.isin(y, (0, 1)).all():
            raise InputError("INPUT_RATE", "successes", "not all are 0 or 1")
        self._at(probability)[:] += np.bincount((2 * g + (1 - y)).astype(np.int64).ravel(), minlength=4)

    def _at(self, probability: float) -> NDArray[np.float64]:
        check_probability("probability", probability)
        if probability not in self._counts:
            if len(self._counts) >= MAX_PROBABILITIES:
                reason = f"more than {MAX_PROBABILITIES} different ones; keep it the same for a stage"
                raise InputError("INPUT_PROBABILITY", "probability", reason)
            self._counts[probability] = np.zeros(4)
        return self._counts[probability]

    def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (successes, units) of the incumbent and of the canary."""
        s0, f0, s1, f1 = (int(value) for value in sum(self._counts.values(), np.zeros(4)))
        return (s0, s0 + f0), (s1, s1 + f1)

    def units(self) -> list[tuple[float, float, float]]:
        """Return (probability, units of the incumbent, of the canary) for each probability."""
        return [(pi, float(counts[:2].sum()), float(counts[2:].sum())) for pi, counts in self._counts.items()]

    def log_e(self) -> NDArray[np.float64]:
        """Return the logarithm of the evidence against each H0(m), m in :attr:`margins`."""
        exponents = np.tile(self._log_weights, (len(self.margins), 1))
        for probability, counts in self._counts.items():
            exponents += _table(self.margins, probability) @ counts
        return np.asarray(logsumexp(exponents, axis=1))

    def excluded_drop(self, alpha: float) -> float | None:
        """Return the smallest margin that, with every larger one, is excluded at level ``alpha``; None if none is.

        None also while a group has no unit: if it never came although it was to be drawn, the assignment is wrong.
        """
        level = -math.log(check_probability("alpha", alpha))
        if not all(units for _, units in self.counts()):
            return None
        passed = self.log_e() >= level
        first_failed = len(passed) if passed.all() else int(np.argmin(passed))
        return self.margins[first_failed - 1] if first_failed else None

    def growth_needed(self, margin: float, alpha: float, most: float = 100.0) -> float | None:
        """Return how many times the units there are it takes until ``margin`` is excluded, if all goes on as it went.

        At least 1; None: more than ``most``. An extrapolation of both rates, no promise. Groups grow as they are drawn: a share
        of the canary that is off by chance would be ever stronger evidence, were it to stay so.
        """
        drop = self.excluded_drop(alpha)
        if drop is not None and drop <= margin:
            return 1.0
        low, high = 0.0, math.log(most)
        if not self._excludes_when_grown(math.exp(high), margin, alpha):
            return None
        while high - low > _FACTOR_TOLERANCE:
            middle = 0.5 * (low + high)
            if self._excludes_when_grown(math.exp(middle), margin, alpha):
                high = middle
            else:
                low = middle
        return math.exp(high)

    def _excludes_when_grown(self, factor: float, margin: float, alpha: float) -> bool:
        grown, counts = self.copy(), self.counts()
        if not all(units for _, units in counts):
            return False
        rates = [successes / units for successes, units in counts]
        for probability, each in grown._counts.items():
            groups = factor * each.sum() * np.array([1.0 - probability, probability])
            each[:] = [part for n, rate in zip(groups, rates, strict=True) for part in (n * rate, n * (1.0 - rate))]
        drop = grown.excluded_drop(alpha)
        return drop is not None and drop <= margin

    def copy(self) -> NonInferiority:
        """Return an independent copy, to ask "what if"."""
        other = object.__new__(NonInferiority)
        other.margins, other._log_weights = self.margins, self._log_weights
        other._counts = {probability: counts.copy() for probability, counts in self._counts.items()}
        return other

    def to_json(self) -> list[list[float]]:
        """Return [probability, successes and failures of the incumbent, of the canary] for :meth:`restore`."""
        return [[probability, *(int(value) for value in counts)] for probability, counts in self._counts.items()]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Take over the counts of another one.

        Raises:
            InputError: impossible counts or probabilities.
        """
        self._counts = {}
        for row in state:
            if len(row) != 5:
                raise InputError("INPUT_COUNT", "state", f"{row!r} is not a probability and four counts")
            probability, *counts = row
            for count in counts:
                check_counts("state", 0, count)
            self._at(probability)[:] += counts


def _alternatives(margin: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (q₀, q₁), each of shape [rates, 5]: equal rates if that is an alternative, and several distances above H0(m)."""
    above = np.array([margin or _EDGE * 10, *_ABOVE])
    q0 = np.repeat(_RATES[:, None], len(above), axis=1)
    q1 = np.clip(q0 - margin + above, _EDGE, 1.0 - _EDGE)
    return q0, q1


def _log_weights(incumbent: BetaPrior) -> NDArray[np.float64]:
    """Return log weights of the alternatives, flattened: of the rates as believed, of the distances most on the first."""
    keep = min(1.0, _LARGEST_BELIEF / (incumbent.successes + incumbent.failures))
    a, b = incumbent.successes * keep, incumbent.failures * keep
    log_density = (a - 1.0) * np.log(_RATES) + (b - 1.0) * np.log1p(-_RATES)
    even = np.gradient(_RATES)
    density = np.exp(log_density - log_density.max()) * even
    rates = (1.0 - _EVEN) * density / density.sum() + _EVEN * even / even.sum()
    distances = np.array([_FIRST, *[(1.0 - _FIRST) / len(_ABOVE)] * len(_ABOVE)])
    return np.asarray(np.log(rates[:, None] * distances).ravel())


@lru_cache(maxsize=MAX_PROBABILITIES)
def _table(margins: tuple[float, ...], probability: float) -> NDArray[np.float64]:
    """Return log(q/p*) of (incumbent's success, failure, canary's success, failure): shape [margins, alternatives, 4]."""
    rows = []
    for margin in margins:
        q0, q1 = (q.ravel() for q in _alternatives(margin))
        p0 = project(q0, q1, margin, probability)
        p1 = p0 - margin
        logs = [np.log(q0 / p0), np.log((1 - q0) / (1 - p0)), np.log(q1 / p1), np.log((1 - q1) / (1 - p1))]
        rows.append(np.stack(logs, axis=1))
    table = np.stack(rows)
    table.setflags(write=False)
    return table
