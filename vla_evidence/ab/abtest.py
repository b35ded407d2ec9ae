# SPDX-License-Identifier: Apache-2.0
"""``ABTest``: the class of the fleet lesson (109.3, A/B testing for VLAs), made correct.

The assignment is salted with the experiment's name, ``significant`` comes from the exact randomisation test of robots and holds
however often it is asked, and there is no ``winner`` without it. Record an episode that hangs as a failure: this class knows no
deadline, as :class:`~vla_evidence.ab.robots.UnpairedABJudge` does.
"""

from __future__ import annotations

from typing import Any

from vla_evidence.ab.judge import NAMES
from vla_evidence.ab.robots import UnpairedABJudge
from vla_evidence.assignment import arm
from vla_evidence.verdict import Decision

_WINNERS = {Decision.A_BETTER: "A", Decision.B_BETTER: "B"}


class ABTest:
    """A/B test of two policies on a fleet whose robots run one of them each."""

    def __init__(self, model_a: str, model_b: str, split: float = 0.5, planned_episodes: int = 4000) -> None:
        self.experiment, self.split = f"{model_a} against {model_b}", split
        self._judge = UnpairedABJudge(planned_episodes, split=split, experiment=self.experiment)

    def assign_robot(self, robot_id: object) -> str:
        """Return "A" or "B": the same for the same robot and experiment, on any machine."""
        return NAMES[arm(self.experiment, str(robot_id), None, self.split)]

    def record(self, robot_id: object, success: bool, latency_s: float | None = None) -> None:
        """Take one episode in that has ended."""
        self._judge.record(str(robot_id), success, latency_s)

    def evaluate(self, min_samples: int = 100) -> dict[str, Any]:
        """Return rates, Wilson intervals, ``significant``, ``winner`` and ``reason``; it may be asked after every episode."""
        verdict = self._judge.verdict()
        a, b = verdict.figures["A"], verdict.figures["B"]
        if min(a["episodes"], b["episodes"]) < min_samples:
            return {"status": "insufficient_data", "n_a": a["episodes"], "n_b": b["episodes"]}
        winner = _WINNERS.get(verdict.decision)
        found: dict[str, Any] = {"significant": winner is not None, "winner": winner, "reason": verdict.message}
        for name, arm_figures in (("a", a), ("b", b)):
            found |= {f"rate_{name}": arm_figures["rate"], f"ci_{name}": tuple(arm_figures["interval"])}
            found[f"n_{name}"] = arm_figures["episodes"]
        return found
