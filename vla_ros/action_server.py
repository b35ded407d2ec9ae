# SPDX-License-Identifier: Apache-2.0
"""An action server that may be destroyed while its node spins."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionServer


class DestroyableActionServer(ActionServer):
    """Raises InvalidHandle once it is destroyed, as every other entity of rclpy does, and keeps its handle while it works.

    The executor may have listed a server, or taken a request from it, when another thread destroys it. rclpy's own class then
    fails with RCLError (rclpy 7), which looks like a fault of the middleware and ends the node.
    """

    def add_to_wait_set(self, wait_set: Any) -> None:
        """See rclpy.waitable.Waitable."""
        with self._handle:
            super().add_to_wait_set(wait_set)

    def take_data(self) -> Any:
        """See rclpy.waitable.Waitable."""
        with self._handle:
            return super().take_data()

    async def execute(self, taken_data: Any) -> None:
        """See rclpy.waitable.Waitable."""
        with self._handle:
            await super().execute(taken_data)
