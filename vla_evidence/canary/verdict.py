# SPDX-License-Identifier: Apache-2.0
"""What the judge of a canary says: a decision, its grounds in words, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class CanaryDecision(Enum):
    """What is to be done with the canary."""

    ADVANCE = "ADVANCE"
    HOLD = "HOLD"
    ROLLBACK = "ROLLBACK"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class CanaryVerdict:
    """A decision with its grounds.

    Attributes:
        decision: what is to be done.
        message: why, in words and numbers.
        stage: name of the stage.
        code: SUCCESS_WORSE, LATENCY_WORSE or SCORES_WORSE of a rollback, else empty.
        excluded_drop: smallest drop of the success rate that can be excluded; None: not even the largest that is asked about.
        missing: what an advance still needs, for people.
        figures: the numbers, by test: JSON.
    """

    decision: CanaryDecision
    message: str
    stage: str
    code: str = ""
    excluded_drop: float | None = None
    missing: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


def demanded(margin: float) -> str:
    """Return what a stage's margin asks for."""
    return "proof of an improvement" if margin == 0.0 else f"proof that it is not worse by {margin:.3g}"


def excluded(drop: float | None) -> str:
    """Return what is known of the drop."""
    if drop is None:
        return "no drop can be excluded yet"
    return "it is better" if drop == 0.0 else f"a drop of {drop:.3g} or more can be excluded"
