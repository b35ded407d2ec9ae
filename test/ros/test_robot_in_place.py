"""A robot with room for one policy is managed from end to end: updates and ways back are loaded in place, by real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.robot_rig import RobotRig
from vla_ota.msg import ModelStatus
from vla_ota.srv import Rollback

from vla_sim.dds import claim_domain

JERKY = {"amplitude": (0.02, 0.0), "frequency_hz": 12.0}
IN_PLACE = {"load_in_place": True, "load_timeout_s": 120.0}


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotRig]:
    """A robot that was empty and has installed 1.0.0. It never rests: updates come at once, and the hold brings it to rest."""
    manager = {"swap_at": "NOW"}
    with (
        claim_domain() as domain,
        RobotRig(domain, tmp_path_factory.mktemp("robot"), manager=manager, kept=True) as rig,
    ):
        rig.start_policy(**IN_PLACE)
        rig.start_manager()
        rig.install("1.0.0")
        yield rig


def test_an_update_and_an_operators_rollback_are_loaded_in_place(robot: RobotRig) -> None:
    base = robot.committed
    update_id = robot.install("1.1.0")
    report = robot.reports.wait(lambda m: (m.from_version, m.to_version) == (base, "1.1.0"))
    assert report.in_place and report.held_s > 0 and (report.cause, report.at) == ("UPDATE", "NOW")
    assert report.load_s > 0 and report.golden_s > 0 and report.shadow_chunks == 0
    robot.events.wait(lambda e: e.update_id == update_id and e.to_state == "COMMITTED", what="the last event")
    path = [e.to_state for e in robot.events.messages if e.update_id == update_id]
    assert path == ["CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL", "COMMITTED"]
    status = robot.wait_status(lambda m: m.active_version == "1.1.0", "a status")
    assert (status.previous_version, status.rollback_ready) == (base, ModelStatus.ROLLBACK_COLD)
    policy = robot.wait_policy(lambda m: m.active_version == "1.1.0", "a status of policy_node")
    assert policy.load_in_place and not policy.episode_arms and not policy.standby_version
    robot.check("1.1.0")

    reply = robot.ros.call(Rollback, "ota_manager/rollback")
    assert reply.success, reply.message
    assert (reply.from_version, reply.to_version, reply.warm) == ("1.1.0", base, False)
    report = robot.reports.wait(lambda m: m.cause == "ROLLBACK" and m.from_version == "1.1.0")
    assert report.in_place and report.to_version == base
    robot.wait_acting(base)
    robot.check(base)


def test_a_version_that_behaves_badly_is_rolled_back_and_blocked(robot: RobotRig) -> None:
    base = robot.committed
    robot.wait_scored(base, 20)
    robot.publish("1.2.0", **JERKY)
    ended = robot.wait_update(robot.offer("1.2.0"), "ROLLED_BACK")
    assert (ended.error_code, ended.committed_version, list(ended.blocked)) == ("SCORES_WORSE", base, ["1.2.0"])
    assert "cold" in ended.message
    robot.wait_acting(base)
    robot.check(base)


def test_a_version_that_cannot_be_loaded_fails_and_the_one_before_acts_again(robot: RobotRig) -> None:
    base = robot.committed
    robot.publish("1.3.0", golden_error=1.0)
    ended = robot.wait_update(robot.offer("1.3.0"), "FAILED")
    assert ended.error_code == "GOLDEN_MISMATCH" and list(ended.blocked) == ["1.2.0"]
    robot.wait_acting(base)
    robot.check(base, never=("1.3.0",))


def test_a_node_that_is_killed_in_the_middle_of_the_load_starts_from_current(robot: RobotRig) -> None:
    base = robot.committed
    robot.publish("1.4.0", load_sleep_s=5.0)
    update_id = robot.offer("1.4.0")
    robot.wait_policy(lambda m: m.hold_reason == "LOADING_IN_PLACE", "the load")
    assert robot.manager is not None and robot.policy is not None
    robot.manager.kill()  # so that only the robot decides
    robot.policy.kill()
    assert robot.current() == base
    robot.start_policy(**IN_PLACE)
    robot.wait_acting(base)
    robot.check(base, never=("1.4.0",))
    robot.start_manager()
    robot.prove(update_id)  # it is asked for again
    robot.wait_acting("1.4.0")
    robot.check("1.4.0")
