# SPDX-License-Identifier: Apache-2.0
"""rclpy's multi-threaded executor, with a short way for callbacks that return at once.

For each callback that it hands to a thread, rclpy 7 puts its wait set together three times: when the message is there, when the
callback has taken it, and when it has ended. A node with two dozen services spends most of its processor time on that. What
comes a hundred times a second is called by the spinning thread instead, and the wait set is made once.
"""

from __future__ import annotations

from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.task import Task


class QuickCallbackGroup(MutuallyExclusiveCallbackGroup):
    """Callbacks that return within a millisecond and wait for nothing: whatever else the node hears waits for them."""


class NodeExecutor(MultiThreadedExecutor):
    """Calls what is in a :class:`QuickCallbackGroup` on the spinning thread, everything else in a pool."""

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """Call the quick callbacks that are ready, and return the first other one."""
        while True:
            handler, entity, node = super().wait_for_ready_callbacks(*args, **kwargs)
            if not _is_quick(entity):
                return handler, entity, node
            handler()
            handler.result()  # raises what the callback raised
            for future in [future for future in self._futures if future.done()]:
                self._futures.remove(future)
                future.result()

    def _make_handler(self, entity: Any, node: Any, take_from_wait_list: Any) -> Any:
        """Leave out, for a quick callback, what tells the spinning thread of its progress. The method is private to rclpy."""
        if not _is_quick(entity):
            return super()._make_handler(entity, node, take_from_wait_list)

        async def call() -> None:
            try:
                callback = take_from_wait_list(entity)
            except InvalidHandle:  # another thread has destroyed it; it may be listed for a moment longer
                entity._executor_event = True
                return
            if callback is not None:
                await callback()

        return Task(call, executor=self)


def _is_quick(entity: Any) -> bool:
    return entity is not None and isinstance(entity.callback_group, QuickCallbackGroup)
