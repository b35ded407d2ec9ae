"""A whole robot changes what it runs, and undoes it by itself: real ota_manager, real policy_node, real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.robot_rig import RobotRig
from vla_ota.srv import Rollback, UnblockModel

from vla_sim.dds import claim_domain

JERKY = {"amplitude": (0.02, 0.0), "frequency_hz": 12.0}


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotRig]:
    """A robot that was empty and has installed 1.0.0."""
    with claim_domain() as domain, RobotRig(domain, tmp_path_factory.mktemp("robot")) as rig:
        rig.start_policy()
        rig.start_manager()
        nothing = rig.ros.call(Rollback, "ota_manager/rollback")
        assert (nothing.success, nothing.error_code, nothing.to_version) == (False, "NO_PREVIOUS", "")
        rig.wait_policy(lambda m: m.hold_reason == "NO_POLICY", "a robot without a policy")
        assert not rig.robot.record and rig.current() == ""
        rig.install("1.0.0")
        yield rig


def test_a_first_install_is_committed_and_moves_the_robot(robot: RobotRig) -> None:
    robot.wait_acting("1.0.0")
    status = robot.wait_status(lambda m: m.active_version == "1.0.0", "a status")
    assert (status.state_name, status.committed_version, status.previous_version) == ("COMMITTED", "1.0.0", "")
    robot.check("1.0.0")


def test_an_update_and_an_operators_rollback_cost_no_tick_and_the_way_back_no_byte(robot: RobotRig) -> None:
    base = robot.committed
    update_id = robot.install("1.1.0")
    report = robot.reports.wait(lambda m: (m.from_version, m.to_version) == (base, "1.1.0"))
    assert (report.cause, report.warm, report.starved_ticks) == ("UPDATE", False, 0)
    assert report.load_s > 0 and report.golden_s > 0 and report.seam_jump < 0.3
    robot.events.wait(lambda e: e.update_id == update_id and e.to_state == "COMMITTED", what="the last event")
    path = [e.to_state for e in robot.events.messages if e.update_id == update_id]
    assert path == ["CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL", "COMMITTED"]
    robot.check("1.1.0")

    requests = len(robot.server.requests)
    reply = robot.ros.call(Rollback, "ota_manager/rollback")
    assert reply.success, reply.message
    assert (reply.from_version, reply.to_version, reply.warm) == ("1.1.0", base, True)
    assert robot.current() == base, "`current` has moved before the operator is told"
    report = robot.reports.wait(lambda m: m.cause == "ROLLBACK" and m.from_version == "1.1.0")
    assert (report.to_version, report.warm, report.load_s, report.starved_ticks) == (base, True, 0.0, 0)
    robot.wait_acting(base)
    status = robot.wait_status(lambda m: m.active_version == base, "the rollback in the status")
    assert (status.state_name, status.committed_version, list(status.blocked)) == ("ROLLED_BACK", base, [])
    assert len(robot.server.requests) == requests
    robot.check(base)


def test_a_jerky_version_is_rolled_back_warm_and_blocked_until_a_person_unblocks_it(robot: RobotRig) -> None:
    base = robot.committed
    robot.wait_scored(base, 20)
    robot.publish("1.2.0", **JERKY)
    update_id = robot.offer("1.2.0")
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert (ended.error_code, ended.committed_version) == ("SCORES_WORSE", base)
    assert "reversal" in ended.message and "warm" in ended.message
    report = robot.reports.wait(lambda m: m.from_version == "1.2.0")
    assert (report.to_version, report.cause, report.warm, report.load_s) == (base, "ROLLBACK", True, 0.0)
    robot.wait_acting(base)
    robot.check(base)

    robot.policy_status.clear()
    robot.robot.record.clear()
    again = robot.wait_update(robot.offer("1.2.0"), "REJECTED")
    assert again.error_code == "VERSION_BLOCKED" and list(again.blocked) == ["1.2.0"]
    refused = robot.ros.call(Rollback, "ota_manager/rollback", Rollback.Request(version="1.2.0"))
    assert (refused.success, refused.error_code) == (False, "VERSION_BLOCKED")
    robot.wait_acting(base)
    robot.check(base, never=("1.2.0",))

    assert robot.ros.call(UnblockModel, "ota_manager/unblock_model", UnblockModel.Request(version="1.2.0")).success
    third = robot.offer("1.2.0")
    robot.wait_update(third, "TRIAL")
    request = Rollback.Request(expected_from_version="1.2.0")
    reply = robot.ros.call(Rollback, "ota_manager/rollback", request)  # the judge may be faster
    assert reply.success or reply.error_code == "EXPECTATION_FAILED", reply
    robot.wait_update(third, "ROLLED_BACK")
    robot.wait_acting(base)
    robot.check(base)


def test_a_version_that_fails_its_episodes_is_rolled_back_on_that_evidence(robot: RobotRig) -> None:
    base = robot.committed
    for _ in range(14):
        assert robot.episode(True).version == base
    robot.publish("1.3.0")
    update_id = robot.offer("1.3.0")
    robot.wait_update(update_id, "TRIAL")
    ended = robot.episodes_until(False, "ROLLED_BACK", update_id)
    assert (ended.error_code, ended.committed_version) == ("SUCCESS_WORSE", base)
    assert "1.3.0" in robot.wait_status(lambda m: m.active_version == base, "the base again").blocked
    robot.wait_acting(base)
    robot.check(base)


FAULTS = {
    "a broken step limit": ("2.1.0", {"jump_at_call": 6, "jump": 1.0}, "HARD_LIMIT", "LIMIT: j"),
    "a worker that crashes": ("2.3.0", {"crash_at_call": 6}, "WORKER_LOST", "WORKER_DIED: "),
}


@pytest.mark.parametrize("version, behaviour, code, named", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_a_trial_stops_the_robot_at_once_and_the_version_before_moves_it_again(
    robot: RobotRig, version: str, behaviour: dict[str, object], code: str, named: str
) -> None:
    base = robot.committed
    robot.publish(version, **behaviour)
    robot.policy_status.clear()
    update_id = robot.offer(version)
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert ended.error_code == code and f"policy_node says {named}" in ended.message, ended.message
    assert (ended.committed_version, version in ended.blocked) == (base, True)
    report = robot.reports.wait(lambda m: m.from_version == version)
    assert (report.to_version, report.warm, report.cause in ("ROLLBACK", "WORKER_LOST")) == (base, True, True)
    robot.wait_acting(base)
    held = [m for m in robot.policy_status.messages if m.holding]
    assert all(m.hold_reason for m in held)
    again = robot.wait_update(robot.offer(version), "REJECTED")
    assert again.error_code == "VERSION_BLOCKED" and f"policy_node says {named}" in again.message
    robot.check(base)


def test_a_version_that_fails_on_its_first_live_chunk_never_acts_and_is_not_blocked(robot: RobotRig) -> None:
    base, version = robot.committed, "3.1.0"
    robot.publish(version, jump_from_call=0, jump=1.0)
    robot.wait_acting(base)
    robot.policy_status.clear()
    robot.robot.record.clear()
    update_id = robot.offer(version)
    ended = robot.wait_update(update_id, "FAILED")
    assert (ended.error_code, version in ended.blocked) == ("SEAM_JUMP", False), ended.message
    robot.wait_acting(base)
    assert not any(m.holding for m in robot.policy_status.messages)
    robot.events.wait(lambda e: e.update_id == update_id and e.to_state == "FAILED", what="the last event")
    path = [e.to_state for e in robot.events.messages if e.update_id == update_id]
    assert path.count("PREPARING") == 1 and "TRIAL" not in path
    robot.check(base, never=(version,))
