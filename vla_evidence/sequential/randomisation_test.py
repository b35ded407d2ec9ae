# SPDX-License-Identifier: Apache-2.0
"""Do two groups of robots differ? An exact test that takes the robot, not the episode, for its unit, at many looks.

Episodes of one robot are alike, so tests that count episodes find differences between robots and call them differences between
policies. Here nothing is assumed of episodes at all. H0: every robot's results would have been the same, had the other policy
run on it. Then only the assignment is random, and how it was drawn is known: draw many more assignments in the same way, and ask
how often one of them, laid over the same results, looks as extreme as the real one (Fisher; Edgington).

At look k with information fraction t_k, draws that have not been stopped before are ranked by

    T = Σ over robots of group B of  w_i (x_i - x̄),     x̄ = Σ w_i x_i / Σ w_i

(the difference of the groups' weighted means of robots, times W_A W_B / W), x_i a robot's mean and w_i = n_i / (1 + (n_i - 1) ρ)
its weight with n_i observations and correlation ρ between them; a wrong ρ costs power, never validity. The most extreme are
stopped, ties together, for as long as the share of all draws ever stopped on this side is at most f(t_k), f a spending function.
The real assignment is one of the draws and exchangeable with them under H0, so P(it is ever stopped) <= f(1) = α exactly, for
any number of looks, robots and draws. Looks must not be chosen by what earlier ones showed: they are planned in episodes.

If the versions change how *many* episodes a robot runs, H0 above does not hold though success rates may be equal: the means of
those that run more are less noisy and weigh more. So compare as many of each robot, spread evenly over all that it ran
(:func:`spread`, :func:`common_number`). The error is then exact if the number in common does not depend on how well they go.

What a robot did *before* the draw may be taken out (:func:`without_baseline`): any function of the results that does not look at
the assignment leaves the test exact, and differences between robots that were there before add no noise any more.

One-sided, the test finds "B larger" in at most f(1) of cases also where B is *smaller* on every robot (Caughey, Dafoe, Li and
Miratrix, Journal of the Royal Statistical Society B 85, 2023).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_evidence.sequential.spending import linear

DRAWS = 4999
ICC = 0.05
"""ρ: the correlation expected between episodes of one robot."""
_BISECTIONS = 12
_ROWS = 256
_DIGITS = 9  # draws whose T agree to this many digits of the largest possible one are ties, whatever their rounding


@dataclass(frozen=True)
class Look:
    """What one look showed.

    Attributes:
        as_extreme: share of all draws with a T at least as large (two-sided, if the real one is negative: at least as small),
            the fixed-sample p-value.
        decision: 0; +1: B larger, -1: B smaller.
        smallest: share of draws that put the robots seen so far into the same groups as the real one: ``as_extreme`` cannot
            be smaller, whatever the results; with too few robots it lies above α, and no difference can ever be shown.
    """

    as_extreme: float
    decision: int
    smallest: float


class RandomisationTest:
    """The test of one quantity, look by look.

    Args:
        alpha: probability of rejecting at any look under H0, below 1/2; two-sided: half of it for each side.
        spending: f(fraction, alpha).
        two_sided: False: only "B larger" can be found.
        icc: ρ, correlation expected between observations of one robot, 0 to 1.
    """

    def __init__(
        self,
        alpha: float = 0.05,
        *,
        spending: Callable[[Any, float], Any] = linear,
        two_sided: bool = True,
        icc: float = ICC,
    ) -> None:
        self.alpha, self.two_sided, self.icc = alpha, two_sided, icc
        self._spending = spending
        self._stopped: NDArray[np.bool_] | None = None
        self._spent = {1: 0, -1: 0}  # draws stopped so far on each side
        self.decision = 0
        """0 so far; +1: B larger, -1: B smaller (two-sided only). Final."""

    def look(self, assignments: ArrayLike, totals: ArrayLike, counts: ArrayLike, fraction: float) -> Look:
        """Look at the robots' results so far.

        Args:
            assignments: True: the robot is in B; the first row is the real one, the others draws of the same mechanism in an
                order that stays the same from look to look. Shape [draws, robots]; robots may have been added on the right.
            totals: sum of each robot's observations, shape [robots].
            counts: how many they are, shape [robots]; a robot without any says nothing.
            fraction: of the planned information, not below the last look's.
        """
        drawn, total, count = np.asarray(assignments, dtype=bool), np.asarray(totals, float), np.asarray(counts, float)
        if self._stopped is None:
            self._stopped = np.zeros(len(drawn), dtype=bool)
        statistics = _statistics(drawn, total, count, self.icc)
        allowed = int(np.floor(float(self._spending(fraction, self.tail_alpha)) * len(drawn) + 1e-9))
        for side in (1, -1) if self.two_sided else (1,):
            newly = self._stop(side * statistics, allowed - self._spent[side])
            self._spent[side] += int(newly.sum())
            self._stopped |= newly
            if newly[0]:
                self.decision = side
        side = 1 if statistics[0] >= 0.0 or not self.two_sided else -1
        extreme = float((side * statistics >= side * statistics[0]).mean())
        seen = drawn[:, count > 0.0]
        smallest = float((seen == seen[0]).all(axis=1).mean())
        return Look(extreme, self.decision, smallest)

    @property
    def tail_alpha(self) -> float:
        """What may be spent on one side."""
        return self.alpha / 2.0 if self.two_sided else self.alpha

    def _stop(self, ranked: NDArray[np.float64], room: int) -> NDArray[np.bool_]:
        """Return the draws, not stopped yet, with the largest positive values that are at most ``room`` many, ties together."""
        assert self._stopped is not None
        candidates = ~self._stopped & (ranked > 0.0)
        if room <= 0 or not candidates.any():
            return np.zeros(len(ranked), dtype=bool)
        values = np.sort(ranked[candidates])[::-1]
        if len(values) <= room:
            return candidates
        return np.asarray(
            candidates & (ranked > values[room])
        )  # the first one too many, and all that tie with it, stay


def weights(count: NDArray[np.float64], icc: float) -> NDArray[np.float64]:
    """Return what a robot's mean of so many observations weighs."""
    return np.asarray(count / (1.0 + np.maximum(count - 1.0, 0.0) * icc))


