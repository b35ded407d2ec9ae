# SPDX-License-Identifier: Apache-2.0
"""A load in place, for a robot that cannot hold two policies: what acts leaves, the robot holds, another one is loaded.

The order: the control process lets the acting generation leave at a boundary and holds; its worker is ended, so that its memory
is free; the other bundle is loaded, checked, replayed and warmed up as ever; it acts. If it cannot, what acted before is loaded
again from its folder. What was on trial is not, when the way back from it fails: then the robot goes on holding.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import Manifest, load_manifest
from vla_policy_node.control.client import ControlClient
from vla_policy_node.control.swap import UPDATE, WAYS_BACK
from vla_policy_node.errors import ControlError, PolicyNodeError
from vla_policy_node.generations.lease import TrialLease
from vla_policy_node.generations.residents import Loss, OnDisk, Resident
from vla_policy_node.generations.swapping import ROLLBACK, Report, SwapError, Vacated
from vla_policy_node.worker.pool import Progress, WorkerPool

if TYPE_CHECKING:
    from vla_policy_node.generations.generations import Generations

LOG = logging.getLogger("vla_policy_node")

_ANSWER_S = 2.0  # the control process gives up on a boundary by itself; wait this much longer for its answer
_POLL_S = 0.05
_ERRORS = (PolicyNodeError, CheckpointError)


@dataclass(frozen=True)
class Wanted:
    """What is to act, when, and how: the parts of a swap's request that a load in place needs."""

    bundle: OnDisk
    at: str
    cause: str
    timeout_s: float
    trial: bool = False
    lease_s: float = 0.0

    @property
    def boundary(self) -> str:
        """Where what acts leaves: it comes to rest first, but a way back does not wait for that unless asked to."""
        if self.at != "CHUNK":
            return self.at
        return "NOW" if self.cause in WAYS_BACK else "REST"


@dataclass
class _Waiting:
    """For the control process to let the acting generation leave."""

    swap_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    done: threading.Event = field(default_factory=threading.Event)
    error: SwapError | None = None


