# SPDX-License-Identifier: Apache-2.0
"""Opens the ROS graph for ``vla-contract init --from-topics``. It publishes nothing and calls only services that read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException

from vla_contract.looking import look
from vla_contract.seen import JointLimit, RobotSeen
from vla_doctor.ros.doctor import Doctor


def look_at_robot(seconds: float, wanted: Sequence[str]) -> tuple[RobotSeen, Mapping[str, JointLimit]]:
    """Join the graph, :func:`vla_contract.looking.look`, and leave."""
    rclpy.init()
    graph = Doctor({}, "")
    try:
        return look(graph, seconds, wanted)
    except ExternalShutdownException as e:  # rclpy has taken the signal
        raise KeyboardInterrupt from e
    finally:
        graph.close()
        rclpy.try_shutdown()
