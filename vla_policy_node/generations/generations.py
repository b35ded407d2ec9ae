# SPDX-License-Identifier: Apache-2.0
"""Prepare a bundle beside the running one and make it the acting one: weights, processors and statistics change together.

The order of every change is: the control process switches, reports it, and only then do active and standby change here. A swap
that does not happen leaves everything as it was. Locks: ``_preparing`` and ``_swapping`` are each held by one caller through
a whole preparation or swap; ``_lock`` for moments only, by anybody, and never while something is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_checkpoint.config import load_config
from vla_checkpoint.manifest import Manifest, load_manifest
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract
from vla_policy_node.control.client import ControlClient
from vla_policy_node.control.swap import EXPERIMENT
from vla_policy_node.errors import ControlError, PolicyNodeError
from vla_policy_node.generations.in_place import InPlace, Wanted, manifest_of
from vla_policy_node.generations.lease import TrialLease
from vla_policy_node.generations.residents import Loss, OnDisk, Resident, Residents
from vla_policy_node.generations.swapping import (
    ROLLBACK,
    WORKER_LOST,
    Pending,
    Report,
    SwapError,
    SwapRequest,
    Vacated,
)
from vla_policy_node.shadow.judge import ShadowReport
from vla_policy_node.shadow.session import Shadow
from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.pool import Progress, WorkerPool

AFTER_SWAP_S = 1.0  # a report's span ends this long after the swap
_ANSWER_S = 2.0  # the control process gives up on a boundary by itself; wait this much longer for its answer
_POLL_S = 0.05
_STOOD_STILL = ("MOTION_DISABLED", "GENERATION_LOST", "INACTIVE")  # refused because the robot has stopped meanwhile

LOG = logging.getLogger("vla_policy_node")

LossListener = Callable[[Resident, "TrialLease | None", Loss], None]
"""Called when the active generation has gone, with the lease it was on and why it went."""


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
        on_active_lost: LossListener,
    ) -> None:
        self._config, self._contract, self._control, self._pool = config, contract, control, pool
        self._on_change, self._on_report, self._on_active_lost = on_change, on_report, on_active_lost
        self._preparing = threading.Lock()
        self._swapping = threading.Lock()
        self._lock = threading.RLock()  # protects everything below
        self._asked: dict[str, Pending] = {}  # swap id -> a swap that the control process has not answered
        self._reports: dict[str, Report] = {}  # span id -> a report that waits for its counts
        self._spans: dict[int, str] = {}  # generation -> span of its preparation, until a report tells it
        # Digest -> code and why, of bundles whose worker ended since they were prepared last.
        self._losses: dict[str, tuple[str, Loss]] = {}
        self._closed = False
        self.residents = Residents()
        self._in_place = InPlace(self, control, pool)
        self._on_disk: OnDisk | None = None  # prepared, as far as that goes without loading it
        self.lease: TrialLease | None = None
        self._unproven: set[str] = set()  # digests of what acted on a lease and was not committed since
        self._before: Resident | OnDisk | None = None  # what the active one was loaded in place of
        self._last_active: Resident | None = None  # also after it was lost, for the report

    def close(self) -> None:
        """Nothing is activated any more; pending swaps fail with CLOSED."""
        with self._lock:
            self._closed = True
        self._fail_all("CLOSED", "the node is shutting down")

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def parts(self) -> tuple[Resident | None, Resident | None, Resident | OnDisk | None, bool]:
        """Return active, standby and prepared generation, and whether the active one is on trial, all of one moment."""
        with self._lock:
            residents = self.residents
            prepared = residents.prepared or self._on_disk
            return residents.active, residents.standby, prepared, self.lease is not None

    def control_lost(self) -> None:
        """The control process has gone: no swap can happen any more."""
        self._fail_all("CONTROL_LOST", "the control process has ended")

    def _fail_all(self, code: str, message: str) -> None:
        with self._lock:
            waiting, self._asked = list(self._asked.values()), {}
            self._reports.clear()
        for pending in waiting:
            pending.fail(code, message)
        self._in_place.fail(code, message)

    # -- prepare ---------------------------------------------------------------------------------------------------

    def prepare(
        self,
        bundle_path: str | Path,
        digest: str = "",
        *,
        on_progress: Progress = lambda state, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
        wait: bool = False,
        shadow: Shadow | None = None,
    ) -> Resident | OnDisk:
        """Load, check and warm up a bundle, and let it go through its shadow; nothing changes for the robot. Blocks.

        Where there is no room for it beside what acts (``load_in_place``), it is checked on disk and not loaded.

        ``wait``: until another preparation is over, rather than be refused. ``shadow``: ``None`` = without it.

        Raises SwapError, ContractError, CheckpointError or PrepareError, each with a code.
        """
        with self.only_preparation(wait, cancelled):
            path = self._inside_roots(bundle_path)
            manifest = self._read_manifest(path, digest)
            with self._lock:
                resident = self.residents.find(manifest.digest)
                acts = self.residents.active is not None
            if resident is not None:
                return resident
            self._contract.check_manifest(manifest)
            if self._config.load_in_place and acts:
                return self._check_on_disk(path, manifest, on_progress, cancelled)
            self._make_room()
            return self._load(path, manifest, on_progress, cancelled, shadow)

    def _check_on_disk(
        self, path: Path, manifest: Manifest, on_progress: Progress, cancelled: Callable[[], bool]
    ) -> OnDisk:
        with self._lock:
            self._on_disk = None
        checked = self._in_place.check(path, manifest, on_progress, cancelled)
        with self._lock:
            self._on_disk = checked
            self._losses.pop(checked.digest, None)
        self._on_change()
        return checked

    @contextlib.contextmanager
    def only_preparation(self, wait: bool, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Keep every other preparation away. Raises SwapError PREPARE_IN_PROGRESS, or waits and raises PrepareError CANCELLED.

        Only the node itself waits: an update in place that has not reached its boundary makes way.
        """
        while not self._preparing.acquire(timeout=_POLL_S if wait else 0.0):
            if not wait:
                raise SwapError("PREPARE_IN_PROGRESS", "another bundle is being prepared")
            if cancelled():
                raise PrepareError("CANCELLED", "cancelled on request")
            self._in_place.cancel()
        try:
            yield
        finally:
            self._preparing.release()

    def _load(
        self,
        path: Path,
        manifest: Manifest,
        on_progress: Progress,
        cancelled: Callable[[], bool],
        shadow: Shadow | None,
    ) -> Resident:
        limits = self._contract.bundle_limits(load_config(path).raw.get("action_limits", {}))
        span = f"prepare-{uuid.uuid4().hex}"
        self._control.begin_span(span)
        try:
            shadow = shadow if self._config.shadow_chunks else None
            with shadow.stage(on_progress, cancelled) if shadow else contextlib.nullcontext() as stage:
                generation = self._pool.prepare(
                    path,
                    digest=manifest.digest,
                    on_progress=on_progress if stage is None else stage.loading,
                    cancelled=cancelled,
                    shadow=None if stage is None else stage.arena,
                )
                try:
                    latency_s = generation.timings.inference_ms / 1e3
                    self._contract.check_bundle(manifest, generation.spec, latency_s=latency_s)
                    seen = ShadowReport() if stage is None else stage.run(generation, limits)
                    self._control.add_generation(generation.handle, latency_s=latency_s, limits=limits)
                except BaseException:
                    self._pool.release(generation)
                    raise
        except BaseException:
            self._end_span(span)
            raise
        resident = Resident(generation, path, seen)
        with self._lock:
            self.residents.prepared = resident
            self._spans[resident.id] = span
            self._losses.pop(resident.digest, None)
            died = not generation.alive  # its LOST event may have come before anybody knew it
        if died:
            self._drop(resident)
            raise PrepareError(generation.died_code, f"the worker of {path} ended as it became ready")
        self._on_change()
        return resident

    def _inside_roots(self, bundle_path: str | Path) -> Path:
        """Return the real folder; a bundle that lies elsewhere is not ours to load."""
        if not str(bundle_path):
            raise SwapError("EMPTY_REQUEST", "name the bundle's folder")
        try:
            real = Path(bundle_path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as e:  # too long, a loop of links, a zero byte
            raise SwapError("BUNDLE_PATH_INVALID", f"{str(bundle_path)[:200]!r}: {e}") from e
        roots = [r for r in (self._config.store_dir, self._config.model_path, *self._config.bundle_roots) if r]
        if not any(real.is_relative_to(Path(root).expanduser().resolve()) for root in roots):
            raise SwapError("BUNDLE_OUTSIDE_ROOTS", f"{bundle_path} lies neither in the store nor in bundle_roots")
        return real

    def _read_manifest(self, path: Path, digest: str) -> Manifest:
        manifest = load_manifest(path)
        if digest and manifest.digest != digest:
            raise SwapError("DIGEST_BUNDLE", f"{path} has digest {manifest.digest}, asked for was {digest}")
        return manifest

    def _make_room(self) -> None:
        """Let go of what was prepared before or stands by, unless a trial or a pending swap needs it."""
        with self._lock:
            leaving = self.residents.in_the_way(1 if self._config.load_in_place else 2)
            if self.lease is not None and self.residents.standby in leaving:
                raise SwapError("TRIAL_RUNNING", "the standby is what the running trial falls back to")
            if any(pending.target in leaving for pending in self._asked.values()):
                raise SwapError("SWAP_IN_PROGRESS", "a swap to the other generation in memory is pending")
            for resident in leaving:
                self._forget(resident)
        for resident in leaving:
            self._pool.release(resident.generation)

    def _forget(self, resident: Resident) -> None:
        """Take a generation out of everybody's books; its worker still runs."""
        self.residents.forget(resident)
        self._end_span(self._spans.pop(resident.id, ""))
        with contextlib.suppress(ControlError):  # nobody uses it there any more
            self._control.remove_generation(resident.id)

    def _drop(self, resident: Resident) -> None:
        with self._lock:
            self._forget(resident)
        self._pool.release(resident.generation)

    def _end_span(self, span_id: str, after_s: float = 0.0) -> None:
        if span_id:
            with contextlib.suppress(ControlError):
                self._control.end_span(span_id, after_s)

    # -- swap ------------------------------------------------------------------------------------------------------

    def swap(
        self,
        request: SwapRequest,
        *,
        motion_allowed: Callable[[], bool] = lambda: True,
        cancelled: Callable[[], bool] = lambda: False,
        shadow: Shadow | None = None,
    ) -> tuple[Resident | OnDisk, Report | None]:
        """Do what SwapModel asks; blocks until the new generation acts. ``None``: it did already.

        ``shadow``: what an update goes through that is loaded for it; a rollback never does.

        Raises what :meth:`prepare` raises, and SwapError.
        """
        asked = request.checked(self._config.swap_timeout_s, self._config.trial_lease_s)
        self._check_swap(asked, motion_allowed)
        with self._lock:
            resident = self._prepared(asked.digest) if asked.digest else None
        if resident is None:
            if not asked.bundle_path:
                raise self._missing(asked.digest)
            shadow = None if asked.cause == ROLLBACK else shadow
            resident = self.prepare(asked.bundle_path, asked.digest, cancelled=cancelled, shadow=shadow)
        if not self._swapping.acquire(blocking=False):
            raise SwapError("SWAP_IN_PROGRESS", "another swap is under way")
        try:
            self._check_swap(asked, motion_allowed)  # loading took its time
            with self._lock:
                if self.residents.active is resident:
                    if asked.trial:
                        self._renew_lease(resident, asked.trial_lease_s)
                    return resident, None
            if isinstance(resident, OnDisk):
                wanted = Wanted(resident, asked.at, asked.cause, asked.timeout_s, asked.trial, asked.trial_lease_s)
                report = self._in_place.replace(wanted, motion_allowed=motion_allowed, cancelled=cancelled)
                return resident, report
            report = self._activate(
                resident, asked.at, asked.cause, asked.timeout_s, trial=asked.trial, lease_s=asked.trial_lease_s
            )
            return resident, report
        finally:
            self._swapping.release()

    def _prepared(self, digest: str) -> Resident | OnDisk | None:
        on_disk = self._on_disk
        return self.residents.find(digest) or (on_disk if on_disk is not None and on_disk.digest == digest else None)

    def _missing(self, digest: str) -> SwapError:
        """Say why a bundle is not in memory: who asks for it may not want what has crashed to be loaded again."""
        with self._lock:
            code, why = self._losses.get(digest, ("NOT_PREPARED", None))
        what = {
            WORKER_LOST: f"{digest} acted until its worker was lost ({why})",
            "GENERATION_LOST": f"the worker of {digest} ended while another generation acted ({why})",
        }.get(code, f"no generation of {digest} is in memory")
        return SwapError(code, f"{what}: give bundle_path, or prepare it")

    def _check_swap(self, request: SwapRequest, motion_allowed: Callable[[], bool]) -> None:
        if request.cause != ROLLBACK and not motion_allowed():
            raise SwapError("MOTION_DISABLED", "motion is disabled: no swap until it is enabled again")
        expected = request.expected_active_digest
        with self._lock:
            active = self.residents.active
        if expected and (active is None or active.digest != expected):
            raise SwapError(
                "EXPECTATION_FAILED", f"active is {active.digest if active else 'nothing'}, expected was {expected}"
            )

    def activate_now(
        self, resident: Resident | OnDisk, cause: str, *, instead_of: int, at: str = "NOW"
    ) -> Report | None:
        """A swap that the node itself decides on; a pending one makes way.

        ``instead_of``: generation that must be the active one still (0 = none is); else nothing is done and ``None`` returned.

        Raises SwapError.
        """
        while not self._swapping.acquire(timeout=_POLL_S):
            with self._lock:
                waiting = list(self._asked)
            for swap_id in waiting:
                self._control.cancel_activation(swap_id)
            self._in_place.cancel()
        try:
            with self._lock:
                active = self.residents.active
            if (active.id if active is not None else 0) != instead_of:
                return None
            if isinstance(resident, OnDisk):
                wanted = Wanted(resident, at, cause, self._config.swap_timeout_s)
                return self._in_place.replace(wanted, cancelled=lambda: self._closed)
            return self._activate(resident, at, cause, self._config.swap_timeout_s, trial=False, lease_s=0.0)
        finally:
            self._swapping.release()

    def resident(self, digest: str) -> Resident:
        """Return a generation in memory. Raises SwapError, which says since when it is not."""
        with self._lock:
            found = self.residents.find(digest)
        if found is None:
            raise self._missing(digest)
        return found

    def let_act_in_episode(
        self,
        resident: Resident,
        *,
        instead_of: Resident,
        lease_s: float,
        timeout_s: float,
        begin: Callable[[], None],
    ) -> bool:
        """Let what was drawn for an episode act from its start, which ``begin`` makes; blocks. False: it acts already.

        ``lease_s``: it acts only while the manager speaks of it; 0 = for good. Raises SwapError: what acts goes on; ``begin``
        may not have been called.
        """
        if not self._swapping.acquire(blocking=False):
            raise SwapError("SWAP_IN_PROGRESS", "another swap is under way")
        try:
            with self._lock:
                active = self.residents.active
                if active is resident:
                    if lease_s:
                        self._renew_lease(resident, lease_s, drawn=True)
                    return False
                if active is not instead_of:
                    raise SwapError(
                        "EXPECTATION_FAILED",
                        f"{active.version if active else 'nothing'} acts, which is neither version",
                    )
            self._activate(resident, "EPISODE", EXPERIMENT, timeout_s, trial=lease_s > 0, lease_s=lease_s, begin=begin)
            return True
        finally:
            self._swapping.release()

    def _activate(
        self,
        resident: Resident,
        at: str,
        cause: str,
        timeout_s: float,
        *,
        trial: bool,
        lease_s: float,
        begin: Callable[[], None] = lambda: None,
        vacated: Vacated | None = None,
    ) -> Report:
        """Let a generation act from the next boundary on; ``begin`` is called once that is asked for."""
        with self._lock:
            if resident not in self.residents.all():
                raise self._missing(resident.digest)
            prepared = self._spans.get(resident.id, "")
            span = prepared or f"swap-{uuid.uuid4().hex}"
            pending = Pending("", resident, at, cause, timeout_s, trial, lease_s, span, not prepared, vacated=vacated)
            if self.residents.active is None or (pending.may_hurry and not self._moves()):
                pending.at = "NOW"  # there is no boundary to wait for
        if not prepared:
            self._control.begin_span(span)
        self._ask(pending)
        begin()
        end_s = time.monotonic() + timeout_s + _ANSWER_S
        while not pending.done.wait(_POLL_S) and time.monotonic() < end_s:
            if pending.may_hurry and not self._moves():
                self._hurry(pending)
        if pending.report is not None:
            return pending.report
        if not prepared:
            self._end_span(span)
        # Without an answer it stays asked: one that comes late still counts.
        raise pending.error or SwapError("CONTROL_UNRESPONSIVE", "the control process does not answer")

    def _ask(self, pending: Pending) -> None:
        """Hand a swap to the control process. Raises ControlError, and SwapError CLOSED."""
        pending.swap_id = uuid.uuid4().hex
        with self._lock:
            if self._closed:
                raise SwapError("CLOSED", "the node is shutting down")
            self._asked[pending.swap_id] = pending
        try:
            self._control.activate(pending.target.id, pending.at, pending.swap_id, pending.timeout_s, pending.cause)
        except ControlError:
            with self._lock:
                self._asked.pop(pending.swap_id, None)
            raise

    def _moves(self) -> bool:
        status = self._control.status()
        return status is not None and status.mode == "RUNNING"

    def _hurry(self, pending: Pending) -> None:
        """Ask again, at NOW: that supersedes what was asked."""
        with self._lock:
            if self._asked.pop(pending.swap_id, None) is None:
                return  # answered
        self._ask_now(pending)

    def _ask_now(self, pending: Pending) -> None:
        pending.at = "NOW"
        try:
            self._ask(pending)
        except PolicyNodeError as e:
            pending.fail(e.code, e.message)

    # -- in place of what acts (called by InPlace) -----------------------------------------------------------------

    def acting(self) -> tuple[Resident | None, TrialLease | None]:
        """Return what acts and the lease it is on, of one moment."""
        with self._lock:
            return self.residents.active, self.lease

    def leave(self) -> tuple[Resident | None, TrialLease | None]:
        """Forget what acted, its lease too, and end its worker: its memory is free. Returns both."""
        with self._lock:
            active, lease = self.residents.active, self.lease
            self.lease = None
            if active is not None:
                self._forget(active)
        if active is not None:
            self._pool.release(active.generation)
        self._on_change()
        return active, lease

    def load(self, bundle: OnDisk, cancelled: Callable[[], bool]) -> Resident:
        """Load a bundle while nothing acts. Raises what :meth:`prepare` raises."""
        manifest = manifest_of(bundle)
        self._contract.check_manifest(manifest)
        self._make_room()
        return self._load(bundle.path, manifest, lambda state, fraction: None, cancelled, None)

    def let_act_in_place(
        self, resident: Resident, cause: str, timeout_s: float, vacated: Vacated, lease_s: float | None
    ) -> Report:
        """Let a generation act in the place that was made; ``lease_s``: on trial. Raises SwapError, ControlError."""
        timeout_s = max(timeout_s, self._config.swap_timeout_s)  # the load is too dear to be lost to a late chunk
        trial = lease_s is not None
        return self._activate(resident, "NOW", cause, timeout_s, trial=trial, lease_s=lease_s or 0.0, vacated=vacated)

    def give_up(self, former: Resident, lease: TrialLease | None, why: Loss) -> None:
        """Nothing could be loaded in the place of a generation: it is as if it had been lost."""
        with self._lock:
            prepared = self.residents.prepared
        if prepared is not None:
            self._drop(prepared)
        self._on_change()
        self._on_active_lost(former, lease, why)

    def _vacated_late(self) -> None:
        """What acted has left, and nobody waits for that any more: it is loaded again like one that was lost."""
        active, _ = self.acting()
        if active is not None:
            active.generation.kill()

    # -- what the control process says -----------------------------------------------------------------------------

    def on_control_event(self, event: dict[str, Any]) -> None:
        """Take SWAPPED, SWAP_FAILED, VACATED and SPAN events of the control process."""
        kind = event.get("type")
        if self._in_place.on_event(event):
            return
        if kind == "VACATED":
            self._vacated_late()
            return
        if kind == "SPAN":
            with self._lock:
                report = self._reports.pop(str(event.get("span_id")), None)
            if report is not None:
                self._on_report(report.with_span(event))
            return
        swap_id = str(event.get("swap_id"))
        with self._lock:
            pending = self._asked.pop(swap_id, None)
        if kind == "SWAPPED":
            if pending is not None:
                self._swapped(pending, event)
            return
        self._end_span(swap_id)  # counting began with the request
        code = str(event.get("error_code") or "SWAP_FAILED")
        if pending is None:
            return
        if (
            pending.may_hurry
            and code in _STOOD_STILL
            and not (pending.cause == EXPERIMENT and code == "GENERATION_LOST")
        ):
            self._ask_now(pending)
        else:
            pending.fail(code, str(event.get("message") or "the swap did not happen"))

    def _swapped(self, pending: Pending, event: dict[str, Any]) -> None:
        target = pending.target
        with self._lock:
            died = target not in self.residents.all()  # its worker went in the very moment in which it took over
            displaced = self.residents.activated(target)
            if displaced is not None:
                self._forget(displaced)
            report = pending.make_report(self._last_active, event)
            self._last_active = target
            if self._on_disk is not None and self._on_disk.digest == target.digest:
                self._on_disk = None
            self._set_lease(target, pending)
            self._spans.pop(target.id, None)
            self._reports[pending.span_id] = report
        self._end_span(pending.span_id, AFTER_SWAP_S)
        if displaced is not None:
            self._pool.release(displaced.generation)
        LOG.info(
            "%s %s instead of %s (%s, %s), %.0f ms after the request",
            target.version,
            "acts" if event.get("acted") else "is active and will act",
            report.from_version or "nothing",
            report.cause,
            "warm" if report.warm else "loaded",
            report.swap_latency_s * 1e3,
        )
        if died:
            _, why = self._losses.get(target.digest, ("", Loss("WORKER_DIED", "its worker has ended")))
            self.lost(target.id, why)
            pending.fail(WORKER_LOST, f"{target.version} was lost as it took over ({why})")
        else:
            pending.report = report
            pending.done.set()
        self._on_change()

    # -- lease -----------------------------------------------------------------------------------------------------

    def _set_lease(self, active: Resident, pending: Pending) -> None:
        self.lease = None
        self._before = pending.vacated.fallback if pending.vacated else None
        if pending.trial:
            self._unproven.add(active.digest)
            fallback = self._before if self._config.load_in_place else self.residents.standby
            drawn, now_s = pending.cause == EXPERIMENT, time.monotonic()
            self.lease = TrialLease(active.id, active.digest, fallback, pending.lease_s, now_s, drawn)

    def _renew_lease(self, active: Resident, lease_s: float, *, drawn: bool = False) -> None:
        """The manager asked for a trial of what acts already: it has come back to it. ``drawn``: an experiment did."""
        now = time.monotonic()
        if self.lease is not None and not self.lease.failed:
            self.lease.renew(now, lease_s)
            self.lease.drawn = drawn
        elif self.lease is None:
            self._unproven.add(active.digest)
            fallback = self._before if self._config.load_in_place else self.residents.standby
            self.lease = TrialLease(active.id, active.digest, fallback, lease_s, now, drawn)
        self._on_change()

    def on_manager_status(self, trial_digest: str, committed_digest: str, drawn_digest: str = "") -> None:
        """Take what the manager says: it renews the lease of the trial it speaks of, and ends that of what it committed.

        ``drawn_digest``: of the version under test in an experiment. When it is no longer named, its lease ends.
        """
        with self._lock:
            self._unproven.discard(committed_digest)
            lease = self.lease
            if lease is None:
                return
            if committed_digest == lease.digest:
                self.lease = None
            elif lease.digest in (trial_digest, drawn_digest if lease.drawn else ""):
                lease.renew(time.monotonic())
                return
            elif lease.drawn and not lease.over:
                lease.end("the experiment is over")
                return
            else:
                return
        self._on_change()

    def proven_standby(self) -> Resident | None:
        """Return the standby, unless it was on trial or under test when it acted last: nobody would watch it now."""
        with self._lock:
            standby = self.residents.standby
            return None if standby is None or standby.digest in self._unproven else standby

    def due_lease(self) -> TrialLease | None:
        """Return the lease when it has run out and the node has to go back (see :meth:`TrialLease.is_due`)."""
        with self._lock:
            return self.lease if self.lease is not None and self.lease.is_due(time.monotonic()) else None

    @property
    def swap_pending(self) -> bool:
        """Whether the control process owes the answer to a swap, or something is loaded in place."""
        with self._lock:
            return bool(self._asked) or self._in_place.under_way

    def lease_over(self, lease: TrialLease) -> bool:
        """Whether a lease that ran out still matters: it was neither renewed nor ended since."""
        with self._lock:
            return self.lease is lease and lease.expired(time.monotonic())

    # -- loss ------------------------------------------------------------------------------------------------------

    def lost(self, generation: int, why: Loss) -> Resident | None:
        """A worker has gone. Returns its generation, ``None`` if it was not ours; calls ``on_active_lost`` if it acted."""
        with self._lock:
            resident = self.residents.by_id(generation)
            if resident is None:
                return None
            was_active = self.residents.active is resident
            lease = None
            if self.lease is not None and self.lease.generation == generation:
                lease, self.lease = self.lease, None
            self._losses[resident.digest] = WORKER_LOST if was_active else "GENERATION_LOST", why
            self._forget(resident)
            overtaken = [p for p in self._asked.values() if was_active and p.at != "NOW" and p.target is not resident]
        self._pool.release(resident.generation)  # at once: its process has ended
        self._on_change()
        for pending in overtaken:  # what was to come is loaded and comes now: nothing else could be sooner
            if pending.cause == EXPERIMENT:  # what is under test must not stand in for what was lost
                with contextlib.suppress(ControlError):
                    self._control.cancel_activation(pending.swap_id)
            else:
                self._hurry(pending)
        if was_active:
            self._on_active_lost(resident, lease, why)
        return resident
