# SPDX-License-Identifier: Apache-2.0
"""A policy node that is silent, or there and not configured: status, replies and messages say which, and nothing stale."""

from __future__ import annotations

import pytest
from support.ota import Robot

from vla_ota_manager.states import UpdateState

S = UpdateState
REASON = "is not configured: CONTRACT_UNREADABLE: there is no such file"


@pytest.fixture
def updated(updated: Robot) -> Robot:
    """The same, with 1.2.0 in the registry."""
    updated.publish("1.2.0")
    return updated


def unconfigure(robot: Robot) -> None:
    robot.say(unconfigured=REASON)


def silence(robot: Robot) -> None:
    robot.say(absent=True)


@pytest.mark.parametrize("go", [unconfigure, silence])
def test_what_a_policy_node_ran_that_is_gone_is_not_said_to_act(updated: Robot, go) -> None:
    assert updated.engine.status().active_version == "1.1.0"
    go(updated)
    status = updated.engine.status()
    assert (status.active_version, status.active_digest, status.rollback_ready) == ("", "", 1)
    assert not any(entry.active for entry in updated.engine.list_models().models)


@pytest.mark.parametrize(("go", "why"), [(unconfigure, REASON), (silence, "is silent")])
def test_an_update_and_an_operator_hear_in_what_way_the_policy_node_is_not_there(updated: Robot, go, why: str) -> None:
    go(updated)
    update_id = updated.offer("1.2.0")
    updated.until(lambda: updated.engine.status().message == f"pick_place 1.2.0 waits for policy_node, which {why}")
    updated.engine.cancel(update_id)
    updated.ended(update_id)
    reply = updated.engine.rollback()
    assert reply.error_code == "POLICY_ABSENT" and f"policy_node {why} and will start with it" in reply.message


def test_an_update_that_waits_in_vain_says_in_what_way(updated: Robot) -> None:
    updated.stop()
    updated.settings = {"policy_wait_s": 0.3}
    unconfigure(updated)
    updated.start()
    outcome = updated.ended(updated.offer("1.2.0"), S.FAILED, "POLICY_ABSENT")
    assert REASON in outcome.message


def test_a_policy_node_that_is_unconfigured_in_a_trial_is_not_said_to_have_been_silent(updated: Robot) -> None:
    updated.stop()
    updated.settings = {"min_trial_chunks": 10_000, "heartbeat_timeout_s": 0.5}
    updated.start()
    update_id = updated.offer("1.2.0")
    updated.reach(S.TRIAL)
    unconfigure(updated)
    updated.reach(S.ROLLING_BACK)
    event = next(event for event in updated.events if event.to_state == "ROLLING_BACK")
    assert "unconfigured" in event.message and "silent" not in event.message
    updated.boot_policy()  # it is configured again, and starts with the committed version
    outcome = updated.ended(update_id, S.ROLLED_BACK, "HEARTBEAT_LOST")
    assert outcome.message.endswith("; 1.1.0 acts again already")
