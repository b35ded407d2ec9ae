# SPDX-License-Identifier: Apache-2.0
"""A trial from SWAPPING to its end: gives the new version control, feeds the judge, commits or takes control back.

The trial is a lease: the policy node goes back by itself when this manager falls silent. What counts is in ``state.trial``;
everything here can be done again after a crash, because a swap to the version that already acts changes nothing.
"""

from __future__ import annotations

import math
import time

from vla_ota_manager.context import Context, log
from vla_ota_manager.errors import OtaError, PolicyError, StoreError
from vla_ota_manager.port import PolicySnapshot, SwapRequest, SwapResult
from vla_ota_manager.records import Ref
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.state import Block, State, TrialRecord
from vla_ota_manager.trial.calibration import Acting, Calibration, Collector
from vla_ota_manager.trial.judge import Decision, TrialJudge, Verdict
from vla_ota_manager.way_back import WayBack

_S = UpdateState
_STEP_S = 0.2
SLICE_S = 2.0
"""How long one request waits for a boundary [s]; before the next one the permission is looked at again."""
_GAP_S = 0.02
_RETRY_S = 1.0
_SAVE_PERIOD_S = 10.0
_REPORT_S = 5.0
"""How long a change that nobody asked for waits for the swap's report, which says why and comes a second after it [s]."""
_NAMED_S = 0.5
"""How long a broken limit waits for the status that names it, a moment after its score [s]; the robot holds meanwhile."""
_HOST_ERRORS = frozenset({"WORKER_HOST_LOST", "WORKER_HOST_UNREACHABLE", "WORKER_HOST_REFUSED"})
_NOT_ITS_OWN = frozenset({"HEARTBEAT_LOST", "LEASE_EXPIRED", "POLICY_RESTARTED", "WORKER_HOST_LOST"})
"""Ends of a trial that do not say whether the version is at fault."""
_POLICY_ERRORS = frozenset({"LIMIT", "NAN", "POLICY_FAILED", "WRONG_SHAPE"})
"""Errors for which policy_node ends a worker: the policy is at fault, and not the process."""


