# SPDX-License-Identifier: Apache-2.0
"""The plain rule for a rollout: compare two means. Easy to explain, and wrong as often as its simulation says.

At the end of a stage, from 50 episodes of each version on: **ROLLBACK** if the new mean is more than 2 points below the old one;
**ADVANCE** at parity; before every robot gets it, **ADVANCE** only if the new mean is higher, else **ASK**. All episodes of the
rollout count, each as one value, whatever robot ran it.

Nothing bounds its errors: :func:`vla_evidence.planning.feasible.feasible` simulates them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.canary.endpoints import Comparison, Endpoint, Tally
from vla_evidence.episodes import Episode
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.verdict import Decision, Verdict

MARGIN = 0.02
"""Of the success rate: so much lower is parity still."""


def parity(new_mean: float, old_mean: float) -> bool:
    """Whether the new version may go to more robots."""
    return new_mean >= old_mean - MARGIN


def improvement(new_mean: float, old_mean: float) -> bool:
    """Whether the new version may go to every robot."""
    return new_mean > old_mean


class SimpleComparison(Comparison):
    """One rollout's means, by episode or by robot alike; ``tally``: of the whole rollout."""

    def __init__(self, config: CanaryConfig, endpoints: Sequence[Endpoint]) -> None:
        self._config, self._success = config, endpoints[0]
        self.tally = Tally()

    def begin(self, stage: Stage, since_s: float) -> None:
        """A stage begins."""
        stages = self._config.stages
        self._end_s = since_s + stage.duration_s if stage.compares else math.inf
        self._last = not stages[min(stages.index(stage) + 1, len(stages) - 1)].compares

    def add(self, episode: Episode, probability: float, *, of_stage: bool) -> None:
        """Take in an episode that is over."""
        self.tally.add(episode)

    def add_many(self, versions: ArrayLike, successes: ArrayLike, many: Tally, assigned_s: float) -> None:
        """Take in many episodes that are over."""
        self.tally += many

    def judge_looks(self, now_s: float) -> None:
        """Compare, once the stage's time is over."""
        if now_s >= self._end_s and not self._missing() and not parity(*self._means()):
            self.worse = self._success

    def advance(self, now_s: float, open_before: Any) -> Verdict:
        """Say whether the stage may be left."""
        missing = self._missing()
        if now_s < self._end_s:
            why = "waiting for the end of the stage"
            return Verdict(Decision.HOLD, why, missing=(why, *missing))
        if missing:
            return Verdict(Decision.ASK, f"lacks {'; '.join(missing)}; a person decides", missing=tuple(missing))
        if self._last and not improvement(*self._means()):
            lack = "an improvement, which the simple rule asks for before every robot gets it"
            return Verdict(Decision.ASK, f"lacks {lack}; a person decides", missing=(lack,))
        return Verdict(Decision.ADVANCE, "an improvement" if self._last else "parity, by the simple rule")

    def _means(self) -> tuple[float, float]:
        new, old = (self.tally.successes[v] / max(1, self.tally.episodes[v]) for v in (CANARY, INCUMBENT))
        return new, old

    def _missing(self) -> list[str]:
        counts, least = self.tally.episodes, self._config.min_episodes
        rows = ((counts[CANARY], "canary"), (counts[INCUMBENT], "incumbent"))
        return [f"{count} of {least} {name} episodes" for count, name in rows if count < least]

    def words(self) -> list[str]:
        """Return the means in words."""
        new, old = self._means()
        return [
            f"new mean {new:.1%}, old mean {old:.1%} (rolled back below {old - MARGIN:.1%}, at the end of the stage)"
        ]

    def figures(self) -> dict[str, Any]:
        """Return the means."""
        new, old = self._means()
        return {"simple": {"new_mean": new, "old_mean": old, "margin": MARGIN}}
