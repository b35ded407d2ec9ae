# SPDX-License-Identifier: Apache-2.0
"""Contracts of robots whose command is cut up over several topics: an arm, a gripper, a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from support.control_rig import START_TOLERANCE, STEP

VELOCITY, ACCELERATION, REST_STEP = 2.0, 4.0, 0.001
DECELERATION = {"absolute": 50.0, "velocity": 3.0}
"""Largest change of a command per second: of a position, of a velocity; how fast a hold brings each to rest."""


class Part(NamedTuple):
    """One entry of ``actions`` and its channels, named ``<topic><index>``."""

    topic: str
    type: str
    select: Sequence[str]
    hold: str = "last_command"  # zero_velocity makes them velocities
    degrees: bool = False
    key: str = "action"

    @property
    def names(self) -> list[str]:
        return [f"{self.topic}{i}" for i in range(len(self.select))]


ARM = Part("arm", "trajectory_msgs/msg/JointTrajectory", ["position.x", "position.y"])
GRIPPER = Part("grip", "std_msgs/msg/Float64", ["data"], "measured", key="action.gripper")
BASE = Part(
    "base",
    "geometry_msgs/msg/TwistStamped",
    ["twist.linear.x", "twist.angular.z"],
    "zero_velocity",
    key="action.base",
)


def mixed_contract(*parts: Part, fps: int = 50, max_age_ms: int = 200) -> str:
    """A contract whose positions are measured by joints of their channels' names; the base is not measured."""
    actions: dict[str, list[Any]] = {}
    for part in parts:
        entry: dict[str, Any] = {"channel": {"topic": part.topic, "type": part.type}, "select": list(part.select)}
        actions.setdefault(part.key, []).append(entry | ({"apply": ["rad2deg"]} if part.degrees else {}))
    return yaml.safe_dump(
        {
            "robot_type": "mixed",
            "fps": fps,
            "observations": {"observation.state": [_joints(parts, degrees) for degrees in _units(parts)]},
            "actions": actions,
            "safety": {
                "motion_enabled": {"required": False, "timeout_s": 0.5},
                "observation_max_age_ms": max_age_ms,
                "blend_ticks": 3,
                "rest_ticks": 5,
                "latency_margin_ticks": 1,
                "channels": [_channel(part, name) for part in parts for name in part.names],
            },
        },
        sort_keys=False,
    )


def _units(parts: Sequence[Part]) -> list[bool]:
    return sorted({part.degrees for part in parts})


def _joints(parts: Sequence[Part], degrees: bool) -> dict[str, Any]:
    names = [name for part in parts if part.degrees == degrees and part.hold != "zero_velocity" for name in part.names]
    source = {
        "channel": {"topic": f"joints{int(degrees)}", "type": "sensor_msgs/msg/JointState"},
        "align": {"strategy": "hold", "timeline": "receive"},
        "select": [f"position.{name}" for name in names],
    }
    return source | ({"apply": ["rad2deg"]} if degrees else {})


def _channel(part: Part, name: str) -> dict[str, Any]:
    mode = "velocity" if part.hold == "zero_velocity" else "absolute"
    common = {"step": STEP, "tolerance": 0.1}
    limits: dict[str, dict[str, Any]] = {
        "absolute": {"position": [-1.0, 1.0], "velocity": VELOCITY},
        "velocity": {"velocity": [-0.5, 0.5], "acceleration": ACCELERATION},
    }
    channel = {
        "name": name,
        "unit": "unit",
        "mode": mode,
        "hold": part.hold,
        "max_decel": DECELERATION[mode],
        "hold_timeout_s": 2.0,
        "rest_step": REST_STEP,
        "start_tolerance": START_TOLERANCE,
        "limits": limits[mode] | common,
    }
    place = {"measured": f"position.{name}"} if mode == "absolute" else {"downstream_timeout_ms": 200}
    return channel | place
