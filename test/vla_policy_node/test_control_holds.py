# SPDX-License-Identifier: Apache-2.0
"""Holds: what begins them, how the robot comes to rest, and that none ends by itself that should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.control_rig import HIGH, PER_TICK, RATE, START_TOLERANCE, ramp


def test_nothing_is_commanded_while_inactive(make_rig: Any) -> None:
    rig = make_rig()
    rig.add(1)
    rig.activate(1, "NOW")
    rig.tick(20)
    assert all(c is None for c in rig.published)
    rig.begin()
    rig.tick(10)
    assert rig.published[-1] is not None
    rig.send("enable", enabled=False)
    rig.tick(10)
    assert all(c is None for c in rig.published[-10:])


def test_the_first_command_after_a_hold_lies_near_a_robot_that_was_moved_meanwhile(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0))
    rig.hold()
    rig.tick(5)
    rig.frozen = True
    rig.measured = np.array([0.7, 0.0])  # pushed by hand while held
    rig.send("resume")
    before = len(rig.published)
    while not rig.loop.running and len(rig.published) < before + 200:
        rig.tick()
    assert np.abs(rig.published[-1] - rig.measured).max() <= START_TOLERANCE + PER_TICK
    moves = np.abs(np.diff(np.array(rig.published[before - 1 :]), axis=0))
    assert moves.max() <= PER_TICK + 1e-9


def test_motion_disabled_stops_commands_at_once_and_nothing_moves_after_it_without_resume(make_rig: Any) -> None:
    rig = make_rig(motion=True)
    rig.start((0.5, 0.5), ticks=20)
    assert all(c is None for c in rig.published)
    assert rig.loop.mode == "MOTION_DISABLED"
    rig.motion_ns = rig.now_ns + 10**12
    rig.tick(50)
    assert all(c is None for c in rig.published)  # enabled, but nobody has said resume
    rig.send("resume")
    rig.tick(10)
    assert rig.published[-1] is not None
    rig.motion_ns = 0
    assert rig.tick() is None
    rig.tick(10)
    assert all(c is None for c in rig.published[-10:])
    rig.send("resume")
    assert rig.of("RESUME_REFUSED")[-1]["error_code"] == "MOTION_DISABLED"
    rig.motion_ns = rig.now_ns + 10**12
    rig.tick(50)
    assert all(c is None for c in rig.published[-50:])


def test_motion_enabled_that_is_not_renewed_is_disabled_and_not_even_auto_resume_goes_on_after_it(
    make_rig: Any,
) -> None:
    rig = make_rig(motion=True, auto=True)
    rig.motion_ns = rig.now_ns + 30 * 20_000_000
    rig.start(ticks=60)
    assert any(c is not None for c in rig.published[:29])
    assert all(c is None for c in rig.published[31:])
    rig.motion_ns = rig.now_ns + 10**12
    rig.tick(100)
    assert rig.loop.reasons.latched == "MOTION_REENABLED"
    assert all(c is None for c in rig.published[31:])
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.running


@pytest.mark.parametrize("hold", ["last_command", "measured"])
def test_a_hold_brings_a_moving_joint_to_rest_by_max_decel_and_stops_publishing_after_its_timeout(
    make_rig: Any, hold: str
) -> None:
    rig = make_rig(hold=hold, timeout_s=1.0)
    rig.run(ramp((0.03, 0.0)), ticks=14)
    rig.frozen = hold == "measured"
    rig.hold()
    start = len(rig.published)
    rig.tick(40)
    held = np.array([c[0] for c in rig.published[start - 2 : start + 40]])
    velocity = np.diff(held) / 0.02
    assert np.abs(np.diff(velocity)).max() <= 50.0 * 0.02 + 1e-6
    assert abs(velocity[-1]) < 1e-9
    if hold == "measured":
        assert held[-1] == pytest.approx(held[0])  # the robot was there when the loop last looked
    rig.tick(20)
    assert all(c is None for c in rig.published[-5:])


def test_a_latched_hold_outlives_deactivation(make_rig: Any) -> None:
    rig = make_rig()
    rig.run()
    rig.policies[1] = lambda plan: (np.nan, 0.0)
    rig.tick(20)
    for enabled in (False, True):
        rig.send("enable", enabled=enabled)
        rig.policies[1] = lambda plan: (0.0, 0.0)
        rig.tick(20)
    assert rig.loop.reasons.latched == "NAN"
    assert rig.published[-1] is None


def test_auto_resume_ends_a_latched_hold_but_not_one_that_only_a_person_may_end(make_rig: Any) -> None:
    rig = make_rig(auto=True)
    rig.run()
    rig.policies[1] = lambda plan: (np.nan, 0.0)
    rig.tick(15)
    assert rig.loop.reasons.latched == "NAN"
    rig.policies[1] = lambda plan: (0.0, 0.0)
    rig.tick(40)
    assert rig.loop.running
    rig.hold()
    rig.tick(200)
    assert not rig.loop.running


def test_a_hold_without_an_episode_ends_when_one_opens_and_not_by_a_resume(make_rig: Any) -> None:
    rig = make_rig()
    rig.run()
    rig.send("episode_missing", missing=True)
    rig.tick(5)
    assert rig.loop.reasons.reason == "NO_EPISODE"
    rig.send("resume")
    rig.tick(10)
    assert not rig.loop.running
    rig.send("episode_missing", missing=False)
    rig.tick(10)
    assert rig.loop.running


def test_what_was_planned_before_a_hold_is_never_carried_out_after_it(make_rig: Any) -> None:
    rig = make_rig()
    worker = rig.run((0.0, 0.0), ticks=15)
    rig.policies[1] = lambda plan: None
    while worker.request() is None:
        rig.tick()
    old = worker.request()
    rig.hold()
    rig.tick(2)
    assert rig.loop.queue.left == 0
    worker.answer((0.25, 0.0), request=old)
    rig.send("resume")
    rig.tick(3)
    request = worker.request() or worker.requests.read()[1]
    assert request["request"] > old["request"] and request["reset"] == 1
    assert not rig.loop.running
    assert all(abs(c[0]) < 1e-6 for c in rig.published if c is not None)


@pytest.mark.parametrize("reason", ["COMMAND_TOPIC_TAKEN", "STARVED"])
def test_a_joint_that_is_stopped_at_its_limit_does_not_run_over_it(make_rig: Any, reason: str) -> None:
    rig = make_rig(max_decel=4.0)
    rig.run(ramp((0.04, 0.0)), ticks=3)
    while rig.published[-1][0] < HIGH - 0.03:
        rig.tick()
    if reason != "STARVED":
        rig.hold(reason)
    else:
        rig.policies[1] = lambda plan: None
        rig.loop.queue.flush()
    rig.tick(60)
    assert rig.of("HOLD")[-1]["reason"] == reason
    assert rig.published[-1][0] == HIGH
    assert max(c[0] for c in rig.published if c is not None) == HIGH


def test_a_hold_that_only_a_person_may_end_takes_the_place_of_one_that_would_end_by_itself(make_rig: Any) -> None:
    rig = make_rig(auto=True)
    rig.run()
    rig.policies[1] = lambda plan: (np.nan, 0.0)
    rig.tick(15)
    rig.hold()
    rig.policies[1] = lambda plan: (0.0, 0.0)
    rig.tick(200)
    assert rig.loop.reasons.latched == "COMMAND_TOPIC_TAKEN" and not rig.loop.running


def test_the_first_of_two_reasons_that_are_as_hard_to_end_stays(make_rig: Any) -> None:
    rig = make_rig()
    rig.run()
    rig.hold("NAN")
    rig.hold("LIMIT")
    rig.tick()
    assert rig.loop.reasons.reason == "NAN"


def test_while_the_command_goes_back_to_the_robot_its_chunk_grows_old_and_is_asked_for_again(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([0.9, 0.0])
    rig.run((0.9, 0.0))
    rig.hold()
    rig.tick(3)
    rig.frozen, rig.measured = True, np.array([-0.9, 0.0])
    rig.policies[1] = lambda plan: (-0.9, 0.0)
    rig.send("resume")
    while not rig.loop.running:
        rig.tick()
    assert abs(rig.published[-1][0] + 0.9) <= PER_TICK
    assert rig.now_ns - rig.loop.queue.current.asked_ns <= 20 * 20_000_000


def test_a_hold_on_the_way_back_to_the_robot_stops_it_there(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([0.9, 0.0])
    rig.run((0.9, 0.0))
    rig.hold()
    rig.tick(3)
    rig.frozen, rig.measured = True, np.array([-0.9, 0.0])
    rig.send("resume")
    rig.tick(15)
    on_the_way = rig.published[-1][0]
    assert -0.8 < on_the_way < 0.8
    rig.hold()
    rig.tick(40)
    braking = RATE**2 / (2 * 50.0) + PER_TICK
    assert abs(rig.published[-1][0] - on_the_way) <= braking


@pytest.mark.parametrize("again", [False, True])
def test_after_every_activation_the_robot_holds_until_resume(make_rig: Any, again: bool) -> None:
    rig = make_rig()
    if again:
        rig.run()
        rig.send("enable", enabled=False)
        rig.tick(5)
    else:
        rig.add(1)
        rig.activate(1, "NOW")
    before = len(rig.published)
    rig.send("enable", enabled=True)
    rig.tick(100)
    assert all(c is None for c in rig.published[before:])
    hold = rig.of("HOLD")[-1]
    assert (hold["reason"], hold["latched"]) == ("STARTUP", True) and "resume" in hold["message"]
    rig.measured = np.array([0.4, -0.4])  # moved by hand while it was not commanded
    rig.send("resume")
    rig.tick(10)
    first = next(c for c in rig.published[before:] if c is not None)
    assert np.abs(first - [0.4, -0.4]).max() <= PER_TICK + 1e-9
    resumed = rig.of("RESUMED")[-1]
    assert resumed["reason"] == "STARTUP" and resumed["held_s"] == pytest.approx(2.0, abs=0.3)


def test_a_second_activation_of_an_active_node_holds_nothing(make_rig: Any) -> None:
    rig = make_rig()
    rig.run()
    rig.send("enable", enabled=True)
    rig.tick()
    assert rig.loop.running


def test_a_contract_with_auto_resume_goes_on_after_an_activation(make_rig: Any) -> None:
    rig = make_rig(auto=True)
    rig.add(1)
    rig.activate(1, "NOW")
    rig.send("enable", enabled=True)
    rig.tick(40)
    assert rig.loop.running


def test_motion_disabled_within_a_hold_that_would_end_by_itself_still_needs_a_person(make_rig: Any) -> None:
    rig = make_rig(motion=True, auto=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.run()
    rig.policies[1] = lambda plan: (np.nan, 0.0)
    rig.tick(12)
    assert rig.loop.reasons.latched == "NAN"
    rig.policies[1] = lambda plan: (0.0, 0.0)
    rig.motion_ns = 0
    rig.tick(3)
    rig.motion_ns = rig.now_ns + 10**12
    rig.tick(100)
    assert not rig.loop.running and rig.loop.reasons.latched == "MOTION_REENABLED"


def test_a_contract_that_does_not_need_motion_enabled_obeys_an_explicit_false(make_rig: Any) -> None:
    rig = make_rig(motion=False)
    rig.run()  # nobody publishes it
    rig.motion_ns = -1
    assert rig.tick() is None
    rig.tick(50)
    assert rig.loop.mode == "MOTION_DISABLED" and all(c is None for c in rig.published[-50:])
    rig.motion_ns = rig.now_ns + 10_000_000  # true once, and silence again
    rig.tick(50)
    assert rig.loop.mode == "HOLDING" and rig.loop.reasons.latched == "MOTION_REENABLED"
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.running


@pytest.mark.parametrize("cause", ["OBSERVATION_STALE", "STARVED"])
def test_a_hold_that_outlasts_its_timeout_does_not_end_by_itself(make_rig: Any, cause: str) -> None:
    rig = make_rig(timeout_s=1.0)
    rig.run()
    rig.fresh, rig.policies[1] = cause != "OBSERVATION_STALE", lambda plan: None
    rig.tick(90)
    assert rig.published[-1] is None  # it let go of the robot
    assert (rig.loop.reasons.latched, rig.of("HOLD")[-1]["latched"]) == (cause, True)
    rig.fresh, rig.policies[1] = True, lambda plan: (0.0, 0.0)
    rig.tick(100)
    assert all(c is None for c in rig.published[-100:])
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.running


def test_a_resume_does_not_outlive_the_observations_that_it_waits_for(make_rig: Any) -> None:
    rig = make_rig(timeout_s=1.0)
    rig.fresh = False
    rig.start(ticks=60)
    rig.fresh = True  # half an hour later
    rig.tick(60)
    assert rig.loop.reasons.latched == "OBSERVATION_STALE" and all(c is None for c in rig.published)


def test_where_the_contract_says_so_a_long_hold_ends_with_its_cause(make_rig: Any) -> None:
    rig = make_rig(timeout_s=1.0, auto=True)
    rig.run()
    rig.fresh = False
    rig.tick(100)
    assert rig.published[-1] is None
    rig.fresh = True
    rig.tick(40)
    assert rig.loop.running


@pytest.mark.parametrize(
    ("cause", "acting"), [("UPDATE", 1), ("ROLLBACK", 2), ("LEASE_EXPIRED", 2), ("WORKER_LOST", 2)]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_while_motion_is_disabled_only_a_way_back_takes_over(make_rig: Any, cause: str, acting: int, when: str) -> None:
    rig = make_rig(motion=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.run(ticks=15)
    rig.add(2, lambda plan: None)
    if when == "before":
        rig.activate(2, "NOW", cause=cause)
        rig.tick(2)
        assert rig.loop.active.id == 1  # it waits for a first chunk
    rig.motion_ns = 0
    rig.tick(2)
    if when == "after":
        rig.activate(2, "NOW", cause=cause)
        rig.tick(2)
    assert rig.loop.active.id == acting
    failed = [e["error_code"] for e in rig.of("SWAP_FAILED")]
    assert failed == (["MOTION_DISABLED"] if acting == 1 else [])
    assert rig.loop.pending is None


def test_a_start_without_a_policy_says_so_and_asks_for_resume_when_there_is_one(make_rig: Any) -> None:
    rig = make_rig()
    rig.send("enable", enabled=True)
    rig.tick(20)
    assert (rig.loop.mode, rig.loop.reasons.reason, bool(rig.loop.reasons.latched)) == ("HOLDING", "NO_POLICY", True)
    assert not rig.of("HOLD")
    rig.add(1)
    rig.activate(1, "NOW")
    rig.tick(20)
    assert (rig.loop.reasons.reason, rig.of("HOLD")[-1]["reason"]) == ("STARTUP", "STARTUP")
    assert all(c is None for c in rig.published)
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.running


def test_what_is_said_of_a_hold_is_never_what_was_said_of_the_one_before(make_rig: Any) -> None:
    rig = make_rig(motion=False)
    rig.run()
    rig.loop.latch("COMMAND_TOPIC_TAKEN", text="commands is published by /cli too")
    rig.tick(3)
    rig.send("resume")
    rig.tick(10)
    rig.motion_ns = -1
    rig.tick(3)
    rig.motion_ns = rig.now_ns + 10_000_000
    rig.tick(3)
    said = rig.of("HOLD")
    assert [hold["reason"] for hold in said][-2:] == ["COMMAND_TOPIC_TAKEN", "MOTION_REENABLED"]
    assert "/cli" in said[-2]["message"] and said[-1]["message"].startswith("motion was disabled")
