# SPDX-License-Identifier: Apache-2.0
"""A swap as it is asked for, while it is pending, and as it is reported."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.residents import Resident
from vla_policy_node.worker.api import Timings

UPDATE, ROLLBACK, LEASE_EXPIRED, WORKER_LOST = "UPDATE", "ROLLBACK", "LEASE_EXPIRED", "WORKER_LOST"
CAUSES = (UPDATE, ROLLBACK, LEASE_EXPIRED, WORKER_LOST)


class SwapError(PolicyNodeError):
    """A generation was not activated; the one that acted goes on.

    Codes: EMPTY_REQUEST, CAUSE_UNKNOWN, UNEXPECTED_ACTIVE, NOT_PREPARED, MOTION_DISABLED, SWAP_IN_PROGRESS, PREPARE_IN_PROGRESS,
    TRIAL_RUNNING, BUNDLE_OUTSIDE_ROOTS, DIGEST_MISMATCH, SWAP_TIMEOUT, GENERATION_LOST, CLOSED, or the control process's own.
    """


@dataclass(frozen=True)
class SwapRequest:
    """What SwapModel carries; see ``srv/SwapModel.srv``."""

    bundle_path: str = ""
    digest: str = ""
    expected_active_digest: str = ""
    at: str = ""
    timeout_s: float = 0.0
    trial: bool = False
    trial_lease_s: float = 0.0
    cause: str = ""


@dataclass(frozen=True)
class Report:
    """What one swap cost; see ``msg/SwapReport.msg``. ``acted_s``: monotonic time of the first action [s]."""

    acted_s: float = 0.0
    from_version: str = ""
    to_version: str = ""
    from_digest: str = ""
    to_digest: str = ""
    generation: int = 0
    cause: str = ""
    at: str = ""
    warm: bool = False
    timings: Timings = field(default_factory=Timings)
    shadow_s: float = 0.0
    swap_latency_s: float = 0.0
    missed: int = 0
    starved: int = 0
    worst_late_ms: float = 0.0
    seam_jump: float = 0.0
    seam_channel: str = ""
    typical_step: float = 0.0
    histogram: tuple[int, ...] = ()

    def with_span(self, span: dict[str, Any]) -> Report:
        """Return the report with the counts of a SPAN (or SWAPPED) event of the control process."""
        return replace(
            self,
            missed=int(span.get("missed", self.missed)),
            starved=int(span.get("starved", self.starved)),
            worst_late_ms=float(span.get("worst_late_ms", self.worst_late_ms)),
            histogram=tuple(int(n) for n in span.get("histogram", self.histogram)),
        )


@dataclass
class Pending:
    """A swap that the control process was asked for."""

    swap_id: str
    target: Resident
    at: str
    cause: str
    warm: bool
    trial: bool
    lease_s: float
    span_id: str
    done: threading.Event = field(default_factory=threading.Event)
    report: Report | None = None
    error: SwapError | None = None

    def make_report(self, previous: Resident | None, event: dict[str, Any]) -> Report:
        """The report at the moment of the swap; its span is still running."""
        return Report(
            acted_s=time.monotonic(),
            from_version=previous.version if previous else "",
            to_version=self.target.version,
            from_digest=previous.digest if previous else "",
            to_digest=self.target.digest,
            generation=self.target.id,
            cause=self.cause,
            at=self.at,
            warm=self.warm,
            timings=Timings() if self.warm else self.target.generation.timings,
            swap_latency_s=float(event.get("latency_s", 0.0)),
            seam_jump=float(event.get("seam_jump") or 0.0),
            seam_channel=str(event.get("seam_channel") or ""),
            typical_step=float(event.get("typical_step") or 0.0),
        ).with_span(event)
