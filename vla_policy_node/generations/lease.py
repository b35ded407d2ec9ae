# SPDX-License-Identifier: Apache-2.0
"""A trial is a lease: while the manager renews it the new generation may act; when the manager falls silent it may not.

So is the time in which the version under test acts for an experiment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_policy_node.generations.residents import OnDisk, Resident


@dataclass(eq=False)
class TrialLease:
    """Lease of the generation on trial. It lasts until the trial is over: committed, left or lost. Times are monotonic [s]."""

    generation: int
    digest: str
    fallback: Resident | OnDisk | None  # what acted before and takes over again; its worker may have gone meanwhile
    lease_s: float
    renewed_s: float
    drawn: bool = False  # for an experiment, not on trial
    over: str = ""  # why it has ended though the manager speaks
    failed: bool = False  # it broke a limit: nothing renews it
    _next_try_s: float = -math.inf

    def renew(self, now_s: float, lease_s: float | None = None) -> None:
        """Take note that the manager spoke of this trial."""
        if self.failed:
            return
        self.renewed_s, self._next_try_s, self.over = now_s, -math.inf, ""
        if lease_s is not None:
            self.lease_s = lease_s

    def expired(self, now_s: float) -> bool:
        """Whether the manager has been silent for too long, or it has ended otherwise."""
        return bool(self.over) or now_s - self.renewed_s > self.lease_s

    def end(self, why: str, *, failed: bool = False) -> None:
        """End it though the manager speaks."""
        self.over, self.failed, self._next_try_s = why, failed, -math.inf

    def is_due(self, now_s: float) -> bool:
        """Whether the node has to go back now: true once, and again at the time given to :meth:`try_again`."""
        if not self.expired(now_s) or now_s < self._next_try_s:
            return False
        self._next_try_s = math.inf
        return True

    def try_again(self, at_s: float) -> None:
        """It could not be done now."""
        self._next_try_s = at_s
