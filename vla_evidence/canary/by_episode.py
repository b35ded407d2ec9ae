# SPDX-License-Identifier: Apache-2.0
"""Canary and incumbent compared where each episode is drawn.

**Harm** is looked for after every episode, by an e-process for each endpoint (:mod:`vla_evidence.sequential.two_sample`). The
evidence goes on through all stages; the estimates are learnt anew in each, for conditions may have changed.

**Advance** is asked for twice at most: when the stage's time is over, and once more after the stage was prolonged by as much.
Both looks are by the clock, at the episodes that were assigned by then, so that nobody's impatience chooses them. Each is a
score test (:mod:`vla_evidence.sequential.score_test`) at half of ``advance_alpha``, on this stage alone: what was shown with
5 % of the episodes says nothing of a drop that comes with 25 %.

A lost episode is a failure of its version in both. That is fair if both versions lose alike, so a stage in which the incumbent
loses more than the canary does not advance by itself (a third e-process, at 1 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from numpy.typing import ArrayLike

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.canary.endpoints import Comparison, Endpoint, Tally, shortfalls
from vla_evidence.canary.scores import ScoreLimits
from vla_evidence.episodes import Episode
from vla_evidence.sequential.score_test import excluded_drop, score_p_value
from vla_evidence.sequential.two_sample import BetaPrior, TwoSampleEProcess
from vla_evidence.tables import hours_text, plural
from vla_evidence.verdict import Decision, Verdict

_FAST, _FAST_CANARY = BetaPrior(19.0, 1.0), BetaPrior(4.0, 1.0)
"""Of the incumbent's episodes 95 % keep a limit at their 95 % quantile."""
_LOST_LEVEL = math.log(100.0)
LOOKS = 2


