# SPDX-License-Identifier: Apache-2.0
"""Canary and incumbent side by side where whole robots run one of them: a few looks at the robots of each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vla_evidence.canary.by_episode import SCORE, Comparison, asked_margins
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.open_units import OpenUnit
from vla_evidence.canary.robot_cohort import LOOKS, RobotCohort, Tallies
from vla_evidence.canary.robot_units import RobotEProcess, RobotPrior, smallest_drop
from vla_evidence.errors import InputError
from vla_evidence.sequential.non_inferiority import MARGINS
from vla_evidence.tables import hours_text

_FAST = RobotPrior(mean=0.95, sd=0.05, drop=0.15)
"""Of the incumbent's episodes 95 % are faster than a limit at their 95 % quantile."""
_ROUNDING = 1e-6


class _Look:
    """What robots had at one look, and which of its episodes have no outcome yet."""

    def __init__(self, tallies: Tallies, pending: set[str]) -> None:
        self.tallies, self.pending = tallies, pending


class RobotComparison(Comparison):
    """Units are robots, of a cohort for each stage; a robot that was a canary before is none of a later stage's units.

    Each stage is judged by itself, with its stake (see :mod:`robot_units`), and "not worse" at its last look only.
    How strong the evidence of harm has ever been goes over to the next one: a conviction that nobody asked for is not lost.
    """

    def __init__(self, config: CanaryConfig, sources: Sequence[str] = ()) -> None:
        self.harm: dict[str, RobotEProcess] = {"success": RobotEProcess(config.harm_margin, prior=config.robot_prior)}
        if config.latency_limit_s is not None:
            self.harm["latency"] = RobotEProcess(config.latency_margin, prior=_FAST)
        for source in sources:
            self.harm[SCORE + source] = RobotEProcess(config.score_margin, prior=_FAST)
        margins = sorted({*MARGINS, *asked_margins(config)}, reverse=True)
        self._better = [RobotEProcess(margin, prior=config.robot_prior, better=True) for margin in margins]
        self._config, self._stake, self._duration_s = config, 1.0, 0.0
        self.earlier = dict.fromkeys(self.harm, 0.0)
        """Largest evidence of earlier stages, by what is judged."""
        self.cohort: RobotCohort | None = None
        self.tallies = Tallies(len(self.harm))
        """Of this stage's units, what was handed to :meth:`add`."""
        self.looks: list[_Look] = []
        self._judged = 0  # looks

    def cohort_of(self, stage: int, groups: Mapping[str, int]) -> RobotCohort:
        """Return a stage's cohort with these units; raises as :class:`RobotCohort`."""
        return RobotCohort(groups, self._config.episodes_per_robot, f"{self._config.salt}/{stage}")

    def begin(self, cohort: RobotCohort | None, stage: int) -> None:
        """See :class:`Comparison`.

        Looks of the stage before that were still to come, or that wait for an outcome, are lost: who ends it early may do so for
        how its robots look.
        """
        if cohort is None:
            raise InputError("INPUT_ARM", "cohort", "the unit is the robot: each stage needs the robots' groups")
        self._begin(cohort)
        self._stake, self._duration_s = self._config.stake(stage), self._config.stages[stage].duration_s
        for process in self.harm.values():
            process.restart(self._stake)

    def begin_full(self) -> None:
        """See :class:`Comparison`."""
        self._begin(None)

    def _begin(self, cohort: RobotCohort | None) -> None:
        self.earlier = {name: process.max_log_e for name, process in self.harm.items()}
        self.cohort, self.tallies, self.looks, self._judged = cohort, Tallies(len(self.harm)), [], 0
        for process in (*self.harm.values(), *self._better):
            process.restart()

    def add(self, unit: OpenUnit) -> bool:
        """See :class:`Comparison`; the probability is that of the cohort, not the unit's."""
        if self.cohort is None or unit.robot not in self.cohort.groups:
            return False  # a canary of an earlier stage, or one that has joined: there was no choice
        self.tallies.add(unit.robot, unit.outcomes, silent=not unit.done)
        for look in self.looks:
            if unit.episode in look.pending:
                look.pending.remove(unit.episode)
                look.tallies.add(unit.robot, unit.outcomes, silent=not unit.done)
        self._judge()
        return True

    @property
    def next_look(self) -> float | None:
        """See :class:`Comparison`."""
        return LOOKS[len(self.looks)][0] if self.cohort is not None and len(self.looks) < len(LOOKS) else None

    def look(self, units: Sequence[OpenUnit]) -> None:
        """See :class:`Comparison`: all that is over, and what has begun before a robot's last episode."""
        assert self.cohort is not None
        look = _Look(self.tallies.copy(), set())
        by_robot: dict[str, list[OpenUnit]] = {}
        for unit in units:
            if unit.robot in self.cohort.groups:
                by_robot.setdefault(unit.robot, []).append(unit)
        for robot, own in by_robot.items():
            if not own[-1].done and (len(own) > 1 or robot in self.tallies.sums):
                own.pop()  # it runs just now
            for unit in own:
                if unit.done:
                    look.tallies.add(robot, unit.outcomes, silent=False)
                else:
                    look.pending.add(unit.episode)
        self.looks.append(look)
        self._judge()

    def _judge(self) -> None:
        """Judge the looks that wait for nothing any more, in their order."""
        while self.cohort is not None and self._judged < len(self.looks) and not self.looks[self._judged].pending:
            tallies, weight = self.looks[self._judged].tallies, LOOKS[self._judged][1]
            self._judged += 1
            for process in self.harm.values():
                process.restart(self._stake * weight)
            for unit in self.cohort.heard(tallies):
                for process, mean in zip(self.harm.values(), unit.means, strict=True):
                    process.update(unit.group, mean, unit.probability)
            if self.closed:
                for unit in self.cohort.all(tallies):
                    for better in self._better:
                        better.update(unit.group, unit.worst, unit.probability)

    @property
    def closed(self) -> bool:
        """Whether the last look is judged, so that no outcome changes the evidence any more."""
        return self.cohort is None or self._judged == len(LOOKS)

    @property
    def awaited(self) -> int:
        """See :class:`Comparison`."""
        return len(self.looks[-1].pending) if len(self.looks) == len(LOOKS) else 0

    def notes(self) -> list[str]:
        """See :class:`Comparison`: who is short of episodes or not heard of, and whether that may still change."""
        if self.cohort is None:
            return []
        notes, tallies = [], self.looks[-1].tallies if self.closed else self.tallies
        rest = f"have not all of their {self.cohort.episodes} episodes: of the rest the worst is assumed before the margin is"
        for (others, canaries), text in (
            (self.cohort.unheard_of(tallies), "have no episode that counts yet: they tell nothing about harm"),
            (self.cohort.short(tallies), f"{rest} called excluded"),
        ):
            if others or canaries:
                notes.append(f"{canaries} canary robots and {others} others {text}")
        if self.closed:
            notes.append("the stage's robots are judged: what comes later is counted, and is no evidence")
        else:
            times = [hours_text(share * self._duration_s / 3600.0) for share, _ in LOOKS]
            notes.append(f"its robots are looked at after {', '.join(times[:-1])} and {times[-1]}")
        return notes

    def limits(self, margin: float | None, advance_alpha: float, harm_alphas: Mapping[str, float]) -> list[str]:
        """See :class:`Comparison`: few robots can be drawn in few ways only, and may miss what the version breaks."""
        if self.cohort is None:
            return []
        limits, canaries = [], self.cohort.canaries
        if canaries in (0, len(self.cohort.groups)):
            return [
                "no robot of this stage is new in its group, so it can show nothing: take more robots, or leave it out"
            ]
        largest = self.cohort.largest_log_e + math.log(self._stake * max(weight for _, weight in LOOKS))
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
        return "the stage's evidence is closed, so more takes another stage, or a longer one; " if self.closed else ""

    def excluded_drop(self, alpha: float) -> float | None:
        """See :class:`Comparison`; from the largest margin downwards, as for :class:`NonInferiority`.

        None also while nothing was heard of a group in this stage.
        """
        if self.cohort is None or not self.closed or any(self.cohort.silent(self.looks[-1].tallies)):
            return None
        excluded = None
        for process in self._better:
            if process.log_e < -math.log(alpha):
                break
            excluded = process.margin
        return excluded

    def check_looks(self, units: Sequence[OpenUnit]) -> None:
        """Refuse looks that cannot have been; ``units``: of the stage, not handed to :meth:`add` yet.

        Raises:
            InputError: one saw more than a later one or than there is, or waits for what nobody runs.
        """
        last = self.tallies.copy()
        for unit in units:
            if unit.done and self.cohort is not None and unit.robot in self.cohort.groups:
                last.add(unit.robot, unit.outcomes, silent=False)
        open_units = {unit.episode for unit in units}
        for look in reversed(self.looks):
            for robot, sums in look.tallies.sums.items():
                most = last.sums.get(robot, [0.0] * len(sums))
                if any(value > limit + _ROUNDING for value, limit in zip(sums, most, strict=True)):
                    raise InputError("INPUT_COUNT", "looks", f"{robot!r} had more than it has")
            if not look.pending <= open_units:
                raise InputError("INPUT_VALUE", "pending", "no such episode is open")
            last = look.tallies

    def to_json(self) -> dict[str, Any]:
        """See :class:`Comparison`: the stage's evidence follows from its looks."""
        if self.cohort is None:
            return {"cohort": None, "earlier": dict(self.earlier)}
        looks = [{"sums": look.tallies.copy().sums, "pending": sorted(look.pending)} for look in self.looks]
        cohort = {"groups": dict(self.cohort.groups), "sums": self.tallies.copy().sums, "looks": looks}
        return {"cohort": cohort, "earlier": dict(self.earlier)}

    def restore(self, state: Mapping[str, Any], stage: int | None, looks: int) -> None:
        """See :class:`Comparison`; the stage's evidence is computed again."""
        if (state["cohort"] is None) != (stage is None) or set(state["earlier"]) != set(self.harm):
            raise InputError("INPUT_VALUE", "comparison", f"not of stage {stage}, or not of {sorted(self.harm)}")
        for name, process in self.harm.items():
            earlier = state["earlier"][name]
            if type(earlier) not in (int, float) or not 0.0 <= earlier < math.inf:
                raise InputError("INPUT_VALUE", f"earlier {name}", f"{earlier!r} is no largest evidence")
            process.max_log_e = float(earlier)
        if stage is None:
            self.begin_full()
            return
        saved, things = state["cohort"], len(self.harm)
        cohort = self.cohort_of(stage, saved["groups"])
        self.begin(cohort, stage)
        self.tallies = Tallies.from_json(saved["sums"], cohort.groups, things)
        if len(saved["looks"]) != looks:
            raise InputError("INPUT_VALUE", "looks", f"{len(saved['looks'])}, and {looks} are due")
        for row in saved["looks"]:
            if not all(isinstance(name, str) for name in row["pending"]):
                raise InputError("INPUT_VALUE", "pending", "some are no names")
            self.looks.append(_Look(Tallies.from_json(row["sums"], cohort.groups, things), set(row["pending"])))
        self._judge()
