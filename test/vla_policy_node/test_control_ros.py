# SPDX-License-Identifier: Apache-2.0
"""On real ROS 2: the control process is the one publisher of the command topic, in the message type that the contract names."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from support.control_rig import contract_text
from support.control_ros import TOPICS, Peer, robot_for
from trajectory_msgs.msg import JointTrajectory

from vla_policy_node.errors import ControlError


@pytest.fixture
def peer(ros_domain: int) -> Iterator[Peer]:
    made = Peer(ros_domain)
    yield made
    made.close()


def with_output(kind: str, select: list[str], *, degrees: bool = False) -> str:
    data = yaml.safe_load(contract_text())
    action = {"channel": {"topic": "commands", "type": kind}, "select": select}
    data["actions"]["action"] = action | ({"apply": ["rad2deg"]} if degrees else {})
    return str(yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("kind", "select", "type_", "read"),
    [
        ("std_msgs/msg/Float64MultiArray", ["data.1", "data.0"], Float64MultiArray, lambda m: [m.data[1], m.data[0]]),
        (
            "sensor_msgs/msg/JointState",
            ["position.x", "position.y"],
            JointState,
            lambda m: (list(m.name), list(m.position)),
        ),
        (
            "trajectory_msgs/msg/JointTrajectory",
            ["position.x", "position.y"],
            JointTrajectory,
            lambda m: (list(m.joint_names), list(m.points[0].positions), m.points[0].time_from_start.nanosec),
        ),
        (
            "geometry_msgs/msg/TwistStamped",
            ["twist.linear.x", "twist.angular.z"],
            TwistStamped,
            lambda m: (m.twist.linear.x, m.twist.angular.z, m.header.stamp.sec > 0),
        ),
    ],
)
def test_commands_arrive_in_the_contracts_message(
    tmp_path: Path, ros_domain: int, peer: Peer, kind: str, select: list[str], type_: Any, read: Any
) -> None:
    robot = robot_for(tmp_path, ros_domain, with_output(kind, select), topics={"commands": "/arm/remapped"})
    got: list[Any] = []
    peer.node.create_subscription(type_, "/arm/remapped", got.append, QoSProfile(depth=10))
    try:
        robot.run((0.25, 0.125))
        peer.wait(lambda: robot.client.status().command[0] == 0.25)
        got.clear()
        peer.wait(lambda: len(got) > 3)
    finally:
        robot.close()
    want = {
        "std_msgs/msg/Float64MultiArray": [0.25, 0.125],
        "sensor_msgs/msg/JointState": (["x", "y"], [0.25, 0.125]),
        "trajectory_msgs/msg/JointTrajectory": (["x", "y"], [0.25, 0.125], 20_000_000),
        "geometry_msgs/msg/TwistStamped": (0.25, 0.125, True),
    }
    assert read(got[-1]) == want[kind]


def test_a_policy_in_degrees_commands_a_driver_in_radians(tmp_path: Path, ros_domain: int, peer: Peer) -> None:
    text = with_output("sensor_msgs/msg/JointState", ["position.x", "position.y"], degrees=True)
    robot = robot_for(tmp_path, ros_domain, text)
    got: list[Any] = []
    peer.node.create_subscription(JointState, "/arm/commands", got.append, QoSProfile(depth=10))
    try:
        robot.run((0.25, 0.0))
        peer.wait(lambda: got and got[-1].position[0] == pytest.approx(math.radians(0.25)))
    finally:
        robot.close()


def test_a_second_control_process_for_the_topic_is_refused_until_the_first_is_gone(
    tmp_path: Path, ros_domain: int
) -> None:
    first = robot_for(tmp_path, ros_domain, contract_text(), topics=TOPICS)
    second = robot_for(tmp_path, ros_domain, contract_text(), topics=TOPICS)
    third = robot_for(tmp_path, ros_domain, contract_text(), topics=TOPICS)
    try:
        first.run()
        with pytest.raises(ControlError) as e:
            second.client.start(20.0)
        assert e.value.code == "COMMAND_TOPIC_LOCKED" and "/arm/commands" in e.value.message
        os.kill(first.client.pid, signal.SIGKILL)
        first.event("EXITED")
        third.run()  # its predecessor's ghost in the graph does not keep it out
    finally:
        for robot in (first, second, third):
            robot.close()


def test_a_foreign_publisher_of_the_command_topic_stops_ours_and_keeps_it_out(
    tmp_path: Path, ros_domain: int, peer: Peer
) -> None:
    robot = robot_for(tmp_path, ros_domain, contract_text(auto=True), topics=TOPICS)
    try:
        robot.run()
        foreign = peer.node.create_publisher(Float64MultiArray, "/arm/commands", 1)
        hold = robot.event("HOLD")
        assert hold["reason"] == "COMMAND_TOPIC_TAKEN" and hold["latched"] and "/peer" in hold["message"]
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
