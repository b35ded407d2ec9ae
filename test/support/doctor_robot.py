# SPDX-License-Identifier: Apache-2.0
"""A robot for the doctor: a node that publishes what it is told, and a stand-in for policy_node with its control process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle_msgs.srv import GetState
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64MultiArray
from vla_ota.msg import PolicyStatus

from support.ros import RosHarness
from vla_policy_node.config import PolicyNodeConfig
from vla_ros import qos
from vla_ros.parameters import declare

TOP = Path(__file__).resolve().parents[2]
PERIOD_S = 0.02


@dataclass
class Verdict:
    """What the doctor said."""

    exit_status: int
    findings: list[dict[str, str]] = field(default_factory=list)
    error: str = ""

    def codes(self, what: str) -> list[str]:
        """Return the problems of one thing, by the end of its name."""
        return [f["code"] for f in self.findings if f["what"].endswith(what) and f["code"]]

    def one(self, code: str) -> dict[str, str]:
        """Return the only finding of a code."""
        found = [f for f in self.findings if f["code"] == code]
        assert len(found) == 1, f"{code}: {found or self.findings}"
        return found[0]

    @property
    def failed(self) -> set[str]:
        """Codes of everything that failed."""
        return {f["code"] for f in self.findings if f["level"] == "FAIL"}


def run_doctor(domain: int, *arguments: str, ros: Sequence[str] = (), seconds: float = 1.5) -> Verdict:
    """Run the doctor as a process of its own, as ``ros2 run`` does."""
    command = [sys.executable, "-m", "vla_doctor.ros.doctor", "--json", f"--seconds={seconds}", *arguments]
    if ros:
        command += ["--ros-args", *ros]
    env = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    done = subprocess.run(command, env=env, capture_output=True, timeout=110, check=False, text=True)
    document = json.loads(done.stdout) if done.stdout.startswith("{") else {"findings": []}
    return Verdict(done.returncode, document["findings"], done.stderr)


class Publishers:
    """Publishes messages of a harness at 50 Hz, or every ``every`` of these periods."""

    def __init__(self, ros: RosHarness) -> None:
        self.ros = ros

    def add(
        self,
        topic: str,
        kind: type,
        make: Callable[[], Any] | None,
        profile: QoSProfile = qos.EVENTS,
        *,
        every: int = 1,
    ) -> None:
        """Publish ``make()``; None = advertise and stay silent."""
        publisher = self.ros.advertise(kind, topic, profile, readers=0)
        if make is not None:
            publish = lambda: publisher.publish(make())  # noqa: E731
            self.ros.on_executor(lambda: self.ros.node.create_timer(PERIOD_S * every, publish))

    def listen(self, topic: str, kind: type, profile: QoSProfile = qos.EVENTS) -> None:
        """Subscribe."""
        self.ros.subscribe(kind, topic, profile)


class StandInPolicy:
    """policy_node's name, parameters, lifecycle state, subscriptions and status, and its control process's publisher.

    Use as a context manager. ``status`` is published as it is, four times a second.
    """

    def __init__(
        self,
        domain: int,
        namespace: str = "",
        *,
        parameters: dict[str, Any],
        command_topic: str = "",
        subscriptions: Sequence[tuple[type, str]] = (),
        lifecycle: str = "active",
    ) -> None:
        self.status = PolicyStatus(
            state=PolicyStatus.STATE_RUNNING, active_version="1.0.0", control_rate_hz=50.0, ticks=9000
        )
        self._folder = tempfile.TemporaryDirectory()
        (Path(self._folder.name) / "torch.py").write_text(
            "__version__ = 'stand-in'"
        )  # the real one takes seconds to import
        parameters = {"worker_paths": [self._folder.name], **parameters}
        self._nodes = [RosHarness(domain, "policy_node", namespace)]
        ros = self._nodes[0]
        ros.node._parameter_overrides.update({k: Parameter(k, value=v) for k, v in parameters.items()})
        ros.on_executor(lambda: declare(ros.node, PolicyNodeConfig))

        def state(request: Any, response: Any) -> Any:
            response.current_state.label = lifecycle
            return response

        ros.on_executor(lambda: ros.node.create_service(GetState, "~/get_state", state))
        for kind, topic in subscriptions:
            ros.subscribe(kind, topic, qos.SENSORS)
        publisher = ros.advertise(PolicyStatus, "~/status", qos.LATCHED, readers=0)
        ros.on_executor(lambda: ros.node.create_timer(0.25, lambda: publisher.publish(self.status)))
        if command_topic:
            self._nodes.append(RosHarness(domain, "_policy_node_control", namespace))
            self._nodes[1].advertise(Float64MultiArray, command_topic, readers=0)

    def __enter__(self) -> StandInPolicy:
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self._nodes:
            node.close()
        self._folder.cleanup()
