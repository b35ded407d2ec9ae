# SPDX-License-Identifier: Apache-2.0
"""Canary and incumbent side by side: harm in success, latency and scores, and the drop of success that can be excluded.

Two forms with one interface: for units of episodes, here, and of robots (:mod:`vla_evidence.canary.by_robot`). Success, "fast
enough" and scores within their limits are judged alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.open_units import OpenUnit
from vla_evidence.canary.robot_cohort import RobotCohort
from vla_evidence.errors import InputError, check_probability
from vla_evidence.sequential.non_inferiority import MAX_PROBABILITIES, NonInferiority
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, BetaPrior, TwoSampleEProcess
from vla_evidence.tables import hours_text

_FAST = BetaPrior(19.0, 1.0)
"""Of the incumbent's episodes 95 % are faster than a limit at their 95 % quantile."""
_FAST_CANARY = BetaPrior(4.0, 1.0)
SCORE = "score "
"""Before a source's name."""


class HarmProcess(Protocol):
    """Evidence that the canary is worse in one respect."""

    @property
    def log_e(self) -> float:
        """Logarithm of the evidence."""

    @property
    def max_log_e(self) -> float:
        """Largest so far."""


class Comparison(ABC):
    """Canary and incumbent side by side.

    Attributes:
        harm: e-process by what is judged: "success", "latency" if that is, and "score …" for each source of scores.
    """

    harm: Mapping[str, HarmProcess]

    @abstractmethod
    def begin(self, cohort: RobotCohort | None, stage: int) -> None:
        """A stage begins; ``cohort`` for units of robots, None for units of episodes.

        Raises:
            InputError: the wrong one of both; nothing has changed.
        """

    @abstractmethod
    def begin_full(self) -> None:
        """A stage begins in which nobody is left to compare with."""

    @abstractmethod
    def add(self, unit: OpenUnit) -> bool:
        """Take an episode of this stage in, in the order of assignment; its outcomes are in the order of :attr:`harm`.

        False: it tells nothing about this stage.
        """

    @property
    def next_look(self) -> float | None:
        """When to call :meth:`look`, as a share of the stage's time, by the clock; None: no more."""
        return None

    def look(self, units: Sequence[OpenUnit]) -> None:  # noqa: B027  there need be none
        """Look at what is over by now; ``units``: of the stage, in the order of assignment, not handed to :meth:`add` yet."""

    @property
    def awaited(self) -> int:
        """How many episodes the last look waits for, although the stage's time is over."""
        return 0

    @abstractmethod
    def excluded_drop(self, alpha: float) -> float | None:
        """Return the smallest drop of success in this stage that can be excluded at level ``alpha``; None if none can."""

    def notes(self) -> list[str]:
        """Return what else a person should know."""
        return []

    def limits(self, margin: float | None, advance_alpha: float, harm_alphas: Mapping[str, float]) -> list[str]:
        """Return what cannot be shown at these levels, however it goes."""
        return []

    @abstractmethod
    def what_helps(self, margin: float | None, alpha: float, elapsed_s: float) -> str:
        """Return what would help if a margin was not excluded by what came in this time; empty, or with "; " at its end."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the state for :meth:`restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any], stage: int | None, looks: int) -> None:
        """Take over a state.

        Args:
            state: of another one.
            stage: index of the stage that is judged; None: none has begun, or nobody is left to compare with.
            looks: how many are due by now.

        Raises:
            InputError, KeyError, TypeError, ValueError, AttributeError: it cannot be one.
        """


def asked_margins(config: CanaryConfig) -> tuple[float, ...]:
    """Return the margins of the stages."""
    return tuple(stage.margin for stage in config.stages if stage.margin is not None)


class EpisodeComparison(Comparison):
    """Units are episodes, each drawn with a known probability."""

    def __init__(self, config: CanaryConfig, sources: Sequence[str] = ()) -> None:
        success = TwoSampleEProcess(config.harm_margin, incumbent=config.incumbent_prior, canary=config.canary_prior)
        self.harm: dict[str, TwoSampleEProcess] = {"success": success}
        if config.latency_limit_s is not None:
            self.harm["latency"] = TwoSampleEProcess(config.latency_margin, incumbent=_FAST, canary=_FAST_CANARY)
        for source in sources:
            score = TwoSampleEProcess(config.score_margin, incumbent=_FAST, canary=_FAST_CANARY)
            self.harm[SCORE + source] = score
        self._margins, self._prior = asked_margins(config), config.incumbent_prior
        self._excluded = NonInferiority(self._margins, incumbent=self._prior)
        self._last_probability = 0.5

    def begin(self, cohort: RobotCohort | None, stage: int) -> None:
        """See :class:`Comparison`.

        What was proven in an earlier stage lets nothing pass in this one: the drop may have come with more robots. So the proof
        starts from nothing. Evidence for harm is kept, and looked for anew with estimates of this stage alone.
        """
        if cohort is not None:
            raise InputError("INPUT_ARM", "cohort", "the unit is the episode: no robot has a group of its own")
        for process in self.harm.values():
            process.restart()
        self._excluded = NonInferiority(self._margins, incumbent=self._prior)

    def begin_full(self) -> None:
        """See :class:`Comparison`: evidence of harm stays."""

    def check(self, probabilities: Collection[float]) -> None:
        """Refuse more different probabilities in one stage than it can take."""
        if len(probabilities) > MAX_PROBABILITIES:
            reason = f"more than {MAX_PROBABILITIES} different ones; keep it the same for a stage"
            raise InputError("INPUT_PROBABILITY", "probability", reason)

    def late(self, unit: OpenUnit) -> None:
        """Take in an episode that was assigned in an earlier stage: harm is harm, but it proves nothing for this stage."""
        for process, outcome in zip(self.harm.values(), unit.outcomes, strict=True):
            process.update(unit.group, outcome, unit.probability)

    def add(self, unit: OpenUnit) -> bool:
        """See :class:`Comparison`.

        A silent episode is a failure of its group in the search for harm. In the proof of "not worse" the worst is assumed of it:
        the canary's failed, the incumbent's would have succeeded. Else, if nothing is heard of anybody, "0 of n against 0 of n"
        would prove that there is no drop.
        """
        best = not unit.done and unit.group == INCUMBENT
        self._excluded.add(unit.group, unit.outcomes[0] > 0.0 or best, unit.probability)
        self._last_probability = unit.probability
        self.late(unit)
        return True

    def add_many(self, groups: ArrayLike, outcomes: Sequence[ArrayLike], probability: float) -> None:
        """Take many episodes in, in their order: arrays of shape [episodes].

        Raises:
            InputError: they are not, or hold what cannot be; nothing has changed.
        """
        shapes = {np.shape(groups), *(np.shape(values) for values in outcomes)}
        if len(shapes) > 1 or len(np.shape(groups)) != 1:
            raise InputError("INPUT_VALUE", "episodes", f"shapes {sorted(shapes)}, not all one and the same [episodes]")
        self._excluded.add_many(groups, outcomes[0], probability)
        self._last_probability = probability
        for process, values in zip(self.harm.values(), outcomes, strict=True):
            process.update_many(groups, np.asarray(values, dtype=np.float64), probability)

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`."""
        return self._excluded.excluded_drop(alpha)

    def what_helps(self, margin: float | None, alpha: float, elapsed_s: float) -> str:
        """See :class:`Comparison`: more of the same, if it went well."""
        if margin is None or not all(self.stage_units):
            return ""
        growth = self._excluded.growth_needed(margin, alpha)
        if growth is None:
            return "more of the same would not exclude it; "
        return (
            f"if it goes on like this, about {hours_text(elapsed_s / 3600.0 * (growth - 1.0))} more would exclude it; "
        )

    def best_drop(self, alpha: float, more: tuple[float, float]) -> float | None:
        """Return it for the best that may still come: so many units of incumbent and canary, all the canary's successes.

        The incumbent goes on as it was.
        """
        best, pi = self._excluded.copy(), self._last_probability
        successes, units = self._excluded.counts()[INCUMBENT]
        expected = math.floor(more[0] * (successes / units if units else 0.0))
        best.add(INCUMBENT, True, pi, expected)
        best.add(INCUMBENT, False, pi, math.ceil(more[0]) - expected)
        best.add(CANARY, True, pi, math.ceil(more[1]))
        return best.excluded_drop(alpha)

    def to_json(self) -> dict[str, Any]:
        """See :class:`Comparison`."""
        harm = {name: process.to_json() for name, process in self.harm.items()}
        return {"harm": harm, "counts": self._excluded.to_json(), "last_probability": self._last_probability}

    def restore(self, state: Mapping[str, Any], stage: int | None, looks: int) -> None:
        """See :class:`Comparison`."""
        if set(state["harm"]) != set(self.harm):
            raise InputError("INPUT_VALUE", "harm", f"{sorted(state['harm'])} and not {sorted(self.harm)}")
        for name, process in self.harm.items():
            process.restore(state["harm"][name])
        self._excluded.restore(state["counts"])
        self._last_probability = check_probability("last_probability", state["last_probability"])

    @property
    def stage_units(self) -> tuple[int, int]:
        """Units of the incumbent and of the canary in this stage, silent ones with them."""
        return self._excluded.counts()[INCUMBENT][1], self._excluded.counts()[CANARY][1]
