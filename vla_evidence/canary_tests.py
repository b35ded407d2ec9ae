# SPDX-License-Identifier: Apache-2.0
"""The tests behind the judge of a canary: of its success and its latency, and of the drop that can be excluded.

Two forms with one interface, for units of episodes and for units of robots. Success, "fast enough" and scores within their limits
are judged alike.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.canary_config import CanaryConfig
from vla_evidence.errors import InputError, check_probability
from vla_evidence.non_inferiority import MARGINS, MAX_PROBABILITIES, NonInferiority
from vla_evidence.robot_units import RobotCohort, RobotEProcess, RobotPrior, smallest_drop
from vla_evidence.two_sample import CANARY, INCUMBENT, BetaPrior, TwoSampleEProcess

_FAST = BetaPrior(19.0, 1.0)
"""Of the incumbent's episodes 95 % are faster than a limit at their 95 % quantile."""
_FAST_CANARY = BetaPrior(4.0, 1.0)
SCORE = "score "
"""Before a source's name."""
_FAST_ROBOTS = RobotPrior(mean=0.95, sd=0.05, drop=0.15)


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
    def begin(self, cohort: RobotCohort | None) -> None:
        """A stage begins; ``cohort`` for units of robots, None for units of episodes.

        Raises:
            InputError: the wrong one of both; nothing has changed.
        """

    @abstractmethod
    def add(self, robot: str, group: int, outcomes: tuple[float, ...], probability: float, *, silent: bool) -> bool:
        """Take one episode of this stage in; ``outcomes``: in [0, 1], of each thing in :attr:`harm`, 1 the best.

        False: it tells nothing about this stage.
        """

    @abstractmethod
    def end_stage(self) -> None:
        """The stage's time is over: judge what there is; later outcomes count, too."""

    @abstractmethod
    def excluded_drop(self, alpha: float) -> float | None:
        """Return the smallest drop of success in this stage that can be excluded at level ``alpha``; None if none can."""

    def notes(self) -> list[str]:
        """Return what else a person should know."""
        return []

    @abstractmethod
    def best_drop(self, alpha: float, more: tuple[float, float]) -> float | None:
        """Return it for the best that may still come: so many units of incumbent and canary, all the canary's successes."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the state for :meth:`restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""


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

    def begin(self, cohort: RobotCohort | None) -> None:
        """See :class:`Comparison`.

        What was proven in an earlier stage lets nothing pass in this one: the drop may have come with more robots. So the proof
        starts from nothing. Evidence for harm is kept, and looked for anew with estimates of this stage alone.
        """
        if cohort is not None:
            raise InputError("INPUT_ARM", "cohort", "the unit is the episode: no robot has a group of its own")
        for process in self.harm.values():
            process.restart()
        self._excluded = NonInferiority(self._margins, incumbent=self._prior)

    def check(self, probabilities: Collection[float]) -> None:
        """Refuse more different probabilities in one stage than it can take."""
        if len(probabilities) > MAX_PROBABILITIES:
            reason = f"more than {MAX_PROBABILITIES} different ones; keep it the same for a stage"
            raise InputError("INPUT_PROBABILITY", "probability", reason)

    def late(self, group: int, outcomes: tuple[float, ...], probability: float) -> None:
        """Take in an episode that was assigned in an earlier stage: harm is harm, but it proves nothing for this stage."""
        for process, outcome in zip(self.harm.values(), outcomes, strict=True):
            process.update(group, outcome, probability)

    def add(self, robot: str, group: int, outcomes: tuple[float, ...], probability: float, *, silent: bool) -> bool:
        """See :class:`Comparison`.

        A silent episode is a failure of its group in the search for harm. In the proof of "not worse" the worst is assumed of it:
        the canary's failed, the incumbent's would have succeeded. Else, if nothing is heard of anybody, "0 of n against 0 of n"
        would prove that there is no drop.
        """
        self._excluded.add(group, outcomes[0] > 0.0 or (silent and group == INCUMBENT), probability)
        self._last_probability = probability
        self.late(group, outcomes, probability)
        return True

    def add_many(self, groups: ArrayLike, outcomes: Sequence[ArrayLike], probability: float) -> None:
        """Take many episodes in, in their order."""
        self._excluded.add_many(groups, outcomes[0], probability)
        self._last_probability = probability
        for process, values in zip(self.harm.values(), outcomes, strict=True):
            process.update_many(groups, np.asarray(values, dtype=np.float64), probability)

    def end_stage(self) -> None:
        """See :class:`Comparison`: nothing waits."""

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`."""
        return self._excluded.excluded_drop(alpha)

    def best_drop(self, alpha: float, more: tuple[float, float]) -> float | None:
        """See :class:`Comparison`; the incumbent goes on as it was."""
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

    def restore(self, state: Mapping[str, Any]) -> None:
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