class EpisodeComparison(Comparison):
    """One rollout's episodes."""

    def __init__(self, config: CanaryConfig, endpoints: Sequence[Endpoint], limits: ScoreLimits) -> None:
        self._config, self._endpoints, self._limits = config, endpoints, limits
        priors = [config.priors] + [(_FAST, _FAST_CANARY)] * (len(endpoints) - 1)
        self._harm = [
            TwoSampleEProcess(endpoint.margin, incumbent=old, canary=new)
            for endpoint, (old, new) in zip(endpoints, priors, strict=True)
        ]
        self._levels = [-math.log(config.alpha * endpoint.share) for endpoint in endpoints]
        self._seen = [0, 0]

    def begin(self, stage: Stage, since_s: float) -> None:
        """A stage begins."""
        self._stage, self._since_s = stage, since_s
        self._windows = [Tally() for _ in range(LOOKS + 1)]  # by when an episode was assigned: before which look
        self._lost = TwoSampleEProcess()  # y: heard of; with the roles exchanged: does the incumbent lose more?
        for process in self._harm:
            process.restart()

    @property
    def tally(self) -> Tally:
        """Of this stage so far."""
        return self._windows[0] + self._windows[1] + self._windows[2]

    def add(self, episode: Episode, probability: float, *, of_stage: bool) -> None:
        """Take in an episode that is over, in the order of assignment.

        One of an earlier stage is evidence of harm and proves nothing for this stage.
        """
        values = episode.values or (0.0,) * len(self._harm)
        for process, value in zip(self._harm, values, strict=True):
            process.update(episode.version, value, probability)
        self._seen[episode.version] += 1
        if of_stage:
            self._windows[self._window(episode.assigned_s)].add(episode)
            self._lost.update(1 - episode.version, float(episode.done), 1.0 - probability)
        self._look_for_harm()

    def add_many(self, versions: ArrayLike, successes: ArrayLike, many: Tally, assigned_s: float) -> None:
        """Take in many episodes of this stage that are over, all assigned at one time: arrays of shape [episodes]."""
        (success,) = self._harm
        success.update_many(versions, successes, self._stage.probability)
        for version, heard in enumerate(many.heard):
            self._seen[version] += heard
        self._windows[self._window(assigned_s)] += many
        self._look_for_harm()

    def _window(self, assigned_s: float) -> int:
        into = assigned_s - self._since_s
        return sum(into >= look * self._stage.duration_s for look in range(1, LOOKS + 1))

    def _look_for_harm(self) -> None:
        if self.worse is None and min(self._seen) > 0:  # else the assignment alone could decide
            for endpoint, process, level in zip(self._endpoints, self._harm, self._levels, strict=True):
                if process.max_log_e >= level:
                    self.worse = endpoint
                    return

    def advance(self, now_s: float, open_before: Any) -> Verdict:
        """Say whether the stage may be left; ``open_before(t)``: how many episodes assigned before t are not counted yet."""
        stage, tally = self._stage, Tally()
        missing: list[str] = []
        for look in range(1, LOOKS + 1):
            end_s = self._since_s + look * stage.duration_s
            waiting = open_before(end_s)
            if now_s < end_s or waiting:
                return self._hold(look, end_s - now_s, waiting, missing)
            tally = tally + self._windows[look - 1]
            missing = self._missing(tally)
            figures = {"look": look, "excluded_drop": self._excluded(tally)}
            if not missing:
                why = f"no sign of harm; time, episodes and margin are met; {self._known(tally)}"
                return Verdict(Decision.ADVANCE, why, figures=figures)
        why = f"the stage was prolonged once and lacks {'; '.join(missing)}; {self._known(tally)}{self._helps(tally)}"
        return Verdict(Decision.ASK, f"{why}; a person decides", missing=tuple(missing), figures=figures)

    def _hold(self, look: int, left_s: float, waiting: int, before: list[str]) -> Verdict:
        lacks = [f"{hours_text(left_s / 3600.0)} left"] if left_s > 0.0 else []
        if left_s <= 0.0 and waiting:
            lacks.append(f"the outcomes of {plural(waiting, 'episode')}")
        if look == 1:
            lacks += shortfalls(self._config, self._limits, self.tally)
            if self._stage.margin is not None:
                lacks.append(_demanded(self._stage.margin))
            return Verdict(Decision.HOLD, f"waiting: {'; '.join(lacks)}", missing=tuple(lacks))
        why = f"prolonged once, for at the first look it lacked {'; '.join(before)}; waiting: {'; '.join(lacks)}"
        return Verdict(Decision.HOLD, why, missing=(*lacks, *before))

    def _missing(self, tally: Tally) -> list[str]:
        missing = shortfalls(self._config, self._limits, tally)
        margin = self._stage.margin
        if margin is not None and self._p_value(tally, margin) > self._level:
            missing.append(_demanded(margin))
        if self._lost.max_log_e >= _LOST_LEVEL:
            missing.append(f"comparable losses ({tally.lost[0]} incumbent and {tally.lost[1]} canary episodes lost)")
        strongest = max(process.log_e for process in self._harm)
        if strongest > math.log(self._config.advance_max_evidence):
            missing.append(f"clear data: they lean against the new version (evidence {_shown(strongest)})")
        return missing

    @property
    def _level(self) -> float:
        return self._config.advance_alpha / LOOKS

    def _p_value(self, tally: Tally, margin: float) -> float:
        return float(score_p_value(*_counts(tally), margin))

    def _excluded(self, tally: Tally) -> float:
        return excluded_drop(*_counts(tally), self._level)

    def _known(self, tally: Tally) -> str:
        return drop_words(self._excluded(tally), self._level)

    def _helps(self, tally: Tally) -> str:
        """Return how much longer the margin would take, if both rates stay as they are; an extrapolation, no promise."""
        margin = self._stage.margin
        p = 1.0 if margin is None else self._p_value(tally, margin)
        if margin is None or not self._level < p < 0.5 or not self._stage.duration_s:
            return ""
        quantile = NormalDist().inv_cdf
        growth = (quantile(self._level) / quantile(p)) ** 2
        more = hours_text(LOOKS * self._stage.duration_s / 3600.0 * (growth - 1.0))
        return f"; if both rates stay as they are, about {more} more would show it"

    def words(self) -> list[str]:
        """Return the evidence of harm in words."""
        rows = zip(self._endpoints, self._harm, self._levels, strict=True)
        return [
            f"evidence of {endpoint.harm} {_shown(process.max_log_e if endpoint is self.worse else process.log_e)}"
            f" (rolled back at {_shown(level)})"
            for endpoint, process, level in rows
        ]

    def figures(self) -> dict[str, Any]:
        """Return the evidence of harm in numbers."""
        rows = zip(self._endpoints, self._harm, self._levels, strict=True)
        return {e.name: {"log_e": p.log_e, "max_log_e": p.max_log_e, "decides_at": level} for e, p, level in rows}


def _counts(tally: Tally) -> tuple[tuple[float, float], tuple[float, float]]:
    return (tally.successes[0], tally.successes[1]), tally.episodes


def _demanded(margin: float) -> str:
    if margin == 0.0:
        return "not yet shown that success rose"
    return f"not yet shown that success fell by less than {100 * margin:.3g} points"


def drop_words(drop: float, level: float) -> str:
    """Return which drop of success is excluded, in words."""
    if drop >= 1.0:
        return "no drop can be excluded"
    if drop == 0.0:
        return f"success rose ({1.0 - level:.1%} sure)"
    return f"success fell by less than {100 * drop:.3g} points ({1.0 - level:.1%} sure)"


def _shown(log_e: float) -> str:
    value = math.exp(min(log_e, 700.0))
    return f"{value:,.0f}" if value >= 10.0 else f"{value:.2g}"
