# SPDX-License-Identifier: Apache-2.0
"""The driver's ROS node: offers versions, asks for a rollback, and writes down what the other nodes report.

The arm's commands are counted by the stamps that their publisher gave them, so that a busy driver sees no gap of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64MultiArray
from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport
from vla_ota.srv import Rollback

from vla_ros import qos
from vla_ros.calls import GivenUpError, wait, wait_until
from vla_ros.stamps import to_seconds
from vla_sim.demo import journal
from vla_sim.demo.journal import Journal, from_message
from vla_sim.demo.processes import DemoError

_EVERY_ONE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Latched topics, of which the driver wants every message and not the last alone."""
_MANY = QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
_GAP_S = 0.2
_SERVICE_S = 60.0


class DemoDriver:
    """A node in a context and a thread of its own. Use as a context manager.

    Args:
        domain: ROS_DOMAIN_ID.
        records: is filled with what the nodes report.
    """

    def __init__(self, domain: int, records: Journal) -> None:
        self._journal = records
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("demo_driver", context=self._context)
        self._worker_pid, self._worker_heard_s = 0, 0.0
        self._command_s = 0.0
        self._offers = self._node.create_publisher(ModelUpdate, "model_update", qos.OFFERS)
        self._rollback = self._node.create_client(Rollback, "ota_manager/rollback")
        self._record(ModelStatus, "ota_manager/status", journal.ModelStatus, _EVERY_ONE)
        self._record(ModelEvent, "ota_manager/events", journal.ModelEvent, qos.EVENTS)
        self._record(PolicyStatus, "policy_node/status", journal.PolicyStatus, _EVERY_ONE)
        self._record(SwapReport, "policy_node/swap_report", journal.SwapReport, _EVERY_ONE)
        self._record(EpisodeOutcome, "episode_outcome", journal.EpisodeOutcome, qos.EVENTS)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._node.create_subscription(
            Float64MultiArray, "forward_position_controller/commands", self._on_command, _MANY
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="demo_driver", daemon=True)
        self._thread.start()

    def __enter__(self) -> DemoDriver:
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

    # -- what it asks for ----------------------------------------------------------------------------------------------

    def offer(self, name: str, version: str, manifest_url: str, digest: str) -> str:
        """Offer a version to the robot; return the update's id. Raises DemoError if no manager listens."""
        self._wait_until(lambda: self._offers.get_subscription_count() > 0, "a subscription to model_update")
        message = ModelUpdate(
            update_id=f"demo-{version}-{uuid.uuid4().hex[:8]}",
            name=name,
            version=version,
            manifest_url=manifest_url,
            manifest_sha256=digest,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._journal.add(journal.Offer(time.time(), message.update_id, version))
        self._offers.publish(message)
        return str(message.update_id)

    def roll_back(self) -> journal.RollbackReply:
        """Call ``ota_manager/rollback`` with an empty request. Raises DemoError if nobody answers."""
        self._wait_until(self._rollback.service_is_ready, "the service ota_manager/rollback")
        asked_s, deadline = time.time(), time.monotonic() + _SERVICE_S
        future = self._rollback.call_async(Rollback.Request())
        try:
            response = wait(future, lambda: "no answer" if time.monotonic() > deadline else "")
        except GivenUpError as e:
            raise DemoError(f"ota_manager/rollback: {e}") from e
        reply = from_message(journal.RollbackReply, response, asked_s)
        self._journal.add(reply)
        return reply

    def worker_pid(self) -> int:
        """Return the process id of the acting generation's worker, as the policy node's diagnostics give it from now on.

        Raises DemoError if they do not.
        """
        asked_s = time.monotonic()
        self._wait_until(lambda: self._worker_heard_s > asked_s and self._worker_pid > 0, "the active worker's pid")
        return self._worker_pid

    def _wait_until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + _SERVICE_S
        try:
            wait_until(condition, lambda: f"waited for {what}" if time.monotonic() > deadline else "")
        except GivenUpError as e:
            raise DemoError(str(e)) from e

    # -- what it hears -------------------------------------------------------------------------------------------------

    def _record(self, message_type: Any, topic: str, kind: Any, profile: QoSProfile) -> None:
        def callback(message: Any) -> None:
            self._journal.add(from_message(kind, message, to_seconds(message.header.stamp)))

        self._node.create_subscription(message_type, topic, callback, profile)

    def _on_command(self, message: Float64MultiArray, info: dict[str, int]) -> None:
        at_s = info["source_timestamp"] * 1e-9
        if self._command_s and at_s - self._command_s > _GAP_S:
            self._journal.add(journal.CommandGap(self._command_s, at_s - self._command_s))
        self._command_s = max(self._command_s, at_s)
        self._journal.commands += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "policy_node: policy":
                pids = [value.value for value in status.values if value.key == "worker pid"]
                self._worker_pid = int(pids[0]) if pids and pids[0] else 0
                self._worker_heard_s = time.monotonic()
