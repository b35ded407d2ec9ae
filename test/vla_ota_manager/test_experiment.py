# SPDX-License-Identifier: Apache-2.0
"""A robot in an experiment by episode: both versions stay at hand, anything that goes wrong ends it, and A is what is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ota import Robot

from vla_ota_manager.records import ExperimentRequest, Reply
from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import CheckpointServer

A, B = "1.0.0", "1.1.0"


def assign(robot: Robot, experiment: str = "x", versions: tuple[str, ...] = (A, B), probability: float = 0.5) -> Reply:
    assert robot.engine is not None
    return robot.engine.assign_experiment(ExperimentRequest(experiment, "arm_1", versions, probability), 60.0)


def end(robot: Robot, experiment: str = "x") -> Reply:
    return assign(robot, experiment, ())


@pytest.fixture
def joined(tmp_path: Path, server: CheckpointServer) -> Iterator[Robot]:
    """1.0.0 is committed, 1.1.0 on disk, and each episode is drawn."""
    robot = Robot(tmp_path, server, settings={"keep_versions": 1})
    robot.adopt(A)
    robot.publish(B)
    robot.start()
    robot.install(B, UpdateState.INSTALLED, activate=False)
    assert assign(robot).success
    yield robot
    robot.stop()


def active(robot: Robot) -> str:
    snapshot = robot.policy.status()
    return snapshot.active_version if snapshot is not None else ""


def told(robot: Robot, code: str) -> None:
    """Wait for the event that says why it ended; the status has it a moment before."""
    robot.until(lambda: code in [e.error_code for e in list(robot.events)])


def left(robot: Robot, code: str) -> None:
    """Fail unless the robot has left with this code, runs A and does not join again."""
    assert robot.engine is not None
    robot.until(lambda: robot.engine is not None and robot.engine.status().experiment == "")
    robot.until(lambda: active(robot) == A)
    told(robot, code)
    assert robot.saved().experiment is not None
    again = assign(robot)
    assert not again.success and again.error_code in ("EXPERIMENT_LEFT", "VERSION_BLOCKED")
    assert robot.current_version() == A


def test_it_is_joined_when_both_versions_are_loaded_and_the_status_names_them(joined: Robot) -> None:
    assert joined.engine is not None
    status, snapshot = joined.engine.status(), joined.policy.status()
    digests = tuple(joined.manifests[v].digest for v in (A, B))
    assert (status.experiment, status.experiment_robot, status.experiment_probability) == ("x", "arm_1", 0.5)
    assert status.experiment_digests == digests and status.committed_version == A
    assert snapshot is not None and all(snapshot.is_resident(d) for d in digests)
    joined.policy.draw(B)
    assert active(joined) == B
    assert assign(joined, probability=0.1).success and joined.engine.status().experiment_probability == 0.1
    assert active(joined) == B, "a stage of a rollout changes how often it is drawn, and nothing else"


def test_a_robot_with_room_for_one_version_takes_no_part(tmp_path: Path, server: CheckpointServer) -> None:
    robot = Robot(tmp_path, server)
    robot.adopt(A)
    robot.publish(B)
    robot.start()
    robot.install(B, UpdateState.INSTALLED, activate=False)
    robot.say(load_in_place=True)
    reply = assign(robot)
    assert not reply.success and reply.error_code == "OUT_OF_MEMORY" and "load_in_place" in reply.message
    assert active(robot) == A and "prepare 1.1.0" not in robot.policy.look()["log"]
    robot.stop()


def test_it_survives_restarts_of_manager_and_policy_node_and_both_versions_stay_on_disk(joined: Robot) -> None:
    joined.policy.draw(B)
    joined.stop()
    joined.start()
    assert joined.engine is not None and joined.engine.status().experiment == "x" and active(joined) == B
    joined.publish("1.2.0")
    joined.install("1.2.0", UpdateState.INSTALLED, activate=False)
    assert {A, B} <= {*joined.engine.status().versions}
    joined.boot_policy()  # it starts with A alone
    assert active(joined) == A
    joined.until(lambda: (s := joined.policy.status()) is not None and s.is_resident(joined.manifests[B].digest))


def test_its_end_leaves_a_and_a_late_end_of_another_one_changes_nothing(joined: Robot) -> None:
    joined.policy.draw(B)
    assert end(joined, "another").success and active(joined) == B
    assert end(joined).success
    joined.until(lambda: active(joined) == A)
    assert joined.engine is not None and joined.engine.status().experiment == ""
    assert end(joined).success and assign(joined).success, "both may be asked again"


@pytest.mark.parametrize(("code", "blocked"), [("HARD_LIMIT", (B,)), ("WORKER_LOST", (B,)), ("WORKER_HOST_LOST", ())])
def test_what_b_must_not_do_ends_it_and_blocks_b_but_a_lost_line_does_not(
    joined: Robot, code: str, blocked: tuple[str, ...]
) -> None:
    joined.policy.draw(B)
    joined.say(draw_error=[code, "as told"])
    left(joined, code)
    assert joined.engine is not None and joined.engine.status().blocked == blocked


@pytest.mark.parametrize("acts", [A, B])
def test_a_rollback_always_wins(joined: Robot, acts: str) -> None:
    joined.policy.draw(acts)
    assert joined.engine is not None
    reply = joined.engine.rollback(reason="a test")
    assert reply.success and reply.to_version == A
    left(joined, "OPERATOR_ROLLBACK")


def test_an_update_waits_for_its_end_and_an_urgent_one_ends_it(joined: Robot) -> None:
    assert joined.engine is not None
    joined.publish("1.2.0")
    joined.publish("1.3.0")
    joined.offer("1.2.0")
    joined.until(
        lambda: joined.engine is not None and "waits until experiment x ends" in joined.engine.status().message
    )
    assert joined.engine.status().experiment == "x"
    joined.ended(joined.offer("1.3.0", urgent=True))
    told(joined, "SUPERSEDED")
    joined.ended("u-1.2.0")
    assert joined.engine.status().committed_version == "1.2.0"


def test_somebody_who_lets_another_version_act_ends_it(joined: Robot) -> None:
    joined.say(active={"digest": "c" * 64, "version": "9.9.9", "generation": 99, "since": 0.0})
    joined.until(lambda: joined.engine is not None and joined.engine.status().experiment == "")
    told(joined, "SWAPPED_AWAY")


def test_nothing_is_drawn_without_permission(joined: Robot) -> None:
    assert joined.engine is not None
    joined.policy.draw(B)
    joined.engine.set_updates_allowed(False)
    joined.until(lambda: active(joined) == A)
    assert joined.engine.status().experiment == "x" and joined.engine.status().experiment_digests == ()
    joined.engine.set_updates_allowed(True)
    joined.until(lambda: bool(joined.statuses[-1].experiment_digests))


def test_what_cannot_be_joined_is_refused_and_changes_nothing(robot: Robot) -> None:
    robot.adopt(A)
    robot.publish(B)
    robot.start()
    assert assign(robot).error_code == "MODEL_NOT_FOUND"
    robot.install(B, UpdateState.INSTALLED, activate=False)
    for code, reply in (
        ("EXPERIMENT_INVALID", assign(robot, experiment="a b")),
        ("EXPERIMENT_INVALID", assign(robot, versions=(A,))),
        ("EXPERIMENT_INVALID", assign(robot, versions=(A, A))),
        ("EXPERIMENT_INVALID", assign(robot, probability=float("nan"))),
        ("EXPECTATION_FAILED", assign(robot, versions=(B, A))),
    ):
        assert (reply.success, reply.error_code) == (False, code)
    robot.say(refuse_prepare="GOLDEN_MISMATCH")
    assert assign(robot).error_code == "GOLDEN_MISMATCH"
    assert robot.engine is not None and robot.engine.status().experiment == "" and active(robot) == A
