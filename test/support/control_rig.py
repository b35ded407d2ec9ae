# SPDX-License-Identifier: Apache-2.0
"""A robot and its workers for tests of the control loop: real contracts, arenas and handles, and a clock that is set by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.contract.model import Contract, parse_contract
from vla_policy_node.control.commands import Commands
from vla_policy_node.control.counters import Spans
from vla_policy_node.control.loop import ControlLoop, Look
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.generation import CHUNK_SLOTS, REQUEST_SLOTS, GenerationHandle
from vla_policy_node.ipc.layouts import CHUNK_ERRORS, chunk_layout, request_layout

JOINTS = ("a", "b")
PERIOD_NS = 20_000_000
RATE, STEP, TOLERANCE, START_TOLERANCE = 2.0, 0.3, 0.1, 0.2
LOW, HIGH = -1.0, 1.0
PER_TICK = RATE * PERIOD_NS / 1e9


def contract_text(
    *,
    safety: str = "",
    hold: str = "last_command",
    timeout_s: float = 2.0,
    motion: bool = False,
    auto: bool = False,
    mode: str = "absolute",
    blend: int = 3,
    fps: int = 50,
    step: float = STEP,
    max_age_ms: int = 200,
    max_decel: float = 50.0,
    motion_timeout_s: float = 0.5,
) -> str:
    limits = {
        "absolute": f"{{position: [{LOW}, {HIGH}], velocity: {RATE}, step: {step}, tolerance: {TOLERANCE}}}",
        "velocity": f"{{velocity: [{LOW}, {HIGH}], acceleration: {RATE}, step: {step}, tolerance: {TOLERANCE}}}",
        "effort": f"{{effort: [{LOW}, {HIGH}], effort_rate: {RATE}, step: {step}, tolerance: {TOLERANCE}}}",
    }
    limits["relative"] = limits["absolute"]
    downstream = "" if mode in ("absolute", "relative") else "downstream_timeout_ms: 200,"
    channels = "".join(
        f"""
    - {{name: {j}, unit: rad, mode: {mode}, measured: {"position" if not downstream else "velocity"}.{j}, hold: {hold},
       max_decel: {max_decel}, hold_timeout_s: {timeout_s}, rest_step: 0.001, start_tolerance: {START_TOLERANCE},
       {downstream} limits: {limits[mode]}}}"""
        for j in JOINTS
    )
    fields = "velocity" if downstream else "position"
    return f"""
robot_type: rig
fps: {fps}
observations:
  observation.state:
    channel: {{topic: joint_states, type: sensor_msgs/msg/JointState}}
    align: {{strategy: hold, timeline: receive}}
    select: [{fields}.a, {fields}.b]
actions:
  action:
    channel: {{topic: commands, type: std_msgs/msg/Float64MultiArray}}
    select: [data.0, data.1]
safety:
  motion_enabled: {{required: {str(motion).lower()}, timeout_s: {motion_timeout_s}}}
  auto_resume: {str(auto).lower()}
  observation_max_age_ms: {max_age_ms}
  blend_ticks: {blend}
  rest_ticks: 5
  latency_margin_ticks: 1
  {safety}
  channels:{channels}
