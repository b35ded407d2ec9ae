# SPDX-License-Identifier: Apache-2.0
"""An operator's actions in place of the policy's: which of them may be commanded.

An action counts while it is finite and fresh, and only if it neither jumps away from the one before it, by more than the ``step``
of a channel's limits, nor, where it ends a hold, lies further than ``start_tolerance`` from the measured position: whoever takes
over begins where the robot is. Position and velocity of what is commanded are bounded as ever.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_policy_node.control.commanded import Commanded
from vla_policy_node.control.limits import Limiter

Floats = npt.NDArray[np.float64]


class Operator:
    """``on``: an operator has taken over, and the policy commands nothing."""

    def __init__(self, limiter: Limiter, max_age_ns: int) -> None:
        """``limiter``: of the contract, since a bundle's own limits are not the operator's. ``max_age_ns``: of an action."""
        self.on = False
        self._limiter, self._max_age_ns = limiter, max_age_ns
        self._last: Floats | None = None  # the action that was commanded last, unless something came in between

    def usable(self, action: Floats, received_ns: int, now_ns: int) -> bool:
        """Whether an action, float64 ``[C]``, may be commanded next."""
        fresh = received_ns > 0 and now_ns - received_ns <= self._max_age_ns and bool(np.isfinite(action).all())
        return fresh and (self._last is None or not self._limiter.too_far(action, self._last))

    def may_begin(self, action: Floats, measured: Floats, commanded: Commanded) -> bool:
        """Whether an action may end a hold."""
        return commanded.all_known(measured) and not commanded.is_far(action, measured)

    def shorten(self, action: Floats, command: Floats, dt_s: float) -> tuple[Floats, bool]:
        """Return the command next to ``action``, ``dt_s`` after ``command``, and whether it had to be shortened."""
        self._last = action
        return self._limiter.shorten(action, command, dt_s)

    def interrupt(self) -> None:
        """Something else than an action of the operator was commanded: the next one begins anew."""
        self._last = None
