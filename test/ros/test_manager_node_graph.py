"""The manager in a ROS graph: QoS that matches others, namespaces that keep robots apart, remaps, a gate that fails closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, Float64
from support.manager_rig import ManagerRig
from support.ros import NodeProcess, RosHarness
from support.ros_policy import StandInPolicyNode
from support.waits import wait_for
from vla_ota.msg import AnomalyScore, ModelStatus, ModelUpdate
from vla_ota.srv import ListModels

from vla_ros import qos
from vla_sim.dds import claim_domain

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ManagerRig, ManagerRig]]:
    """Two robots of one graph without a version yet: /left hears two more topics of scores; /right needs permission, and its
    simulated time stands still."""
    with claim_domain() as domain:
        left = ManagerRig(
            domain,
            tmp_path_factory.mktemp("left"),
            namespace="/left",
            remaps=("anomaly_score:=monitor/score",),
            parameters={
                "score_topics": ["force_torque", "collision:collision_force"],
                "first_install_chunks": 1000,
            },
        )
        right = ManagerRig(
            domain,
            tmp_path_factory.mktemp("right"),
            namespace="/right",
            parameters={"require_permission": True, "permission_timeout_s": 0.6, "use_sim_time": True},
        )
        with left, right:
            left.start(scores=False)
            right.start()
            yield left, right


def test_two_robots_in_two_namespaces_do_not_meet(robots: tuple[ManagerRig, ManagerRig]) -> None:
    left, right = robots
    digest = right.publish("0.9.0")
    update_id = right.offer("0.9.0", digest, activate=False)
    right.wait_event(update_id, "INSTALLED")
    assert not left.events.messages and left.status.last.state_name == "IDLE"
    assert [m.version for m in right.ros.call(ListModels, "/right/ota_manager/list_models").models] == ["0.9.0"]
    assert not left.ros.call(ListModels, "/left/ota_manager/list_models").models


def test_swaps_wait_for_permission_and_a_stale_permission_is_none(robots: tuple[ManagerRig, ManagerRig]) -> None:
    _, right = robots
    gate = right.ros.advertise(Bool, "/right/update_permitted", RELIABLE)
    digest = right.publish("1.0.0")

    gate.publish(Bool(data=True))  # fresh now, stale before the version is ready
    right.policy.prepare_s = 1.5
    update_id = right.offer("1.0.0", digest)
    right.status.wait(
        lambda m: m.update_id == update_id and "update_permitted" in m.message, what="the wait for permission"
    )
    gate.publish(Bool(data=False))
    waiting = right.ros.subscribe(ModelStatus, "/right/ota_manager/status", qos.LATCHED_EACH)
    wait_for(lambda: len(waiting.messages) > 3, "some more statuses")
    assert not right.policy.swaps and all(m.state_name != "TRIAL" for m in waiting.messages)

    def permit() -> bool:
        gate.publish(Bool(data=True))
        return bool(right.policy.swaps)

    wait_for(permit, "the swap")
    right.wait_event(update_id, "TRIAL")


def test_scores_of_every_reliability_and_type_count_as_evidence(robots: tuple[ManagerRig, ManagerRig]) -> None:
    """Each publisher in turn says for the version on trial that it broke a hard limit; the rollback shows that it was heard."""
    left, _ = robots
    hard = AnomalyScore(source="hard_limit", score=1.0)
    publishers = {
        "remapped, reliable": (left.ros.advertise(AnomalyScore, "/left/monitor/score", RELIABLE), hard),
        "remapped, best effort": (left.ros.advertise(AnomalyScore, "/left/monitor/score", BEST_EFFORT), hard),
        "further topic": (left.ros.advertise(AnomalyScore, "/left/force_torque", BEST_EFFORT), hard),
    }
    for number, (name, (publisher, message)) in enumerate(publishers.items()):
        version = f"1.{number}.0"
        update_id = left.offer(version, left.publish(version))
        left.wait_event(update_id, "TRIAL")

        def broken(publisher: object = publisher, message: AnomalyScore = message, update_id: str = update_id) -> bool:
            message.header.stamp = left.ros.now()
            message.version, message.generation = left.policy.active[1], left.policy.generation
            publisher.publish(message)  # type: ignore[attr-defined]
            return any(
                e.update_id == update_id and e.to_state in ("FAILED", "ROLLED_BACK") for e in left.events.messages
            )

        wait_for(broken, f"the effect of a hard limit: {name}")
        assert f"1.{number}.0" in left.status.wait(lambda m, v=version: v in m.blocked).blocked


def test_a_number_counts_as_the_source_that_the_parameter_names(robots: tuple[ManagerRig, ManagerRig]) -> None:
    left, _ = robots
    update_id = left.offer("1.5.0", left.publish("1.5.0"))
    left.wait_event(update_id, "TRIAL")
    numbers = left.ros.advertise(Float64, "/left/collision", BEST_EFFORT)

    diagnostics = left.ros.subscribe(DiagnosticArray, "/diagnostics")

    def told() -> bool:
        numbers.publish(Float64(data=float("nan")))
        return any("collision_force is nan" in s.message for m in diagnostics.messages for s in m.status)

    wait_for(told, "SCORE_INVALID in the diagnostics")
    before = len(left.status.messages)
    wait_for(lambda: len(left.status.messages) > before + 3, "some more statuses")
    status = left.status.last
    assert (status.state_name, status.trial_version) == ("TRIAL", "1.5.0")  # a monitor that fails rejects nothing

    def counted() -> bool:
        numbers.publish(Float64(data=0.1))
        return bool(left.status.last.trial_progress > 0)

    wait_for(counted, "chunks that are counted by collision_force")


def test_a_score_topic_of_another_type_and_a_publisher_that_never_matches_are_reported(
    robots: tuple[ManagerRig, ManagerRig],
) -> None:
    left, _ = robots
    diagnostics = left.ros.subscribe(DiagnosticArray, "/diagnostics")

    def finding(task: str, words: str) -> bool:
        name = f"left/ota_manager: {task}"
        return any(s.name == name and words in s.message for m in diagnostics.messages for s in m.status)

    with RosHarness(left.domain, "stranger") as stranger:
        stranger.advertise(Bool, "/left/force_torque", readers=0)
        stranger.advertise(ModelUpdate, "/left/model_update", BEST_EFFORT, readers=0)
        wait_for(lambda: finding("scores", "std_msgs/msg/Bool"), "the wrong type in the diagnostics")
        wait_for(lambda: finding("qos", "model_update"), "the incompatible QoS in the diagnostics")


def test_the_policy_nodes_name_is_a_parameter(ros_domain: int, tmp_path: Path) -> None:
    parameters = {"store_dir": str(tmp_path / "store"), "policy_node": "/arms/runner", "status_period_s": 0.2}
    with (
        StandInPolicyNode(ros_domain, "/arms", "runner") as policy,
        RosHarness(ros_domain) as ros,
        NodeProcess(
            "vla_ota_manager.ros.manager_node", ros_domain, tmp_path, parameters=parameters, remaps=("__node:=updates",)
        ) as node,
    ):
        policy.active, policy.generation = ("ab" * 32, "3.2.1"), 7
        status = ros.subscribe(ModelStatus, "updates/status", qos.LATCHED_EACH)
        status.wait(lambda m: m.active_version == "3.2.1", what="the version that the policy node runs")
        assert node.stop() == 0
