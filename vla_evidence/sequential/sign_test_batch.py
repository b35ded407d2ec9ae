# SPDX-License-Identifier: Apache-2.0
"""The exact sign test over many runs at once: for simulation, planning and benchmarks; the same decisions as pair by pair.

All runs go from one discordant pair to their next one together, each with its own stopped walk (its pattern of discordance
decides when something is cut off). Between two discordant pairs the walk stands still and only the budget grows: what is cut off
there is found from the budget just before the next one, and the pair at which it was by looking it up in f.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_evidence.sequential.sign_test import NEGLIGIBLE, SignTestDesign, budgets

_RUNS_AT_ONCE = 1024


def stopping_times(signs: ArrayLike, design: SignTestDesign) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Return when each run ends and how.

    Args:
        signs: +1 B won, -1 A won, 0 concordant; shape [runs, N], N = ``design.max_pairs``.
        design: of the test.

    Returns:
        pairs: used until the decision, N without one; shape [runs].
        decisions: +1, -1 or 0 as of :class:`vla_evidence.sequential.sign_test.ExactSignTest`; shape [runs].
    """
    values = np.asarray(signs)
    pairs = np.full(len(values), design.max_pairs, dtype=np.int64)
    decisions = np.zeros(len(values), dtype=np.int8)
    for start in range(0, len(values), _RUNS_AT_ONCE):
        part = values[start : start + _RUNS_AT_ONCE]
        for runs, when, decision in _Batch(part, design).decided():
            pairs[start + runs] = when
            decisions[start + runs] = decision
    return pairs, decisions


class _Batch:
    """Some runs and their walks: ``mass[r, j]`` is the probability of ``low + j`` wins without ever having been stopped."""

    def __init__(self, signs: NDArray[np.int64], design: SignTestDesign) -> None:
        self.two_sided = design.two_sided
        self.budget = budgets(design)
        rows, columns = np.nonzero(signs)
        counts = np.bincount(rows, minlength=len(signs))
        order = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = int(counts.max(initial=0))
        self.when = np.full((len(signs), width + 1), design.max_pairs + 1, dtype=np.int64)
        """[runs, k]: the pair (from 1) that is the k-th discordant one; N + 1 past the last."""
        self.when[rows, order] = columns + 1
        self.won = np.zeros((len(signs), width), dtype=np.int64)
        self.won[rows, order] = signs[rows, columns] > 0
        self.runs = np.flatnonzero(counts)
        self.wins = np.zeros(len(self.runs), dtype=np.int64)
        self.spent = np.zeros(len(self.runs))
        self.top = np.zeros(len(self.runs), dtype=np.int64)
        self.low = 0
        self.mass = np.ones((len(self.runs), 1))

    def decided(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
        """Yield (runs, pairs at which they were decided, +1 or -1) until no run is left."""
        for k in range(self.won.shape[1]):
            self._step()
            self.wins += self.won[self.runs, k]
            stopped = np.zeros(len(self.runs), dtype=bool)
            for sign, hit, when in self._cut(k):
                stopped |= hit
                yield self.runs[hit], when[hit], sign
            self._drop(stopped | (self.when[self.runs, k + 1] >= len(self.budget)))
            if len(self.runs) == 0:
                return

    def _step(self) -> None:
        width = int(self.top.max()) - self.low + 1  # columns in use
        new = np.empty((len(self.mass), width + 1))
        new[:, :width] = self.mass[:, :width]
        new[:, width] = 0.0
        new[:, 1:] += self.mass[:, :width]
        new *= 0.5
        self.top += 1
        if float(new[:, 0].max()) < NEGLIGIBLE:
            new = new[:, 1:]
            self.low += 1
        self.mass = new

    def _cut(self, k: int) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
        """Cut off what fits into the budget between this discordant pair and the next; yield who stood there, and when."""
        rows = np.arange(len(self.runs))
        limit = self.budget[self.when[self.runs, k + 1] - 1]
        while True:
            outermost = self.mass[rows, self.top - self.low]
            spent = self.spent + outermost
            fits = spent <= limit
            if not fits.any():
                return
            self.spent = np.where(fits, spent, self.spent)
            when = np.maximum(self.when[self.runs, k], np.searchsorted(self.budget, self.spent, side="left"))
            yield 1, fits & (self.wins == self.top), when
            self.mass[rows[fits], self.top[fits] - self.low] = 0.0
            if self.two_sided:
                bottom = k + 1 - self.top  # symmetric
                yield -1, fits & (self.wins == bottom), when
                self.mass[rows[fits], bottom[fits] - self.low] = 0.0
            self.top = np.where(fits, self.top - 1, self.top)

    def _drop(self, done: NDArray[np.bool_]) -> None:
        """Forget runs that have ended."""
        if done.any():
            keep = ~done
            self.runs, self.wins, self.top = self.runs[keep], self.wins[keep], self.top[keep]
            self.spent, self.mass = self.spent[keep], self.mass[keep]
