# SPDX-License-Identifier: Apache-2.0
"""What ends gives its space back, and a disk that is full or cannot be written keeps no update alive."""

from __future__ import annotations

import json

import pytest
from support.filesystems import ActingFilesystem, SmallFilesystem, UnwritableFilesystem
from support.ota import Robot, shared_weights

from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

S = UpdateState
SLOW = Behaviour(rate_bytes_s=40_000)  # ten seconds for the whole


def check_nothing_is_left(robot: Robot) -> None:
    """The downloads of what has ended are gone, while the engine runs."""
    robot.until(lambda: robot.left_over() == [])


def being_fetched(robot: Robot, version: str = "1.1.0", **fields: object) -> str:
    """Offer a version over a slow line and wait until some of it is on the disk; return the update's id."""
    robot.server.behave("/blobs/", SLOW)
    update_id = robot.offer(version, **fields)
    entry = robot.manifests[version].file("model.safetensors")
    assert entry is not None
    partial = robot.store_dir / "partial" / entry.sha256
    robot.until(lambda: partial.exists() and partial.stat().st_size > 20_000)
    return update_id


@pytest.fixture
def on_trial(robot: Robot) -> Robot:
    """1.1.0 is on trial and proves nothing yet."""
    robot.feeding = False
    robot.try_out()
    return robot


def test_what_is_rejected_in_its_verification_gives_its_space_back(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.publish_broken("1.1.0")
    robot.start()
    assert robot.install("1.1.0", S.REJECTED).error_code == "DIGEST_TENSOR"
    check_nothing_is_left(robot)


def test_bad_versions_do_not_take_the_room_of_good_ones(robot: Robot) -> None:
    """A disk that holds what is committed and two more."""
    robot.adopt("1.0.0")
    for patch in range(1, 5):
        robot.publish_broken(f"1.0.{patch}", tensors=shared_weights(patch, 50_000))
    robot.publish("1.1.0", tensors=shared_weights(9, 50_000))
    robot.start(filesystem=SmallFilesystem(robot.store_dir, 500_000))
    for patch in range(1, 5):
        robot.install(f"1.0.{patch}", S.REJECTED)
    robot.install("1.1.0")


def test_what_is_rejected_beside_a_trial_gives_its_space_back(on_trial: Robot) -> None:
    on_trial.publish_broken("1.2.0")
    assert on_trial.ended(on_trial.offer("1.2.0", urgent=True)).error_code == "DIGEST_TENSOR"
    check_nothing_is_left(on_trial)
    assert on_trial.engine.status().state is S.TRIAL


@pytest.mark.parametrize("urgent", [False, True], ids=["alone", "beside a trial"])
def test_a_cancellation_in_verification_leaves_no_bundle_behind(robot: Robot, urgent: bool) -> None:
    robot.feeding = False
    robot.publish("1.2.0")
    replies = []
    filesystem = ActingFilesystem("", lambda: replies.append(robot.engine.cancel("u-1.2.0")))
    if urgent:
        robot.try_out(filesystem=filesystem)
    else:
        robot.adopt("1.0.0")
        robot.start(filesystem=filesystem)
    filesystem.name = "stage.manifest.after_rename"
    robot.offer("1.2.0", urgent=urgent)
    robot.ended("u-1.2.0", S.CANCELLED)
    robot.until(lambda: bool(replies))  # the update may end before the call that cancels it has returned
    assert replies[0].success
    robot.until(lambda: not list((robot.store_dir / "partial").glob("*.bundle")))


def test_a_disk_that_others_fill_in_mid_download_ends_the_update_and_gives_the_space_back(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.publish("1.1.0", tensors=shared_weights(3, 100_000))
    filesystem = SmallFilesystem(robot.store_dir, 2_000_000)
    robot.start(filesystem=filesystem)
    update_id = being_fetched(robot)
    filesystem.fill()
    robot.ended(update_id, S.FAILED, "DISK_FULL")
    check_nothing_is_left(robot)
    robot.until(lambda: robot.saved().seen[update_id].final)  # into the room that the download has left
    assert robot.engine.status().state is S.FAILED and robot.current_version() == "1.0.0"
    filesystem.others = 0
    robot.server.be_good()
    robot.install("1.1.0", update_id="again")


def test_a_disk_that_others_fill_beside_a_trial_ends_the_urgent_update_and_not_the_trial(robot: Robot) -> None:
    robot.publish("1.2.0", tensors=shared_weights(3, 100_000))
    robot.feeding = False
    filesystem = SmallFilesystem(robot.store_dir, 2_000_000)
    robot.try_out(filesystem=filesystem)
    update_id = being_fetched(robot, "1.2.0", urgent=True)
    filesystem.fill()
    robot.ended(update_id, S.FAILED, "DISK_FULL")
    check_nothing_is_left(robot)
    filesystem.others = 0
    robot.feeding = True
    robot.ended("u-1.1.0", S.COMMITTED)
    assert robot.saved().seen[update_id].final


@pytest.mark.parametrize("urgent", [False, True], ids=["alone", "beside a trial"])
def test_on_a_disk_that_cannot_be_written_a_cancellation_is_carried_out_and_saved_later(
    robot: Robot, urgent: bool
) -> None:
    robot.publish("1.2.0", tensors=shared_weights(3, 100_000))
    robot.feeding = False
    filesystem = UnwritableFilesystem()
    if urgent:
        robot.try_out(filesystem=filesystem)
    else:
        robot.adopt("1.0.0")
        robot.start(filesystem=filesystem)
    update_id = being_fetched(robot, "1.2.0", urgent=urgent)
    filesystem.broken = True
    assert robot.engine.cancel(update_id).success
    robot.ended(update_id, S.CANCELLED)
    assert json.loads((robot.store_dir / "state.json").read_bytes())["seen"][update_id]["final"] is False
    filesystem.broken = False
    robot.feeding = True
    robot.until(lambda: robot.saved().seen[update_id].final)
    robot.server.be_good()
    robot.install("1.2.0", update_id="again")


def test_a_waiting_update_can_be_cancelled_on_a_disk_that_cannot_be_written(on_trial: Robot) -> None:
    on_trial.stop()
    filesystem = UnwritableFilesystem()
    on_trial.start(filesystem=filesystem)
    on_trial.reach(S.TRIAL)
    on_trial.publish("1.2.0")
    on_trial.offer("1.2.0")
    filesystem.broken = True
    assert on_trial.engine.cancel("u-1.2.0").success
    assert on_trial.engine.outcome("u-1.2.0").state is S.CANCELLED
    filesystem.broken = False
    on_trial.feeding = True
    on_trial.ended("u-1.1.0", S.COMMITTED)
    assert on_trial.saved().seen["u-1.2.0"].final
