# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures that ``camera.py`` publishes, in the executor of a node, as a robot's node does."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import Image

from vla_ros import qos


class Pictures:
    """Subscribes to so many cameras and makes each picture as small as a policy wants it."""

    def __init__(self, cameras: int) -> None:
        rclpy.init(args=[])
        self._node = rclpy.create_node("bench_host")
        self.taken = 0
        for i in range(cameras):
            self._node.create_subscription(Image, f"camera_{i}", self._take, qos.SENSORS)
        self._thread = threading.Thread(target=self._spin, name="executor", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait until pictures come."""
        deadline = time.monotonic() + timeout_s
        while self.taken < 10:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.taken} pictures came")
            time.sleep(0.05)

    def close(self) -> None:
        """Stop: a thread that is inside rclpy when the interpreter ends would abort the process."""
        rclpy.try_shutdown()
        self._thread.join(10.0)
        self._node.destroy_node()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            rclpy.spin(self._node)

    def _take(self, message: Image) -> None:
        picture = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        self.newest = picture[::2, ::2].copy()
        self.taken += 1
