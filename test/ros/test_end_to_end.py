"""The real robot software in one piece: simulated arm, trained policy, policy node and manager, each a process of its own, with
the Fast DDS profile as it is shipped.

A first install and an update prove themselves and are committed while the arm works; a version that wants something else in
shadow is rejected; one that behaves badly is undone by the robot without a download; an acting worker that is killed is replaced.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from support import dds_profile
from support.ros import NodeProcess, RosHarness
from support.waits import wait_for
from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_checkpoint import load_manifest
from vla_ros import qos
from vla_sim.checkpoint_server import CheckpointServer, publish_bundle
from vla_sim.dds import claim_domain
from vla_sim.recipes import VARIANTS, make_all

CONTRACT = Path(__file__).resolve().parents[2] / "config" / "sim_arm.contract.yaml"
VERSIONS = ("1.1.0", "1.1.6", "1.2.0")
AS_SHIPPED = {dds_profile.VARIABLE: str(dds_profile.SHIPPED)}
PATIENCE_S = 100.0
VERDICTS = ("SCORES_WORSE", "SUCCESS_WORSE", "HARD_LIMIT")
MANAGER: dict[str, Any] = {
    "min_free_bytes": 0,
    "status_period_s": 0.2,
    "policy_silent_s": 10.0,
    "heartbeat_timeout_s": 30.0,
    "trial_lease_s": 30.0,
    "first_install_chunks": 16,
    "min_trial_chunks": 16,
    "min_trial_time_s": 0.0,
    "block_chunks": 1,  # chunks of an episode are alike: a wide tolerance and a small α make up for that
    "tolerated_exceedance": 0.4,
    "alpha": 0.01,
}


class Robot:
    """Every process of one robot, a checkpoint server, and somebody who listens."""

    def __init__(self, domain: int, folder: Path, stack: ExitStack) -> None:
        (folder / "www").mkdir()
        self.server = stack.enter_context(CheckpointServer(folder / "www"))
        self.ros = stack.enter_context(RosHarness(domain))
        self.events = self.ros.subscribe(ModelEvent, "ota_manager/events")
        self.model = self.ros.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED_EACH)
        self.policy = self.ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        self.reports = self.ros.subscribe(SwapReport, "policy_node/swap_report", qos.LATCHED_EACH)
        self.outcomes = self.ros.subscribe(EpisodeOutcome, "episode_outcome")
        self.diagnostics = self.ros.subscribe(DiagnosticArray, "/diagnostics")
        store, logs = folder / "store", folder / "logs"
        nodes: dict[str, dict[str, Any]] = {
            "vla_sim.ros.sim_robot": {"seed": 7, "joint_rate_hz": 50.0, "camera_rate_hz": 20.0},
            "vla_policy_node.ros.policy_node": {
                "contract": str(CONTRACT), "store_dir": str(store), "status_period_s": 0.2, "reversal_deadband": 0.05,
                "shadow_chunks": 8,
            },
            "vla_ota_manager.ros.manager_node": {
                **MANAGER, "store_dir": str(store), "allowed_sources": [self.server.base], "robot_type": "sim_arm",
            },
        }  # fmt: skip
        for module, parameters in nodes.items():
            stack.enter_context(NodeProcess(module, domain, logs, parameters=parameters, environment=AS_SHIPPED))
        bundles = make_all(folder / "versions", variants=[v for v in VARIANTS if v.version in VERSIONS])
        self._paths = {version: publish_bundle(folder / "www", bundle) for version, bundle in bundles.items()}
        self._digests = {version: load_manifest(bundle).digest for version, bundle in bundles.items()}
        self._offers = self.ros.advertise(ModelUpdate, "model_update", qos.OFFERS)
        self.policy.wait(lambda m: m.control_rate_hz > 0, PATIENCE_S, "the policy node")
        self.ros.known_to("ota_manager")
        self.ros.known_to("policy_node")

    def update(self, version: str, *, urgent: bool = False) -> ModelEvent:
        """Offer a version and wait for the end of its update."""
        update = ModelUpdate(
            update_id=f"to-{version}",
            name="reach_block",
            version=version,
            manifest_url=self.server.url(self._paths[version]),
            manifest_sha256=self._digests[version],
            urgent=urgent,
        )
        self._offers.publish(update)
        ends = ("COMMITTED", "REJECTED", "FAILED", "ROLLED_BACK")
        return self.events.wait(
            lambda m: m.update_id == update.update_id and m.to_state in ends, PATIENCE_S, f"the end of {version}"
        )

    def states(self, version: str) -> list[str]:
        """Return the states that the update to a version has gone through."""
        return [m.to_state for m in self.events.messages if m.update_id == f"to-{version}"]

    def wait_success(self, version: str) -> None:
        """Wait until an episode of a version succeeds, from now on."""
        self.outcomes.clear()
        self.outcomes.wait(lambda m: m.success and m.version == version, PATIENCE_S, f"a success of {version}")

    def wait_running(self, version: str) -> None:
        self.policy.clear()
        self.policy.wait(
            lambda m: m.state == PolicyStatus.STATE_RUNNING and m.active_version == version,
            PATIENCE_S,
            f"{version} acting",
        )

    def worker_pid(self) -> int:
        """The acting worker, from the policy node's diagnostics."""
        self.diagnostics.clear()

        def values(message: DiagnosticArray) -> dict[str, str]:
            return {v.key: v.value for s in message.status if s.name == "policy_node: policy" for v in s.values}

        return int(values(self.diagnostics.wait(lambda m: values(m).get("worker pid"), PATIENCE_S))["worker pid"])


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    with claim_domain() as domain, ExitStack() as stack:
        yield Robot(domain, tmp_path, stack)


