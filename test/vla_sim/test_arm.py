"""The arm is real physics: it follows commands with a lag, refuses nonsense, and can push blocks away."""

from __future__ import annotations

import numpy as np
import pytest

from vla_sim.arm import CONTROL_HZ, HOME_RAD, POSITION_LIMITS_RAD, Arm
from vla_sim.errors import CommandRefusedError
from vla_sim.kinematics import cylindrical_tip, joints_for, tip_position


@pytest.fixture
def arm() -> Arm:
    return Arm()


def test_the_kinematics_are_those_of_the_physics(arm: Arm) -> None:
    rng = np.random.default_rng(0)
    low, high = np.transpose(POSITION_LIMITS_RAD)
    for joints in rng.uniform(low, high, size=(20, 3)):
        arm.reset(joints.tolist())
        assert arm.state().tip == pytest.approx(tip_position(joints), abs=1e-9)
        assert joints_for(cylindrical_tip(joints)) == pytest.approx(joints, abs=1e-6)


def test_a_point_out_of_reach_becomes_the_nearest_on_its_line() -> None:
    reached = cylindrical_tip(joints_for([0.3, 2.0, 0.15]))
    assert reached[0] == pytest.approx(0.3)
    assert reached[2] == pytest.approx(0.15, abs=1e-6)
    assert 0.5 < reached[1] < 0.56


def test_the_servos_follow_a_ramp_about_one_period_behind(arm: Arm) -> None:
    speed = np.array([0.6, -0.4, 0.5])
    target = np.array(HOME_RAD)
    for _ in range(CONTROL_HZ):
        target = target + speed / CONTROL_HZ
        arm.command(target.tolist())
        arm.step_control_period()
    state = arm.state()
    lag_s = (target - state.position) / speed
    assert np.all((lag_s > 0.2 / CONTROL_HZ) & (lag_s < 2.0 / CONTROL_HZ))
    assert np.sign(state.velocity).tolist() == np.sign(speed).tolist()


def test_at_rest_it_stays_where_it_was_commanded(arm: Arm) -> None:
    for _ in range(CONTROL_HZ):
        arm.step_control_period()
    assert arm.state().position == pytest.approx(HOME_RAD, abs=1e-3)
    assert arm.state().tip_speed < 1e-3


@pytest.mark.parametrize("command", [[0.0, 1.0], [0.0, 1.0, -1.0, 0.0], [0.0, np.nan, -1.0], [np.inf, 1.0, -1.0]])
def test_a_malformed_command_is_refused_and_changes_nothing(arm: Arm, command: list[float]) -> None:
    before = arm.commanded
    with pytest.raises(CommandRefusedError) as refused:
        arm.command(command)
    assert refused.value.code == "COMMAND_REFUSED"
    assert np.array_equal(arm.commanded, before)


def test_a_command_beyond_the_limits_goes_to_the_limit(arm: Arm) -> None:
    arm.command([9.0, -9.0, 9.0])
    assert arm.commanded == pytest.approx(
        [POSITION_LIMITS_RAD[0][1], POSITION_LIMITS_RAD[1][0], POSITION_LIMITS_RAD[2][1]]
    )


def test_the_forearm_pushes_a_block_that_is_in_its_way(arm: Arm) -> None:
    layout = np.array([[0.30, 0.0], [0.25, 0.25], [0.35, 0.30], [0.25, -0.3]])
    low_beside_it = joints_for([-0.4, 0.31, 0.02])
    arm.reset(low_beside_it.tolist())
    arm.place_blocks(layout)
    for yaw in np.linspace(-0.4, 0.4, CONTROL_HZ):
        arm.command([yaw, low_beside_it[1], low_beside_it[2]])
        arm.step_control_period()
    moved = np.linalg.norm(arm.blocks()[:, :2] - layout, axis=1)
    assert moved[0] > 0.03
    assert np.all(moved[1:] < 0.005)
