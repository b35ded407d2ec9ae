# SPDX-License-Identifier: Apache-2.0
"""A bad version loses control by itself, at once and for good; a policy node that goes back by itself is noticed."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
from support.filesystems import UnwritableFilesystem
from support.ota import Robot

from vla_ota_manager.port import SwapRequest
from vla_ota_manager.states import UpdateState
from vla_ota_manager.trial import runner

S = UpdateState


@pytest.fixture
def on_trial(robot: Robot) -> Robot:
    """1.0.0 is committed, 1.1.0 is on trial."""
    robot.settings = {"min_trial_chunks": 1000, "block_chunks": 1}
    robot.try_out()
    return robot


def check_rolled_back(robot: Robot, code: str, *, blocked: bool) -> None:
    robot.ended("u-1.1.0", S.ROLLED_BACK, code)
    assert robot.current_version() == "1.0.0"
    document = robot.policy.look()
    assert document["active"]["version"] == "1.0.0" and document["lease"] is None
    assert robot.engine.status().blocked == (("1.1.0",) if blocked else ())
    assert robot.engine.status().trial_version == ""


def test_a_hard_limit_rolls_back_warm_without_a_download_and_blocks(on_trial: Robot) -> None:
    before = sum(on_trial.server.served.values())
    on_trial.score(1.0, "hard_limit")
    check_rolled_back(on_trial, "HARD_LIMIT", blocked=True)
    assert sum(on_trial.server.served.values()) == before
    assert on_trial.policy.look()["log"][-1] == "swap 1.0.0 ROLLBACK NOW"
    assert "warm" in on_trial.engine.outcome("u-1.1.0").message
    assert on_trial.install("1.1.0", S.REJECTED, update_id="again").error_code == "VERSION_BLOCKED"


def test_a_verdict_is_not_gated_by_permission(robot: Robot) -> None:
    robot.settings = {"require_permission": True, "min_trial_chunks": 1000}
    robot.try_out()
    robot.engine.set_update_permitted(False)
    robot.score(1.0, "hard_limit")
    check_rolled_back(robot, "HARD_LIMIT", blocked=True)


def test_a_trial_is_not_entered_again_without_permission(robot: Robot) -> None:
    robot.settings = {"require_permission": True, "min_trial_chunks": 1000}
    robot.try_out()
    robot.stop()
    robot.policy.let_lease_run_out()
    robot.start()
    robot.until(lambda: "update_permitted" in robot.engine.status().message)
    assert robot.policy.look()["active"]["version"] == "1.0.0"
    robot.engine.set_update_permitted(True)
    robot.until(lambda: robot.policy.look()["active"]["version"] == "1.1.0")


@pytest.mark.parametrize("by", ["topic", "parameter"])
def test_permission_that_is_withdrawn_while_a_boundary_is_waited_for_withdraws_the_swap_and_may_take_as_long_as_it_likes(
    robot: Robot, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s = [0.0]
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s[0]))
    monkeypatch.setattr(runner, "SLICE_S", 0.2)
    robot.settings = {
        "require_permission": by == "topic",
        "min_trial_chunks": 1000,
        "policy_wait_s": 0.0,
        "swap_timeout_s": 60.0,
    }
    robot.begin(swap_s=1000.0)
    permit = robot.engine.set_update_permitted if by == "topic" else robot.engine.set_updates_allowed
    permit(True)
    robot.offer("1.1.0")
    robot.until(lambda: "boundary" in robot.engine.status().message)
    permit(False)
    robot.until(lambda: "waits for update_permitted" in robot.engine.status().message)
    robot.say(swap_s=0.0)
    passed_s[0] = 3600.0
    robot.go_round()
    assert robot.engine.status().state is S.SWAPPING and robot.policy.look()["active"]["version"] == "1.0.0"
    permit(True)
    robot.reach(S.TRIAL)
    permit(False)
    assert robot.engine.rollback().success


def test_a_hold_by_a_limit_rolls_back(on_trial: Robot) -> None:
    on_trial.say(holding="LIMIT")
    check_rolled_back(on_trial, "HARD_LIMIT", blocked=True)


def test_bad_scores_against_the_calibrated_incumbent_roll_back(robot: Robot) -> None:
    robot.settings = {"min_trial_chunks": 1000, "block_chunks": 1}
    robot.feeding = False
    robot.begin()
    for index in range(60):
        robot.score(0.1 + index * 1e-3)
    robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    for _ in range(20):
        robot.score(5.0)
    check_rolled_back(robot, "SCORES_WORSE", blocked=True)


def test_a_commit_of_what_nothing_could_have_rejected_is_a_warning_and_says_so_first(
    robot: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    robot.begin()
    outcome = robot.install("1.1.0")
    assert outcome.message.startswith("committed WITHOUT A JUDGEMENT of "), outcome.message
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("1.1.0 is committed without a judgement of " in line for line in warned)


def test_calibration_is_kept_by_digest_over_restarts(robot: Robot) -> None:
    robot.settings = {"block_chunks": 1}
    manifest = robot.adopt("1.0.0")
    robot.feeding = False
    robot.start()
    for _ in range(30):
        robot.score(0.2)
    robot.episode(True)
    robot.until(lambda: not len(robot.engine._ctx.inbox))
    robot.stop()
    robot.start()
    kept = robot.engine.store.state.calibration[manifest.digest]
    assert len(kept["blocks"]["tce"]) == 30 and kept["successes"] == 1


def test_a_lost_worker_is_noticed_and_blocks(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    on_trial.policy.lose_worker()
    check_rolled_back(on_trial, "WORKER_LOST", blocked=True)


def test_a_lease_that_ran_out_is_noticed_and_blocks_only_after_several(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    on_trial.policy.let_lease_run_out()
    check_rolled_back(on_trial, "LEASE_EXPIRED", blocked=False)
    assert list(on_trial.engine.store.state.attempts.values()) == [1]


def test_a_policy_node_that_restarts_in_a_trial_ends_it(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    on_trial.boot_policy()
    check_rolled_back(on_trial, "POLICY_RESTARTED", blocked=False)


def test_a_swap_by_somebody_else_ends_the_trial_and_blocks_nothing(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    committed = on_trial.engine.status().committed_digest
    assert on_trial.policy.swap(SwapRequest(committed), lambda: False).success
    check_rolled_back(on_trial, "SWAPPED_AWAY", blocked=False)
    assert on_trial.engine.store.state.attempts == {}


def test_a_version_that_is_loaded_again_by_somebody_stays_on_trial_on_a_lease(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    with on_trial.policy.edit() as document:
        document["count"] += 1
        document["active"]["generation"] = document["count"]
        document["lease"] = None
    on_trial.until(lambda: on_trial.policy.look()["lease"] is not None)
    assert on_trial.engine.status().state is S.TRIAL
    on_trial.score(1.0, "hard_limit")
    check_rolled_back(on_trial, "HARD_LIMIT", blocked=True)


def test_a_worker_that_is_started_again_in_a_trial_rejects_the_version(on_trial: Robot) -> None:
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    with on_trial.policy.edit() as document:
        document["count"] += 1
        document["active"]["generation"] = document["count"]
        document["cause"] = "WORKER_LOST"
    check_rolled_back(on_trial, "WORKER_LOST", blocked=True)


def test_why_the_policy_node_went_back_counts_though_its_report_comes_a_second_later(
    on_trial: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the report of the generation that acts now is an older one, of when it came to act before."""
    monkeypatch.setattr(runner, "_REPORT_S", 60.0)
    on_trial.until(lambda: "chunks" in on_trial.engine.status().trial_message)
    with on_trial.policy.edit() as document:
        document["stamp_s"] = document["standby"]["since"]
    on_trial.policy.lose_worker()
    on_trial.go_round()
    assert on_trial.engine.status().state is S.TRIAL
    on_trial.say(stamp_s=time.time())
    check_rolled_back(on_trial, "WORKER_LOST", blocked=True)


