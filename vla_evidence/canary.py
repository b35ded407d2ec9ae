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

What it knows, and in which order, is :class:`~vla_evidence.canary_evidence.CanaryEvidence`'s.
"""

from __future__ import annotations

import math
from typing import Any

from vla_evidence.canary_evidence import CanaryEvidence
from vla_evidence.canary_tests import RobotComparison
from vla_evidence.canary_verdict import CanaryDecision, CanaryVerdict, demanded, excluded, listed
from vla_evidence.exceedance import odds
from vla_evidence.stages import Stage
from vla_evidence.two_sample import CANARY, INCUMBENT

_CODES = {"success": "SUCCESS_WORSE", "latency": "LATENCY_WORSE"}
_FORECAST_FROM = 0.25
_MISMATCH_ALPHA = 1e-3


class CanaryJudge(CanaryEvidence):
    """Judges one rollout; arguments and inputs are those of :class:`CanaryEvidence`."""

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
            best = self._comparison.best_drop(self.config.advance_alpha, (0.0, 0.0))
            return f"so few canary robots exclude a drop of {best:.1%} at best" if best and best > stage.margin else ""
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
        parts += self._comparison.notes()
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
