# SPDX-License-Identifier: Apache-2.0
"""An urgent update gets onto the disk while a trial runs, so that a broken one does not cost the robot its trial.

The update stays in the queue until the trial is over; what it has got is on the disk, and that is all that a restart needs.
The trial is looked after from within the work, several times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from vla_checkpoint import CheckpointError
from vla_ota_manager.acquire import Acquirer, Callbacks, end_of
from vla_ota_manager.context import Context, log
from vla_ota_manager.errors import CancelledError, OtaError
from vla_ota_manager.records import Update
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.state import TrialRecord, UpdateRecord

_S = UpdateState
_LOOK_S = 0.2
_SAVE_PERIOD_S = 5.0


class Prefetcher:
    """Works for the update that waits first, in the engine's thread.

    Args:
        context: shared parts of the engine.
        acquirer: does the work.
        look_after_trial: takes the trial one look further without waiting; false if it has ended or needs more than a look.
    """

    def __init__(self, context: Context, acquirer: Acquirer, look_after_trial: Callable[[], bool]) -> None:
        self._ctx, self._acquirer, self._look_after_trial = context, acquirer, look_after_trial
        self._store = context.store
        self._record: UpdateRecord | None = None
        self._callbacks = Callbacks(self._interrupted, self._show, self._on_fetched, self._on_verified)
        self._looked_at = self._saved_at = 0.0

    def work(self, update: Update, trial: TrialRecord) -> bool:
        """Go on until the bundle is complete and verified, then return true; false if something else has to be done before.

        An update that cannot be carried out ends here, with its code; the trial goes on.
        """
        record = self._record
        if record is None or record.update != update or (record.state is _S.INSTALLED and not self._is_there(record)):
            record = UpdateRecord(update, bytes_downloaded=self._store.state.downloaded(update.update_id))
        self._record = record
        try:
            self._acquirer.refuse_expired(update)
            while self._record.state is not _S.INSTALLED and self._record.ref != trial.ref:
                self._record, message = self._acquirer.step(self._record, self._callbacks)
                self._show(message)
        except CancelledError:
            self._save()
            return False
        except (OtaError, CheckpointError) as e:
            self._end(*end_of(e))
            return False
        except Exception as e:
            log.exception("an urgent update failed with an unexpected error")
            self._end(_S.FAILED, "INTERNAL_ERROR", repr(e))
            return False
        self._save()
        if self._record.ref == trial.ref:
            self._show(f"it is {trial.ref}, which is on trial: it waits until the trial ends")
        return self._record.ref != trial.ref

    def _is_there(self, record: UpdateRecord) -> bool:
        return record.ref is not None and self._store.has(record.ref)

    def _end(self, state: UpdateState, code: str, message: str) -> None:
        record = self._record
        assert record is not None
        update_id, version = record.update.update_id, record.ref.version if record.ref is not None else ""
        self._save()
        self._ctx.close_waiting(update_id, record.state, state, code, message, version)
        what = f"urgent update {update_id} is {state.name}, the trial goes on: {message}"
        self._ctx.show(what, OtaError(code, message))
        self._record = None
        if (
            state is _S.REJECTED or code == "DISK_FULL" or self._store.unsaved is not None
        ):  # then saving may need the space
            self._store.drop_downloads()

    # -- called from within the work ----------------------------------------------------------------------------------------

    def _interrupted(self) -> bool:
        queue, record = self._store.state.queue, self._record
        waits_first = bool(queue) and record is not None and queue[0] == record.update
        if self._ctx.interrupted() or not waits_first:  # a person has taken it back, or another one is more urgent
            return True
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return False
        self._looked_at = now
        goes_on = self._look_after_trial()
        self._ctx.report()
        return not goes_on

    def _show(self, message: str) -> None:
        if message and self._record is not None:
            update = self._record.update
            self._ctx.show(f"urgent update {update.update_id}, beside the trial: {message}")

    def _on_fetched(self, done: int, downloaded: int) -> None:
        record = self._record
        assert record is not None
        record.bytes_downloaded = downloaded
        if time.monotonic() - self._saved_at > _SAVE_PERIOD_S:
            self._save()
            self._show(f"{downloaded} bytes fetched")

    def _save(self) -> None:
        """Keep the count of bytes with the update, which has no record in ``state.json`` yet."""
        self._saved_at = time.monotonic()
        record = self._record
        assert record is not None
        update_id, count = record.update.update_id, record.bytes_downloaded
        if self._store.state.downloaded(update_id) != count:
            with self._store.edit(durable=False) as state:
                if update_id in state.seen and not state.seen[update_id].final:
                    state.seen[update_id] = replace(state.seen[update_id], bytes_downloaded=count)

    def _on_verified(self, share: float) -> None:
        pass  # nothing to tell: the status is the trial's