class RobotComparison(Comparison):
    """Units are robots, of a cohort for each stage; a robot that was a canary before is none of a later stage's units."""

    def __init__(self, config: CanaryConfig, sources: Sequence[str] = ()) -> None:
        self.harm: dict[str, RobotEProcess] = {"success": RobotEProcess(config.harm_margin, prior=config.robot_prior)}
        if config.latency_limit_s is not None:
            self.harm["latency"] = RobotEProcess(config.latency_margin, prior=_FAST_ROBOTS)
        for source in sources:
            self.harm[SCORE + source] = RobotEProcess(config.score_margin, prior=_FAST_ROBOTS)
        self._margins = sorted({*MARGINS, *asked_margins(config)}, reverse=True)
        self._prior = config.robot_prior
        self._better: list[RobotEProcess] = []
        self.cohort: RobotCohort | None = None
        self._closed = False

    @property
    def largest_log_e(self) -> float:
        """No evidence of this stage can exceed this."""
        return self.cohort.largest_log_e if self.cohort is not None else 0.0

    def begin(self, cohort: RobotCohort | None) -> None:
        """See :class:`Comparison`; what was proven in an earlier stage lets nothing pass in this one."""
        if cohort is None:
            raise InputError("INPUT_ARM", "cohort", "the unit is the robot: each stage needs the robots' groups")
        if self.cohort is not None:
            self._take(self.cohort, final=True)
        for process in self.harm.values():
            process.restart()
        self._better = [RobotEProcess(margin, prior=self._prior, better=True) for margin in self._margins]
        self.cohort, self._closed = cohort, False

    def add(self, robot: str, group: int, outcomes: tuple[float, ...], probability: float, *, silent: bool) -> bool:
        """See :class:`Comparison`; ``probability`` is that of the cohort, not this one."""
        if self.cohort is None or robot not in self.cohort.groups:
            return False  # a canary of an earlier stage: there was no choice
        if silent:
            self.cohort.add_silent(robot, len(self.harm))
        else:
            self.cohort.add(robot, *map(float, outcomes))
        self._take(self.cohort)
        return True

    def end_stage(self) -> None:
        """See :class:`Comparison`: half of the evidence is staked on the robots as they are now, the other half goes on."""
        if self.cohort is None or self._closed:
            return
        now = copy.deepcopy(self)
        if now.cohort is not None:
            now._take(now.cohort, final=True)
        for process, closed in zip(self._processes(), now._processes(), strict=True):
            process.close(closed.log_e)
        self._closed = True

    def _processes(self) -> list[RobotEProcess]:
        return [*self.harm.values(), *self._better]

    def _take(self, cohort: RobotCohort, *, final: bool = False) -> None:
        for unit in cohort.ready(len(self.harm), final=final):
            for process, mean in zip(self.harm.values(), unit.means, strict=True):
                process.update(unit.group, mean, unit.probability)
            for better in self._better:
                better.update(unit.group, unit.worst, unit.probability)

    def notes(self) -> list[str]:
        """See :class:`Comparison`: which robots are short of episodes."""
        if self.cohort is None or not any(self.cohort.short()):
            return []
        incumbents, canaries = self.cohort.short()
        robots = (
            f"{canaries} canary robots and {incumbents} others have not all of their {self.cohort.episodes} episodes"
        )
        return [f"{robots}: of the rest the worst is assumed before the margin is called excluded"]

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`; from the largest margin downwards, as for :class:`NonInferiority`.

        None also while nothing was heard of a group in this stage.
        """
        if self.cohort is not None and any(self.cohort.unheard_of()):
            return None
        excluded = None
        for process in self._better:
            if process.log_e < -math.log(alpha):
                break
            excluded = process.margin
        return excluded

    def best_drop(self, alpha: float, more: tuple[float, float]) -> float | None:
        """See :class:`Comparison`: what the cohort's canaries could exclude if none of them had a fault."""
        if self.cohort is None or self.largest_log_e < -math.log(alpha):
            return None
        return smallest_drop(sum(self.cohort.groups.values()), alpha)

    def to_json(self) -> dict[str, Any]:
        """See :class:`Comparison`."""
        return {
            "harm": {name: process.to_json() for name, process in self.harm.items()},
            "better": [process.to_json() for process in self._better],
            "cohort": None if self.cohort is None else self.cohort.to_json(),
            "closed": self._closed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Comparison`."""
        for name, process in self.harm.items():
            process.restore(state["harm"][name])
        self.cohort = None if state["cohort"] is None else RobotCohort.from_json(state["cohort"])
        asked = self._margins if self.cohort is not None else []
        self._better = [RobotEProcess(margin, prior=self._prior, better=True) for margin in asked]
        for process, saved in zip(self._better, state["better"], strict=True):
            process.restore(saved)
        self._closed = bool(state["closed"])
