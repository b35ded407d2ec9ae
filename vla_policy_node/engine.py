# SPDX-License-Identifier: Apache-2.0
"""The policy node without ROS: control process, workers, generations, episodes and scores under one roof.

Threads: callers (services, actions) block in :meth:`swap` and :meth:`prepare`; events of the control process and of workers
are put into a queue; the supervisor thread takes them, watches chunks, leases and time limits, and never blocks; automatic
changes run on the recovery thread. Callbacks of :class:`Listener` come from any of them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import load_manifest
from vla_policy_node.chunk_watch import ChunkWatch
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract import Contract
from vla_policy_node.control.client import ControlClient, ControlStatus
from vla_policy_node.episodes import Episode, EpisodeError, Episodes, Outcome
from vla_policy_node.errors import ControlError, ObservationError, duration
from vla_policy_node.generations import Generations
from vla_policy_node.observation import ObservationBuffer
from vla_policy_node.recovery import Recovery
from vla_policy_node.residents import Resident
from vla_policy_node.scores import ChunkScorer
from vla_policy_node.swapping import Report, SwapRequest
from vla_policy_node.worker.api import WorkerConfig, WorkerEvent
from vla_policy_node.worker.pool import Progress, WorkerPool

LOG = logging.getLogger("vla_policy_node")

FATAL_CHUNK_ERRORS = ("POLICY_FAILED", "WRONG_SHAPE", "NAN")
"""A worker that answers so is not asked again: it counts as lost."""
HARD_LIMIT_HOLDS = ("LIMIT", "NAN")
_POLL_S = 0.02
_OBSERVATION_HZ = 50.0
_CONTROL_SILENT_S = 1.0
_ANSWER_S = 2.0


@dataclass(frozen=True)
class Score:
    """One anomaly score; see ``msg/AnomalyScore.msg``."""

    source: str
    value: float
    version: str
    generation: int
    episode_id: str


@dataclass(frozen=True)
class Snapshot:
    """What the node is running; see ``msg/PolicyStatus.msg``."""

    boot_id: str
    active: Resident | None
    standby: Resident | None
    prepared: Resident | None
    on_trial: bool
    control: ControlStatus | None
    control_alive: bool
    motion_permitted: bool
    loading: bool
    inference_ms: float
    episode_id: str
    instruction: str
    error_code: str
    message: str


class Listener(Protocol):
    """Who is told what happens. Called from the engine's threads; must return soon and not raise."""

    def on_change(self) -> None:
        """The snapshot is another one."""

    def on_score(self, score: Score) -> None:
        """A chunk was scored, or a hard limit was broken."""

    def on_outcome(self, outcome: Outcome, active: Resident | None) -> None:
        """An episode has ended."""

    def on_report(self, report: Report) -> None:
        """A swap is over, its second of watching included."""


def worker_config(config: PolicyNodeConfig, contract: Contract) -> WorkerConfig:
    """Return what the pool needs of the node's settings. Raises ValueError for a policy module that is not type=module."""
    modules = dict(item.split("=", 1) for item in config.policy_modules)
    return WorkerConfig(
        worker_python=config.worker_python,
        paths=config.worker_paths,
        policy_modules=modules,
        imports=config.worker_imports,
        device=config.device,
        threads=config.worker_threads,
        load_timeout_s=config.load_timeout_s,
        inference_timeout_s=config.inference_timeout_s,
        observation_max_age_s=contract.observation_max_age_s,
    )