def _statistics(
    drawn: NDArray[np.bool_], total: NDArray[np.float64], count: NDArray[np.float64], icc: float
) -> NDArray[np.float64]:
    """Return T of every draw, as a share of the largest possible one."""
    weight = weights(count, icc)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0.0)
    if not weight.sum() > 0.0:
        return np.zeros(len(drawn))
    influence = weight * (mean - np.average(mean, weights=weight))
    largest = float(np.abs(influence).sum()) / 2.0
    if largest <= 1e-12 * float((weight * np.abs(mean)).sum()):
        return np.zeros(len(drawn))  # all robots alike
    influence /= largest
    parts = [drawn[start : start + _ROWS] @ influence for start in range(0, len(drawn), _ROWS)]  # in bounded memory
    return np.asarray(np.round(np.concatenate(parts), _DIGITS))


def without_baseline(
    totals: NDArray[np.float64], counts: NDArray[np.float64], baseline: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the totals less what each robot's own earlier mean predicts, by a slope fitted to all robots, whatever they run.

    Args:
        totals, counts: as for :meth:`RandomisationTest.look`.
        baseline: mean before the draw, NaN where it is not known; shape [robots].
    """
    known = np.isfinite(baseline) & (counts > 0.0)
    weight = np.where(known, weights(counts, ICC), 0.0)
    if np.count_nonzero(known) < 3:
        return totals
    means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0.0)
    before = np.where(known, baseline, 0.0)
    before = np.where(known, before - np.average(before, weights=weight), 0.0)
    spread_of = float(weight @ before**2)
    slope = float(weight @ (before * means)) / spread_of if spread_of > 1e-12 else 0.0
    return np.asarray(totals - slope * before * counts)


def one_look(
    drawn: NDArray[np.bool_],
    totals: NDArray[np.float64],
    counts: NDArray[np.float64],
    baseline: NDArray[np.float64],
    *,
    shift: float = 0.0,
) -> float:
    """Return the p-value of "B is larger by no more than ``shift`` on any robot": the test of one look.

    Arguments as for :meth:`RandomisationTest.look` and :func:`without_baseline`.
    """
    shifted = without_baseline(totals - shift * counts * drawn[0], counts, baseline)
    statistics = _statistics(drawn, shifted, counts, ICC)
    return float((statistics >= statistics[0]).mean())


def shift_interval(
    drawn: NDArray[np.bool_], totals: NDArray[np.float64], counts: NDArray[np.float64], baseline: NDArray[np.float64]
) -> tuple[float, float]:
    """Return by how much B may be larger, if by the same on every robot: the shifts that the two-sided test keeps, at 95 %."""

    def end(sign: float) -> float:
        inside, outside = 0.0, 1.0
        for _ in range(_BISECTIONS):  # of the shift away from a difference of one
            middle = 0.5 * (inside + outside)
            rejected = one_look(drawn, sign * totals, counts, sign * baseline, shift=2.0 * middle - 1.0) <= 0.025
            inside, outside = (middle, outside) if rejected else (inside, middle)
        return sign * (2.0 * inside - 1.0)

    return end(1.0), end(-1.0)


def common_number(counts: Sequence[int], in_b: Sequence[bool]) -> int:
    """Return how many episodes three quarters of the robots of either group have at least."""
    groups = (sorted(n for n, b in zip(counts, in_b, strict=True) if b is group) for group in (True, False))
    return min((own[(len(own) - 1) // 4] for own in groups if own), default=0)


def spread(values: Any, number: int) -> Any:
    """Return ``number`` of the values, evenly spread over them; all of them if there are no more."""
    n = len(values)
    if n <= number:
        return values
    return [values[(2 * i + 1) * n // (2 * number)] for i in range(number)]


def bernoulli_column(seed: str, robot: str, probability: float, real: bool, draws: int = DRAWS) -> NDArray[np.bool_]:
    """Return one robot's column of assignments where each robot goes to B with ``probability`` on its own, the real one first.

    It depends on seed and robot only, so that robots may come in any order.
    """
    column = _generator(f"{seed}\0{robot}").random(draws + 1) < probability
    column[0] = real
    return column


def cohort_assignments(arms: Mapping[str, bool], seed: str, draws: int = DRAWS) -> NDArray[np.bool_]:
    """Return assignments of a fleet whose groups have a fixed size, the real one first, shape [draws + 1, robots].

    Where there are no more than ``draws`` of them, every one once.

    Args:
        arms: robot → is in B; the whole fleet, in a fixed order.
        seed: of the draws.
        draws: at most so many beside the real one.
    """
    real = np.array(list(arms.values()), dtype=bool)
    robots, members = len(real), int(real.sum())
    ways = math.comb(robots, members)
    if ways <= draws + 1:
        rows = np.zeros((ways, robots), dtype=bool)
        for row, chosen in enumerate(itertools.combinations(range(robots), members)):
            rows[row, list(chosen)] = True
        others = rows[(rows != real).any(axis=1)]
    else:
        others = _generator(seed).permuted(np.tile(real, (draws, 1)), axis=1)
    return np.concatenate([real[None, :], others])


def _generator(seed: str) -> np.random.Generator:
    key = hashlib.sha256(f"draws\0{seed}".encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
