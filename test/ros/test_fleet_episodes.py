# SPDX-License-Identifier: Apache-2.0
"""An experiment by episode on a real robot: server, bridge, ota_manager and policy_node are the real ones, over real sockets."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from support.fleet import FleetServer
from support.robot_rig import RobotRig
from support.ros import NodeProcess
from support.waits import wait_for

from vla_evidence.assignment import arm
from vla_fleet.client import Client

ROBOT, A, B = "arm_1", "1.0.0", "1.1.0"


def start_bridge(stack: ExitStack, server: FleetServer, rig: RobotRig, code: str = "") -> NodeProcess:
    parameters = {
        "server": server.url.replace("http", "ws", 1),
        "state_dir": str(rig.folder / "bridge"),
        "enrolment_code": code,
    }
    log = rig.folder / "log"
    return stack.enter_context(NodeProcess("vla_fleet_bridge.ros.fleet_bridge", rig.domain, log, parameters=parameters))


def counted(client: Client, experiment: str) -> int:
    """Return how many episodes the server has counted."""
    found = client.experiment(experiment)
    assert not found["apart"], f"episodes that were not as drawn: {found['apart']}"
    return int(sum(one["episodes"] for one in found["arms"].values()) + found["waiting"])


def test_both_arms_act_on_one_robot_the_server_counts_them_and_the_end_leaves_a(
    ros_domain: int, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(FleetServer(tmp_path / "fleet"))
        client = stack.enter_context(server.client())
        sources = {"allowed_sources": [f"{server.url}/files/"]}
        rig = stack.enter_context(RobotRig(ros_domain, tmp_path / "robot", manager=sources))
        rig.start_policy()
        rig.start_manager()
        bridge = start_bridge(stack, server, rig, client.make_code(ROBOT))
        wait_for(lambda: [r["name"] for r in client.robots()] == [ROBOT], "the robot at the server")
        wait_for(lambda: client.robot(ROBOT)["status"].get("state"), "the manager's status at the server")
        for version in (A, B):
            rig.publish(version)
            client.publish(tmp_path / "robot" / "bundles" / version)
        first = client.deploy(f"pick_place@{A}", [ROBOT])[0]["id"]
        wait_for(lambda: client.commands([first])[0]["state"] == "DONE", "the first version")
        wait_for(lambda: client.robot(ROBOT)["status"].get("episode_arms"), "room for two versions")

        design = {"a": f"pick_place@{A}", "b": f"pick_place@{B}", "unit": "episode", "robots": [ROBOT]}
        experiment = client.create_experiment({**design, "rate": 0.6, "difference": 0.3, "per_day": 1000.0})
        drawing = rig.wait_policy(
            lambda m: m.experiment == experiment and m.prepared_version == B, "both versions loaded"
        )
        assert drawing.active_version == A and drawing.episode_arms
        wait_for(lambda: client.experiment(experiment)["robots"][0]["state"] == "RUNNING", "the robot taking part")
        state = rig.state()["experiment"]
        assert (state["experiment"], state["robot"], state["code"]) == (experiment, ROBOT, "")

        names = (f"episode-{number}" for number in range(1000))

        def play(count: int) -> list[str]:
            """Run episodes, of each arm in turn as the server draws their names; return the arms that the robot drew."""
            arms = []
            for number in range(count):
                due = "AB"[number % 2]
                outcome = rig.episode(True, next(n for n in names if "AB"[arm(experiment, ROBOT, n, 0.5)] == due))
                assert not outcome.mixed and (outcome.arm, outcome.version) == (due, {"A": A, "B": B}[due])
                arms.append(due)
            return arms

        arms = play(10)
        wait_for(lambda: counted(client, experiment) == len(arms), "every episode at the server")
        runs = client.history(ROBOT)
        assert {A, B} <= {run["version"] for run in runs} and "EXPERIMENT" in {run["cause"] for run in runs}

        bridge.kill()  # the manager keeps the assignment, and either node may restart
        assert rig.manager is not None
        rig.manager.kill()
        rig.start_manager()
        rig.wait_status(lambda m: m.experiment == experiment, "the experiment after the restart")
        rig.wait_policy(lambda m: m.experiment == experiment, "the draws after the restart")
        restarted_s = time.time()
        start_bridge(stack, server, rig)

        def hears_policy_node() -> bool:
            status = client.robot(ROBOT)["status"]
            return bool(status["time_s"] > restarted_s and status["episode_arms"])

        wait_for(hears_policy_node, "the new bridge hearing policy_node")
        arms += play(4)
        wait_for(lambda: counted(client, experiment) == len(arms), "every episode at the server")
        by_arm = client.experiment(experiment)["arms"]
        assert min(by_arm[name]["episodes"] for name in "AB") > 0

        client.stop_experiment(experiment, "a test")
        wait_for(lambda: client.experiment(experiment)["robots"][0]["state"] == "LEFT", "the robot sent home")
        rig.wait_acting(A)
        status = rig.wait_status(lambda m: m.active_version == A, "A at the manager")
        assert status.experiment == "" and status.committed_version == A and not status.blocked
        assert rig.episode(True).arm == "" and rig.current() == A
