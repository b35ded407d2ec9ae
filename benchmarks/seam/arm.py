# SPDX-License-Identifier: Apache-2.0
"""The simulated arm under a policy engine without ROS, doing one task after the other, with every tick and chunk on record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.robot import quiet
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import load_contract
from vla_policy_node.control.client import Tick
from vla_policy_node.engine import PolicyEngine
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.ipc.arena import Arena
from vla_sim.arm import JOINT_NAMES
from vla_sim.robot import SimRobot
from vla_sim.task_runner import Reply, TaskRunner

Floats = npt.NDArray[np.float64]

_CONTRACT = Path(__file__).parents[2] / "config" / "sim_arm.contract.yaml"
_CYCLE_S = 0.01
_CYCLES_A_PICTURE = 3
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ChunkRecord:
    """A chunk as its worker wrote it: action 0 is meant for plan tick ``start``; ``actions`` ``[H, C]``."""

    generation: int
    start: int
    execute: int
    actions: npt.NDArray[np.float32]


class _Engine(PolicyEngine):
    def ticks(self, after: int) -> tuple[int, list[Tick]]:
        """See ``ControlClient.ticks``."""
        return self._control.ticks(after)


class MovingArm:
    """Use as a context manager. A thread carries commands to the arm, measurements to the engine, and keeps the record.

    Raises TimeoutError if the first policy does not act.
    """

    def __init__(self, first: Path, roots: tuple[Path, ...], record: Path, seed: int) -> None:
        config = PolicyNodeConfig(
            model_path=str(first), bundle_roots=tuple(str(root) for root in roots), shadow_chunks=0
        )
        self.contract = load_contract(_CONTRACT)
        sink = {"kind": "record", "path": str(record)}
        self.engine = _Engine(config, self.contract, sink=sink, listener=quiet())
        self.ticks: list[Tick] = []
        self.chunks: list[ChunkRecord] = []
        self.joints: list[tuple[float, Floats]] = []  # monotonic time [s], measured positions [rad]
        self.runner = TaskRunner(robot := SimRobot(), _Episodes(self.engine), boot_id="seam", seed=seed)
        self._robot, self._seen = robot, 1
        self._arenas: dict[int, tuple[Arena, int, int]] = {}  # generation → chunks, what executes, newest seen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arm", daemon=True)

    def __enter__(self) -> MovingArm:
        self._robot.start()
        self._thread.start()
        self.engine.start()
        self.engine.enable(True)
        self.wait_for(lambda: bool(self.ticks), "the first policy acting")
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(_TIMEOUT_S)
        self.engine.close()
        self._robot.close()
        for chunks, _, _ in self._arenas.values():
            chunks.close()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds. Raises TimeoutError."""
        end_s = time.monotonic() + _TIMEOUT_S
        while not condition():
            if time.monotonic() > end_s:
                raise TimeoutError(what)
            time.sleep(_CYCLE_S)

    def _run(self) -> None:
        cycle = 0
        while not self._over.wait(_CYCLE_S):
            self._carry(picture=cycle % _CYCLES_A_PICTURE == 0)
            self._keep()
            if self.ticks:
                self.runner.tick(time.monotonic(), True)
            cycle += 1

    def _carry(self, *, picture: bool) -> None:
        arm, observations = self._robot.snapshot().arm, self.engine.observations
        self.joints.append((time.monotonic(), arm.position.copy()))
        joints = SimpleNamespace(name=list(JOINT_NAMES), position=arm.position.tolist(), velocity=[], effort=[])
        observations.receive("observation.state", 0, joints)
        if picture:
            observations.receive("observation.images.top", 0, _message(self._robot.picture()))

    def _keep(self) -> None:
        self._seen, ticks = self.engine.ticks(self._seen)
        if ticks:
            self._robot.command(ticks[-1].command.tolist())
        self.ticks += ticks
        for resident in self.engine.generations.residents.all():
            if resident.id not in self._arenas:
                requests, chunks = resident.generation.handle.attached()
                requests.close()
                self._arenas[resident.id] = (chunks, resident.generation.handle.execute, 0)
        for generation, (chunks, execute, seen) in self._arenas.items():
            newest = chunks.newest
            for sequence in range(seen + 1, newest + 1):
                record = chunks.read(seq=sequence)
                if record is not None and not int(record[1]["error"]):
                    self._note(generation, execute, record[1])
            self._arenas[generation] = (chunks, execute, newest)

    def _note(self, generation: int, execute: int, record: Mapping[str, npt.NDArray[Any]]) -> None:
        self.chunks.append(ChunkRecord(generation, int(record["tick"]), execute, record["actions"].copy()))


class _Episodes:
    """The engine as the task runner's port."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine

    def available(self) -> bool:
        return True

    def start(self, episode_id: str, instruction: str, timeout_s: float, reply: Reply) -> None:
        self._tell(reply, lambda: self._engine.start_episode(episode_id, instruction, timeout_s))

    def end(self, episode_id: str, success: bool, reply: Reply) -> None:
        self._tell(reply, lambda: self._engine.end_episode(episode_id, success=success))

    def take_over(self, on: bool, reply: Reply) -> None:
        raise NotImplementedError("nobody takes over")

    @staticmethod
    def _tell(reply: Reply, ask: Callable[[], object]) -> None:
        try:
            ask()
        except PolicyNodeError as e:
            reply(False, e.code)
        else:
            reply(True, "")


def _message(picture: npt.NDArray[np.uint8]) -> SimpleNamespace:
    height, width, channels = picture.shape
    size = {"height": height, "width": width, "step": width * channels}
    return SimpleNamespace(encoding="rgb8", is_bigendian=0, data=picture.tobytes(), **size)
