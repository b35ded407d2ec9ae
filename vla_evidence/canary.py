# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary: go on to the next stage, wait, roll back, or ask a person. Pure: it reads no clock and draws nothing.

**ROLLBACK** when one e-process finds harm: success (the canary's rate is lower), latency (more of its episodes are slow), or
anomaly scores (more of its blocks exceed the incumbent's limit than is tolerated). α is shared by what is judged, 3 : 1 : 1,
before the first outcome, so P(a canary that is no worse in any of them is ever rolled back) <= α over all stages.

**ADVANCE** when there is no such evidence and none that leans that way, the stage has lasted its time, each group has its minimum
of episodes in it (each score source of blocks), and the stage's margin is excluded: the canary is not worse by so much, at level
``advance_alpha`` over all stages and looks. Never on missing data: an assigned episode without an outcome by its deadline
is a failure of its group, one without a latency is slow.

**INCONCLUSIVE** when the stage's time is over without that, the margin is out of reach at this pace, or the canary did not get
the share of episodes that all evidence rests on: hold, and ask a person, with the drop that can be excluded. It is no final
verdict: evidence goes on, and may be looked at again. **HOLD** otherwise.

Outcomes count in the order in which episodes were *assigned*: what is still open holds back what was assigned after it, until it
ends or its deadline passes. In the order of ending, a slower version would be under-represented among what is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.canary_config import CanaryConfig
from vla_evidence.canary_scores import ScoreTests
from vla_evidence.canary_tests import Comparison, EpisodeComparison, HarmProcess, RobotComparison
from vla_evidence.canary_verdict import CanaryDecision, CanaryVerdict, demanded, excluded, listed
from vla_evidence.errors import InputError, LogError
from vla_evidence.exceedance import odds
from vla_evidence.open_units import OpenUnits
from vla_evidence.robot_units import RobotCohort
from vla_evidence.stages import Stage, Unit
from vla_evidence.two_sample import CANARY, INCUMBENT

_SHARES = {"success": 3.0, "latency": 1.0, "scores": 1.0}
_CODES = {"success": "SUCCESS_WORSE", "latency": "LATENCY_WORSE"}
_FORECAST_FROM = 0.25
_MISMATCH_ALPHA = 1e-3
_SCHEMA = 1


class CanaryJudge:
    """Judges one rollout. Call :meth:`begin_stage` first.

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
            self._count(unit.group, int(unit.success), 1, of_now=of_now)

    def _count(self, group: int, successes: int, episodes: int, *, of_now: bool = True) -> None:
        self._totals[group][0] += successes
        self._totals[group][1] += episodes
        self._stage_units[group] += episodes if of_now else 0

    # -- output -------------------------------------------------------------------------------------------------------------

    def verdict(self, now_s: float) -> CanaryVerdict:
        """Decide on what is known at this time."""
        stage = self.stage
        self._advance_clock(now_s)
        time_over = self._now_s - self._since_s >= stage.duration_s
        if time_over:
            self._comparison.end_stage()
        drop = self._comparison.excluded_drop(self.config.advance_alpha)
        code, why = self._harm()
        if code:
            return self._say(CanaryDecision.ROLLBACK, why, drop, code=code)
        if stage.share >= 1.0:
            return self._say(CanaryDecision.HOLD, "every robot is to run it: nobody is left to compare with", drop)
        mismatch = self._mismatch()
        if mismatch:
            return self._say(CanaryDecision.INCONCLUSIVE, f"{mismatch}; ask a person", None, missing=(mismatch,))
        missing = self._missing(stage, drop)
        if not missing:
            return self._say(CanaryDecision.ADVANCE, "no sign of harm, and enough of everything", drop)
        out_of_reach = self._out_of_reach(stage, drop)
        if time_over or out_of_reach:
            why = out_of_reach or f"the stage's {stage.duration_s / 3600.0:g} h are over"
            ask = f"{why}, and this is missing: {', '.join(missing)}; {excluded(drop)}; ask a person"
            return self._say(CanaryDecision.INCONCLUSIVE, ask, drop, missing=tuple(missing))
        return self._say(
            CanaryDecision.HOLD, f"missing: {', '.join(missing)}; {excluded(drop)}", drop, missing=tuple(missing)
        )

    def _harm(self) -> tuple[str, str]:
        both = min(self._totals[INCUMBENT][1], self._totals[CANARY][1]) > 0  # else the assignment alone would convict
        for name, process in self._comparison.harm.items():
            if both and process.max_log_e >= -math.log(self._alphas[name]):
                return _CODES[name], f"{name} is worse"
        source = self._scores.worse()
        return ("SCORES_WORSE", f"{source} exceeds the incumbent's limit too often") if source else ("", "")

    def _mismatch(self) -> str:
        if self._comparison.assignment_log_e() < -math.log(_MISMATCH_ALPHA):
            return ""
        units = [total[1] for total in self._totals]
        share = f"the canary got {units[CANARY]} of {sum(units)} episodes, which is not the share that was to be drawn"
        return f"{share}: nothing is comparable"

    def _missing(self, stage: Stage, drop: float | None) -> list[str]:
        config, missing = self.config, []
        left_s = stage.duration_s - (self._now_s - self._since_s)
        if left_s > 0.0:
            missing.append(f"{left_s / 3600.0:.3g} h of {stage.duration_s / 3600.0:g}")
        for group, name in ((CANARY, "canary"), (INCUMBENT, "incumbent")):
            if self._stage_units[group] < config.min_episodes:
                missing.append(f"episodes of the {name} ({self._stage_units[group]} of {config.min_episodes})")
        missing += self._scores.missing()
        if stage.margin is not None and (drop is None or drop > stage.margin):
            missing.append(demanded(stage.margin))
        strongest = max(process.log_e for _, process, _ in self._processes())
        if strongest > math.log(config.advance_max_evidence):
            missing.append(f"clearness: evidence of {math.exp(min(strongest, 700.0)):.3g} leans against the canary")
        return missing

    def _out_of_reach(self, stage: Stage, drop: float | None) -> str:
        """Say why the margin will not be excluded by the end of the stage; empty if it may be."""
        elapsed_s = self._now_s - self._since_s
        if stage.margin is None or (drop is not None and drop <= stage.margin):
            return ""
        if isinstance(self._comparison, RobotComparison):
            if self._comparison.best_drop(self.config.advance_alpha, (0.0, 0.0)) is None:
                largest = math.exp(min(self._comparison.largest_log_e, 700.0))
                return f"so few robots can give evidence of {largest:.4g} at most"
            return ""
        if elapsed_s < _FORECAST_FROM * stage.duration_s or not elapsed_s or elapsed_s >= stage.duration_s:
            return ""
        growth = (stage.duration_s - elapsed_s) / elapsed_s
        more = (self._stage_units[INCUMBENT] * growth, self._stage_units[CANARY] * growth)
        best = self._comparison.best_drop(self.config.advance_alpha, more)
        if best is not None and best <= stage.margin:
            return ""
        expected = self._stage_units[CANARY] + more[1]
        return f"at this pace the stage ends with {expected:.0f} canary episodes, too few even if all succeed"

    def _say(
        self, decision: CanaryDecision, why: str, drop: float | None, *, code: str = "", missing: tuple[str, ...] = ()
    ) -> CanaryVerdict:
        stage = self.stage
        parts = [f"{stage.name}: {why}", self._rates()]
        for name, process in self._comparison.harm.items():
            log_e = process.max_log_e if code else process.log_e
            parts.append(f"{name} worse: {odds(log_e, self._alphas[name])}")
        parts += self._scores.describe()
        if self._silent:
            parts.append(f"silent, their episodes counted as failures: {listed(self._silent)}")
        if self._ignored:
            parts.append(f"{self._ignored} outcomes ignored that came twice or after their deadline")
        return CanaryVerdict(decision, "; ".join(parts), stage.name, code, drop, missing, self._figures())

    def _rates(self) -> str:
        texts = []
        for group, name in ((CANARY, "canary"), (INCUMBENT, "incumbent")):
            successes, episodes = self._totals[group]
            texts.append(f"{name} {successes} of {episodes}" + (f" ({successes / episodes:.1%})" if episodes else ""))
        return ", ".join(texts)

    def _figures(self) -> dict[str, Any]:
        tests = {
            name: {"log_e": process.log_e, "max_log_e": process.max_log_e, "decides_at": -math.log(alpha)}
            for name, process, alpha in self._processes()
        }
        return {
            "incumbent": list(self._totals[INCUMBENT]),
            "canary": list(self._totals[CANARY]),
            "in_stage": list(self._stage_units),
            "elapsed_s": self._now_s - self._since_s,
            "open": len(self._open),
            "tests": tests,
        }

    def _processes(self) -> Iterator[tuple[str, HarmProcess, float]]:
        """Yield (name, e-process, level) of every test for harm."""
        for name, process in self._comparison.harm.items():
            yield name, process, self._alphas[name]
        for source, scores in self._scores.processes():
            yield f"score {source}", scores, self._scores.alpha

    # -- over restarts of the server ----------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return everything for :meth:`from_json`: a judge that goes on exactly here."""
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

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> CanaryJudge:
        """Go on where another judge was.

        Raises:
            LogError: LOG_VALUE: this is no state of a judge.
        """
        try:
            if document["schema"] != _SCHEMA:
                raise InputError("INPUT_VALUE", "schema", f"{document['schema']!r} is not {_SCHEMA}")
            judge = CanaryJudge(CanaryConfig.from_json(document["config"]))
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
