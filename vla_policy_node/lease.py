# SPDX-License-Identifier: Apache-2.0
"""A trial is a lease: while the manager renews it the new generation may act; when the manager falls silent it may not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrialLease:
    """Lease of the generation on trial. Times are monotonic [s]."""

    generation: int
    digest: str
    fallback: int  # generation that acted before and takes over again
    lease_s: float
    renewed_s: float

    def renew(self, now_s: float) -> None:
        """Take note that the manager spoke of this trial."""
        self.renewed_s = now_s

    def expired(self, now_s: float) -> bool:
        """Whether the manager has been silent for too long."""
        return now_s - self.renewed_s > self.lease_s
