# SPDX-License-Identifier: Apache-2.0
"""Publishes 640×480 RGB pictures on ``camera_0``, ``camera_1``, ``camera_2`` until its standard input ends."""

from __future__ import annotations

import array
import contextlib
import json
import os
import sys
import threading

import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import Image

from vla_ros import qos

WIDTH, HEIGHT = 640, 480


def main() -> None:
    """``python -m benchmarks.ros.camera '{"rate_hz": 30, "cameras": 3}'``."""
    settings = json.loads(sys.argv[1])
    rclpy.init(args=[])
    node = rclpy.create_node("bench_cameras")
    noise = array.array("B", os.urandom(WIDTH * HEIGHT * 3))
    picture = Image(width=WIDTH, height=HEIGHT, encoding="rgb8", step=3 * WIDTH, data=noise)
    for i in range(settings["cameras"]):
        publisher = node.create_publisher(Image, f"camera_{i}", qos.SENSORS)
        node.create_timer(1.0 / settings["rate_hz"], lambda publisher=publisher: publisher.publish(picture))
    ending = threading.Thread(target=_wait_for_the_end, daemon=True)
    ending.start()
    print(json.dumps({"ready": True}), flush=True)
    with contextlib.suppress(ExternalShutdownException):
        rclpy.spin(node)
    ending.join(10.0)  # a thread that is inside rclpy when the interpreter ends would abort the process
    node.destroy_node()


def _wait_for_the_end() -> None:
    sys.stdin.read()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