def test_an_operators_rollback_does_not_forgive_a_verdict(on_trial: Robot) -> None:
    on_trial.say(refuse_swap="SWAP_IN_PROGRESS")
    on_trial.score(1.0, "hard_limit")
    on_trial.reach(S.ROLLING_BACK)
    on_trial.say(refuse_swap="")
    on_trial.engine.rollback()
    on_trial.ended("u-1.1.0")
    assert on_trial.engine.status().blocked == ("1.1.0",)
    assert on_trial.policy.look()["active"]["version"] == "1.0.0"


@pytest.mark.parametrize("most", [10, 1])
def test_a_policy_node_that_dies_in_a_trial_comes_back_with_what_is_committed_and_too_many_deaths_block(
    robot: Robot, most: int
) -> None:
    robot.settings = {"min_trial_chunks": 1000, "max_trial_attempts": most, "heartbeat_timeout_s": 1.5}
    robot.try_out()
    robot.say(absent=True)
    robot.reach(S.ROLLING_BACK)
    assert robot.current_version() == "1.0.0"
    assert robot.engine.status().trial_digest == ""  # nothing renews the lease any more
    robot.boot_policy()
    check_rolled_back(robot, "HEARTBEAT_LOST", blocked=most == 1)
    assert most == 1 or list(robot.engine.store.state.attempts.values()) == [1]


