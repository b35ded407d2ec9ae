# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores of a rollout's episodes, held against limits from the incumbent's past.

What is judged is the share of an episode's blocks within the limit, of the canary beside the incumbent: what raises the scores
of both alike (another task, a lower sun) is not held against the canary. So any limit is valid that is fixed before the episodes
that it judges; one that few of the incumbent's blocks exceed shows most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vla_evidence.canary.config import FEWEST_FOR_LIMIT, upper_limit
from vla_evidence.errors import InputError, shown

Scores = Mapping[str, Sequence[float]]
"""Largest score of each block of an episode, by source."""


class ScoreLimits:
    """Limits by source, which the share ``quantile`` of the incumbent's past blocks keeps.

    Attributes:
        limits: by source.
        too_short: how many past values there are of sources that are not judged.
    """

    def __init__(self, history: Scores, quantile: float) -> None:
        self.limits: dict[str, float] = {}
        self.too_short: dict[str, int] = {}
        for source in sorted(history):
            values = _numbers(f"score history of {source}", history[source])
            if not all(map(math.isfinite, values)):
                raise InputError("INPUT_VALUE", f"score history of {source}", "some values are not finite")
            if len(values) < FEWEST_FOR_LIMIT:
                self.too_short[source] = len(values)
            else:
                self.limits[source] = upper_limit(values, quantile)

    def read(self, scores: Scores | None) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return for each judged source the share of the episode's blocks within its limit, and how many blocks it reports.

        The share is 0 for a source without a block, and NaN exceeds every limit: a source that says nothing counts as bad.
        Sources that are not judged are ignored.
        """
        if scores is not None and not isinstance(scores, Mapping):
            raise InputError("INPUT_VALUE", "scores", f"{shown(scores)} must be an object of lists, by source")
        shares, counts = [], []
        for source, limit in self.limits.items():
            values = _numbers(f"scores of {source}", (scores or {}).get(source, ()))
            shares.append(sum(value <= limit for value in values) / len(values) if values else 0.0)
            counts.append(len(values))
        return tuple(shares), tuple(counts)


def _numbers(field: str, values: Any) -> list[float]:
    try:
        if isinstance(values, (str, bytes, Mapping)) or any(isinstance(value, (str, bool)) for value in values):
            raise TypeError
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as e:
        raise InputError("INPUT_VALUE", field, f"{shown(values)} must be a list of numbers") from e
