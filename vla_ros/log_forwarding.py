# SPDX-License-Identifier: Apache-2.0
"""What an engine without ROS logs appears in its node's log, and so on ``/rosout``."""

from __future__ import annotations

import logging

from rclpy.node import Node

from vla_ros.plain import plain_lines


class _Forward(logging.Handler):
    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = plain_lines(self.format(record))  # a traceback may quote a URL, a policy may print anything
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def forward_log(node: Node, name: str) -> None:
    """Send what the Python logger ``name`` and those below it get, from INFO on, to the node's log and nowhere else."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [_Forward(node)]
    logger.propagate = False
