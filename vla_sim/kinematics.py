# SPDX-License-Identifier: Apache-2.0
"""Forward and inverse kinematics of the arm, vectorised over any leading dimensions.

Base frame: origin on the table under joint 1, x forward, y left, z up. ``j1`` yaws the arm, ``j2`` lifts the upper arm above the
horizontal, ``j3`` bends the forearm relative to it (negative: elbow up). In the vertical plane of yaw ``j1``, with the distance
``r`` from the yaw axis::

    r = l1 cos(j2) + l2 cos(j2 + j3)        z = h + l1 sin(j2) + l2 sin(j2 + j3)

The elbow-up branch is the only one within the joint limits, so ``(yaw, r, z)`` and the joints determine each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SHOULDER_HEIGHT_M = 0.15
UPPER_ARM_M = 0.28
FOREARM_M = 0.28
_MAX_REACH_M = 0.995 * (UPPER_ARM_M + FOREARM_M)
_MIN_REACH_M = 0.09


def cylindrical_tip(joints: npt.ArrayLike) -> Array:
    """Tip ``[..., 3]`` as (yaw [rad], r [m], z [m]) for joints ``[..., 3]`` [rad]."""
    q = np.asarray(joints, dtype=np.float64)
    forearm = q[..., 1] + q[..., 2]
    r = UPPER_ARM_M * np.cos(q[..., 1]) + FOREARM_M * np.cos(forearm)
    z = SHOULDER_HEIGHT_M + UPPER_ARM_M * np.sin(q[..., 1]) + FOREARM_M * np.sin(forearm)
    return np.stack([q[..., 0], r, z], axis=-1)


def tip_position(joints: npt.ArrayLike) -> Array:
    """Tip ``[..., 3]`` as (x, y, z) [m] for joints ``[..., 3]`` [rad]."""
    yaw, r, z = np.moveaxis(cylindrical_tip(joints), -1, 0)
    return np.stack([r * np.cos(yaw), r * np.sin(yaw), z], axis=-1)


def link_points(joints: npt.ArrayLike) -> Array:
    """Base, shoulder, elbow and tip, ``[4, 3]`` [m], for one configuration ``[3]`` [rad]."""
    q = np.asarray(joints, dtype=np.float64)
    forward = np.array([np.cos(q[0]), np.sin(q[0]), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    shoulder = SHOULDER_HEIGHT_M * up
    elbow = shoulder + UPPER_ARM_M * (np.cos(q[1]) * forward + np.sin(q[1]) * up)
    return np.stack([np.zeros(3), shoulder, elbow, tip_position(q)])


def joints_for(cylindrical: npt.ArrayLike) -> Array:
    """Elbow-up joints ``[..., 3]`` [rad] that put the tip at (yaw, r, z) ``[..., 3]``.

    Points out of reach are moved along the line to the shoulder to the nearest reach that the arm has.
    """
    target = np.asarray(cylindrical, dtype=np.float64)
    r, height = target[..., 1], target[..., 2] - SHOULDER_HEIGHT_M
    distance = np.clip(np.hypot(r, height), _MIN_REACH_M, _MAX_REACH_M)
    # Law of cosines in the triangle shoulder, elbow, tip.
    cos_shoulder = (UPPER_ARM_M**2 + distance**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * distance)
    cos_elbow = (UPPER_ARM_M**2 + FOREARM_M**2 - distance**2) / (2 * UPPER_ARM_M * FOREARM_M)
    lift = np.arctan2(height, r) + np.arccos(np.clip(cos_shoulder, -1.0, 1.0))
    bend = np.arccos(np.clip(cos_elbow, -1.0, 1.0)) - np.pi
    return np.stack([target[..., 0], lift, bend], axis=-1)
