# SPDX-License-Identifier: Apache-2.0
"""The demonstration's fleet: real arms, and simulated robots that work fast."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vla_sim.fleet.clock import FastClock
from vla_sim.fleet.demo.ros.arms import Arms
from vla_sim.fleet.play.stage import Stage
from vla_sim.fleet.simulated_robot import SimulatedRobot

ARMS = ("arm_1", "arm_2", "arm_3")
SIMULATED = ("sim_1", "sim_2", "sim_3", "sim_4", "sim_5")
EVERYBODY = (*ARMS, *SIMULATED)


@dataclass(kw_only=True)
class FleetStage(Stage):
    """Everything of the demonstration."""

    clock: FastClock
    arms: Arms
    simulated: dict[str, SimulatedRobot]
    tokens: dict[str, str]
    bundles: dict[str, Path]

    def connect(self, name: str) -> None:
        """Let a simulated robot come online."""
        self.simulated[name].connect(self.server.url, self.tokens[name], self.folder / "simulated" / name)


class Work:
    """Lets the simulated robots work: each plays an episode, again and again. Use as a context manager."""

    def __init__(self, robots: Iterable[SimulatedRobot], period_s: float) -> None:
        self._robots, self._period_s = list(robots), period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)

    def __enter__(self) -> Work:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            for robot in self._robots:
                robot.episodes()
