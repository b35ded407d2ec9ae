# SPDX-License-Identifier: Apache-2.0
"""A real control process between a robot and workers that are played: what it commands goes into a file."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.control_rig import Worker, contract
from support.waits import TIMEOUT_S
from vla_policy_node.control.client import ControlClient
from vla_policy_node.control.sinks import read_record
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import observation_layout

MAX_AGE_MS, HORIZON = 2000, 100


class Robot:
    """A control process with a recorded sink, an observation that is renewed, and workers that answer from a thread.

    On a machine that stalls for a second it does not hold, and no hold is latched: observations, chunks and holds last longer.
    """

    def __init__(self, folder: Path, *, cpus: str = "", **changes: Any) -> None:
        self.contract = contract(**{"max_age_ms": MAX_AGE_MS, "timeout_s": 60.0, **changes})
        self.path = folder / "commands"
        self._channels = len(self.contract.channels)
        self.observation = Arena.create(observation_layout(self.contract.features, self._channels))
        self.events: list[dict[str, Any]] = []
        self.client = ControlClient(
            self.contract,
            self.observation,
            sink={"kind": "record", "path": str(self.path)},
            on_event=self.events.append,
            cpus=cpus,
        )
        self.workers: dict[int, tuple[Worker, Any]] = {}
        self.measured = np.zeros(self._channels)
        self.motion_s = 10.0
        self.episode = 1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def start(self) -> dict[str, Any]:
        self._thread.start()
        return self.client.start(30.0)

    def add(self, generation: int, policy: Any = 0.0) -> Worker:
        worker = Worker(generation, horizon=HORIZON, dim=self._channels)
        self.workers[generation] = (worker, policy)
        self.client.add_generation(worker.handle, latency_s=0.02)
        return worker

    def run(self, policy: Any = 0.0) -> None:
        self.start()
        self.add(1, policy)
        self.client.activate(1, "NOW", "first", 5.0)
        self.client.enable(True)
        self.client.resume()
        self.wait(lambda: self.mode == "RUNNING")

    @property
    def mode(self) -> str:
        status = self.client.status()
        return "" if status is None else status.mode

    def wait(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (self.client.status(), self.events[-5:])
            time.sleep(0.01)
        return condition()

    def event(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = self.wait(lambda: [e for e in self.events if e["type"] == kind])[-1]
        return found

    def commands(self) -> tuple[Any, Any]:
        return read_record(self.path, self._channels)

    def close(self) -> None:
        self.client.close()
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT_S)
        for worker, _ in self.workers.values():
            worker.close()
        self.observation.close()

    def write(self) -> None:
        """Renew the observation."""
        now = time.monotonic_ns()
        self.observation.write(
            {
                "stamp_ns": now,
                "written_ns": now,
                "valid": 1,
                "measured": self.measured,
                "measured_ns": now,
                "motion_ns": now + int(self.motion_s * 1e9),
                "instruction": 0,
                "episode": self.episode,
                "feature:observation.state": 0.0,
            }
        )

    def _live(self) -> None:
        while not self._over.wait(0.005):
            self.write()
            for worker, policy in list(self.workers.values()):
                poll = select.poll()
                poll.register(worker.eventfd, select.POLLIN)
                if not poll.poll(0):
                    continue
                os.eventfd_read(worker.eventfd)
                if worker.request() is not None and policy is not None:
                    worker.answer(policy)
