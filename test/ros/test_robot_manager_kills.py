"""A manager that is killed costs the robot nothing: it goes on moving, and the next one ends the update.

Every other point at which it can die is killed without ROS, in ``test/vla_ota_manager/test_engine_kills.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.robot_rig import RobotRig

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


def test_an_update_whose_manager_is_killed_on_the_way_is_committed_as_if_nothing_had_been(robot: RobotRig) -> None:
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

    robot.until_crash("port.after_swap")
    ranges = [headers.get("range", "") for path, headers in robot.server.requests if path == robot.blob("1.1.0")]
    assert ranges == ["", f"bytes={kept}-"], "what had arrived is not fetched again"
    acting = robot.wait_acting("1.1.0")
    assert acting.on_trial and robot.current() == base, "it acts on a lease, and is not what the robot would start with"

    robot.start_manager()
    trial = robot.wait_update(update_id, "TRIAL")
    assert (trial.trial_version, trial.committed_version, trial.previous_version) == ("1.1.0", base, "")
    again = robot.wait_policy(lambda m: m.on_trial, "the trial")
    assert (again.boot_id, again.generation) == (acting.boot_id, acting.generation), "entered again without a swap"
    assert robot.state()["attempts"][robot.digests["1.1.0"]] == 1
    robot.prove(update_id)
    robot.wait_settled("1.1.0")
    robot.check("1.1.0")


def test_a_trial_whose_manager_stays_dead_ends_where_it_began(robot: RobotRig) -> None:
    base = robot.committed
    manager = robot.start_manager(trial_lease_s=3.0, max_trial_attempts=1)
    robot.publish("2.0.0")
    update_id = robot.offer("2.0.0")
    robot.wait_update(update_id, "TRIAL")
    robot.wait_acting("2.0.0")
    manager.kill()
    report = robot.reports.wait(lambda m: m.cause == "LEASE_EXPIRED")
    assert (report.from_version, report.to_version, report.warm) == ("2.0.0", base, True)
    status = robot.wait_acting(base)
    assert status.error_code == "LEASE_EXPIRED" and not status.on_trial

    robot.start_manager(trial_lease_s=3.0, max_trial_attempts=1)
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert (ended.error_code, list(ended.blocked), ended.committed_version) == ("TRIAL_ATTEMPTS", ["2.0.0"], base)
    robot.check(base)