def test_nobody_commits_a_version_while_the_policy_node_is_silent(robot: Robot) -> None:
    robot.settings = {"heartbeat_timeout_s": 60.0}
    robot.begin(silent_after_swap=True)
    robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    robot.until(lambda: "nothing counts" in robot.engine.status().trial_message)
    for _ in range(20):
        robot.score(0.1)
    robot.until(lambda: not len(robot.engine._ctx.inbox))
    reply = robot.engine.commit(reason="looks fine from here")
    assert (reply.success, reply.error_code, reply.committed_version) == (False, "POLICY_ABSENT", "1.0.0")
    assert robot.engine.status().state is S.TRIAL and robot.current_version() == "1.0.0"
    robot.say(absent=False)
    robot.ended("u-1.1.0", S.COMMITTED)


def test_a_version_that_lost_its_lease_is_put_on_trial_again_and_not_committed_before(robot: Robot) -> None:
    robot.settings = {"min_trial_chunks": 1000, "policy_silent_s": 0.5}
    robot.try_out()
    robot.until(lambda: "chunks" in robot.engine.status().trial_message)
    robot.say(lease=None, refuse_swap="SWAP_IN_PROGRESS")
    reply = robot.engine.commit()
    assert (reply.success, reply.error_code) == (False, "NO_TRIAL")
    robot.say(refuse_swap="")
    robot.until(lambda: robot.policy.look()["lease"] is not None)
    assert robot.engine.commit().success


def test_the_lease_protects_the_robot_when_the_manager_stops(on_trial: Robot) -> None:
    on_trial.stop()
    on_trial.policy.let_lease_run_out()
    assert on_trial.policy.look()["active"]["version"] == "1.0.0"
    on_trial.start()
    on_trial.until(lambda: on_trial.policy.look()["active"]["version"] == "1.1.0")
    assert on_trial.engine.status().state is S.TRIAL
    assert on_trial.engine.store.state.attempts == {}


def test_evidence_survives_a_clean_restart(on_trial: Robot) -> None:
    on_trial.until(lambda: on_trial.engine.status().trial_progress > 0.02)
    before = on_trial.engine.status().trial_progress
    on_trial.feeding = False
    on_trial.stop()
    on_trial.start()
    on_trial.until(lambda: on_trial.engine.status().trial_progress >= before)


def test_a_failed_first_install_is_blocked_and_nothing_becomes_current(robot: Robot) -> None:
    robot.settings = {"first_install_chunks": 1000}
    robot.publish("1.0.0")
    robot.start()
    robot.offer("1.0.0")
    robot.reach(S.TRIAL)
    robot.score(1.0, "hard_limit")
    robot.ended("u-1.0.0", S.FAILED, "HARD_LIMIT")
    assert robot.current_version() == "" and robot.engine.status().blocked == ("1.0.0",)


def test_a_swap_that_is_refused_fails_the_update_and_one_in_progress_is_waited_for(robot: Robot) -> None:
    robot.begin(refuse_swap="SWAP_IN_PROGRESS")
    robot.offer("1.1.0")
    robot.until(lambda: "SWAP_IN_PROGRESS" in robot.engine.status().message)
    assert robot.engine.status().state is S.SWAPPING
    robot.say(refuse_swap="CONTRACT_MISMATCH")
    robot.ended("u-1.1.0", S.FAILED, "CONTRACT_MISMATCH")
    assert robot.engine.status().blocked == () and robot.policy.look()["active"]["version"] == "1.0.0"


def test_control_is_given_back_even_if_the_disk_cannot_be_written(robot: Robot) -> None:
    filesystem = UnwritableFilesystem()
    robot.settings = {"min_trial_chunks": 1000}
    robot.try_out(filesystem=filesystem)
    filesystem.broken = True
    robot.score(1.0, "hard_limit")
    robot.until(lambda: robot.policy.look()["active"]["version"] == "1.0.0")
    assert robot.engine.status().error_code == "STORE_IO"
    filesystem.broken = False
    check_rolled_back(robot, "HARD_LIMIT", blocked=True)
