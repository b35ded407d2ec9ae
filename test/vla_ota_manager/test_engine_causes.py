# SPDX-License-Identifier: Apache-2.0
"""Why a version lost control is named as policy_node names it, in event, outcome and block, and not only what followed."""

from __future__ import annotations

import threading

import pytest
from support.ota import Robot

from vla_ota_manager.states import UpdateState
from vla_ota_manager.trial import runner

S = UpdateState


@pytest.fixture
def on_trial(robot: Robot) -> Robot:
    """1.0.0 is committed, 1.1.0 is on trial."""
    robot.settings = {"min_trial_chunks": 1000}
    robot.try_out()
    robot.until(lambda: "chunks" in robot.engine.status().trial_message)
    return robot


def check(robot: Robot, code: str, words: str) -> None:
    outcome = robot.ended("u-1.1.0", S.ROLLED_BACK, code)
    assert words in outcome.message and "on our request" not in outcome.message
    block = next(entry.block_reason for entry in robot.engine.list_models().models if entry.ref.version == "1.1.0")
    assert block.startswith(f"{code}: ") and words in block


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        ("POLICY_FAILED", "1.1.0: ValueError: no", "HARD_LIMIT"),
        ("WRONG_SHAPE", "1.1.0: float32 (50, 1), not float32 (50, 2)", "HARD_LIMIT"),
        ("NAN", "1.1.0: the chunk holds NaN or infinity", "HARD_LIMIT"),
        ("WORKER_HUNG", "1.1.0: worker 7 was killed by SIGKILL", "WORKER_LOST"),
        ("WORKER_DIED", "1.1.0: worker 7 was killed by SIGSEGV", "WORKER_LOST"),
    ],
)
@pytest.mark.parametrize("reported", [True, False], ids=["gone back", "loaded again"])
def test_what_a_policy_did_is_the_reason_and_not_that_its_worker_was_ended_for_it(
    on_trial: Robot, code: str, text: str, verdict: str, reported: bool
) -> None:
    on_trial.policy.go_wrong(code, text)
    if reported:
        on_trial.policy.lose_worker()
    else:
        with on_trial.policy.edit() as document:
            document["active"]["generation"] += 1
            document["cause"] = "WORKER_LOST"
    check(on_trial, verdict, f"policy_node says {code}: {text}")


@pytest.mark.parametrize("code", ["WORKER_HOST_LOST", "WORKER_HOST_UNREACHABLE"])
@pytest.mark.parametrize("most", [10, 1])
def test_a_lost_line_to_the_worker_host_rolls_back_and_blocks_only_when_it_comes_again(
    robot: Robot, code: str, most: int
) -> None:
    robot.settings = {"min_trial_chunks": 1000, "max_trial_attempts": most}
    robot.try_out()
    robot.until(lambda: "chunks" in robot.engine.status().trial_message)
    robot.policy.go_wrong(code, "nothing was heard for 1 s")
    robot.policy.lose_worker()
    outcome = robot.ended("u-1.1.0", S.ROLLED_BACK, "WORKER_HOST_LOST")
    assert f"policy_node says {code}" in outcome.message
    assert robot.engine.status().blocked == (("1.1.0",) if most == 1 else ())
    assert most == 1 or list(robot.engine.store.state.attempts.values()) == [1]


def test_a_broken_limit_is_named_by_the_status_that_comes_after_its_score(
    on_trial: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_NAMED_S", 60.0)
    later = threading.Timer(0.1, on_trial.policy.go_wrong, ("NAN", "the chunk holds NaN or infinity"))
    on_trial.score(1.0, "hard_limit")
    later.start()
    check(on_trial, "HARD_LIMIT", "policy_node says NAN: the chunk holds NaN or infinity")
    assert "hard limit" not in on_trial.engine.outcome("u-1.1.0").message


def test_without_a_name_for_it_the_verdict_says_what_was_seen(on_trial: Robot) -> None:
    on_trial.score(1.0, "hard_limit")
    check(on_trial, "HARD_LIMIT", "a hard limit was broken")


def test_an_error_of_before_the_trial_is_not_its_cause(robot: Robot) -> None:
    robot.settings = {"min_trial_chunks": 1000}
    robot.adopt("1.0.0")
    robot.boot_policy()
    robot.policy.go_wrong("POLICY_FAILED", "1.0.5: of yesterday")
    robot.publish("1.1.0")
    robot.start()
    robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    robot.until(lambda: "chunks" in robot.engine.status().trial_message)
    robot.policy.lose_worker()
    check(robot, "WORKER_LOST", "its worker was lost; policy_node went back to 1.0.0")


def test_who_took_control_is_named(on_trial: Robot) -> None:
    on_trial.policy.let_lease_run_out()
    outcome = on_trial.ended("u-1.1.0")
    assert outcome.error_code == "LEASE_EXPIRED" and "silent for the lease of 60 s; 1.0.0 acts" in outcome.message
