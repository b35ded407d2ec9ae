# SPDX-License-Identifier: Apache-2.0
"""Spinning a node and shutting it down, the same way for every executable."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import rclpy
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class ClosableNode(Protocol):
    """A node with resources of its own (processes, threads, files)."""

    def close(self) -> None:
        """Give them back; called once, before the node is destroyed."""


def run(make_node: Callable[[], Node], args: Sequence[str] | None = None, *, threads: int = 4) -> int:
    """Initialise ROS, spin the node until SIGINT, SIGTERM or shutdown, close it; return the exit status.

    A node that cannot be made (a wrong parameter, a broken contract) ends the program with one clear line and status 1.
    """
    # rclpy's own handlers would invalidate the context before close() has said goodbye on topics: handle signals here.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = MultiThreadedExecutor(num_threads=threads)

    def stop(signum: int, frame: object) -> None:
        executor.shutdown(timeout_sec=0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    node: Node | None = None
    try:
        node = make_node()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as e:
        code = getattr(e, "code", None)
        if node is not None or not isinstance(code, str):
            raise
        rclpy.logging.get_logger("vla_ota").fatal(f"{code}: {e}")
        return 1
    finally:
        if node is not None:
            close = getattr(node, "close", None)
            if close is not None:
                close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def main(make_node: Callable[[], Node], *, threads: int = 4) -> None:
    """Entry point of an executable."""
    sys.exit(run(make_node, threads=threads))
