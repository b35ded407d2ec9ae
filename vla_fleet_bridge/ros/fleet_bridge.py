# SPDX-License-Identifier: Apache-2.0
"""The node ``fleet_bridge``: a thin shell on ``BridgeEngine``."""

from __future__ import annotations

import datetime
import functools
import math
import sqlite3
import time
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from vla_ota.msg import (
    AdaptationStatus,
    AnomalyScore,
    BridgeStatus,
    EpisodeOutcome,
    ModelEvent,
    ModelStatus,
    ModelUpdate,
    PolicyStatus,
    SwapReport,
)
from vla_ota.srv import AssignExperiment, PinModel, Rollback

from vla_fleet import protocol
from vla_fleet.secret_file import write_secret
from vla_fleet_bridge.config import BridgeError, BridgeSettings, token
from vla_fleet_bridge.engine import BridgeConfig, BridgeEngine
from vla_fleet_bridge.port import Answer
from vla_ros import qos
from vla_ros.calls import GivenUpError, wait
from vla_ros.diagnostics import OK, WARN, Diagnostics, Report
from vla_ros.log_forwarding import forward_log
from vla_ros.parameters import declare
from vla_ros.runtime import main as run_main
from vla_ros.stamps import from_seconds

_ABOUT = "The robot's line to the fleet server: carries its orders to ota_manager, and what happens back."
_STATUS_PERIOD_S = 1.0
_SERVICE_S, _ROLLBACK_S = 5.0, 150.0
_THREADS = 4
_POLICY_SILENT_S = 3.0
_MOST_SCORES = 16


