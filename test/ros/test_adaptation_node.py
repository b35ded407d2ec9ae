# SPDX-License-Identifier: Apache-2.0
"""A whole robot adapts: real policy_node, ota_manager and adaptation, each a process, from its episodes to what it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import Image
from support.adaptive_robot import QUICK, write_own_episode
from support.engine_rig import PATIENT, contract_text
from support.robot_rig import RobotRig
from support.ros import NodeProcess
from support.tiny_vla_bundles import CAMERA, make
from vla_ota.msg import AdaptationStatus, PolicyStatus
from vla_ota.srv import EndEpisode, StartEpisode

from vla_ros import qos

pytestmark = pytest.mark.long


def contract_with_camera() -> str:
    """The ideal robot's contract with a camera, at the base's rate; limits that stop no policy, for this one is untrained."""
    document = yaml.safe_load(contract_text(rate_hz=20, **PATIENT))
    document["observations"][CAMERA] = {
        "channel": {"topic": "camera", "type": "sensor_msgs/msg/Image"},
        "align": document["observations"]["observation.state"]["align"],
        "apply": [{"resize": [32, 32]}],
    }
    for channel in document["safety"]["channels"]:
        channel["limits"] = {"position": [-50.0, 50.0], "velocity": 1000.0, "step": 50.0, "tolerance": 0.1}
    return yaml.safe_dump(document)


class AdaptingRig(RobotRig):
    """Its manager has a small base to begin with, and its recorder has left 30 episodes."""

    def __init__(self, domain: int, folder: Path) -> None:
        make(folder / "base", 0.0)  # before anything spins in this process: it imports torch
        for number in range(30):
            path = folder / "recordings" / "episodes" / f"20260101T{number:06d}Z_e.mcap"
            write_own_episode(path, number, corrected=number < 15)
        offers = folder / "store" / "adaptation" / "offers"
        super().__init__(domain, folder, manager={"adapter_dir": str(offers), "calibration_samples": 100_000})
        (folder / "contract.yaml").write_text(contract_with_camera())
        pixels = np.zeros((32, 32, 3), np.uint8)
        self._picture = Image(height=32, width=32, encoding="rgb8", step=96, data=pixels.tobytes())
        self._camera = self.ros.advertise(Image, "camera", qos.SENSORS, readers=0)
        self.ros.on_executor(lambda: self.ros.node.create_timer(0.05, self._see))
        self.adaptation_status = self.ros.subscribe(AdaptationStatus, "adaptation/status", qos.LATCHED_EACH)
        self.start_policy(spare_worker=False)
        self.start_manager(factory_bundle=str(folder / "base"))

    def start_adaptation(self) -> NodeProcess:
        folder = self.store / "adaptation"
        parameters = {
            **QUICK,
            "adaptation_dir": str(folder),
            "recording_dir": str(self.folder / "recordings"),
            "store_dir": str(self.store),
        }
        return NodeProcess("vla_adaptation.ros.adaptation", self.domain, self.folder / "log", parameters=parameters)

    def _see(self) -> None:
        self._picture.header.stamp = self.ros.now()
        self._camera.publish(self._picture)

    def said(self, accept: Callable[[Any], bool], what: str) -> Any:
        """Wait for what adaptation says."""
        return self.adaptation_status.wait(accept, 120.0, what)


@pytest.fixture
def rig(ros_domain: int, tmp_path: Path) -> Iterator[AdaptingRig]:
    with AdaptingRig(ros_domain, tmp_path) as made:
        yield made


@pytest.mark.timeout(400)  # four processes import torch
def test_a_robot_trains_when_its_episode_is_over_and_commits_its_own_adapter_after_a_trial(rig: AdaptingRig) -> None:
    opened = rig.call(StartEpisode, "policy_node/start_episode", StartEpisode.Request(episode_id="e-7"))
    assert opened.success or opened.error_code == "EPISODE_OPEN", opened.message
    with rig.start_adaptation() as adaptation:
        rig.said(lambda m: m.waits_for == "the end of episode e-7", "waiting for the episode's end")
        assert not (rig.store / "adaptation" / "job").exists()
        rig.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(episode_id="e-7", success=True))
        rig.said(lambda m: m.adapter_version, "an adapter that passed")
        trial = rig.said(lambda m: m.state == AdaptationStatus.STATE_TRIAL, "the trial")
        version = trial.adapter_version
        assert version.startswith("1.0.1-adapted.x") and trial.base_version == "1.0.0"
        update = rig.status.wait(lambda m: m.trial_version == version, what="the manager's trial of it")
        rig.episodes_until(True, "COMMITTED", update.update_id)
        rig.said(lambda m: m.adapter_standing == "COMMITTED" and m.adapter_version == version, "its commit")
        running = PolicyStatus.STATE_RUNNING
        rig.wait_policy(lambda m: m.state == running and m.active_version == version, "the adapter running")
        assert adaptation.stop() == 0
