# SPDX-License-Identifier: Apache-2.0
"""A robot on the line: real server, real bridge, real manager; what is ordered happens, and what happened is known."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.fleet import FleetServer
from support.kept import KEPT
from support.manager_rig import ManagerRig
from support.ros import NodeProcess
from support.waits import wait_for
from vla_ota.msg import AdaptationStatus, AnomalyScore, BridgeStatus, EpisodeOutcome

from vla_ros import qos

ROBOT = "arm_1"


class FleetRig:
    """One robot and its server."""

    def __init__(self, domain: int, folder: Path, stack: ExitStack) -> None:
        self.server = stack.enter_context(FleetServer(folder / "fleet"))
        self.client = stack.enter_context(self.server.client())
        parameters = {"allowed_sources": [f"{self.server.url}/files/"]}
        self.robot = stack.enter_context(ManagerRig(domain, folder / "robot", parameters=parameters))
        self.line = self.robot.ros.subscribe(BridgeStatus, "fleet_bridge/status", qos.LATCHED_EACH)
        self.robot.start()
        self.folder, self._domain, self._stack = folder, domain, stack
        self.bridge = self.start_bridge(self.client.make_code(ROBOT))

    def start_bridge(self, code: str = "") -> NodeProcess:
        """Start the bridge and wait until it is connected."""
        parameters = {
            "server": self.server.url.replace("http", "ws", 1),
            "state_dir": str(self.folder / "bridge"),
            "enrolment_code": code,
        }
        self.line.clear()
        bridge = self._stack.enter_context(
            NodeProcess("vla_fleet_bridge.ros.fleet_bridge", self._domain, self.folder / "log", parameters=parameters)
        )
        KEPT.add(bridge.process.pid)
        self.line.wait(lambda m: m.connected, what="the line")
        wait_for(lambda: self.client.robot(ROBOT)["status"].get("state"), "the manager's status at the server")
        return bridge

    def start_server(self) -> None:
        """Start a server that was killed."""
        self.server.start()
        KEPT.add(self.server.pid)

    def publish(self, version: str) -> None:
        """Publish a version on the fleet server."""
        folder = self.folder / "bundles" / version
        make_bundle(folder, version=version, seed=zlib.crc32(version.encode()))
        self.client.publish(folder)

    def install(self, version: str) -> None:
        """Publish and deploy a version, and let it prove itself."""
        self.publish(version)
        command = self.client.deploy(f"pick_place@{version}", [ROBOT])[0]["id"]
        self.robot.prove(command)
        assert self.ends_as(command, "DONE")["robot_state"] == "COMMITTED"

    def ends_as(self, command: str, state: str) -> dict[str, object]:
        """Wait until a command is done, and return it."""

        def done() -> dict[str, object] | None:
            found = self.client.commands([command])[0]
            return found if found["final"] else None

        found: dict[str, object] = wait_for(done, f"the end of {command}")
        assert found["state"] == state, found
        return found


@pytest.fixture(scope="module")
def rig(shared_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetRig]:
    with ExitStack() as stack:
        yield FleetRig(shared_domain, tmp_path_factory.mktemp("fleet"), stack)


def test_a_deployment_is_done_when_the_robot_has_committed_and_a_rollback_when_it_is_back(rig: FleetRig) -> None:
    rig.install("1.0.0")
    rig.install("1.1.0")
    wait_for(lambda: rig.client.robot(ROBOT)["status"]["committed_version"] == "1.1.0", "the version at the server")
    back = rig.client.rollback([ROBOT], reason="a test")[0]
    assert rig.ends_as(back["id"], "DONE")["version"] == "1.0.0"
    assert rig.robot.policy.active[1] == "1.0.0"

    def states() -> list[str]:
        return [event["to_state"] for event in rig.client.events(ROBOT)]

    wait_for(lambda: states().count("COMMITTED") == 2 and "ROLLED_BACK" in states(), "the events at the server")
    assert {"publish", "model_update", "rollback", "enrol"} <= {line["action"] for line in rig.client.log()}

    runs = wait_for(lambda: ran if len(ran := rig.client.history(ROBOT)) == 3 else None, "the record of what ran")
    assert [(run["version"], run["cause"], run["ordered_by"]) for run in runs] == [
        ("1.0.0", "ROLLBACK", "admin"),
        ("1.1.0", "UPDATE", "admin"),
        ("1.0.0", "UPDATE", "admin"),
    ]
    assert runs[0]["command_id"] == back["id"] and all(run["digest"] for run in runs)

    command = rig.client.rollback([ROBOT], version="9.9.9")[0]
    assert rig.ends_as(command["id"], "FAILED")["error_code"] == "MODEL_NOT_FOUND"
    assert rig.robot.policy.active[1] == "1.0.0"


def test_a_deployment_ends_as_it_would_have_though_server_and_bridge_are_killed_on_the_way(rig: FleetRig) -> None:
    rig.publish("1.2.0")
    swaps = len(rig.robot.policy.swaps)
    command = rig.client.deploy("pick_place@1.2.0", [ROBOT])[0]["id"]
    rig.robot.wait_update(command, "TRIAL")
    rig.server.kill()
    rig.bridge.kill()
    rig.robot.prove(command)  # the robot needs neither
    rig.start_server()
    rig.bridge = rig.start_bridge()
    assert rig.ends_as(command, "DONE")["robot_state"] == "COMMITTED"
    assert len([swap for swap in rig.robot.policy.swaps[swaps:] if swap.trial]) == 1, "it was carried out once"


def test_the_server_hears_which_version_is_below_an_adapter_that_the_robot_trained_itself(rig: FleetRig) -> None:
    def known(committed: str, adapted: str) -> dict[str, str]:
        def there() -> dict[str, str] | None:
            about: dict[str, str] = rig.client.robot(ROBOT)["status"]
            return about if (about["committed_version"], about["adapted_version"]) == (committed, adapted) else None

        return wait_for(there, f"{committed} on {adapted or 'nothing'} at the server")  # type: ignore[no-any-return]

    rig.install("1.3.0")
    own = known("1.3.0", "")["committed_digest"]
    adaptation = rig.robot.ros.advertise(AdaptationStatus, "adaptation/status", qos.LATCHED, readers=0)
    adaptation.publish(AdaptationStatus(adapter_digest=own, base_version="1.2.9", base_digest="b" * 64))
    assert known("1.3.0", "1.2.9")["adapted_digest"] == "b" * 64
    rig.install("1.4.0")
    known("1.4.0", "")
    rig.robot.ros.withdraw(adaptation)


def test_the_server_hears_the_newest_scores_of_what_acts(rig: FleetRig) -> None:
    scores = rig.robot.ros.advertise(AnomalyScore, "anomaly_score", qos.SCORES, readers=2)

    def heard() -> bool:
        about = rig.client.robot(ROBOT)["status"]
        for score in (0.5, 0.25):
            scores.publish(AnomalyScore(source="reversal", version=about["active_version"], score=score))
        scores.publish(AnomalyScore(source="tce", version="0.9.9", score=7.0))
        scores.publish(AnomalyScore(source="force", version=about["active_version"], score=float("nan")))
        return bool(about["scores"] == {"reversal": 0.25})

    wait_for(heard, "the scores at the server")
    rig.robot.ros.withdraw(scores)


def test_a_robot_gets_a_new_token_and_says_how_long_it_has_had_no_line(rig: FleetRig) -> None:
    path = rig.folder / "bridge" / "token"
    old = path.read_text()
    rig.client.rotate_tokens([ROBOT])
    wait_for(lambda: path.read_text() != old and not rig.client.robot(ROBOT)["rotating"], "the new token")
    rig.line.wait(lambda m: m.connected, what="the line with it")
    rig.line.clear()
    rig.server.kill()
    away = rig.line.wait(lambda m: not m.connected and m.message.startswith("no line"), what="the loss of the line")
    rig.line.wait(
        lambda m: m.since == away.since and m.message.split(":")[:3] != away.message.split(":")[:3],
        what="a longer time",
    )
    rig.start_server()
    rig.line.wait(lambda m: m.connected, what="the line again")


def test_nothing_that_somebody_publishes_keeps_a_rollback_from_the_robot(rig: FleetRig) -> None:
    outcomes = rig.robot.ros.advertise(EpisodeOutcome, "episode_outcome", readers=2)

    def complained() -> bool:
        for text, duration_s in (("x" * 10_000, 1.0), ("\u2603", float("inf")), ("e-1", float("nan"))):
            outcomes.publish(EpisodeOutcome(episode_id=text, duration_s=duration_s))
        return "MESSAGE_INVALID: outcome is not sent: episode_id" in rig.bridge.log

    wait_for(complained, "the bridge's complaint")  # a bridge that was killed may still be in the graph
    command = rig.client.rollback([ROBOT], version="9.9.9")[0]["id"]
    assert rig.ends_as(command, "FAILED")["error_code"] == "MODEL_NOT_FOUND"
