# SPDX-License-Identifier: Apache-2.0
"""Which thread a callback runs on, and that no callback's error is lost, with a real node on real topics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.node import Node
from std_msgs.msg import Int32
from support.ros import RosHarness
from support.waits import TIMEOUT_S, wait_for

from vla_ros import qos
from vla_ros.executor import NodeExecutor, QuickCallbackGroup


class Spun:
    """A node that a thread spins with our executor."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        self.context.init(domain_id=domain)
        self.node = Node("spun", context=self.context)
        self.executor = NodeExecutor(num_threads=2, context=self.context)
        self.executor.add_node(self.node)
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._spin)

    def hear(self, topic: str, callback: Callable[[int], None], group: CallbackGroup) -> None:
        def take(message: Int32) -> None:
            callback(message.data)

        self.node.create_subscription(Int32, topic, take, qos.LATCHED, callback_group=group)

    def _spin(self) -> None:
        try:
            while not self.ended.is_set():
                self.executor.spin_once()
        except Exception as e:
            self.error = e
        self.ended.set()


@contextlib.contextmanager
def spinning(spun: Spun) -> Iterator[Spun]:
    spun.thread.start()
    try:
        yield spun
    finally:
        spun.ended.set()
        spun.executor.create_task(lambda: None)
        spun.thread.join(TIMEOUT_S)
        spun.executor.shutdown()
        spun.node.destroy_node()
        spun.context.try_shutdown()


@pytest.fixture
def spun(ros_domain: int) -> Spun:
    return Spun(ros_domain)


def publisher(ros: RosHarness, topic: str) -> Any:
    return ros.node.create_publisher(Int32, topic, qos.LATCHED)


def test_a_quick_callback_runs_on_the_spinning_thread_while_a_slow_one_is_busy(spun: Spun, ros_domain: int) -> None:
    go_on, slow, quick = threading.Event(), list[threading.Thread](), list[tuple[int, threading.Thread]]()

    def be_slow(_: int) -> None:
        slow.append(threading.current_thread())
        go_on.wait(TIMEOUT_S)

    spun.hear("slow", be_slow, MutuallyExclusiveCallbackGroup())
    spun.hear("quick", lambda number: quick.append((number, threading.current_thread())), QuickCallbackGroup())
    with RosHarness(ros_domain) as ros, spinning(spun):
        publisher(ros, "slow").publish(Int32(data=0))
        wait_for(lambda: slow, "the slow callback")
        numbers = publisher(ros, "quick")
        for number in range(3):
            numbers.publish(Int32(data=number))
            wait_for(lambda number=number: len(quick) > number, f"message {number}")
        assert slow[0] is not spun.thread and not go_on.is_set()
        assert quick == [(number, spun.thread) for number in range(3)]
        go_on.set()
    assert spun.error is None


@pytest.mark.parametrize("group", [QuickCallbackGroup, MutuallyExclusiveCallbackGroup])
def test_what_a_callback_raises_ends_the_spinning(spun: Spun, ros_domain: int, group: type[CallbackGroup]) -> None:
    def fail(_: int) -> None:
        raise ValueError("of the callback")

    spun.hear("fails", fail, group())
    spun.hear("quick", lambda _: None, QuickCallbackGroup())
    with RosHarness(ros_domain) as ros, spinning(spun):
        publisher(ros, "fails").publish(Int32())
        numbers = publisher(ros, "quick")  # what else is heard are quick callbacks
        wait_for(lambda: numbers.publish(Int32()) or spun.ended.is_set(), "the end of the spinning")
    assert isinstance(spun.error, ValueError)