class InPlace:
    """Called with the swap's lock of ``generations`` held, but for :meth:`check`, :meth:`on_event` and :meth:`fail`."""

    def __init__(self, generations: Generations, control: ControlClient, pool: WorkerPool) -> None:
        self._generations, self._control, self._pool = generations, control, pool
        self._waiting: _Waiting | None = None
        self.under_way = False
        """Whether something is loaded in place, or waits for its boundary."""

    # -- before the swap -------------------------------------------------------------------------------------------

    def check(self, path: Path, manifest: Manifest, on_progress: Progress, cancelled: Callable[[], bool]) -> OnDisk:
        """Do what a preparation can do without memory for weights. Raises PrepareError."""
        on_progress("QUEUED", 0.0)
        seconds = self._pool.check(path, digest=manifest.digest, on_progress=on_progress, cancelled=cancelled)
        on_progress("READY", 1.0)
        return OnDisk(manifest.version, manifest.digest, path, seconds)

    # -- the swap --------------------------------------------------------------------------------------------------

    def replace(
        self,
        wanted: Wanted,
        *,
        motion_allowed: Callable[[], bool] = lambda: True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Report:
        """Load a bundle in place of the acting one and let it act. Blocks.

        ``motion_allowed``: when it is no longer, an update is not loaded any further, and what acted is loaded again.

        Raises SwapError, PrepareError, ContractError, CheckpointError: what acted acts again, unless that failed too.
        """
        self.under_way = True
        try:
            with self._generations.only_preparation(wait=True, cancelled=cancelled):
                acting, lease = self._generations.acting()
                fallback = None if acting is None else lease.fallback if lease is not None else OnDisk.of(acting)
                manifest_of(wanted.bundle)  # a folder that has gone must not stop the robot
                self._vacate(wanted, cancelled)
                former, lease = self._generations.leave()  # it may have been lost meanwhile
                vacated = Vacated(wanted.boundary, time.monotonic(), fallback)
                LOG.info("%s is loaded in place of %s", wanted.bundle.version, former.version if former else "nothing")
                try:
                    return self._load(wanted, vacated, motion_allowed, cancelled)
                except BaseException as e:
                    self._go_back(wanted, vacated, former, lease, e)
                    raise
        finally:
            self.under_way = False

    def _vacate(self, wanted: Wanted, cancelled: Callable[[], bool]) -> None:
        """Let the acting generation leave. Raises SwapError, ControlError: it goes on acting."""
        waiting = self._waiting = _Waiting()
        try:
            if self._generations.closed:  # from now on :meth:`fail` is heard
                raise SwapError("CLOSED", "the node is shutting down")
            self._control.vacate(wanted.boundary, waiting.swap_id, wanted.timeout_s, wanted.cause)
            end_s = time.monotonic() + wanted.timeout_s + _ANSWER_S
            while not waiting.done.wait(_POLL_S) and time.monotonic() < end_s:
                if cancelled():
                    self.cancel()
        finally:
            self._waiting = None
        if waiting.error is not None:
            raise waiting.error
        if not waiting.done.is_set():
            raise SwapError("CONTROL_UNRESPONSIVE", "the control process does not answer")

    def _load(
        self, wanted: Wanted, vacated: Vacated, motion_allowed: Callable[[], bool], cancelled: Callable[[], bool]
    ) -> Report:
        forbidden = False

        def over() -> bool:
            nonlocal forbidden
            forbidden = forbidden or (wanted.cause == UPDATE and not motion_allowed())
            return forbidden or cancelled()

        try:
            resident = self._generations.load(wanted.bundle, over)
        except PolicyNodeError as e:
            if forbidden and e.code == "CANCELLED":
                raise SwapError("MOTION_DISABLED", "motion was disabled while it was loaded in place") from e
            raise
        return self._generations.let_act_in_place(
            resident, wanted.cause, wanted.timeout_s, vacated, wanted.lease_s if wanted.trial else None
        )

    def _go_back(
        self, wanted: Wanted, vacated: Vacated, former: Resident | None, lease: TrialLease | None, error: BaseException
    ) -> None:
        """Load again what acted before; if that fails, or it must not act again, hold and let the recovery see to it."""
        generations, why = self._generations, _loss(error)
        if generations.closed:
            return
        failed_way_back = lease is not None and wanted.cause in WAYS_BACK
        if former is not None and not failed_way_back:
            LOG.error("%s was not loaded in place (%s): %s is loaded again", wanted.bundle.version, why, former.version)
            try:
                resident = generations.load(OnDisk.of(former), lambda: generations.closed)
                lease_s = None if lease is None else lease.lease_s
                generations.let_act_in_place(resident, ROLLBACK, wanted.timeout_s, vacated, lease_s)
                return
            except _ERRORS as e:
                why = Loss(why.code, f"{why.text}; and {former.version} could not be loaded again: {_loss(e)}")
        with contextlib.suppress(ControlError):
            self._control.loading_failed()
        if former is not None:  # else it was lost before, and the recovery knows
            generations.give_up(former, lease, why)

    # -- from other threads ----------------------------------------------------------------------------------------

    def on_event(self, event: dict[str, Any]) -> bool:
        """Take the answer of the control process; false: it is about something else."""
        waiting, kind = self._waiting, event.get("type")
        if waiting is None or event.get("swap_id") != waiting.swap_id:
            return False
        if kind == "SWAP_FAILED":
            code, text = str(event.get("error_code")), str(event.get("message") or "the swap did not happen")
            waiting.error = SwapError(code, text)
        waiting.done.set()
        return True

    def cancel(self) -> None:
        """Take back what waits for its boundary; what is being loaded goes on."""
        waiting = self._waiting
        if waiting is not None:
            with contextlib.suppress(ControlError):
                self._control.cancel_activation(waiting.swap_id)

    def fail(self, code: str, message: str) -> None:
        """No answer will come any more."""
        waiting = self._waiting
        if waiting is not None:
            waiting.error = SwapError(code, message)
            waiting.done.set()


def manifest_of(bundle: OnDisk) -> Manifest:
    """Return the manifest in the folder of a bundle, which must still be the same. Raises CheckpointError, SwapError."""
    manifest = load_manifest(bundle.path)
    if manifest.digest != bundle.digest:
        raise SwapError("DIGEST_BUNDLE", f"{bundle.path} has digest {manifest.digest} by now, not {bundle.digest}")
    return manifest


def _loss(error: BaseException) -> Loss:
    return Loss(getattr(error, "code", "") or type(error).__name__, str(error))
