# SPDX-License-Identifier: Apache-2.0
"""A policy engine on an ideal two-joint robot: real control process, real workers, commands recorded in a file, no ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np

from support.scripted import POLICY_MODULES, TEST_FOLDER
from support.waits import TIMEOUT_S
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import parse_contract
from vla_policy_node.control.client import ControlStatus
from vla_policy_node.control.sinks import read_record
from vla_policy_node.engine import PolicyEngine, Score, Snapshot
from vla_policy_node.episodes import Episode, Outcome
from vla_policy_node.generations.residents import Resident
from vla_policy_node.generations.swapping import Report
from vla_policy_node.shadow.follower import ShadowActions
from vla_policy_node.steps import Steps

CONTRACT = """
name: two_joints
robot_type: sim_arm
fps: {rate_hz}
observations:
  observation.state:
    channel: {{topic: joint_states, type: sensor_msgs/msg/JointState}}
    align: {{strategy: asof, timeline: receive, tolerance_ms: {tolerance_ms}}}
    select: [position.j1, position.j2]
actions:
  action:
    channel: {{topic: commands, type: std_msgs/msg/Float64MultiArray}}
    select: [data.0, data.1]
safety:
  motion_enabled: {{required: {motion_required}, timeout_s: {motion_timeout_s}}}
  auto_resume: {auto_resume}
  observation_max_age_ms: {max_age_ms}
  blend_ticks: 2
  rest_ticks: 5
  latency_margin_ticks: 2
  channels:
    - &joint
      name: j1
      unit: rad
      mode: absolute
      measured: position.j1
      limits: {{position: [-2.0, 2.0], velocity: 4.0, step: 0.3, tolerance: 0.1}}
      hold: last_command
      max_decel: 40.0
      hold_timeout_s: 30.0
      start_tolerance: 0.1
      rest_step: 0.001
    - <<: *joint
      name: j2
      measured: position.j2
