# SPDX-License-Identifier: Apache-2.0
"""One update from CHECKING to SWAPPING: everything that happens before the robot notices.

Each step reads the saved record, works, and ends with a transition. So a restart goes on with the step that was under way, and
what it had already put on the disk is found there. The work that gets a bundle onto the disk is in ``acquire.py``.
"""

from __future__ import annotations

import time

from vla_checkpoint import CheckpointError
from vla_ota_manager.acquire import STEPS, Acquirer, Callbacks, end_of, ref_of
from vla_ota_manager.context import Context, log
from vla_ota_manager.errors import CancelledError, OtaError, PolicyError, RefusedError
from vla_ota_manager.fetch.pace import pause
from vla_ota_manager.port import PrepareResult
from vla_ota_manager.records import Ref
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.store.state import TrialRecord, UpdateRecord
from vla_ros.fault import Fault

_S = UpdateState
_SAVE_PERIOD_S = 5.0
_ASK_AGAIN_S = 1.0


class UpdatePipeline:
    """Carries the update in progress on until it ends, is interrupted, or is about to be swapped in."""

    def __init__(self, context: Context, acquirer: Acquirer) -> None:
        self._ctx, self._acquirer = context, acquirer
        context.is_signed = acquirer.is_signed
        self._config = context.config
        self._store = context.store
        self._callbacks = Callbacks(context.interrupted, context.show, self._on_fetched, self._on_verified)
        self._saved_at = 0.0

    def run(self) -> None:
        """Work on the update in progress, which must be in one of the states before SWAPPING."""
        try:
            while (record := self._store.state.update) is not None and record.state in PIPELINE:
                if self._ctx.interrupted():
                    raise CancelledError("CANCELLED", "interrupted")
                if record.state in STEPS:
                    self._acquire(record)
                else:
                    self._activate(record)
        except CancelledError:
            self._interrupted()
        except (OtaError, CheckpointError) as e:
            self._end(*end_of(e))
        except Exception as e:
            log.exception("an update failed with an unexpected error")
            self._end(_S.FAILED, "INTERNAL_ERROR", repr(e))

    def _interrupted(self) -> None:
        request = self._ctx.cancelled()
        if request is not None:
            self._end(_S.CANCELLED, request[0], request[1])
        # else the engine stops, or has a command to carry out first: the record says where to go on

    def _end(self, state: UpdateState, code: str, message: str) -> None:
        """Close the update. What failed or was cancelled keeps its downloads; what was rejected, or fills the disk, does not."""
        with self._ctx.transition(state, code=code, message=message, final=True, durable=False):
            pass
        if (
            state is _S.REJECTED or code == "DISK_FULL" or self._store.unsaved is not None
        ):  # then saving may need the space
            self._store.drop_downloads()
        self._store.retain(self._config.keep_versions)

    # -- CHECKING, FETCHING, VERIFYING --------------------------------------------------------------------------------------

    def _acquire(self, record: UpdateRecord) -> None:
        after, message = self._acquirer.step(record, self._callbacks)
        activate, installed = record.update.activate, after.state is _S.INSTALLED
        again = installed and activate and after.ref == self._store.state.committed
        end, message = (_S.COMMITTED, f"{after.ref} is the committed version") if again else (after.state, message)
        with self._ctx.transition(end, message=message, final=again or (installed and not activate)) as draft:
            draft.update = after
            draft.activation_due = draft.activation_due or again
        if installed:
            self._store.blobs.release(set())
            self._store.retain(self._config.keep_versions)

    def _on_fetched(self, done: int, downloaded: int) -> None:
        record, live = self._store.state.update, self._ctx.live
        if record is None:
            return
        live.bytes_done, live.bytes_downloaded = done, downloaded
        live.progress = done / max(1, record.bytes_total)
        if time.monotonic() - self._saved_at > _SAVE_PERIOD_S:
            self._saved_at = time.monotonic()
            with self._store.edit(durable=False) as draft:
                if draft.update is not None:
                    draft.update.bytes_downloaded = downloaded
        self._ctx.report()

    def _on_verified(self, share: float) -> None:
        self._ctx.live.progress = share
        self._ctx.report()

    # -- INSTALLED, PREPARING, SHADOW ---------------------------------------------------------------------------------------

    def _activate(self, record: UpdateRecord) -> None:
        ref = ref_of(record)
        if record.state is not _S.INSTALLED:
            with self._ctx.transition(_S.INSTALLED, message="the preparation begins anew"):
                pass
        self._acquirer.refuse_blocked(ref)
        deadline = time.monotonic() + self._config.policy_wait_s
        self._wait_until_possible(record, deadline, motion=False)
        with self._ctx.transition(_S.PREPARING):
            pass
        while not (result := self._prepare(ref, skip_shadow=record.update.urgent)).success:
            if result.fault is Fault.BUNDLE:
                raise RefusedError(result.error_code, f"policy_node refuses it: {result.message}", str(ref))
            if result.fault is not Fault.BUSY:
                raise PolicyError(result.error_code, result.message, "prepare_model")
            self._ctx.show_asked(f"policy_node: {result.error_code} {result.message}")
            pause(_ASK_AGAIN_S, self._ctx.interrupted)
            # In shadow it is compared with what acts, and nothing acts while motion is disabled.
            in_shadow = result.error_code == "SHADOW_INCOMPLETE"
            if self._wait_until_possible(record, deadline, motion=in_shadow) and in_shadow:
                deadline = time.monotonic() + self._config.policy_wait_s
            elif time.monotonic() > deadline:
                raise PolicyError(result.error_code, result.message, "prepare_model")
        self._wait_for_the_swap(record)
        with self._ctx.transition(_S.SWAPPING) as draft:
            if self._ctx.cancelled():  # the last moment for it; see UpdateEngine.cancel
                raise CancelledError("CANCELLED", "stopped on request")
            draft.trial = TrialRecord(ref, record.update.update_id, first_install=draft.committed is None)

    def _wait_for_the_swap(self, record: UpdateRecord) -> None:
        """Wait until a swap is possible and, by a look at the last moment, the version was not taken back."""
        while True:
            self._wait_until_possible(record, time.monotonic() + self._config.policy_wait_s)
            self._acquirer.refuse_withdrawn(record, self._callbacks)
            if not self._ctx.gate.hindrance():  # the look may have taken a while
                return

    def _prepare(self, ref: Ref, *, skip_shadow: bool) -> PrepareResult:
        result = self._ctx.gate.prepare(ref, self._on_prepare, self._ctx.interrupted, skip_shadow=skip_shadow)
        if self._ctx.interrupted():
            raise CancelledError("CANCELLED", "stopped on request")
        return result

    def _on_prepare(self, name: str, progress: float) -> None:
        if name == "SHADOW" and self._store.state.state is _S.PREPARING:
            with self._ctx.transition(_S.SHADOW):
                pass
        self._ctx.live.progress = progress
        self._ctx.show(f"policy_node: {name}")

    def _wait_until_possible(self, record: UpdateRecord, deadline: float, *, motion: bool = True) -> bool:
        """Wait for a policy node that lives, for permission to change what it runs and, if asked, for motion to be enabled.

        Returns whether it had to wait.
        """
        had_to_wait = False
        while True:
            self._acquirer.refuse_expired(record.update)
            if self._ctx.interrupted():
                raise CancelledError("CANCELLED", "stopped on request")
            if self._ctx.gate.policy() is None and time.monotonic() > deadline:
                waited = f"{self._ctx.gate.absence()}; waited for {self._config.policy_wait_s:g} s"
                raise PolicyError("POLICY_ABSENT", waited, "policy_node")
            hindrance = self._ctx.gate.hindrance(motion=motion)
            if not hindrance:
                return had_to_wait
            had_to_wait = True
            self._ctx.show(f"{ref_of(record)} waits for {hindrance}")
            self._ctx.wait(0.2)
