# SPDX-License-Identifier: Apache-2.0
"""A swap as it is asked for, while it is pending, and as it is reported."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from vla_policy_node.control.client import AT
from vla_policy_node.control.swap import EXPERIMENT, UPDATE, WAYS_BACK
from vla_policy_node.errors import PolicyNodeError, duration
from vla_policy_node.generations.residents import OnDisk, Resident
from vla_policy_node.shadow.judge import ShadowReport
from vla_policy_node.worker.api import Timings

ROLLBACK, LEASE_EXPIRED, WORKER_LOST = WAYS_BACK
REQUEST_CAUSES = (UPDATE, ROLLBACK)
"""Those that a request may name; the others are the node's own."""


class SwapError(PolicyNodeError):
    """A generation was not activated; the one that acted goes on. Codes: docs/errors.md, Swaps."""


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

    def checked(self, default_timeout_s: float, default_lease_s: float) -> SwapRequest:
        """Return the request with its defaults filled in. Raises SwapError, or PolicyNodeError DURATION_INVALID."""
        if not self.digest and not self.bundle_path:
            raise SwapError("EMPTY_REQUEST", "name what to activate: digest of a resident generation, or bundle_path")
        at, cause = self.at or "CHUNK", self.cause or UPDATE
        if at not in AT:
            raise SwapError("SWAP_BOUNDARY_UNKNOWN", f"at={at!r}, must be one of {', '.join(AT)}")
        if cause not in REQUEST_CAUSES:
            raise SwapError("CAUSE_UNKNOWN", f"cause={cause!r}, must be one of {', '.join(REQUEST_CAUSES)}")
        timeout_s = duration("timeout_s", self.timeout_s, default_timeout_s)
        lease_s = duration("trial_lease_s", self.trial_lease_s, default_lease_s)
        return replace(self, at=at, cause=cause, timeout_s=timeout_s, trial_lease_s=lease_s)


@dataclass(frozen=True)
class Report:
    """What one swap cost; see ``msg/SwapReport.msg``. ``acted_s``: monotonic time of the first action [s].

    ``warm``: nothing was loaded for it. A preparation is reported once, in the report of the swap that follows it.
    """

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
    shadow: ShadowReport = field(default_factory=ShadowReport)
    swap_latency_s: float = 0.0
    in_place: bool = False
    held_s: float = 0.0
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


@dataclass(frozen=True)
class Vacated:
    """What acted has left so that another can be loaded in its place."""

    at: str
    """The boundary at which it left."""
    since_s: float
    """Monotonic [s]."""
    fallback: Resident | OnDisk | None
    """What a trial of the other one falls back to."""


@dataclass
class Pending:
    """A swap that the control process was asked for and has not answered yet."""

    swap_id: str
    target: Resident
    at: str
    cause: str
    timeout_s: float
    trial: bool
    lease_s: float
    span_id: str
    warm: bool
    done: threading.Event = field(default_factory=threading.Event)
    vacated: Vacated | None = None
    report: Report | None = None
    error: SwapError | None = None

    @property
    def may_hurry(self) -> bool:
        """Whether it waits for a boundary that a robot which stands still does not need: a way back, or an episode's draw."""
        return (self.cause not in (UPDATE, EXPERIMENT) and self.at in ("CHUNK", "REST")) or (
            self.cause == EXPERIMENT and self.at == "EPISODE"
        )

    def fail(self, code: str, message: str) -> None:
        """It will not happen: its caller gets this error."""
        self.error = SwapError(code, message)
        self.done.set()

    def make_report(self, previous: Resident | None, event: dict[str, Any]) -> Report:
        """The report at the moment of the swap; its span is still running."""
        now_s = time.monotonic()
        return Report(
            acted_s=now_s,
            from_version=previous.version if previous else "",
            to_version=self.target.version,
            from_digest=previous.digest if previous else "",
            to_digest=self.target.digest,
            generation=self.target.id,
            cause=self.cause,
            at=self.vacated.at if self.vacated else self.at,
            in_place=self.vacated is not None,
            held_s=now_s - self.vacated.since_s if self.vacated else 0.0,
            warm=self.warm,
            timings=Timings() if self.warm else self.target.generation.timings,
            shadow=ShadowReport() if self.warm else self.target.shadow,
            swap_latency_s=float(event.get("latency_s", 0.0)),
            seam_jump=float(event.get("seam_jump") or 0.0),
            seam_channel=str(event.get("seam_channel") or ""),
            typical_step=float(event.get("typical_step") or 0.0),
        ).with_span(event)
