# SPDX-License-Identifier: Apache-2.0
"""``ABTest``: the class that a reader of the fleet lesson (109.3, A/B testing for VLAs) looks for, made correct.

What differs from the lesson, and why:

- Assignment is salted with the experiment's name. ``md5(robot) % 100`` puts the same robots into B of every experiment.
- Intervals that do not overlap are no 5 % test, episodes of one robot are not independent, and looking again and again finds
  something in the end. ``significant`` comes from an exact randomisation test with the robot as its unit, which keeps its α
  however often ``evaluate`` is called (:mod:`vla_evidence.sequential.randomisation_test`). The intervals are still shown.
- ``winner`` is None unless ``significant``.

Where a robot can hold both policies, pairs on the same robot need far fewer episodes: :class:`vla_evidence.ab.PairedABJudge`.
"""

from __future__ import annotations

from typing import Any

from vla_evidence.ab import ABDecision, UnpairedABJudge
from vla_evidence.assignment import arm
from vla_evidence.errors import InputError, is_integer

_WINNERS = {ABDecision.A_BETTER: "A", ABDecision.B_BETTER: "B"}


class ABTest:
    """A/B test of two policies on a fleet whose robots run one of them each.

    Args:
        model_a: name of the control (current production).
        model_b: name of the treatment (candidate).
        split: share of robots that get ``model_b``.
        experiment: name that salts the assignment; None: made of both models' names.
        planned_episodes: of all robots together, after which the test ends (the exercise's 0.85 against 0.88 needs about 2,000
            of each model, more if episodes of one robot are alike).
        alpha: P(``significant`` at any call, if the models do not differ) is at most this.

    Raises:
        InputError: a split outside (0, 1), or another argument that cannot be.
    """

    def __init__(
        self,
        model_a: object,
        model_b: object,
        split: float = 0.5,
        *,
        experiment: str | None = None,
        planned_episodes: int = 4000,
        alpha: float = 0.05,
    ) -> None:
        self.model_a = model_a
        self.model_b = model_b
        self.split = split
        self.experiment = f"{model_a} against {model_b}" if experiment is None else experiment
        self._judge = UnpairedABJudge(planned_episodes, alpha, split=split, seed=self.experiment)
        self._told: dict[str, int] = {}

    def assign_robot(self, robot_id: object) -> str:
        """Return "A" or "B": the same for the same robot and experiment, on any machine."""
        return arm(self.experiment, str(robot_id), None, self.split)

    def record(
        self, robot_id: object, success: bool, latency: float | None = None, *, episode: int | None = None
    ) -> bool:
        """Take one episode in that has ended; false, and ignored, if it was told before.

        This class knows no episode that it is not told of: **record one that hangs or is never heard of again as a failure**, or
        the policy that hangs wins. :class:`vla_evidence.ab.UnpairedABJudge` does that by itself, with a deadline.

        Args:
            robot_id: who ran it.
            success: whether it succeeded.
            latency: positive, in any unit that is the same for all; None: unknown.
            episode: its number on this robot, 0, 1, …: what is told twice counts once, and none may be left out. None: on trust.

        Raises:
            InputError: INPUT_VALUE: no success, a latency that cannot be, or a number that the robot has not reached yet.
        """
        robot = str(robot_id)
        expected = self._told.get(robot, 0)
        if episode is not None:
            if not is_integer(episode) or not 0 <= episode <= expected:
                raise InputError(
                    "INPUT_VALUE", "episode", f"{episode!r} of robot {robot!r} is not its next one, {expected}"
                )
            if episode < expected:
                return False
        self._judge.record(robot, self.assign_robot(robot_id), success, latency)
        self._told[robot] = expected + 1
        return True

    def evaluate(self, min_samples: int = 100) -> dict[str, Any]:
        """Return the state of the test; it may be asked after every episode.

        Args:
            min_samples: episodes that each arm must have, at least 1.

        Returns:
            ``status`` ("insufficient_data") and ``reason``, or: ``rate_a, rate_b``, ``ci_a, ci_b`` (Wilson, 95 %, for one look),
            ``significant``, ``winner`` ("A", "B" or None), ``n_a, n_b``, ``reason`` (with latency beside success).

        Raises:
            InputError: INPUT_COUNT: ``min_samples`` below 1.
            EvidenceError: ANALYSIS_MISSING: statsmodels (Wilson) is not installed.
        """
        if min_samples < 1:
            raise InputError("INPUT_COUNT", "min_samples", f"{min_samples} is below 1")
        verdict = self._judge.verdict()
        a, b = verdict.a, verdict.b
        if a.episodes < min_samples or b.episodes < min_samples:
            reason = f"{a.episodes} episodes of A and {b.episodes} of B, {min_samples} of each are asked for"
            return {"status": "insufficient_data", "reason": reason}
        winner = _WINNERS.get(verdict.decision)
        return {
            "rate_a": a.rate,
            "rate_b": b.rate,
            "ci_a": a.interval,
            "ci_b": b.interval,
            "significant": winner is not None,
            "winner": winner,
            "n_a": a.episodes,
            "n_b": b.episodes,
            "reason": f"{verdict.reason}; {verdict.latency_reason}",
        }
