# SPDX-License-Identifier: Apache-2.0
"""The server on PostgreSQL: from a published version to a robot that has committed it."""

from __future__ import annotations

from pathlib import Path

from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.rollouts import MODEL, NEW
from support.servers import Postgres
from support.waits import wait_for

from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot


def test_a_robot_commits_what_was_published_and_the_server_remembers_it_when_it_starts_again(
    tmp_path: Path, postgres: Postgres
) -> None:
    robot = SimulatedRobot("arm_0", {NEW: Behaviour(1.0, 0.01)})
    make_bundle(tmp_path / NEW, version=NEW)
    options = ("--database", postgres.url("one_robot"))
    with FleetServer(tmp_path / "fleet", options=options) as server, server.client() as client:
        client.publish(tmp_path / NEW)
        robot.connect(server.url, enrolled(client, "arm_0"), tmp_path)
        try:
            ids = [command["id"] for command in client.deploy(MODEL, ["arm_0"])]
            wait_for(lambda: all(command["final"] for command in client.commands(ids)), "the order's end")
            assert [command["state"] for command in client.commands(ids)] == ["DONE"]
            wait_for(lambda: client.robots()[0]["status"].get("committed_version") == NEW, "the robot's status")
            robot.episodes(3)
            server.kill()
            server.start()
            assert [command["state"] for command in client.commands(ids)] == ["DONE"]
            wait_for(lambda: robot.online, "the robot")
        finally:
            robot.disconnect()
