# SPDX-License-Identifier: Apache-2.0
"""A/B tests on the fleet: B wins only on evidence, harm ends them early, and neither a kill nor a wrong outcome changes the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.bundles import make_bundle
from support.clocked_fleet import ClockedFleet
from support.fleet import enrolled

from vla_evidence.log.replay import Replay, replay_file
from vla_fleet.client import Client
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot

A, B = "1.0.0", "1.1.0"
DAY_S = 86400.0


class Fleet:
    """Robots that run A, on a server whose clock the test moves."""

    def __init__(self, server: ClockedFleet, client: Client, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder
        self.robots: list[SimulatedRobot] = []
        self.tokens: dict[str, str] = {}

    def add(self, count: int, rates: Mapping[str, float], *, episode_arms: bool = False, seed: int = 0) -> None:
        """Add robots with these success rates, and let them install A."""
        behaviours = {version: Behaviour(success=rate) for version, rate in rates.items()}
        added = []
        for number in range(len(self.robots), len(self.robots) + count):
            name, now = f"arm_{number}", self.server.clock.now
            robot = SimulatedRobot(name, behaviours, seed=seed, episode_arms=episode_arms, now=now)
            self.tokens[name] = enrolled(self.client, name, "pickers")
            self.connect(robot)
            added.append(robot)
        self.robots += added
        self.client.deploy(f"pick_place@{A}", [robot.name for robot in added])
        self.server.until(lambda: all(robot.active == A for robot in added), "A on every robot")
        self.server.until(lambda: all(self.client.robot(r.name)["status"] for r in added), "their statuses")

    def connect(self, robot: SimulatedRobot) -> None:
        robot.connect(self.server.url, self.tokens[robot.name], self.folder / robot.name)

    def create(self, unit: str, **more: Any) -> str:
        design = {"a": f"pick_place@{A}", "b": f"pick_place@{B}", "unit": unit, "group": "pickers"}
        return self.client.create_experiment({**design, "rate": 0.8, "per_day": 48.0, "difference": 0.1, **more})

    def joined(self, name: str) -> dict[str, Any]:
        def all_run() -> dict[str, Any] | None:
            found = self.client.experiment(name)
            return found if all(robot["state"] != "JOINING" for robot in found["robots"]) else None

        return self.server.until(all_run, "robots that take part")

    def play(self, name: str, each: int) -> dict[str, Any]:
        """Let every robot play so many episodes; return the experiment when they have been looked at."""
        before = self.counted(self.client.experiment(name))
        played = sum(len(robot.episodes(each)) for robot in self.robots)

        def looked_at() -> dict[str, Any] | None:
            found = self.client.experiment(name)
            return found if found["state"] != "RUNNING" or self.counted(found) >= before + played else None

        return self.server.until(looked_at, f"{played} outcomes")

    @staticmethod
    def counted(found: Mapping[str, Any]) -> int:
        return sum(arm["episodes"] for arm in found["arms"].values()) + found["waiting"] + sum(found["apart"].values())

    def to_the_end(self, name: str, each: int = 12, rounds: int = 100) -> dict[str, Any]:
        """Play until the experiment has ended and its robots are home."""
        self.joined(name)
        found: dict[str, Any] = {}
        for _ in range(rounds):
            found = self.play(name, each)
            if found["state"] != "RUNNING":
                break
            self.server.advance(DAY_S * each / 48.0)
        assert found["state"] != "RUNNING", found["message"]
        return self.server.until(lambda: self.home(name), "robots on their way back")

    def home(self, name: str) -> dict[str, Any] | None:
        found = self.client.experiment(name)
        return found if found["home"] else None

    def replayed(self, name: str) -> Replay:
        path = self.folder / f"{name}.jsonl"
        path.write_text(self.client.experiment_log(name))
        return replay_file(path)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        server = stack.enter_context(ClockedFleet(tmp_path / "fleet"))
        client = stack.enter_context(server.client())
        for seed, version in enumerate((A, B)):
            make_bundle(tmp_path / version, version=version, seed=seed)
            client.publish(tmp_path / version)
        fleet = Fleet(server, client, tmp_path)
        try:
            yield fleet
        finally:
            for robot in fleet.robots:
                robot.disconnect()


def test_by_episode_a_better_b_wins_and_every_verdict_can_be_replayed(fleet: Fleet) -> None:
    fleet.add(4, {A: 0.6, B: 0.95}, episode_arms=True)
    name = fleet.create("episode", rate=0.6, difference=0.3)
    found = fleet.to_the_end(name)
    assert found["state"] == "WIN_B", found["reason"]
    assert found["difference"]["low"] <= 0.35 <= found["difference"]["high"]
    assert all(robot.active == A and robot.episodes(1)[0].arm == "" for robot in fleet.robots), "no robot draws any more"
    assert not any(robot.rollbacks for robot in fleet.robots)
    replay = fleet.replayed(name)
    assert replay.last is not None and replay.last["decision"] == "B_BETTER"
    assert replay.outcomes == sum(arm["episodes"] for arm in found["arms"].values()) + found["waiting"]
