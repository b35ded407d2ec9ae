"""What an update waits for, what replaces or cancels it, and what the policy node refuses: the robot keeps its policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from action_msgs.msg import GoalStatus
from std_msgs.msg import Bool
from support.bundles import JOINTS, flip_last_byte
from support.robot_rig import Repeating, RobotRig
from vla_ota.action import InstallModel
from vla_ota.msg import PolicyStatus
from vla_ota.srv import Rollback

from vla_checkpoint import Channel
from vla_ros import qos
from vla_sim.checkpoint_server import Behaviour
from vla_sim.dds import claim_domain

SIZE = 1_000_000


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


def test_without_activate_a_version_is_installed_and_nothing_else_happens(robot: RobotRig) -> None:
    base = robot.committed
    robot.publish("1.1.0")
    robot.policy_status.clear()
    status = robot.wait_update(robot.offer("1.1.0", activate=False), "INSTALLED")
    assert "1.1.0" in status.versions and status.committed_version == base
    robot.wait_acting(base)
    assert not any(m.prepared_version == "1.1.0" for m in robot.policy_status.messages)
    requests = len(robot.server.requests)
    robot.prove(robot.offer("1.1.0"))
    assert not any(path.startswith("/blobs/") for path, _ in robot.server.requests[requests:])
    robot.wait_settled("1.1.0")
    robot.check("1.1.0")


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


def test_a_broken_urgent_update_costs_the_robot_no_trial(robot: RobotRig) -> None:
    robot.publish("2.3.0")
    robot.publish("2.4.0")
    flip_last_byte(robot.server.root / robot.blob("2.4.0").lstrip("/"))
    first = robot.offer("2.3.0")
    robot.wait_update(first, "TRIAL")
    robot.policy_status.clear()
    urgent = robot.offer("2.4.0", urgent=True)
    event = robot.events.wait(lambda m: m.update_id == urgent, what="the end of the urgent update")
    assert (event.to_state, event.error_code, event.version) == ("REJECTED", "BLOB_DIGEST_MISMATCH", "2.4.0")
    told = robot.wait_status(lambda m: m.error_code == "BLOB_DIGEST_MISMATCH", "the reason in the status")
    assert (told.state_name, told.update_id, told.trial_version) == ("TRIAL", first, "2.3.0")
    assert robot.wait_acting("2.3.0").on_trial
    assert {m.active_version for m in robot.policy_status.messages} == {"2.3.0"}
    robot.prove(first)
    robot.wait_settled("2.3.0")
    robot.check("2.3.0", never=("2.4.0",))


def goal(robot: RobotRig, version: str, **fields: Any) -> Any:
    request = InstallModel.Goal(manifest_url=robot.url(version), manifest_sha256=robot.digests[version], **fields)
    return robot.ros.send_goal(InstallModel, "ota_manager/install_model", request)


def test_install_model_can_be_cancelled_while_it_fetches_and_while_it_prepares(robot: RobotRig) -> None:
    base = robot.committed
    robot.publish("3.0.0", size=SIZE, load_sleep_s=20.0)
    robot.server.behave(robot.blob("3.0.0"), Behaviour(rate_bytes_s=SIZE / 4))
    fetching = goal(robot, "3.0.0")
    fetching.feedback.wait(lambda m: m.state == "FETCHING" and m.bytes_done > SIZE // 10)
    assert fetching.cancel() and fetching.status() == GoalStatus.STATUS_CANCELED
    assert fetching.result().state == "CANCELLED"
    robot.wait_acting(base)

    robot.server.be_good()
    preparing = goal(robot, "3.0.0")
    preparing.feedback.wait(lambda m: m.state == "PREPARING" and "LOADING" in m.message)
    assert preparing.cancel() and preparing.status() == GoalStatus.STATUS_CANCELED
    status = robot.wait_status(lambda m: m.state_name == "CANCELLED", "CANCELLED")
    assert "3.0.0" in status.versions and status.committed_version == base
    robot.wait_acting(base)
    robot.publish("3.1.0")
    done = goal(robot, "3.1.0", wait_for_commit=False)  # the policy node is free again
    assert done.result().success and done.result().state == "TRIAL"
    reply = robot.call(Rollback, "ota_manager/rollback", Rollback.Request(expected_from_version="3.1.0"))
    assert (reply.success, reply.to_version) == (True, base), reply
    status = robot.wait_status(lambda m: m.state_name == "ROLLED_BACK" and m.active_version == base, "ROLLED_BACK")
    assert (status.error_code, "3.1.0" in status.blocked) == ("OPERATOR_ROLLBACK", False)
    robot.check(base)


MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rate": ("4.0.0", {"rate_hz": 20.0}, "RATE_MISMATCH"),
    "channels": ("4.1.0", {"channels": JOINTS[::-1]}, "CHANNELS_MISMATCH"),
    "unit": ("4.2.0", {"channels": (JOINTS[0], Channel("j2", "m", "absolute"))}, "UNIT_MISMATCH"),
    "robot": ("4.3.0", {"robot_type": "another_arm"}, "ROBOT_TYPE_MISMATCH"),
    "horizon": ("4.4.0", {"horizon": 9, "execute": 8}, "HORIZON_TOO_SHORT"),
    "golden": ("4.5.0", {"golden_error": 0.5}, "GOLDEN_MISMATCH"),
}


@pytest.mark.parametrize("version, options, code", MISFITS.values(), ids=MISFITS.keys())
def test_a_bundle_that_does_not_fit_the_robot_is_rejected_with_the_policy_nodes_words(
    robot: RobotRig, version: str, options: dict[str, Any], code: str
) -> None:
    base = robot.committed
    robot.policy_status.clear()
    generation = robot.wait_acting(base).generation
    robot.publish(version, **options)
    status = robot.wait_update(robot.offer(version), "REJECTED")
    assert (status.error_code, status.committed_version) == (code, base)
    assert version in status.message or "golden" in status.message.lower() or "actions" in status.message
    assert robot.wait_acting(base).generation == generation
    robot.check(base, never=(version,))


def test_permission_gates_swaps_and_no_rollback_and_a_trial_stands_still_while_motion_is_disabled(
    ros_domain: int, tmp_path: Path
) -> None:
    parameters = {"require_permission": True, "permission_timeout_s": 2.0, "min_trial_chunks": 12}
    contract = {"motion_required": True, "auto_resume": False}
    with RobotRig(ros_domain, tmp_path, contract=contract, manager=parameters) as rig:
        rig.robot.motion = True
        rig.start_policy()
        rig.start_manager()
        rig.publish("1.0.0")
        first = rig.offer("1.0.0")
        waiting: Callable[[Any], bool] = lambda m: m.state_name == "INSTALLED" and "update_permitted" in m.message  # noqa: E731
        rig.status.wait(waiting, what="no permission yet")
        with Repeating(rig.ros.advertise(Bool, "update_permitted", qos.EVENTS), Bool(data=True)) as permission:
            rig.wait_update(first, "TRIAL")
            rig.wait_policy(lambda m: m.active_version == "1.0.0" and m.hold_latched, "the hold")
            assert not rig.robot.record
            assert rig.resume().success
            rig.wait_update(first, "COMMITTED")
            rig.wait_settled("1.0.0")

            rig.publish("1.1.0")
            second = rig.offer("1.1.0")
            rig.wait_update(second, "TRIAL")
            rig.robot.motion = False
            rig.wait_policy(lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED, "motion disabled")
            frozen = rig.wait_status(lambda m: m.state_name == "TRIAL", "the trial")
            for _ in range(2):  # commands that were sent before the status may be received after it
                rig.wait_status(lambda m: True, "a status")
            sent = len(rig.robot.record)
            for _ in range(8):  # longer than the chunks that lack would take
                still = rig.wait_status(lambda m: True, "a status")
            assert (still.state_name, still.trial_version) == ("TRIAL", "1.1.0")
            assert still.trial_progress == frozen.trial_progress < 1.0
            assert len(rig.robot.record) == sent, "commands while motion is disabled"
            rig.robot.motion = True
            rig.wait_policy(lambda m: m.hold_latched, "the hold after motion came back")
            assert rig.resume().success
            rig.wait_update(second, "COMMITTED")
            rig.wait_settled("1.1.0")

            permission.message = Bool(data=False)
            for _ in range(8):  # the offer must not overtake the withdrawal, which is repeated meanwhile
                rig.wait_status(lambda m: True, "a status")
            rig.publish("1.2.0")
            third = rig.offer("1.2.0")
            rig.status.wait(lambda m: m.update_id == third and waiting(m), what="permission withdrawn")
            rig.wait_acting("1.1.0")
            reply = rig.call(Rollback, "ota_manager/rollback", Rollback.Request(expected_from_version="1.1.0"))
            assert (reply.success, reply.to_version, reply.warm) == (True, "1.0.0", True), reply
            rig.wait_acting("1.0.0")
            cancelled = next(e for e in rig.events.messages if e.update_id == third and e.to_state == "CANCELLED")
            assert cancelled.error_code == "SUPERSEDED"
            rig.check("1.0.0", never=("1.2.0",))


def test_two_robots_in_one_domain_install_at_the_same_time_and_do_not_meet(ros_domain: int, tmp_path: Path) -> None:
    with (
        RobotRig(ros_domain, tmp_path / "left", namespace="/left") as left,
        RobotRig(ros_domain, tmp_path / "right", namespace="/right") as right,
    ):
        robots = {"1": left, "2": right}
        offers = {}
        for major, rig in robots.items():
            rig.start_policy()
            rig.start_manager()
            rig.publish(f"{major}.0.0", amplitude=(0.1 * int(major), 0.0))
            offers[major] = rig.offer(f"{major}.0.0")
        for major, rig in robots.items():
            rig.wait_update(offers[major], "COMMITTED")
            rig.wait_settled(f"{major}.0.0")
            rig.wait_acting(f"{major}.0.0")
        for major, rig in robots.items():
            seen = {m.committed_version for m in rig.status.messages} | {m.version for m in rig.scores.messages}
            assert seen <= {"", f"{major}.0.0"}
            assert [path.name for path in (rig.store / "models" / "pick_place").iterdir()] == [f"{major}.0.0"]
            reached = max(abs(j1) for _, j1, _ in rig.robot.record)
            assert reached <= 0.1 * int(major) + 1e-3, "commands of the other robot"
            rig.check(f"{major}.0.0")
