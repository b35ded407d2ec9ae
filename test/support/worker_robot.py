"""What a worker pool has around it on a robot: who writes observations, asks for chunks, and takes note of events."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.scripted import worker_config
from support.waits import TIMEOUT_S
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import (
    CHUNK_ERRORS,
    INSTRUCTION_BYTES,
    OBSERVATION_SLOTS,
    observation_layout,
    request_layout,
)
from vla_policy_node.ipc.layouts import chunk_layout as chunk_layout_of
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import Generation, WorkerEvent
from vla_policy_node.worker.pool import WorkerPool

STATE = "observation.state"


class WorkerRobot:
    """A pool with a two-joint robot's observation; ``with`` closes it."""

    def __init__(self, features: Mapping[str, FeatureSpec] | None = None, **config: Any) -> None:
        self.features = dict(features or {STATE: FeatureSpec((2,), "float32")})
        self.observation = Arena.create(observation_layout(self.features, 2), OBSERVATION_SLOTS)
        self.events: list[WorkerEvent] = []
        self._changed = threading.Condition()
        self._requests: dict[int, Arena] = {}
        self._chunks: dict[int, Arena] = {}
        self._request = 0
        self.pool = WorkerPool(worker_config(**config), self.observation, self.features, self._on_event)

    def __enter__(self) -> WorkerRobot:
        self.pool.start("scripted")
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def _on_event(self, event: WorkerEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, matches: Callable[[WorkerEvent], bool], timeout_s: float = TIMEOUT_S) -> WorkerEvent:
        """Return the first event, past or coming, that matches."""
        with self._changed:
            found: list[WorkerEvent] = []

            def look() -> bool:
                found[:] = [event for event in self.events if matches(event)]
                return bool(found)

            assert self._changed.wait_for(look, timeout_s), self.events
            return found[0]

    def logged(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        return self.wait_for(lambda e: e.kind == "LOG" and text in e.message, timeout_s).message

    @property
    def spare_pid(self) -> int | None:
        """Process id of the spare worker, also while it is still importing."""
        return self.pool._supply.spare_pid

    def spare_ready(self, not_pid: int = 0, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for a spare worker (another than ``not_pid``) to have its imports done; return its process id."""
        return self.wait_for(lambda e: e.kind == "SPARE_READY" and e.pid != not_pid, timeout_s).pid

    @property
    def weights_bytes(self) -> int:
        """Size of all memory that the pool keeps for weights."""
        return sum(arena.size for arena in self.pool._weights._arenas)

    def observe(
        self,
        *,
        age_s: float = 0.0,
        valid: int = 1,
        instruction: str = "",
        episode: int = 0,
        written_ns: int | None = None,
        **features: Any,
    ) -> None:
        """Write an observation: ``state`` (2 numbers) and other features by their names, zeros for the rest."""
        text = instruction.encode()[:INSTRUCTION_BYTES]
        values: dict[str, Any] = {f"feature:{name}": np.zeros(f.shape, f.dtype) for name, f in self.features.items()}
        for name, value in features.items():
            values[f"feature:{STATE if name == 'state' else name}"] = np.asarray(value)
        values |= {
            "stamp_ns": time.monotonic_ns() - int(age_s * 1e9),
            "written_ns": time.monotonic_ns() if written_ns is None else written_ns,
            "valid": valid,
            "measured": np.zeros(2),
            "measured_ns": 0,
            "motion_ns": 0,
            "instruction": np.frombuffer(text.ljust(INSTRUCTION_BYTES, b"\0"), np.uint8),
            "episode": episode,
        }
        self.observation.write(values)

    def request(self, generation: Generation, *, reset: bool = False, tick: int = 0) -> int:
        """Ask for a chunk as the control process does; return the request's number."""
        handle = generation.handle
        if generation.id not in self._requests:
            # descriptors of its own, as if they had come over a socket
            self._requests[generation.id] = Arena.attach(
                request_layout(), handle.request_slots, os.dup(handle.request_fd)
            )
            layout = chunk_layout_of(handle.horizon, handle.action_dim)
            self._chunks[generation.id] = Arena.attach(layout, handle.chunk_slots, os.dup(handle.chunk_fd))
        self._request += 1
        self._requests[generation.id].write({"request": self._request, "tick": tick, "reset": int(reset)})
        os.eventfd_write(handle.eventfd, 1)
        return self._request

    def answer(self, generation: Generation, request: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any] | None:
        """Return the chunk that answers ``request``, ``None`` if it does not come in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            record = self._chunks[generation.id].read()
            if record is not None and int(record[1]["request"]) == request:
                return {**record[1], "error": CHUNK_ERRORS[int(record[1]["error"])]}
            time.sleep(0.002)
        return None

    def chunk(self, generation: Generation, **request: Any) -> dict[str, Any]:
        """Observe, ask, and return the answer."""
        self.observe()
        answer = self.answer(generation, self.request(generation, **request))
        assert answer is not None
        return answer

    def assert_works(self, generation: Generation) -> None:
        """The generation is alive and answers with a finite chunk of its own."""
        answer = self.chunk(generation)
        assert generation.alive
        assert answer["error"] == ""
        assert answer["generation"] == generation.id
        assert np.isfinite(answer["actions"]).all()


def thread_levels(pid: int) -> dict[str, int]:
    """Return thread id → nice level."""
    levels = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            levels[task.name] = int((task / "stat").read_text().rpartition(")")[2].split()[16])
    return levels


def processes_of_session(pid: int) -> list[int]:
    """Return living processes whose session was begun by ``pid`` (workers begin one each)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def gone(pid: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Wait until a process, whoever its parent is, has ended."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in ("Z", "X"):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
