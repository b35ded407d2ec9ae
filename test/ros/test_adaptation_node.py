# SPDX-License-Identifier: Apache-2.0
"""The node adaptation on real ROS: what it hears starts and stops a real training process, and its status says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.adaptive_robot import QUICK, state_of, write_own_episode
from support.ros import NodeProcess, RosHarness
from support.tiny_vla_bundles import make
from support.waits import wait_for
from vla_ota.msg import AdaptationStatus, ModelStatus, PolicyStatus

from vla_checkpoint import load_manifest
from vla_ros import qos


class Robot:
    """A store with a small base, 30 episodes, the node, and what it hears: a policy node and a manager that say one thing."""

    def __init__(self, domain: int, folder: Path) -> None:
        base = folder / "store" / "models" / "tiny" / "1.0.0"
        base.parent.mkdir(parents=True)
        make(base, 0.0)
        (folder / "store" / "current").symlink_to(base)
        for number in range(30):
            path = folder / "recordings" / "episodes" / f"20260101T{number:06d}Z_e.mcap"
            write_own_episode(path, number, corrected=number < 15)
        self.ros = RosHarness(domain)
        self.status = self.ros.subscribe(AdaptationStatus, "adaptation/status", qos.LATCHED)
        self._policy = self.ros.node.create_publisher(PolicyStatus, "policy_node/status", qos.LATCHED)
        self._manager = self.ros.node.create_publisher(ModelStatus, "ota_manager/status", qos.LATCHED)
        digest = load_manifest(base).digest
        self.says = PolicyStatus(), ModelStatus(state_name="COMMITTED", committed_digest=digest)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._say, daemon=True)
        self._thread.start()
        parameters = {
            **QUICK,
            "steps": 100_000,
            "adaptation_dir": str(folder / "store" / "adaptation"),
            "recording_dir": str(folder / "recordings"),
            "store_dir": str(folder / "store"),
        }
        self.node = NodeProcess("vla_adaptation.ros.adaptation", domain, folder / "log", parameters=parameters)

    def _say(self) -> None:
        while not self._stopping.wait(0.2):
            self._policy.publish(self.says[0])
            self._manager.publish(self.says[1])

    def close(self) -> None:
        self.node.__exit__(None)
        self._stopping.set()
        self._thread.join()
        self.ros.close()

    def training(self) -> int:
        """The training process, 0 = there is none."""
        children = Path(f"/proc/{self.node.process.pid}/task").glob("*/children")
        return next((int(pid) for path in children for pid in path.read_text().split()), 0)


@pytest.fixture
def robot(ros_domain: int, tmp_path: Path) -> Iterator[Robot]:
    made = Robot(ros_domain, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_an_episode_stops_training_its_end_lets_it_go_on_and_the_nodes_end_ends_it(robot: Robot) -> None:
    def said(state: int, **fields: Any) -> AdaptationStatus:
        def fits(message: AdaptationStatus) -> bool:
            return message.state == state and all(getattr(message, name) == value for name, value in fields.items())

        return robot.status.wait(fits, what=f"{state} {fields}; {robot.node.log}")

    said(AdaptationStatus.STATE_TRAINING, base_version="1.0.0")
    pid = wait_for(robot.training, "the training process")
    robot.says[0].episode_id = "e-7"
    paused = said(AdaptationStatus.STATE_PAUSED, waits_for="the end of episode e-7")
    assert paused.state_name == "PAUSED" and state_of(pid) == "T"
    robot.status.clear()
    robot.says[0].episode_id = ""
    said(AdaptationStatus.STATE_TRAINING)
    wait_for(lambda: state_of(pid) != "T", "going on")
    robot.node.process.terminate()
    assert robot.node.process.wait(40) == 0
    assert not Path(f"/proc/{pid}").exists()
    job = robot.node.log_file.parents[1] / "store" / "adaptation" / "job" / "job.json"
    assert json.loads(job.read_text())["kind"] == "train", "the next start goes on with it"
