# SPDX-License-Identifier: Apache-2.0
"""Robots of a fleet that run adapters of their own: each counts as the full version below, over a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.rollouts import HOUR_S, MODEL, NEW, OLD, RolloutFleet
from support.waits import wait_for
from typer.testing import CliRunner

from vla_fleet.cli import common
from vla_fleet.cli.main import app as fleet_cli
from vla_fleet.errors import MissingError
from vla_sim.fleet.simulated_robot import SimulatedRobot

NAMES = ("arm_0", "arm_1", "arm_2")
STAGES = [
    {"name": "canary", "share": 0.4, "duration_s": 24 * HOUR_S, "margin": 0.2},
    {"name": "full", "share": 1.0},
]
OWN = "1.1.1-adapted.x0123456789ab"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RolloutFleet]:
    with RolloutFleet(tmp_path) as fleet:
        yield fleet


def adapt(fleet: RolloutFleet, robot: SimulatedRobot) -> None:
    """Let a robot commit an adapter of its own on what it runs, and the server hear of it."""
    base = robot.active
    with robot._mutex:
        robot.on_disk[OWN] = "a" * 64
        robot.lineage.append(OWN)
        robot._tell_status(adapted_version=base, adapted_digest=robot.on_disk[base])
    wait_for(lambda: fleet.client.robot(robot.name)["status"]["adapted_version"] == base, "the robot's status")


def holder(fleet: RolloutFleet, rollout: str, robots: list[SimulatedRobot]) -> tuple[SimulatedRobot, dict[str, Any]]:
    """Install the first stage, let its one robot adapt, and return that robot, and how it stands a minute later."""
    fleet.until(rollout, "JUDGING")
    robot = next(robot for robot in robots if robot.active == NEW)
    fleet.pass_time(60)
    adapt(fleet, robot)
    fleet.pass_time(60)
    fleet.step(3)
    return robot, {about["robot"]: about for about in fleet.client.rollout(rollout)["robots"]}[robot.name]


def test_a_robot_that_adapts_what_a_rollout_gave_it_stays_in_the_rollout_and_keeps_its_adapter(
    fleet: RolloutFleet,
) -> None:
    robots = fleet.add(*NAMES, arms=False)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    robot, stands = holder(fleet, rollout, robots)
    assert stands["standing"] == "INSTALLED", stands
    fleet.until(rollout, "ASKING", hours=24, episodes=3)
    fleet.client.steer_rollout(rollout, "approve", "looks well")
    end = fleet.until(rollout, "DONE")
    assert {about["standing"] for about in end["robots"]} == {"INSTALLED"}
    assert sorted(robot.active for robot in robots) == [NEW, NEW, OWN] and robot.active == OWN
    assert list(robot.updates.values()).count(NEW) == 1, "it is not given again"
    with pytest.raises(MissingError, match="runs it already"):
        fleet.client.create_rollout(MODEL, stages=STAGES)


def test_a_rollout_that_is_rolled_back_takes_its_adapted_robots_back_too(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    robot, _ = holder(fleet, rollout, robots)
    fleet.client.steer_rollout(rollout, "abort", "it bumps into things")
    end = fleet.until(rollout, "ROLLED_BACK")
    assert {about["robot"]: about["standing"] for about in end["robots"]}[robot.name] == "BACK"
    assert [robot.active for robot in robots] == [OLD] * 3


def test_command_line_and_page_name_the_version_below_an_adapter(
    fleet: RolloutFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot, _ = fleet.add("arm_0", "arm_1")
    adapt(fleet, robot)
    monkeypatch.setattr(common.out, "_width", 200)
    shown = CliRunner().invoke(fleet_cli, ["robots", "--server", fleet.url], env={"VLA_FLEET_KEY": fleet.server.key})
    assert f"{OWN} on {OLD}" in shown.output, shown.output
    with httpx.Client(base_url=fleet.url, headers={"Origin": fleet.url}, timeout=40.0) as browser:
        browser.post("/sign-in", data={"key": fleet.server.key})
        assert f"{OWN} on {OLD}" in browser.get("/").text
        assert "adapted here" in browser.get("/robots/arm_0").text
