# SPDX-License-Identifier: Apache-2.0
"""What a chapter works with: server, robots, what is seen of them, and what has to be true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_fleet.client import Client, Json
from vla_fleet.errors import FleetError
from vla_sim.bundle import NAME
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.fleet.clock import FastClock
from vla_sim.fleet.demo.rollouts import Followed
from vla_sim.fleet.demo.ros.arms import Arms
from vla_sim.fleet.demo.watch import Watch
from vla_sim.fleet.server import FleetServer
from vla_sim.fleet.simulated_robot import SimulatedRobot

ARMS = ("arm_1", "arm_2", "arm_3")
SIMULATED = ("sim_1", "sim_2", "sim_3", "sim_4", "sim_5")
EVERYBODY = (*ARMS, *SIMULATED)
_FOLLOW_S = 0.3


@dataclass
class Stage:
    """Everything of the demonstration."""

    clock: FastClock
    server: FleetServer
    client: Client
    processes: Processes
    arms: Arms
    watch: Watch
    simulated: dict[str, SimulatedRobot]
    tokens: dict[str, str]
    bundles: dict[str, Path]
    folder: Path
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report tells of the chapters."""

    def check(self, holds: bool, what: str) -> None:
        """Note a problem if something does not hold."""
        if not holds:
            self.problems.append(what)
            self.watch.say("demo", f"NOT AS EXPECTED: {what}", "bold red")

    def publish(self, version: str) -> None:
        """Publish a version as a training script does."""
        published = self.client.publish(self.bundles[version])
        what = f"publishes {NAME} {version} ({published['digest'][:12]}…)"
        self.watch.say("trainer", what, "cyan")

    def connect(self, name: str) -> None:
        """Let a simulated robot come online."""
        self.simulated[name].connect(self.server.url, self.tokens[name], self.folder / "simulated" / name)

    def begin_rollout(self, version: str, target: str, stages: list[Json]) -> Followed:
        """Begin a rollout."""
        return self.follow_rollout(self.client.create_rollout(f"{NAME}@{version}", target, stages=stages))

    def follow_rollout(self, info: Json) -> Followed:
        """Follow a rollout that has begun."""
        self.watch.say(
            "operator", f"begins rollout {info['id']} of {info['version']} to {info['target']}", "bold magenta"
        )
        return Followed(self, info)

    def follow(self, commands: Sequence[Json], timeout_s: float) -> float:
        """Wait until robots have done what they were ordered to; return how long the last one took [s]."""
        begun_s, ids = time.monotonic(), [command["id"] for command in commands]
        *_, standing = self.client.follow(ids, timeout_s, _FOLLOW_S)
        for command in standing:
            done = command["state"] == "DONE"
            self.check(
                done, f"{command['robot']}: {command['state']} {command['error_code']} {command['message']}".strip()
            )
        return time.monotonic() - begun_s

    def wait_committed(self, version: str, robots: Iterable[str], timeout_s: float) -> None:
        """Wait until robots have committed a version, as the server sees it."""
        names = set(robots)

        def committed(seen: dict[str, Json]) -> bool:
            return all(seen[name]["status"].get("committed_version") == version for name in names)

        self.watch.wait(committed, f"{version} on {', '.join(sorted(names))}", timeout_s)

    def committed(self) -> dict[str, str]:
        """Return what each robot has committed."""
        return {robot["name"]: robot["status"].get("committed_version", "") for robot in self.client.robots()}


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


@dataclass(frozen=True)
class Chapter:
    """A part of the story. ``play`` does it and checks what came of it."""

    title: str
    short: str
    """For the picture."""
    play: Callable[[Stage], None]


def play(chapters: Sequence[Chapter], stage: Stage) -> None:
    """Play the chapters one after the other; one that cannot be gone on with ends the story."""
    for number, chapter in enumerate(chapters, start=1):
        stage.watch.chapter(number, chapter.title, chapter.short)
        begun_s, problems = time.monotonic(), len(stage.problems)
        try:
            chapter.play(stage)
        except (DemoError, FleetError) as e:
            stage.check(False, f"chapter {number}: {e}")
            if number < len(chapters):
                stage.check(False, f"the last {len(chapters) - number} chapters were not played")
            return
        if len(stage.problems) == problems:
            stage.watch.say("demo", f"as expected, in {time.monotonic() - begun_s:.1f} s", "dim")
