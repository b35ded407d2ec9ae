# SPDX-License-Identifier: Apache-2.0
"""The node ``adaptation``: a thin shell on :class:`vla_adaptation.engine.Adaptation`."""

from __future__ import annotations

import dataclasses
import threading

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from vla_ota.msg import AdaptationStatus, ModelStatus, ModelUpdate, PolicyStatus

from vla_adaptation import facts
from vla_adaptation.engine import Adaptation
from vla_adaptation.settings import AdaptationSettings
from vla_adaptation.upload import AdapterUploader
from vla_ros import qos
from vla_ros.diagnostics import OK, WARN, Diagnostics, Report
from vla_ros.log_forwarding import forward_log
from vla_ros.parameters import declare, refuse_unknown
from vla_ros.runtime import main as run_main

_ABOUT = "Trains a LoRA adapter on this robot's own episodes while it is idle, and offers it to ota_manager."
_LOOK_S, _STATUS_PERIOD_S = 0.1, 1.0


class AdaptationNode(Node):
    """Topics on the engine."""

    def __init__(self) -> None:
        super().__init__("adaptation")
        refuse_unknown(self, AdaptationSettings)
        settings = declare(self, AdaptationSettings)
        forward_log(self, "vla_adaptation")
        self._offers = self.create_publisher(ModelUpdate, "model_update", qos.OFFERS)
        self._publisher = self.create_publisher(AdaptationStatus, "~/status", qos.LATCHED)
        self._engine = Adaptation(settings, self._offer)
        self._said: facts.Status | None = None
        self._said_s = 0.0
        self._saying = threading.Lock()
        # The episode that begins is never behind a status that is being made.
        group = MutuallyExclusiveCallbackGroup()
        hear = self.create_subscription
        hear(PolicyStatus, f"{settings.policy_node}/status", self._on_policy, qos.LATCHED, callback_group=group)
        hear(ModelStatus, f"{settings.ota_manager}/status", self._engine.manager, qos.LATCHED, callback_group=group)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # also while simulated time stands still
        self.create_timer(_LOOK_S, self._say, clock=self._steady)
        Diagnostics(self, lambda: "").add("adaptation", self._report)
        self._uploader = AdapterUploader(self._engine, settings) if settings.server else None
        self._engine.start()
        if self._uploader is not None:
            self._uploader.start()

    def close(self) -> None:
        """End the training process; its next one goes on from the checkpoint."""
        if self._uploader is not None:
            self._uploader.stop()
        self._engine.close()

    def _on_policy(self, message: PolicyStatus) -> None:
        operator = message.state == PolicyStatus.STATE_OPERATOR
        self._engine.policy(facts.Policy(message.episode_id, operator))

    def _offer(self, offer: facts.Offer) -> None:
        message = ModelUpdate(**dataclasses.asdict(offer))
        message.header.stamp = self.get_clock().now().to_msg()
        self._offers.publish(message)

    def _say(self) -> None:
        status, now_s = self._engine.status(), self._steady.now().nanoseconds / 1e9
        with self._saying:
            changed = self._said is None or dataclasses.replace(status, run_s=self._said.run_s) != self._said
            if not changed and now_s - self._said_s < _STATUS_PERIOD_S:
                return
            self._said, self._said_s = status, now_s
        values = dataclasses.asdict(status)
        name = values.pop("state")
        message = AdaptationStatus(state=facts.STATES.index(name), state_name=name, **values)
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _report(self) -> Report:
        status = self._engine.status()
        values = dataclasses.asdict(status)
        if status.error_code:
            return Report(WARN, status.message, values)
        if self._uploader is not None and self._uploader.problem:
            return Report(WARN, f"the adapter waits to be uploaded: {self._uploader.problem}", values)
        doing = status.state.lower() + (f": waits for {status.waits_for}" if status.waits_for else "")
        return Report(OK, doing, values)


def main() -> None:
    """Entry point of ``adaptation``."""
    run_main(AdaptationNode, "adaptation", _ABOUT, [AdaptationSettings], threads=2)


if __name__ == "__main__":
    main()
