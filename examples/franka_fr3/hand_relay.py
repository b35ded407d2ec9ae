# SPDX-License-Identifier: Apache-2.0
"""Franka's hand takes goals of an action; a policy says a position every tick. This node makes goals of positions.

Subscribes ``~/finger_position`` (std_msgs/Float64, half of the opening [m]); sends control_msgs/action/GripperCommand goals to
``franka_gripper/gripper_action``, one at a time: a goal that is under way is let end, then the newest position counts. Positions
that differ from the last goal by less than 2 mm are none: a hand that has closed on an object is left in peace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_msgs.msg import Float64

DEADBAND_M = 0.002
MAX_EFFORT_N = 20.0
CLOSED_M, OPEN_M = 0.0, 0.04


class HandRelay(Node):
    """See the module."""

    def __init__(self, action: type, goal: Callable[[float], Any], **options: Any) -> None:
        """Send goals of type ``action``; ``goal`` makes one of a position [m]. ``options``: see ``rclpy.node.Node``."""
        super().__init__("hand_relay", **options)
        self._goal = goal
        self._client = ActionClient(self, action, "franka_gripper/gripper_action")
        self._wanted: float | None = None
        self._sent: float | None = None  # position of the last goal
        self._busy = False
        self.create_subscription(Float64, "~/finger_position", self._want, 1)

    def _want(self, message: Float64) -> None:
        self._wanted = min(max(message.data, CLOSED_M), OPEN_M)
        self._send()

    def _send(self) -> None:
        wanted, sent = self._wanted, self._sent
        if self._busy or wanted is None or not self._client.server_is_ready():
            return
        if sent is None or abs(wanted - sent) >= DEADBAND_M:
            self._busy, self._sent = True, wanted
            self._client.send_goal_async(self._goal(wanted)).add_done_callback(self._answered)

    def _answered(self, future: Any) -> None:
        handle = future.result()
        if handle.accepted:
            handle.get_result_async().add_done_callback(self._ended)
        else:
            self._sent = None  # said again with the next position
            self._busy = False

    def _ended(self, _: Any) -> None:
        self._busy = False
        self._send()


def main() -> None:
    """Run until Ctrl-C."""
    from control_msgs.action import GripperCommand

    def goal(position: float) -> Any:
        made = GripperCommand.Goal()
        made.command.position, made.command.max_effort = position, MAX_EFFORT_N
        return made

    rclpy.init()
    try:
        rclpy.spin(HandRelay(GripperCommand, goal))
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
