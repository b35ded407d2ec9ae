# SPDX-License-Identifier: Apache-2.0
"""Which reason to hold counts. A latched hold ends by resume, NO_EPISODE when an episode opens, all others with their cause."""

from __future__ import annotations

from vla_policy_node.holds import HOLDS

AUTO_RESUME_DELAY_NS = 500_000_000
"""A contract with ``auto_resume`` ends a latched hold after this time: enough for a rollback to come first."""


class Reasons:
    """At most one reason of each kind. ``reason`` is the one that counts, empty = not holding."""

    def __init__(self, *, auto_resume: bool) -> None:
        self._auto_resume = auto_resume
        self.latched = ""
        self.episode_missing = False
        self.cause = "STARTUP"
        self.latches = 0  # counts up
        self._latched_ns = 0

    @property
    def reason(self) -> str:
        """The reason that counts."""
        if self.latched == "STARTUP" and self.cause == "NO_POLICY":
            return self.cause  # resume has nothing to start yet
        return self.latched or ("NO_EPISODE" if self.episode_missing else self.cause)

    @property
    def blocked(self) -> bool:
        """Whether the hold needs a resume or an episode to end: no chunk is asked for meanwhile."""
        return bool(self.latched) or self.episode_missing

    def latch(self, reason: str, now_ns: int) -> bool:
        """Latch; the first reason stays unless the new one is harder to end. Return whether it is a new one."""
        if self.latched and not (HOLDS[self.latched].by_contract and not HOLDS[reason].by_contract):
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
        may_end = self._auto_resume and self.latched and HOLDS[self.latched].by_contract
        if may_end and now_ns - self._latched_ns >= AUTO_RESUME_DELAY_NS:
            self.resume()
