# SPDX-License-Identifier: Apache-2.0
"""Canary and incumbent compared where a robot runs one version for a whole stage.

**Harm**: an exact randomisation test (:mod:`vla_evidence.sequential.randomisation_test`) of the stage's new canaries against
the robots that remain with the incumbent. Given all that came before, who of them became a canary is a fair draw, so the test
is exact whatever began the stage: a version that does the same on every robot is rolled back in at most α. Half of α is for
the first stage that compares, the rest is shared by the others.

**Looks** are by the clock, after 1/8, 1/4, 1/2 and all of the stage's time, with α spent in proportion. A look sees the
episodes that are over by then, but not the one that a robot runs just then: of what was *assigned* by some moment the last is
more likely a long one, so a version whose failures take longer would look worse than it is. It waits for earlier outcomes
that are missing, for a deadline at most. (A robot that waits for help after a failure shows that failure as its last for as
long. Where that differs between the versions, report the outcome when the robot is ready again.)

**As many episodes of each robot**, spread evenly over all that it ran, and less what the robot's own earlier success predicts,
where three quarters of the robots have 40 earlier episodes.

**Advance** is a person's decision: few robots cannot show that none of many breaks. With ``advance: same_shift`` the judge
decides, assuming that the new version changes every robot's success by the same amount.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_evidence.canary.config import FEWEST_ROBOTS, CanaryConfig, Stage
from vla_evidence.canary.endpoints import Comparison, Endpoint, Tally, shortfalls
from vla_evidence.canary.scores import ScoreLimits
from vla_evidence.episodes import Episode
from vla_evidence.sequential.randomisation_test import (
    Look,
    RandomisationTest,
    cohort_assignments,
    common_number,
    one_look,
    shift_interval,
    spread,
    without_baseline,
)
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.tables import hours_text, plural
from vla_evidence.verdict import Decision, Verdict

LOOKS = (0.125, 0.25, 0.5, 1.0)
ENOUGH_HISTORY = 40
_LARGEST_FALL = 0.35
"""A canary robot that fell by more against its own past keeps ``same_shift`` from advancing."""
_WORST = 3
History = Mapping[str, tuple[float, float]]
"""(successes, episodes) of robots with the incumbent, before the rollout."""


@dataclass
class _Results:
    """The robots at one look: as many episodes of each, shape [robots]; ``values``: of every endpoint, [endpoints, robots]."""

    robots: list[str]
    counts: NDArray[np.float64]
    values: NDArray[np.float64]
    baseline: NDArray[np.float64]
    each: int
    tally: Tally


class RobotComparison(Comparison):
    """One rollout's robots.

    Attributes:
        tally: of this stage's units so far.
        failed: canary robots whose own trial was rolled back.
    """

    def __init__(
        self, config: CanaryConfig, endpoints: Sequence[Endpoint], limits: ScoreLimits, experiment: str
    ) -> None:
        self._config, self._endpoints, self._limits, self._experiment = config, endpoints, limits, experiment
        self._past: dict[str, list[float]] = {}
        self._groups: dict[str, bool] = {}
        self._episodes: dict[str, list[Episode]] = {}
        self._waiting: list[tuple[float, dict[str, list[Episode]]]] = []  # looks that wait for outcomes
        self._looks = 0
        self._result: _Results | None = None
        self._summed: tuple[str, dict[str, Any]] | None = None
        self.tally = Tally()
        self.failed: set[str] = set()

    def begin(
        self, stage: Stage, since_s: float, index: int, groups: Mapping[str, int], history: History | None
    ) -> None:
        """A stage begins; what is still to be looked at of the one before is lost.

        ``groups``: version of each robot that is a unit: a new canary, or one that remains with the incumbent.
        """
        for robot, (successes, episodes) in (history or {}).items():
            self._past.setdefault(robot, [float(successes), float(episodes)])
        for robot, own in self._episodes.items():
            if not self._groups[robot]:
                past = self._past.setdefault(robot, [0.0, 0.0])
                past[0] += sum(episode.success for episode in own)
                past[1] += len(own)
        self._stage, self._since_s = stage, since_s
        self._groups = {robot: bool(groups[robot]) for robot in sorted(groups)}
        self._episodes = {robot: [] for robot in self._groups}
        self.tally = Tally()
        self._waiting, self._looks, self._result, self._summed = [], 0, None, None
        if not stage.compares:
            self._looks = len(LOOKS)
        self._drawn = cohort_assignments(self._groups, f"{self._experiment}/{index}")
        alpha = self._config.stage_alpha(index)
        self._tests = [RandomisationTest(alpha * endpoint.share, two_sided=False) for endpoint in self._endpoints]
        self._last: list[Look | None] = [None] * len(self._tests)

    @property
    def next_look_s(self) -> float:
        """See :class:`Comparison`."""
        if self._looks >= len(LOOKS):
            return math.inf
        return self._since_s + LOOKS[self._looks] * self._stage.duration_s

    def assigned(self, episode: Episode) -> None:
        """An episode begins; only those of the stage's units are compared."""
        if episode.robot in self._episodes:
            self._episodes[episode.robot].append(episode)

    def add(self, episode: Episode, probability: float, *, of_stage: bool) -> None:
        """Count an episode that is over; looks see the episodes themselves."""
        if of_stage and episode.robot in self._episodes:
            self.tally.add(episode)

    def judge_looks(self, now_s: float) -> None:
        """Note what a look sees that is due; judge those that wait for nothing any more, in their order."""
        if now_s >= self.next_look_s:
            seen = {robot: list(own) for robot, own in self._episodes.items()}
            for own in seen.values():
                if len(own) > 1 and own[-1].is_open(now_s):
                    own.pop()
            self._waiting.append((LOOKS[self._looks], seen))
            self._looks += 1
        while self._waiting and not any(e.is_open(now_s) for own in self._waiting[0][1].values() for e in own):
            fraction, seen = self._waiting.pop(0)
            results = self._result = self._results(seen)
            self._summed = None
            if not results.each:
                continue
            for index, (endpoint, test) in enumerate(zip(self._endpoints, self._tests, strict=True)):
                harm = self._harm(results, index, endpoint.margin)
                self._last[index] = test.look(self._drawn, harm, results.counts, fraction)
                if test.decision and self.worse is None:
                    self.worse = endpoint

    def _results(self, seen: Mapping[str, Sequence[Episode]]) -> _Results:
        robots = list(self._groups)
        each = common_number([len(seen[robot]) for robot in robots], list(self._groups.values()))
        values, counts = np.zeros((len(self._endpoints), len(robots))), np.zeros(len(robots))
        for column, robot in enumerate(robots):
            compared = spread(seen[robot], each)
            counts[column] = len(compared)
            if known := [episode.values for episode in compared if episode.done]:
                values[:, column] = np.sum(known, axis=0)
        tally = Tally()
        for episode in itertools.chain.from_iterable(seen.values()):
            tally.add(episode)
        return _Results(robots, counts, values, self._baseline(robots), each, tally)

    def _baseline(self, robots: Sequence[str]) -> NDArray[np.float64]:
        """Return each robot's earlier success rate; NaN: too few earlier episodes, of it or of more than a quarter of robots."""
        past = [self._past.get(robot, (0.0, 0.0)) for robot in robots]
        rates = np.array([s / n if n >= ENOUGH_HISTORY else math.nan for s, n in past])
        return rates if np.isfinite(rates).mean() >= 0.75 else np.full(len(robots), math.nan)

    def _harm(self, results: _Results, index: int, margin: float) -> NDArray[np.float64]:
        """Return totals of what is bad of an endpoint; the canary may have a share ``margin`` more of it."""
        harm = results.counts - results.values[index] - margin * results.counts * self._drawn[0]
        return without_baseline(harm, results.counts, results.baseline) if index == 0 else harm

    def advance(self, now_s: float, open_before: Any) -> Verdict:
        """Say whether the stage may be left."""
        left_s = self._since_s + self._stage.duration_s - now_s
        if left_s > 0.0 or self._looks < len(LOOKS) or self._waiting:
            lacks = (
                [f"{hours_text(left_s / 3600.0)} left"] if left_s > 0.0 else ["outcomes that the last look waits for"]
            )
            return Verdict(Decision.HOLD, f"waiting: {'; '.join(lacks)}", missing=tuple(lacks))
        results = self._result
        assert results is not None
        missing = shortfalls(self._config, self._limits, results.tally) + self._too_few()
        if not results.each or len(self._drawn) < 2:
            missing.append("robots of both versions to compare")
            return Verdict(Decision.ASK, f"lacks {'; '.join(missing)}; a person decides", missing=tuple(missing))
        words, figures = self._summed = self._summed or self._summary(results)
        if self._config.advance == "ask" and not missing:
            return Verdict(Decision.ASK, f"no sign of harm; {words}; a person decides", figures=figures)
        if self._config.advance == "same_shift":
            missing += self._reservations(results)
        if missing:
            why = f"lacks {'; '.join(missing)}; {words}; a person decides"
            return Verdict(Decision.ASK, why, missing=tuple(missing), figures=figures)
        why = "no sign of harm; time, episodes and margin are met, assuming that the new version changes every robot alike"
        return Verdict(Decision.ADVANCE, f"{why}; {words}", figures=figures)

    def _too_few(self) -> list[str]:
        return [] if len(self._groups) >= FEWEST_ROBOTS else [too_few_words(len(self._groups))]

    def _reservations(self, results: _Results) -> list[str]:
        missing, margin = [], self._stage.margin
        success, drawn = results.values[0], self._drawn
        if margin is not None:
            p = one_look(drawn, success, results.counts, results.baseline, shift=-margin)
            if p > self._config.advance_alpha:
                missing.append(f"not yet shown that success fell by less than {100 * margin:.3g} points")
        failed = sorted(self.failed & {robot for robot, canary in self._groups.items() if canary})
        if failed:
            missing.append(
                f"{plural(len(failed), 'canary robot')} went back by their own trial: {', '.join(failed[:5])}"
            )
        fallen = [robot for fall, robot, _, _ in self._falls(results) if fall > _LARGEST_FALL]
        if fallen:
            missing.append(f"success fell by more than {100 * _LARGEST_FALL:.0f} points on {', '.join(fallen[:5])}")
        return missing

    def _falls(self, results: _Results) -> list[tuple[float, str, float, float]]:
        """Return (fall, robot, rate now, rate before) of the new canaries, the worst first; before: of all, if not known."""
        total = float(results.counts.sum())
        mean = float(results.values[0].sum()) / total if total else 0.0
        rows = []
        for column, robot in enumerate(results.robots):
            if self._groups[robot] and results.counts[column]:
                now = float(results.values[0, column] / results.counts[column])
                before = float(results.baseline[column])
                before = before if math.isfinite(before) else mean
                rows.append((before - now, robot, now, before))
        return sorted(rows, key=lambda row: (-row[0], row[1]))

    def _summary(self, results: _Results) -> tuple[str, dict[str, Any]]:
        is_canary = self._drawn[0]
        means = []
        for own in (~is_canary, is_canary):
            ran = own & (results.counts > 0.0)
            means.append(float((results.values[0, ran] / results.counts[ran]).mean()) if ran.any() else math.nan)
        low, high = shift_interval(self._drawn, results.values[0], results.counts, results.baseline)
        worst = self._falls(results)[:_WORST]
        names = ", ".join(f"{robot} {now:.0%} (before {before:.0%})" for _, robot, now, before in worst)
        canaries = int(is_canary.sum())
        words = (
            f"mean success {means[CANARY]:.1%} on {plural(canaries, 'new canary robot')} and {means[INCUMBENT]:.1%} on "
            f"{len(is_canary) - canaries} others, difference {100 * (means[CANARY] - means[INCUMBENT]):+.1f} points "
            f"(95 %, allowing for each robot's own past: {100 * low:+.1f} to {100 * high:+.1f}); worst canaries: {names}"
        )
        figures = {"means": means, "difference": [low, high], "worst": [list(row[1:]) for row in worst]}
        return words, figures

    def words(self) -> list[str]:
        """Return the evidence of harm in words."""
        if not self._groups:
            return []
        found = self._too_few()
        for endpoint, look in zip(self._endpoints, self._last, strict=True):
            if look is not None:
                found.append(f"{endpoint.harm}: look {self._looks} of {len(LOOKS)}, p = {look.as_extreme:.2g}")
        return found

    def figures(self) -> dict[str, Any]:
        """Return the evidence of harm in numbers."""
        rows = zip(self._endpoints, self._tests, self._last, strict=True) if self._groups else ()
        return {
            endpoint.name: {
                "p": None if look is None else look.as_extreme,
                "alpha": test.alpha,
                "rejects": bool(test.decision),
            }
            for endpoint, test, look in rows
        }


def too_few_words(robots: int) -> str:
    """Return why so few robots cannot be judged."""
    return (
        f"{plural(robots, 'robot')} with one version each cannot be judged ({FEWEST_ROBOTS} are needed): let robots hold both "
        "versions, and draw episodes or hours"
    )
