# SPDX-License-Identifier: Apache-2.0
"""The node ``ota_manager``: gets, keeps and judges the policy that this robot runs. A thin shell on ``UpdateEngine``.

Topics, services and the action are listed in the README; parameters, with their ranges, are the fields of ``OtaConfig`` and
``NodeConfig``.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import Bool, Float64
from vla_ota.msg import AnomalyScore, EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.engine import UpdateEngine
from vla_ota_manager.records import Event, Status
from vla_ota_manager.ros.messages import from_event, from_status, to_result, to_score, to_update
from vla_ota_manager.ros.policy_port import RosPolicyPort
from vla_ota_manager.ros.services import MAX_GOALS, MAX_ROLLBACKS, InstallAction, Services
from vla_ota_manager.ros.settings import NodeConfig, ScoreTopic
from vla_ros import qos
from vla_ros.diagnostics import ERROR, OK, WARN, Diagnostics, Report
from vla_ros.log_forwarding import forward_log
from vla_ros.parameters import declare, on_live_change, refuse_unknown
from vla_ros.runtime import main as run_main

THREADS = 8 + MAX_ROLLBACKS + MAX_GOALS
"""Of the executor: what may block (the services, the goals, the timers) never keeps a topic waiting."""


class OtaManagerNode(Node):
    """Wires ROS to the engine.

    Raises:
        ParameterError, ConfigError: a parameter is wrong.
        StoreError: the store cannot be used.
    """

    def __init__(self) -> None:
        super().__init__("ota_manager")
        refuse_unknown(self, NodeConfig, OtaConfig)
        self._settings, self._config = declare(self, NodeConfig), declare(self, OtaConfig)
        forward_log(self, "vla_ota_manager")
        forward_log(self, "urllib3")  # its warnings quote URLs
        self._publishing = threading.Lock()
        self._published_s = 0.0
        self._heard_permission_s: float | None = None
        self._closed = False

        self._diagnostics = Diagnostics(self, lambda: self._engine.robot_type)
        self._status_publisher = self.create_publisher(
            ModelStatus, "~/status", qos.LATCHED, event_callbacks=self._diagnostics.publisher_events("~/status")
        )
        self._event_publisher = self.create_publisher(
            ModelEvent, "~/events", qos.EVENTS, event_callbacks=self._diagnostics.publisher_events("~/events")
        )
        self._port = RosPolicyPort(
            self, self._settings.policy_node, self._config.policy_silent_s, self._on_policy_status, self._diagnostics
        )
        self._engine = UpdateEngine(
            self._config,
            self._port,
            on_status=self._publish_status,
            on_event=self._publish_event,
            stamp_clock=lambda: self.get_clock().now().nanoseconds * 1e-9,
        )
        self._operator, self._install = Services(self, self._engine), InstallAction(self, self._engine)
        self._engine.set_updates_allowed(self._settings.update_permitted)
        on_live_change(self, NodeConfig, lambda _name, value: self._engine.set_updates_allowed(value))
        self._subscribe_all()
        self._add_diagnostics()
        self.create_timer(
            self._config.status_period_s / 2,
            self._tick,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(
                clock_type=ClockType.STEADY_TIME
            ),  # a lease and a permission end also when simulated time stands still
        )
        self._engine.start()  # last: what fails before it leaves no thread behind

    def close(self) -> None:
        """Stop the engine (a restart goes on where it was) and publish the last status."""
        stopped = self._engine.stop()
        self._closed = True
        self._port.close()
        self._publish_status(self._engine.status())
        self._install.close()
        if not stopped:
            raise RuntimeError("the update engine did not stop in time")

    # -- what the node says -------------------------------------------------------------------------------------------------

    def _publish_status(self, status: Status) -> None:
        with self._publishing:
            self._published_s = time.monotonic()
            self._status_publisher.publish(from_status(status, self.get_clock().now().to_msg()))

    def _publish_event(self, event: Event) -> None:
        self._event_publisher.publish(from_event(event, self.get_clock().now().to_msg()))

    def _tick(self) -> None:
        """Repeat the status while the engine waits for something long; never for an engine that hangs, whose lease must end."""
        age_s = time.monotonic() - self._published_s
        if not self._closed and self._engine.healthy and age_s >= self._config.status_period_s:
            self._publish_status(self._engine.status())
        heard_s = self._heard_permission_s
        if heard_s is not None and time.monotonic() - heard_s > self._settings.permission_timeout_s:
            self._heard_permission_s = None
            self._engine.set_update_permitted(None)

    # -- what it hears ------------------------------------------------------------------------------------------------------

    def _subscribe_all(self) -> None:
        self._hear(ModelUpdate, "model_update", self._on_update, qos.OFFERS)
        self._hear(EpisodeOutcome, "episode_outcome", lambda m: self._engine.on_outcome(to_result(m)), qos.EVENTS)
        self._hear(Bool, "update_permitted", self._on_permitted, qos.FLAGS)
        self._hear(AnomalyScore, "anomaly_score", self._on_score, qos.SCORES)
        for entry in self._settings.scores:
            if entry.source:
                self._hear(Float64, entry.topic, partial(self._on_number, entry), qos.SCORES)
            else:
                self._hear(AnomalyScore, entry.topic, self._on_score, qos.SCORES)

    def _hear(self, message_type: type, topic: str, take: Callable[[Any], None], profile: Any) -> None:
        def callback(message: Any) -> None:
            try:
                take(message)
            except Exception as e:  # a message must not take the node down
                self.get_logger().error(f"a message on '{topic}' could not be used: {e!r}", throttle_duration_sec=5.0)

        self.create_subscription(
            message_type, topic, callback, profile,
            callback_group=MutuallyExclusiveCallbackGroup(),
            event_callbacks=self._diagnostics.subscription_events(topic),
        )  # fmt: skip

    def _on_update(self, message: ModelUpdate) -> None:
        reply = self._engine.offer(to_update(message))  # a refusal is in the status, the events and the log already
        if not reply.success and reply.error_code == "OFFER_REPEATED":
            self.get_logger().debug(reply.message)

    def _on_score(self, message: AnomalyScore) -> None:
        self._engine.on_score(to_score(message))

    def _on_number(self, entry: ScoreTopic, message: Float64) -> None:
        score = AnomalyScore(source=entry.source, score=message.data)
        score.header.stamp = self.get_clock().now().to_msg()
        self._on_score(score)

    def _on_permitted(self, message: Bool) -> None:
        self._heard_permission_s = time.monotonic()
        # It ends by itself: the timer that says so in the status may be late.
        self._engine.set_update_permitted(message.data, self._settings.permission_timeout_s)

    def _on_policy_status(self) -> None:
        self._engine.on_policy_status()

    # -- diagnostics --------------------------------------------------------------------------------------------------------

    def _add_diagnostics(self) -> None:
        self._diagnostics.add("store", self._store_report)
        self._diagnostics.add("update", self._update_report)
        self._diagnostics.add("policy node", self._policy_report)
        self._diagnostics.add("trust", self._trust_report)
        self._diagnostics.add("scores", self._score_report)

    def _store_report(self) -> Report:
        free, floor = shutil.disk_usage(self._config.store_dir).free, self._config.min_free_bytes
        status = self._engine.status()
        values = {"free_bytes": free, "min_free_bytes": floor, "versions": " ".join(status.versions)}
        if free <= floor:
            return Report(WARN, f"DISK_FULL: {free} bytes are free, {floor} must stay: nothing can be fetched", values)
        if damage := self._engine.damaged:
            text = "; ".join(f"{version}: {what}" for version, what in damage.items())
            return Report(WARN, f"VERSION_DAMAGED: {text}", values)
        return Report(OK, f"{len(status.versions)} versions, {free >> 20} MiB free", values)

    def _update_report(self) -> Report:
        status = self._engine.status()
        values = {
            "state": status.state_name,
            "committed": status.committed_version,
            "trial": status.trial_version,
            "blocked": " ".join(status.blocked),
        }
        if not self._engine.healthy:
            return Report(ERROR, "the update engine does not move", values)
        if status.error_code:
            return Report(WARN, f"{status.state_name}: {status.error_code}: {status.message}", values)
        return Report(OK, f"{status.state_name}: {status.message}", values)

    def _policy_report(self) -> Report:
        snapshot = self._port.status()
        if snapshot is None:
            return Report(WARN, f"nothing heard from '{self._settings.policy_node}' yet")
        values = {
            "age_s": f"{snapshot.age_s:.1f}",
            "active": self._engine.status().active_version,
            "on_trial": snapshot.on_trial,
            "boot_id": snapshot.boot_id,
        }
        if snapshot.unconfigured:
            return Report(WARN, f"'{self._settings.policy_node}' {snapshot.unconfigured}", values)
        if snapshot.age_s > self._config.policy_silent_s:
            return Report(ERROR, f"POLICY_ABSENT: silent for {snapshot.age_s:.1f} s", values)
        if snapshot.holding:
            return Report(WARN, f"holding: {snapshot.hold_reason}", values)
        return Report(OK, f"runs {snapshot.active_version or 'nothing'}", values)

    def _trust_report(self) -> Report:
        what = "manifests are checked against the offer's SHA-256, and not signed"
        words = f"{what}: whoever can publish on model_update decides what runs"
        return Report(
            OK, words, {"trust": self._engine.status().trust}
        )  # all that there is: no reason to warn for ever

    def _score_report(self) -> Report:
        dropped, fault = self._engine.evidence_dropped
        values: dict[str, object] = {"dropped": dropped}
        wrong = []
        topics = {"anomaly_score": AnomalyScore} | {
            e.topic: Float64 if e.source else AnomalyScore for e in self._settings.scores
        }
        for topic, expected in topics.items():
            publishers = self.get_publishers_info_by_topic(topic)
            values[topic] = f"{len(publishers)} publishers"
            name = f"{expected.__module__.split('.')[0]}/msg/{expected.__name__}"
            wrong += [f"'{topic}' carries {p.topic_type}, not {name}" for p in publishers if p.topic_type != name]
        if wrong:
            return Report(WARN, "; ".join(wrong), values)
        if dropped:
            return Report(WARN, f"SCORE_INVALID: {dropped} scores or outcomes were dropped, the last: {fault}", values)
        return Report(OK, "every topic of scores has the expected type", values)


def main() -> None:
    """Run the node."""
    about = "Fetches, verifies and keeps the policies of a robot, tries a new one, and goes back from a bad one."
    run_main(OtaManagerNode, "ota_manager", about, [OtaConfig, NodeConfig], threads=THREADS)


if __name__ == "__main__":
    main()
