"""A manager that is killed costs the robot nothing: it goes on moving, and the next one ends the update. And of a trial each
episode counts once.

Every other point at which it can die is killed without ROS, in ``test/vla_ota_manager/test_engine_kills.py``.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from support.robot_rig import RobotRig
from support.waits import wait_for
from vla_ota.msg import EpisodeOutcome
from vla_ota.srv import EndEpisode, Rollback, StartEpisode

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
    robot.server.behave(robot.blob("1.1.0"), Behaviour(stall_after=SIZE // 2))
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
    manager = robot.start_manager(trial_lease_s=6.0, max_trial_attempts=1)
    robot.publish("2.0.0")
    update_id = robot.offer("2.0.0")
    robot.wait_update(update_id, "TRIAL")
    robot.wait_acting("2.0.0")
    manager.kill()
    report = robot.reports.wait(lambda m: m.cause == "LEASE_EXPIRED")
    assert (report.from_version, report.to_version, report.warm) == ("2.0.0", base, True)
    status = robot.wait_acting(base)
    assert status.error_code == "LEASE_EXPIRED" and not status.on_trial

    robot.start_manager(trial_lease_s=6.0, max_trial_attempts=1)
    ended = robot.wait_update(update_id, "ROLLED_BACK")
    assert (ended.error_code, list(ended.blocked), ended.committed_version) == ("TRIAL_ATTEMPTS", ["2.0.0"], base)
    robot.check(base)


OPEN = {"min_trial_episodes": 1000, "min_success_rate": 0.9, "score_sources": ["none"]}
"""A trial that stays open, and ends as soon as a few failures count."""


def spoof(robot: RobotRig, generation: int, version: str, stop: threading.Event) -> None:
    """Publish failures of episodes that were never opened, until told to stop."""
    publisher = robot.ros.advertise(EpisodeOutcome, "episode_outcome")
    while not stop.wait(0.1):
        for known in ({"generation": generation, "version": version}, {}):
            publisher.publish(EpisodeOutcome(episode_id=uuid.uuid4().hex, known=True, duration_s=math.nan, **known))


def test_each_episode_of_the_new_generation_counts_once_however_short_and_no_other_one(robot: RobotRig) -> None:
    """Episodes of milliseconds one after the other, over the swap: those of the old generation fail, those of the new succeed."""
    base = robot.committed
    robot.start_manager(**OPEN)
    robot.wait_status(lambda m: m.active_version == base, "the manager hearing the policy node")
    robot.publish("4.0.0")
    update_id = robot.offer("4.0.0")
    stop, spoofer, succeeded = threading.Event(), None, 0
    pause_s = 0.3  # until it is swapped in: each episode begins with a chunk of its own, and a boundary needs one

    def episode() -> None:
        nonlocal spoofer, succeeded
        time.sleep(0.0 if spoofer else pause_s)
        opened = robot.ros.call(StartEpisode, "policy_node/start_episode", StartEpisode.Request(episode_id="same"))
        new = opened.version == "4.0.0"
        closed = robot.ros.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(success=new))
        assert opened.success and closed.success
        succeeded += new and closed.outcome.known and not closed.outcome.mixed
        if new and spoofer is None:
            spoofer = threading.Thread(target=spoof, args=(robot, opened.generation, "4.0.0", stop))
            spoofer.start()

    def enough() -> bool:
        episode()
        return succeeded >= 60

    try:
        wait_for(enough, "sixty episodes of 4.0.0")
        status = robot.wait_status(lambda m: f"{succeeded}/1000 episodes" in m.trial_message, f"{succeeded} episodes")
    finally:
        stop.set()
        if spoofer is not None:
            spoofer.join()
    assert status.state_name == "TRIAL" and status.update_id == update_id and "4.0.0" not in status.blocked
    told = robot.diagnostics.wait(
        lambda m: any("SCORE_INVALID" in s.message and "opened no episode" in s.message for s in m.status),
        what="the spoofed ones",
    )
    assert told
    reply = robot.ros.call(Rollback, "ota_manager/rollback", Rollback.Request(expected_from_version="4.0.0"))
    assert reply.success and reply.to_version == base
