# SPDX-License-Identifier: Apache-2.0
"""The message types that a contract may name, and how ``select`` spells their fields (docs/contract.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
JOINT_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
TWIST, TWIST_STAMPED = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"
STRING = "std_msgs/msg/String"
"""As an observation it is the instruction."""

_NONE = re.compile(r"(?!)")
JOINT_FIELD = re.compile(r"(position|velocity|effort)\.(.+)")
_TWIST_FIELD = re.compile(r"(linear|angular)\.[xyz]")
_STAMPED_TWIST_FIELD = re.compile(r"twist\." + _TWIST_FIELD.pattern)
DATA = re.compile(r"data")
ELEMENT = re.compile(r"data\.\d{1,3}")
_PATH = re.compile(r"\w+(\.\w+)*")

OBSERVATION_FIELDS = {
    IMAGE: _NONE,
    COMPRESSED_IMAGE: _NONE,
    JOINT_STATE: JOINT_FIELD,
    "sensor_msgs/msg/Imu": _PATH,
    "sensor_msgs/msg/Joy": re.compile(r"(axes|buttons)\.\d{1,3}"),
    TWIST: _TWIST_FIELD,
    TWIST_STAMPED: _STAMPED_TWIST_FIELD,
    "geometry_msgs/msg/PoseStamped": _PATH,
    "geometry_msgs/msg/WrenchStamped": _PATH,
    "nav_msgs/msg/Odometry": _PATH,
    "std_msgs/msg/Bool": DATA,
    "std_msgs/msg/Int32": DATA,
    "std_msgs/msg/Int64": DATA,
    "std_msgs/msg/Float32": DATA,
    "std_msgs/msg/Float64": DATA,
    "std_msgs/msg/Int32MultiArray": ELEMENT,
    "std_msgs/msg/Float32MultiArray": ELEMENT,
    "std_msgs/msg/Float64MultiArray": ELEMENT,
    STRING: _NONE,
}
"""Type of an observation → the fields that ``select`` may name."""
OBSERVATION_TYPES = tuple(OBSERVATION_FIELDS)
IMAGE_TYPES = frozenset({IMAGE, COMPRESSED_IMAGE})
STAMPED_TYPES = frozenset(t for t in OBSERVATION_TYPES if not t.startswith("std_msgs/")) - {TWIST}

OUTPUT_FIELDS = {
    "std_msgs/msg/Float64MultiArray": ELEMENT,
    "std_msgs/msg/Float32MultiArray": ELEMENT,
    "std_msgs/msg/Float64": DATA,
    "std_msgs/msg/Float32": DATA,
    JOINT_STATE: JOINT_FIELD,
    JOINT_TRAJECTORY: JOINT_FIELD,
    TWIST: _TWIST_FIELD,
    TWIST_STAMPED: _STAMPED_TWIST_FIELD,
}
"""Type of a command → the fields that ``select`` may name."""
_JOINTS = "position.JOINT, velocity.JOINT or effort.JOINT, such as position.shoulder"
_ELEMENTS = "data.0 to data.N-1, each once"
SPELLINGS = {
    JOINT_FIELD: _JOINTS,
    ELEMENT: _ELEMENTS,
    DATA: "data",
    _TWIST_FIELD: "linear.x, .y, .z and angular.x, .y, .z",
    _STAMPED_TWIST_FIELD: "twist.linear.x, .y, .z and twist.angular.x, .y, .z",
    _PATH: "fields with dots, such as angular_velocity.z",
    OBSERVATION_FIELDS["sensor_msgs/msg/Joy"]: "axes.0 or buttons.0",
}
"""How ``select`` names the fields, in words."""

_PLURALS = {"positions": "position", "velocities": "velocity"}


def canonical(kind: str, select: Sequence[str]) -> tuple[str, ...]:
    """Return how we spell what rosetta lets one spell otherwise.

    ``shoulder`` is ``position.shoulder`` of a joint, and ``positions.shoulder`` too of a trajectory. Words without a dot are
    labels of an array's elements, in their order.
    """
    if kind.endswith("MultiArray") and not any("." in field for field in select):
        return tuple(f"data.{i}" for i in range(len(select)))
    if kind not in (JOINT_STATE, JOINT_TRAJECTORY):
        return tuple(select)
    return tuple(_joint_field(field, _PLURALS if kind == JOINT_TRAJECTORY else {}) for field in select)


def _joint_field(field: str, aliases: Mapping[str, str]) -> str:
    first, dot, joint = field.partition(".")
    return f"{aliases.get(first, first)}.{joint}" if dot else f"position.{field}"


def quantity(kind: str, field: str) -> str:
    """Return what a field of a command sets: position, velocity or effort; empty where the message does not say."""
    if kind in (TWIST, TWIST_STAMPED):
        return "velocity"
    return field.partition(".")[0] if kind in (JOINT_STATE, JOINT_TRAJECTORY) else ""