@pytest.mark.timeout(400)
def test_an_arm_is_given_policies_in_motion_undoes_a_bad_one_and_survives_the_loss_of_a_worker(robot: Robot) -> None:
    first = robot.update("1.0.0")
    assert (first.to_state, first.error_code) == ("COMMITTED", ""), first.message
    robot.wait_success("1.0.0")

    better = robot.update("1.1.0")
    assert (better.to_state, better.error_code) == ("COMMITTED", ""), better.message
    report = robot.reports.wait(lambda m: m.to_version == "1.1.0", PATIENCE_S)
    assert (report.from_version, report.cause, report.warm) == ("1.0.0", "UPDATE", False)
    assert report.load_s > 0 and report.swap_latency_s > 0
    assert "SHADOW" in robot.states("1.1.0") and (report.shadow_chunks, report.shadow_compared) == (8, 8)
    assert report.shadow_divergence < 1.0 and report.shadow_s > 0
    status = robot.model.wait(lambda m: m.committed_version == "1.1.0", PATIENCE_S)
    assert status.previous_version == "1.0.0"

    other = robot.update("1.1.6")
    refusals = [("REJECTED", "SHADOW_DIVERGED"), ("REJECTED", "SHADOW_LIMIT")]
    assert (other.to_state, other.error_code) in refusals, robot.reports.messages[-1]
    assert robot.states("1.1.6")[-2:] == ["SHADOW", "REJECTED"]
    robot.wait_running("1.1.0")

    bad = robot.update("1.2.0", urgent=True)
    assert "SHADOW" not in robot.states("1.2.0")
    trial = next(m for m in robot.events.messages if m.update_id == bad.update_id and m.to_state == "TRIAL")
    assert (bad.to_state, bad.error_code in VERDICTS) == ("ROLLED_BACK", True), f"{bad.error_code} {bad.message}"
    back = robot.reports.wait(lambda m: m.from_version == "1.2.0", PATIENCE_S)
    assert (back.to_version, back.cause, back.warm, back.load_s) == ("1.1.0", "ROLLBACK", True, 0.0)
    requests = [path for path, _ in robot.server.requests]
    assert len(requests) == len(set(requests)), (
        f"something was fetched twice, perhaps after {trial.to_state}: {requests}"
    )
    status = robot.model.wait(lambda m: "1.2.0" in m.blocked, PATIENCE_S)
    assert status.committed_version == "1.1.0"
    robot.wait_running("1.1.0")
    robot.wait_success("1.1.0")

    pid = robot.worker_pid()
    assert "vla_policy_node.worker" in Path(f"/proc/{pid}/cmdline").read_text()
    robot.policy.clear()
    os.kill(pid, signal.SIGKILL)
    robot.policy.wait(lambda m: m.holding and m.hold_reason == "WORKER_LOST", PATIENCE_S, "a hold")
    robot.wait_running("1.1.0")
    wait_for(lambda: robot.worker_pid() != pid, "another worker", PATIENCE_S)
    robot.wait_success("1.1.0")
