# SPDX-License-Identifier: Apache-2.0
"""A robot's part in an experiment by episode: A and B stay on the disk and in policy_node's memory, which draws one an episode.

The status names the experiment, and so renews policy_node's lease of B; here it is decided whether it still does. It ends when
the server says so, and on this robot by a rollback, a broken limit or a lost worker of B, an urgent update, or when somebody
lets another version act. B is not on trial meanwhile: the server judges it by outcomes.
"""

from __future__ import annotations

import time

from vla_ota_manager.context import Context
from vla_ota_manager.errors import CommandError, OtaError, RefusedError, StoreError
from vla_ota_manager.port import PolicySnapshot
from vla_ota_manager.records import UPDATE_ID, Event, ExperimentRequest, Ref, Reply
from vla_ota_manager.states import PIPELINE
from vla_ota_manager.store.state import Block, ExperimentRecord, State
from vla_ros.fault import Fault

ENDED = "ENDED"
"""Code of an experiment that whoever assigned it has ended; with any other the robot has left it, and does not join it again."""
_VERDICTS = ("HARD_LIMIT", "WORKER_LOST")
_ENDS = (*_VERDICTS, "WORKER_HOST_LOST")
"""Codes of policy_node that end it; a verdict also blocks B."""
_RETRY_S = 1.0
_TRIES = 3
_POLL_S = 0.05


