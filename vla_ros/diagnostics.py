# SPDX-License-Identifier: Apache-2.0
"""``/diagnostics`` at 1 Hz, with incompatible-QoS events: a topic that silently never matches is the commonest ROS fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


@dataclass(frozen=True)
class Report:
    """One task's finding."""

    level: bytes
    message: str
    values: Mapping[str, object] = field(default_factory=dict)


class Diagnostics:
    """Publishes what the registered tasks say.

    Args:
        node: whose diagnostics they are.
        robot_type: returns which robot it is, empty = not known yet; every node of a robot should say the same.
    """

    def __init__(self, node: Node, robot_type: Callable[[], str]) -> None:
        self._node, self._robot_type = node, robot_type
        self._tasks: dict[str, Callable[[], Report]] = {}
        self._mismatched: dict[str, int] = {}
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also while simulated time stands still
        group = MutuallyExclusiveCallbackGroup()
        self._timer = node.create_timer(1.0, self.publish, callback_group=group, clock=steady)
        self.add("qos", self._qos)

    def add(self, name: str, task: Callable[[], Report]) -> None:
        """Register a task; it is called once a second from the node's executor."""
        self._tasks[name] = task

    def subscription_events(self, topic: str) -> SubscriptionEventCallbacks:
        """Event callbacks for ``create_subscription`` that record an incompatible publisher."""
        return SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._count(topic, "publisher", event.total_count)
        )

    def publisher_events(self, topic: str) -> PublisherEventCallbacks:
        """Event callbacks for ``create_publisher`` that record an incompatible subscription."""
        return PublisherEventCallbacks(
            incompatible_qos=lambda event: self._count(topic, "subscription", event.total_count)
        )

    def _count(self, topic: str, side: str, total: int) -> None:
        self._mismatched[f"{topic} ({side})"] = total
        self._node.get_logger().warning(
            f"QoS of a {side} on '{topic}' is incompatible: no messages will flow between them"
        )

    def _qos(self) -> Report:
        if self._mismatched:
            return Report(WARN, "incompatible QoS on " + ", ".join(self._mismatched), dict(self._mismatched))
        return Report(OK, "every connection is compatible")

    def publish(self) -> None:
        """Run every task and publish. A task that fails is reported as an error, the others go on."""
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        hardware_id = self._robot_type()
        for name, task in self._tasks.items():
            try:
                report = task()
            except Exception as e:  # a diagnostic must not take its node down
                report = Report(ERROR, f"diagnostic task failed: {e!r}")
            status = DiagnosticStatus(level=report.level, message=report.message, hardware_id=hardware_id)
            status.name = f"{self._node.get_fully_qualified_name().lstrip('/')}: {name}"
            status.values = [KeyValue(key=str(k), value=str(v)) for k, v in report.values.items()]
            array.status.append(status)
        self._publisher.publish(array)
