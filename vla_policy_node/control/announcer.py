# SPDX-License-Identifier: Apache-2.0
"""Reports holds to the node: each reason once, each latch, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vla_policy_node.control.limits import Violation
from vla_policy_node.control.reasons import Reasons
from vla_policy_node.holds import HOLDS

_QUIET = ("", "STARTUP")  # nothing was interrupted


class Announcer:
    """Events HOLD and RESUMED (see ``events.py``)."""

    def __init__(self, names: Sequence[str], reasons: Reasons, emit: Callable[[dict[str, Any]], None]) -> None:
        self._names, self._reasons, self._emit = names, reasons, emit
        self.violation: Violation | None = None  # what the last latch was for
        self.text = ""  # more about it than its reason
        self._first = ""  # first reason of this hold that was reported
        self._reported = ("", 0)  # the last one, and which latch it was

    def hold(self, where: dict[str, Any]) -> None:
        """Report the reason that counts now, once."""
        reason, latches = self._reasons.reason, self._reasons.latches
        latched = bool(self._reasons.latched)
        if (reason in _QUIET and not latched) or reason == "NO_POLICY" or (reason, latches) == self._reported:
            return  # the node itself says why there is no policy
        self._reported = reason, latches
        self._first = self._first or reason
        message = (self.text if latched else "") or HOLDS[reason].meaning
        event: dict[str, Any] = {"type": "HOLD", "reason": reason, "latched": latched, "message": message}
        violation = self.violation
        if violation is not None and violation.reason == reason:
            event |= {
                "channel": self._names[violation.channel],
                "value": _or_none(violation.value),
                "limit": _or_none(violation.limit),
                "message": violation.message,
            }
        self._emit({**event, **where})

    def resumed(self, held_s: float, where: dict[str, Any]) -> None:
        """Report that the policy acts again, if a hold was reported."""
        if self._first:
            self._emit({"type": "RESUMED", "reason": self._first, "held_s": held_s, **where})
        self._first, self._reported = "", ("", 0)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