class ExperimentRunner:
    """Works on ``state.experiment``. Everything but :meth:`wait` runs in the engine's thread."""

    def __init__(self, context: Context) -> None:
        self._ctx, self._store = context, context.store
        self._next_try = 0.0
        self._failures = 0

    # -- what is asked ------------------------------------------------------------------------------------------------------

    def assign(self, request: ExperimentRequest) -> Reply:
        """Take part, or (no versions) no longer.

        Raises:
            OtaError: EXPERIMENT_INVALID, EXPERIMENT_LEFT, TRIAL_RUNNING, MODEL_NOT_FOUND, EXPECTATION_FAILED, VERSION_BLOCKED,
                VERSION_DAMAGED.
        """
        if not UPDATE_ID.fullmatch(request.experiment):
            raise CommandError("EXPERIMENT_INVALID", "must be 1 to 128 characters of [A-Za-z0-9._:-]", "experiment")
        running = self._store.state.running_experiment
        if not request.versions:
            if running is None or running.experiment != request.experiment:
                return Reply(True, "", f"takes part in {running.experiment if running else 'no experiment'} by now")
            self.end(ENDED, f"experiment {request.experiment} has ended")
            return Reply(True, "", f"{running.a.version} acts, at the latest after the open episode")
        record = self._checked(request)
        if record != running:
            with self._store.edit() as state:
                state.experiment = record
            self._next_try, self._failures = 0.0, 0
            self._tell(
                record.b,
                "",
                f"experiment {record.experiment}: {record.a.version} or {record.b.version} acts in each episode",
            )
        return Reply(True, "", f"each episode is drawn for {record.experiment}")

    def _checked(self, request: ExperimentRequest) -> ExperimentRecord:
        state, left = self._store.state, self._store.state.experiment
        if not request.robot or len(request.versions) != 2 or len({*request.versions}) != 2:
            raise CommandError("EXPERIMENT_INVALID", "robot must be named, and two versions", request.experiment)
        if not 0.0 <= request.probability <= 1.0:
            raise CommandError("EXPERIMENT_INVALID", f"{request.probability} is not within 0 and 1", "probability")
        if left is not None and left.experiment == request.experiment and left.code not in ("", ENDED):
            raise CommandError("EXPERIMENT_LEFT", f"this robot left it: {left.code}: {left.reason}", request.experiment)
        changing = state.update is not None and state.update.state in PIPELINE and state.update.update.activate
        if state.trial is not None or state.rollback is not None or changing:
            raise CommandError("TRIAL_RUNNING", f"{state.state.name}: wait until that is over", request.experiment)
        a, b = (self._usable(version) for version in request.versions)
        if a != state.committed:
            text = f"A is {a.version}, but {state.committed.version if state.committed else 'nothing'} is committed"
            raise CommandError("EXPECTATION_FAILED", text, request.experiment)
        return ExperimentRecord(request.experiment, request.robot, a, b, request.probability)

    def _usable(self, version: str) -> Ref:
        ref = self._store.find(version)
        if ref is None:
            raise StoreError("MODEL_NOT_FOUND", "is not complete on disk", f"version {version}")
        block = self._store.state.blocks(ref.name, ref.version, ref.digest)
        if block is not None:
            raise RefusedError("VERSION_BLOCKED", f"was rolled back: {block.reason}", f"version {version}")
        if damage := self._ctx.scrubber.damaged.get(self._store.path_of(ref)):
            raise StoreError("VERSION_DAMAGED", damage, f"version {version}")
        return ref

    def wait(self, experiment: str, deadline: float) -> Reply:
        """Wait until policy_node draws for an experiment, in the caller's thread; it begins later if that takes too long."""
        while time.monotonic() < deadline and not self._ctx.stopping.is_set():
            record, snapshot = self._store.state.experiment, self._ctx.gate.policy()
            if record is None or record.experiment != experiment:
                return Reply(False, "SUPERSEDED", f"{experiment} was replaced")
            if record.code:
                return Reply(False, record.code, record.reason)
            if snapshot is not None and snapshot.experiment == experiment and not _missing(record, snapshot):
                return Reply(True, "", f"each episode is drawn from {record.a.version} and {record.b.version}")
            time.sleep(_POLL_S)
        waits = "both versions are loaded" if self._ctx.gate.permitted() else "update_permitted is given"
        return Reply(False, "COMMAND_TIMEOUT", f"{experiment} begins when {waits}")

    # -- while it runs ------------------------------------------------------------------------------------------------------

    def calls(self) -> bool:
        """Whether there is something that must not wait until an update has come further; from any thread."""
        record = self._store.state.running_experiment
        return record is not None and bool(self._end_of(record, self._ctx.gate.policy()))

    def step(self, *, rests: bool) -> None:
        """Look after it. ``rests``: nothing else is under way, so a version that is missing can be loaded."""
        record = self._store.state.running_experiment
        if record is None:
            return
        snapshot = self._ctx.gate.policy()
        if why := self._end_of(record, snapshot):
            self.end(*why, block=why[0] in _VERDICTS)
        elif rests and snapshot is not None and (missing := _missing(record, snapshot)):
            self._load(record, missing)

    def _end_of(self, record: ExperimentRecord, snapshot: PolicySnapshot | None) -> tuple[str, str] | None:
        """Return code and text of what ends it on this robot."""
        if self._store.state.committed != record.a:
            return "SWAPPED_AWAY", f"{record.a.version} is no longer the committed version"
        if snapshot is None:
            return None
        if snapshot.experiment == record.experiment and snapshot.draw_error_code in _ENDS:
            return snapshot.draw_error_code, snapshot.draw_message
        if snapshot.active_digest not in ("", record.a.digest, record.b.digest):
            return "SWAPPED_AWAY", f"somebody else let policy_node swap to {snapshot.active_version}"
        return None

    def _load(self, record: ExperimentRecord, missing: Ref) -> None:
        """Let policy_node load what is missing beside the version that acts."""
        if time.monotonic() < self._next_try:
            return
        snapshot = self._ctx.gate.policy()
        if snapshot is not None and snapshot.load_in_place:
            self.end(
                "OUT_OF_MEMORY", "policy_node has room for one version (load_in_place), and an experiment needs two"
            )
            return
        self._ctx.show(f"experiment {record.experiment}: policy_node loads {missing}")
        result = self._ctx.gate.prepare(
            missing,
            lambda _state, _progress: self._ctx.report(),
            self._ctx.interrupted,
            skip_shadow=missing == record.a,
        )
        self._next_try = time.monotonic() + _RETRY_S
        if result.success:
            self._failures = 0
            self._ctx.unshow()
        elif result.fault not in (Fault.BUSY, Fault.PERSON):
            self._failures += 1
            if result.fault is Fault.BUNDLE or self._failures >= _TRIES:
                self.end(result.error_code, f"policy_node does not load {missing}: {result.message}")

    def end(self, code: str, reason: str, *, block: bool = False) -> None:
        """End it on this robot: policy_node hears that, and A acts again. Nothing happens if none runs."""
        record = self._store.state.running_experiment
        if record is None:
            return
        with self._store.edit(durable=False) as state:
            ended = _of(state)
            ended.code, ended.reason = code, reason
            if block:
                state.blocked[record.b.digest] = Block(record.b, f"{code}: {reason}", self._ctx.wall_clock())
        self._tell(record.b, "" if code == ENDED else code, reason)
        if code != ENDED:
            self._ctx.show(f"left experiment {record.experiment}: {reason}", OtaError(code, reason))
        self._ctx.report(force=True)

    def _tell(self, ref: Ref, code: str, message: str) -> None:
        at = self._store.state.state.name
        event = Event(self._ctx.wall_clock(), "", at, at, ref.version, code, message, ref.name)
        with self._store.edit(durable=False) as state:
            state.history = [*state.history, event][-self._ctx.config.history_size :]
        self._ctx.announce(event)


def _missing(record: ExperimentRecord, snapshot: PolicySnapshot) -> Ref | None:
    return next((ref for ref in (record.a, record.b) if not snapshot.is_resident(ref.digest)), None)


def _of(state: State) -> ExperimentRecord:
    if state.experiment is None:
        raise OtaError("STATE_CORRUPT", "no experiment is under way")
    return state.experiment
