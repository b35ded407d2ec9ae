# SPDX-License-Identifier: Apache-2.0
"""``vla-contract init --from-topics`` on a real ROS graph: topics, rates, sizes, joints and controllers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String
from support.doctor_robot import Publishers
from support.ros import RosHarness
from trajectory_msgs.msg import JointTrajectory
from vla_ota.msg import PolicyStatus

from vla_ros import qos

ARM = ["shoulder", "elbow"]
URDF = (
    '<robot name="r"><joint name="elbow" type="revolute"><limit lower="-1.5" upper="2" velocity="3"/></joint></robot>'
)


def controller(stack: ExitStack, domain: int, name: str, kind: type, topic: str, **parameters: Any) -> None:
    """A controller as ros2_control shows it: a node with its joints as parameters, and its command topic."""
    ros = stack.enter_context(RosHarness(domain, name))
    for key, value in parameters.items():
        ros.on_executor(lambda key=key, value=value: ros.node.declare_parameter(key, value))
    ros.subscribe(kind, f"{name}/{topic}")


def robot(stack: ExitStack, domain: int) -> None:
    ros = stack.enter_context(RosHarness(domain, "driver"))
    topics = Publishers(ros)

    def joints() -> JointState:
        message = JointState(name=["elbow", "gripper", "shoulder"], position=[0.0] * 3)
        message.header.stamp = ros.now()
        return message

    picture = Image(encoding="rgb8", height=24, width=32, step=96, data=bytes(24 * 96))
    depth = Image(encoding="16UC1", height=24, width=32, step=64, data=bytes(24 * 64))
    topics.add("joint_states", JointState, joints)
    topics.add("wrist_camera/image_raw", Image, lambda: picture, every=2)
    topics.add("wrist_camera/depth", Image, lambda: depth, every=2)
    description = ros.advertise(String, "robot_description", qos.LATCHED, readers=0)
    ros.on_executor(lambda: description.publish(String(data=URDF)))
    ros.subscribe(JointState, "joint_states")  # as robot_state_publisher does; that is no command
    policy = stack.enter_context(RosHarness(domain, "policy_node"))  # runs already, and listens to an operator
    policy.advertise(PolicyStatus, "policy_node/status", qos.LATCHED, readers=0)
    policy.subscribe(JointTrajectory, "operator/arm_controller/joint_trajectory")
    controller(
        stack,
        domain,
        "arm_controller",
        JointTrajectory,
        "joint_trajectory",
        joints=ARM,
        command_interfaces=["position"],
    )
    controller(
        stack,
        domain,
        "gripper_controller",
        Float64MultiArray,
        "commands",
        joints=["gripper"],
        interface_name="position",
    )
    controller(stack, domain, "other_controller", Float64MultiArray, "commands", joints=ARM, interface_name="position")


def init(domain: int, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "vla_contract.cli",
        "init",
        "--from-topics",
        "--seconds",
        "1.5",
        "--out",
        str(out),
        *arguments,
    ]
    env = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    return subprocess.run(command, env=env, capture_output=True, timeout=110, check=False, text=True)


@pytest.fixture
def seen(ros_domain: int) -> Any:
    with ExitStack() as stack:
        robot(stack, ros_domain)
        yield ros_domain


def test_a_first_contract_holds_what_the_running_robot_shows(seen: int, tmp_path: Path) -> None:
    chosen = ["--commands", "/arm_controller/joint_trajectory", "--commands", "/gripper_controller/commands"]
    done = init(seen, tmp_path / "arm.yaml", *chosen)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "arm.yaml").read_text()
    document = yaml.safe_load(text)
    camera = document["observations"].pop("observation.images.wrist")
    assert camera["channel"] == {"topic": "wrist_camera/image_raw", "type": "sensor_msgs/msg/Image"}
    assert camera["apply"] == [{"resize": [24, 32]}] and camera["align"]["timeline"] == "receive"  # no stamps
    state = document["observations"].pop("observation.state")
    assert state["channel"]["topic"] == "joint_states" and state["align"]["timeline"] == "header"
    assert state["select"] == ["position.shoulder", "position.elbow", "position.gripper"]
    assert not document["observations"] and "/wrist_camera/depth" in text
    arm, gripper = document["actions"]["action"]
    assert arm["select"] == ["position.shoulder", "position.elbow"] and gripper["select"] == ["data.0"]
    elbow = document["safety"]["channels"][1]
    assert elbow["limits"]["position"] == [-1.5, 2] and elbow["limits"]["velocity"] == "TODO" and elbow["unit"] == "rad"

    wrong = init(seen, tmp_path / "wrong.yaml", "--commands", "/nowhere")
    assert wrong.returncode == 1 and wrong.stderr.startswith("COMMANDS_UNKNOWN: /nowhere")
    assert "/arm_controller/joint_trajectory" in wrong.stderr
    assert not {"/joint_states", "/operator/arm_controller/joint_trajectory"} & {
        *wrong.stderr.replace(",", " ").split()
    }