"""


PATIENT: dict[str, Any] = {"tolerance_ms": 4000, "max_age_ms": 5000, "motion_timeout_s": 5.0}
"""For ``contract_text``: nor does it hold on a machine that stalls for several seconds."""


def contract_text(
    *,
    rate_hz: float = 50,
    auto_resume: bool = True,
    motion_required: bool = False,
    tolerance_ms: int = 2000,
    max_age_ms: int = 2000,
    motion_timeout_s: float = 3.0,
) -> str:
    """A contract for the bundles of ``scripted_bundle``; a robot on a machine that stalls for a second does not hold."""
    flags = {"auto_resume": str(auto_resume).lower(), "motion_required": str(motion_required).lower()}
    ages = {"tolerance_ms": tolerance_ms, "max_age_ms": max_age_ms, "motion_timeout_s": motion_timeout_s}
    return CONTRACT.format(rate_hz=rate_hz, **flags, **ages)


class EngineRig:
    """An engine with a robot that is always where it was last told to be. ``with`` starts and closes it.

    ``text``: a whole contract of its own.
    ``resumed``: somebody calls resume after the start, which a contract without ``auto_resume`` asks for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        contract: dict[str, Any] | None = None,
        text: str = "",
        resumed: bool = True,
        **config: Any,
    ) -> None:
        self._resumed = resumed
        self.record = folder / "commands.bin"
        self.scores: list[Score] = []
        self.outcomes: list[Outcome] = []
        self.reports: list[Report] = []
        self.shadow_actions: list[ShadowActions] = []
        self.steps: list[tuple[str, Steps]] = []  # and the episode that they belong to
        self.operator: tuple[float, float] | None = None  # what an operator sends, again and again
        self.motion: bool | None = None  # what motion_enabled says; None = nobody publishes it
        self.feeding = True
        self.driven: tuple[float, float] | None = None  # where something else holds the robot
        settings: dict[str, Any] = {
            "bundle_roots": (str(folder),),
            "policy_modules": tuple(f"{k}={v}" for k, v in POLICY_MODULES.items()),
            "worker_paths": (TEST_FOLDER,),
            "worker_imports": (),
            "inference_timeout_s": 20.0,
            "load_timeout_s": 60.0,
            "shadow_chunks": 0,  # tests of the shadow set it
        }
        self.engine = PolicyEngine(
            PolicyNodeConfig(**{**settings, **config}),
            parse_contract(text or contract_text(**(contract or {}))),
            sink={"kind": "record", "path": str(self.record)},
            listener=self,
        )
        self._asked = 0  # swaps that the control process was asked for
        self._count_what_is_asked()
        self._stop = threading.Event()
        self._robot = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> EngineRig:
        self._robot.start()
        self.engine.start()
        self.engine.enable(True)
        self.wait_for(lambda: self.engine.snapshot().control is not None, "the first tick")
        if self._resumed:
            self.engine.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()
        self._stop.set()
        self._robot.join(TIMEOUT_S)

    def _count_what_is_asked(self) -> None:
        activate = self.engine._control.activate

        def counted(*arguments: Any) -> None:
            activate(*arguments)
            self._asked += 1

        self.engine._control.activate = counted  # type: ignore[method-assign]

    def _feed(self) -> None:
        position = np.zeros(2)
        while not self._stop.wait(0.01):
            status = self.engine.snapshot().control
            if status is not None and np.all(np.isfinite(status.command)):
                position = status.command
            if self.driven is not None:
                position = np.array(self.driven)
            if self.feeding:
                joints = SimpleNamespace(name=["j1", "j2"], position=list(position), velocity=[], effort=[])
                self.engine.observations.receive("observation.state", 0, joints)
            if self.operator is not None:
                self.engine.operator.receive(0, SimpleNamespace(data=list(self.operator)))
            if self.motion is not None:
                self.engine.observations.set_motion(self.motion)

    # Listener
    def on_change(self) -> None:
        """Nothing to do: tests look at the snapshot."""

    def on_score(self, score: Score) -> None:
        """Keep it."""
        self.scores.append(score)

    def on_outcome(self, outcome: Outcome, active: Resident | None) -> None:
        """Keep it."""
        self.outcomes.append(outcome)

    def on_report(self, report: Report) -> None:
        """Keep it."""
        self.reports.append(report)

    def on_steps(self, steps: Steps, episode: Episode, by: Resident | None) -> None:
        """Keep them."""
        self.steps.append((episode.episode_id, steps))

    def on_shadow_actions(self, shown: ShadowActions) -> None:
        """Keep it."""
        self.shadow_actions.append(shown)

    # What tests ask
    @property
    def snapshot(self) -> Snapshot:
        """What the engine says of itself."""
        return self.engine.snapshot()

    @property
    def control(self) -> ControlStatus:
        """Status of the loop."""
        status = self.engine.snapshot().control
        assert status is not None
        return status

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s: {self.snapshot}"
            time.sleep(0.005)

    def wait_running(self, version: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a generation (of that version) commands the robot."""

        def running() -> bool:
            snapshot = self.snapshot
            status, active = snapshot.control, snapshot.active
            if status is None or active is None or status.mode != "RUNNING":
                return False
            return status.generation == active.id and version in ("", active.version)

        self.wait_for(running, f"{version or 'any version'} running", timeout_s)

    def wait_asked(self, ask: Callable[[], object]) -> None:
        """Call something that asks for a swap on another thread, and wait until the control process waits for its boundary."""
        asked = self._asked
        ask()
        self.wait_for(lambda: self._asked > asked, "the request sent")
        tick = self.control.tick
        self.wait_for(lambda: self.control.tick > tick + 2, "the control process to have taken note")

    def supervised(self) -> None:
        """Wait until what the supervisor has begun to look at is over: what comes later is of later."""
        for _ in range(2):
            passed = threading.Event()
            self.engine._events.put(passed.set)
            assert passed.wait(TIMEOUT_S), "the supervisor stands still"

    def commands(self) -> tuple[np.ndarray, np.ndarray]:
        """Every command published so far: stamps [ns] ``[n]`` and values ``[n, 2]``."""
        return read_record(self.record, 2)
