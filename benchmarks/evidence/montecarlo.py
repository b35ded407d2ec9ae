# SPDX-License-Identifier: Apache-2.0
"""Many seeded runs of an experiment, and what they say of its expectation, each figure with its Monte-Carlo standard error.

A run ends in a few whole numbers (episodes until a rollback, 1 for "rejected"). They are kept as value and count, all of them:
every figure of a table can be computed again from the JSON.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outcome = Mapping[str, NDArray[Any]]
"""Metric → one whole number a run."""
Draw = Callable[[np.random.Generator, int], Outcome]
_SILENCE_S = 10.0


@dataclass(frozen=True)
class Experiment:
    """Something to be run many times.

    Attributes:
        name: unique; with the seed it decides what is drawn.
        draw: ``(generator, runs) → outcomes``; a function that other processes can import (``functools.partial`` of one).
        batch: runs at a time, which bounds the memory. The outcomes depend on it, not on the number of processes.
        factor: so many times the runs that are asked for, where one is cheap.
        runs: at most so many, where one is dear.
    """

    name: str
    draw: Draw
    batch: int
    factor: int = 1
    runs: int | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure from ``runs`` runs with its standard error."""

    value: float
    error: float
    runs: int

    def text(self, style: str) -> str:
        """Return ``value ± error``, both as ``style`` says; the error with one digit more for percentages."""
        if style.endswith("%"):
            digits = int(style[1:-1])
            return f"{100 * self.value:.{digits}f} ± {100 * self.error:.{max(2, digits)}f} %"
        return f"{self.value:{style}} ± {self.error:{style}}"


class Sample:
    """The outcomes of one metric over all runs: ascending ``values`` and how often each was seen."""

    def __init__(self, values: Sequence[int] | NDArray[Any], counts: Sequence[int] | NDArray[Any]) -> None:
        self.values = np.asarray(values, dtype=np.int64)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.runs = int(self.counts.sum())

    @staticmethod
    def of(outcomes: NDArray[Any]) -> Sample:
        """Return the sample of one number a run."""
        return Sample(*np.unique(np.asarray(outcomes, dtype=np.int64), return_counts=True))

    def to_json(self) -> dict[str, list[int]]:
        """Return what :meth:`__init__` takes."""
        return {"values": self.values.tolist(), "counts": self.counts.tolist()}

    def estimate(self, statistic: str) -> Estimate:
        """Return one of these.

        ``mean``; ``share``, of runs above 0; ``none``, of runs at 0; ``within N``, of runs up to N; a percentile: ``p90``.
        """
        if statistic == "mean":
            return self._mean()
        if statistic == "share":
            return self._share(self.values > 0)
        if statistic == "none":
            return self._share(self.values == 0)
        kind, _, argument = statistic.partition(" ")
        if kind == "within":
            return self._share(self.values <= int(argument))
        return self._quantile(int(statistic[1:]) / 100.0)

    def _mean(self) -> Estimate:
        mean = float(self.values @ self.counts) / self.runs
        variance = float(((self.values - mean) ** 2) @ self.counts) / max(1, self.runs - 1)
        return Estimate(mean, math.sqrt(variance / self.runs), self.runs)

    def _share(self, happened: NDArray[np.bool_]) -> Estimate:
        """Return a proportion; its error is taken half an event away from 0 and 1, where it would seem to be none."""
        events = int(self.counts[happened].sum())
        near = (events + 0.5) / (self.runs + 1.0)
        return Estimate(events / self.runs, math.sqrt(near * (1.0 - near) / self.runs), self.runs)

    def _quantile(self, share: float) -> Estimate:
        """Return a quantile; its error from the order statistics one standard error of the rank below and above."""
        spread = math.sqrt(share * (1.0 - share) / self.runs)
        low, value, high = (self._order_statistic(share + step) for step in (-spread, 0.0, spread))
        return Estimate(value, (high - low) / 2.0, self.runs)

    def _order_statistic(self, share: float) -> float:
        rank = min(self.runs, max(1, math.ceil(share * self.runs)))
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank)])


Samples = dict[str, dict[str, Sample]]
"""Experiment → metric → sample."""


def simulate(experiments: Sequence[Experiment], runs: int, seed: int, processes: int) -> Samples:
    """Run every experiment ``runs`` times, in so many processes (one: in this one), and say how far it is on stderr."""
    wanted = {e.name: min(e.factor * runs, e.runs or e.factor * runs) for e in experiments}
    found: dict[str, list[Outcome]] = {e.name: [] for e in experiments}
    progress = _Progress(wanted)
    for experiment, size, outcome in _outcomes(experiments, wanted, seed, processes):
        found[experiment.name].append(outcome)
        progress.add(experiment.name, size)
    return {name: _merge(outcomes) for name, outcomes in found.items()}


def _outcomes(
    experiments: Sequence[Experiment], wanted: Mapping[str, int], seed: int, processes: int
) -> Iterator[tuple[Experiment, int, Outcome]]:
    """Yield (experiment, runs, outcome) of every batch, in no particular order."""
    jobs = [
        (experiment, index, min(experiment.batch, wanted[experiment.name] - start))
        for experiment in experiments
        for index, start in enumerate(range(0, wanted[experiment.name], experiment.batch))
    ]
    if processes <= 1:
        for experiment, index, size in jobs:
            yield experiment, size, _run(experiment, index, size, seed)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_run, *job, seed): job for job in jobs}
        for future in as_completed(futures):
            experiment, _, size = futures[future]
            yield experiment, size, future.result()


def _run(experiment: Experiment, index: int, runs: int, seed: int) -> Outcome:
    key = (zlib.crc32(experiment.name.encode()), index)
    return experiment.draw(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)), runs)


def _merge(parts: Sequence[Outcome]) -> dict[str, Sample]:
    return {metric: Sample.of(np.concatenate([part[metric] for part in parts])) for metric in parts[0]}


class _Progress:
    """A line on stderr when an experiment is through, and now and then in between."""

    def __init__(self, runs: Mapping[str, int]) -> None:
        self._left, self._total = dict(runs), dict(runs)
        self._begin = self._said = time.monotonic()

    def add(self, name: str, runs: int) -> None:
        self._left[name] -= runs
        now = time.monotonic()
        if self._left[name] and now - self._said < _SILENCE_S:
            return
        self._said = now
        through = sum(left == 0 for left in self._left.values())
        done = self._total[name] - self._left[name]
        print(
            f"  [{through} of {len(self._left)}, {now - self._begin:.0f} s] {name}: {done} of {self._total[name]} runs",
            file=sys.stderr,
            flush=True,
        )
