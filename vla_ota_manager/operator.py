# SPDX-License-Identifier: Apache-2.0
"""What a person may ask of the robot's store: go back, commit, pin, unblock, list."""

from __future__ import annotations

import time
from dataclasses import replace

from vla_ota_manager.context import Context
from vla_ota_manager.errors import CommandError, OtaError, PolicyError, RefusedError, StoreError
from vla_ota_manager.port import PolicySnapshot, SwapRequest, SwapResult
from vla_ota_manager.records import CommitReply, Event, ListReply, ModelEntry, Ref, RollbackReply
from vla_ota_manager.state import Block, RollbackRecord
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.trial_run import TrialRunner

_S = UpdateState
_BUSY = frozenset({"SWAP_IN_PROGRESS", "PREPARE_IN_PROGRESS", "TRIAL_RUNNING"})
_BUSY_S = 0.2


class Operator:
    """Commands. ``rollback``, ``resume_rollback`` and ``commit`` run in the engine's thread, the others in any."""

    def __init__(self, context: Context, trials: TrialRunner) -> None:
        self._ctx = context
        self._store = context.store
        self._trials = trials

    # -- rollback -----------------------------------------------------------------------------------------------------------

    def rollback(self, version: str, reason: str, expected_from_version: str) -> RollbackReply:
        """Go back to a version on disk. Blocks nothing, and no permission is asked for."""
        begun = time.monotonic()
        from_version = self._acting()
        try:
            target = self._target(version, expected_from_version, from_version)
        except OtaError as e:
            return RollbackReply(False, e.code, e.message, from_version, "")
        self._cancel_update()
        self._accept(target, reason, from_version)
        reply = self.resume_rollback()
        return replace(reply, duration_s=reply.duration_s or time.monotonic() - begun)

    def _cancel_update(self) -> None:
        record = self._store.state.update
        if record is not None and record.state in PIPELINE:
            message = "an operator asked for a rollback"
            with self._ctx.transition(_S.CANCELLED, code="SUPERSEDED", message=message, final=True):
                pass

    def _acting(self) -> str:
        state, snapshot = self._store.state, self._ctx.policy()
        if snapshot is not None and snapshot.active_version:
            return snapshot.active_version
        ref = state.trial.ref if state.trial is not None else state.committed
        return ref.version if ref is not None else ""

    def _target(self, version: str, expected_from: str, acting: str) -> Ref:
        state = self._store.state
        if expected_from and expected_from != acting:
            raise CommandError(
                "EXPECTATION_FAILED", f"is {expected_from}, but {acting or 'nothing'} acts", "expected_from_version"
            )
        default = state.committed if state.trial is not None else state.previous
        target = self._store.find(version) if version else default
        if target is None and not version:
            raise CommandError("NO_PREVIOUS", "there is no version to go back to")
        if target is None or not self._store.has(target):
            raise StoreError("MODEL_NOT_FOUND", "is not complete on disk", f"version {version or target}")
        if state.trial is not None and target.digest == state.trial.ref.digest:
            raise CommandError("ON_TRIAL", "is on trial; commit_model would keep it", f"version {target.version}")
        block = state.blocks(target.name, target.version, target.digest)
        if block is not None:
            raise RefusedError("VERSION_BLOCKED", f"was rolled back: {block.reason}", f"version {target.version}")
        return target

    def _accept(self, target: Ref, reason: str, from_version: str) -> None:
        reason = reason or "an operator asked for it"
        message = f"back to {target.version}: {reason}"
        trial = self._store.state.trial
        code = "OPERATOR_ROLLBACK" if trial is not None else ""
        with self._ctx.transition(_S.ROLLING_BACK, code=code, message=message) as state:
            state.rollback = RollbackRecord(target, reason, from_version)
            if trial is not None:
                if trial.block:  # a verdict had been reached already
                    state.blocked[trial.ref.digest] = Block(
                        trial.ref, f"{trial.code}: {trial.reason}", self._ctx.wall_clock()
                    )
                state.trial = None
                self._trials.forget()

    def resume_rollback(self) -> RollbackReply:
        """Carry an accepted rollback out, also after a crash."""
        record = self._store.state.rollback
        if record is None:
            return RollbackReply(False, "NO_PREVIOUS", "no rollback is under way")
        request = SwapRequest(
            record.target.digest,
            at=self._ctx.config.rollback_at,
            cause="ROLLBACK",
            timeout_s=self._ctx.config.swap_timeout_s,
        )
        deadline = time.monotonic() + self._ctx.config.swap_timeout_s
        while (result := self._try(record.target, request)).error_code in _BUSY and time.monotonic() < deadline:
            self._ctx.show_asked(f"going back to {record.target}: {result.error_code}")
            self._ctx.wait(_BUSY_S)
        if self._ctx.stopping.is_set() and not result.success:
            return RollbackReply(False, "ENGINE_STOPPED", "goes on at the next start", record.from_version, "")
        if result.success or result.error_code == "POLICY_ABSENT":
            return self._finish(record, result)
        message = f"policy_node did not swap to {record.target}: {result.message}"
        with self._ctx.transition(
            _S.FAILED, code=result.error_code or "SWAP_FAILED", message=message, final=True
        ) as state:
            state.rollback = None
            state.activation_due = True
        return RollbackReply(False, result.error_code or "SWAP_FAILED", message, record.from_version, self._acting())

    def _try(self, target: Ref, request: SwapRequest) -> SwapResult:
        try:
            snapshot = self._ctx.policy()
            if snapshot is None:
                raise PolicyError("POLICY_ABSENT", f"policy_node {self._ctx.absence()}", "swap_model")
            self._leave_trial(snapshot, target, request)
            return self._ctx.activate(target, request, self._ctx.halted)
        except PolicyError as e:
            return SwapResult(False, e.code, e.message)

    def _leave_trial(self, snapshot: PolicySnapshot, target: Ref, request: SwapRequest) -> None:
        """Go to the committed version before a third one is loaded: a trial needs both places in policy_node's memory."""
        committed = self._store.state.committed
        if snapshot.on_trial and committed is not None and not snapshot.is_resident(target.digest):
            result = self._ctx.activate(committed, request, self._ctx.halted)
            if not result.success:
                raise PolicyError(
                    result.error_code or "SWAP_FAILED", result.message, f"leave the trial for {committed}"
                )

    def _finish(self, record: RollbackRecord, result: SwapResult) -> RollbackReply:
        target = record.target
        way = "a pointer moved" if result.warm else "loaded from disk"
        if result.success and record.from_version == target.version:
            message = f"{target.version} acts: {record.reason}"
        elif result.success:
            message = f"{record.from_version or 'nothing'} -> {target.version} ({way}): {record.reason}"
        else:
            absent = f"policy_node {self._ctx.absence()} and will start with it"
            message = f"{target.version} is committed, {absent}: {record.reason}"
        code = "OPERATOR_ROLLBACK" if self._store.state.update is not None else ""
        code = code if result.success else "POLICY_ABSENT"
        with self._ctx.transition(
            _S.ROLLED_BACK, code=code, message=message, version=target.version, final=True, point_current=True
        ) as state:
            if state.committed is None or state.committed.digest != target.digest:
                state.note_rolled_back(target)
            state.rollback = None
            state.activation_due = not result.success
        return RollbackReply(
            result.success,
            result.error_code,
            message,
            record.from_version,
            target.version,
            result.swap_latency_s,
            result.warm,
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
        snapshot = self._ctx.policy()
        if snapshot is None:
            what = f"policy_node {self._ctx.absence()}: nobody knows what acts"
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
        state, snapshot = self._store.state, self._ctx.policy()
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
