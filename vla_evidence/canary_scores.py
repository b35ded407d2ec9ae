# SPDX-License-Identifier: Apache-2.0
"""The anomaly scores of a canary, against limits from the incumbent's past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vla_evidence.canary_config import CanaryConfig
from vla_evidence.eprocess import BernoulliEProcess
from vla_evidence.exceedance import ExceedanceTest
from vla_evidence.quantile import observations_needed


class ScoreTests:
    """One :class:`ExceedanceTest` for each source; what cannot be calibrated is not judged, and :meth:`describe` says so.

    Args:
        config: the settings from ``score_quantile`` to ``min_blocks``.
        history: the incumbent's observations by source.
        alpha: of all sources together; each has an equal share, half for its calibration and half for its test.

    Raises:
        ValueError: a score is not finite.
    """

    def __init__(self, config: CanaryConfig, history: Mapping[str, Sequence[float]], alpha: float) -> None:
        self.alpha = alpha / max(len(history), 1) / 2
        self._min_blocks = config.min_blocks
        self._tests: dict[str, ExceedanceTest] = {}
        self._not_judged: list[str] = []
        confidence = 1.0 - self.alpha
        needed = observations_needed(1.0 - config.tolerated_exceedance, confidence)
        for source in sorted(history):
            values = list(history[source])
            test = ExceedanceTest.calibrated(
                values, quantile=config.score_quantile, tolerated=config.tolerated_exceedance, confidence=confidence
            )
            if test is None:
                self._not_judged.append(f"{source} ({len(values)} of {needed} observations to calibrate it)")
            else:
                self._tests[source] = test

    def add(self, source: str, value: float) -> bool:
        """Take in one observation; false if this source is not judged."""
        if source not in self._tests:
            return False
        self._tests[source].update(value)
        return True

    def worse(self) -> str:
        """Return a source that exceeds its limit too often; empty if none does."""
        return next((source for source, test in self._tests.items() if test.rejects(self.alpha)), "")

    def missing(self) -> list[str]:
        """Return the sources that have not seen enough blocks, in words."""
        seen = {source: process.observations for source, process in self.processes()}
        return [f"blocks of {source} ({n} of {self._min_blocks})" for source, n in seen.items() if n < self._min_blocks]

    def processes(self) -> Iterator[tuple[str, BernoulliEProcess]]:
        """Yield (source, e-process)."""
        for source, test in self._tests.items():
            yield source, test.process

    def describe(self) -> list[str]:
        """Return the state of each in words."""
        texts = [test.describe(source, "blocks", self.alpha) for source, test in self._tests.items()]
        return texts + (["not judged: " + ", ".join(self._not_judged)] if self._not_judged else [])

    def to_json(self) -> dict[str, Any]:
        """Return the state for :meth:`restore`."""
        tests = {source: [test.process.p0, *test.to_json()] for source, test in self._tests.items()}
        return {"alpha": self.alpha, "tests": tests, "not_judged": self._not_judged}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state, with its limits.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        self.alpha = float(state["alpha"])
        self._not_judged = [str(text) for text in state["not_judged"]]
        self._tests = {}
        for source, (tolerated, *counts) in state["tests"].items():
            self._tests[source] = ExceedanceTest(counts[0], tolerated)
            self._tests[source].restore(counts)
