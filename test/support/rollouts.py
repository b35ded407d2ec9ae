# SPDX-License-Identifier: Apache-2.0
"""A fleet server on a clock that the test moves, over real sockets, with simulated robots on real lines."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from support.bundles import make_bundle
from support.fleet import enrolled
from support.fleet_app import ClockedFleet
from support.waits import TIMEOUT_S, wait_for
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot

HOUR_S = 3600.0
OLD, NEW = "1.0.0", "1.1.0"
MODEL = f"pick_place@{NEW}"


class RolloutFleet:
    """Server, robots and what they do, in one process. Use as a context manager."""

    def __init__(self, folder: Path, heartbeat_s: float = 5.0) -> None:
        self.folder, self.server = folder, ClockedFleet(folder / "data", heartbeat_s)
        self.url, self.rooms, self.clock, self.do = (
            self.server.url,
            self.server.rooms,
            self.server.clock,
            self.server.do,
        )
        self.robots: dict[str, SimulatedRobot] = {}
        self.tokens: dict[str, str] = {}

    def __enter__(self) -> RolloutFleet:
        self.server.__enter__()
        self.client = self.server.client()
        for seed, version in enumerate((OLD, NEW)):
            make_bundle(self.folder / version, version=version, seed=seed)
            self.client.publish(self.folder / version)
        return self

    def __exit__(self, *error: Any) -> None:
        for robot in self.robots.values():
            robot.disconnect()
        self.client.close()
        self.server.__exit__(*error)

    # -- robots -------------------------------------------------------------------------------------------------------------

    def add(
        self,
        *names: str,
        new: float = 0.9,
        old: float = 0.9,
        arms: bool = True,
        group: str = "default",
    ) -> list[SimulatedRobot]:
        """Add robots that have committed the old version; ``old`` and ``new`` are success rates."""
        for name in names:
            behaviours = {OLD: Behaviour(old, 1e-6), NEW: Behaviour(new, 1e-6)}
            self.robots[name] = SimulatedRobot(name, behaviours, episode_arms=arms, now=self.clock.now)
            self.tokens[name] = enrolled(self.client, name, group)
            self.connect(name)
        ids = [command["id"] for command in self.client.deploy(f"pick_place@{OLD}", names)]
        wait_for(lambda: all(command["final"] for command in self.client.commands(ids)), "the old version")
        wait_for(
            lambda: all(r["status"].get("committed_version") for r in self.client.robots() if r["name"] in names),
            "the robots' statuses",
        )
        return [self.robots[name] for name in names]

    def connect(self, name: str) -> None:
        """Let a robot come online."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        self.robots[name].connect(self.url, self.tokens[name], folder)

    def episodes(self, count: int) -> None:
        """Let every robot that is connected play, and wait until the server has stored how that ended."""
        self.heard()
        for robot in self.robots.values():
            robot.episodes(count)
        self.heard()

    def heard(self) -> None:
        """Wait until the server has stored what the robots on the line have said."""
        lines = [robot._bridge for robot in self.robots.values() if robot._bridge is not None]
        for line in lines:  # what was said a moment ago is in the outbox
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), line._loop).result(TIMEOUT_S)
        wait_for(lambda: all(line.outbox_size == 0 and line.line.connected for line in lines), "the lines")
        for robot in self.robots.values():
            robot._tell_status()  # as a heartbeat would
        online = [name for name, robot in self.robots.items() if robot._bridge is not None]
        wait_for(lambda: all(r["online"] for r in self.client.robots() if r["name"] in online), "the robots")

    # -- time ---------------------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.do(self.clock.advance(seconds))
        self.heard()

    def step(self, count: int = 1) -> None:
        """Move every rollout on, letting robots answer between the steps."""
        for _ in range(count):
            self.do(self.rooms.rollouts.step())
            self.heard()

    def until(
        self, rollout: str, *states: str, limit: int = 60, hours: float = 0.0, episodes: int = 0
    ) -> dict[str, Any]:
        """Step until the rollout is in one of these states; while it is judged, ``hours`` pass with ``episodes`` a robot.

        It fails after ``limit`` steps; if robots are slow to carry orders out, not before a while has passed.
        """
        deadline, steps = time.monotonic() + TIMEOUT_S, 0
        while steps < limit or time.monotonic() < deadline:
            steps += 1
            found = self.client.rollout(rollout)
            if found["state"] in states:
                return found
            if episodes and found["state"] in ("JUDGING", "ASKING"):
                self.pass_time(1.0)
                self.episodes(episodes)
                self.step()
                self.pass_time(hours * HOUR_S)
            else:
                time.sleep(0.02)  # robots carry orders out
            self.step()
        raise AssertionError(f"{found['state']} after {steps} steps: {found}")
