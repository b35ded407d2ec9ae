# SPDX-License-Identifier: Apache-2.0
"""An arm, a gripper and a base in one action: each channel keeps its own limits and its own hold, and all act together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.control_rig import PERIOD_NS, START_TOLERANCE, Rig
from support.mixed_robot import ACCELERATION, ARM, BASE, DECELERATION, GRIPPER, VELOCITY, mixed_contract

from vla_policy_node.contract.model import parse_contract
from vla_policy_node.errors import ContractError

TEXT = mixed_contract(ARM, GRIPPER, BASE)
TICK_S = PERIOD_NS / 1e9
ARM_AND_GRIPPER, WHEELS = slice(0, 3), slice(3, 5)
RATE = np.array([VELOCITY] * 3 + [ACCELERATION] * 2)
HIGH = np.array([1.0] * 3 + [0.5] * 2)
DRIVING = (0.2, -0.2, 0.1, 0.4, -0.3)


@pytest.fixture
def rig(make_rig: Any) -> Rig:
    made: Rig = make_rig(text=TEXT)
    return made


def test_one_action_is_cut_up_over_the_topics_in_the_order_of_the_file() -> None:
    outputs = [(o.topic, o.type, o.start, o.stop) for o in parse_contract(TEXT).outputs]
    assert outputs == [
        ("arm", "trajectory_msgs/msg/JointTrajectory", 0, 2),
        ("grip", "std_msgs/msg/Float64", 2, 3),
        ("base", "geometry_msgs/msg/TwistStamped", 3, 5),
    ]
    turned = parse_contract(mixed_contract(BASE, ARM))
    assert [(o.topic, o.start) for o in turned.outputs] == [("base", 0), ("arm", 2)]
    assert [c.name for c in turned.channels] == ["base0", "base1", "arm0", "arm1"]


def test_each_channel_goes_to_its_target_at_its_own_rate(rig: Rig) -> None:
    rig.run(DRIVING, ticks=3)
    rig.tick(60)
    commands = np.array([c for c in rig.published if c is not None])
    np.testing.assert_allclose(commands[-1], DRIVING, atol=1e-6)
    steps = np.abs(np.diff(np.vstack([np.zeros(5), commands]), axis=0))
    assert (steps <= RATE * TICK_S + 1e-9).all()
    assert steps[:, 3].max() == pytest.approx(ACCELERATION * TICK_S)  # the base uses what it may, the arm what it may
    assert steps[:, 0].max() == pytest.approx(VELOCITY * TICK_S)


def test_in_a_hold_the_base_brakes_to_zero_while_the_arm_stays_and_the_gripper_goes_to_where_it_is(rig: Rig) -> None:
    rig.run(DRIVING, ticks=60)
    rig.frozen = True
    rig.measured[2] = 0.05  # the gripper has closed on something
    rig.tick()
    before = rig.loop.command.copy()
    rig.hold()
    rig.tick(2)
    commands = np.array(rig.published[-2:])
    falls = np.abs(before[WHEELS]) - np.abs(commands[0][WHEELS])
    np.testing.assert_allclose(falls, DECELERATION["velocity"] * TICK_S)
    rig.tick(30)
    commands = np.array(rig.published[-30:])
    np.testing.assert_array_equal(commands[-1][WHEELS], 0.0)
    np.testing.assert_allclose(commands[:, :2] - before[:2], 0.0, atol=1e-6)
    assert commands[-1][2] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("channel", "value", "reason"),
    [(3, 0.7, "LIMIT"), (0, 1.2, "LIMIT"), (2, np.nan, "NAN"), (4, np.inf, "NAN")],
)
def test_what_one_channel_may_not_do_stops_all_of_them(rig: Rig, channel: int, value: float, reason: str) -> None:
    rig.run(DRIVING, ticks=60)
    wrong = list(DRIVING)
    wrong[channel] = value
    rig.policies[1] = lambda plan: tuple(wrong)
    rig.tick(30)
    hold = rig.of("HOLD")[-1]
    assert hold["reason"] == reason and hold["latched"]
    assert rig.contract.channels[channel].name in hold["message"]
    assert np.abs(rig.tick(30)[WHEELS]).max() == 0.0


def test_a_jump_of_the_base_is_a_jump_though_the_arm_stands_still(rig: Rig) -> None:
    rig.run((0.0, 0.0, 0.0, 0.4, 0.0), ticks=60)
    chunk = np.zeros((20, 5))
    chunk[:, 3] = 0.4
    chunk[10:, 3] = -0.4
    rig.policies[1] = lambda plan: chunk
    rig.tick(30)
    assert rig.of("HOLD")[-1]["reason"] == "LIMIT" and "base0 jumps by 0.8" in rig.of("HOLD")[-1]["message"]


def test_the_first_command_lies_near_the_measured_arm_and_the_base_starts_from_standstill(rig: Rig) -> None:
    rig.measured[ARM_AND_GRIPPER] = (0.5, -0.5, 0.3)
    rig.measured[WHEELS] = np.nan
    rig.frozen = True
    rig.start(DRIVING, ticks=0)
    first = next(c for c in (rig.tick() for _ in range(40)) if c is not None)
    assert (np.abs(first[ARM_AND_GRIPPER] - rig.measured[ARM_AND_GRIPPER]) <= START_TOLERANCE).all()
    assert (np.abs(first[WHEELS]) <= ACCELERATION * TICK_S + 1e-9).all()


def test_an_arm_that_is_not_measured_keeps_the_base_from_starting_too(rig: Rig) -> None:
    rig.measured[1] = np.nan
    rig.frozen = True
    rig.start(DRIVING, ticks=40)
    assert not any(c is not None for c in rig.published)


def test_a_base_that_drives_steadily_is_not_at_rest(rig: Rig) -> None:
    rig.run(DRIVING, ticks=100)
    assert not rig.loop.at_rest
    rig.policies[1] = lambda plan: (*DRIVING[:3], 0.0, 0.0)
    rig.tick(60)
    assert rig.loop.at_rest


@given(st.lists(st.tuples(*[st.floats(-1.2, 1.2)] * 5), min_size=1, max_size=6), st.integers(0, 40))
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
def test_whatever_the_policy_wants_each_channel_keeps_its_bounds_and_its_rate(chunks: list[Any], held: int) -> None:
    rig = Rig(text=TEXT)
    try:
        rig.start(DRIVING, ticks=20)
        for i, chunk in enumerate(chunks):
            rig.policies[1] = lambda plan, chunk=chunk: chunk
            rig.tick(15)
            if i == held:
                rig.hold()
            rig.send("resume")
        commands = np.array([np.full(5, np.nan) if c is None else c for c in rig.published])
        assert np.nanmax(np.abs(commands) - HIGH) <= 1e-9
        assert np.nanmax(np.abs(np.diff(commands, axis=0)) - RATE * TICK_S) <= 1e-9
    finally:
        rig.close()


def refused(change: Any) -> str:
    data = yaml.safe_load(TEXT)
    change(data)
    with pytest.raises(ContractError) as e:
        parse_contract(yaml.safe_dump(data, sort_keys=False))
    return f"{e.value.code}: {e.value.message}"


def test_a_velocity_that_is_called_a_position_is_refused() -> None:
    def call_it_a_position(data: Any) -> None:
        data["safety"]["channels"][3] = data["safety"]["channels"][0] | {"name": "vx"}

    text = refused(call_it_a_position)
    assert "CONTRACT_VALUE_INVALID" in text and "absolute, but twist.linear.x of base is a velocity" in text


def test_a_base_without_a_timeout_of_its_driver_is_refused_though_the_arm_needs_none() -> None:
    text = refused(lambda data: data["safety"]["channels"][4].pop("downstream_timeout_ms"))
    assert text.startswith("DOWNSTREAM_TIMEOUT_MISSING") and "channels[4]" in text


def test_a_joint_that_is_read_in_degrees_and_commanded_in_radians_is_refused() -> None:
    def read_degrees(data: Any) -> None:
        data["observations"]["observation.state"][0]["apply"] = ["rad2deg"]

    assert "is in degrees, the command in radians" in refused(read_degrees)


def test_arms_with_joints_of_the_same_name_are_told_apart_by_their_topic() -> None:
    data = yaml.safe_load(TEXT)
    source = data["observations"]["observation.state"][0]
    data["observations"]["observation.state"].append(source | {"channel": source["channel"] | {"topic": "left/joints"}})
    with pytest.raises(ContractError) as e:
        parse_contract(yaml.safe_dump(data, sort_keys=False))
    assert "selected 2 times" in e.value.message and "write 'joints0:position.arm0'" in e.value.message
    for channel in data["safety"]["channels"][ARM_AND_GRIPPER]:
        channel["measured"] = f"left/joints:{channel['measured']}"
    parsed = parse_contract(yaml.safe_dump(data, sort_keys=False))
    assert [c.measured for c in parsed.channels] == [("observation.state", i) for i in (3, 4, 5)] + [None, None]
