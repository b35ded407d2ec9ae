# SPDX-License-Identifier: Apache-2.0
"""There is always a way back: whatever the disk does, whatever is damaged, and however many ask for it at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.filesystems import UnwritableFilesystem
from support.ota import Robot

from vla_ota_manager.records import RollbackReply
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.filesystem import Filesystem

S = UpdateState
SLOW = {"min_trial_chunks": 1000}


def update_twice(robot: Robot, filesystem: Filesystem) -> Robot:
    """1.0.0 was committed, 1.1.0 is."""
    robot.begin(filesystem)
    robot.install("1.1.0")
    return robot


def damage(robot: Robot, version: str) -> Callable[[], Any]:
    """Spoil the weights of a version on the disk and let policy_node have it in memory no longer; return what mends it."""
    weights = robot.store_dir / "models/pick_place" / version / "model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    robot.say(standby=None)
    return lambda: weights.write_bytes(whole)


def ask_at_once(robot: Robot, count: int, waiting: int) -> list[RollbackReply]:
    """Let several people ask for a rollback; no swap is done before they all have, and ``waiting`` of them have to wait."""
    with ThreadPoolExecutor(count) as people:
        replies = [people.submit(robot.engine.rollback) for _ in range(count)]
        robot.until(lambda: robot.engine._ctx.urgent_work == waiting)
        robot.say(swap_s=0.0)
        return [reply.result(60.0) for reply in replies]


# -- a disk that cannot be written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["STORE_IO", "DISK_FULL"])
def test_an_operators_rollback_needs_no_disk_and_is_written_down_when_there_is_one(robot: Robot, code: str) -> None:
    disk = UnwritableFilesystem(code)
    update_twice(robot, disk)
    disk.broken = True
    reply = robot.engine.rollback(reason="it looked nervous")
    assert (reply.success, reply.error_code, reply.to_version) == (True, "", "1.0.0")
    assert code in reply.message
    assert robot.policy.look()["active"]["version"] == "1.0.0"
    status = robot.engine.status()
    assert (status.state, status.committed_version, status.error_code) == (S.ROLLED_BACK, "1.0.0", code)
    assert "it looked nervous" in status.message and "not on the disk yet" in status.message
    assert robot.saved().committed.version == "1.1.0"
    disk.broken = False
    robot.until(lambda: robot.engine.status().error_code == "" and robot.current_version() == "1.0.0")
    assert (robot.saved().committed.version, robot.saved().state) == ("1.0.0", S.ROLLED_BACK)


@pytest.mark.parametrize("by", ["operator", "hard limit", "silence"])
def test_a_trial_ends_without_a_disk_and_its_lease_is_renewed_no_more(robot: Robot, by: str) -> None:
    disk = UnwritableFilesystem("DISK_FULL")
    robot.settings = {**SLOW, "heartbeat_timeout_s": 1.5}
    update_id = robot.try_out(filesystem=disk)
    disk.broken = True
    if by == "operator":
        assert robot.engine.rollback().success
    elif by == "hard limit":
        robot.score(1.0, "hard_limit")
    else:
        robot.say(absent=True)
        robot.reach(S.ROLLING_BACK)
        robot.say(absent=False)
    outcome = robot.ended(update_id)
    code = {"operator": "OPERATOR_ROLLBACK", "hard limit": "HARD_LIMIT", "silence": "HEARTBEAT_LOST"}[by]
    assert (outcome.state, outcome.error_code) == (S.ROLLED_BACK, code)
    assert robot.policy.look()["active"]["version"] == "1.0.0" and robot.policy.look()["lease"] is None
    assert robot.engine.status().trial_digest == "" and robot.engine.status().error_code == "DISK_FULL"
    assert robot.saved().trial is not None
    disk.broken = False
    robot.until(lambda: robot.engine.status().error_code != "DISK_FULL")
    assert robot.saved().trial is None and robot.saved().seen[update_id].code == code


@pytest.mark.parametrize("by", ["operator", "hard limit"])
def test_a_version_left_without_a_disk_is_not_put_on_trial_again_by_the_next_manager(robot: Robot, by: str) -> None:
    disk = UnwritableFilesystem()
    robot.settings = SLOW
    update_id = robot.try_out(filesystem=disk)
    disk.broken = True
    if by == "operator":
        assert robot.engine.rollback().success
    else:
        robot.score(1.0, "hard_limit")
    robot.until(lambda: robot.engine.status().state is S.ROLLED_BACK)
    robot.stop()
    assert robot.saved().trial.phase is S.TRIAL
    swaps = robot.policy.look()["log"]
    robot.start()
    robot.ended(update_id, S.ROLLED_BACK, "SWAPPED_AWAY")
    assert robot.policy.look()["log"] == swaps and robot.policy.look()["active"]["version"] == "1.0.0"


def test_a_policy_node_that_restarts_before_a_rollback_is_written_down_is_sent_back_again(robot: Robot) -> None:
    disk = UnwritableFilesystem()
    robot.settings = {"require_permission": True, "trial_lease_s": 8.0}  # a quarter of it between two attempts
    robot.begin(disk).set_update_permitted(True)
    robot.install("1.1.0")
    robot.engine.set_update_permitted(False)
    disk.broken = True
    assert robot.engine.rollback().success
    assert robot.current_version() == "1.1.0"
    assert robot.boot_policy().look()["active"]["version"] == "1.1.0"
    robot.until(lambda: robot.policy.look()["active"]["version"] == "1.0.0")
    disk.broken = False
    robot.until(lambda: not robot.engine.store.state.activation_due)
    assert robot.saved().committed.version == "1.0.0" and robot.current_version() == "1.0.0"


def test_a_version_that_cannot_be_written_down_as_committed_stays_on_trial(robot: Robot) -> None:
    disk = UnwritableFilesystem("DISK_FULL")
    robot.feeding = False
    update_id = robot.try_out(filesystem=disk)
    disk.broken = True
    robot.feeding = True
    robot.until(lambda: robot.engine.status().error_code == "DISK_FULL")
    assert robot.engine.status().state is S.TRIAL and robot.engine.status().committed_version == "1.0.0"
    disk.broken = False
    robot.ended(update_id, S.COMMITTED)


def test_an_unclean_end_of_a_trial_counts_also_where_it_cannot_be_written_down(robot: Robot) -> None:
    disk = UnwritableFilesystem()
    robot.settings = {**SLOW, "max_trial_attempts": 1}
    update_id = robot.try_out(filesystem=disk)
    disk.broken = True
    robot.stop()  # cannot say that it ended properly
    robot.start(filesystem=UnwritableFilesystem(broken=True))
    assert robot.ended(update_id).error_code == "TRIAL_ATTEMPTS"
    assert robot.policy.look()["active"]["version"] == "1.0.0"


# -- a version that cannot be loaded --------------------------------------------------------------------------------------------


def check_skipped(robot: Robot) -> None:
    """1.1.0 was damaged: 1.0.0 acts and is committed, and everybody has been told why."""
    assert robot.policy.look()["active"]["version"] == "1.0.0"
    assert robot.current_version() == "1.0.0" and robot.engine.status().committed_version == "1.0.0"
    told = [event for event in robot.events if event.version == "1.1.0" and event.error_code == "DIGEST_FILE"]
    assert len(told) == 1 and "going back to 1.0.0 instead" in told[0].message
    assert "1.1.0 cannot be loaded: DIGEST_FILE" in robot.engine.status().message


def test_a_verdict_skips_a_committed_version_that_is_damaged(updated: Robot) -> None:
    update_id = updated.try_next()
    damage(updated, "1.1.0")
    updated.score(1.0, "hard_limit")
    updated.ended(update_id, S.ROLLED_BACK, "HARD_LIMIT")
    check_skipped(updated)
    assert updated.engine.status().blocked == ("1.2.0",)


@pytest.mark.parametrize("version", ["", "1.0.0"])
def test_an_operators_rollback_in_a_trial_skips_a_committed_version_that_is_damaged(
    updated: Robot, version: str
) -> None:
    updated.try_next()
    damage(updated, "1.1.0")
    reply = updated.engine.rollback(version)
    assert (reply.success, reply.from_version, reply.to_version) == (True, "1.2.0", "1.0.0"), reply
    if version:
        assert updated.policy.look()["active"]["version"] == "1.0.0"
    else:
        check_skipped(updated)


def test_an_operators_rollback_skips_a_previous_version_that_is_damaged(updated: Robot) -> None:
    updated.publish("1.2.0")
    updated.install("1.2.0")
    damage(updated, "1.1.0")
    reply = updated.engine.rollback()
    assert (reply.success, reply.from_version, reply.to_version) == (True, "1.2.0", "1.0.0"), reply
    check_skipped(updated)


def test_a_damaged_version_that_a_person_names_is_refused_and_nothing_else_is_taken(updated: Robot) -> None:
    updated.publish("1.2.0")
    updated.install("1.2.0")
    damage(updated, "1.1.0")
    reply = updated.engine.rollback("1.1.0")
    assert (reply.success, reply.error_code) == (False, "DIGEST_FILE")
    assert updated.policy.look()["active"]["version"] == "1.2.0" and updated.current_version() == "1.2.0"


@pytest.mark.parametrize("code", ["PREPARE_IN_PROGRESS", "OUT_OF_MEMORY", "POLICY_ABSENT"])
def test_a_policy_node_that_is_busy_or_absent_is_asked_again_and_nothing_is_skipped(updated: Robot, code: str) -> None:
    update_id = updated.try_next()
    updated.say(standby=None, refuse_prepare=code)
    updated.score(1.0, "hard_limit")
    updated.until(lambda: "going back to" in updated.engine.status().message)
    updated.say(refuse_prepare="")
    assert updated.ended(update_id).error_code == "HARD_LIMIT"
    assert updated.policy.look()["active"]["version"] == "1.1.0" and updated.current_version() == "1.1.0"
    assert not any("cannot be loaded" in event.message for event in updated.events)


@pytest.mark.parametrize(("code", "version"), [("GOLDEN_MISMATCH", "1.0.0"), ("WORKER_DIED", "1.1.0")])
def test_a_version_that_cannot_be_loaded_in_place_is_skipped_like_one_that_cannot_be_prepared(
    updated: Robot, code: str, version: str
) -> None:
    update_id = updated.try_next()
    updated.say(standby=None, load_in_place=True, fails_to_load={"1.1.0": [code] * 2})
    updated.score(1.0, "hard_limit")
    updated.ended(update_id, S.ROLLED_BACK, "HARD_LIMIT")
    assert updated.policy.look()["active"]["version"] == version and updated.current_version() == version


@pytest.mark.parametrize(("failures", "version"), [(2, "1.1.0"), (3, "1.0.0")])
def test_what_may_be_the_machines_fault_is_tried_three_times(updated: Robot, failures: int, version: str) -> None:
    update_id = updated.try_next()
    updated.say(standby=None, fails_to_prepare={"1.1.0": ["WORKER_DIED"] * failures})
    updated.score(1.0, "hard_limit")
    updated.ended(update_id)
    assert updated.policy.look()["active"]["version"] == version and updated.current_version() == version


def test_while_nothing_can_be_loaded_it_is_asked_for_again_and_each_version_is_named_once(updated: Robot) -> None:
    update_id = updated.try_next()
    mend = damage(updated, "1.1.0")
    damage(updated, "1.0.0")
    updated.score(1.0, "hard_limit")
    updated.until(lambda: "going back to" in updated.engine.status().message)
    mend()
    updated.ended(update_id, S.ROLLED_BACK)
    assert updated.policy.look()["active"]["version"] == "1.1.0"
    assert [e.version for e in updated.events if "cannot be loaded" in e.message and not e.update_id] == [
        "1.1.0",
        "1.0.0",
    ]


# -- while something else is under way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "slow", "reached", "end"),
    [
        ("1.0.0", "prepare_s", S.PREPARING, (S.CANCELLED, "SUPERSEDED")),
        ("", "prepare_s", S.PREPARING, (S.CANCELLED, "SUPERSEDED")),
        ("", "swap_s", S.SWAPPING, (S.FAILED, "OPERATOR_ROLLBACK")),
    ],
)
def test_with_nothing_to_go_back_to_a_rollback_cancels_what_does_not_act_yet(
    robot: Robot, first: str, slow: str, reached: UpdateState, end: tuple[UpdateState, str]
) -> None:
    if first:
        robot.adopt(first)
    robot.publish("1.1.0")
    robot.boot_policy()
    with robot.policy.edit() as document:
        document[slow] = 1000.0
    robot.start()
    update_id = robot.offer("1.1.0")
    robot.reach(reached)
    reply = robot.engine.rollback()
    assert (reply.success, reply.error_code) == (False, "NO_PREVIOUS") and "cancelled" in reply.message
    outcome = robot.ended(update_id)
    assert (outcome.state, outcome.error_code) == end
    assert (robot.policy.look()["active"] or {}).get("version", "") == first
    assert robot.engine.status().blocked == ()


@pytest.mark.parametrize("state", [S.SWAPPING, S.TRIAL, S.COMMITTED])
def test_rollbacks_that_are_asked_for_at_once_go_back_one_version(updated: Robot, state: UpdateState) -> None:
    updated.publish("1.2.0")
    updated.say(swap_s=1000.0 if state is S.SWAPPING else 0.0)
    updated.feeding = state is S.COMMITTED
    update_id = updated.offer("1.2.0")
    updated.reach(state)
    if state is S.COMMITTED:
        updated.ended(update_id)
        updated.until(lambda: not updated.engine.store.state.activation_due)
    updated.say(swap_s=1000.0)
    replies = ask_at_once(updated, 3, 2)
    assert [(reply.success, reply.to_version) for reply in replies] == [(True, "1.1.0")] * 3
    status = updated.engine.status()
    assert (status.committed_version, status.previous_version) == ("1.1.0", "1.0.0")
    assert updated.policy.look()["active"]["version"] == "1.1.0"
    assert updated.engine.rollback().to_version == "1.0.0"


def test_a_rollback_that_meets_a_verdict_goes_back_one_version(updated: Robot) -> None:
    update_id = updated.try_next()
    updated.say(swap_s=1000.0)
    updated.score(1.0, "hard_limit")
    updated.reach(S.ROLLING_BACK)
    (reply,) = ask_at_once(updated, 1, 1)
    assert (reply.success, reply.to_version) == (True, "1.1.0")
    updated.ended(update_id, S.ROLLED_BACK)
    assert updated.engine.status().committed_version == "1.1.0" and updated.engine.status().blocked == ("1.2.0",)


def test_the_duration_of_a_rollback_is_from_the_request_to_the_first_action(updated: Robot) -> None:
    updated.boot_policy()
    updated.say(prepare_s=1.0)
    begun = time.monotonic()
    reply = updated.engine.rollback()
    assert reply.success and not reply.warm
    assert 1.0 <= reply.duration_s <= time.monotonic() - begun
