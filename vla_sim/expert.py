# SPDX-License-Identifier: Apache-2.0
"""The scripted teacher: reaches a block from above, smoothly and with bounded joint speed.

It has no memory: the speed depends on the joints and the goal only, so that the chunks it teaches agree where they overlap. In
cylindrical coordinates (yaw, r, z) every error decays exponentially, capped; height follows a funnel over the goal (high while
far away, on the block when above it); turning and reaching out wait while the tip is below the funnel, so that no block is swept
away.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_sim.arm import CONTROL_HZ, POSITION_LIMITS_RAD
from vla_sim.kinematics import cylindrical_tip, joints_for

Array = npt.NDArray[np.float64]

MAX_JOINT_SPEED_RAD_S = 0.8
_GAIN_PER_S = 4.0
_MAX_YAW_SPEED_RAD_S = 0.8
_MAX_LINEAR_SPEED_M_S = 0.3
_HOVER_M = 0.10
_FUNNEL_START_M, _FUNNEL_END_M = 0.015, 0.09
_LIFT_MARGIN_M = 0.06
_REST_ABOVE_TOP_M = 0.018
"""Height of the tip's centre over the block's top: its radius and a little air, so that resting does not push."""


def goal_point(block: npt.ArrayLike, block_size_m: float) -> Array:
    """Where the tip rests, ``[..., 3]`` [m], for block centres ``[..., 3]`` [m]."""
    offset = np.array([0.0, 0.0, block_size_m / 2 + _REST_ABOVE_TOP_M])
    point: Array = np.asarray(block, dtype=np.float64) + offset
    return point


def joint_speed(joints: npt.ArrayLike, goal: npt.ArrayLike) -> Array:
    """Joint speed ``[..., 3]`` [rad/s] at joints ``[..., 3]`` [rad] towards a goal point ``[..., 3]`` [m]."""
    q = np.asarray(joints, dtype=np.float64)
    g = np.asarray(goal, dtype=np.float64)
    yaw, r, z = np.moveaxis(cylindrical_tip(q), -1, 0)
    goal_yaw, goal_r = np.arctan2(g[..., 1], g[..., 0]), np.hypot(g[..., 0], g[..., 1])

    away = np.hypot(r * np.cos(yaw) - g[..., 0], r * np.sin(yaw) - g[..., 1])
    funnel = g[..., 2] + _HOVER_M * np.clip((away - _FUNNEL_START_M) / (_FUNNEL_END_M - _FUNNEL_START_M), 0.0, 1.0)
    lifted = np.clip(1.0 - (funnel - z) / _LIFT_MARGIN_M, 0.0, 1.0)

    speed = np.stack([
        lifted * np.clip(_GAIN_PER_S * (goal_yaw - yaw), -_MAX_YAW_SPEED_RAD_S, _MAX_YAW_SPEED_RAD_S),
        lifted * np.clip(_GAIN_PER_S * (goal_r - r), -_MAX_LINEAR_SPEED_M_S, _MAX_LINEAR_SPEED_M_S),
        np.clip(_GAIN_PER_S * (funnel - z), -_MAX_LINEAR_SPEED_M_S, _MAX_LINEAR_SPEED_M_S),
    ], axis=-1)  # fmt: skip
    # One control period of it in joint space; the slowest common scale keeps the path's shape within the joint speed limit.
    target = joints_for(np.stack([yaw, r, z], axis=-1) + speed / CONTROL_HZ)
    joint = (target - q) * CONTROL_HZ
    fastest = np.abs(joint).max(axis=-1, keepdims=True)
    limited: Array = joint * np.minimum(1.0, MAX_JOINT_SPEED_RAD_S / np.maximum(fastest, 1e-9))
    return limited


def expert_chunk(joints: npt.ArrayLike, goal: npt.ArrayLike, horizon: int) -> Array:
    """Commands ``[..., horizon, 3]`` [rad], one a control period, from measured joints ``[..., 3]`` [rad].

    Command ``i`` is the expert's path ``i + 1`` periods ahead: the servos follow about one period behind their command, so a
    chunk that begins at the measured joints continues the commands of the one before without a step back.
    """
    q = np.asarray(joints, dtype=np.float64)
    low, high = np.transpose(POSITION_LIMITS_RAD)
    commands = []
    for _ in range(horizon):
        q = np.clip(q + joint_speed(q, goal) / CONTROL_HZ, low, high)
        commands.append(q)
    return np.stack(commands, axis=-2)
