# SPDX-License-Identifier: Apache-2.0
"""What was seen of a robot and of a dataset, as plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELDS = {"pos": "position", "vel": "velocity", "position": "position", "velocity": "velocity", "effort": "effort"}
_AROUND = re.compile(r"(?:(position|velocity|effort)\.)?(.+?)(?:\.(pos|vel|position|velocity|effort))?")


@dataclass(frozen=True)
class Topic:
    """A topic that somebody publishes."""

    name: str  # full name
    type: str  # "package/msg/Name"
    rate_hz: float = 0.0  # 0 = no two messages came
    stamped: bool = False  # its messages carry a stamp that is near ROS time


@dataclass(frozen=True)
class Camera(Topic):
    """A topic with pictures."""

    size: tuple[int, int] | None = None  # height, width [px]; None = no message came
    encoding: str = ""


@dataclass(frozen=True)
class Joints(Topic):
    """A JointState topic."""

    joints: tuple[str, ...] = ()  # those with a position


@dataclass(frozen=True)
class Command:
    """A topic that somebody takes commands from."""

    name: str  # full name
    type: str
    node: str  # who listens
    joints: tuple[str, ...] = ()  # of a ros2_control controller, in its order; empty = not known
    interface: str = ""  # "position", "velocity" or "effort" of that controller; empty = not known


@dataclass(frozen=True)
class RobotSeen:
    """The robot's topics, by name."""

    cameras: tuple[Camera, ...] = ()
    states: tuple[Joints, ...] = ()
    others: tuple[Topic, ...] = ()  # further topics that observations can be made of
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True)
class Feature:
    """A feature of a dataset."""

    key: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()  # of its numbers; empty = not known
    low: tuple[float, ...] = ()  # smallest value of each number in the data; empty = not known
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class DatasetSeen:
    """A LeRobot dataset."""

    robot_type: str  # empty = not known
    fps: float
    cameras: tuple[Feature, ...]  # shape (height, width, 3)
    numbers: tuple[Feature, ...]  # other observations, the state first
    action: Feature


@dataclass(frozen=True)
class JointLimit:
    """What a robot description says of a joint."""

    unit: str  # "rad" or "m"
    low: float
    high: float
    velocity: float  # [unit/s]


def joint_and_field(name: str) -> tuple[str, str]:
    """Split a number's name: ``shoulder_pan.pos``, ``position.shoulder_pan`` → (shoulder_pan, position).

    The field is empty where the name does not say it.
    """
    match = _AROUND.fullmatch(name)
    if match is None:
        return name, ""
    before, joint, after = match.groups(default="")
    return joint, _FIELDS.get(before or after, "")
