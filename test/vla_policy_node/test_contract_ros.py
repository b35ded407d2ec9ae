# SPDX-License-Identifier: Apache-2.0
"""On real ROS 2: every type of message that a contract may name comes in and goes out as the contract says."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Twist, TwistStamped, Vector3, Wrench, WrenchStamped
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, Imu, JointState, Joy
from std_msgs.msg import (
    Bool,
    Float32,
    Float32MultiArray,
    Float64,
    Float64MultiArray,
    Header,
    Int32,
    Int32MultiArray,
    Int64,
)
from support.camera_messages import compressed, image
from support.control_rig import contract_text
from support.control_robot import MAX_AGE_MS
from support.control_ros import Peer, robot_for
from support.mixed_robot import ARM, BASE, GRIPPER, Part, mixed_contract
from support.refusals import refused

from vla_policy_node.contract.message_types import OBSERVATION_TYPES, OUTPUT_FIELDS, STAMPED_TYPES, STRING
from vla_policy_node.contract.model import parse_contract
from vla_policy_node.control.lock import TopicLock
from vla_policy_node.observation import ObservationBuffer
from vla_policy_node.ros.command_publisher import RosSink
from vla_ros.interfaces import message_class


@pytest.fixture
def peer(ros_domain: int) -> Iterator[Peer]:
    made = Peer(ros_domain)
    yield made
    made.close()


DRIVES = "zero_velocity"
PARTS = {
    "std_msgs/msg/Float64MultiArray": Part("f64s", "", ["data.1", "data.0"]),
    "std_msgs/msg/Float32MultiArray": Part("f32s", "", ["data.0", "data.1"]),
    "std_msgs/msg/Float64": Part("f64", "", ["data"]),
    "std_msgs/msg/Float32": Part("f32", "", ["data"], "measured"),
    "sensor_msgs/msg/JointState": Part("joints", "", ["position.x", "position.y"], degrees=True),
    "trajectory_msgs/msg/JointTrajectory": Part("path", "", ["positions.x", "y"]),
    "geometry_msgs/msg/Twist": Part("twist", "", ["linear.x", "angular.z"], DRIVES, key="action.base"),
    "geometry_msgs/msg/TwistStamped": Part(
        "stamped", "", ["twist.linear.x", "twist.angular.z"], DRIVES, key="action.b"
    ),
}
READ = {
    "f64s": lambda m: list(m.data),
    "f32s": lambda m: list(m.data),
    "f64": lambda m: m.data,
    "f32": lambda m: m.data,
    "joints": lambda m: (list(m.name), [math.degrees(p) for p in m.position], list(m.velocity)),
    "path": lambda m: (list(m.joint_names), list(m.points[0].positions), m.points[0].time_from_start.nanosec),
    "twist": lambda m: (m.linear.x, m.angular.z, m.linear.y),
    "stamped": lambda m: (m.twist.linear.x, m.twist.angular.z),
}
COMMAND = [
    1 / 4,
    1 / 8,
    1 / 16,
    1 / 32,
    1 / 64,
    -1 / 4,
    -1 / 8,
    -1 / 16,
    3 / 8,
    -3 / 8,
    3 / 16,
    -3 / 16,
    3 / 32,
    -3 / 32,
]
WANT = {
    "f64s": [1 / 8, 1 / 4],
    "f32s": [1 / 16, 1 / 32],
    "f64": 1 / 64,
    "f32": -1 / 4,
    "joints": (["x", "y"], [pytest.approx(-1 / 8), pytest.approx(-1 / 16)], []),
    "path": (["x", "y"], [3 / 8, -3 / 8], 20_000_000),
    "twist": (3 / 16, -3 / 16, 0.0),
    "stamped": (3 / 32, -3 / 32),
}


def test_one_action_is_published_in_every_type_at_once(tmp_path: Path, ros_domain: int, peer: Peer) -> None:
    assert PARTS.keys() == OUTPUT_FIELDS.keys()
    text = mixed_contract(*(part._replace(type=kind) for kind, part in PARTS.items()), max_age_ms=MAX_AGE_MS)
    robot = robot_for(tmp_path, ros_domain, text, topics={"f64s": "/arm/remapped"})
    got: dict[str, list[Any]] = {part.topic: [] for part in PARTS.values()}
    for kind, part in PARTS.items():
        topic = "/arm/remapped" if part.topic == "f64s" else f"/arm/{part.topic}"
        peer.node.create_subscription(message_class(kind), topic, got[part.topic].append, QoSProfile(depth=10))

    def arrived() -> bool:
        return all(messages and READ[topic](messages[-1]) == WANT[topic] for topic, messages in got.items())

    try:
        robot.run(COMMAND)
        peer.wait(arrived)
        for messages in got.values():
            messages.clear()
        peer.wait(lambda: min(map(len, got.values())) > 3)
    finally:
        robot.close()
    assert {topic: READ[topic](messages[-1]) for topic, messages in got.items()} == WANT
    stamps = {
        topic: {(m.header.stamp.sec, m.header.stamp.nanosec) for m in got[topic]} for topic in ("joints", "stamped")
    }
    assert len(stamps["joints"] & stamps["stamped"]) >= 2  # of one tick
    assert {(m.header.stamp.sec, m.header.stamp.nanosec) for m in got["path"]} == {(0, 0)}  # at once


def test_one_of_its_topics_that_is_taken_keeps_the_whole_robot_out_and_the_others_free(ros_domain: int) -> None:
    contract = parse_contract(mixed_contract(ARM, GRIPPER, BASE))
    spec = {"node_name": "control", "namespace": "/arm", "domain_id": ros_domain}
    taken = TopicLock(ros_domain, "grip")
    try:
        with refused("COMMAND_TOPIC_LOCKED") as caught:
            RosSink(spec, contract)
        assert "grip" in str(caught.value)
        TopicLock(ros_domain, "arm").close()
    finally:
        taken.close()


PIXELS = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
STAMP = Header(stamp=Time(sec=100))
POINT, TURN = Point(x=1.0, y=2.0), Quaternion(z=0.6, w=0.8)
SPEED = Twist(linear=Vector3(x=0.5), angular=Vector3(z=-0.25))


def picture() -> Image:
    made = image(4, 6, "bgr8")
    data = array("B", PIXELS[..., ::-1].tobytes())
    return Image(header=STAMP, height=4, width=6, encoding="bgr8", step=made.step, data=data)


INPUTS: dict[str, tuple[Any, list[str], Any]] = {
    "sensor_msgs/msg/Image": (picture(), [], PIXELS),
    "sensor_msgs/msg/CompressedImage": (
        CompressedImage(header=STAMP, format="bgr8; png compressed bgr8", data=compressed(PIXELS).data),
        [],
        PIXELS,
    ),
    "sensor_msgs/msg/JointState": (
        JointState(header=STAMP, name=["hip", "knee"], position=[2.0, 1.0], velocity=[4.0, 3.0], effort=[6.0, 5.0]),
        ["position.knee", "velocity.hip", "effort.knee"],
        [1.0, 4.0, 5.0],
    ),
    "sensor_msgs/msg/Imu": (
        Imu(header=STAMP, orientation=TURN, angular_velocity=Vector3(z=0.5)),
        ["orientation.z", "orientation.w", "angular_velocity.z"],
        [0.6, 0.8, 0.5],
    ),
    "sensor_msgs/msg/Joy": (Joy(header=STAMP, axes=[0.0, 0.5], buttons=[0, 1]), ["axes.1", "buttons.1"], [0.5, 1.0]),
    "geometry_msgs/msg/Twist": (SPEED, ["linear.x", "angular.z"], [0.5, -0.25]),
    "geometry_msgs/msg/TwistStamped": (TwistStamped(header=STAMP, twist=SPEED), ["twist.angular.z"], [-0.25]),
    "geometry_msgs/msg/PoseStamped": (
        PoseStamped(header=STAMP, pose=Pose(position=POINT, orientation=TURN)),
        ["pose.position.y", "pose.orientation.w"],
        [2.0, 0.8],
    ),
    "geometry_msgs/msg/WrenchStamped": (
        WrenchStamped(header=STAMP, wrench=Wrench(force=Vector3(z=9.0))),
        ["wrench.force.z"],
        [9.0],
    ),
    "nav_msgs/msg/Odometry": (
        Odometry(header=STAMP),
        ["twist.twist.linear.x", "pose.pose.orientation.w"],
        [0.0, 1.0],
    ),
    "std_msgs/msg/Bool": (Bool(data=True), ["data"], [1.0]),
    "std_msgs/msg/Int32": (Int32(data=-3), ["data"], [-3.0]),
    "std_msgs/msg/Int64": (Int64(data=1 << 20), ["data"], [1 << 20]),
    "std_msgs/msg/Float32": (Float32(data=0.5), ["data"], [0.5]),
    "std_msgs/msg/Float64": (Float64(data=0.25), ["data"], [0.25]),
    "std_msgs/msg/Int32MultiArray": (Int32MultiArray(data=[1, 2]), ["data.1"], [2.0]),
    "std_msgs/msg/Float32MultiArray": (Float32MultiArray(data=[0.5, 1.5]), ["data.1", "data.0"], [1.5, 0.5]),
    "std_msgs/msg/Float64MultiArray": (Float64MultiArray(data=[0.5, 1.5]), ["data.0"], [0.5]),
}


def observing_everything() -> str:
    data = yaml.safe_load(contract_text())
    for number, (kind, (_, select, _)) in enumerate(INPUTS.items()):
        timeline = "header" if kind in STAMPED_TYPES else "receive"
        entry: dict[str, Any] = {
            "channel": {"topic": f"in{number}", "type": kind, "qos": {"reliability": "reliable"}},
            "align": {"strategy": "hold", "timeline": timeline},
        }
        data["observations"][kind] = entry | ({"select": select} if select else {"apply": [{"resize": [4, 6]}]})
    return yaml.safe_dump(data, sort_keys=False)


def test_every_type_of_message_becomes_its_feature(peer: Peer) -> None:
    assert INPUTS.keys() == set(OBSERVATION_TYPES) - {STRING}
    contract = parse_contract(observing_everything())
    buffer = ObservationBuffer(contract)
    heard: set[str] = set()

    def receive(key: str, message: Any) -> None:
        buffer.receive(key, 0, message, ros_now_ns=100_010_000_000)
        heard.add(key)

    publishers = {}
    for observation in contract.observations:
        if observation.key in INPUTS:
            (source,) = observation.sources
            kind, profile = message_class(source.type), QoSProfile(depth=10)
            peer.node.create_subscription(kind, source.topic, partial(receive, observation.key), profile)
            publishers[observation.key] = peer.node.create_publisher(kind, source.topic, profile)

    def everything_came() -> bool:
        for key in publishers.keys() - heard:
            publishers[key].publish(INPUTS[key][0])
        return heard == publishers.keys()

    try:
        peer.wait(everything_came)
        buffer.receive("observation.state", 0, JointState(name=["a", "b"], position=[0.0, 0.0]))
        buffer.publish()
        read = buffer.arena.read()
        assert read is not None
        for kind, (_, _, want) in INPUTS.items():
            np.testing.assert_array_equal(
                read[1][f"feature:{kind}"], np.asarray(want, read[1][f"feature:{kind}"].dtype)
            )
    finally:
        buffer.close()
