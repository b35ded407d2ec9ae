# SPDX-License-Identifier: Apache-2.0
"""The tests behind the judge of a canary: of its success and its latency, and of the drop that can be excluded.

Two forms with one interface, for units of episodes and for units of robots. Success, "fast enough" and scores within their limits
are judged alike.
"""

from __future__ import annotations

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
from vla_evidence.tables import hours_text
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
    def begin(self, cohort: RobotCohort | None, stage: int) -> None:
        """A stage begins; ``cohort`` for units of robots, None for units of episodes.

        Raises:
            InputError: the wrong one of both; nothing has changed.
        """

    @abstractmethod
    def begin_full(self) -> None:
        """A stage begins in which nobody is left to compare with."""

    @abstractmethod
    def add(self, robot: str, group: int, outcomes: tuple[float, ...], probability: float, *, silent: bool) -> bool:
        """Take one episode of this stage in; ``outcomes``: in [0, 1], of each thing in :attr:`harm`, 1 the best.

        False: it tells nothing about this stage.
        """

    @abstractmethod
    def end_stage(self) -> None:
        """The stage's time is over, by the clock."""

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
        """Return what would help if a margin was not excluded in this time; empty, or with "; " at its end."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the state for :meth:`restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any], stage: int | None, *, over: bool) -> None:
        """Take over a state.

        Args:
            state: of another one.
            stage: index of the stage that is judged; None: none has begun, or nobody is left to compare with.
            over: whether its time is.

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

    def end_stage(self) -> None:
        """See :class:`Comparison`: later outcomes count as those before."""

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`."""
        return self._excluded.excluded_drop(alpha)

    def what_helps(self, margin: float | None, alpha: float, elapsed_s: float) -> str:
        """See :class:`Comparison`: more of the same, if it went well."""
        if margin is None:
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

    def restore(self, state: Mapping[str, Any], stage: int | None, *, over: bool) -> None:
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
    """Units are robots, of a cohort for each stage; a robot that was a canary before is none of a later stage's units.

    Each stage is judged by itself, with its stake (see :mod:`vla_evidence.robot_units`). What goes over to the next one is how
    strong the evidence of harm has ever been: a conviction that nobody asked for is not lost.
    """

    def __init__(self, config: CanaryConfig, sources: Sequence[str] = ()) -> None:
        self.harm: dict[str, RobotEProcess] = {"success": RobotEProcess(config.harm_margin, prior=config.robot_prior)}
        if config.latency_limit_s is not None:
            self.harm["latency"] = RobotEProcess(config.latency_margin, prior=_FAST_ROBOTS)
        for source in sources:
            self.harm[SCORE + source] = RobotEProcess(config.score_margin, prior=_FAST_ROBOTS)
        margins = sorted({*MARGINS, *asked_margins(config)}, reverse=True)
        self._better = [RobotEProcess(margin, prior=config.robot_prior, better=True) for margin in margins]
        self._config, self._stake = config, 1.0
        self.earlier = dict.fromkeys(self.harm, 0.0)
        """Largest evidence of earlier stages, by what is judged."""
        self.cohort: RobotCohort | None = None

    def cohort_of(self, stage: int, groups: Mapping[str, int]) -> RobotCohort:
        """Return a stage's cohort with these units; raises as :class:`RobotCohort`."""
        return RobotCohort(groups, self._config.episodes_per_robot, self._salt(stage))

    def _salt(self, stage: int) -> str:
        return f"{self._config.salt}/{stage}"

    def begin(self, cohort: RobotCohort | None, stage: int) -> None:
        """See :class:`Comparison`.

        If the time of the stage before is not over, its robots that are short of episodes are left out: whoever ends it early may
        do so for how they look, and then their means are no fair ones.
        """
        if cohort is None:
            raise InputError("INPUT_ARM", "cohort", "the unit is the robot: each stage needs the robots' groups")
        self._begin(cohort, self._config.stake(stage))

    def begin_full(self) -> None:
        """See :class:`Comparison`."""
        self._begin(None, 1.0)

    def _begin(self, cohort: RobotCohort | None, stake: float) -> None:
        self.earlier = {name: process.max_log_e for name, process in self.harm.items()}
        self._restart(stake)
        self.cohort = cohort

    def _restart(self, stake: float) -> None:
        self._stake = stake
        for process in self.harm.values():
            process.restart(stake)
        for better in self._better:
            better.restart()

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
        """See :class:`Comparison`: robots are judged by what they have now, for harm and for "not worse", and not again."""
        if self.cohort is not None:
            self._take(self.cohort, final=True)

    def _take(self, cohort: RobotCohort, *, final: bool = False) -> None:
        for unit in cohort.ready(len(self.harm), final=final):
            for process, mean in zip(self.harm.values(), unit.means, strict=True):
                process.update(unit.group, mean, unit.probability)
            for better in self._better:
                better.update(unit.group, unit.worst, unit.probability)

    @property
    def closed(self) -> bool:
        """Whether no robot of the stage is left to be judged, so that no outcome changes the evidence any more."""
        return self.cohort is None or not self.cohort.waiting

    def notes(self) -> list[str]:
        """See :class:`Comparison`: which robots are short of episodes, and whether these may still come."""
        if self.cohort is None:
            return []
        notes = []
        if any(self.cohort.short()):
            incumbents, canaries = self.cohort.short()
            robots = f"{canaries} canary robots and {incumbents} others have not all of their {self.cohort.episodes}"
            notes.append(f"{robots} episodes: of the rest the worst is assumed before the margin is called excluded")
        if self.closed:
            notes.append("every robot of the stage is judged: what comes later is counted, and is no evidence")
        return notes

    def limits(self, margin: float | None, advance_alpha: float, harm_alphas: Mapping[str, float]) -> list[str]:
        """See :class:`Comparison`: few robots can be drawn in few ways only, and may miss what the version breaks."""
        if self.cohort is None:
            return []
        limits, canaries = [], self.cohort.canaries
        largest = self.cohort.largest_log_e + math.log(self._stake)
        if largest < max(-math.log(alpha) for alpha in harm_alphas.values()):
            ways = f"{math.exp(self.cohort.largest_log_e):.4g}"
            limits.append(f"only {ways} ways to draw them: evidence of harm cannot exceed {math.exp(largest):.4g}")
        best = smallest_drop(canaries, advance_alpha)
        if margin and best > margin:
            robots = "1 canary robot without a fault excludes"
            if canaries != 1:
                robots = f"{canaries} canary robots without a fault exclude"
            limits.append(f"{robots} a drop of {best:.1%} at best where the incumbent never fails")
        return limits

    def what_helps(self, margin: float | None, alpha: float, elapsed_s: float) -> str:
        """See :class:`Comparison`."""
        return (
            "the evidence of its robots is closed, so more takes another stage, or a longer one; "
            if self.closed
            else ""
        )

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`; from the largest margin downwards, as for :class:`NonInferiority`.

        None also while nothing was heard of a group in this stage.
        """
        if self.cohort is None or any(self.cohort.unheard_of()):
            return None
        excluded = None
        for process in self._better:
            if process.log_e < -math.log(alpha):
                break
            excluded = process.margin
        return excluded

    def to_json(self) -> dict[str, Any]:
        """See :class:`Comparison`: the stage's evidence follows from its cohort."""
        return {"cohort": None if self.cohort is None else self.cohort.to_json(), "earlier": dict(self.earlier)}

    def restore(self, state: Mapping[str, Any], stage: int | None, *, over: bool) -> None:
        """See :class:`Comparison`; the stage's evidence is computed again."""
        if (state["cohort"] is None) != (stage is None) or set(state["earlier"]) != set(self.harm):
            raise InputError("INPUT_VALUE", "comparison", f"not of stage {stage}, or not of {sorted(self.harm)}")
        self._restart(1.0 if stage is None else self._config.stake(stage))
        for name, process in self.harm.items():
            earlier = state["earlier"][name]
            if type(earlier) not in (int, float) or not 0.0 <= earlier < math.inf:
                raise InputError("INPUT_VALUE", f"earlier {name}", f"{earlier!r} is no largest evidence")
            process.max_log_e = self.earlier[name] = float(earlier)
        if stage is not None:
            things = len(self.harm)
            self.cohort = RobotCohort.from_json(
                state["cohort"], self._config.episodes_per_robot, self._salt(stage), things
            )
            self._take(self.cohort, final=over)
