# SPDX-License-Identifier: Apache-2.0
"""A control process whose commands go to ROS, and another node on the graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from support.control_robot import Robot
from support.waits import TIMEOUT_S
from vla_policy_node.control.client import ControlClient

TOPICS = {"commands": "/arm/commands"}


class Peer:
    """Another node on the graph."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=domain)
        self.node = Node("peer", context=self.context, use_global_arguments=False)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def wait(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.executor.spin_once(timeout_sec=0.05)
        return condition()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def robot_for(folder: Path, domain: int, text: str, **spec: Any) -> Robot:
    """A Robot whose commands go to ROS."""
    robot = Robot(folder, text=text)
    sink = {"kind": "ros", "node_name": "policy_control", "namespace": "/arm", "domain_id": domain, **spec}
    robot.client.close()
    robot.client = ControlClient(robot.contract, robot.observation, sink=sink, on_event=robot.events.append)
    return robot
