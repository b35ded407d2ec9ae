# SPDX-License-Identifier: Apache-2.0
"""What a person may ask of the robot's store: go back, commit, pin, unblock, list."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vla_ota_manager.context import Context
from vla_ota_manager.errors import CommandError, OtaError, RefusedError, StoreError
from vla_ota_manager.experiment import ExperimentRunner
from vla_ota_manager.port import SwapResult
from vla_ota_manager.records import CommitReply, Event, ListReply, ModelEntry, Ref, RollbackReply
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.store.state import Block, RollbackRecord
from vla_ota_manager.trial.runner import TrialRunner
from vla_ota_manager.way_back import WayBack
from vla_ros.fault import Fault

_S = UpdateState
_BUSY_S = 0.2


@dataclass(frozen=True)
class RollbackRequest:
    """What an operator asked for."""

    version: str
    reason: str
    expected_from_version: str
    meant: Ref | None
    """What an empty ``version`` meant when it was asked for; see :meth:`Operator.meant`."""
    asked_at: float
    """By the monotonic clock [s]."""


class Operator:
    """Commands. ``rollback``, ``resume_rollback`` and ``commit`` run in the engine's thread, the others in any."""

    def __init__(self, context: Context, trials: TrialRunner, experiments: ExperimentRunner) -> None:
        self._ctx = context
        self._store = context.store
        self._trials, self._experiments = trials, experiments

    # -- rollback -----------------------------------------------------------------------------------------------------------

    def meant(self) -> Ref | None:
        """Return what a rollback that names no version goes to as things stand now; from any thread.

        It counts from the moment of the request: by the time it is carried out another rollback, a verdict or a commit may have
        come first, and a further step back is not what was asked for.
        """
        state = self._store.state
        if state.rollback is not None:
            return state.rollback.target
        tried = state.trial is not None or state.running_experiment is not None
        return state.committed if tried else state.previous

    def rollback(self, request: RollbackRequest) -> RollbackReply:
        """Go back to a version on disk. Blocks nothing, and no permission is asked for."""
        from_version = self._acting()
        try:
            target = self._target(request, from_version)
        except OtaError as e:
            message = e.message if e.code != "NO_PREVIOUS" else f"{e.message}{self._withdraw()}"
            return RollbackReply(False, e.code, message, from_version, "")
        self._cancel_update()
        self._experiments.end("OPERATOR_ROLLBACK", request.reason or "an operator asked for a rollback")
        if self._acts_for_good(target):
            took = time.monotonic() - request.asked_at
            return RollbackReply(True, "", f"{target.version} acts already", from_version, target.version, took, True)
        self._accept(target, request, from_version)
        return self.resume_rollback(request.asked_at)

    def _cancel_update(self) -> bool:
        record = self._store.state.update
        if record is None or record.state not in PIPELINE:
            return False
        message = "an operator asked for a rollback"
        with self._ctx.transition(_S.CANCELLED, code="SUPERSEDED", message=message, final=True, durable=False):
            pass
        return True

    def _withdraw(self) -> str:
        """Give up what does not act yet though there is nothing to go back to; return that in words."""
        trial = self._store.state.trial
        if trial is not None and trial.phase is _S.SWAPPING:
            self._trials.roll_back("OPERATOR_ROLLBACK", "an operator asked for a rollback before it acted", block=False)
        elif not self._cancel_update():
            return ""
        return "; the update is cancelled"

    def _acting(self) -> str:
        state, snapshot = self._store.state, self._ctx.gate.policy()
        if snapshot is not None and snapshot.active_version:
            return snapshot.active_version
        ref = state.trial.ref if state.trial is not None else state.committed
        return ref.version if ref is not None else ""

    def _acts_for_good(self, target: Ref) -> bool:
        state, snapshot = self._store.state, self._ctx.gate.policy()
        if state.trial is not None or state.rollback is not None or state.committed != target:
            return False
        return snapshot is not None and snapshot.active_digest == target.digest and not snapshot.on_trial

    def _target(self, request: RollbackRequest, acting: str) -> Ref:
        state, expected_from = self._store.state, request.expected_from_version
        if expected_from and expected_from != acting:
            raise CommandError(
                "EXPECTATION_FAILED", f"is {expected_from}, but {acting or 'nothing'} acts", "expected_from_version"
            )
        version = request.version
        target = self._store.find(version) if version else request.meant or self.meant()
        if target is None and not version:
            raise CommandError("NO_PREVIOUS", "there is no version to go back to")
        if target is None:
            raise StoreError("MODEL_NOT_FOUND", "is not complete on disk", f"version {version}")
        if state.trial is not None and target.digest == state.trial.ref.digest:
            raise CommandError("ON_TRIAL", "is on trial; commit_model would keep it", f"version {target.version}")
        block = state.blocks(target.name, target.version, target.digest)
        if block is not None:
            raise RefusedError("VERSION_BLOCKED", f"was rolled back: {block.reason}", f"version {target.version}")
        return target

    def _accept(self, target: Ref, request: RollbackRequest, from_version: str) -> None:
        reason = request.reason or "an operator asked for it"
        message = f"back to {target.version}: {reason}"
        trial = self._store.state.trial
        code = "OPERATOR_ROLLBACK" if trial is not None else ""
        with self._ctx.transition(_S.ROLLING_BACK, code=code, message=message, durable=False) as state:
            state.rollback = RollbackRecord(target, reason, from_version, named=bool(request.version))
            if trial is not None:
                if trial.block:  # a verdict had been reached already
                    state.blocked[trial.ref.digest] = Block(
                        trial.ref, f"{trial.code}: {trial.reason}", self._ctx.wall_clock()
                    )
                state.trial = None
                self._trials.forget()

    def resume_rollback(self, asked_at: float = 0.0) -> RollbackReply:
        """Carry an accepted rollback out, also after a crash. ``asked_at``: when it was asked for, by the monotonic clock [s]."""
        record = self._store.state.rollback
        if record is None:
            return RollbackReply(False, "NO_PREVIOUS", "no rollback is under way")
        asked_at = asked_at or time.monotonic()
        way = WayBack(self._ctx, record.target, older=not record.named)
        deadline = time.monotonic() + self._ctx.config.swap_timeout_s
        while (result := way.take()).fault is Fault.BUSY and time.monotonic() < deadline:
            if result.error_code == "POLICY_ABSENT":
                break  # it will start with what is committed
            self._ctx.show_asked(f"going back to {way.ref}: {result.error_code}")
            self._ctx.wait(_BUSY_S)
        took = time.monotonic() - asked_at
        if self._ctx.stopping.is_set() and not result.success:
            return RollbackReply(False, "ENGINE_STOPPED", "goes on at the next start", record.from_version, "")
        if result.success or result.error_code == "POLICY_ABSENT":
            return self._finish(record, way, result, took)
        message = f"policy_node did not swap to {way.ref}: {result.message}"
        code = result.error_code or "SWAP_FAILED"
        with self._ctx.transition(_S.FAILED, code=code, message=message, final=True, durable=False) as state:
            state.rollback = None
            state.activation_due = True
        return RollbackReply(False, code, message, record.from_version, self._acting())

    def _finish(self, record: RollbackRecord, way: WayBack, result: SwapResult, took: float) -> RollbackReply:
        target = way.ref
        how = "a pointer moved" if result.warm else "loaded from disk"
        if result.success and record.from_version == target.version:
            message = f"{target.version} acts: {record.reason}"
        elif result.success:
            message = f"{record.from_version or 'nothing'} -> {target.version} ({how}): {record.reason}"
        else:
            absent = f"policy_node {self._ctx.gate.absence()} and will start with it"
            message = f"{target.version} is committed, {absent}: {record.reason}"
        message = self._ctx.after_going_back(f"{message}; {way.skipped}" if way.skipped else message, target)
        code = "OPERATOR_ROLLBACK" if self._store.state.update is not None else ""
        code = code if result.success else "POLICY_ABSENT"
        with self._ctx.transition(
            _S.ROLLED_BACK,
            code=code,
            message=message,
            version=target.version,
            final=True,
            point_current=True,
            durable=False,
        ) as state:
            if state.committed is None or state.committed.digest != target.digest:
                state.note_rolled_back(target)
            state.rollback = None
            # what a restart would not know of is confirmed until it would
            state.activation_due = not result.success or self._store.unsaved is not None
        unsaved = self._store.unsaved
        if unsaved is not None:
            message = f"{message}; not on the disk yet: {unsaved}"
        return RollbackReply(
            result.success, result.error_code, message, record.from_version, target.version, took, result.warm
        )

    # -- commit -------------------------------------------------------------------------------------------------------------

    def commit(self, expected_version: str, reason: str) -> CommitReply:
        """Commit the version on trial on a person's responsibility."""
        state = self._store.state
        committed = state.committed.version if state.committed is not None else ""
        trial = state.trial
        if trial is None or trial.phase is not _S.TRIAL:
            return CommitReply(False, "NO_TRIAL", "no version is on trial", committed)
        if expected_version and expected_version != trial.ref.version:
            what = f"expected_version: is {expected_version}, but {trial.ref.version} is on trial"
            return CommitReply(False, "EXPECTATION_FAILED", what, committed)
        snapshot = self._ctx.gate.policy()
        if snapshot is None:
            what = f"policy_node {self._ctx.gate.absence()}: it is not known what acts"
            return CommitReply(False, "POLICY_ABSENT", what, committed)
        if snapshot.active_digest != trial.ref.digest or not snapshot.on_trial:
            what = f"policy_node runs {snapshot.active_version or 'nothing'}, and not {trial.ref.version} on trial"
            return CommitReply(False, "NO_TRIAL", what, committed)
        self._trials.commit(f"committed by an operator: {reason or 'no reason given'}")
        return CommitReply(True, "", f"{trial.ref} is committed", trial.ref.version)

    # -- any thread ---------------------------------------------------------------------------------------------------------

    def pin(self, version: str, unpin: bool) -> ListReply:
        """Keep a version on disk, or no longer. Freezes nothing."""
        ref = self._store.find(version) if version else self._store.state.committed
        if ref is None and unpin:
            ref = next((pinned for pinned in self._store.state.pinned if pinned.version == version), None)
        if ref is None:
            return ListReply(
                False, "MODEL_NOT_FOUND", f"version {version or '(committed)'} is not complete on disk", self._pinned()
            )
        with self._store.edit() as state:
            state.pinned = [pinned for pinned in state.pinned if pinned.digest != ref.digest]
            if not unpin:
                state.pinned.append(ref)
        self._ctx.notify()
        return ListReply(True, "", f"{ref} is {'not pinned' if unpin else 'pinned'}", self._pinned())

    def _pinned(self) -> tuple[str, ...]:
        return tuple(ref.version for ref in self._store.state.pinned)

    def unblock(self, version: str) -> ListReply:
        """Allow a version again that a verdict had rolled back."""
        with self._store.edit() as state:
            matches = [digest for digest, block in state.blocked.items() if version and block.ref.version == version]
            for digest in matches:
                name, now = state.blocked.pop(digest).ref.name, self._ctx.wall_clock()
                state.attempts.pop(digest, None)
                at = state.state.name
                state.history.append(Event(now, "", at, at, version, message="unblocked", name=name))
            blocked = tuple(block.ref.version for block in state.blocked.values())
        self._ctx.notify()
        if not version:
            return ListReply(False, "MODEL_NOT_FOUND", "version: is required", blocked)
        return ListReply(True, "", f"{version} is {'allowed again' if matches else 'not blocked'}", blocked)

    def list_models(self, name: str) -> ListReply:
        """Return what is on disk and what happened."""
        state, snapshot = self._store.state, self._ctx.gate.policy()
        models = tuple(
            ModelEntry(
                ref=entry.ref,
                size_bytes=entry.size_bytes,
                path=str(entry.path),
                installed_s=entry.installed_s,
                committed=entry.ref == state.committed,
                previous=entry.ref == state.previous,
                active=snapshot is not None and snapshot.active_digest == entry.ref.digest,
                on_trial=state.trial is not None and state.trial.ref == entry.ref,
                pinned=entry.ref in state.pinned,
                blocked=(block := state.blocks(entry.ref.name, entry.ref.version, entry.ref.digest)) is not None,
                block_reason=block.reason if block is not None else "",
            )
            for entry in self._store.installed()
            if name in ("", entry.ref.name)
        )
        history = tuple(event.to_line() for event in state.history if name in ("", event.name))
        return ListReply(True, models=models, history=history, free_bytes=self._store.fs.free_bytes(self._store.root))
