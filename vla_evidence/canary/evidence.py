# SPDX-License-Identifier: Apache-2.0
"""What a rollout has shown: takes in stages, episodes and scores, and feeds every test of the judge of a canary with them.

Outcomes count in the order in which episodes were *assigned*: what is still open holds back what was assigned after it, until it
ends or its deadline passes. In the order of ending, a slower version would be under-represented among what is known. An episode
without an outcome by its deadline is a failure of its group, one without a latency is slow, and one without scores exceeds their
limits.

What is refused (:class:`~vla_evidence.errors.InputError`) has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_evidence.canary.assignment_check import AssignmentCheck
from vla_evidence.canary.by_episode import SCORE, Comparison, EpisodeComparison, HarmProcess
from vla_evidence.canary.by_robot import RobotComparison
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.open_units import OpenUnits
from vla_evidence.canary.robot_cohort import RobotCohort
from vla_evidence.canary.scores import ScoreLimits, Scores
from vla_evidence.canary.stages import Stage, Unit
from vla_evidence.errors import (
    InputError,
    check_name,
    check_number,
    check_probability,
    check_time,
    is_integer,
    shown,
)
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT, check_group

_SHARES = {"success": 3.0, "latency": 1.0, "scores": 1.0}


class CanaryEvidence:
    """What one rollout has shown so far. Call :meth:`begin_stage` first.

    Args:
        config: settings; see :class:`CanaryConfig`.
        score_history: the incumbent's observations by source (largest score of each block), from which limits are made.

    Raises:
        InputError: a score of the history is no finite number.
    """

    def __init__(self, config: CanaryConfig, score_history: Scores | None = None) -> None:
        self.config = config
        self._begin_with(ScoreLimits.of(score_history or {}, config.score_quantile))
        self._assignment = AssignmentCheck()
        self._stage = -1
        self._since_s = self._now_s = self._heard_s = 0.0  # the last: when an outcome of the stage was told
        self._totals = [[0, 0], [0, 0]]  # of each group: successes, episodes
        self._stage_units = [0, 0]  # of each group: episodes with an outcome
        self._blocks = {source: [0, 0] for source in self._limits.limits}  # in the stage, of each group
        self._probabilities: set[float] = set()  # of the stage's assignments
        self._canaries: set[str] = set()  # by robot: of all stages
        self._fleet: set[str] = set()  # of the first stage
        self._others: dict[str, int] = {}  # groups of those who run in this stage and are none of its units
        self._silent: set[str] = set()
        self._ignored = 0
        self._convicted = ""  # name of the test by which it was rolled back: final

    def _begin_with(self, limits: ScoreLimits) -> None:
        """Make the tests; what is judged, and with it each share of α, follows from the settings and the limits."""
        form = EpisodeComparison if self.config.unit is Unit.EPISODE else RobotComparison
        self._limits = limits
        self._comparison: Comparison = form(self.config, list(limits.limits))
        kinds = {name: "scores" if name.startswith(SCORE) else name for name in self._comparison.harm}
        total = sum(_SHARES[kind] for kind in set(kinds.values()))
        same, alpha = list(kinds.values()), self.config.alpha
        self._alphas = {name: alpha * _SHARES[kind] / total / same.count(kind) for name, kind in kinds.items()}
        self._open = OpenUnits(self.config.deadline_s, len(self._comparison.harm), len(limits.limits))

    @property
    def stage(self) -> Stage:
        """The stage that is judged.

        Raises:
            InputError: none has begun.
        """
        if self._stage < 0:
            raise InputError("INPUT_VALUE", "stage", "no stage has begun")
        return self.config.stages[self._stage]

    def begin_stage(self, index: int, now_s: float, cohort: Mapping[str, int] | None = None) -> None:
        """Begin a stage. By episode evidence of harm goes on; by robot each stage has its own, and its share of α.

        Args:
            index: in the configuration's stages, later than the one before.
            now_s: the server's clock [s], as everywhere here.
            cohort: for units of robots: the group of every robot of the fleet, drawn at random. Earlier canaries stay canaries,
                or are not in it.

        Raises:
            InputError: no such stage, not a later one, or a cohort that cannot be.
        """
        if type(index) is not int or not self._stage < index < len(self.config.stages):
            raise InputError(
                "INPUT_VALUE", "stage", f"{index!r} does not follow {self._stage} of {len(self.config.stages)}"
            )
        now_s = check_time("now_s", now_s)
        compares = self.config.stages[index].share < 1.0
        new = self._new_cohort(index, cohort) if compares else None
        self._advance_clock(now_s)
        if compares:
            self._comparison.begin(new, index)
            self._others = {r: int(g) for r, g in (cohort or {}).items() if new is None or r not in new.groups}
            self._fleet = self._fleet or set(cohort or {})
            self._canaries |= {robot for robot, group in (cohort or {}).items() if group == CANARY}
        else:
            self._comparison.begin_full()
        self._assignment.begin_stage()
        self._stage, self._stage_units, self._probabilities = index, [0, 0], set()
        self._since_s = self._heard_s = self._now_s
        self._blocks = {source: [0, 0] for source in self._blocks}

    def _new_cohort(self, index: int, groups: Mapping[str, int] | None) -> RobotCohort | None:
        by_robot = isinstance(self._comparison, RobotComparison)
        if by_robot == (groups is None):
            reason = "is needed: the unit is the robot" if by_robot else "robots have no group: the unit is the episode"
            raise InputError("INPUT_ARM", "cohort", reason)
        if groups is None or not isinstance(self._comparison, RobotComparison):
            return None
        if not isinstance(groups, Mapping):
            raise InputError("INPUT_ARM", "cohort", f"{groups!r} tells no robots' groups")
        for robot, group in groups.items():
            check_name("robot", robot)
            if not is_integer(group) or group not in (INCUMBENT, CANARY):
                raise InputError("INPUT_ARM", "cohort", f"{robot!r} is in {shown(group)}, not {INCUMBENT} or {CANARY}")
        if any(groups.get(robot, CANARY) != CANARY for robot in self._canaries):
            raise InputError("INPUT_ARM", "cohort", "a canary of an earlier stage is none any more")
        return self._comparison.cohort_of(index, {r: g for r, g in groups.items() if self._is_unit(r)})

    def _is_unit(self, robot: str) -> bool:
        """Whether a robot may be one of a stage's units: not a canary before, and with the first stage's fleet.

        One that has joined later could be drawn with any rank, and those who were incumbents before only with a high one.
        """
        return robot not in self._canaries and (not self._fleet or robot in self._fleet)

    def assign(self, episode: str, robot: str, group: int, now_s: float, probability: float | None = None) -> None:
        """An episode was given to a robot; :meth:`finish` tells its outcome, or its deadline passes.

        Args:
            episode: a name that no other episode has. Told again, also after its end, it is refused for a deadline at least.
            robot: which runs it.
            group: 0 incumbent, 1 canary.
            now_s: when [s], by the one steady clock of this judge.
            probability: with which it was assigned to the canary, best the same for a whole stage; an episode without a choice is
                no evidence. For units of robots it follows from the cohort, and is None.

        Raises:
            InputError: an unknown group, a probability that is not strictly between 0 and 1 or the seventeenth of a stage, a
                robot that is not of the cohort or in its other group, a name that is taken, or a time that lies a deadline back.
        """
        self._refuse_if_full()
        group = check_group(group)
        self._check_design(robot, group, probability)
        probability = None if probability is None else check_probability("probability", probability)
        now_s = check_time("now_s", now_s)
        if now_s <= self._now_s - self.config.deadline_s:
            back = f"{now_s} is {self._now_s - now_s:.6g} s back"
            raise InputError("INPUT_VALUE", "now_s", f"{back}: its deadline has passed")
        pi = 0.5 if probability is None else probability
        self._open.check(episode, robot, group, pi)
        self._admit(probability)
        self._advance_clock(now_s)
        if probability is not None:
            self._assignment.add(robot, group, probability)
        self._open.assign(episode, robot, group, pi, self._stage)

    def _admit(self, probability: float | None) -> None:
        if probability is not None and isinstance(self._comparison, EpisodeComparison):
            self._comparison.check(self._probabilities | {probability})
            self._probabilities.add(probability)

    def _refuse_if_full(self) -> None:
        if self.stage.share >= 1.0:
            raise InputError("INPUT_VALUE", "stage", f"{self.stage.name} has nobody left to compare with")

    def _check_design(self, robot: str, group: int, probability: float | None) -> None:
        by_robot = isinstance(self._comparison, RobotComparison)
        if by_robot != (probability is None):
            reason = "follows from the cohort" if by_robot else "is needed: it is what the evidence rests on"
            raise InputError("INPUT_PROBABILITY", "probability", reason)
        if isinstance(self._comparison, RobotComparison) and self._comparison.cohort is not None:
            check_name("robot", robot)
            if group != self._comparison.cohort.groups.get(robot, self._others.get(robot)):
                raise InputError("INPUT_ARM", "robot", f"{robot!r} is not in group {shown(group)} of the cohort")

    def finish(
        self, episode: str, success: bool, now_s: float, latency_s: float | None = None, scores: Scores | None = None
    ) -> bool:
        """An episode ended; false, and ignored, if it is not open (told twice, or after its deadline: it has failed then).

        Args:
            episode: its name.
            success: whether it succeeded.
            now_s: when [s], by the one steady clock of this judge.
            latency_s: how long it took [s].
            scores: by source, the largest score of each of its blocks. Of a source that is not judged they are ignored.

        Raises:
            InputError: a success that is neither true nor false, a latency that is no duration, or a score that is no number.
        """
        check_name("episode", episode)
        if not isinstance(success, (bool, int, float, np.bool_, np.integer)) or success not in (0, 1):
            raise InputError("INPUT_RATE", "success", f"{shown(success)} is neither true nor false")
        if latency_s is not None and check_number("latency_s", latency_s) < 0.0:
            raise InputError("INPUT_VALUE", "latency_s", f"{latency_s} is not a duration")
        within, blocks = self._limits.read(scores)
        now_s = check_time("now_s", now_s)
        self._advance_clock(now_s)
        known = self._open.finish(episode, (float(success), *self._fast(latency_s), *within), blocks)
        self._ignored += not known
        self._heard_s = self._now_s if known else self._heard_s
        self._take_in()
        return known

    def _fast(self, latency_s: float | None) -> tuple[float, ...]:
        limit = self.config.latency_limit_s
        return () if limit is None else (float(latency_s is not None and latency_s <= limit),)

    def add_many(
        self,
        groups: ArrayLike,
        successes: ArrayLike,
        probability: float,
        latencies_s: ArrayLike | None = None,
        scores: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Take in episodes that have ended, in the order of their assignment. None may be open.

        Args:
            groups, successes: of each episode, shape [episodes].
            probability: of the canary, of each of them.
            latencies_s: of each [s].
            scores: by source, of shape [episodes, blocks].

        Raises:
            InputError: as :meth:`assign` and :meth:`finish`; or the unit is not the episode.
        """
        if not isinstance(self._comparison, EpisodeComparison) or len(self._open):
            raise InputError("INPUT_VALUE", "episodes", "some are still open, or the unit is the robot")
        self._refuse_if_full()
        g, y = np.asarray(groups), np.asarray(successes)
        outcomes = [y]
        if self.config.latency_limit_s is not None:
            latencies = np.full(y.shape, np.nan) if latencies_s is None else _floats("latencies_s", latencies_s)
            if latencies.shape != y.shape:
                raise InputError("INPUT_VALUE", "latencies_s", f"{latencies.size} for {y.size} episodes")
            outcomes.append(latencies <= self.config.latency_limit_s)
        blocks = dict.fromkeys(self._blocks, 0)
        for source, limit in self._limits.limits.items():
            values = _floats(f"scores of {source}", (scores or {}).get(source, np.full((y.size, 1), np.nan)))
            if values.ndim != 2 or len(values) != y.size or not values.shape[1]:
                raise InputError("INPUT_VALUE", f"scores of {source}", f"shape {values.shape} for {y.size} episodes")
            outcomes.append((values <= limit).mean(axis=1))
            blocks[source] = values.shape[1] if source in (scores or {}) else 0
        probability = check_probability("probability", probability)
        self._comparison.check(self._probabilities | {probability})
        self._comparison.add_many(g, outcomes, probability)
        self._admit(probability)
        self._assignment.add_many(g, probability)
        self._heard_s = self._now_s
        for group in (INCUMBENT, CANARY):
            members = g == group
            self._count(group, int(y[members].sum()), int(members.sum()))
            for source, each in blocks.items():
                self._blocks[source][group] += each * int(members.sum())

    def _advance_clock(self, now_s: float) -> None:
        until_s = max(self._now_s, check_time("now_s", now_s))
        while self._stage >= 0 and (share := self._comparison.next_look) is not None:
            at_s = self._since_s + share * self.stage.duration_s
            if at_s > until_s:  # by the clock, not when somebody asks who may have seen how it looks
                break
            self._pass_time(max(at_s, self._now_s))
            self._comparison.look(self._open.of_stage(self._stage))
        self._pass_time(until_s)

    def _pass_time(self, until_s: float) -> None:
        self._now_s = until_s
        self._open.advance(until_s)
        self._take_in()

    def _take_in(self) -> None:
        for unit in self._open.ready():
            counts = unit.stage == self._stage
            if counts:
                counts = self._comparison.add(unit)
            elif isinstance(self._comparison, EpisodeComparison):
                self._comparison.late(unit)
            else:
                continue  # the robot may run another version by now
            (self._silent.discard if unit.done else self._silent.add)(unit.robot)
            self._count(unit.group, int(unit.outcomes[0]), 1, in_stage=counts and unit.done)
            for blocks, told in zip(self._blocks.values(), unit.blocks, strict=True):
                blocks[unit.group] += told if counts else 0

    def _count(self, group: int, successes: int, episodes: int, *, in_stage: bool = True) -> None:
        self._totals[group][0] += successes
        self._totals[group][1] += episodes
        self._stage_units[group] += episodes if in_stage else 0

    def _processes(self) -> Iterator[tuple[str, HarmProcess, float]]:
        """Yield (name, e-process, level) of every test for harm."""
        for name, process in self._comparison.harm.items():
            yield name, process, self._alphas[name]


def _floats(field: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as e:
        raise InputError("INPUT_VALUE", field, f"{shown(values)} are no numbers") from e
