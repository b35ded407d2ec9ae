# SPDX-License-Identifier: Apache-2.0
"""One robot for tests of the policy node: the node as a process, an ideal two-joint robot on ROS topics, a probe."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger
from vla_ota.msg import AnomalyScore, EpisodeOutcome, ModelStatus, PolicyStatus, SwapReport
from vla_ota.srv import SwapModel

from support.engine_rig import PATIENT, contract_text
from support.ros import Inbox, NodeProcess, RosHarness
from support.scripted import POLICY_MODULES, TEST_FOLDER
from vla_ros import qos


class IdealRobot:
    """Is always where it was last told to be, and says so at 50 Hz, as often as it is commanded."""

    def __init__(self, ros: RosHarness, *, commands: str = "commands", joints: str = "joint_states") -> None:
        self._ros = ros
        self.commands: list[tuple[float, float]] = []
        self.position = (0.0, 0.0)
        self.motion: bool | None = None  # what it publishes on motion_enabled; None = nothing
        self._joints = ros.advertise(JointState, joints, qos.SENSORS, readers=0)
        self._motion = ros.advertise(Bool, "motion_enabled", qos.FLAGS, readers=0)
        ros.on_executor(lambda: ros.node.create_subscription(Float64MultiArray, commands, self._on_command, qos.EVENTS))
        self._timer = ros.on_executor(lambda: ros.node.create_timer(0.02, self._tick))

    def _on_command(self, message: Any) -> None:
        self.position = (message.data[0], message.data[1])
        self.commands.append(self.position)

    def _tick(self) -> None:
        message = JointState(name=["j1", "j2"], position=list(self.position))
        message.header.stamp = self._ros.now()
        self._joints.publish(message)
        if self.motion is not None:
            self._motion.publish(Bool(data=self.motion))


def policy_parameters(folder: Path, **parameters: Any) -> dict[str, Any]:
    """Parameters of a policy node for scripted bundles below ``folder``."""
    contract = folder / "contract.yaml"
    if not contract.exists():
        contract.write_text(contract_text(**PATIENT))
    return {
        "contract": str(contract),
        "bundle_roots": [str(folder)],
        "policy_modules": [f"{k}={v}" for k, v in POLICY_MODULES.items()],
        "worker_paths": [TEST_FOLDER],
        "worker_imports": [""],
        "inference_timeout_s": 20.0,
        "load_timeout_s": 60.0,
        "status_period_s": 0.2,
        "shadow_chunks": 0,  # tests of the shadow set it
        **parameters,
    }


class PolicyRig:
    """``with PolicyRig(domain, tmp_path, model_path=…) as rig``: the node runs, or holds, or says why not."""

    def __init__(
        self,
        domain: int,
        folder: Path,
        *,
        namespace: str = "",
        contract: Mapping[str, Any] | None = None,
        remaps: tuple[str, ...] = (),
        module: str = "vla_policy_node.ros.policy_node",
        group: bool = False,
        arguments: tuple[str, ...] = (),
        **parameters: Any,
    ) -> None:
        if contract is not None:
            (folder / "contract.yaml").write_text(contract_text(**PATIENT, **contract))
        self.folder = folder
        self.ros = RosHarness(domain, namespace=namespace)
        self.robot = IdealRobot(self.ros)
        self.status: Inbox = self.ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        self.reports: Inbox = self.ros.subscribe(SwapReport, "policy_node/swap_report", qos.LATCHED_EACH)
        self.scores: Inbox = self.ros.subscribe(AnomalyScore, "anomaly_score", qos.SCORES)
        self.outcomes: Inbox = self.ros.subscribe(EpisodeOutcome, "episode_outcome", qos.EVENTS)
        self.node = NodeProcess(
            module,
            domain,
            folder / "logs",
            parameters=policy_parameters(folder, **parameters),
            namespace=namespace,
            remaps=remaps,
            group=group,
            arguments=arguments,
            environment={"PYTHONPATH": os.pathsep.join([TEST_FOLDER, os.environ.get("PYTHONPATH", "")])},
        )
        self._manager: Any = None
        self._renewing = threading.Event()

    def __enter__(self) -> PolicyRig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.node.__exit__(kind, error, trace)
        finally:
            self.ros.close()

    def forget(self) -> None:
        """Forget every message received so far."""
        for inbox in (self.status, self.reports, self.scores, self.outcomes):
            inbox.clear()

    def wait_status(self, accept: Callable[[Any], bool], what: str) -> Any:
        """Wait for a status from now on."""
        self.status.clear()
        return self.status.wait(accept, what=what)

    def wait_running(self, version: str) -> Any:
        """Wait until a version commands the robot."""
        return self.wait_status(
            lambda m: m.state == PolicyStatus.STATE_RUNNING and m.active_version == version, f"{version} running"
        )

    def swap(self, **fields: Any) -> Any:
        """Call swap_model."""
        return self.ros.call(SwapModel, "policy_node/swap_model", SwapModel.Request(**fields))

    def change_state(self, transition: int) -> bool:
        """Ask the node for a lifecycle transition; return whether it made it."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.ros.call(ChangeState, "policy_node/change_state", request).success)

    def resume(self) -> None:
        """Say that the robot may move."""
        assert self.ros.call(Trigger, "policy_node/resume").success

    def play_manager(self, name: str = "ota_manager") -> Any:
        """Return a publisher of its status."""
        if self._manager is None:
            self._manager = self.ros.advertise(ModelStatus, f"{name}/status", qos.LATCHED)
        return self._manager
