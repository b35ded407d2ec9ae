# SPDX-License-Identifier: Apache-2.0
"""The judge of a canary: go on to the next stage, wait, roll back, or ask a person. Pure: it reads no clock and draws nothing.

**ROLLBACK** when one e-process finds harm: success (the canary's rate is lower), latency (more of its episodes are slow), or
anomaly scores (more of its blocks exceed a limit than the incumbent's beside it). α is shared by what is judged, 3 : 1 : 1,
before the first outcome (and by robot by the stages), so P(a canary that is no worse in any of them is ever rolled back)
<= α over all stages, if episodes (or robots) were drawn as stated.

**ADVANCE** when there is no such evidence and none that leans that way, the stage has lasted its time, each group has its minimum
of episodes with an outcome in it (and of blocks of each score source), and the stage's margin is excluded by this stage alone:
the canary is not worse by so much, at level ``advance_alpha`` over all looks of the stage. Never on missing data: an assigned
episode without an outcome by its deadline is a failure of its group, one without a latency is slow; and what is not known of the
incumbent counts as its success where "not worse" is to be proven.

**INCONCLUSIVE** when the stage's time is over without that, the margin is out of reach at this pace (by episode; of few robots
the message says what they cannot show), or episodes were not drawn as stated, on which all evidence rests (the canary's share is
another one, or robots stay with one version; P(this is said wrongly) <= 0.001 each): hold, and ask a person, with the drop that
can be excluded. By episode it is no final verdict: evidence goes on, and may be looked at again. By robot the last look is at the
end of the stage's time, and more takes another stage or a longer one. **HOLD** otherwise.

What it knows, and in which order, is :class:`~vla_evidence.canary.evidence.CanaryEvidence`'s.
"""

from __future__ import annotations

import math
from typing import Any

from vla_evidence.canary.by_episode import EpisodeComparison
from vla_evidence.canary.config import FEWEST_FOR_LIMIT
from vla_evidence.canary.stages import Stage
from vla_evidence.canary.state import SavedEvidence
from vla_evidence.canary.verdict import CanaryDecision, CanaryVerdict, demanded, excluded
from vla_evidence.sequential.exceedance import odds
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.words import listed

_CODES = {"success": "SUCCESS_WORSE", "latency": "LATENCY_WORSE"}
_FORECAST_FROM = 0.25


