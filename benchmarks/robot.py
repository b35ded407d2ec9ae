# SPDX-License-Identifier: Apache-2.0
"""The robot that the benchmarks command: a contract with any number of joints, and a policy that costs nothing."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract, parse_contract
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.generation import CHUNK_SLOTS, REQUEST_SLOTS, GenerationHandle
from vla_policy_node.ipc.layouts import chunk_layout, observation_layout, request_layout

ROBOT_TYPE = "bench_arm"
_CONTRACT = """
name: bench
robot_type: {robot_type}
fps: {rate_hz}
observations:
  observation.state:
    channel: {{topic: joint_states, type: sensor_msgs/msg/JointState}}
    align: {{strategy: hold, timeline: receive}}
    select: [{measured}]
{camera}actions:
  action:
    channel: {{topic: commands, type: std_msgs/msg/Float64MultiArray}}
    select: [{places}]
safety:
  motion_enabled: {{required: false, timeout_s: 0.5}}
  auto_resume: true
  observation_max_age_ms: 1000
  blend_ticks: 4
  rest_ticks: 5
  latency_margin_ticks: 4
  channels:
{channels}
"""
_CAMERA = """  observation.images.top:
    channel: {topic: camera, type: sensor_msgs/msg/Image}
    align: {strategy: hold, timeline: receive}
    apply: [resize: [SIDE, SIDE]]
"""
_CHANNEL = """    - name: j{i}
      unit: rad
      mode: absolute
      measured: position.j{i}
      limits: {{position: [-3.0, 3.0], velocity: 10.0, step: 0.5, tolerance: 0.1}}
      hold: last_command
      max_decel: 40.0
      hold_timeout_s: 60.0
      start_tolerance: 0.5
      rest_step: 0.001"""


def contract(rate_hz: float, joints: int, camera_px: int = 0) -> Contract:
    """Return the contract of an arm with so many joints, and a camera whose pictures have so many rows and columns."""
    return parse_contract(
        _CONTRACT.format(
            robot_type=ROBOT_TYPE,
            rate_hz=rate_hz,
            measured=", ".join(f"position.j{i}" for i in range(joints)),
            places=", ".join(f"data.{i}" for i in range(joints)),
            camera=_CAMERA.replace("SIDE", str(camera_px)) if camera_px else "",
            channels="\n".join(_CHANNEL.format(i=i) for i in range(joints)),
        )
    )


def pictures(cameras: int) -> Any:
    """Return what takes the pictures of so many cameras once they come (``ros.pictures.Pictures``); ``None`` without any."""
    if not cameras:
        return None
    from benchmarks.ros.pictures import Pictures  # most programs run without ROS

    found = Pictures(cameras)
    found.wait()
    return found


def taking(pictures: Any, count: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what was counted, and the rate at which pictures were taken meanwhile [1/s]."""
    if pictures is None:
        return count()
    before, begin_s = pictures.taken, time.monotonic()
    found = count()
    return {**found, "pictures_s": (pictures.taken - before) / (time.monotonic() - begin_s)}


def waves(times: npt.NDArray[np.float64], joints: int) -> npt.NDArray[np.float32]:
    """Return slow sine waves at these times [s], ``[len(times), joints]`` [rad]."""
    phase = np.arange(joints) * 0.5
    return (0.3 * np.sin(2 * np.pi * 0.2 * times[:, None] + phase)).astype(np.float32)


class FreePolicy:
    """Answers a control process's requests as a worker would, with sine waves and without inference.

    ``handle`` is what the control process is given, ``observation`` the arena that it looks at.
    """

    def __init__(self, rate_hz: float, joints: int) -> None:
        self._rate_hz, self._joints = rate_hz, joints
        self.horizon = 2 * max(20, round(rate_hz / 2))  # one second, half of it executed
        self.observation = Arena.create(observation_layout(contract(rate_hz, joints).features, joints))
        self._chunks = Arena.create(chunk_layout(self.horizon, joints), CHUNK_SLOTS)
        self._requests = Arena.create(request_layout(), REQUEST_SLOTS)
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        memory = (self._chunks.fd, self._requests.fd, self._eventfd)
        shape = (self.horizon, self.horizon // 2, joints, CHUNK_SLOTS, REQUEST_SLOTS)
        self.handle = GenerationHandle(1, "1.0.0", "0" * 64, *shape, *memory)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="policy", daemon=True)
        self._observe()
        self._thread.start()

    def close(self) -> None:
        """Stop answering; the memory of the control process stays."""
        self._over.set()
        self._thread.join(60.0)
        for arena in (self._chunks, self._requests, self.observation):
            arena.close()
        os.close(self._eventfd)

    def _observe(self) -> None:
        now_ns = time.monotonic_ns()
        measured = waves(np.array([now_ns / 1e9]), self._joints)[0]
        record = {"stamp_ns": now_ns, "written_ns": now_ns, "valid": 1}
        record |= {"measured": measured, "measured_ns": now_ns, "motion_ns": 0}
        self.observation.write({**record, "instruction": 0, "episode": 1, "feature:observation.state": measured})

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        while not self._over.is_set():
            asked = poll.poll(20)
            self._observe()
            if asked:
                os.eventfd_read(self._eventfd)
                self._answer()

    def _answer(self) -> None:
        request = self._requests.read()
        if request is None:
            return
        now_ns = time.monotonic_ns()
        times = now_ns / 1e9 + np.arange(self.horizon) / self._rate_hz
        self._chunks.write(
            {
                "request": request[1]["request"],
                "tick": request[1]["tick"],
                "generation": self.handle.id,
                "observation_ns": now_ns,
                "inference_ns": 0,
                "error": 0,
                "actions": waves(times, self._joints),
            }
        )


class _Quiet:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: None


def quiet() -> Any:
    """Return a listener of an engine, with nothing to do."""
    return _Quiet()
