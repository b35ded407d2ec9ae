# SPDX-License-Identifier: Apache-2.0
"""Why the loop holds: latched holds end by resume, holds that were asked for by release, all others with their cause."""

from __future__ import annotations

AUTO_RESUME_DELAY_NS = 500_000_000
"""A contract with ``auto_resume`` ends a latched hold after this time: enough for a rollback to come first."""

TEXTS = {
    "NO_POLICY": "no generation is active",
    "STARTUP": "waiting for resume after a start, or for the first chunk after it",
    "STARVED": "the queue ran dry: the next chunk is late",
    "OBSERVATION_STALE": "a feature or the measured state is missing or too old",
    "LIMIT": "an action broke a hard limit",
    "NAN": "an action was not finite",
    "WORKER_LOST": "the acting worker died or hung",
    "MOTION_REENABLED": "motion was disabled; resume is needed",
    "OPERATOR": "asked for by an operator",
    "NO_EPISODE": "no episode is open",
    "POLICY_FAILED": "the policy raised an error, or its chunk had the wrong shape",
    "COMMAND_TOPIC_TAKEN": "somebody else commands the robot",
    "OUTSIDE_LIMITS": "the robot stands outside its limits: move it back by hand",
}

_PEOPLE_ONLY = ("OPERATOR", "COMMAND_TOPIC_TAKEN", "MOTION_REENABLED")  # no contract ends these


class Reasons:
    """At most one reason of each kind. ``reason`` is the one that counts, empty = not holding."""

    def __init__(self, *, auto_resume: bool) -> None:
        self._auto_resume = auto_resume
        self.latched = ""
        self.asked = ""
        self.cause = "STARTUP"
        self.latches = 0  # counts up
        self._latched_ns = 0

    @property
    def reason(self) -> str:
        """The reason that counts."""
        if self.latched == "STARTUP" and self.cause == "NO_POLICY":
            return self.cause  # resume has nothing to start yet
        return self.latched or self.asked or self.cause

    @property
    def blocked(self) -> bool:
        """Whether somebody has to end the hold: no chunk is asked for meanwhile."""
        return bool(self.latched or self.asked)

    def latch(self, reason: str, now_ns: int) -> bool:
        """Latch; the first reason stays unless the new one is harder to end. Return whether it is a new one."""
        if self.latched and _hardness(reason) <= _hardness(self.latched):
            return False
        self.latched, self._latched_ns = reason, now_ns
        self.latches += 1
        return True

    def resume(self) -> str:
        """End a latched hold and return its reason. The policy then starts anew."""
        reason, self.latched = self.latched, ""
        if reason:
            self.cause = "STARTUP"
        return reason

    def resume_by_itself(self, now_ns: int) -> None:
        """End a latched hold if the contract allows that; never one that only people can end."""
        waited = now_ns - self._latched_ns >= AUTO_RESUME_DELAY_NS
        if self._auto_resume and waited and self.latched not in ("", *_PEOPLE_ONLY):
            self.resume()


def _hardness(reason: str) -> int:
    """0 = the contract may end it, 1 = only people may, 2 = people have said so themselves."""
    return 2 if reason == "OPERATOR" else int(reason in _PEOPLE_ONLY)
