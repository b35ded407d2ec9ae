# SPDX-License-Identifier: Apache-2.0
"""The policy node without ROS: control process, workers, generations, episodes and scores under one roof.

Threads: callers (services, actions) block in :meth:`swap` and :meth:`prepare`; events of the control process and of workers
are put into a queue; the supervisor thread takes them, watches chunks, leases and time limits, and waits for nobody; automatic
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
from vla_policy_node.contract.model import Contract
from vla_policy_node.control.client import ControlClient, ControlStatus
from vla_policy_node.control.sinks import NOWHERE
from vla_policy_node.draws import Assignment, Draws
from vla_policy_node.episodes import Episode, EpisodeError, Episodes, Outcome
from vla_policy_node.errors import ControlError, duration
from vla_policy_node.generations.generations import Generations
from vla_policy_node.generations.lease import TrialLease
from vla_policy_node.generations.recovery import Recovery
from vla_policy_node.generations.residents import Loss, OnDisk, Resident
from vla_policy_node.generations.swapping import Report, SwapRequest
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.ipc.layouts import OBSERVATION_HZ
from vla_policy_node.journal import Journal
from vla_policy_node.observation import ObservationBuffer, encode_instruction
from vla_policy_node.operator_actions import OperatorActions
from vla_policy_node.remote.line import name_and_port, tls_context
from vla_policy_node.scores import ChunkScorer
from vla_policy_node.shadow.follower import Follower, ShadowActions
from vla_policy_node.shadow.session import Shadow
from vla_policy_node.steps import StepLog, Steps
from vla_policy_node.worker.api import HOST_LOST, Generation, Remote, WorkerConfig, WorkerEvent
from vla_policy_node.worker.pool import Progress, WorkerPool
from vla_ros.plain import plain

LOG = logging.getLogger("vla_policy_node")

POLICY_FAILED = "POLICY_FAILED"
FATAL_HOLDS = ("NAN", POLICY_FAILED)
"""A worker that answers so (POLICY_FAILED: it raised, or returned a wrong shape) is not asked again: it counts as lost."""
HARD_LIMIT_HOLDS = ("LIMIT", "NAN")
_CHUNK_FAULTS = (POLICY_FAILED, "WRONG_SHAPE")
_POLL_S = 0.02
_STEPS_S = 0.1
"""So often the steps of an open episode are handed on [s]."""
_CONTROL_SILENT_S = 1.0
_ANSWER_S = 2.0
_ENABLE_S = 6.0  # it looks for other publishers first
_LOST = ("CONTROL_LOST", "the control process ended: nothing is commanded; the node ends to be restarted")
_SILENT = ("CONTROL_UNRESPONSIVE", "the control process does not tick: what it commands is not known")


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
    prepared: Resident | OnDisk | None
    on_trial: bool
    load_in_place: bool
    shadow_only: bool
    control: ControlStatus | None
    control_alive: bool
    motion_permitted: bool
    loading: bool
    inference_ms: float
    episode_id: str
    arm: str
    experiment: str
    episode_arms: bool
    draw_error: tuple[str, str]
    instruction: str
    error_code: str
    message: str


class Listener(Protocol):
    """Receives what happens. Called from the engine's threads; must return soon and not raise."""

    def on_change(self) -> None:
        """The snapshot is another one."""

    def on_score(self, score: Score) -> None:
        """A chunk was scored, or a hard limit was broken."""

    def on_outcome(self, outcome: Outcome, active: Resident | None) -> None:
        """An episode has ended."""

    def on_report(self, report: Report) -> None:
        """A swap is over, its second of watching included."""

    def on_steps(self, steps: Steps, episode: Episode, by: Resident | None) -> None:
        """Steps of the open episode; ``by``: whose policy it was, as far as is known."""

    def on_shadow_actions(self, shown: ShadowActions) -> None:
        """A shadow-only node's policy has made a chunk."""


