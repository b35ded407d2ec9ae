# SPDX-License-Identifier: Apache-2.0
"""What a rollout has shown: takes in stages, episodes and scores, and feeds every test of the judge of a canary with them.

Outcomes count in the order in which episodes were *assigned*: what is still open holds back what was assigned after it, until it
ends or its deadline passes. In the order of ending, a slower version would be under-represented among what is known. An episode
without an outcome by its deadline is a failure of its group, one without a latency is slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.canary_config import CanaryConfig
from vla_evidence.canary_scores import ScoreTests
from vla_evidence.canary_tests import Comparison, EpisodeComparison, HarmProcess, RobotComparison
from vla_evidence.errors import InputError, LogError
from vla_evidence.open_units import OpenUnits
from vla_evidence.robot_units import RobotCohort
from vla_evidence.stages import Stage, Unit
from vla_evidence.two_sample import CANARY, INCUMBENT

_Evidence = TypeVar("_Evidence", bound="CanaryEvidence")
_SHARES = {"success": 3.0, "latency": 1.0, "scores": 1.0}
_SCHEMA = 1


class CanaryEvidence:
    """What one rollout has shown so far. Call :meth:`begin_stage` first.

    Args:
        config: settings; see :class:`CanaryConfig`.
        score_history: the incumbent's observations by source (largest score of each block), from which limits are made.

    Raises:
        ValueError: a score of the history is not finite.
    """

    def __init__(self, config: CanaryConfig, score_history: Mapping[str, Sequence[float]] | None = None) -> None:
        self.config = config
        self._comparison: Comparison = (
            EpisodeComparison(config) if config.unit is Unit.EPISODE else RobotComparison(config)
        )
        history = score_history or {}
        judged = [*self._comparison.harm, *(["scores"] if history else [])]
        total = sum(_SHARES[name] for name in judged)
        self._alphas = {name: config.alpha * _SHARES[name] / total for name in judged}
        self._scores = ScoreTests(config, history, self._alphas.get("scores", config.alpha))
        self._open = OpenUnits(config.deadline_s)
        self._stage = -1
        self._since_s = self._now_s = 0.0
        self._totals = [[0, 0], [0, 0]]  # of each group: successes, episodes
        self._stage_units = [0, 0]
        self._canaries: set[str] = set()
        self._silent: set[str] = set()
        self._ignored = 0

    @property
    def stage(self) -> Stage:
        """The stage that is judged.

        Raises:
            InputError: none has begun.
        """
        if self._stage < 0:
            raise InputError("INPUT_VALUE", "stage", "no stage has begun")
        return self.config.stages[self._stage]

    # -- inputs -------------------------------------------------------------------------------------------------------------

    def begin_stage(self, index: int, now_s: float, cohort: Mapping[str, int] | None = None) -> None:
        """Begin a stage; evidence of earlier ones counts on.

        Args:
            index: in the configuration's stages, later than the one before.
            now_s: the server's clock [s], as everywhere here.
            cohort: for units of robots: the group of every robot of the fleet, drawn at random; earlier canaries stay canaries.

        Raises:
            InputError: no such stage, not a later one, or a cohort that cannot be.
        """
        if not self._stage < index < len(self.config.stages):
            raise InputError(
                "INPUT_VALUE", "stage", f"{index} does not follow {self._stage} of {len(self.config.stages)}"
            )
        self._advance_clock(now_s)
        if self.config.stages[index].share < 1.0:
            self._comparison.begin(self._new_cohort(index, cohort))
            self._canaries = {robot for robot, group in (cohort or {}).items() if group == CANARY}
        self._stage, self._since_s, self._stage_units = index, now_s, [0, 0]

    def _new_cohort(self, index: int, groups: Mapping[str, int] | None) -> RobotCohort | None:
        if groups is None:
            return None
        if any(groups.get(robot) != CANARY for robot in self._canaries):
            raise InputError("INPUT_ARM", "cohort", "a canary of an earlier stage is none any more")
        new = {robot: group for robot, group in groups.items() if robot not in self._canaries}
        return RobotCohort(new, self.config.episodes_per_robot, f"{self.config.salt}/{index}")

    def assign(self, episode: str, robot: str, group: int, now_s: float, probability: float | None = None) -> None:
        """An episode was given to a robot; :meth:`finish` tells its outcome, or its deadline passes.

        Args:
            episode: a name that no other episode has.
            robot: which runs it.
            group: 0 incumbent, 1 canary.
            now_s: when [s].
            probability: with which it was assigned to the canary, best the same for a whole stage; an episode without a choice is
                no evidence. For units of robots it follows from the cohort, and is None.

        Raises:
            InputError: an unknown group, a probability that is not strictly between 0 and 1, a robot that is not of the cohort or
                in its other group, or a name that is taken.
        """
        self._refuse_if_full()
        self._check_design(robot, group, probability)
        self._advance_clock(now_s)
        self._open.assign(episode, robot, group, 0.5 if probability is None else probability, self._stage, self._now_s)

    def _refuse_if_full(self) -> None:
        if self.stage.share >= 1.0:
            raise InputError("INPUT_VALUE", "stage", f"{self.stage.name} has nobody left to compare with")

    def _check_design(self, robot: str, group: int, probability: float | None) -> None:
        by_robot = isinstance(self._comparison, RobotComparison)
        if by_robot != (probability is None):
            reason = "follows from the cohort" if by_robot else "is needed: it is what the evidence rests on"
            raise InputError("INPUT_PROBABILITY", "probability", reason)
        if isinstance(self._comparison, RobotComparison) and self._comparison.cohort is not None:
            is_canary = robot in self._canaries
            if group != is_canary or not (is_canary or robot in self._comparison.cohort.groups):
                raise InputError("INPUT_ARM", "robot", f"{robot!r} is not in group {group!r} of the cohort")

    def finish(self, episode: str, success: bool, now_s: float, latency_s: float | None = None) -> bool:
        """An episode ended; false, and ignored, if it is not open (told twice, or after its deadline: it has failed then).

        Raises:
            InputError: a success that is neither true nor false, or a latency that is no duration.
        """
        if success not in (0, 1):
            raise InputError("INPUT_RATE", "success", f"{success!r} is neither true nor false")
        if latency_s is not None and not latency_s >= 0.0:
            raise InputError("INPUT_VALUE", "latency_s", f"{latency_s} is not a duration")
        self._advance_clock(now_s)
        known = self._open.finish(episode, bool(success), self._fast(latency_s))
        self._ignored += not known
        self._take_in()
        return known

    def add_many(
        self, groups: ArrayLike, successes: ArrayLike, probability: float, latencies_s: ArrayLike | None = None
    ) -> None:
        """Take in episodes that have ended, in the order of their assignment; arrays of shape [episodes]. None may be open.

        Raises:
            InputError: as :meth:`assign` and :meth:`finish`; or the unit is not the episode.
        """
        if not isinstance(self._comparison, EpisodeComparison) or len(self._open):
            raise InputError("INPUT_VALUE", "episodes", "some are still open, or the unit is the robot")
        self._refuse_if_full()
        g, y = np.asarray(groups), np.asarray(successes)
        outcomes = [y]
        if self.config.latency_limit_s is not None:
            latencies = np.full(y.shape, np.nan) if latencies_s is None else np.asarray(latencies_s, dtype=np.float64)
            if latencies.shape != y.shape:
                raise InputError("INPUT_VALUE", "latencies_s", f"{latencies.size} for {y.size} episodes")
            outcomes.append(latencies <= self.config.latency_limit_s)
        self._comparison.add_many(g, outcomes, probability)
        for group in (INCUMBENT, CANARY):
            members = g == group
            self._count(group, int(y[members].sum()), int(members.sum()))

    def add_score(self, source: str, value: float) -> None:
        """Take in one observation of the canary: the largest score of a block. Of a source that is not judged it is ignored."""
        self._scores.add(source, value)

    def _fast(self, latency_s: float | None) -> bool:
        limit = self.config.latency_limit_s
        return limit is None or (latency_s is not None and latency_s <= limit)

    def _advance_clock(self, now_s: float) -> None:
        if not math.isfinite(now_s):
            raise InputError("INPUT_VALUE", "now_s", f"{now_s} is not a time")
        self._now_s = max(self._now_s, now_s)
        self._open.expire(self._now_s)
        self._take_in()

    def _take_in(self) -> None:
        for unit in self._open.ready():
            of_now = unit.stage == self._stage
            if not of_now and self.config.unit is Unit.ROBOT:
                continue  # the robot may run another version by now
            outcomes = (unit.success, unit.fast)[: len(self._comparison.harm)]
            self._comparison.add(unit.robot, unit.group, outcomes, unit.probability, silent=unit.silent)
            (self._silent.add if unit.silent else self._silent.discard)(unit.robot)
            self._count(unit.group, int(unit.success), 1, in_stage=of_now and not unit.silent)

    def _count(self, group: int, successes: int, episodes: int, *, in_stage: bool = True) -> None:
        self._totals[group][0] += successes
        self._totals[group][1] += episodes
        self._stage_units[group] += episodes if in_stage else 0

    def _processes(self) -> Iterator[tuple[str, HarmProcess, float]]:
        """Yield (name, e-process, level) of every test for harm."""
        for name, process in self._comparison.harm.items():
            yield name, process, self._alphas[name]
        for source, scores in self._scores.processes():
            yield f"score {source}", scores, self._scores.alpha

    # -- over restarts of the server ----------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return everything for :meth:`from_json`: one that goes on exactly here."""
        return {
            "schema": _SCHEMA,
            "config": self.config.to_json(),
            "stage": self._stage,
            "since_s": self._since_s,
            "now_s": self._now_s,
            "totals": [list(total) for total in self._totals],
            "stage_units": list(self._stage_units),
            "canaries": sorted(self._canaries),
            "silent": sorted(self._silent),
            "ignored": self._ignored,
            "alphas": dict(self._alphas),
            "scores": self._scores.to_json(),
            "comparison": self._comparison.to_json(),
            "open": self._open.to_json(),
        }

    @classmethod
    def from_json(cls: type[_Evidence], document: Mapping[str, Any]) -> _Evidence:
        """Go on where another one was.

        Raises:
            LogError: LOG_VALUE: this is no state of a judge.
        """
        try:
            if document["schema"] != _SCHEMA:
                raise InputError("INPUT_VALUE", "schema", f"{document['schema']!r} is not {_SCHEMA}")
            judge = cls(CanaryConfig.from_json(document["config"]))
            judge._restore(document)
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as e:
            raise LogError("LOG_VALUE", "judge", f"no state of a judge of a canary: {e!r}") from e
        return judge

    def _restore(self, document: Mapping[str, Any]) -> None:
        self._stage, self._ignored = int(document["stage"]), int(document["ignored"])
        self._since_s, self._now_s = float(document["since_s"]), float(document["now_s"])
        self._totals = [[int(value) for value in total] for total in document["totals"]]
        self._stage_units = [int(value) for value in document["stage_units"]]
        shapes = [len(total) for total in self._totals], len(self._stage_units)
        if shapes != ([2, 2], 2) or not -1 <= self._stage < len(self.config.stages):
            raise InputError("INPUT_VALUE", "state", f"stage {self._stage}, totals {self._totals}")
        self._canaries, self._silent = set(document["canaries"]), set(document["silent"])
        self._alphas = {str(name): float(value) for name, value in document["alphas"].items()}
        self._scores.restore(document["scores"])
        self._comparison.restore(document["comparison"])
        self._open.restore(document["open"])
