# SPDX-License-Identifier: Apache-2.0
"""One question that the gate asks, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_evidence.sequential.paired_score_test import excluded_drop, paired_score_p_value
from vla_learning.training.errors import check_range

Part = Literal["old", "new"]
_CODES = {"old": "GATE_FORGETS", "new": "GATE_NO_IMPROVEMENT"}


@dataclass(frozen=True)
class GateSettings:
    """What the gate asks.

    Attributes:
        episodes_old, episodes_new: in the simulator, of either version.
        margin_old: drop of the success rate on old tasks that has to be excluded.
        margin_new: the same on new tasks; 0: an improvement has to be shown.
        margin_recorded: rise of the error on recorded old episodes that has to be excluded, in standard deviations of an action.
        alpha: P(a candidate that is worse by the margin passes a check).
        seed: of the simulated episodes.
    """

    episodes_old: int = 200
    episodes_new: int = 100
    margin_old: float = 0.05
    margin_new: float = 0.0
    margin_recorded: float = 0.05
    alpha: float = 0.05
    seed: int = 1000

    def __post_init__(self) -> None:
        """Raise TRAINING_SETTING for what nothing can be judged with."""
        check_range(self, episodes_old=(1, 10**6), episodes_new=(1, 10**6), margin_old=(0, 0.99), margin_new=(0, 0.99))
        check_range(self, margin_recorded=(0, 100), alpha=(1e-6, 0.5), seed=(0, 2**63))


@dataclass(frozen=True)
class Check:
    """An answer.

    Attributes:
        name: what was compared, for people.
        part: whether of old or of new tasks.
        passed: None: there was too little to judge.
        text: what was found.
        figures: the same for machines.
    """

    name: str
    part: Part
    passed: bool | None
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """Why it did not pass."""
        return _CODES[self.part] if self.passed is False else ""

    def __str__(self) -> str:
        word = {True: "pass", False: f"FAIL {self.code}", None: "not judged"}[self.passed]
        return f"{word}: {self.name}: {self.text}"


def compare_successes(
    name: str, part: Part, base: list[bool], candidate: list[bool], margin: float, alpha: float
) -> Check:
    """Compare two policies by the outcomes of the same episodes."""
    pairs = len(base)
    wins = sum(c and not b for b, c in zip(base, candidate, strict=True))
    losses = sum(b and not c for b, c in zip(base, candidate, strict=True))
    p = paired_score_p_value(wins, losses, pairs, margin)
    drop = excluded_drop(wins, losses, pairs, alpha)
    text = f"{sum(base)} of {pairs} before, {sum(candidate)} of {pairs} after"
    if drop == 0.0:
        text += "; better"
    elif drop < 1.0:
        text += f"; a drop above {drop:.1%} is excluded"
    if margin:
        text += f" (asked: above {margin:.1%})"
    elif drop:
        text += "; no improvement is shown"
    figures = {"pairs": pairs, "base": sum(base), "candidate": sum(candidate), "wins": wins, "losses": losses}
    return Check(name, part, p <= alpha, text, {**figures, "p": p, "excluded_drop": drop, "margin": margin})
