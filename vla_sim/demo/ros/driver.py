# SPDX-License-Identifier: Apache-2.0
"""The demo's ROS node: offers versions, asks for a rollback, and writes down what the other nodes report."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport
from vla_ota.srv import Rollback

from vla_ros import qos
from vla_ros.calls import GivenUpError, wait, wait_until
from vla_ros.stamps import to_seconds
from vla_sim.demo.journal import Journal, RollbackReply
from vla_sim.demo.processes import DemoError
from vla_sim.demo.ros.background_node import BackgroundNode

_EVERY_ONE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Latched topics, of which the driver wants every message and not the last alone."""
_MANY = QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
_SERVICE_S = 60.0


class DemoDriver(BackgroundNode):
    """The demo's node.

    Args:
        domain: ROS_DOMAIN_ID.
        journal: is filled with what the nodes report.
    """

    def __init__(self, domain: int, journal: Journal) -> None:
        super().__init__("demo_driver", domain)
        self._journal = journal
        self._worker_pid, self._worker_heard_s = 0, 0.0
        self._offers = self._node.create_publisher(ModelUpdate, "model_update", qos.OFFERS)
        self._rollback = self._node.create_client(Rollback, "ota_manager/rollback")
        for kind, topic, profile in (
            (ModelStatus, "ota_manager/status", _EVERY_ONE),
            (ModelEvent, "ota_manager/events", qos.EVENTS),
            (PolicyStatus, "policy_node/status", _EVERY_ONE),
            (SwapReport, "policy_node/swap_report", _EVERY_ONE),
            (EpisodeOutcome, "episode_outcome", qos.EVENTS),
        ):
            self._node.create_subscription(kind, topic, journal.add, profile)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        commands = "forward_position_controller/commands"
        self._node.create_subscription(Float64MultiArray, commands, self._on_command, _MANY)
        self._node.create_subscription(JointState, "joint_states", self._on_joints, qos.SENSORS)

    # -- what it asks for ----------------------------------------------------------------------------------------------

    def offer(self, name: str, version: str, manifest_url: str, digest: str, *, urgent: bool = False) -> str:
        """Offer a version to the robot; return the update's id. Raises DemoError if no manager listens."""
        self._wait_until(lambda: self._offers.get_subscription_count() > 0, "a subscription to model_update")
        update_id = f"demo-{version}-{uuid.uuid4().hex[:8]}"
        message = ModelUpdate(
            update_id=update_id,
            name=name,
            version=version,
            manifest_url=manifest_url,
            manifest_sha256=digest,
            urgent=urgent,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._journal.add(message)
        self._offers.publish(message)
        return update_id

    def roll_back(self) -> RollbackReply:
        """Call ``ota_manager/rollback`` with an empty request. Raises DemoError if nobody answers."""
        self._wait_until(self._rollback.service_is_ready, "the service ota_manager/rollback")
        asked_s, deadline = time.time(), time.monotonic() + _SERVICE_S
        future = self._rollback.call_async(Rollback.Request())
        try:
            reply = RollbackReply(asked_s, wait(future, lambda: "no answer" if time.monotonic() > deadline else ""))
        except GivenUpError as e:
            raise DemoError(f"ota_manager/rollback: {e}") from e
        self._journal.add(reply)
        return reply

    def worker_pid(self) -> int:
        """Return the process id of the acting generation's worker, as the policy node's diagnostics give it from now on.

        Raises DemoError if they do not.
        """
        asked_s = time.monotonic()
        self._wait_until(lambda: self._worker_heard_s > asked_s and self._worker_pid > 0, "the active worker's pid")
        return self._worker_pid

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SERVICE_S
        try:
            wait_until(condition, lambda: f"waited for {what}" if time.monotonic() > deadline else "")
        except GivenUpError as e:
            raise DemoError(str(e)) from e

    # -- what it hears -------------------------------------------------------------------------------------------------

    def _on_command(self, message: Float64MultiArray, info: dict[str, Any]) -> None:
        self._journal.commands.append(info["source_timestamp"] * 1e-9)

    def _on_joints(self, message: JointState) -> None:
        self._journal.joints.append((to_seconds(message.header.stamp), list(message.position)))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "policy_node: policy":
                pids = [value.value for value in status.values if value.key == "worker pid"]
                self._worker_pid = int(pids[0]) if pids and pids[0] else 0
                self._worker_heard_s = time.monotonic()
