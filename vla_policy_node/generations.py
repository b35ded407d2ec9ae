# SPDX-License-Identifier: Apache-2.0
"""Prepare a bundle beside the running one and make it the acting one: weights, processors and statistics change together.

The order of every change is: the control process switches, tells so, and only then do active and standby change here. A swap
that does not happen leaves everything as it was.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_checkpoint.manifest import Manifest, load_manifest
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract import Contract
from vla_policy_node.control.client import AT, ControlClient
from vla_policy_node.errors import duration
from vla_policy_node.lease import TrialLease
from vla_policy_node.residents import Resident, Residents
from vla_policy_node.swapping import CAUSES, ROLLBACK, UPDATE, Pending, Report, SwapError, SwapRequest
from vla_policy_node.worker.pool import Progress, WorkerPool

AFTER_SWAP_S = 1.0  # a report's span ends this long after the swap
_ANSWER_SLACK_S = 2.0  # the control process gives up on a boundary by itself; wait this much longer for its answer


class Generations:
    """Active, standby and prepared generation of one policy node, and the trial's lease. Every method is thread-safe."""

    def __init__(
        self,
        config: PolicyNodeConfig,
        contract: Contract,
        control: ControlClient,
        pool: WorkerPool,
        *,
        on_change: Callable[[], None],
        on_report: Callable[[Report], None],
    ) -> None:
        self._config, self._contract, self._control, self._pool = config, contract, control, pool
        self._on_change, self._on_report = on_change, on_report
        self._lock = threading.RLock()  # held for moments only
        self._preparing = threading.Lock()
        self._swapping = threading.Lock()
        self._pending: Pending | None = None
        self._awaited_spans: dict[str, Report] = {}
        self._spans: dict[int, str] = {}  # generation prepared -> its span
        self.residents = Residents()
        self.lease: TrialLease | None = None
        self._last_active: Resident | None = None  # also after it was lost, for the report

    # -- prepare ---------------------------------------------------------------------------------------------------

    def prepare(
        self,
        bundle_path: str | Path,
        digest: str = "",
        *,
        on_progress: Progress = lambda state, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Resident:
        """Load, check and warm up a bundle; nothing changes for the robot. Blocks.

        Raises SwapError, ContractError, CheckpointError or PrepareError, each with a code.
        """
        if not self._preparing.acquire(blocking=False):
            raise SwapError("PREPARE_IN_PROGRESS", "another bundle is being prepared")
        try:
            path = self._inside_roots(Path(bundle_path))
            manifest = self._read_manifest(path, digest)
            with self._lock:
                resident = self.residents.find(manifest.digest)
            if resident is not None:
                return resident
            self._contract.check_manifest(manifest)
            self._make_room()
            return self._load(path, manifest, on_progress, cancelled)
        finally:
            self._preparing.release()

    def _load(self, path: Path, manifest: Manifest, on_progress: Progress, cancelled: Callable[[], bool]) -> Resident:
        span = f"prepare-{uuid.uuid4().hex}"
        self._control.begin_span(span)
        kept = False
        try:
            generation = self._pool.prepare(path, digest=manifest.digest, on_progress=on_progress, cancelled=cancelled)
            try:
                latency_s = generation.timings.inference_ms / 1e3
                self._contract.check_bundle(manifest, generation.spec, latency_s=latency_s)
                self._control.add_generation(generation.handle, latency_s=latency_s)
            except Exception:
                self._pool.release(generation)
                raise
            kept = True
        finally:
            if not kept:
                self._control.end_span(span)
        resident = Resident(generation, path)
        with self._lock:
            self.residents.prepared = resident
            self._spans[resident.id] = span
        self._on_change()
        return resident

    def _inside_roots(self, path: Path) -> Path:
        """Return the real folder; a bundle that lies elsewhere is not ours to load."""
        roots = [r for r in (self._config.store_dir, self._config.model_path, *self._config.bundle_roots) if r]
        real = path.expanduser().resolve()
        if not any(real.is_relative_to(Path(root).expanduser().resolve()) for root in roots):
            raise SwapError("BUNDLE_OUTSIDE_ROOTS", f"{path} lies neither in the store nor in bundle_roots")
        return real

    def _read_manifest(self, path: Path, digest: str) -> Manifest:
        manifest = load_manifest(path)
        if digest and manifest.digest != digest:
            raise SwapError("DIGEST_MISMATCH", f"{path} has digest {manifest.digest}, asked for was {digest}")
        return manifest

    def _make_room(self) -> None:
        """Two generations fit: the active one and one more. What stood by goes, unless a trial may need it."""
        with self._lock:
            residents = self.residents
            others = [r for r in residents.all() if r is not residents.active]
            if residents.active is None and len(others) < 2:
                return
            if self.lease is not None and others:
                raise SwapError("TRIAL_RUNNING", "the standby is what the running trial falls back to")
            for resident in others:
                self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        self.residents.forget(resident)
        self._spans.pop(resident.id, None)
        self._control.remove_generation(resident.id)
        self._pool.release(resident.generation)

    # -- swap ------------------------------------------------------------------------------------------------------

    def swap(self, request: SwapRequest, *, motion_allowed: bool) -> tuple[Resident, Report | None]:
        """Do what SwapModel asks; blocks until the new generation acts. ``None``: it did already.

        Raises what :meth:`prepare` raises, and SwapError.
        """
        at, cause = request.at or "CHUNK", request.cause or UPDATE
        if at not in AT:
            raise SwapError("SWAP_BOUNDARY_UNKNOWN", f"at={at!r}, must be one of {', '.join(AT)}")
        if cause not in CAUSES:
            raise SwapError("CAUSE_UNKNOWN", f"cause={cause!r}, must be one of {', '.join(CAUSES)}")
        if not request.digest and not request.bundle_path:
            raise SwapError("EMPTY_REQUEST", "name what to activate: digest of a resident generation, or bundle_path")
        if not motion_allowed and cause != ROLLBACK:
            raise SwapError("MOTION_DISABLED", "motion is disabled: no swap until it is enabled again")
        timeout_s = duration("timeout_s", request.timeout_s, self._config.swap_timeout_s)
        lease_s = duration("trial_lease_s", request.trial_lease_s, self._config.trial_lease_s)
        self._check_expected(request.expected_active_digest)
        with self._lock:
            resident = self.residents.find(request.digest) if request.digest else None
        warm = resident is not None
        if resident is None:
            if not request.bundle_path:
                raise SwapError(
                    "NOT_PREPARED", f"no generation of {request.digest} is in memory: give bundle_path, or prepare it"
                )
            resident = self.prepare(request.bundle_path, request.digest)
        if not self._swapping.acquire(blocking=False):
            raise SwapError("SWAP_IN_PROGRESS", "another swap is under way")
        try:
            self._check_expected(request.expected_active_digest)
            with self._lock:
                if self.residents.active is resident:
                    self._set_lease(resident, self.residents.standby, request.trial, lease_s)
                    self._on_change()
                    return resident, None
            return resident, self._activate(
                resident, at, cause, timeout_s, warm=warm, trial=request.trial, lease_s=lease_s
            )
        finally:
            self._swapping.release()

    def _check_expected(self, digest: str) -> None:
        with self._lock:
            active = self.residents.active
        if digest and (active is None or active.digest != digest):
            raise SwapError(
                "UNEXPECTED_ACTIVE", f"active is {active.digest if active else 'nothing'}, expected was {digest}"
            )

    def activate_now(self, resident: Resident, cause: str, *, at: str = "NOW") -> Report:
        """A swap that the node itself decides on: a pending one makes way. Raises SwapError."""
        with self._lock:
            pending = self._pending
        if pending is not None:
            self._control.cancel_activation(pending.swap_id)
        with self._swapping:
            return self._activate(resident, at, cause, self._config.swap_timeout_s, warm=True, trial=False, lease_s=0.0)

    def _activate(
        self, resident: Resident, at: str, cause: str, timeout_s: float, *, warm: bool, trial: bool, lease_s: float
    ) -> Report:
        with self._lock:
            span = self._spans.pop(resident.id, "")
            if not span:
                span = f"swap-{uuid.uuid4().hex}"
                self._control.begin_span(span)
            pending = Pending(uuid.uuid4().hex, resident, at, cause, warm, trial, lease_s, span)
            self._pending = pending
        try:
            self._control.activate(resident.id, at, pending.swap_id, timeout_s)
            if not pending.done.wait(timeout_s + _ANSWER_SLACK_S):
                self._control.cancel_activation(pending.swap_id)
                raise SwapError("SWAP_TIMEOUT", f"no boundary {at} came within {timeout_s:g} s")
            if pending.error is not None:
                raise pending.error
            assert pending.report is not None
            return pending.report
        finally:
            with self._lock:
                self._pending = None
            if pending.report is None:
                self._control.end_span(span)

    def on_control_event(self, event: dict[str, Any]) -> None:
        """Take SWAPPED, SWAP_FAILED and SPAN events of the control process."""
        kind = event.get("type")
        if kind == "SPAN":
            report = self._awaited_spans.pop(str(event.get("span_id")), None)
            if report is not None:
                self._on_report(report.with_span(event))
            return
        with self._lock:
            pending = self._pending
            if pending is None or event.get("swap_id") != pending.swap_id:
                return
            if kind == "SWAPPED":
                self._swapped(pending, event)
            elif kind == "SWAP_FAILED":
                code = str(event.get("error_code") or "SWAP_FAILED")
                pending.error = SwapError(code, str(event.get("message") or "the swap did not happen"))
                pending.done.set()

    def _swapped(self, pending: Pending, event: dict[str, Any]) -> None:
        previous = self.residents.active
        displaced = self.residents.activated(pending.target)
        if displaced is not None:
            self._drop(displaced)
        pending.report = pending.make_report(self._last_active, event)
        self._last_active = pending.target
        self._set_lease(pending.target, previous, pending.trial, pending.lease_s)
        self._awaited_spans[pending.span_id] = pending.report
        self._control.end_span(pending.span_id, AFTER_SWAP_S)
        pending.done.set()
        self._on_change()

    # -- lease -----------------------------------------------------------------------------------------------------

    def _set_lease(self, resident: Resident, fallback: Resident | None, trial: bool, lease_s: float) -> None:
        now = time.monotonic()
        if trial:
            self.lease = TrialLease(resident.id, resident.digest, fallback.id if fallback else 0, lease_s, now)
        else:
            self.lease = None

    def on_manager_status(self, trial_digest: str, committed_digest: str) -> None:
        """Take what the manager says: it renews the lease of the trial it speaks of, and ends that of what it committed."""
        with self._lock:
            if self.lease is None:
                return
            if committed_digest == self.lease.digest:
                self.lease = None
            elif trial_digest == self.lease.digest:
                self.lease.renew(time.monotonic())
                return
            else:
                return
        self._on_change()

    def expired_lease(self) -> TrialLease | None:
        """Return the lease if it has run out, once."""
        with self._lock:
            if self.lease is None or not self.lease.expired(time.monotonic()):
                return None
            lease, self.lease = self.lease, None
            return lease

    # -- loss ------------------------------------------------------------------------------------------------------

    def lost(self, generation: int) -> tuple[Resident, bool, TrialLease | None] | None:
        """A worker has gone. Returns it, whether it was active, and the lease it was on; ``None`` if it was not ours."""
        with self._lock:
            resident = self.residents.by_id(generation)
            if resident is None:
                return None
            was_active = self.residents.active is resident
            lease = None
            if self.lease is not None and self.lease.generation == generation:
                lease, self.lease = self.lease, None
            self._drop(resident)
        self._on_change()
        return resident, was_active, lease
