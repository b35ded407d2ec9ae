"""What an update waits for, what replaces or cancels it, and what the policy node refuses: the robot keeps its policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.robot_rig import RobotRig
from vla_ota.msg import PolicyStatus

from vla_sim.dds import claim_domain


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotRig]:
    """A robot that got its first update before it had a policy node."""
    with claim_domain() as domain, RobotRig(domain, tmp_path_factory.mktemp("robot")) as rig:
        rig.start_manager()
        rig.publish("1.0.0")
        update_id = rig.offer("1.0.0")
        waiting = rig.status.wait(lambda m: m.state_name == "INSTALLED" and "policy_node" in m.message, what="waiting")
        assert (waiting.update_id, waiting.committed_version, rig.current()) == (update_id, "", "")
        rig.start_policy()
        rig.wait_update(update_id, "COMMITTED")
        rig.wait_settled("1.0.0")
        yield rig


def test_an_update_that_came_before_the_policy_node_goes_on_when_it_appears(robot: RobotRig) -> None:
    robot.wait_acting(robot.committed)
    robot.check(robot.committed)


def test_an_update_in_a_trial_waits_and_an_urgent_one_replaces_the_trial(robot: RobotRig) -> None:
    base = robot.committed
    for version in ("2.0.0", "2.1.0", "2.2.0"):
        robot.publish(version)
    first = robot.offer("2.0.0")
    robot.wait_update(first, "TRIAL")
    patient = robot.offer("2.1.0")
    robot.wait_status(lambda m: m.update_id == first and "2.1.0 waits" in m.message, "the patient update waiting")
    assert robot.wait_acting("2.0.0").on_trial
    urgent = robot.offer("2.2.0", urgent=True)
    replaced = robot.wait_update(first, "ROLLED_BACK")
    assert (replaced.error_code, "2.0.0" in replaced.blocked) == ("SUPERSEDED", False)
    robot.wait_update(urgent, "TRIAL")
    robot.wait_acting("2.2.0")
    assert robot.current() == base
    robot.prove(urgent)
    robot.prove(patient)
    robot.wait_settled("2.1.0")
    robot.check("2.1.0")


def test_a_bundle_that_does_not_fit_the_robot_is_rejected_with_the_policy_nodes_words(robot: RobotRig) -> None:
    base = robot.committed
    robot.policy_status.clear()
    generation = robot.wait_acting(base).generation
    robot.publish("4.0.0", golden_error=0.5)
    status = robot.wait_update(robot.offer("4.0.0"), "REJECTED")
    assert (status.error_code, status.committed_version) == ("GOLDEN_MISMATCH", base)
    assert "golden" in status.message.lower()
    assert robot.wait_acting(base).generation == generation
    robot.check(base, never=("4.0.0",))


def test_a_trial_stands_still_while_motion_is_disabled(ros_domain: int, tmp_path: Path) -> None:
    contract = {"motion_required": True, "auto_resume": False}
    manager = {"first_install_chunks": 40}
    with RobotRig(ros_domain, tmp_path, contract=contract, manager=manager) as rig:
        rig.robot.motion = True
        rig.start_policy()
        rig.start_manager()
        rig.publish("1.0.0")
        first = rig.offer("1.0.0")
        rig.wait_update(first, "TRIAL")
        rig.wait_policy(lambda m: m.active_version == "1.0.0" and m.hold_latched, "the hold")
        assert not rig.robot.record
        assert rig.resume().success
        rig.wait_policy(lambda m: m.state == PolicyStatus.STATE_RUNNING, "motion")
        rig.robot.motion = False
        rig.wait_policy(lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED, "motion disabled")
        sent = rig.wait_commands()
        for _ in range(2):  # scores that were sent before
            frozen = rig.wait_status(lambda m: m.state_name == "TRIAL", "the trial")
        for _ in range(8):  # several chunks would have come
            still = rig.wait_status(lambda m: True, "a status")
        assert (still.state_name, still.trial_version) == ("TRIAL", "1.0.0")
        assert still.trial_progress == frozen.trial_progress < 1.0
        assert len(rig.robot.record) == sent, "commands while motion is disabled"
        rig.robot.motion = True
        rig.wait_policy(lambda m: m.hold_latched, "the hold after motion came back")
        assert rig.resume().success
        rig.wait_update(first, "COMMITTED")
        rig.wait_settled("1.0.0")
        rig.check("1.0.0")
