# SPDX-License-Identifier: Apache-2.0
"""The update engine: one thread that carries updates, trials and commands on, over a store that survives it.

No ROS here. A node feeds it offers, scores, outcomes and commands from any thread, and publishes what it hands to ``on_status``
and ``on_event``. It can be killed at any moment; the next one on the same store goes on.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from typing import Any

from vla_checkpoint import CancelledCheckError, CheckpointError, Manifest, verify_bundle
from vla_ota_manager.acquire import Acquirer
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.context import Context, Live, log
from vla_ota_manager.errors import OfferError, OtaError, PolicyError, StoreError
from vla_ota_manager.experiment import ExperimentRunner
from vla_ota_manager.fetch.fetcher import Fetcher
from vla_ota_manager.operator_commands import Operator, RollbackRequest
from vla_ota_manager.port import PolicyPort, SwapRequest, SwapResult
from vla_ota_manager.prefetch import Prefetcher
from vla_ota_manager.records import (
    CommitReply,
    EpisodeResult,
    Event,
    ExperimentRequest,
    ListReply,
    Ref,
    Reply,
    RollbackReply,
    Score,
    Status,
    Update,
    UpdateOutcome,
)
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import Outcome, UpdateRecord
from vla_ota_manager.store.store import Store
from vla_ota_manager.trial.calibration import CalibrationKeeper
from vla_ota_manager.trial.runner import SLICE_S, TrialRunner
from vla_ota_manager.update import UpdatePipeline

_S = UpdateState
_QUEUE_SIZE = 16
_IDLE_S = 1.0
_STOP_S = 10.0
_BEAT_S = 5.0


class UpdateEngine:
    """Runs the updates of one policy.

    Args:
        config: settings.
        port: the policy node.
        on_status: called with every change of the status and at least every ``status_period_s`` while the engine is well. In a
            trial these are what renews the lease. Called from the engine's thread; must not block.
        on_event: called with every transition, likewise; also in the caller's thread of ``offer`` and ``cancel``.
        filesystem: how the store is written.
        wall_clock: seconds since 1970 UTC, for expiry and history.
        stamp_clock: the clock that stamps scores (ROS time) [s]; used when a swap reports no stamp.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        config: OtaConfig,
        port: PolicyPort,
        *,
        on_status: Callable[[Status], None] = lambda status: None,
        on_event: Callable[[Event], None] = lambda event: None,
        filesystem: Filesystem | None = None,
        wall_clock: Callable[[], float] = time.time,
        stamp_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        blob_dir = Path(config.blob_dir) if config.blob_dir else None
        self.store = Store(Path(config.store_dir), filesystem or Filesystem(), blob_dir)
        fetcher = Fetcher(config, self.store.blobs, rng)
        self._ctx = Context(config, self.store, port, fetcher, on_status, on_event, wall_clock, stamp_clock)
        self._acquirer = Acquirer(config, self.store, fetcher, wall_clock)
        self._pipeline = UpdatePipeline(self._ctx, self._acquirer)
        self._trials = TrialRunner(self._ctx)
        self._prefetcher = Prefetcher(self._ctx, self._acquirer, self._trials.look)
        self._experiments = ExperimentRunner(self._ctx)
        self._ctx.calls = self._experiments.calls
        self._operator = Operator(self._ctx, self._trials, self._experiments)
        self._calibration = CalibrationKeeper(self._ctx)
        self._commands: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._commands_lock = threading.Lock()
        self._next_activation = self._next_save = 0.0
        self._waiting = ""
        self._thread: threading.Thread | None = None

    # -- life ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the store, repair what a crash left, and go on with what was under way.

        Raises:
            StoreError: the store cannot be used; see ``Store.open``.
        """
        self.store.open()
        self._ctx.stopping.clear()
        self._thread = threading.Thread(target=self._run, name="vla_ota_engine", daemon=True)
        self._thread.start()
        self._ctx.scrubber.start()

    def stop(self) -> bool:
        """End properly: a restart goes on, and a trial counts no attempt. False if the thread did not end in time."""
        self._ctx.stopping.set()
        self._ctx.notify()
        self._ctx.scrubber.stop()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                return False
        self._fail_commands()
        self.store.close()
        return True

    @property
    def healthy(self) -> bool:
        """Whether the engine's thread is alive and moving. A status must not be repeated for one that is not."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and time.monotonic() - self._ctx.last_beat < _BEAT_S

    # -- inputs, from any thread --------------------------------------------------------------------------------------------

    def offer(self, update: Update) -> Reply:
        """Accept an update for later, once per ``update_id``, also over restarts. Saved when this returns.

        A malformed offer is refused with OFFER_INVALID, a repeated id with OFFER_REPEATED, a full queue with OFFER_QUEUE_FULL.
        """
        try:
            update.check()
            with self.store.edit() as state:
                if update.update_id in state.seen:
                    raise OfferError("OFFER_REPEATED", "has been offered before", f"update_id {update.update_id}")
                if len(state.queue) >= _QUEUE_SIZE:
                    raise OfferError("OFFER_QUEUE_FULL", f"{_QUEUE_SIZE} updates wait already", update.update_id)
                urgent = sum(
                    waiting.urgent for waiting in state.queue
                )  # they come first, in the order in which they came
                state.queue.insert(urgent if update.urgent else len(state.queue), update)
                state.seen[update.update_id] = Outcome(_S.IDLE, update.version)
        except OtaError as e:
            if e.code != "OFFER_REPEATED":
                self._ctx.refuse(update, e)
            return Reply(False, e.code, e.message)
        self._ctx.notify()
        return Reply(True, "", "accepted")

    def outcome(self, update_id: str) -> UpdateOutcome | None:
        """Return how an update stands, or None if its id was never offered (or too long ago)."""
        state = self.store.state
        outcome = state.seen.get(update_id)
        if outcome is None:
            return None
        downloaded = outcome.bytes_downloaded
        if state.update is not None and state.update.update.update_id == update_id:
            downloaded = max(downloaded, self._ctx.live.bytes_downloaded, state.update.bytes_downloaded)
        return UpdateOutcome(
            update_id, outcome.state, outcome.final, outcome.version, outcome.code, outcome.message, downloaded
        )

    def cancel(self, update_id: str) -> Reply:
        """Ask for an update to be given up; accepted until SWAPPING. It ends as CANCELLED a moment later."""
        if self._ctx.close_waiting(update_id, _S.IDLE, _S.CANCELLED, "CANCELLED", "cancelled before it began"):
            return Reply(True, "", "cancelled before it began")
        record = self.store.state.update
        if record is None or record.update.update_id != update_id:
            return Reply(False, "NO_SUCH_UPDATE", f"update_id: {update_id} is neither waiting nor under way")
        if record.state not in PIPELINE:
            return Reply(False, "UNCANCELLABLE", f"update_id: {update_id} is in {record.state.name} already")
        self._ctx.request_cancel(update_id, "CANCELLED", "cancelled on request")
        with self.store.edit(durable=False) as state:  # once a transition is over that may not have seen it
            record = state.update
        if record is not None and record.update.update_id == update_id and record.state not in PIPELINE:
            return Reply(False, "UNCANCELLABLE", f"update_id: {update_id} is in {record.state.name} already")
        return Reply(True, "", "will be cancelled")

    def rollback(
        self, version: str = "", reason: str = "", expected_from_version: str = "", timeout_s: float = 120.0
    ) -> RollbackReply:
        """Go back to ``version`` (empty: the previous one, or in a trial the committed one) and wait for it.

        An update that has not been swapped in yet is cancelled by it. Asked for while another one is under way, an empty request
        goes where that one goes, and no further.
        """
        request = RollbackRequest(version, reason, expected_from_version, self._operator.meant(), time.monotonic())
        reply: RollbackReply | Reply = self._command(lambda: self._operator.rollback(request), timeout_s)
        return reply if isinstance(reply, RollbackReply) else RollbackReply(False, reply.error_code, reply.message)

    def commit(self, expected_version: str = "", reason: str = "", timeout_s: float = 30.0) -> CommitReply:
        """Commit the version on trial now."""
        reply: CommitReply | Reply = self._command(lambda: self._operator.commit(expected_version, reason), timeout_s)
        return reply if isinstance(reply, CommitReply) else CommitReply(False, reply.error_code, reply.message)

    def assign_experiment(self, request: ExperimentRequest, timeout_s: float = 120.0) -> Reply:
        """Take part in an experiment by episode and wait until both versions are loaded; or no longer. May be repeated."""
        deadline = time.monotonic() + timeout_s
        reply: Reply = self._command(lambda: self._experiments.assign(request), timeout_s)
        return self._experiments.wait(request.experiment, deadline) if reply.success and request.versions else reply

    def pin(self, version: str = "", *, unpin: bool = False) -> ListReply:
        """Keep a version (empty: the committed one) on disk whatever retention says, or no longer."""
        return self._list_command(lambda: self._operator.pin(version, unpin))

    def unblock(self, version: str) -> ListReply:
        """Allow a version again that a verdict had rolled back."""
        return self._list_command(lambda: self._operator.unblock(version))

    def list_models(self, name: str = "") -> ListReply:
        """Return what is on disk, and the last transitions."""
        return self._list_command(lambda: self._operator.list_models(name))

    def on_score(self, score: Score) -> None:
        """Take in an anomaly score; one that is no evidence is dropped, counted and logged."""
        self._ctx.put(score)

    def on_outcome(self, result: EpisodeResult) -> None:
        """Take in the outcome of an episode, likewise: it counts only if the policy node's status has named that episode."""
        self._ctx.put(result)

    @property
    def evidence_dropped(self) -> tuple[int, str]:
        """How many scores and outcomes were no evidence, and why the last one was not."""
        return self._ctx.inbox.dropped, self._ctx.inbox.fault

    def on_policy_status(self) -> None:
        """Say that ``port.status()`` has something new; to be called for each status, before the next one is taken in."""
        self._ctx.inbox.look()
        self._ctx.notify()

    def set_update_permitted(self, permitted: bool | None, lasts_s: float = math.inf) -> None:
        """Say whether swaps to new versions may happen; None = the topic is stale or was never heard."""
        self._ctx.gate.set_permitted(permitted, lasts_s)
        self._ctx.notify()

    def set_updates_allowed(self, allowed: bool) -> None:
        """Forbid every swap to another version, whatever ``set_update_permitted`` says, or no longer."""
        self._ctx.gate.set_allowed(allowed)
        self._ctx.notify()

    @property
    def robot_type(self) -> str:
        """The robot's type, as configured, else that of the committed bundle; "" if neither is there."""
        committed = self.store.state.committed
        found = [entry.robot_type for entry in self.store.installed() if entry.ref == committed]
        return self.config.robot_type or next(iter(found), "")

    def status(self) -> Status:
        """Return the status as it is now."""
        return self._ctx.status()

    @property
    def damaged(self) -> dict[str, str]:
        """Versions on disk that were found damaged, and what is wrong with them."""
        return {path.name: what for path, what in self._ctx.scrubber.damaged.items()}

    def import_bundle(self, folder: Path, *, commit: bool = True) -> Ref:
        """Adopt a bundle that is on this machine (a factory image) and, with ``commit``, vouch for it. Before ``start`` only."""
        self.store.open()
        try:
            return self.store.import_bundle(folder, self._verify, commit=commit)
        finally:
            self.store.close()

    def _verify(self, folder: Path) -> Manifest:
        """Check a bundle that was not offered as strictly as one that was."""
        manifest = verify_bundle(
            folder,
            scan_values=self.config.scan_values,
            progress=(lambda _count: self._ctx.report()) if self._thread is not None else None,
            cancel=self._ctx.stopping.is_set,
        ).manifest
        self._acquirer.refuse_unsuitable(Update(update_id="", manifest_url=""), manifest)
        return manifest

    # -- commands -----------------------------------------------------------------------------------------------------------

    def _command(self, work: Callable[[], Any], timeout_s: float) -> Any:
        if self._thread is None or not self._thread.is_alive():
            return Reply(False, "ENGINE_STOPPED", "the update engine does not run")
        future: Future[Any] = Future()
        with self._commands_lock:
            self._commands.append((work, future))
            self._ctx.urgent_work = len(self._commands)
        self._ctx.notify()
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            return Reply(False, "COMMAND_TIMEOUT", f"not finished after {timeout_s:g} s; it goes on")

    def _list_command(self, work: Callable[[], ListReply]) -> ListReply:
        try:
            return work()
        except OtaError as e:
            return ListReply(False, e.code, e.message)

    def _run_commands(self) -> None:
        while True:
            with self._commands_lock:
                if not self._commands:
                    return
                work, future = self._commands.pop(0)
                self._ctx.urgent_work = len(self._commands)
            try:
                future.set_result(work())
            except OtaError as e:
                future.set_result(Reply(False, e.code, e.message))
            except Exception as e:
                log.exception("a command failed")
                future.set_result(Reply(False, "INTERNAL_ERROR", repr(e)))

    def _fail_commands(self) -> None:
        with self._commands_lock:
            pending, self._commands = self._commands, []
            self._ctx.urgent_work = 0
        for _, future in pending:
            future.set_result(Reply(False, "ENGINE_STOPPED", "the update engine was stopped"))

    # -- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._guarded(self._adopt_factory_bundle)
        self._guarded(self._recover)
        while not self._ctx.stopping.is_set():
            self._guarded(self._step)
        self._guarded(self._park)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something; what goes wrong with the disk is shown and tried again, the engine never dies of it."""
        try:
            work()
        except OtaError as e:
            self._ctx.show(str(e), e)
            self._ctx.wait(_IDLE_S)
        except Exception as e:
            log.exception("the update engine stumbled")
            self._ctx.show(f"internal error: {e!r}", OtaError("INTERNAL_ERROR", repr(e)))
            self._ctx.wait(_IDLE_S)

    def _adopt_factory_bundle(self) -> None:
        """Commit what the robot runs before its first update. A bad one is reported, and the engine goes on without."""
        state, folder = self.store.state, self.config.factory_bundle
        there = state.committed is not None and self.store.has(state.committed)
        if not folder or there or state.trial is not None:
            return
        self._ctx.show(f"verifying the factory bundle {folder}")
        try:
            ref = self.store.import_bundle(Path(folder).expanduser(), self._verify, commit=True)
        except CancelledCheckError:
            return  # stopping; the next start does it
        except (OtaError, CheckpointError, OSError) as e:
            error = OtaError(getattr(e, "code", "STORE_IO"), e.message if isinstance(e, OtaError) else str(e))
            name = state.state.name
            message = f"factory_bundle: {error.reason}"
            self._ctx.announce(Event(self._ctx.wall_clock(), "", name, name, "", error.code, message))
            self._ctx.show(message, error)
            return
        self._ctx.show(f"the factory bundle {ref} is committed")

    def _recover(self) -> None:
        for note in self.store.recovery_notes:
            name = self.store.state.state.name
            self._ctx.announce(Event(self._ctx.wall_clock(), "", name, name, "", "STATE_CORRUPT", note))
        self._trials.recover()
        self._ctx.report(force=True)

    def _step(self) -> None:
        self._save_late()
        self._run_commands()
        self._experiments.step(rests=self.store.state.update is None and self.store.state.trial is None)
        if self.store.state.rollback is not None:
            self._operator.resume_rollback()
        elif self.store.state.trial is not None:
            if self.store.state.state is _S.SWAPPING:  # the last that is heard of the committed version
                self._calibration.collect()
                self._calibration.save()
            self._trials.step()
            self._replace_trial()
        elif self.store.state.update is not None:
            self._calibration.save()
            self._pipeline.run()
        elif self.store.state.queue and not self._waits_for_experiment():
            self._begin_update()
        else:
            self._idle()

    def _save_late(self) -> None:
        """Save what a disk did not take, as soon as it does."""
        now = time.monotonic()
        if self.store.unsaved is not None and now >= self._next_save:
            self._next_save = now + _IDLE_S
            with suppress(StoreError):  # the status tells
                self.store.save_late()

    def _begin_update(self) -> None:
        queued = self.store.state.queue[0]
        with self._ctx.transition(_S.CHECKING, version=queued.version) as state:
            update = state.queue.pop(0)
            state.update = UpdateRecord(update, bytes_downloaded=state.downloaded(update.update_id))
            self._ctx.live = Live()

    def _waits_for_experiment(self) -> bool:
        """Whether the next update would let another version act while an experiment runs. An urgent one ends it."""
        experiment, update = self.store.state.running_experiment, self.store.state.queue[0]
        if experiment is None or not update.activate:
            return False
        what = update.version or update.update_id
        if update.urgent:
            self._experiments.end("SUPERSEDED", f"the urgent update {what} takes its place")
            return False
        self._ctx.show(f"{what} waits until experiment {experiment.experiment} ends")
        return True

    def _replace_trial(self) -> None:
        """Let an urgent update of another version end the running trial once it could be prepared; others wait."""
        state = self.store.state
        trial = state.trial
        if trial is None or trial.phase is not _S.TRIAL or not state.queue:
            if self._waiting and self._ctx.live.message == self._waiting:
                self._ctx.unshow()  # what waited was taken back
            self._waiting = ""
            return
        update = state.queue[0]
        what = update.version or update.update_id
        if not (update.urgent and update.activate):
            self._waiting = f"{what} waits until the trial of {trial.ref.version} ends"
            self._ctx.show(self._waiting)
        elif not self._prefetcher.work(update, trial):
            return
        elif hindrance := self._ctx.gate.hindrance():
            self._waiting = f"the urgent {what} is on disk and waits for {hindrance}; the trial goes on"
            self._ctx.show(self._waiting)
        else:
            self._trials.roll_back("SUPERSEDED", f"replaced by the urgent update {update.update_id}", block=False)

    def _idle(self) -> None:
        self._calibration.collect()
        if self.store.state.activation_due:
            self._confirm_activation()
        if self.store.unsaved is None:
            self.store.repair_current()
        self._ctx.wait(_IDLE_S)

    def _confirm_activation(self) -> None:
        """Tell the policy node that the committed version acts for good (its lease ends), or let it act if it does not."""
        committed, snapshot = self.store.state.committed, self._ctx.gate.policy()
        if committed is None or snapshot is None or time.monotonic() < self._next_activation:
            return
        experiment = self.store.state.running_experiment
        if experiment is not None and snapshot.active_digest == experiment.b.digest:
            return  # by a draw
        acts, way_back = snapshot.active_digest == committed.digest, self.store.unsaved is not None
        # Only a way back is committed without being saved, and a way back waits for no permission.
        hindrance = "" if way_back else self._ctx.gate.hindrance(permitted=acts or self._ctx.gate.permitted())
        if hindrance:
            if not acts:
                self._ctx.show(f"{committed} is committed and waits for {hindrance}")
            return
        timeout_s = min(self.config.swap_timeout_s, SLICE_S)
        cause = "ROLLBACK" if way_back else "UPDATE"
        request = SwapRequest(committed.digest, at=self.config.swap_at, cause=cause, timeout_s=timeout_s)
        try:
            result = self._ctx.gate.activate(committed, request, self._ctx.interrupted)
        except PolicyError as e:
            result = SwapResult.failed(e)
        if result.success and not way_back:
            with self.store.edit() as state:
                state.activation_due = False
            self._ctx.unshow()
        elif result.success:
            self._next_activation = time.monotonic() + self.config.trial_lease_s / 4  # until it is saved
        elif result.error_code == "SWAP_TIMEOUT":
            self._ctx.show_asked(f"{committed} is committed and waits for a boundary ({self.config.swap_at})")
        else:
            error = StoreError(result.error_code or "SWAP_FAILED", result.message)
            self._ctx.show(f"policy_node does not run the committed {committed}: {result.message}", error)
            self._next_activation = time.monotonic() + self.config.trial_lease_s / 4

    def _park(self) -> None:
        self._trials.park()
        self._calibration.save()