class FleetBridgeNode(Node):
    """Wires ROS to the engine, and is its ``RobotPort``. ``now`` is the robot's clock [s since 1970 UTC]."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__("fleet_bridge")
        settings = declare(self, BridgeSettings)
        forward_log(self, "vla_fleet_bridge")
        config = BridgeConfig(
            server=settings.server,
            token=token(settings),
            outbox=settings.folder / "outbox.db",
            software="vla_ota",
            boot_id=uuid.uuid4().hex,
            ca_file=settings.ca_file,
            keep_token=functools.partial(write_secret, settings.token_file),
        )
        self._manager: ModelStatus | None = None
        self._policy: PolicyStatus | None = None
        self._policy_heard_s = -math.inf
        self._swap: SwapReport | None = None
        self._adaptation = AdaptationStatus()
        self._scores: dict[str, AnomalyScore] = {}
        self._closing = False
        self._publisher = self.create_publisher(BridgeStatus, "~/status", qos.LATCHED)
        self._offers = self.create_publisher(ModelUpdate, "model_update", qos.OFFERS)
        group = MutuallyExclusiveCallbackGroup()
        self._rollback = self.create_client(Rollback, f"{settings.ota_manager}/rollback", callback_group=group)
        name = f"{settings.ota_manager}/assign_experiment"
        self._assign = self.create_client(AssignExperiment, name, callback_group=MutuallyExclusiveCallbackGroup())
        self._pin = self.create_client(PinModel, f"{settings.ota_manager}/pin_model", callback_group=group)
        self._now = now
        try:
            self._engine = BridgeEngine(config, self, self._publish_status, now)
        except (OSError, sqlite3.Error) as e:
            raise BridgeError("STATE_DIR", f"{config.outbox}: {e}") from e
        hear = self.create_subscription
        # First: nodes discover these in this order, and an outcome is sent only to who is discovered.
        hear(EpisodeOutcome, "episode_outcome", self._on_outcome, qos.EVENTS)
        hear(ModelStatus, f"{settings.ota_manager}/status", self._on_manager, qos.LATCHED)
        hear(ModelEvent, f"{settings.ota_manager}/events", self._on_event, qos.EVENTS)
        hear(PolicyStatus, f"{settings.policy_node}/status", self._on_policy, qos.LATCHED)
        hear(SwapReport, f"{settings.policy_node}/swap_report", self._on_swap, qos.LATCHED)
        hear(AdaptationStatus, "adaptation/status", self._on_adaptation, qos.LATCHED)
        hear(AnomalyScore, "anomaly_score", self._on_score, qos.SCORES)
        Diagnostics(self, lambda: "").add("fleet", self._report)
        self.create_timer(_STATUS_PERIOD_S, self._publish_status)
        self._engine.start()

    def close(self) -> None:
        """Close the line; what was not sent is sent after the next start."""
        self._closing = True
        self._engine.stop()
        self._publish_status()

    # -- from the robot to the server ---------------------------------------------------------------------------------------

    def _on_manager(self, message: ModelStatus) -> None:
        self._manager = message
        self._send_status()

    def _on_swap(self, message: SwapReport) -> None:
        self._swap = message
        self._send_status()

    def _on_adaptation(self, message: AdaptationStatus) -> None:
        before, self._adaptation = self._adaptation, message
        if (before.adapter_digest, before.base_digest) != (message.adapter_digest, message.base_digest):
            self._send_status()

    def _on_score(self, message: AnomalyScore) -> None:
        """Keep it for the next status; of a monitor that gives each score a source of its own only the first are kept."""
        if message.source in self._scores or len(self._scores) < _MOST_SCORES:
            self._scores[message.source] = message

    def _scores_of(self, version: str) -> dict[str, float]:
        """Return the newest score of each source, if this version had it."""
        return {
            s.source[:128]: s.score for s in self._scores.values() if s.version == version and math.isfinite(s.score)
        }

    def _on_policy(self, message: PolicyStatus) -> None:
        before, self._policy, self._policy_heard_s = self._policy, message, time.monotonic()
        if before is None or (before.holding, before.active_digest) != (message.holding, message.active_digest):
            self._send_status()

    def _acting(self, manager: ModelStatus) -> tuple[str, str, str]:
        """Return version and digest of what acts, and why: from policy_node itself, from the manager while it is silent."""
        policy, swap = self._policy, self._swap
        if policy is None or time.monotonic() - self._policy_heard_s > _POLICY_SILENT_S:
            return manager.active_version, manager.active_digest, ""
        if swap is not None and swap.to_digest == policy.active_digest:
            return policy.active_version, policy.active_digest, swap.cause
        return policy.active_version, policy.active_digest, ""

    def _send_status(self) -> None:
        manager, policy = self._manager, self._policy
        if manager is None:
            return
        version, digest, cause = self._acting(manager)
        own = self._adaptation
        adapted = bool(own.adapter_digest) and own.adapter_digest == manager.committed_digest
        self._tell(
            self._engine.on_status, protocol.Status, state=manager.state_name, update_id=manager.update_id,
            name=manager.name, committed_version=manager.committed_version, committed_digest=manager.committed_digest,
            adapted_version=own.base_version if adapted else "", adapted_digest=own.base_digest if adapted else "",
            previous_version=manager.previous_version, trial_version=manager.trial_version,
            trial_progress=min(1.0, max(0.0, manager.trial_progress)) if manager.trial_version else 0.0,
            trial_message=manager.trial_message[:4096] if manager.trial_version else "",
            scores=self._scores_of(version), active_version=version, active_digest=digest, active_cause=cause,
            progress=min(1.0, max(0.0, manager.progress)), versions=list(manager.versions)[:256],
            blocked=list(manager.blocked)[:256], rollback_ready=manager.rollback_ready,
            holding=policy is not None and policy.holding, hold_reason=policy.hold_reason if policy is not None else "",
            error_code=manager.error_code, message=manager.message[:4096], experiment=manager.experiment,
            episode_arms=policy is not None and policy.episode_arms,
        )  # fmt: skip

    def _on_event(self, message: ModelEvent) -> None:
        self._tell(
            self._engine.on_event, protocol.Event, update_id=message.update_id, from_state=message.from_state,
            to_state=message.to_state, version=message.version, error_code=message.error_code,
            message=message.message[:4096],
        )  # fmt: skip

    def _on_outcome(self, message: EpisodeOutcome) -> None:
        self._tell(
            self._engine.on_outcome, protocol.Outcome, episode_id=message.episode_id, version=message.version,
            generation=message.generation, arm=message.arm, success=message.success, known=message.known,
            mixed=message.mixed, intervention=message.intervention, duration_s=max(0.0, message.duration_s),
        )  # fmt: skip

    def _tell(self, send: Callable[[Any], None], kind: type[BaseModel], **fields: Any) -> None:
        """Send a message, with the time of this clock: a stamp may be simulated time. Anybody can publish what does not fit."""
        try:
            message = kind(time_s=self._now(), **fields)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            text = f"MESSAGE_INVALID: {kind.__name__.lower()} is not sent: {where}: {first['msg']}"
            self.get_logger().error(text, throttle_duration_sec=10.0)
            return
        send(message)

    # -- from the server to the robot (RobotPort) ---------------------------------------------------------------------------

    def offer(self, update_id: str, order: protocol.ModelUpdate) -> None:
        """Publish an offer."""
        message = ModelUpdate(
            update_id=update_id,
            name=order.name,
            version=order.version,
            manifest_url=order.manifest_url,
            manifest_sha256=order.manifest_sha256,
            activate=order.activate,
            urgent=order.urgent,
            allow_older=order.allow_older,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._offers.publish(message)

    def rollback(self, version: str, reason: str) -> Answer:
        """Go back and wait for it."""
        reply = self._ask(self._rollback, Rollback.Request(version=version, reason=reason), _ROLLBACK_S)
        return reply if isinstance(reply, Answer) else _answer(reply, reply.to_version)

    def pin(self, version: str, *, unpin: bool) -> Answer:
        """Keep a version on disk, or no longer."""
        reply = self._ask(self._pin, PinModel.Request(version=version, unpin=unpin), _SERVICE_S)
        return reply if isinstance(reply, Answer) else _answer(reply, version)

    def assign(self, order: protocol.Assign, robot: str) -> Answer:
        """Take part in an experiment, or no longer."""
        request = AssignExperiment.Request(
            experiment=order.experiment, robot=robot, versions=list(order.versions), probability=order.probability
        )
        reply = self._ask(self._assign, request, _ROLLBACK_S)
        return reply if isinstance(reply, Answer) else _answer(reply, "")

    def _ask(self, client: Any, request: Any, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        if not client.wait_for_service(_SERVICE_S):
            return Answer(False, "MANAGER_ABSENT", f"{client.srv_name} is not there")
        try:
            return wait(
                client.call_async(request), lambda: "closing" if self._closing or time.monotonic() > deadline else ""
            )
        except GivenUpError:
            return Answer(False, "MANAGER_ABSENT", f"{client.srv_name} did not answer")

    # -- what the node says -------------------------------------------------------------------------------------------------

    def _publish_status(self) -> None:
        line = self._engine.line
        message = BridgeStatus(
            connected=line.connected and not self._closing,
            server=self._engine.config.server,
            since=from_seconds(line.since_s),
            outbox_size=self._engine.outbox_size,
            dropped=self._engine.dropped,
            last_command_id=self._engine.last_command_id,
            message=self._about_line(),
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _about_line(self) -> str:
        line = self._engine.line
        if line.connected:
            return line.message
        away = datetime.timedelta(seconds=round(max(0.0, self._now() - line.since_s)))
        return f"no line to the fleet server for {away} h: {line.message}"

    def _report(self) -> Report:
        values = {"outbox": self._engine.outbox_size, "dropped": self._engine.dropped}
        return Report(OK if self._engine.line.connected else WARN, self._about_line(), values)


def _answer(reply: Any, version: str) -> Answer:
    return Answer(reply.success, reply.error_code, reply.message, version)


def main() -> None:
    """Entry point of ``fleet_bridge``."""
    run_main(FleetBridgeNode, "fleet_bridge", _ABOUT, [BridgeSettings], threads=_THREADS)


if __name__ == "__main__":
    main()