class PolicyEngine:
    """Everything of a policy node but its ROS interface."""

    def __init__(
        self, config: PolicyNodeConfig, contract: Contract, *, sink: Mapping[str, Any], listener: Listener
    ) -> None:
        self.config, self.contract, self._listener = config, contract, listener
        self.boot_id = uuid.uuid4().hex
        self.observations = ObservationBuffer(contract)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._control = ControlClient(
            contract,
            self.observations.arena,
            sink=sink,
            on_event=lambda event: self._events.put(lambda: self._on_control(event)),
            fifo_priority=config.fifo_priority or None,
        )
        self._pool = WorkerPool(
            worker_config(config, contract),
            self.observations.arena,
            contract.features,
            lambda event: self._events.put(lambda: self._on_worker(event)),
        )
        self.generations = Generations(
            config, contract, self._control, self._pool, on_change=listener.on_change, on_report=listener.on_report
        )
        scale = np.array([c.limits.rate * contract.period_s for c in contract.channels])
        self._watch = ChunkWatch(ChunkScorer(scale, config.reversal_deadband))
        self._episodes = Episodes()
        self._episode_lock = threading.Lock()
        self._episode_number = 0
        self._instruction = config.instruction
        self._recovery = Recovery(
            config, self.generations, current_episode=self._open_episode, report_error=self._report_error
        )
        self._resuming = threading.Lock()
        self._resume_answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._error: tuple[str, str] = ("", "")
        self._loading = False
        self._enabled = False
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._observer = threading.Thread(target=self._observe, name="observations", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the control process and the workers; load what the node starts with in the background.

        Raises ControlError; nothing is left running then.
        """
        self.observations.set_instruction(self._instruction)
        started = self._control.start()
        LOG.info("control process %s: fifo=%s mlock=%s", started.get("pid"), started.get("fifo"), started.get("mlock"))
        path = self._start_path()
        self._pool.start(self._policy_type(path))
        self._supervisor.start()
        self._observer.start()
        if self.config.require_episode:
            self._control.hold("NO_EPISODE", latched=False)
        if path is not None:
            self._loading = True
            self._recovery.start_from(path, self._loaded)
        elif self.config.store_dir or self.config.model_path:
            self._report_error(
                "NO_POLICY", "the store is empty and there is no model_path: waiting for a first install"
            )

    def _start_path(self) -> Path | None:
        candidates = []
        if self.config.store_dir:
            candidates.append(Path(self.config.store_dir).expanduser() / "current")
        if self.config.model_path:
            candidates.append(Path(self.config.model_path).expanduser())
        return next((path.resolve() for path in candidates if path.exists()), None)

    @staticmethod
    def _policy_type(path: Path | None) -> str:
        if path is None:
            return ""
        try:
            return load_manifest(path).policy_type
        except CheckpointError:
            return ""  # the load will say why

    def _loaded(self) -> None:
        self._loading = False
        self._listener.on_change()

    def enable(self, enabled: bool) -> None:
        """Lifecycle: command the robot, or not. Raises ControlError."""
        self._enabled = enabled
        self._control.enable(enabled)

    def close(self) -> None:
        """End every process and thread."""
        self._stop.set()
        with contextlib.suppress(ControlError):
            self._control.enable(False)
        self._recovery.close()
        for thread in (self._supervisor, self._observer):
            if thread.is_alive():
                thread.join(5.0)
        self._control.close()
        self._pool.close()
        self._watch.close()
        self.observations.arena.close()

    # -- generations -----------------------------------------------------------------------------------------------

    def prepare(self, bundle_path: str, digest: str, on_progress: Progress, cancelled: Callable[[], bool]) -> Resident:
        """Load a bundle beside the running one; see :meth:`Generations.prepare`."""
        return self.generations.prepare(
            bundle_path, digest, on_progress=on_progress, cancelled=lambda: cancelled() or self._stop.is_set()
        )

    def swap(self, request: SwapRequest) -> tuple[Resident, Report | None]:
        """Activate a generation; see :meth:`Generations.swap`."""
        resident, report = self.generations.swap(request, motion_allowed=self._motion_allowed())
        self._error = ("", "")
        return resident, report

    def _motion_allowed(self) -> bool:
        return self.observations.motion_permitted()

    def resume(self) -> str:
        """End a latched hold. Returns why that was refused, empty if it was not. Raises ControlError."""
        with self._resuming:
            while not self._resume_answers.empty():
                self._resume_answers.get()
            self._control.resume()
            try:
                answer = self._resume_answers.get(timeout=_ANSWER_S)
            except queue.Empty:
                raise ControlError("CONTROL_UNRESPONSIVE", "the control process did not answer") from None
        if answer["type"] == "RESUME_ACCEPTED":
            self._error = ("", "")
            return ""
        return f"{answer.get('error_code', '')}: {answer.get('message', '')}"

    def on_manager_status(self, trial_digest: str, committed_digest: str) -> None:
        """The manager has spoken: its trial's lease goes on, or ends in a commit."""
        self.generations.on_manager_status(trial_digest, committed_digest)

    # -- episodes --------------------------------------------------------------------------------------------------

    def start_episode(self, episode_id: str, instruction: str, timeout_s: float) -> Episode:
        """Open an episode. Raises EpisodeError, ObservationError (INSTRUCTION_TOO_LONG), PolicyNodeError DURATION_INVALID."""
        timeout_s = duration("timeout_s", timeout_s, self.config.episode_timeout_s)
        with self._episode_lock:
            episode = self._episodes.start(episode_id, instruction or self._instruction, timeout_s, time.monotonic())
            try:
                self._episode_number = self.observations.start_episode(episode.instruction)
            except ObservationError:
                self._episodes.open = None
                raise
        self._events.put(self._watch.reset)
        if self.config.require_episode:
            self._control.release("NO_EPISODE")
        self._listener.on_change()
        return episode

    def end_episode(self, episode_id: str, *, success: bool, known: bool = True, intervention: bool = False) -> Outcome:
        """Close the open episode and tell its outcome. Raises EpisodeError."""
        with self._episode_lock:
            outcome = self._episodes.end(
                episode_id, time.monotonic(), success=success, known=known, intervention=intervention
            )
        if self.config.require_episode:
            self._control.hold("NO_EPISODE", latched=False)
        self._listener.on_outcome(outcome, self.generations.residents.active)
        self._recovery.episode_ended()
        self._listener.on_change()
        return outcome

    def set_instruction(self, instruction: str) -> None:
        """Task in words while no episode names another."""
        with self._episode_lock:
            self._instruction = instruction
            if self._episodes.open is None:
                self.observations.set_instruction(instruction)

    def _open_episode(self) -> int:
        """Number of the open episode, 0 = none."""
        return self._episode_number if self._episodes.open is not None else 0

    # -- supervision -----------------------------------------------------------------------------------------------

    def _observe(self) -> None:
        """Hand the newest observation over, as often as the loop ticks but not for every camera frame."""
        period_s = 1.0 / min(self.contract.rate_hz, _OBSERVATION_HZ)
        while not self._stop.wait(period_s):
            self.observations.publish()

    def _supervise(self) -> None:
        while not self._stop.is_set():
            try:
                self._watch_once()
            except Exception:  # one defect must not end the watch over a moving robot
                LOG.exception("supervision failed")

    def _watch_once(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=_POLL_S)()
        self._follow()
        lease = self.generations.expired_lease()
        if lease is not None:
            self._report_error(
                "LEASE_EXPIRED", f"the manager was silent for {lease.lease_s:g} s in a trial: going back"
            )
            self._recovery.lease_expired(lease)
        with self._episode_lock:
            overdue = self._episodes.overdue(time.monotonic())
        if overdue:
            with contextlib.suppress(EpisodeError):  # ended this moment
                self.end_episode("", success=False, known=False)

    def _follow(self) -> None:
        active = self.generations.residents.active
        self._watch.follow(active.generation.handle if active is not None else None)
        status = self._control.status()
        acting = (
            active is not None and status is not None and status.mode == "RUNNING" and status.generation == active.id
        )
        for scores in self._watch.new_scores(acting=acting):
            assert active is not None
            self._episodes.acted(active.id)
            for source, value in scores.items():
                self._emit_score(source, value, active)

    def _emit_score(self, source: str, value: float, active: Resident) -> None:
        episode = self._episodes.open
        self._listener.on_score(Score(source, value, active.version, active.id, episode.episode_id if episode else ""))

    def _on_control(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind in ("SWAPPED", "SWAP_FAILED", "SPAN"):
            self.generations.on_control_event(event)
        elif kind == "HOLD":
            self._on_hold(event)
        elif kind == "ENABLE_FAILED":
            self._report_error(str(event.get("error_code") or "ENABLE_FAILED"), str(event.get("message", "")))
        elif kind == "EXITED" and not event.get("expected"):
            self._report_error("CONTROL_LOST", "the control process ended: nothing is commanded; restart the node")
        elif kind in ("RESUME_ACCEPTED", "RESUME_REFUSED"):
            self._resume_answers.put(event)
        self._listener.on_change()

    def _on_hold(self, event: dict[str, Any]) -> None:
        reason = str(event.get("reason", ""))
        LOG.warning("hold: %s %s", reason, event.get("message") or "")
        self._watch.reset()
        active = self.generations.residents.active
        if reason in HARD_LIMIT_HOLDS and active is not None:
            self._report_error(reason, str(event.get("message") or "an action broke a hard limit"))
            self._emit_score("hard_limit", 1.0, active)

    def _on_worker(self, event: WorkerEvent) -> None:
        if event.kind == "LOG":
            LOG.info("worker %d: %s", event.pid, event.message)
        elif event.kind == "CHUNK_ERROR" and event.generation is not None:
            if event.code in FATAL_CHUNK_ERRORS:
                self._report_error(event.code, event.message)
                active = self.generations.residents.active
                if active is not None and active.generation is event.generation:
                    if event.code == "NAN":
                        self._emit_score("hard_limit", 1.0, active)
                    event.generation.kill()  # LOST follows
        elif event.kind == "LOST" and event.generation is not None:
            self._on_lost(event)

    def _on_lost(self, event: WorkerEvent) -> None:
        assert event.generation is not None
        lost = self.generations.lost(event.generation.id)
        if lost is None:
            return
        resident, was_active, lease = lost
        self._report_error(event.code or "WORKER_LOST", f"{resident.version}: {event.message}")
        if was_active:
            self._recovery.worker_lost(resident, lease)

    def _report_error(self, code: str, message: str) -> None:
        LOG.error("%s: %s", code, message)
        self._error = (code, message)
        self._listener.on_change()

    # -- status ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What the node is running now."""
        status = self._control.status()
        alive = self._control.alive and (status is None or status.age_s < _CONTROL_SILENT_S)
        residents = self.generations.residents
        episode = self._episodes.open
        return Snapshot(
            boot_id=self.boot_id,
            active=residents.active,
            standby=residents.standby,
            prepared=residents.prepared,
            on_trial=self.generations.lease is not None,
            control=status,
            control_alive=alive,
            motion_permitted=self._motion_allowed(),
            loading=self._loading,
            inference_ms=self._watch.inference_ms,
            episode_id=episode.episode_id if episode else "",
            instruction=episode.instruction if episode else self._instruction,
            error_code=self._error[0],
            message=self._error[1],
        )
