# SPDX-License-Identifier: Apache-2.0
"""On real ROS 2: the control process is the one publisher of the command topic, and waits for no other process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from std_msgs.msg import Float64MultiArray
from support.control_rig import contract_text
from support.control_robot import MAX_AGE_MS
from support.control_ros import TOPICS, Peer, robot_for

from vla_policy_node.errors import ControlError


@pytest.fixture
def peer(ros_domain: int) -> Iterator[Peer]:
    made = Peer(ros_domain)
    yield made
    made.close()


def test_a_second_control_process_for_the_topic_is_refused_until_the_first_is_gone(
    tmp_path: Path, ros_domain: int
) -> None:
    first = robot_for(tmp_path, ros_domain, contract_text(max_age_ms=MAX_AGE_MS), topics=TOPICS)
    second = robot_for(tmp_path, ros_domain, contract_text(max_age_ms=MAX_AGE_MS), topics=TOPICS)
    third = robot_for(tmp_path, ros_domain, contract_text(max_age_ms=MAX_AGE_MS), topics=TOPICS)
    try:
        first.run()
        with pytest.raises(ControlError) as e:
            second.client.start(40.0)
        assert e.value.code == "COMMAND_TOPIC_LOCKED" and "/arm/commands" in e.value.message
        os.kill(first.client.pid, signal.SIGKILL)
        first.event("EXITED")
        third.run()  # its predecessor's ghost in the graph does not keep it out
    finally:
        for robot in (first, second, third):
            robot.close()


def test_commands_arrive_without_shared_memory(tmp_path: Path, ros_domain: int, peer: Peer) -> None:
    """Fast DDS could make ``publish()`` wait there for a third of a second when a process joins (ADR 19)."""
    robot = robot_for(tmp_path, ros_domain, contract_text(auto=True, max_age_ms=MAX_AGE_MS), topics=TOPICS)
    try:
        heard: list[Float64MultiArray] = []
        peer.node.create_subscription(Float64MultiArray, "/arm/commands", heard.append, 1)
        robot.run()

        def commanded() -> bool:
            peer.executor.spin_once(timeout_sec=0.2)
            return len(heard) >= 5

        peer.wait(commanded)
        assert "/dev/shm/fastrtps_" in Path("/proc/self/maps").read_text()
        assert "/dev/shm/fastrtps_" not in Path(f"/proc/{robot.client.pid}/maps").read_text()
    finally:
        robot.close()


def test_a_foreign_publisher_of_the_command_topic_stops_ours_and_keeps_it_out(
    tmp_path: Path, ros_domain: int, peer: Peer
) -> None:
    robot = robot_for(tmp_path, ros_domain, contract_text(auto=True, max_age_ms=MAX_AGE_MS), topics=TOPICS)
    try:
        robot.run()
        foreign = peer.node.create_publisher(Float64MultiArray, "/arm/commands", 1)
        hold = robot.wait(lambda: [e for e in robot.events if e.get("reason") == "COMMAND_TOPIC_TAKEN"])[0]
        assert hold["type"] == "HOLD" and hold["latched"] and "/peer" in hold["message"]
        status = robot.client.status()
        assert status.mode == "HOLDING" and np.isnan(status.command).all()  # it does not fight: it is silent
        robot.client.enable(False)
        robot.client.enable(True)
        failed = robot.event("ENABLE_FAILED")
        assert failed["error_code"] == "COMMAND_TOPIC_TAKEN" and "/peer" in failed["message"]
        peer.node.destroy_publisher(foreign)

        def enabled() -> bool:
            robot.client.enable(True)
            peer.executor.spin_once(timeout_sec=0.2)
            return robot.mode == "HOLDING"

        peer.wait(enabled)
        robot.client.resume()
        robot.wait(lambda: robot.mode == "RUNNING")
    finally:
        robot.close()
