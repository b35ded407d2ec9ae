# SPDX-License-Identifier: Apache-2.0
"""What the parts of the engine share: transitions, events and status, and what other threads hand over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import OtaError, StoreError
from vla_ota_manager.fetch import trust
from vla_ota_manager.fetch.fetcher import Fetcher
from vla_ota_manager.policy_gate import PolicyGate
from vla_ota_manager.port import PolicyPort, PolicySnapshot
from vla_ota_manager.records import EpisodeResult, Event, Ref, Score, Status, Update
from vla_ota_manager.states import PIPELINE, UpdateState, check_transition
from vla_ota_manager.store.scrub import Scrubber
from vla_ota_manager.store.state import SEEN_SIZE, Outcome, State
from vla_ota_manager.store.store import Store, newest_first
from vla_ota_manager.trial.inbox import Inbox
from vla_ros.plain import plain

log = logging.getLogger("vla_ota_manager")

_SAID_SIZE = 200
_REPORT_PERIOD_S = 0.2
_ROLLBACK_NONE, _ROLLBACK_COLD, _ROLLBACK_WARM = 0, 1, 2


@dataclass
class Live:
    """What the status shows beside the saved state; lost in a crash, which does no harm."""

    progress: float = 0.0
    bytes_done: int = 0
    bytes_downloaded: int = 0
    trial_progress: float = 0.0
    trial_message: str = ""
    message: str = ""
    error_code: str = ""
    said: dict[str, int] = field(default_factory=dict)
    """Remarks that the log has, and how often what each of them tells was asked again."""
    refused: tuple[str, OtaError] | None = None
    """The update_id of an offer that was refused since, and why: it stands in the status while nothing is under way."""


class Context:
    """Shared by the engine's parts. Transitions are made by the engine's thread only."""

    def __init__(
        self,
        config: OtaConfig,
        store: Store,
        port: PolicyPort,
        fetcher: Fetcher,
        on_status: Callable[[Status], None],
        on_event: Callable[[Event], None],
        wall_clock: Callable[[], float] = time.time,
        stamp_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.store, self.port, self.fetcher = config, store, port, fetcher
        self.wall_clock, self.stamp_clock = wall_clock, stamp_clock
        self.stopping = threading.Event()
        self.live = Live()
        self.last_beat = time.monotonic()
        self.scrubber = Scrubber(store, config.scrub_period_s, self._tell_damage)
        self._on_status, self._on_event = on_status, on_event
        self._reported = 0.0
        self._changed = threading.Condition()
        self.inbox = Inbox(port.status)
        self.gate = PolicyGate(config, store, port, self.show, self.report)
        self._cancel: tuple[str, str, str] | None = None
        self.urgent_work = 0
        """Operator's commands that wait for the engine's thread."""
        self.calls: Callable[[], bool] = lambda: False
        """Whether something else needs the engine's thread now."""
        self.is_signed: Callable[[Ref], bool] = lambda ref: True
        """Whether a version is signed by what the registry last said."""

    # -- from other threads -------------------------------------------------------------------------------------------------

    def put(self, item: Score | EpisodeResult) -> None:
        """Hand over a score or an outcome."""
        if self.inbox.put(item):
            self.notify()

    def request_cancel(self, update_id: str, code: str, message: str) -> None:
        """Ask the pipeline to give up an update at the next opportunity."""
        self._cancel = (update_id, code, message)
        self.notify()

    def notify(self) -> None:
        """Wake the engine's thread."""
        with self._changed:
            self._changed.notify_all()

    # -- for the engine's thread --------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """Sleep until something happens, and keep the status alive."""
        with self._changed:
            if not self.stopping.is_set():
                self._changed.wait(min(timeout_s, self.config.status_period_s))
        self.report()

    def cancelled(self) -> tuple[str, str] | None:
        """Return code and message if the update in progress is to be given up."""
        record, request = self.store.state.update, self._cancel
        if record is None or request is None or request[0] != record.update.update_id:
            return None
        return (request[1], request[2]) if record.state in PIPELINE else None

    def interrupted(self) -> bool:
        """Whether a blocking step has to end: the engine stops, a person wants something, or the update is cancelled."""
        self.last_beat = time.monotonic()
        return self.stopping.is_set() or self.urgent_work > 0 or self.cancelled() is not None or self.calls()

    def halted(self) -> bool:
        """Whether a step that no command may interrupt has to end: only when the engine stops."""
        self.last_beat = time.monotonic()
        return self.stopping.is_set()

    @contextmanager
    def transition(
        self,
        new: UpdateState,
        *,
        code: str = "",
        message: str = "",
        version: str = "",
        final: bool = False,
        point_current: bool = False,
        durable: bool = True,
    ) -> Iterator[State]:
        """Change the state, together with whatever the block changes in it, in one write; then publish it.

        Args:
            new: state to enter.
            code: error code, empty if nothing went wrong.
            message: the reason, for people.
            version: what it is about; default: the update's.
            final: nothing more will happen to the update in progress, which is closed.
            point_current: let ``current`` follow the committed version before it is published.
            durable: see ``Store.edit``.
        """
        message = plain(message)
        with self.store.edit(durable=durable) as state:
            old, before = state.state, state.update
            check_transition(old, new)
            yield state
            record = state.update or before
            update_id = record.update.update_id if record is not None else ""
            if record is not None:
                subject = record.ref.version if record.ref is not None else record.update.version
                version = version or subject
                record.state = new
                record.bytes_downloaded = max(record.bytes_downloaded, self.live.bytes_downloaded)
                state.seen[update_id] = Outcome(new, subject, code, message, record.bytes_downloaded, final)
            name = _model_of(state) or _model_of(self.store.state)  # what it was about before may be over now
            event = Event(self.wall_clock(), update_id, old.name, new.name, version, code, message, name)
            state.state, state.message, state.update_id = new, message, update_id
            if code or new is UpdateState.CHECKING:
                state.error_code = code
            state.history = [*state.history, event][-self.config.history_size :]
            if final:
                state.update = None
            for oldest in list(state.seen)[: max(0, len(state.seen) - SEEN_SIZE)]:
                del state.seen[oldest]
        if point_current:
            self._point_current()
        self.live = Live(bytes_done=self.live.bytes_done, bytes_downloaded=self.live.bytes_downloaded)
        self.store.fs.point(f"entered.{new.name}")
        log.log(logging.WARNING if code else logging.INFO, "%s", event.to_line())
        self._on_event(event)
        self.report(force=True)

    def _point_current(self) -> None:
        """Make ``current`` agree with the state; if that fails it is tried again while the engine rests."""
        try:
            self.store.repair_current()
        except StoreError as e:
            log.error("%s", e)

    def close_waiting(
        self, update_id: str, begun: UpdateState, end: UpdateState, code: str, message: str, version: str = ""
    ) -> bool:
        """End an update that waits in the queue (thread-safe).

        Args:
            update_id: which.
            begun: how far it had come, for the event: the engine's own state is another update's.
            end: how it ends.
            code: error code.
            message: the reason, for people.
            version: what it is about; default: what the offer says.

        Returns:
            False if it does not wait there.
        """
        message = plain(message)
        with self.store.edit(durable=False) as state:
            update = next((waiting for waiting in state.queue if waiting.update_id == update_id), None)
            if update is None:
                return False
            state.queue.remove(update)
            version = version or update.version
            state.seen[update_id] = Outcome(end, version, code, message, state.downloaded(update_id), True)
            event = Event(self.wall_clock(), update_id, begun.name, end.name, version, code, message, update.name)
            state.history = [*state.history, event][-self.config.history_size :]
        self.announce(event)
        return True

    def after_going_back(self, message: str, target: Ref) -> str:
        """Return how a rollback ended, in words; also that what it went to was taken back, because it stays all the same."""
        if self.is_signed(target):
            return message
        return f"{message}; {target.version} is not signed (any more): deploy another version"

    def announce(self, event: Event) -> None:
        """Publish an event that changes no state."""
        log.log(logging.WARNING if event.error_code else logging.INFO, "%s", event.to_line())
        self._on_event(event)

    def refuse(self, update: Update, error: OtaError) -> None:
        """Publish that an offer never became an update (thread-safe). What is under way keeps the status to itself."""
        update_id, version = plain(update.update_id)[:128], plain(update.version)[:64]
        log.warning("offer %s refused: %s", update_id or "without update_id", error)
        event = Event(self.wall_clock(), update_id, "IDLE", "REJECTED", version, error.code, error.message)
        self._on_event(event)
        self.live.refused = update_id, error
        self.report()

    def _tell_damage(self, version: str, damage: str) -> None:
        name = self.store.state.state.name
        self.announce(Event(self.wall_clock(), "", name, name, version, "VERSION_DAMAGED", damage))

    def show(self, message: str, error: OtaError | None = None) -> None:
        """Put a remark on the status until the next one or the next transition. The log gets it once."""
        message = plain(message)
        if message and message not in self.live.said:
            log.info("%s", message)
            if len(self.live.said) >= _SAID_SIZE:
                self.live.said.clear()
            self.live.said[message] = 0
        self.live.message, self.live.refused = message, None
        if error is not None:
            self.live.error_code = error.code
        self.report()

    def show_asked(self, message: str) -> None:
        """Put on the status what policy_node refuses for now, and how often it was asked; the log gets it once."""
        message = plain(message)
        self.show(message)
        self.live.said[message] += 1
        if self.live.said[message] > 1:
            self.live.message = f"{message} (asked {self.live.said[message]} times)"

    def unshow(self) -> None:
        """Take back a remark that is no longer true."""
        self.live.message, self.live.error_code = "", ""
        self.report()

    def report(self, *, force: bool = False) -> None:
        """Publish the status, at most five times a second unless forced."""
        now = self.last_beat = time.monotonic()
        if force or now - self._reported >= _REPORT_PERIOD_S:
            self._reported = now
            self._on_status(self.status())

    def status(self) -> Status:
        """Return the status as it is now (thread-safe)."""
        state, live, snapshot, unsaved = self.store.state, self.live, self.gate.policy(), self.store.unsaved
        error_code, message = live.error_code or state.error_code, live.message or state.message
        if unsaved is not None:  # until then a restart knows less than this status says
            error_code, message = unsaved.code, f"{message}; not on the disk yet: {unsaved}"
        record, trial = state.update, state.trial
        on_trial = trial is not None and trial.phase is UpdateState.TRIAL
        experiment = state.running_experiment
        subject = record.ref if record is not None and record.ref is not None else state.committed
        name = subject.name if subject is not None else ""
        total = record.bytes_total if record is not None else live.bytes_done
        status = Status(
            state=state.state,
            update_id=state.update_id,
            name=name,
            committed_version=state.committed.version if state.committed else "",
            committed_digest=state.committed.digest if state.committed else "",
            previous_version=state.previous.version if state.previous else "",
            trial_version=trial.ref.version if trial is not None and on_trial else "",
            trial_digest=trial.ref.digest if trial is not None and on_trial else "",
            active_version=snapshot.active_version if snapshot else "",
            active_digest=snapshot.active_digest if snapshot else "",
            progress=live.progress,
            bytes_done=live.bytes_done,
            bytes_total=total,
            bytes_downloaded=max(live.bytes_downloaded, record.bytes_downloaded if record else 0),
            trial_progress=live.trial_progress,
            trial_message=live.trial_message,
            versions=tuple(newest_first([entry.ref.version for entry in self.store.installed()])),
            blocked=tuple(newest_first([block.ref.version for block in state.blocked.values()])),
            damaged=tuple(newest_first([path.name for path in self.scrubber.damaged])),
            pinned=tuple(newest_first([ref.version for ref in state.pinned])),
            experiment=experiment.experiment if experiment else "",
            experiment_robot=experiment.robot if experiment else "",
            experiment_digests=self._drawn(state),
            experiment_probability=experiment.probability if experiment else 0.0,
            trust=trust.SIGNED if self.config.trust_root else trust.OFFERED,
            rollback_ready=self._rollback_ready(state, snapshot),
            error_code=error_code,
            message=message,
        )
        if live.refused is None or record is not None or trial is not None or state.rollback is not None:
            return status
        update_id, error = live.refused
        return replace(
            status, state=UpdateState.REJECTED, update_id=update_id, error_code=error.code, message=error.message
        )

    def _drawn(self, state: State) -> tuple[str, ...]:
        """Return A and B while they may act by turns."""
        experiment = state.running_experiment
        draws = experiment is not None and state.trial is None and state.rollback is None and self.gate.permitted()
        return (experiment.a.digest, experiment.b.digest) if experiment is not None and draws else ()

    def _rollback_ready(self, state: State, snapshot: PolicySnapshot | None) -> int:
        tried = state.trial is not None or state.running_experiment is not None
        target = state.committed if tried else state.previous
        if target is None or not self.store.has(target):
            return _ROLLBACK_NONE
        if snapshot is not None and snapshot.is_resident(target.digest):
            return _ROLLBACK_WARM
        return _ROLLBACK_NONE if self.store.path_of(target) in self.scrubber.damaged else _ROLLBACK_COLD


def _model_of(state: State) -> str:
    """Return the name of the model that something is under way for; "" if that is not known."""
    if state.update is not None:
        return state.update.ref.name if state.update.ref is not None else state.update.update.name
    if state.trial is not None:
        return state.trial.ref.name
    return state.rollback.target.name if state.rollback is not None else ""
