# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores of a canary's episodes, held against limits from the incumbent's past.

What is judged is the share of an episode's blocks that do not exceed the limit, of the canary beside the incumbent: whatever
raises the scores of both alike (another task, a lower sun) convicts nobody. So any limit is valid that is fixed before the
episodes that it judges; one that few of the incumbent's blocks exceed tells most.
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
    """Limits by source; what has too short a past is not judged.

    Args:
        limits: by source.
        too_short: how many observations there were of sources that are not judged.

    Raises:
        InputError: a limit that is no number.
    """

    def __init__(self, limits: Mapping[str, float], too_short: Mapping[str, int]) -> None:
        for source, limit in limits.items():
            if not _is_number(limit) or not math.isfinite(limit):
                raise InputError("INPUT_VALUE", f"score limit of {source}", f"{limit!r} is not finite")
        self.limits = {str(source): float(limits[source]) for source in sorted(limits)}
        self.too_short = {str(source): int(too_short[source]) for source in sorted(too_short)}

    @staticmethod
    def of(history: Scores, quantile: float) -> ScoreLimits:
        """Return the limits that this share of the incumbent's observations keeps.

        Raises:
            InputError: a value that is not finite.
        """
        limits, too_short = {}, {}
        for source, values in history.items():
            if not all(_is_number(value) and math.isfinite(value) for value in values):
                raise InputError("INPUT_VALUE", f"score history of {source}", "some values are no finite numbers")
            if len(values) < FEWEST_FOR_LIMIT:
                too_short[source] = len(values)
            else:
                limits[source] = upper_limit(values, quantile)
        return ScoreLimits(limits, too_short)

    def read(self, scores: Scores | None) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return for each judged source the share of the episode's blocks within its limit, and how many blocks it tells of.

        0 for a source of which the episode tells nothing, and NaN is above every limit: silence is no good sign. A source that is
        not judged is ignored.

        Raises:
            InputError: a score that is no number.
        """
        shares, counts = [], []
        for source, limit in self.limits.items():
            values = _blocks(scores, source)
            shares.append(sum(float(value) <= limit for value in values) / len(values) if len(values) else 0.0)
            counts.append(len(values))
        return tuple(shares), tuple(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the limits for :meth:`from_json`."""
        return {"limits": self.limits, "too_short": self.too_short}

    @staticmethod
    def from_json(state: Mapping[str, Any]) -> ScoreLimits:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError, KeyError, TypeError, ValueError: it did not write this.
        """
        return ScoreLimits(state["limits"], state["too_short"])


def _blocks(scores: Scores | None, source: str) -> Sequence[float]:
    if scores is not None and not isinstance(scores, Mapping):
        raise InputError("INPUT_VALUE", "scores", f"{shown(scores)} are not by source")
    values = () if scores is None else scores.get(source, ())
    is_list = isinstance(values, (list, tuple)) or (hasattr(values, "ndim") and values.ndim == 1)
    if not is_list or not all(_is_number(value) for value in values):
        raise InputError("INPUT_VALUE", f"scores of {source}", f"{shown(values)} are no numbers")
    return values


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes, bool)) and isinstance(float(value), float)
    except (TypeError, ValueError, OverflowError):
        return False
