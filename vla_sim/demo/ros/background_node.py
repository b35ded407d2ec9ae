# SPDX-License-Identifier: Apache-2.0
"""A node of a demonstration: it spins in a context and a thread of its own, whatever the main thread does."""

from __future__ import annotations

import threading
from typing import Self

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class BackgroundNode:
    """Use as a context manager: the node spins inside. Signals are left to the program.

    Args:
        name: of the node.
        domain: ROS_DOMAIN_ID.
    """

    def __init__(self, name: str, domain: int) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node(name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._executor.create_task(lambda: None)  # makes spin_once return
        self._thread.join(5.0)
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context, uninstall_handlers=False)

    def _spin(self) -> None:
        try:
            while not self._stopping.is_set():
                self._executor.spin_once(timeout_sec=0.5)
        except ExternalShutdownException:
            return
