# SPDX-License-Identifier: Apache-2.0
"""What a rollout has shown, over restarts of the server: everything to JSON, and back only if its parts fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from vla_evidence.canary.assignment_check import AssignmentCheck
from vla_evidence.canary.by_episode import EpisodeComparison
from vla_evidence.canary.by_robot import RobotComparison
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.evidence import CanaryEvidence
from vla_evidence.canary.robot_cohort import LOOKS
from vla_evidence.canary.scores import ScoreLimits
from vla_evidence.errors import InputError, LogError, check_name, check_probability, check_time, shown
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT

_Evidence = TypeVar("_Evidence", bound="SavedEvidence")
_SCHEMA = 1
_ROUNDING = 1e-6


class SavedEvidence(CanaryEvidence):
    """:class:`CanaryEvidence` that can be saved. It is not signed: who forges all of it consistently is not found."""

    def to_json(self) -> dict[str, Any]:
        """Return everything for :meth:`from_json`: one that goes on exactly here."""
        return {
            "schema": _SCHEMA,
            "config": self.config.to_json(),
            "stage": self._stage,
            "since_s": self._since_s,
            "now_s": self._now_s,
            "heard_s": self._heard_s,
            "totals": [list(total) for total in self._totals],
            "stage_units": list(self._stage_units),
            "canaries": sorted(self._canaries),
            "fleet": sorted(self._fleet),
            "others": dict(self._others),
            "silent": sorted(self._silent),
            "ignored": self._ignored,
            "convicted": self._convicted,
            "probabilities": sorted(self._probabilities),
            "blocks": {source: list(blocks) for source, blocks in self._blocks.items()},
            "limits": self._limits.to_json(),
            "assignment": self._assignment.to_json(),
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
        except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as e:
            raise LogError("LOG_VALUE", "judge", f"no state of a judge of a canary: {e!r}") from e
        return judge

    def _restore(self, document: Mapping[str, Any]) -> None:
        self._begin_with(ScoreLimits.from_json(document["limits"]))
        self._stage, self._ignored = document["stage"], _count_of(document["ignored"])
        if type(self._stage) is not int or not -1 <= self._stage < len(self.config.stages):
            raise InputError("INPUT_VALUE", "stage", f"{self._stage!r}")
        self._since_s, self._now_s = check_time("since_s", document["since_s"]), check_time("now_s", document["now_s"])
        self._heard_s = check_time("heard_s", document["heard_s"])
        if not self._since_s <= self._heard_s <= self._now_s:
            raise InputError("INPUT_VALUE", "heard_s", f"{self._heard_s} does not lie in the stage")
        self._totals = [[_count_of(value) for value in total] for total in document["totals"]]
        self._stage_units = [_count_of(value) for value in document["stage_units"]]
        self._blocks = {source: [_count_of(n) for n in document["blocks"][source]] for source in self._limits.limits}
        shapes = [len(total) for total in (*self._totals, self._stage_units, *self._blocks.values())]
        if len(self._totals) != 2 or set(shapes) != {2} or self._since_s > self._now_s:
            raise InputError("INPUT_VALUE", "state", f"totals {self._totals}, since {self._since_s} of {self._now_s}")
        for (successes, episodes), in_stage in zip(self._totals, self._stage_units, strict=True):
            if not (successes <= episodes and in_stage <= episodes):
                raise InputError("INPUT_COUNT", "totals", f"{successes} of {episodes}, {in_stage} in the stage")
        self._probabilities = {check_probability("probability", value) for value in document["probabilities"]}
        self._canaries, self._silent = _names(document["canaries"]), _names(document["silent"])
        self._convicted = document["convicted"]
        if self._convicted not in ("", *self._comparison.harm):
            raise InputError("INPUT_VALUE", "convicted", f"{self._convicted!r}")
        self._assignment.restore(document["assignment"])
        compares = self._stage >= 0 and self.stage.share < 1.0
        self._fleet = _names(document["fleet"])
        self._others = {check_name("robot", robot): _group_of(group) for robot, group in document["others"].items()}
        looks = (
            sum(self._since_s + share * self.stage.duration_s <= self._now_s for share, _ in LOOKS) if compares else 0
        )
        self._comparison.restore(document["comparison"], self._stage if compares else None, looks)
        self._open.restore(document["open"], self._stage, self._now_s)
        if isinstance(self._comparison, EpisodeComparison):
            self._check_episodes(self._comparison)
        elif isinstance(self._comparison, RobotComparison):
            self._check_robots(self._comparison)
        for name, process, alpha in self._processes():
            if name == self._convicted and process.max_log_e < -math.log(alpha):
                raise InputError("INPUT_VALUE", "convicted", f"{name}: its evidence convicts nobody")

    def _check_robots(self, comparison: RobotComparison) -> None:
        """Refuse parts that do not fit each other: groups, evidence of earlier stages, counts, and what only episodes have."""
        cohort, units = comparison.cohort, self._open.of_stage(self._stage)
        groups = {**self._others, **(cohort.groups if cohort is not None else {})}
        running = {unit.robot: unit.group for unit in units}
        strangers = running.keys() - groups.keys() or (cohort.groups.keys() if cohort else set()) - self._fleet
        if strangers or any((robot in self._canaries) != group for robot, group in (*groups.items(), *running.items())):
            raise InputError("INPUT_ARM", "cohort", "its groups are not those of the rollout")
        earlier = any(stage.share < 1.0 for stage in self.config.stages[: max(0, self._stage)])
        before = bool(self._canaries - (cohort.groups.keys() if cohort else set()))
        if (before and not earlier) or (max(comparison.earlier.values()) > 0.0 and not before):
            raise InputError("INPUT_VALUE", "earlier", "canaries of no stage, or evidence without any")
        if self._probabilities or self._assignment.to_json() != AssignmentCheck().to_json():
            raise InputError("INPUT_VALUE", "assignment", "robots' episodes are not drawn")
        if cohort is None:
            return
        for group, (successes, heard, episodes) in enumerate(cohort.counts(comparison.tallies)):
            total, in_stage = self._totals[group], self._stage_units[group]
            if heard > in_stage or successes > total[0] or episodes > total[1]:
                reason = f"{successes} of {episodes}, {heard} told; {total} in all, {in_stage} in the stage"
                raise InputError("INPUT_COUNT", "cohort", reason)
        comparison.check_looks(units)

    def _check_episodes(self, comparison: EpisodeComparison) -> None:
        """Refuse counts that do not fit each other: every unit was assigned, and is open or known."""
        known = sum(episodes for _, episodes in self._totals)
        if known + len(self._open) != sum(self._assignment.units):
            reason = f"{sum(self._assignment.units)}, but {known} are known and {len(self._open)} open"
            raise InputError("INPUT_COUNT", "assigned", reason)
        for units, in_stage, (_, episodes) in zip(comparison.stage_units, self._stage_units, self._totals, strict=True):
            if not in_stage <= units <= episodes:
                raise InputError("INPUT_COUNT", "counts", f"{units} in the stage, {in_stage} told, {episodes} in all")
        for name, process in comparison.harm.items():
            learnt = all(n <= total[1] for n, total in zip(process.units, self._totals, strict=True))
            if not learnt or process.max_log_e > self._assignment.largest_log_e + _ROUNDING:
                raise InputError("INPUT_VALUE", name, "more evidence than the units can give")


def _count_of(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError("INPUT_COUNT", "state", f"{value!r} is no count")
    return value


def _group_of(value: Any) -> int:
    if type(value) is not int or value not in (INCUMBENT, CANARY):
        raise InputError("INPUT_ARM", "others", f"{shown(value)} is no group")
    return value


def _names(values: Any) -> set[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError("INPUT_VALUE", "state", f"{values!r} are no names")
    return set(values)
