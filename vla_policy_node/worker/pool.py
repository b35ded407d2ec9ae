# SPDX-License-Identifier: Apache-2.0
"""The node's side of its workers: spare, prepare, release, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vla_checkpoint.bundle import Bundle, open_bundle
from vla_checkpoint.errors import CheckpointError
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.channel import ChannelClosedError
from vla_policy_node.ipc.generation import CHUNK_SLOTS, REQUEST_SLOTS, GenerationHandle
from vla_policy_node.ipc.layouts import chunk_layout, request_layout
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_policy_node.worker.adapter import Adapted, find_base, write_changes
from vla_policy_node.worker.api import (
    HOST_LOST,
    HOST_LOST_STATUS,
    Generation,
    PrepareError,
    Timings,
    WorkerConfig,
    WorkerEvent,
)
from vla_policy_node.worker.child import Child
from vla_policy_node.worker.files import check_files
from vla_policy_node.worker.memory import WeightArena, WeightArenas
from vla_policy_node.worker.plan import Plan, Recording, check_history, golden_memory, make_plan, plan_memory
from vla_policy_node.worker.supply import Supply
from vla_policy_node.worker.watcher import Watcher

Progress = Callable[[str, float], None]
"""Called with the state (QUEUED, LOADING, DIGEST, GOLDEN, WARM_UP, READY) and the share of the whole that is done, 0 to 1."""

_POLL_S = 0.05  # how soon a cancellation is noticed
_END_TIMEOUT_S = (
    5.0  # a killed process normally takes milliseconds; one in the kernel's hands (a GPU driver) may take longer
)


@dataclass(eq=False)
class _Resident:
    """A worker with what belongs to its bundle: one preparation, then one generation."""

    child: Child
    arenas: tuple[WeightArena, ...]
    """Where a full bundle's weights are; for an adapter its base's, which others may share, and its own. Empty: let go."""
    handle: GenerationHandle
    chunks: Arena
    requests: Arena
    generation: Generation | None = None
    released: bool = False
    owing: tuple[int, float] | None = None
    """While a request is unanswered: newest chunk, and since when it has been that."""


class WorkerPool:
    """Worker processes of one policy node. Every method may be called from any thread, but not from ``on_event``.

    Args:
        config: how workers are started and judged.
        observation: the arena that the node writes (``ipc.layouts.observation_layout``).
        features: the observation features that it holds.
        on_event: see :class:`WorkerEvent`.
    """

    def __init__(
        self,
        config: WorkerConfig,
        observation: Arena,
        features: Mapping[str, FeatureSpec],
        on_event: Callable[[WorkerEvent], None],
    ) -> None:
        self._config, self._observation, self._features = config, observation, dict(features)
        self._on_event = on_event
        self._weights = WeightArenas(config.generations, config.memory_reserve_bytes)
        self._watcher = Watcher(
            self._on_message, self._on_exit, self._tick, lambda text: self._emit("LOG", text, os.getpid())
        )
        self._supply = Supply(config, self._watcher, self._emit)
        self._preparing = threading.Lock()
        self._lock = threading.Lock()  # protects everything below
        self._residents: dict[Child, _Resident] = {}
        self._last_id = 0
        self._closed = False

    def start(self, policy_type: str = "") -> None:
        """Start watching, and the spare worker; ``policy_type`` is the type whose module it imports ahead."""
        self._supply.start(policy_type if self._config.remote is None else "")
        self._watcher.start()

    def prepare(
        self,
        bundle_dir: Path,
        *,
        digest: str = "",
        on_progress: Progress = lambda state, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
        timeout_s: float | None = None,
        recording: Recording | None = None,
        shadow: Arena | None = None,
        observation: Arena | None = None,
    ) -> Generation:
        """Load a bundle in a worker of its own and prove it; blocks until it is READY.

        Args:
            bundle_dir: the bundle's folder, or a link to it.
            digest: what the bundle's digest must be; empty = any.
            on_progress: called on this thread.
            cancelled: asked every 50 ms; true ends the preparation.
            timeout_s: longest preparation [s]; ``None`` = ``load_timeout_s``.
            recording: gets the policy's answers; the bundle's golden observations are then not replayed.
            shadow: what it observes, at a raised nice level, until :meth:`Generation.end_shadow`; laid out as the robot's arena.
            observation: what it observes in place of the pool's arena.

        Raises:
            PrepareError: the worker is gone by then and its memory is back.
        """
        if not self._preparing.acquire(blocking=False):
            raise PrepareError("PREPARE_IN_PROGRESS", "another bundle is being prepared")
        deadline_s = time.monotonic() + (self._config.load_timeout_s if timeout_s is None else timeout_s)
        try:
            on_progress("QUEUED", 0.0)
            self._raise_if_over(cancelled, deadline_s)
            bundle, adapted, plan = self._open(bundle_dir, digest, recording, observation or self._observation)
            raise_if_over = partial(self._raise_if_over, cancelled, deadline_s)
            raise_if_over()
            resident, spare_used, merge_s = self._begin(bundle, adapted, plan, shadow, raise_if_over)
            whole = resident.arenas[0]
            try:
                generation = self._finish(resident, bundle, spare_used, merge_s, on_progress, cancelled, deadline_s)
                whole.holds = bundle.digest if adapted is None else adapted.base.digest
            except BaseException:
                self._end(resident)
                raise
            on_progress("READY", 1.0)
            return generation
        finally:
            self._supply.schedule_spare(self._config.spare_delay_s)
            self._preparing.release()

    def check(
        self,
        bundle_dir: Path,
        *,
        digest: str = "",
        on_progress: Progress = lambda state, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> float:
        """Check a bundle as far as that goes without loading it, every byte of its files too; return how long it took [s].

        Runs at a raised nice level. Raises PrepareError.
        """
        begun_s = time.monotonic()
        bundle, _, _ = self._open(bundle_dir, digest, None, self._observation)
        check_files(bundle, self._config.nice, lambda fraction: on_progress("DIGEST", fraction), cancelled)
        return time.monotonic() - begun_s

    def release(self, generation: Generation) -> None:
        """End a generation's worker and close its descriptors; no event follows. Harmless when repeated."""
        with self._lock:
            resident = next((r for r in self._residents.values() if r.generation is generation), None)
        if resident is not None:
            self._end(resident)

    def generations(self) -> list[Generation]:
        """Generations not yet released, oldest first; a lost one is among them until it is released."""
        with self._lock:
            found = [r.generation for r in self._residents.values() if r.generation is not None and not r.released]
        return sorted(found, key=lambda g: g.id)

    def holds_two(self) -> bool:
        """Whether there is memory for a second generation beside the one that is loaded; false while none is."""
        return self._weights.holds_two()

    def ensure_spare(self) -> None:
        """Start the spare now rather than after ``spare_delay_s`` (a swap is over)."""
        self._supply.schedule_spare(0.0)

    def close(self) -> None:
        """End every worker and wait for it. A preparation under way ends with CLOSED."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._supply.close()
        self._watcher.stop()  # kills and reaps them all
        self._supply.join()
        over = self._preparing.acquire(timeout=_END_TIMEOUT_S)  # a preparation under way notices and cleans up
        with self._lock:
            residents = list(self._residents.values())
        for resident in residents:
            self._end(resident)
        if over:
            self._weights.close()
            self._preparing.release()

    # -- preparing, on the caller's thread

    def _open(
        self, bundle_dir: Path, digest: str, recording: Recording | None, observation: Arena
    ) -> tuple[Bundle, Adapted | None, Plan]:
        try:
            bundle = open_bundle(bundle_dir, expected_digest=digest or None)
            check_history(bundle)
            adapted = find_base(bundle)
            plan = make_plan(bundle, self._config, observation, adapted=adapted, recording=recording)
            return bundle, None if self._config.remote else adapted, plan  # a host merges by itself
        except CheckpointError as e:
            raise PrepareError(e.code, str(e)) from e
        except MemoryError as e:
            raise PrepareError("OUT_OF_MEMORY", f"{bundle_dir}: no memory left while reading it") from e

    def _take_memory(self, bundle: Bundle, adapted: Adapted | None, plan: Plan) -> tuple[WeightArena, ...]:
        """Return the arenas of a generation, as in :class:`_Resident`; what an adapter changes is in its one then."""
        if adapted is None:
            return (self._weights.take(plan.weights_bytes),)
        base, changes = self._weights.take_adapter(adapted.base.digest, plan.weights_bytes, plan.changed_bytes)
        try:
            there = bool(base.holds)
            plan.document["weights_are_there"] = there
            write_changes(bundle, adapted, plan.document, base.fd if there else None, changes.fd, self._config.nice)
        except BaseException:
            self._weights.give_back(base, changes)
            raise
        return base, changes

    def _begin(
        self,
        bundle: Bundle,
        adapted: Adapted | None,
        plan: Plan,
        shadow: Arena | None,
        raise_if_over: Callable[[], None],
    ) -> tuple[_Resident, bool, float]:
        """Give the plan to the spare worker, or to a new one; return also how long merging an adapter took [s]."""
        begun_s = time.monotonic()
        arenas = self._take_memory(bundle, adapted, plan)
        merge_s = time.monotonic() - begun_s if adapted is not None else 0.0
        try:
            policy_type = bundle.manifest.policy_type if self._config.remote is None else ""  # "": nothing to import
            child, spare_used = self._supply.take(policy_type, raise_if_over)
        except BaseException:
            self._weights.give_back(*arenas)
            raise
        if self._config.remote is not None:
            child.died_codes = {HOST_LOST_STATUS: HOST_LOST}
        horizon, execute, action_dim = (int(plan.document["spec"][key]) for key in ("horizon", "execute", "action_dim"))
        chunks = Arena.create(chunk_layout(horizon, action_dim), CHUNK_SLOTS, "vla_ota_chunks")
        requests = Arena.create(request_layout(), REQUEST_SLOTS, "vla_ota_requests")
        with self._lock:
            self._last_id += 1
            handle = GenerationHandle(
                id=self._last_id,
                version=bundle.manifest.version,
                digest=bundle.digest,
                horizon=horizon,
                execute=execute,
                action_dim=action_dim,
                chunk_slots=CHUNK_SLOTS,
                request_slots=REQUEST_SLOTS,
                chunk_fd=chunks.fd,
                request_fd=requests.fd,
                eventfd=os.eventfd(0),
            )
            resident = _Resident(child, arenas, handle, chunks, requests)
            self._residents[child] = resident
        try:
            self._send_load(resident, plan, shadow)
        except BaseException:
            self._end(resident)
            raise
        return resident, spare_used, merge_s

    def _send_load(self, resident: _Resident, plan: Plan, shadow: Arena | None) -> None:
        fields, handle_fds = resident.handle.to_message()
        golden = golden_memory(plan.golden) if plan.recording is None else os.dup(plan.recording.fd)
        weights, *changes = (arena.fd for arena in resident.arenas)
        memory = [plan_memory(plan), golden]
        fds = [memory[0], weights, plan.observation.fd, *handle_fds, golden, *changes]
        message = {"type": "load", "handle": fields, "shadow": 0 if shadow is None else shadow.slots}
        try:
            resident.child.channel.send(message, fds if shadow is None else [*fds, shadow.fd])
        except ChannelClosedError as e:
            raise PrepareError("WORKER_DIED", "the worker ended before it was given a bundle") from e
        finally:
            for fd in memory:
                os.close(fd)

    def _finish(
        self,
        resident: _Resident,
        bundle: Bundle,
        spare_used: bool,
        merge_s: float,
        on_progress: Progress,
        cancelled: Callable[[], bool],
        deadline_s: float,
    ) -> Generation:
        """Follow the worker until it is READY."""
        while True:
            try:
                message = resident.child.inbox.get(timeout=_POLL_S)
            except queue.Empty:
                message = {"type": "nothing"}
            self._raise_if_over(cancelled, deadline_s)
            kind = message["type"]
            if kind == "progress":
                on_progress(message["state"], message["fraction"])
            elif kind == "failed":
                raise PrepareError(message["code"], message["message"])
            elif kind == "exit":
                text = f"worker {resident.child.pid} {message['text']} while loading"
                raise PrepareError(resident.child.died_code, text)
            elif kind == "ready":
                return self._admit(resident, bundle, message, spare_used, merge_s)

    def _admit(
        self, resident: _Resident, bundle: Bundle, message: dict[str, Any], spare_used: bool, merge_s: float
    ) -> Generation:
        features = {name: FeatureSpec(tuple(shape), dtype) for name, (dtype, shape) in message["features"].items()}
        handle, child, seconds = resident.handle, resident.child, message["seconds"]
        timings = Timings(
            load_s=seconds["load"] + merge_s,
            digest_s=seconds["digest"],
            golden_s=seconds.get("golden", 0.0),
            warm_up_s=seconds["warm_up"],
            inference_ms=message["inference_ms"],
            golden_difference=message["golden_difference"],
            spare_used=spare_used,
        )
        spec = PolicySpec(
            features,
            handle.horizon,
            handle.execute,
            handle.action_dim,
            message["uses_instruction"],
            bundle.config.n_obs_steps,
        )
        generation = Generation(
            handle,
            bundle.manifest,
            spec,
            timings,
            child.pid,
            lambda: child.alive,
            lambda: child.died_code,
            child.kill,
            lambda: _end_shadow(child),
        )
        with self._lock:
            # From here on the watcher reports a death; one that it saw before is in the inbox.
            if not child.alive:
                raise PrepareError(child.died_code, f"worker {child.pid} ended as it became ready")
            resident.generation = generation
            if message["weights_are_free"]:
                self._weights.let_go(*resident.arenas)
                resident.arenas = ()
        return generation

    def _raise_if_over(self, cancelled: Callable[[], bool], deadline_s: float) -> None:
        if self._closed:
            raise PrepareError("CLOSED", "the node is shutting down")
        if cancelled():
            raise PrepareError("CANCELLED", "cancelled on request")
        if time.monotonic() > deadline_s:
            raise PrepareError("LOAD_TIMEOUT", "the bundle was not ready in time")

    def _end(self, resident: _Resident) -> None:
        """Kill the worker, wait for its end, and close what it shared with others."""
        with self._lock:
            if resident.released:
                return
            resident.released = True
        resident.child.kill()
        resident.child.ended.wait(_END_TIMEOUT_S)
        with self._lock:
            if not resident.child.alive:
                self._residents.pop(resident.child, None)
        os.close(resident.handle.eventfd)
        resident.chunks.close()
        resident.requests.close()

    # -- watching, on the watcher's thread

    def _on_message(self, child: Child, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "imported":
            self._supply.heard(child, message)
        elif kind == "chunk_error":
            with self._lock:
                resident = self._residents.get(child)
            left_out = f" ({message['unreported']} more not shown)" if message["unreported"] else ""
            if resident is not None and resident.generation is not None:
                text = str(message["text"]) + left_out
                self._emit("CHUNK_ERROR", text, child.pid, resident.generation, str(message["error"]))
        else:
            child.inbox.put(message)

    def _on_exit(self, child: Child, text: str) -> None:
        lost: Generation | None = None
        with self._lock:
            resident = self._residents.get(child)
            if resident is not None:
                self._weights.give_back(*resident.arenas)
                lost = None if resident.released or self._closed else resident.generation
                if resident.released:
                    del self._residents[child]
        if child.lost_code == "WORKER_HUNG":
            text = f"owed a chunk for more than {self._config.inference_timeout_s:g} s and was killed"
        if lost is not None:
            self._emit("LOST", f"worker {child.pid} {text}", child.pid, lost, child.lost_code or child.died_code)
        self._supply.ended(child, text)

    def _tick(self) -> float | None:
        """Kill what hangs, start what is due; return how long nothing needs to be looked at [s]."""
        now = time.monotonic()
        with self._lock:
            residents = [
                r for r in self._residents.values() if r.generation is not None and not r.released and r.child.alive
            ]
            for resident in residents:
                if self._is_hung(resident, now):
                    resident.child.kill("WORKER_HUNG")
        period = min(max(self._config.inference_timeout_s / 5, 0.02), 0.5) if residents else None
        due = self._supply.tick(now)
        waits = [wait for wait in (period, due) if wait is not None]
        return min(waits) if waits else None

    def _is_hung(self, resident: _Resident, now: float) -> bool:
        """True when a request is unanswered, and no chunk came, for ``inference_timeout_s``."""
        request = resident.requests.read(["request"])
        if request is None:
            return False
        chunk = resident.chunks.read(["request"])
        if chunk is not None and int(chunk[1]["request"]) == int(request[1]["request"]):
            resident.owing = None
            return False
        newest = 0 if chunk is None else chunk[0]
        if resident.owing is None or resident.owing[0] != newest:
            resident.owing = (newest, now)
        return now - resident.owing[1] > self._config.inference_timeout_s

    def _emit(self, kind: Any, message: str, pid: int, generation: Generation | None = None, code: str = "") -> None:
        try:
            self._on_event(WorkerEvent(kind, message, pid, generation, code))
        except Exception:
            traceback.print_exc()  # the listener's fault must not cost the bookkeeping


def _end_shadow(child: Child) -> None:
    with contextlib.suppress(ChannelClosedError):  # it has ended: its exit comes instead of an answer
        child.channel.send({"type": "act"})
    end_s = time.monotonic() + _END_TIMEOUT_S
    message: dict[str, Any] = {"type": ""}
    while message["type"] != "acting":
        try:
            message = child.inbox.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            raise PrepareError("LOAD_TIMEOUT", f"worker {child.pid} did not leave its shadow in time") from None
        if message["type"] == "exit":
            raise PrepareError(child.died_code, f"worker {child.pid} {message['text']} in shadow")