def worker_config(config: PolicyNodeConfig, contract: Contract) -> WorkerConfig:
    """Return what the pool needs of the node's settings.

    Raises ValueError for a policy module that is not type=module; WorkerError WORKER_HOST_INVALID, WORKER_TLS_INVALID.
    """
    modules = dict(item.split("=", 1) for item in config.policy_modules)
    if config.worker_host or config.worker_tls:  # wrong ones must not wait for the first load to be found
        name_and_port(config.worker_host)
        tls_context(config.worker_tls, server=False)
    remote = Remote(config.worker_host, config.worker_tls, config.worker_silence_s) if config.worker_host else None
    return WorkerConfig(
        worker_python=config.worker_python,
        paths=config.worker_paths,
        policy_modules=modules,
        imports=config.worker_imports if remote is None else ("vla_policy_node.remote.robot",),
        device=config.device if remote is None else "cpu",
        threads=config.worker_threads,
        generations=1 if config.load_in_place else 2,
        spare=config.spare_worker and remote is None,  # one that only speaks to a host is forked in milliseconds
        load_timeout_s=config.load_timeout_s,
        inference_timeout_s=config.inference_timeout_s,
        observation_max_age_s=contract.observation_max_age_s,
        remote=remote,
    )


class PolicyEngine:
    """Everything of a policy node but its ROS interface."""

    def __init__(
        self, config: PolicyNodeConfig, contract: Contract, *, sink: Mapping[str, Any], listener: Listener
    ) -> None:
        if config.shadow_only:  # without permission, and without a way to the robot
            contract, sink = contract.in_shadow(), {"kind": NOWHERE}
        workers = worker_config(config, contract)  # first: it may refuse
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
            cpus=config.control_cpus,
        )
        self._pool = WorkerPool(
            workers,
            self.observations.arena,
            contract.features,
            lambda event: self._events.put(lambda: self._on_worker(event)),
        )
        self.generations = Generations(
            config,
            contract,
            self._control,
            self._pool,
            on_change=listener.on_change,
            on_report=listener.on_report,
            on_active_lost=self._on_active_lost,
        )
        self._shadow = Shadow(config, contract, self.observations.arena, self._active_generation, self._control.status)
        self.draws = Draws(self.generations, config.trial_lease_s, config.inference_timeout_s)
        scale = np.array([c.limits.rate * contract.period_s for c in contract.channels])
        self._watch = ChunkWatch(ChunkScorer(scale, config.reversal_deadband), self._on_chunk)
        self.follower = Follower(contract, self.observations.arena) if config.shadow_only else None
        """What a shadow-only node's policy wanted and the robot did; ``None`` if it is not one."""
        self._episodes = Episodes()
        self._steps, self._steps_due_s = StepLog(self._control.ticks, self.observations.numbers), 0.0
        self._opening, self._episode_lock = threading.Lock(), threading.Lock()
        self._episode_number = 0
        self._instruction = config.instruction
        self._recovery = Recovery(
            config, self.generations, current_episode=self._open_episode, report_error=self._report_error
        )
        self._enabling, self._asking = threading.Lock(), threading.Lock()
        self._enable_answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._resume_answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._operator_answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._operated = False  # an operator has taken over
        self.operator = OperatorActions(contract, self._control.operate)
        self._error: tuple[str, str] = ("", "")
        self._condemned: dict[int, tuple[str, str]] = {}  # generation that was killed -> why
        self._faults: dict[int, str] = {}  # generation -> what its policy did instead of giving a chunk
        self._journal = Journal()
        self._loading = False
        self.enabled = False
        """Whether the robot is commanded, or held: lifecycle active."""
        self.control_lost = False
        """Whether the control process ended by itself: only a new engine can command the robot again."""
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._observer = threading.Thread(target=self._observe, name="observations", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the control process and the workers; load what the node starts with in the background.

        Raises ControlError, and ObservationError for an instruction that is too long; call :meth:`close` then.
        """
        self.observations.set_instruction(self._instruction)
        started = self._control.start()
        self._say_started(started)
        if self.config.load_in_place and self.config.shadow_chunks:
            LOG.warning("load_in_place: there is no room for a shadow; shadow_chunks counts only while nothing acts")
        path = self._start_path()
        self._pool.start(self._policy_type(path))
        self._supervisor.start()
        self._observer.start()
        if self.config.require_episode:
            self._hold_without_episode()
        if path is not None:
            self._loading = True
            self._recovery.start_from(path, self._loaded)
        elif self.config.store_dir or self.config.model_path:
            self._report_error(
                "NO_POLICY", "the store is empty and there is no model_path: waiting for a first install"
            )

    def _say_started(self, started: dict[str, Any]) -> None:
        """Log what the machine granted the control process, and warn of what it refused."""
        LOG.info("control process %s: fifo=%s mlock=%s", started["pid"], started["fifo"], started["mlock"])
        config = self.config
        for refused, what in (
            (started["fifo"] < config.fifo_priority, f"SCHED_FIFO {config.fifo_priority} (fifo_priority)"),
            (not started["mlock"], "locked memory"),
            (not started["pinned"], f"processors {config.control_cpus} (control_cpus)"),
        ):
            if refused:
                LOG.warning("the machine refuses the control process %s: ticks may be late; ask the doctor", what)

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
        """Lifecycle: command the robot, or not; returns when it is so. After every ``True`` the robot holds until resume.

        Raises ControlError: COMMAND_TOPIC_TAKEN, CONTROL_LOST, CONTROL_UNRESPONSIVE. A control process that does not answer is
        killed: it must neither go on commanding nor begin to command later.
        """
        with self._enabling:
            self.enabled = False
            while not self._enable_answers.empty():
                self._enable_answers.get()
            wanted = ("ENABLED", "ENABLE_FAILED") if enabled else ("DISABLED",)
            end_s = time.monotonic() + (_ENABLE_S if enabled else _ANSWER_S)
            try:
                self._control.enable(enabled)
                while True:
                    answer = self._enable_answers.get(timeout=max(0.0, end_s - time.monotonic()))
                    if answer["type"] in wanted:
                        break
            except queue.Empty:
                self._control.kill()
                raise ControlError("CONTROL_UNRESPONSIVE", "the control process did not answer") from None
            except ControlError:
                self._control.kill()
                raise
        if answer["type"] == "ENABLE_FAILED":
            code, message = str(answer.get("error_code")), str(answer.get("message"))
            self._report_error(code, message)
            raise ControlError(code, message)
        self.enabled = enabled

    def close(self) -> None:
        """End every process and thread; pending preparations and swaps fail with CLOSED."""
        self._stop.set()
        with contextlib.suppress(ControlError):
            self._control.enable(False)  # the answer is not waited for: the process ends soon, one way or the other
        self.generations.close()
        self._recovery.close()
        for thread in (self._supervisor, self._observer):
            if thread.is_alive():
                thread.join(5.0)
        self._control.close()
        self._pool.close()
        self._watch.close()
        self.observations.close()

    # -- generations -----------------------------------------------------------------------------------------------

    def prepare(
        self,
        bundle_path: str,
        digest: str,
        on_progress: Progress,
        cancelled: Callable[[], bool],
        *,
        skip_shadow: bool = False,
    ) -> Resident | OnDisk:
        """Load a bundle beside the running one; see :meth:`Generations.prepare`."""
        return self.generations.prepare(
            bundle_path,
            digest,
            on_progress=on_progress,
            cancelled=lambda: cancelled() or self._stop.is_set(),
            shadow=None if skip_shadow else self._shadow,
        )

    def swap(self, request: SwapRequest) -> tuple[Resident | OnDisk, Report | None]:
        """Activate a generation; see :meth:`Generations.swap`."""
        resident, report = self.generations.swap(
            request,
            motion_allowed=self.observations.motion_permitted,
            cancelled=self._stop.is_set,
            shadow=self._shadow,
        )
        self._error = ("", "")
        return resident, report

    def _active_generation(self) -> Generation | None:
        active = self.generations.residents.active
        return None if active is None else active.generation

    def resume(self) -> str:
        """End a latched hold. Returns why that was refused, empty if it was not. Raises ControlError."""
        answer = self._answer(self._control.resume, self._resume_answers)
        if answer["type"] == "RESUME_ACCEPTED":
            if self.generations.residents.active is not None:  # else what was lost is worth telling still
                self._error = ("", "")
            return ""
        return f"{answer.get('error_code', '')}: {answer.get('message', '')}"

    def take_over(self, *, on: bool) -> None:
        """Let what :attr:`operator` receives command the robot instead of the policy; or the policy again. Raises ControlError.

        The open episode, and each that begins meanwhile, ends as one with an intervention.
        """
        self._answer(lambda: self._control.take_over(on), self._operator_answers)

    def _answer(self, ask: Callable[[], None], answers: queue.SimpleQueue[dict[str, Any]]) -> dict[str, Any]:
        with self._asking:
            while not answers.empty():
                answers.get()
            ask()
            try:
                return answers.get(timeout=_ANSWER_S)
            except queue.Empty:
                raise ControlError("CONTROL_UNRESPONSIVE", "the control process did not answer") from None

    def on_manager_status(self, trial_digest: str, committed_digest: str, assignment: Assignment | None = None) -> None:
        """The manager has spoken: its trial's lease goes on, or ends in a commit; so does that of an experiment's B."""
        self.draws.on_manager_status(assignment)
        drawn_digest = "" if assignment is None else assignment.digests[1]
        self.generations.on_manager_status(trial_digest, committed_digest, drawn_digest)

    # -- episodes --------------------------------------------------------------------------------------------------

    def start_episode(self, episode_id: str, instruction: str, timeout_s: float) -> Episode:
        """Open an episode, with the version that is drawn for it if there is an experiment.

        Raises PolicyNodeError: EpisodeError, INSTRUCTION_TOO_LONG, DURATION_INVALID, CONTROL_….
        """
        timeout_s = duration("timeout_s", timeout_s, self.config.episode_timeout_s)
        instruction = instruction or self._instruction
        encode_instruction(instruction)
        with self._opening:
            name = self._episodes.name(episode_id)
            try:
                draw = self.draws.draw(name, lambda: self._begin_episode(instruction))
                with self._episode_lock:
                    episode = self._episodes.start(name, instruction, timeout_s, time.monotonic(), draw.arm)
                    self._steps.begin()
                    if draw.arm:
                        self._note_who_acts()  # what was drawn acts already; it may be lost before the supervisor looks
                    if self._operated:
                        self._episodes.intervened()
            except BaseException:
                self.observations.set_instruction(self._instruction)
                if self.config.require_episode:
                    self._hold_without_episode()
                raise
            if draw.swapped:
                self._recovery.count_swap(self._episode_number)
        self._listener.on_change()
        return episode

    def _begin_episode(self, instruction: str) -> None:
        """Let the robot begin: it is not open yet, for what is drawn for it may need a moment to act."""
        self._episode_number = self.observations.start_episode(instruction)
        if self.config.require_episode:
            self._control.set_episode_missing(False)
        self._events.put(self._watch.reset)

    def end_episode(self, episode_id: str, *, success: bool, known: bool = True, intervention: bool = False) -> Outcome:
        """Close the open episode and tell its outcome. Raises EpisodeError."""
        self._note_who_acts()
        with self._episode_lock:
            self._hand_on_steps()
            outcome = self._episodes.end(
                episode_id, time.monotonic(), success=success, known=known, intervention=intervention
            )
            self.observations.set_instruction(self._instruction)
            if self.config.require_episode:
                self._hold_without_episode()
        self._listener.on_outcome(outcome, self.generations.residents.active)
        self._listener.on_change()
        return outcome

    def _hold_without_episode(self) -> None:
        try:
            self._control.set_episode_missing(True)
        except ControlError as e:
            self._report_error(e.code, str(e))

    def set_instruction(self, instruction: str) -> None:
        """Task in words while no episode names another. Raises ObservationError INSTRUCTION_TOO_LONG."""
        encode_instruction(instruction)
        with self._episode_lock:
            self._instruction = instruction
            if self._episodes.open is None and not self._opening.locked():  # else the episode has its own
                self.observations.set_instruction(instruction)

    def _open_episode(self) -> int:
        """Number of the open episode, 0 = none."""
        return self._episode_number if self._episodes.open is not None else 0

    # -- supervision -----------------------------------------------------------------------------------------------

    def _observe(self) -> None:
        """Hand the newest observation over, as often as the loop ticks but not for every camera frame."""
        period_s = 1.0 / min(self.contract.rate_hz, OBSERVATION_HZ)
        due_s = time.monotonic()
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            self.observations.publish()
            due_s = max(due_s + period_s, time.monotonic())  # policies with a history look back by whole periods

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
        lease = self.generations.due_lease()
        if lease is not None:
            self._recovery.lease_expired(lease)
        self._recovery.run_deferred()
        with self._episode_lock:
            if time.monotonic() >= self._steps_due_s:
                self._steps_due_s = time.monotonic() + _STEPS_S
                self._hand_on_steps()
            overdue = self._episodes.overdue(time.monotonic())
        if overdue:
            with contextlib.suppress(EpisodeError):  # ended this moment
                self.end_episode("", success=False, known=False)

    def _on_chunk(self, handle: GenerationHandle, fields: Mapping[str, Any]) -> None:
        if self.follower is not None:
            self._listener.on_shadow_actions(self.follower.chunk(handle, fields))

    def _follow(self) -> None:
        if self.follower is not None:
            self.follower.look()
        active = self.generations.residents.active
        self._watch.follow(active.generation.handle if active is not None else None)
        episode = self._episodes.open
        acting = active is not None and self._note_who_acts() == active.id
        acting = acting and (
            episode is not None or not self.config.require_episode
        )  # it has just ended: no one's chunk
        for scores in self._watch.new_scores(acting=acting):
            assert active is not None
            for source, value in scores.items():
                self._emit_score(source, value, active, episode)

    def _hand_on_steps(self) -> None:
        """Call it with the episodes' lock: what is taken belongs to the open episode. A policy in shadow makes no steps."""
        episode = self._episodes.open
        if episode is not None and not self.config.shadow_only:
            for steps in self._steps.take(self._episode_number):
                self._listener.on_steps(steps, episode, self.generations.residents.by_id(steps.generation))

    def _note_who_acts(self) -> int:
        """Return the generation that acts now, 0 = none, and put it down in the open episode."""
        status = self._control.status()
        if status is None or status.mode != "RUNNING":
            return 0
        self._episodes.acted(status.generation)
        return status.generation

    def _emit_score(self, source: str, value: float, active: Resident, episode: Episode | None) -> None:
        self._listener.on_score(Score(source, value, active.version, active.id, episode.episode_id if episode else ""))

    def _on_control(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        active = self.generations.residents.active
        self._journal.note(event, active.version if active is not None else "")
        if kind in ("SWAPPED", "SWAP_FAILED", "VACATED", "SPAN"):
            if event.get("error_code") in _CHUNK_FAULTS and (fault := self._faults.get(int(event["generation"]))):
                event = {**event, "message": f"the new generation's first chunk: {fault}"}
            self.generations.on_control_event(event)
        elif kind == "HOLD":
            self._on_hold(event)
        elif kind in ("ENABLED", "DISABLED", "ENABLE_FAILED"):
            self._enable_answers.put(event)
        elif kind == "REFUSED":
            self._report_error(str(event.get("error_code") or kind), str(event.get("message", "")))
        elif kind == "EXITED" and not event.get("expected"):
            self._report_error(*_LOST)
            self.control_lost = True
            self.generations.control_lost()
            self._enable_answers.put({"type": "ENABLE_FAILED", "error_code": "CONTROL_LOST", "message": "it has ended"})
        elif kind in ("RESUME_ACCEPTED", "RESUME_REFUSED"):
            self._resume_answers.put(event)
        elif kind in ("TAKEN_OVER", "GIVEN_BACK"):
            with self._episode_lock:
                self._operated = kind == "TAKEN_OVER"
                if self._operated:
                    self._episodes.intervened()
            self._operator_answers.put(event)
        self._listener.on_change()

    def _on_active_lost(self, resident: Resident, lease: TrialLease | None, why: Loss) -> None:
        if lease is not None and lease.drawn and not lease.failed:
            code = HOST_LOST if why.code == HOST_LOST else "WORKER_LOST"
            self.draws.stop(code, f"{resident.version}: {why}")
        self._recovery.worker_lost(resident, lease, why)

    def _on_hold(self, event: dict[str, Any]) -> None:
        reason, message = str(event.get("reason", "")), str(event.get("message") or "")
        self._watch.reset()
        active = self.generations.residents.active
        if active is None or active.id != event.get("generation"):
            return
        if reason in HARD_LIMIT_HOLDS:
            self._report_error(reason, message or "an action broke a hard limit")
            self._emit_score("hard_limit", 1.0, active, self._episodes.open)
            lease = self.generations.lease
            if lease is not None and lease.drawn and lease.generation == active.id:
                why = f"{active.version}: {message or reason}"
                self.draws.stop("HARD_LIMIT", why)
                lease.end(why, failed=True)
        if reason in FATAL_HOLDS:
            self._condemned[active.id] = reason, message
            active.generation.kill()  # LOST follows

    def _on_worker(self, event: WorkerEvent) -> None:
        if event.kind in ("LOG", "SPARE_READY"):
            LOG.info("worker %d: %s", event.pid, event.message)
        elif event.kind == "CHUNK_ERROR" and event.generation is not None and event.code != "OBSERVATION_STALE":
            # The control process holds, and says so.
            LOG.error("%s: %s: %s", event.code, event.generation.handle.version, event.message)
            self._faults[event.generation.id] = fault = event.message.strip().splitlines()[-1]
            self._set_error(event.code, f"{event.generation.handle.version}: {fault}")
        elif event.kind == "LOST" and event.generation is not None:
            self._on_lost(event.generation.id, event)

    def _on_lost(self, generation: int, event: WorkerEvent) -> None:
        resident = self.generations.residents.by_id(generation)
        code, why = self._condemned.pop(generation, (event.code or "WORKER_LOST", event.message))
        fault = self._faults.pop(generation, "")
        if code == POLICY_FAILED:
            why = fault or why
        if resident is not None:
            self._report_error(code, f"{resident.version}: {why}")
            self.generations.lost(generation, Loss(code, why))

    def _report_error(self, code: str, message: str) -> None:
        message = message.removeprefix(f"{code}: ")
        LOG.error("%s: %s", code, message)
        self._set_error(code, message)

    def _set_error(self, code: str, message: str) -> None:
        self._error = (code, plain(message))
        self._listener.on_change()

    # -- status ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What the node is running now."""
        status = self._control.status()
        alive = self._control.alive
        ended = not alive and self._control.pid is not None
        silent = status is not None and status.age_s >= _CONTROL_SILENT_S
        error = _LOST if ended else _SILENT if silent else self._error  # at once: its event comes a moment later
        active, standby, prepared, on_trial = self.generations.parts()
        episode = self._episodes.open
        return Snapshot(
            boot_id=self.boot_id,
            active=active,
            standby=standby,
            prepared=prepared,
            on_trial=on_trial,
            load_in_place=self.config.load_in_place,
            shadow_only=self.config.shadow_only,
            control=status,
            control_alive=alive and not silent,
            motion_permitted=self.observations.motion_permitted(),
            loading=self._loading,
            inference_ms=self._watch.inference_ms,
            episode_id=episode.episode_id if episode else "",
            arm=episode.arm if episode else "",
            experiment=self.draws.experiment,
            episode_arms=active is not None and self._pool.holds_two(),
            draw_error=self.draws.error,
            instruction=episode.instruction if episode else self._instruction,
            error_code=error[0],
            message=error[1],
        )