class TrialRunner:
    """Works on ``state.trial``, one step at a time."""

    def __init__(self, context: Context) -> None:
        self._ctx = context
        self._config = context.config
        self._store = context.store
        self._judge: TrialJudge | None = None
        self._collector: Collector | None = None
        self._generation = 0
        self._confirmed = False
        self._asked_at = self._swapped_at = 0.0
        self._begun_at = 0.0
        self._saved_at = 0.0
        self._next_try = 0.0
        self._boot_id = ""
        self._left_at = 0.0
        self._old_report_s = math.nan
        """Stamp of the report of the swap to what acted before the trial, which that may show again when it acts again [s]."""
        self._way_back: WayBack | None = None

    def recover(self) -> None:
        """Count an attempt if the last process did not end properly; too many of them are a verdict."""
        trial = self._store.state.trial
        if trial is None or trial.phase is _S.ROLLING_BACK:
            return
        if trial.clean:
            with self._store.edit(durable=False) as state:
                _of(state).clean = False
            return
        attempts = self._count_attempt(trial)
        if attempts >= self._config.max_trial_attempts:
            self.roll_back(
                "TRIAL_ATTEMPTS", f"{attempts} trials ended with the manager killed or the robot restarted", block=True
            )

    def park(self) -> None:
        """Note that this process ends properly in the middle of a trial."""
        if self._store.state.trial is not None:
            with self._store.edit(durable=False) as state:
                trial = _of(state)
                trial.clean = True
                if self._judge is not None:
                    trial.evidence = self._judge.to_json()

    def step(self) -> None:
        """Do what is next, and wait a moment."""
        trial = self._store.state.trial
        if trial is None:
            return
        if trial.phase is _S.ROLLING_BACK:
            self._take_control_back(trial)
        elif self._judge is None:
            self._enter(trial)
        else:
            self._watch(trial, self._judge)
            if self._judge is not None:
                self._ctx.wait(_STEP_S)

    def look(self) -> bool:
        """Look after a running trial without waiting; false if it has ended, or needs a :meth:`step`."""
        trial = self._store.state.trial
        if trial is None or self._judge is None:
            return False
        try:
            self._watch(trial, self._judge)
        except StoreError:
            return False  # it could not be committed; the next step meets that too, and tells
        return self._judge is not None

    # -- SWAPPING -----------------------------------------------------------------------------------------------------------

    def _enter(self, trial: TrialRecord) -> None:
        """Swap the version in, or find it already acting after a restart."""
        now = time.monotonic()
        begun = self._begun_at = self._begun_at or now
        snapshot = self._ctx.gate.policy()
        acts = snapshot is not None and snapshot.active_digest == trial.ref.digest
        if snapshot is not None and not acts and trial.phase is _S.TRIAL and self._was_taken_back(trial, snapshot, now):
            return
        hindrance = self._ctx.gate.hindrance(permitted=acts or self._ctx.gate.permitted())
        if snapshot is None or hindrance:
            self._ctx.show(f"{trial.ref} waits for {hindrance}")
            if snapshot is not None:
                self._begun_at = 0.0  # a person may take as long as they like
            elif now > begun + self._config.policy_wait_s:
                what = f"policy_node {self._ctx.gate.absence()}; waited for {self._config.policy_wait_s:g} s"
                self._close(_S.FAILED, "POLICY_ABSENT", what)
            self._ctx.wait(_STEP_S)
            return
        if not acts:
            self._old_report_s = snapshot.last_swap_stamp_s
        request = SwapRequest(
            trial.ref.digest,
            at=self._config.swap_at,
            expected_active_digest="" if acts else snapshot.active_digest,
            trial=True,
            lease_s=self._config.trial_lease_s,
            timeout_s=min(self._config.swap_timeout_s, SLICE_S),
        )
        self._asked_at = self._asked_at or now
        try:
            result = self._ctx.gate.activate(trial.ref, request, self._ctx.interrupted)
        except PolicyError as e:
            result = SwapResult.failed(e)
        if result.success:
            self._begin(trial, result)
        elif result.error_code == "WORKER_LOST":
            self._roll_back_lost(f"it acted, and its worker was lost: {result.message}")
        elif not result.may_succeed_later or now > begun + max(self._config.policy_wait_s, self._config.swap_timeout_s):
            self._close(_S.FAILED, result.error_code or "SWAP_FAILED", f"policy_node did not swap: {result.message}")
        elif result.error_code == "SWAP_TIMEOUT":
            self._ctx.show_asked(f"{trial.ref} waits for a boundary ({self._config.swap_at}): {result.message}")
            self._ctx.wait(_GAP_S)
        elif not self._ctx.interrupted():
            self._ctx.show_asked(f"swap to {trial.ref}: {result.error_code} {result.message}")
            self._ctx.wait(_RETRY_S)

    def _was_taken_back(self, trial: TrialRecord, snapshot: PolicySnapshot, now: float) -> bool:
        """Close a trial that was left on request before this process began, which the one before could not write down.

        Returns:
            True while that may be so: the report that says why another version acts comes a second after the swap.
        """
        if not snapshot.active_digest:
            return False
        if snapshot.last_swap_cause == "ROLLBACK":
            self._note_left(trial, snapshot, "SWAPPED_AWAY")
        elif snapshot.last_swap_cause or now - self._begun_at > _REPORT_S:
            return False
        else:
            self._ctx.wait(_STEP_S)
        return True

    def _begin(self, trial: TrialRecord, result: SwapResult) -> None:
        stamp = result.stamp_s or self._ctx.stamp_clock()
        state = self._store.state
        incumbent = None
        if state.committed is not None and not trial.first_install:
            incumbent = Calibration.from_json(state.calibration.get(state.committed.digest, {}), self._config)
        judge = TrialJudge(self._config, incumbent, first_install=trial.first_install)
        judge.restore(trial.evidence)
        snapshot = self._ctx.port.status()
        self._boot_id = snapshot.boot_id if snapshot is not None else ""
        acting = Acting(trial.ref.version, result.generation, self._boot_id, stamp)
        judge.begin(acting, trial.ref.digest, time.monotonic())
        if state.state is _S.SWAPPING:
            message = f"{trial.ref} acts after {result.swap_latency_s:.3f} s and must prove itself"
            with self._ctx.transition(_S.TRIAL, message=message, durable=False) as draft:
                _of(draft).phase = _S.TRIAL
        self._judge = judge
        self._collector = Collector(self._config, Calibration.empty(self._config), acting)
        self._generation, self._confirmed, self._swapped_at = result.generation, False, time.monotonic()
        self._begun_at = 0.0
        self._saved_at, self._left_at = self._swapped_at, 0.0

    # -- TRIAL --------------------------------------------------------------------------------------------------------------

    def _watch(self, trial: TrialRecord, judge: TrialJudge) -> None:
        now = time.monotonic()
        snapshot = self._ctx.port.status()
        if self._policy_left(trial, snapshot, now):
            return
        arrived = self._ctx.inbox.drain()
        snapshot = (
            self._ctx.port.status()
        )  # read after them, so that it is no older than the one that named their episode
        judge.observe(snapshot, now, arrived)
        if self._collector is not None:
            for item in arrived:
                self._collector.add(item)
        verdict = judge.verdict()
        self._ctx.live.trial_progress, self._ctx.live.trial_message = verdict.progress, verdict.message
        if verdict.decision is Decision.COMMIT:
            if verdict.unjudged:
                log.warning("%s is committed without a judgement of %s", trial.ref, verdict.unjudged)
            self.commit(verdict.message)
        elif verdict.decision is Decision.ROLLBACK:
            self._carry_out(trial, verdict)
        else:
            self._save_evidence(judge, now)

    def _carry_out(self, trial: TrialRecord, verdict: Verdict) -> None:
        """Carry a rollback verdict out."""
        code, reason = verdict.code, verdict.message
        if code in ("HARD_LIMIT", "WORKER_LOST"):
            deadline = time.monotonic() + _NAMED_S
            while not (text := self._reported_error()[1]) and time.monotonic() < deadline:
                self._ctx.wait(_GAP_S)
            code, reason = self._loss()[0] if code == "WORKER_LOST" else code, text or reason
        self.roll_back(code, reason, block=self._blocks(trial, code), at="NOW" if verdict.at_once else "")

    def _blocks(self, trial: TrialRecord, code: str) -> bool:
        """Whether that end of a trial blocks the version: what may have had another cause does so only when it comes again."""
        if code == "SWAPPED_AWAY":
            return False
        return code not in _NOT_ITS_OWN or self._count_attempt(trial) >= self._config.max_trial_attempts

    def _count_attempt(self, trial: TrialRecord) -> int:
        """Count an unclean end of a trial of this version; return how many there have been."""
        with self._store.edit(durable=False) as state:
            attempts = state.attempts[trial.ref.digest] = state.attempts.get(trial.ref.digest, 0) + 1
        return attempts

    def _save_evidence(self, judge: TrialJudge, now: float) -> None:
        if now - self._saved_at > _SAVE_PERIOD_S:
            self._saved_at = now
            with self._store.edit(durable=False) as state:
                _of(state).evidence = judge.to_json()

    def _policy_left(self, trial: TrialRecord, snapshot: PolicySnapshot | None, now: float) -> bool:
        """Notice that the policy node runs something else by its own decision, and close the trial; true if it does."""
        if snapshot is None or snapshot.age_s > self._config.policy_silent_s:
            return False
        if not snapshot.active_digest:
            return self._has_nothing(trial, snapshot)
        acts = snapshot.active_digest == trial.ref.digest
        if acts and (snapshot.generation == self._generation or not self._confirmed):
            self._confirmed = snapshot.generation == self._generation
            self._boot_id, self._left_at = snapshot.boot_id, 0.0
            if not snapshot.on_trial and now - self._swapped_at > self._config.policy_silent_s:
                self._enter_anew()  # somebody made it act for good: without a lease nothing may be committed
                return True
            return False
        if not self._confirmed and now - self._swapped_at < self._config.policy_silent_s:
            return False  # a status from before the swap
        cause = self._why(snapshot, now)
        if cause is None:
            return True  # the report that says it may still come
        if acts:
            self._loaded_again(cause)
        else:
            self._note_left(trial, snapshot, cause)
        return True

    def _has_nothing(self, trial: TrialRecord, snapshot: PolicySnapshot) -> bool:
        """Enter the trial of a first install anew after a restart of the policy node, which has nothing to start from."""
        restarted = bool(self._boot_id) and snapshot.boot_id != self._boot_id
        if self._store.state.committed is not None or not restarted:
            return False  # it loads
        attempts = self._count_attempt(trial)
        if attempts >= self._config.max_trial_attempts:
            self.roll_back("POLICY_RESTARTED", f"policy_node was restarted in {attempts} trials of it", block=True)
        else:
            self._enter_anew()
        return True

    def _why(self, snapshot: PolicySnapshot, now: float) -> str | None:
        """Say why another generation acts; None while the report that says so may still come."""
        if snapshot.boot_id != self._boot_id:
            return "POLICY_RESTARTED"
        cause = snapshot.last_swap_cause if snapshot.last_swap_stamp_s != self._old_report_s else ""
        if cause in ("LEASE_EXPIRED", "WORKER_LOST"):
            return cause
        self._left_at = self._left_at or now
        return None if not cause and now - self._left_at < _REPORT_S else "SWAPPED_AWAY"

    def _reported_error(self) -> tuple[str, str]:
        """Return code and text of the last error that policy_node has reported since this trial began; empty if none."""
        snapshot = self._ctx.port.status()
        if snapshot is None or not snapshot.error_code or snapshot.error_heard_s < self._asked_at:
            return "", ""
        return snapshot.error_code, f"policy_node says {snapshot.error_code}: {snapshot.error_text}"

    def _loss(self) -> tuple[str, str]:
        """Return the verdict on a version that has lost its worker, and why, if policy_node has reported it."""
        code, text = self._reported_error()
        if code in _HOST_ERRORS:
            return "WORKER_HOST_LOST", text
        return "HARD_LIMIT" if code in _POLICY_ERRORS else "WORKER_LOST", text

    def _roll_back_lost(self, otherwise: str) -> None:
        """Roll back a version that has lost its worker. ``otherwise``: the reason if policy_node has reported none."""
        code, text = self._loss()
        self.roll_back(code, text or otherwise, block=self._blocks(_of(self._store.state), code), at="NOW")

    def _loaded_again(self, cause: str) -> None:
        """It acts as another generation: its worker was lost; or somebody else swapped, then the trial is entered anew."""
        if cause == "WORKER_LOST":
            self._roll_back_lost("its worker was lost and had to be started again")
        else:
            self._enter_anew()

    def _enter_anew(self) -> None:
        """Ask for the trial again, with what is known so far."""
        if self._judge is not None:
            evidence = self._judge.to_json()
            with self._store.edit(durable=False) as state:
                _of(state).evidence = evidence
            self._judge = None

    def _note_left(self, trial: TrialRecord, snapshot: PolicySnapshot, cause: str) -> None:
        runs = snapshot.active_version or snapshot.active_digest[:12]
        code, text = self._loss() if cause == "WORKER_LOST" else (cause, "")
        block = self._blocks(trial, code)
        what = {
            "WORKER_LOST": f"{text or 'its worker was lost'}; policy_node went back to {runs}",
            "LEASE_EXPIRED": f"ota_manager was silent for the lease of {self._config.trial_lease_s:g} s; {runs} acts",
            "POLICY_RESTARTED": f"policy_node was restarted in the trial, and {runs} acts",
        }.get(cause, f"somebody else let policy_node swap to {runs}")
        committed = self._store.state.committed
        if committed is not None and snapshot.active_digest == committed.digest:
            self._close(_S.ROLLED_BACK, code, what, block=block)
        else:
            self.roll_back(code, what, block=block)

    def commit(self, reason: str) -> None:
        """End the trial in favour of the version on trial."""
        trial = _of(self._store.state)
        collected = self._collector.calibration.to_json() if self._collector is not None else {}
        with self._ctx.transition(_S.COMMITTED, message=reason, final=True, point_current=True) as state:
            state.note_committed(trial.ref)
            state.trial, state.activation_due = None, True
            state.attempts.pop(trial.ref.digest, None)
            state.calibration[trial.ref.digest] = collected
        self.forget()
        self._store.retain(self._config.keep_versions)

    # -- ROLLING_BACK -------------------------------------------------------------------------------------------------------

    def roll_back(self, code: str, reason: str, *, block: bool, at: str = "") -> None:
        """Begin to give control back to the committed version."""
        with self._ctx.transition(_S.ROLLING_BACK, code=code, message=reason, durable=False) as state:
            trial = _of(state)
            trial.phase, trial.code, trial.reason, trial.block, trial.at = _S.ROLLING_BACK, code, reason, block, at
        self._judge, self._way_back = None, None
        self._next_try = 0.0

    def _take_control_back(self, trial: TrialRecord) -> None:
        committed = self._store.state.committed
        if committed is None:
            self._close(_S.FAILED, trial.code, f"{trial.reason}; there is nothing to go back to", block=trial.block)
            return
        if time.monotonic() < self._next_try:
            self._ctx.wait(_STEP_S)
            return
        way = self._way_back = self._way_back or WayBack(self._ctx, committed, older=True, at=trial.at)
        result = way.take()
        snapshot = self._ctx.gate.policy()
        returned = snapshot is not None and snapshot.active_digest == committed.digest and not snapshot.on_trial
        if result.success or returned:
            target = way.ref if result.success else committed
            took = f"{target.version} acts again already"
            if result.swap_latency_s:  # that alone leaves out the loading
                how = "warm" if result.warm else "cold"
                took = f"back to {target.version} ({how}) in {time.monotonic() - way.begun:.3f} s"
            message = f"{trial.reason}; {took}" + (f"; {way.skipped}" if target != committed else "")
            message = self._ctx.after_going_back(message, target)
            self._close(_S.ROLLED_BACK, trial.code, message, block=trial.block, back_to=target)
            return
        self._ctx.show_asked(f"going back to {way.ref}: {result.error_code} {result.message}")
        self._next_try = time.monotonic() + _RETRY_S

    # -- the end ------------------------------------------------------------------------------------------------------------

    def _close(
        self, end: UpdateState, code: str, message: str, *, block: bool = False, back_to: Ref | None = None
    ) -> None:
        trial = _of(self._store.state)
        with self._ctx.transition(
            end,
            code=code,
            message=message,
            version=trial.ref.version,
            final=True,
            point_current=back_to is not None,
            durable=False,
        ) as state:
            if back_to is not None and back_to != state.committed:
                state.note_rolled_back(back_to)
            state.trial = None
            if block:
                state.blocked[trial.ref.digest] = Block(trial.ref, f"{code}: {message}", self._ctx.wall_clock())
                state.attempts.pop(trial.ref.digest, None)
        self.forget()
        self._store.retain(self._config.keep_versions)

    def forget(self) -> None:
        """Drop what is known of a trial that has ended."""
        self._judge, self._collector, self._way_back = None, None, None
        self._generation, self._confirmed, self._begun_at, self._asked_at = 0, False, 0.0, 0.0


def _of(state: State) -> TrialRecord:
    if state.trial is None:
        raise OtaError("STATE_CORRUPT", "no trial is under way")
    return state.trial