"""


def contract(*, text: str = "", **changes: Any) -> Contract:
    return parse_contract(text or contract_text(**changes), Path("rig.yaml"))


class Worker:
    """The memory of one loaded generation. ``answer`` writes what a worker would write."""

    def __init__(self, generation: int, horizon: int = 20, execute: int = 10, dim: int = 2) -> None:
        self.id, self.horizon, self.dim = generation, horizon, dim
        self.chunks = Arena.create(chunk_layout(horizon, dim), CHUNK_SLOTS)
        self.requests = Arena.create(request_layout(), REQUEST_SLOTS)
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        fds = self.chunks.fd, self.requests.fd, self.eventfd
        self.handle = GenerationHandle(
            generation,
            f"1.0.{generation}",
            f"{generation:064x}",
            horizon,
            execute,
            dim,
            CHUNK_SLOTS,
            REQUEST_SLOTS,
            *fds,
        )
        self.answered = 0

    def request(self) -> dict[str, Any] | None:
        """The newest request, if it was not answered yet."""
        read = self.requests.read()
        if read is None or int(read[1]["request"]) == self.answered:
            return None
        return read[1]

    def answer(self, actions: Any, *, request: dict[str, Any] | None = None, error: str = "", **fields: int) -> bool:
        """Answer the newest request with ``actions`` ``[H, C]`` (or one row); return whether one was open."""
        request = self.request() if request is None else request
        if request is None:
            return False
        self.answered = int(request["request"])
        record = {
            "request": request["request"],
            "tick": request["tick"],
            "generation": self.id,
            "observation_ns": 0,
            "inference_ns": 0,
            "error": CHUNK_ERRORS.index(error),
            "actions": np.broadcast_to(np.asarray(actions, np.float32), (self.horizon, self.dim)),
        }
        self.chunks.write({**record, **fields})
        return True

    def close(self) -> None:
        self.chunks.close()
        self.requests.close()
        os.close(self.eventfd)


class Rig:
    """A loop under a clock that is set by hand. The robot follows each command at once unless ``frozen``.

    ``text``: its contract, if it is not ``contract_text``.
    """

    def __init__(self, **changes: Any) -> None:
        self.contract = contract(**changes)
        self.events: list[dict[str, Any]] = []
        self.loop = ControlLoop(self.contract, self.events.append)
        self.spans = Spans()
        self.commands = Commands(self.loop, self.spans, lambda: None)
        self.workers: dict[int, Worker] = {}
        self.now_ns, self.tick_number = 1_000_000_000_000, 0
        self.measured = np.zeros(len(self.contract.channels))
        self.fresh, self.frozen, self.episode = True, False, 0
        self.valid = True
        self.motion_ns = 0
        self.operator: np.ndarray[Any, np.dtype[np.float64]] | None = None  # what an operator sends on every tick
        self.published: list[np.ndarray[Any, np.dtype[np.float64]] | None] = []
        self.policies: dict[int, Callable[[int], Any]] = {}  # generation → plan tick → actions or "error"
        self.latency = 1
        self._due: list[tuple[int, int, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.commands.apply({"type": kind, **fields}, (), self.now_ns)

    def add(self, generation: int, policy: Any = (0.0, 0.0), limits: Any = None, **shape: int) -> Worker:
        """Load a generation whose policy gives ``policy`` (constant action, chunk, error name, or function of the plan tick)."""
        worker = self.workers[generation] = Worker(generation, **{"dim": len(self.contract.channels), **shape})
        self.policies[generation] = policy if callable(policy) else lambda plan: policy
        fields, fds = worker.handle.to_message()
        message = {"type": "add_generation", "handle": fields, "latency_s": 0.02, "limits": limits}
        self.commands.apply(message, [os.dup(fd) for fd in fds], self.now_ns)
        return worker

    def activate(
        self, generation: int, at: str = "CHUNK", swap_id: str = "s", timeout_s: float = 5.0, cause: str = "UPDATE"
    ) -> None:
        swap = {"generation": generation, "at": at, "swap_id": swap_id, "cause": cause, "timeout_s": timeout_s}
        self.send("activate", **swap, asked_ns=self.now_ns)

    def hold(self, reason: str = "COMMAND_TOPIC_TAKEN") -> None:
        """Latch a hold; the default is one that only a person may end."""
        self.loop.now_ns = self.now_ns
        self.loop.latch(reason)

    def begin(self) -> None:
        """Activate the node, and say resume."""
        self.send("enable", enabled=True)
        self.send("resume")

    def tick(self, ticks: int = 1, *, step_ns: int = PERIOD_NS) -> Any:
        """Let time pass; workers answer ``latency`` ticks after they were asked. Returns the last command."""
        command = None
        for _ in range(ticks):
            self.now_ns += step_ns
            self.tick_number += max(1, step_ns // PERIOD_NS)
            self._work()
            stamp = self.now_ns if self.fresh else self.now_ns - 10_000_000_000
            look = Look(
                stamp,
                self.valid,
                self.measured.copy(),
                stamp,
                self.motion_ns,
                self.episode,
                operator=self.operator,
                operator_ns=self.now_ns,
            )
            command = self.loop.tick(self.now_ns, self.tick_number, look)
            self.published.append(None if command is None else command.copy())
            if command is not None and not self.frozen:
                self.measured = command.copy()
        return command

    def _work(self) -> None:
        for generation, worker in self.workers.items():
            request = worker.request()
            if request is not None and not any(
                r[1] == generation and r[2]["request"] == request["request"] for r in self._due
            ):
                self._due.append((self.tick_number - 1 + self.latency, generation, request))
        for entry in [e for e in self._due if e[0] <= self.tick_number]:
            self._due.remove(entry)
            _, generation, request = entry
            made = self.policies[generation](int(request["tick"]))
            if made is None:
                self.workers[generation].answered = int(request["request"])  # never answers
            elif isinstance(made, str):
                self.workers[generation].answer(0.0, request=request, error=made)
            else:
                self.workers[generation].answer(made, request=request)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["type"] == kind]

    def start(self, policy: Any = (0.0, 0.0), ticks: int = 10) -> Worker:
        """Activate generation 1 and the node, and say resume."""
        worker = self.add(1, policy)
        self.activate(1, "NOW")
        self.begin()
        self.tick(ticks)
        return worker

    def run(self, policy: Any = (0.0, 0.0), ticks: int = 10) -> Worker:
        """Start, and see that generation 1 acts."""
        worker = self.start(policy, ticks)
        assert self.loop.running, self.events
        return worker

    def close(self) -> None:
        for generation in list(self.commands._generations):
            self.send("remove_generation", generation=generation)
        for worker in self.workers.values():
            worker.close()


def ramp(speed: Sequence[float], horizon: int = 20) -> Callable[[int], Any]:
    """A policy whose action moves with the plan clock: [unit/tick]."""
    return lambda plan: np.outer(plan + np.arange(horizon), speed)
