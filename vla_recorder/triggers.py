# SPDX-License-Identifier: Apache-2.0
"""What is worth a recording: holds, rollbacks, lost workers, a policy node that fell silent. Messages are read by attribute."""

from __future__ import annotations

from typing import Any

from vla_recorder.blackbox import Cause

ORDINARY_HOLDS = frozenset(
    {"NO_POLICY", "LOADING_IN_PLACE", "STARTUP", "NO_EPISODE", "MOTION_REENABLED", "NO_OPERATOR_ACTION"}
)
"""Holds that belong to a normal day: a start, an update where there is room for one policy, a robot without a task. Their
recordings would push out those of faults."""
UNCONFIGURED, INACTIVE, RUNNING, HOLDING, MOTION_DISABLED, ERROR, OPERATOR = range(7)
"""``vla_ota/PolicyStatus``: STATE_*."""
_BACK = ("ROLLBACK", "LEASE_EXPIRED", "WORKER_LOST")
MOTION_PERIOD_S = 300.0
"""An operator who stops the robot is no fault either, but the stop may have had a reason: recorded once in this time [s]."""
SILENT_S = 3.0
"""A policy node that has commanded, and says nothing for so long, is taken for dead [s]."""


class Triggers:
    """Turns messages into causes. What was so before the first status is no event."""

    def __init__(self) -> None:
        self._state: int | None = None
        self._reason = ""
        self._heard_s = 0.0
        self._stopped_s: float | None = None

    def status(self, message: Any, now_s: float) -> Cause | None:
        """Take in a PolicyStatus. ``now_s``: monotonic."""
        first, before, reason_before = self._state is None, self._state, self._reason
        self._state, self._heard_s = message.state, now_s
        self._reason = message.hold_reason if message.holding else ""
        if first:
            return None
        if self._reason and self._reason != reason_before and self._reason not in ORDINARY_HOLDS:
            return Cause(f"hold-{self._reason.lower()}", f"the robot holds, {self._reason}{_why(message)}")
        if message.state == ERROR != before:
            return Cause("control-lost", f"the control process was lost: {message.message}")
        if message.state == MOTION_DISABLED != before and before in (RUNNING, HOLDING, OPERATOR):
            return self._stop(now_s)
        return None

    def _stop(self, now_s: float) -> Cause | None:
        if self._stopped_s is not None and now_s - self._stopped_s < MOTION_PERIOD_S:
            return None
        self._stopped_s = now_s
        return Cause("motion-disabled", "motion_enabled became false")

    def report(self, message: Any) -> Cause | None:
        """Take in a SwapReport that is not from before the recorder's start."""
        if message.cause not in _BACK:
            return None
        name = message.cause.lower().replace("_", "-")
        return Cause(name, f"{message.cause}: {message.to_version} acts instead of {message.from_version}")

    def event(self, message: Any) -> Cause | None:
        """Take in a ModelEvent."""
        if message.to_state != "ROLLING_BACK":
            return None
        version = message.version or "what acted"  # an operator's rollback belongs to no update
        why = " ".join(filter(None, (message.error_code, message.message)))
        return Cause("rollback", f"{version} is rolled back: {why}")

    def silence(self, now_s: float) -> Cause | None:
        """Look whether the policy node has fallen silent."""
        if self._state not in (RUNNING, HOLDING, MOTION_DISABLED, OPERATOR) or now_s - self._heard_s < SILENT_S:
            return None
        self._state, self._reason = None, ""  # the next status begins anew
        return Cause("policy-silent", f"policy_node has said nothing for {SILENT_S:g} s")


def _why(status: Any) -> str:
    """Return what a holding PolicyStatus says of its hold. Its ``message`` is the last error's, which may be an older one."""
    if status.error_code not in ("", status.hold_reason):
        return f"; last error {status.error_code}: {status.message}"
    return f": {status.message.removeprefix(f'{status.hold_reason}: ')}"
