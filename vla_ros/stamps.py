# SPDX-License-Identifier: Apache-2.0
"""Times in messages."""

from __future__ import annotations

from builtin_interfaces.msg import Time


def to_seconds(stamp: Time) -> float:
    """Return a stamp as seconds since its clock's epoch [s]."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def from_seconds(seconds: float) -> Time:
    """Return seconds since the epoch [s] as a stamp; what a stamp cannot hold becomes the nearest it can."""
    nanoseconds = min(max(int(seconds * 1e9), 0), (2**31 - 1) * 10**9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
