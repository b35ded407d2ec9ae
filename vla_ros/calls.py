# SPDX-License-Identifier: Apache-2.0
"""Asking other nodes something from a thread that is not the executor's, and waiting for the answer without spinning."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.task import Future

POLL_S = 0.05
"""How often a wait asks whether it should give up [s]."""


class GivenUpError(Exception):
    """Raised by :func:`wait` when its ``give_up`` returned a reason; ``reason`` is what it returned."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def wait_until(condition: Callable[[], bool], give_up: Callable[[], str]) -> None:
    """Block until ``condition`` is true.

    Raises:
        GivenUpError: ``give_up``, asked every ``POLL_S`` seconds, returned a reason.
    """
    while not condition():
        if reason := give_up():
            raise GivenUpError(reason)
        time.sleep(POLL_S)


def wait(future: Future, give_up: Callable[[], str]) -> Any:
    """Block until a future is done and return its result; the executor spins elsewhere.

    Raises:
        GivenUpError: ``give_up``, asked every ``POLL_S`` seconds, returned a reason.
    """
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    while not done.wait(POLL_S):
        if reason := give_up():
            raise GivenUpError(reason)
    return future.result()


class GroupThread:
    """Runs functions among the callbacks of one mutually exclusive group, never beside them.

    An ``ActionClient`` needs it: called from another thread it may see the answer before it has noted the question.
    """

    def __init__(self, node: Node) -> None:
        self.group = MutuallyExclusiveCallbackGroup()
        self._tasks: deque[tuple[Callable[[], Any], Future]] = deque()
        self._guard = node.create_guard_condition(self._drain, callback_group=self.group)

    def run(self, task: Callable[[], Any], give_up: Callable[[], str]) -> Any:
        """Run ``task`` in the group, wait for it as :func:`wait` does, and return or raise what it did."""
        return wait(self.submit(task), give_up)

    def submit(self, task: Callable[[], Any]) -> Future:
        """Have ``task`` run in the group soon; its outcome is the future's."""
        future = Future()
        self._tasks.append((task, future))
        self._guard.trigger()
        return future

    def _drain(self) -> None:
        while self._tasks:
            task, future = self._tasks.popleft()
            try:
                future.set_result(task())
            except Exception as e:  # it belongs to whoever waits for the future
                future.set_exception(e)