class CanaryJudge(SavedEvidence):
    """Judges one rollout; arguments and inputs are those of :class:`~vla_evidence.canary.evidence.CanaryEvidence`."""

    def verdict(self, now_s: float) -> CanaryVerdict:
        """Decide on what is known at this time."""
        stage = self.stage
        self._advance_clock(now_s)
        time_over = self._now_s - self._since_s >= stage.duration_s and not self._comparison.awaited
        drop = self._comparison.excluded_drop(self.config.advance_alpha)
        fault = self._assignment.fault()
        if not self._convicted and not fault:
            self._convicted = self._harm()
        if self._convicted:
            name, code = self._convicted, _CODES.get(self._convicted, "SCORES_WORSE")
            return self._say(CanaryDecision.ROLLBACK, f"{name} is worse", drop, code=code)
        if stage.share >= 1.0:
            return self._say(CanaryDecision.HOLD, "every robot is to run it: nobody is left to compare with", drop)
        if fault:
            why = f"{fault}: nothing is comparable; hold it, take it back if in doubt, and ask a person"
            return self._say(CanaryDecision.INCONCLUSIVE, why, None, missing=(fault,))
        missing = self._missing(stage, drop)
        if not missing:
            why = f"no sign of harm, and enough of everything; {excluded(drop)}"
            return self._say(CanaryDecision.ADVANCE, why, drop)
        out_of_reach = self._out_of_reach(stage, drop)
        margin = None if stage.margin is None or _within(drop, stage.margin) else stage.margin
        limits = self._comparison.limits(margin, self.config.advance_alpha, self._alphas)
        lacks = "; ".join((", ".join(missing), excluded(drop), *limits))
        if time_over or out_of_reach:
            why = out_of_reach or f"the stage's {stage.duration_s / 3600.0:g} h are over"
            in_s = self._heard_s - self._since_s or self._now_s - self._since_s  # not: since when nobody tells anything
            helps = self._comparison.what_helps(margin, self.config.advance_alpha, in_s)
            ask = f"{why}, and this is missing: {lacks}; {helps}ask a person"
            return self._say(CanaryDecision.INCONCLUSIVE, ask, drop, missing=tuple(missing))
        return self._say(CanaryDecision.HOLD, f"missing: {lacks}", drop, missing=tuple(missing))

    def _harm(self) -> str:
        """Return what is worse; empty if nothing is."""
        both = min(self._totals[INCUMBENT][1], self._totals[CANARY][1]) > 0  # else the assignment alone would convict
        for name, process, alpha in self._processes():
            if both and process.max_log_e >= -math.log(alpha):
                return name
        return ""

    def _missing(self, stage: Stage, drop: float | None) -> list[str]:
        config, missing = self.config, []
        left_s = stage.duration_s - (self._now_s - self._since_s)
        if left_s > 0.0:
            missing.append(f"{left_s / 3600.0:.3g} h of {stage.duration_s / 3600.0:g}")
        if self._comparison.awaited:
            missing.append(f"{self._comparison.awaited} episodes that the look at its end waits for")
        for group, name in ((CANARY, "canary"), (INCUMBENT, "incumbent")):
            if self._stage_units[group] < config.min_episodes:
                missing.append(f"episodes of the {name} ({self._stage_units[group]} of {config.min_episodes})")
            for source, blocks in self._blocks.items():
                if blocks[group] < config.min_blocks:
                    missing.append(f"blocks of {source} of the {name} ({blocks[group]} of {config.min_blocks})")
        if not config.allow_unjudged_scores:
            missing += [f"a limit for {text}" for text in self._not_judged()]
        if stage.margin is not None and not _within(drop, stage.margin):
            missing.append(demanded(stage.margin))
        strongest = max(process.log_e for _, process, _ in self._processes())
        if strongest > math.log(config.advance_max_evidence):
            missing.append(f"clearness: evidence of {math.exp(min(strongest, 700.0)):.3g} leans against the canary")
        return missing

    def _out_of_reach(self, stage: Stage, drop: float | None) -> str:
        """Say why the margin will not be excluded by the end of the stage; empty if it may be."""
        elapsed_s = self._now_s - self._since_s
        if stage.margin is None or _within(drop, stage.margin) or not isinstance(self._comparison, EpisodeComparison):
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
        for name, process, alpha in self._processes():
            log_e = process.max_log_e if code else process.log_e
            parts.append(f"{name} worse: {odds(log_e, alpha)}")
        if self._limits.too_short:
            parts.append(f"not judged: {', '.join(self._not_judged())}")
        if len(self._open):
            waiting = self._open.waiting
            held = f", {waiting} of them ended and waiting for one assigned before" if waiting else ""
            parts.append(f"{len(self._open)} episodes open{held}")
        parts += self._comparison.notes()
        if self._silent:
            parts.append(f"silent, their episodes counted as failures: {listed(self._silent)}")
        if self._ignored:
            parts.append(f"{self._ignored} outcomes ignored that came twice or after their deadline")
        return CanaryVerdict(decision, "; ".join(parts), stage.name, code, drop, missing, self._figures())

    def _not_judged(self) -> list[str]:
        return [f"{source} ({n} of {FEWEST_FOR_LIMIT} past values)" for source, n in self._limits.too_short.items()]

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
            "waiting": self._open.waiting,
            "tests": tests,
        }


def _within(drop: float | None, margin: float) -> bool:
    return drop is not None and drop <= margin
