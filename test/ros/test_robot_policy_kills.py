"""Kills of the policy node and of its processes, on a robot without ``auto_resume``: it holds until a person says resume, and
what acts then is what was committed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kept import children
from support.robot_rig import RobotRig
from support.waits import wait_for
from vla_ota.msg import PolicyStatus

from vla_sim.dds import claim_domain


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotRig]:
    """A robot without auto_resume that has installed 1.0.0 and is at work; in the end both nodes end cleanly.

    Its policy node is killed in the trial of that first install: nothing is committed, so it is given the version again.
    """
    contract = {"auto_resume": False}
    folder = tmp_path_factory.mktemp("robot")
    with claim_domain() as domain, RobotRig(domain, folder, contract=contract, kept=True) as rig:
        rig.start_policy()
        rig.start_manager()
        rig.publish("1.0.0")
        update_id = rig.offer("1.0.0")
        rig.wait_update(update_id, "TRIAL")
        held = rig.wait_policy(lambda m: m.active_version == "1.0.0" and m.hold_latched, "a hold until resume")
        assert held.hold_reason == "STARTUP" and not rig.robot.record, (
            "a robot that was started moves when a person says so"
        )
        assert rig.policy is not None
        rig.policy.kill()
        assert rig.current() == "", "nothing is committed, so nothing is started from"
        rig.start_policy()
        rig.wait_policy(
            lambda m: m.boot_id != held.boot_id and m.active_version == "1.0.0" and m.on_trial, "the trial again"
        )
        assert not rig.robot.record
        assert rig.resume().success
        rig.wait_update(update_id, "COMMITTED")
        rig.wait_settled("1.0.0")
        yield rig
        stop(rig)


@pytest.fixture
def moving(robot: RobotRig, request: pytest.FixtureRequest) -> Iterator[RobotRig]:
    """The same robot at work; a node that the test before has ended is started again, and after a failure both are."""
    base, failed = robot.committed, request.session.testsfailed
    if not robot.policy_runs:
        robot.start_policy()
        start(robot, base)
    if not robot.manager_runs:
        robot.start_manager()
        robot.status.wait()
    robot.forget()
    robot.wait_acting(base)
    yield robot
    if request.session.testsfailed > failed:
        stop(robot)


def stop(robot: RobotRig) -> None:
    """End both nodes, as far as they run."""
    for process in (robot.manager, robot.policy):
        assert process is not None and (process.process.poll() is not None or process.stop() == 0)


def start(robot: RobotRig, version: str) -> None:
    """A fresh policy node has loaded what is committed and holds; resume moves the robot."""
    sent = len(robot.robot.record)
    held = robot.wait_policy(lambda m: m.active_version != "" and m.hold_latched, "a hold after the start")
    assert (held.active_version, held.hold_reason, held.on_trial) == (version, "STARTUP", False)
    assert len(robot.robot.record) == sent, "commands before resume"
    assert robot.resume().success
    robot.wait_acting(version)


def alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}") / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_policy(robot: RobotRig) -> None:
    """SIGKILL the node process; its control process and workers end by themselves."""
    assert robot.policy is not None
    own = children(robot.policy.process.pid)
    assert len(own) >= 2
    robot.policy.kill()
    wait_for(lambda: not any(alive(pid) for pid in own), "the end of the node's processes")
    robot.wait_commands()
    assert robot.current() == robot.committed


def test_a_respawned_policy_node_starts_from_current_without_the_manager_and_holds_until_resume(
    moving: RobotRig,
) -> None:
    base = moving.committed
    assert moving.manager is not None
    moving.manager.kill()
    kill_policy(moving)
    moving.start_policy()
    start(moving, base)
    moving.check(base)


def test_both_nodes_killed_at_once_in_a_trial_come_back_with_what_is_committed_and_the_trial_goes_on(
    moving: RobotRig,
) -> None:
    base = moving.committed
    moving.publish("5.0.0")
    update_id = moving.offer("5.0.0")
    moving.wait_update(update_id, "TRIAL")
    assert moving.manager is not None
    moving.manager.kill()
    kill_policy(moving)
    moving.start_policy()
    start(moving, base)
    moving.start_manager()
    moving.wait_update(update_id, "TRIAL")
    assert moving.state()["attempts"][moving.digests["5.0.0"]] == 1
    moving.wait_acting("5.0.0")
    moving.prove(update_id)
    moving.wait_settled("5.0.0")
    moving.check("5.0.0")


def test_a_version_that_breaks_a_hard_limit_is_rolled_back_at_once_and_the_robot_holds_until_resume(
    moving: RobotRig,
) -> None:
    base = moving.committed
    moving.publish("6.0.0", jump_at_call=6, jump=1.0)
    update_id = moving.offer("6.0.0")
    ended = moving.wait_update(update_id, "ROLLED_BACK")
    assert (ended.error_code, "6.0.0" in ended.blocked) == ("HARD_LIMIT", True)
    held = moving.wait_policy(lambda m: m.active_version == base, "the version before")
    assert (held.state, held.hold_latched, held.hold_reason) == (PolicyStatus.STATE_HOLDING, True, "LIMIT")

    def last(count: int) -> set[tuple[float, float]]:
        return {(j1, j2) for _, j1, j2 in moving.robot.record[-count:]}

    wait_for(lambda: len(last(10)) == 1, "the end of the braking")
    sent, place = len(moving.robot.record), last(1)
    wait_for(lambda: len(moving.robot.record) > sent + 40, "commands of the hold")
    assert last(40) == place, "the robot moves though nobody has said resume"
    assert moving.resume().success
    moving.wait_acting(base)
    moving.check(base)


def test_a_lost_worker_is_loaded_again_and_the_robot_holds_until_resume(moving: RobotRig) -> None:
    base = moving.committed
    worker = moving.worker_pid()
    before = moving.policy_status.last.generation
    os.kill(worker, signal.SIGKILL)
    lost = moving.wait_policy(lambda m: m.hold_latched, "a hold")
    assert lost.hold_reason == "WORKER_LOST"
    again = moving.wait_policy(lambda m: m.active_version == base and m.generation > before, "the same version again")
    assert again.hold_latched
    wait_for(lambda: moving.worker_pid() != worker, "another worker in the diagnostics")
    assert moving.resume().success
    moving.wait_acting(base)
    report = moving.reports.wait(lambda m: m.cause == "WORKER_LOST" and m.from_version == base)
    assert report.to_version == base
    moving.check(base)
