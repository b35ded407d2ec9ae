# SPDX-License-Identifier: Apache-2.0
"""Times in messages."""

from __future__ import annotations

import rclpy.time
from builtin_interfaces.msg import Time


def to_seconds(stamp: Time) -> float:
    """Return a stamp as seconds since its clock's epoch [s]."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def from_seconds(seconds: float) -> Time:
    """Return seconds since the epoch [s] as a stamp; what a stamp cannot hold becomes the nearest it can."""
    nanoseconds = min(max(int(seconds * 1e9), 0), (2**31 - 1) * 10**9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def ago(now: rclpy.time.Time, seconds: float) -> Time:
    """Return the stamp of ``seconds`` before ``now`` [s]: the epoch, if simulated time has just begun or was set back."""
    return rclpy.time.Time(nanoseconds=max(0, now.nanoseconds - int(seconds * 1e9)), clock_type=now.clock_type).to_msg()
