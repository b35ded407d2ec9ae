# SPDX-License-Identifier: Apache-2.0
"""What every judge says: a decision, its grounds in words, and the figures behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Decision(str, Enum):
    """What is to be done (rollouts), or what was found (A/B tests)."""

    ADVANCE = "ADVANCE"
    HOLD = "HOLD"
    ROLLBACK = "ROLLBACK"
    ASK = "ASK"
    """A person decides."""

    A_BETTER = "A_BETTER"
    B_BETTER = "B_BETTER"
    CONTINUE = "CONTINUE"
    NO_DIFFERENCE_SHOWN = "NO_DIFFERENCE_SHOWN"
    """All planned data are there. It does not say that there is no difference."""


@dataclass(frozen=True)
class Verdict:
    """A decision with its grounds.

    Attributes:
        decision: what is to be done.
        message: why, in words and numbers.
        code: of a rollback: SUCCESS_WORSE, LATENCY_WORSE, SCORES_WORSE or PERSON_DECIDED; else empty.
        missing: what an advance still needs, for people.
        figures: the numbers: JSON. A replay compares decision, code and figures.
    """

    decision: Decision
    message: str
    code: str = ""
    missing: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
