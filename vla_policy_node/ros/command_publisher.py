# SPDX-License-Identifier: Apache-2.0
"""The control process's part of ROS: one node with the command publishers, and nothing else."""

from __future__ import annotations

import array
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.context import Context
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32, Float32MultiArray, Float64, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_policy_node.contract import message_types as types
from vla_policy_node.contract.model import Contract, Output
from vla_policy_node.control.lock import TopicLock
from vla_policy_node.errors import ControlError
from vla_ros import qos

Floats = npt.NDArray[np.float64]
_Filled: TypeAlias = tuple[Any, Callable[[list[float]], None]]
"""A message and what writes a command into it."""

_GRAPH_PERIOD_S = 0.5
_DISCOVERY_S = 1.0
"""How long after its start the node may still learn of other publishers."""


class RosSink:
    """Publishes commands; see ``sinks.CommandSink``."""

    def __init__(self, spec: Mapping[str, Any], contract: Contract) -> None:
        """Lock the topics, then join the ROS graph. Raises ControlError COMMAND_TOPIC_LOCKED."""
        domain_id = int(spec["domain_id"])
        names: dict[str, str] = spec.get("topics", {})
        topics = [names.get(o.topic, o.topic) for o in contract.outputs]
        self._locks: list[TopicLock] = []
        try:
            for topic in topics:
                self._locks.append(TopicLock(domain_id, topic))
        except ControlError:
            self._release()
            raise
        self._context = Context()
        rclpy.init(
            args=spec.get("arguments", []),  # enclave and logging are the process's, names and parameters the node's
            context=self._context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self._node = Node(
            str(spec["node_name"]),
            namespace=str(spec.get("namespace", "")),
            context=self._context,
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._born = time.monotonic()
        self._outputs = [
            _Output(self._node, output, topic, contract.period_s)
            for output, topic in zip(contract.outputs, topics, strict=True)
        ]
        self._stamped = any(output.stamped for output in self._outputs)
        self._intruder = ""
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch_graph, name="graph", daemon=True)
        self._watcher.start()

    def publish(self, values: Floats) -> None:
        """Publish one command on every output topic; what is stamped has one stamp."""
        stamp = self._node.get_clock().now().to_msg() if self._stamped else None
        for output in self._outputs:
            output.publish(values, stamp)

    def intruder(self) -> str:
        """Return which other node published a command topic at the last look at the graph; empty = none."""
        return self._intruder

    def _watch_graph(self) -> None:
        """Asking the graph takes locks that discovery holds: it is done beside the loop."""
        while not self._closing.wait(_GRAPH_PERIOD_S):
            self._intruder = self._ask_graph()

    def _ask_graph(self) -> str:
        return next(filter(None, (output.intruder() for output in self._outputs)), "")

    def check(self) -> None:
        """Look for other publishers of the command topics. Raises ControlError COMMAND_TOPIC_TAKEN."""
        while True:
            text = self._intruder = self._ask_graph()
            if text:
                raise ControlError("COMMAND_TOPIC_TAKEN", text)
            left = self._born + _DISCOVERY_S - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def close(self) -> None:
        """Leave the graph and release the topics."""
        self._closing.set()
        self._watcher.join()
        self._node.destroy_node()
        self._context.try_shutdown()
        self._release()

    def _release(self) -> None:
        for lock in self._locks:
            lock.close()
        self._locks = []


class _Output:
    """One publisher and its message, which is filled anew for each command."""

    def __init__(self, node: Node, output: Output, topic: str, period_s: float) -> None:
        self._node, self._output, self._period_s = node, output, period_s
        self._part = slice(output.start, output.stop)
        self._message, self._fill = self._make(output.type)
        self.stamped = output.type in (types.JOINT_STATE, types.TWIST_STAMPED)  # a trajectory's 0 means at once
        self._publisher = node.create_publisher(
            type(self._message), topic, qos.profile(output.qos.reliability, output.qos.durability, output.qos.depth)
        )
        self._topic = self._publisher.topic_name

    def publish(self, values: Floats, stamp: Time | None) -> None:
        part = values[self._part]
        if self._output.rad2deg:
            part = part * (math.pi / 180.0)
        self._fill(part.tolist())
        if self.stamped:
            self._message.header.stamp = stamp
        self._publisher.publish(self._message)

    def intruder(self) -> str:
        if self._node.count_publishers(self._topic) <= 1:
            return ""
        # A control process that was killed stays in the graph for a while under our own name; the lock says it is dead.
        ours = self._node.get_fully_qualified_name()
        infos = self._node.get_publishers_info_by_topic(self._topic)
        names = {f"{i.node_namespace.rstrip('/')}/{i.node_name}" for i in infos} - {ours}
        return f"{self._topic} is published by {', '.join(sorted(names))} too" if names else ""

    def _make(self, kind: str) -> _Filled:
        makers: dict[str, Callable[[], _Filled]] = {
            "std_msgs/msg/Float64MultiArray": lambda: self._array(Float64MultiArray(), "d"),
            "std_msgs/msg/Float32MultiArray": lambda: self._array(Float32MultiArray(), "f"),
            "std_msgs/msg/Float64": lambda: self._single(Float64()),
            "std_msgs/msg/Float32": lambda: self._single(Float32()),
            types.JOINT_STATE: self._joint_state,
            types.JOINT_TRAJECTORY: self._trajectory,
            types.TWIST: lambda: self._twist(message := Twist(), message),
            types.TWIST_STAMPED: lambda: self._twist(message := TwistStamped(), message.twist),
        }
        return makers[kind]()

    def _array(self, message: Any, typecode: str) -> _Filled:
        places = [int(entry.partition(".")[2]) for entry in self._output.select]
        order = np.argsort(places).tolist()

        def fill(values: list[float]) -> None:
            message.data = array.array(typecode, [values[i] for i in order])

        return message, fill

    def _single(self, message: Any) -> _Filled:
        def fill(values: list[float]) -> None:
            message.data = values[0]

        return message, fill

    def _joints(self) -> tuple[list[str], dict[str, dict[str, int]]]:
        """Return the joints in the order of their first mention, and per field joint → index of its value."""
        fields: dict[str, dict[str, int]] = {}
        names: list[str] = []
        for i, entry in enumerate(self._output.select):
            field, _, joint = entry.partition(".")
            fields.setdefault(field, {})[joint] = i
            if joint not in names:
                names.append(joint)
        return names, fields

    def _joint_state(self) -> _Filled:
        message = JointState()
        message.name, fields = self._joints()

        def fill(values: list[float]) -> None:
            for field, places in fields.items():
                numbers = [values[places[n]] if n in places else math.nan for n in message.name]
                setattr(message, field, array.array("d", numbers))

        return message, fill

    def _trajectory(self) -> _Filled:
        message, point = JointTrajectory(), JointTrajectoryPoint()
        message.joint_names, fields = self._joints()
        point.time_from_start.nanosec = min(round(self._period_s * 1e9), 999_999_999)
        message.points = [point]
        attributes = {"position": "positions", "velocity": "velocities", "effort": "effort"}

        def fill(values: list[float]) -> None:
            for field, places in fields.items():
                numbers = [values[places[n]] for n in message.joint_names if n in places]
                setattr(point, attributes[field], array.array("d", numbers))

        return message, fill

    def _twist(self, message: Any, twist: Twist) -> _Filled:
        places = [(getattr(twist, vector), axis) for vector, axis in (e.split(".")[-2:] for e in self._output.select)]

        def fill(values: list[float]) -> None:
            for (vector, axis), value in zip(places, values, strict=True):
                setattr(vector, axis, value)

        return message, fill
