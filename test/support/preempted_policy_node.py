"""policy_node on a computer that takes the processor away just before a timer is cancelled: run by a test as a process."""

from __future__ import annotations

import time

import rclpy.timer

cancel = rclpy.timer.Timer.cancel


def cancel_later(timer: rclpy.timer.Timer) -> None:
    time.sleep(0.1)
    cancel(timer)


rclpy.timer.Timer.cancel = cancel_later

from vla_policy_node.ros.policy_node import main  # noqa: E402

main()
