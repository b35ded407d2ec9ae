"""A manager that is killed, wherever it is, costs the robot nothing: it goes on moving, and the next one ends the update."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.robot_rig import RobotRig
from support.ros import wait_for
from vla_ota.srv import Rollback

from vla_sim.checkpoint_server import Behaviour
from vla_sim.dds import claim_domain

SIZE = 2_000_000


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotRig]:
    """A robot that runs 1.0.0."""
    with claim_domain() as domain, RobotRig(domain, tmp_path_factory.mktemp("robot")) as rig:
        rig.start_policy()
        rig.start_manager()
        rig.install("1.0.0")
        assert rig.manager is not None and rig.manager.stop() == 0
        yield rig


@pytest.fixture(autouse=True)
def _no_manager_left(robot: RobotRig) -> Iterator[None]:
    """Every test begins and ends without a manager, on a robot that moves."""
    robot.wait_acting(robot.committed)
    yield
    assert robot.manager is not None and robot.manager.stop() == 0


def test_an_update_whose_manager_is_killed_in_every_state_is_committed_as_if_nothing_had_been(robot: RobotRig) -> None:
    base = robot.committed
    robot.publish("1.1.0", size=SIZE)
    robot.server.behave(robot.blob("1.1.0"), Behaviour(rate_bytes_s=SIZE))
    manager = robot.start_manager()
    update_id = robot.offer("1.1.0")
    robot.status.wait(lambda m: m.state_name == "FETCHING" and m.bytes_done > SIZE // 4)
    manager.kill()
    assert robot.saved == "FETCHING" and robot.current() == base
    kept = (robot.store / "partial" / robot.blob("1.1.0").rpartition("/")[2]).stat().st_size
    robot.server.be_good()

    for point in ("entered.VERIFYING", "entered.PREPARING", "entered.SWAPPING"):
        robot.until_crash(point)
        assert robot.saved == point.removeprefix("entered.")
        assert robot.current() == base
        assert robot.policy_status.last.active_version == base, point
    ranges = [headers.get("range", "") for path, headers in robot.server.requests if path == robot.blob("1.1.0")]
    assert ranges == ["", f"bytes={kept}-"], "what had arrived is not fetched again"
    requests = len(robot.server.requests)

    robot.until_crash("port.after_swap")
    acting = robot.wait_acting("1.1.0")
    assert acting.on_trial and robot.current() == base, "it acts on a lease, and is not what the robot would start with"
    manager = robot.start_manager()
    robot.wait_update(update_id, "TRIAL")
    manager.kill()
    manager = robot.start_manager()
    trial = robot.wait_update(update_id, "TRIAL")
    assert (trial.trial_version, trial.committed_version, trial.previous_version) == ("1.1.0", base, "")
    again = robot.wait_policy(lambda m: m.on_trial, "the trial")
    assert (again.boot_id, again.generation) == (acting.boot_id, acting.generation), "entered again without a swap"
    attempts = robot.state()["attempts"][robot.digests["1.1.0"]]
    assert attempts == 3, "killed in SWAPPING, after the swap, and in TRIAL"

    manager.kill()
    robot.start_manager(crash_at="entered.COMMITTED")
    robot.wait_update(update_id, "TRIAL")
    robot.episodes_until_killed()
    assert robot.current() == "1.1.0"
    robot.start_manager()
    status = robot.wait_update(update_id, "COMMITTED")
    assert (status.committed_version, status.previous_version, list(status.blocked)) == ("1.1.0", base, [])
    robot.wait_settled("1.1.0")
    assert len(robot.server.requests) == requests
    after = robot.wait_acting("1.1.0")
    assert (after.boot_id, after.generation) == (acting.boot_id, acting.generation)
    robot.check("1.1.0")


def test_a_trial_whose_manager_stays_dead_ends_where_it_began_and_is_an_attempt(robot: RobotRig) -> None:
    base = robot.committed
    manager = robot.start_manager(trial_lease_s=3.0, max_trial_attempts=2)
    robot.publish("2.0.0")
    update_id = robot.offer("2.0.0")
    robot.wait_update(update_id, "TRIAL")
    robot.wait_acting("2.0.0")
    manager.kill()
    report = robot.reports.wait(lambda m: m.cause == "LEASE_EXPIRED")
    assert (report.from_version, report.to_version, report.warm) == ("2.0.0", base, True)
    status = robot.wait_acting(base)
    assert status.error_code == "LEASE_EXPIRED" and not status.on_trial
    robot.check(base)

    manager = robot.start_manager(trial_lease_s=3.0, max_trial_attempts=2)
    robot.wait_update(update_id, "TRIAL")
    robot.wait_acting("2.0.0")
    manager.kill()
    robot.reports.clear()
    robot.reports.wait(lambda m: m.cause == "LEASE_EXPIRED" and m.from_version == "2.0.0")
    robot.start_manager(trial_lease_s=3.0, max_trial_attempts=2)
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert (ended.error_code, list(ended.blocked), ended.committed_version) == ("TRIAL_ATTEMPTS", ["2.0.0"], base)
    robot.wait_acting(base)
    robot.check(base)


@pytest.mark.parametrize(
    "point, version",
    [("entered.ROLLING_BACK", "3.0.0"), ("port.before_swap:2", "3.1.0"), ("port.after_swap:2", "3.2.0")],
)
def test_a_verdict_is_carried_out_by_the_next_manager(robot: RobotRig, point: str, version: str) -> None:
    base = robot.committed
    manager = robot.start_manager(crash_at=point)
    robot.publish(version, jump_at_call=6, jump=1.0)
    update_id = robot.offer(version)
    assert manager.wait() == -9
    assert robot.saved == "ROLLING_BACK" and robot.current() == base
    assert robot.state()["trial"]["code"] == "HARD_LIMIT"
    robot.start_manager()
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert ended.error_code == "HARD_LIMIT" and version in ended.blocked
    robot.wait_acting(base)
    robot.check(base)


def test_an_operators_rollback_that_a_kill_interrupts_is_carried_out(robot: RobotRig) -> None:
    base = robot.committed
    manager = robot.start_manager()
    robot.install("4.0.0")
    assert manager.stop() == 0
    robot.start_manager(crash_at="entered.ROLLING_BACK")
    robot.ask_until_killed(Rollback, "ota_manager/rollback")
    assert robot.current() == "4.0.0" and robot.policy_status.last.active_version == "4.0.0"
    robot.start_manager()
    status = robot.wait_status(lambda m: m.state_name == "ROLLED_BACK", "the rollback")
    assert (status.committed_version, list(status.pinned)) == (base, [])
    robot.wait_acting(base)
    wait_for(lambda: robot.current() == base, "`current` at the base")
    robot.check(base)
