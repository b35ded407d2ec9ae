# SPDX-License-Identifier: Apache-2.0
"""Processes of ``benchmarks.joins``: a loop that publishes commands, and a node that joins and waits to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

import rclpy
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_policy_node.ros.command_transport import by_udp
from vla_sim.witness import FIFO_PRIORITY

WAYS = ("shared memory", "UDP")
RATE_HZ = 50.0


def publish(way: str) -> None:
    """Publish a command a period until SIGTERM, then print ``{count, slow: [[begin, end], …] [s], subscriptions}``."""
    with contextlib.suppress(OSError):  # where it is not allowed, the witness does not have it either
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY - 1))  # Fast DDS's threads inherit it
    with by_udp(os.environ) if way == "UDP" else contextlib.nullcontext():
        rclpy.init(args=[])
        node = rclpy.create_node("bench_commands")
    publisher = node.create_publisher(JointTrajectory, _topic(way), 1)
    points = [JointTrajectoryPoint(positions=[0.0] * 6)]
    message = JointTrajectory(joint_names=[f"j{i}" for i in range(6)], points=points)
    going = [True]
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    slow, count, most, due_s = [], 0, 0, time.monotonic()
    print("ready", flush=True)
    while going:
        due_s = max(due_s + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
        begin_s = time.monotonic()
        publisher.publish(message)
        end_s = time.monotonic()
        count += 1
        if end_s - begin_s > 1 / RATE_HZ:
            slow.append((begin_s, end_s))
        if count % 25 == 0:
            most = max(most, publisher.get_subscription_count())
    print(json.dumps({"count": count, "slow": slow, "subscriptions": most}), flush=True)


def join() -> None:
    """Subscribe to every way's commands, say so, and stay."""
    rclpy.init(args=[])
    node = rclpy.create_node(f"bench_joined_{os.getpid()}")
    subscriptions = [node.create_subscription(JointTrajectory, _topic(way), lambda _: None, 1) for way in WAYS]
    print(len(subscriptions), flush=True)
    rclpy.spin(node)


def _topic(way: str) -> str:
    return f"commands_{way.replace(' ', '_').lower()}"


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(sys.argv[2])
    else:
        join()
