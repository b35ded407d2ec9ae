# SPDX-License-Identifier: Apache-2.0
"""An operator takes over and gives back: who commands the robot, from where, and what holds it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.control_rig import HIGH, PER_TICK, START_TOLERANCE, STEP, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(motion=True)
    made.motion_ns = made.now_ns + 10**14
    yield made
    made.close()


def take_over(rig: Rig, action: tuple[float, float] | None = (0.0, 0.0)) -> None:
    rig.operator = None if action is None else np.array(action)
    rig.send("take_over", on=True)


def test_an_operators_actions_are_commanded_within_the_limits_and_the_policys_noted_beside_them(rig: Rig) -> None:
    rig.run((0.5, 0.5), ticks=3)
    before = rig.loop.command.copy()
    take_over(rig, tuple(before))
    rig.tick(5)
    assert rig.loop.mode == "OPERATOR" and np.abs(rig.loop.command - before).max() < 1e-9
    rig.operator = before + 0.2  # as far as a step may be, and farther than one tick reaches
    first = rig.tick()
    assert first - before == pytest.approx([PER_TICK, PER_TICK])
    rig.tick(10)
    assert rig.loop.command == pytest.approx(before + 0.2) and rig.loop.policy_action == pytest.approx([0.5, 0.5])
    assert rig.loop.generation == 1 and not rig.of("HOLD")
    while rig.operator[0] < HIGH + 0.3:
        rig.operator = rig.operator + 0.5 * PER_TICK
        rig.tick()
    assert rig.loop.command[0] == pytest.approx(HIGH)


@pytest.mark.parametrize("fault", ["silent", "not finite", "jumps"])
def test_without_an_action_that_can_be_commanded_the_robot_holds_until_one_comes_or_it_is_given_back(
    rig: Rig, fault: str
) -> None:
    rig.run((0.1, 0.1), ticks=20)
    take_over(rig, (0.1, 0.1))
    rig.tick(5)
    rig.operator = {"silent": None, "not finite": np.array([0.1, np.nan]), "jumps": np.array([0.1, 0.1 + STEP + 0.01])}[
        fault
    ]
    rig.tick(10)
    assert (
        rig.loop.mode == "HOLDING" and rig.loop.reasons.reason == "NO_OPERATOR_ACTION" and not rig.loop.reasons.latched
    )
    assert rig.loop.command == pytest.approx([0.1, 0.1]) and len(rig.of("HOLD")) == 1
    requests = rig.workers[1].answered
    rig.tick(50)
    assert rig.workers[1].answered == requests  # a policy that is not to act is not asked again and again
    rig.operator = np.array([0.1, 0.1])
    rig.tick()
    assert rig.loop.mode == "OPERATOR" and len(rig.of("RESUMED")) == 1


def test_an_old_action_is_none(rig: Rig) -> None:
    rig.run((0.1, 0.1), ticks=20)
    loop, limit_ns = rig.loop, int(rig.contract.observation_max_age_s * 1e9)
    action = np.array([0.1, 0.1])
    assert loop.operator.usable(action, rig.now_ns - limit_ns, rig.now_ns)
    assert not loop.operator.usable(action, rig.now_ns - limit_ns - 1, rig.now_ns)
    assert not loop.operator.usable(action, 0, rig.now_ns)  # nothing was ever sent


def test_an_operator_begins_where_the_robot_is(rig: Rig) -> None:
    rig.run((0.0, 0.0), ticks=5)
    take_over(rig, (START_TOLERANCE + 0.01, 0.0))
    rig.tick(20)
    assert rig.loop.mode == "HOLDING" and rig.loop.command == pytest.approx([0.0, 0.0])
    rig.operator = np.array([START_TOLERANCE - 0.01, 0.0])
    rig.tick(20)
    assert rig.loop.mode == "OPERATOR" and rig.loop.command[0] == pytest.approx(START_TOLERANCE - 0.01)


def test_he_may_begin_again_wherever_the_robot_is_by_then(rig: Rig) -> None:
    rig.run((0.0, 0.0), ticks=15)
    take_over(rig, (0.0, 0.0))
    rig.tick(5)
    rig.send("take_over", on=False)
    rig.policies[1] = lambda plan: (0.8, 0.8)
    rig.tick(80)
    assert rig.loop.command == pytest.approx([0.8, 0.8])
    take_over(rig, (0.8, 0.8))
    rig.tick(2)
    assert rig.loop.mode == "OPERATOR"


def test_a_command_that_the_robot_did_not_follow_comes_back_to_it_first_and_no_faster_than_it_may(rig: Rig) -> None:
    rig.run((0.0, 0.0), ticks=15)
    rig.frozen = True
    rig.policies[1] = lambda plan: (0.6, 0.6)
    rig.tick(60)
    command = rig.loop.command.copy()
    assert command[0] - rig.measured[0] > START_TOLERANCE
    take_over(rig, tuple(rig.measured))
    commands = []
    while rig.loop.mode != "OPERATOR":
        commands.append(rig.tick())
        assert len(commands) < 200
    assert np.abs(np.diff([command, *commands], axis=0)).max() <= PER_TICK + 1e-9
    assert np.abs(commands[-1] - rig.measured).max() <= START_TOLERANCE


def test_the_policy_goes_on_from_the_measured_state_with_a_new_plan(rig: Rig) -> None:
    rig.run((0.6, 0.6), ticks=3)
    start = rig.loop.command.copy()
    take_over(rig, tuple(start))
    for _ in range(30):
        rig.operator = rig.operator - 0.5 * PER_TICK
        rig.tick()
    at = rig.loop.command.copy()
    rig.policies[1] = lambda plan: (-0.9, -0.9)  # what it had wanted before is forgotten
    rig.send("take_over", on=False)
    rig.operator = np.array([0.9, 0.9])
    commands = [rig.tick() for _ in range(10)]
    assert np.abs(commands[0] - at).max() <= PER_TICK + 1e-9
    assert rig.loop.mode == "RUNNING" and len(rig.of("TAKEN_OVER")) == len(rig.of("GIVEN_BACK")) == 1
    steps = np.diff([at, *commands], axis=0)
    assert (steps <= 1e-9).all() and (steps[-1] < 0).all(), "neither the old plan nor the operator is followed"


def test_a_latched_hold_and_a_stop_of_motion_hold_an_operator_as_well(rig: Rig) -> None:
    rig.run((0.0, 0.0), ticks=5)
    take_over(rig)
    rig.tick(5)
    rig.hold("WORKER_LOST")
    rig.tick(5)
    assert rig.loop.mode == "HOLDING"
    rig.send("resume")
    rig.tick(2)
    assert rig.loop.mode == "OPERATOR"
    rig.motion_ns = 0
    assert rig.tick(3) is None
    rig.motion_ns = rig.now_ns + 10**14
    rig.tick(20)
    assert rig.loop.mode == "HOLDING" and rig.loop.reasons.reason == "MOTION_REENABLED"
    rig.send("resume")
    rig.tick(2)
    assert rig.loop.mode == "OPERATOR"  # it is the operator's still: the policy does not act behind his back


@pytest.mark.parametrize("error", ["NAN", "POLICY_FAILED"])
def test_a_policy_that_fails_does_not_stop_whoever_corrects_it_and_stops_when_it_is_to_act(
    rig: Rig, error: str
) -> None:
    rig.run((0.0, 0.0), ticks=15)
    take_over(rig)
    rig.policies[1] = lambda plan: error
    rig.tick(60)
    assert rig.loop.mode == "OPERATOR" and rig.loop.policy_action is None and not rig.of("HOLD")
    rig.send("take_over", on=False)
    rig.tick(20)
    assert rig.loop.mode == "HOLDING" and rig.loop.reasons.latched == error


def test_an_operator_drives_a_robot_without_a_policy(rig: Rig) -> None:
    rig.begin()
    take_over(rig)
    rig.tick(5)
    assert rig.loop.mode == "OPERATOR" and rig.loop.policy_action is None
    rig.send("take_over", on=False)
    rig.tick(5)
    assert rig.loop.mode == "HOLDING" and rig.loop.reasons.reason == "NO_POLICY"


@pytest.mark.parametrize("at", ["CHUNK", "EPISODE", "REST", "NOW"])
def test_a_swap_while_an_operator_acts_changes_nothing_that_is_commanded(rig: Rig, at: str) -> None:
    rig.run((0.0, 0.0), ticks=5)
    rig.add(2, (0.5, 0.5))
    take_over(rig, (0.1, 0.1))
    rig.tick(20)
    rig.activate(2, at)
    rig.episode += 1
    commands = [rig.tick() for _ in range(30)]
    assert rig.loop.active.id == 2 and not rig.of("SWAP_FAILED")
    assert np.abs(np.array(commands) - 0.1).max() < 1e-9
    assert rig.loop.policy_action == pytest.approx([0.5, 0.5]) and rig.loop.generation == 2


def test_nothing_is_commanded_for_an_operator_while_the_node_is_inactive(rig: Rig) -> None:
    take_over(rig)
    assert rig.tick(5) is None
