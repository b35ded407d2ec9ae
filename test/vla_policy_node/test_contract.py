# SPDX-License-Identifier: Apache-2.0
"""A contract is read exactly as written or refused with file, key and code; a bundle fits it or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.control_rig import contract, contract_text

from vla_checkpoint.manifest import ActionSpec, Channel, Manifest
from vla_policy_node.contract.model import Contract, load_contract, parse_contract
from vla_policy_node.errors import ContractError
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_sim import arm

SIM_ARM = Path(__file__).parents[2] / "config" / "sim_arm.contract.yaml"


def refused(text: str) -> ContractError:
    with pytest.raises(ContractError) as e:
        parse_contract(text, "robot.yaml")
    assert "robot.yaml" in e.value.message
    return e.value


def changed(path: str, value: Any) -> str:
    """The rig's contract with one key set (``None`` = taken out)."""
    data = yaml.safe_load(contract_text())
    at = data
    *way, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    for part in way:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return yaml.safe_dump(data)


CHANNEL = "safety/channels/0"


@pytest.mark.parametrize(
    ("path", "value", "code", "named"),
    [
        (f"{CHANNEL}/hold", None, "CONTRACT_KEY_MISSING", "safety.channels[0].hold"),
        (f"{CHANNEL}/hold", "wait", "CONTRACT_VALUE_INVALID", "last_command"),
        (f"{CHANNEL}/hold", "zero_velocity", "CONTRACT_HOLD_INVALID", "hold"),
        (f"{CHANNEL}/measured", None, "CONTRACT_KEY_MISSING", "measured"),
        (f"{CHANNEL}/measured", "position.z", "CONTRACT_VALUE_INVALID", "position.a"),
        (f"{CHANNEL}/max_decel", None, "CONTRACT_KEY_MISSING", "max_decel"),
        (f"{CHANNEL}/hold_timeout_s", -1, "CONTRACT_VALUE_INVALID", "hold_timeout_s"),
        (f"{CHANNEL}/limits/position", [1, -1], "CONTRACT_VALUE_INVALID", "position"),
        (f"{CHANNEL}/limits/position", [float("-inf"), 1], "CONTRACT_VALUE_INVALID", "finite"),
        (f"{CHANNEL}/limits/velocity", None, "CONTRACT_KEY_MISSING", "limits.velocity"),
        (f"{CHANNEL}/limits/velocity", float("nan"), "CONTRACT_VALUE_INVALID", "finite"),
        (f"{CHANNEL}/limits/velocity", True, "CONTRACT_VALUE_INVALID", "velocity"),
        (f"{CHANNEL}/limits/velocity", "2", "CONTRACT_VALUE_INVALID", "velocity"),
        (f"{CHANNEL}/limits/velocty", 2.0, "CONTRACT_KEY_UNKNOWN", "did you mean 'velocity'"),
        (f"{CHANNEL}/max_decell", 2.0, "CONTRACT_KEY_UNKNOWN", "did you mean 'max_decel'"),
        (f"{CHANNEL}/mode", "absolut", "CONTRACT_VALUE_INVALID", "did you mean 'absolute'"),
        (f"{CHANNEL}/name", "b", "CONTRACT_VALUE_INVALID", "same name"),
        ("safety/channels", [], "CONTRACT_VALUE_INVALID", "channels"),
        ("safety/motion_enabled", None, "CONTRACT_KEY_MISSING", "motion_enabled"),
        ("safety/motion_enabled/required", "yes please", "CONTRACT_VALUE_INVALID", "true or false"),
        ("safety/observation_max_age_ms", None, "CONTRACT_KEY_MISSING", "observation_max_age_ms"),
        ("safety/blend_ticks", 2.5, "CONTRACT_VALUE_INVALID", "whole number"),
        ("safety", None, "CONTRACT_KEY_MISSING", "safety"),
        ("fps", 0, "CONTRACT_VALUE_INVALID", "fps"),
        ("fps", None, "CONTRACT_KEY_MISSING", "fps"),
        ("robot_type", None, "CONTRACT_KEY_MISSING", "robot_type"),
        ("observatons", {}, "CONTRACT_KEY_UNKNOWN", "did you mean 'observations'"),
        ("observations", {}, "CONTRACT_VALUE_INVALID", "observations"),
        (
            "observations/observation.state/channel/type",
            "sensor_msgs/msg/LaserScan",
            "CONTRACT_TYPE_UNSUPPORTED",
            "JointState",
        ),
        ("observations/observation.state/channel/topic", "a b", "CONTRACT_VALUE_INVALID", "topic"),
        ("observations/observation.state/channel/qos", {"depth": 0}, "CONTRACT_VALUE_INVALID", "depth"),
        (
            "observations/observation.state/align",
            {"strategy": "asof", "timeline": "header"},
            "CONTRACT_VALUE_INVALID",
            "asof",
        ),
        ("observations/observation.state/select", ["position.a", "position.a"], "CONTRACT_VALUE_INVALID", "select"),
        ("actions/action/select", ["data.0"], "CONTRACT_VALUE_INVALID", "channels"),
        ("actions/action/select", ["data.0", "data.2"], "CONTRACT_VALUE_INVALID", "data.0"),
        ("actions/action/select", ["data.0", "position.b"], "CONTRACT_VALUE_INVALID", "write data.0 to data.N-1"),
        ("actions/action/channel/type", "std_msgs/msg/String", "CONTRACT_TYPE_UNSUPPORTED", "Float64MultiArray"),
        ("actions/action/channel/safety", "zeros", "CONTRACT_HOLD_INVALID", "zeros"),
        ("actions/action/apply", [{"clamp": {"min": 5, "max": 6}}], "CONTRACT_VALUE_INVALID", "clamp"),
        ("actions/action/apply", [{"resize": [2, 2]}], "CONTRACT_VALUE_INVALID", "resize"),
        ("actions/action/apply", ["warp"], "CONTRACT_KEY_UNKNOWN", "warp"),
        ("actions/other", {}, "CONTRACT_VALUE_INVALID", "action"),
        ("observations/observation.state/channel/decoder", "my.code:run", "CONTRACT_KEY_UNKNOWN", "code in a contract"),
        ("actions/action/channel/encoder", "my.code:run", "CONTRACT_KEY_UNKNOWN", "code in a contract is not run"),
        ("observations/observation.state/select", ["positon.a"], "CONTRACT_VALUE_INVALID", "write position.JOINT"),
        ("observations/observation.state/select", ["position.a", "a"], "CONTRACT_VALUE_INVALID", "different"),
        ("observations/observation.state/kind", "quaternio", "CONTRACT_VALUE_INVALID", "did you mean 'quaternion'"),
        ("observations/observation.state/apply", [{"resize": [2, 2]}], "CONTRACT_VALUE_INVALID", "rad2deg, clamp"),
        ("observations/observation.state/apply", ["rad2deg"] * 2, "CONTRACT_VALUE_INVALID", "twice"),
    ],
)
def test_a_fault_is_refused_with_its_code_and_its_place(path: str, value: Any, code: str, named: str) -> None:
    error = refused(changed(path, value))
    assert error.code == code, error.message
    assert named in error.message


@pytest.mark.parametrize("mode", ["velocity", "effort"])
def test_velocity_and_effort_are_refused_unless_the_driver_stops_by_itself(mode: str) -> None:
    data = yaml.safe_load(contract_text())
    channel = data["safety"]["channels"][0]
    rate = {"velocity": "acceleration", "effort": "effort_rate"}[mode]
    channel |= {"mode": mode, "hold": "zero_velocity", "limits": {mode: [-1.0, 1.0], rate: 4.0, "step": 0.5}}
    assert refused(yaml.safe_dump(data)).code == "DOWNSTREAM_TIMEOUT_MISSING"
    channel["downstream_timeout_ms"] = 5
    assert refused(yaml.safe_dump(data)).code == "CONTRACT_VALUE_INVALID"
    channel["downstream_timeout_ms"] = 200
    parse_contract(yaml.safe_dump(data))
    channel["hold"] = "measured"
    assert refused(yaml.safe_dump(data)).code == "CONTRACT_HOLD_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a",
        "{",
        "robot_type: &a [*a]",
        "robot_type: !!python/object/apply:os.system ['true']",
        "? [1]\n: 2",
        "1: 2",
        "a: 1\na: 2",
        "x: " + "[" * 2000,
        "\x00",
    ],
)
def test_text_that_is_no_contract_is_a_coded_refusal(text: str) -> None:
    assert refused(text).code.startswith("CONTRACT_")


def test_a_key_that_is_there_twice_is_refused() -> None:
    error = refused(contract_text() + "\nfps: 20\n")
    assert error.code == "CONTRACT_SYNTAX" and "twice" in error.message


def test_a_contract_that_is_not_named_or_is_a_folder_is_refused_in_plain_words(tmp_path: Path) -> None:
    for name, words in (("", "set the parameter contract"), (tmp_path, f"{tmp_path}: Is a directory")):
        with pytest.raises(ContractError) as e:
            load_contract(name)
        assert e.value.code == "CONTRACT_UNREADABLE" and words in e.value.message


def test_size_is_bounded_and_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert refused(contract_text() + "#" * 70_000).code == "CONTRACT_TOO_LARGE"
    (tmp_path / "big.yaml").write_text(contract_text() + "#" * 70_000)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    for name, code in (
        ("none.yaml", "UNREADABLE"),
        (".", "UNREADABLE"),
        ("big.yaml", "TOO_LARGE"),
        ("latin.yaml", "UNREADABLE"),
    ):
        with pytest.raises(ContractError) as e:
            load_contract(tmp_path / name)
        assert e.value.code == f"CONTRACT_{code}" and str(tmp_path) in e.value.message


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.text(max_size=200), st.integers(0, 900), st.integers(0, 60))
def test_no_damage_to_a_contract_gets_another_exception_out_of_the_parser(noise: str, at: int, cut: int) -> None:
    text = contract_text()
    try:
        parse_contract(text[:at] + noise + text[at + cut :])
    except ContractError as e:
        assert e.code and e.message


ROSETTA = """
robot_type: mobile_arm
robot_interface: ros2
fps: 30
x-qos: &qos {reliability: best_effort, history: keep_last, depth: 10}
observations:
  observation.images.top:
    channel: {topic: /top/image_raw/compressed, type: sensor_msgs/msg/CompressedImage, qos: *qos}
    align: {strategy: hold, timeline: header}
    apply: [resize: [32, 48]]
  observation.images.wrist:
    channel: {topic: /wrist/image_raw, type: sensor_msgs/msg/Image, qos: *qos, dtype: video}
    align: {strategy: hold, timeline: header}
    apply: [resize: [32, 32]]
  observation.state:
    - channel: {topic: /arm/joint_states, type: sensor_msgs/msg/JointState, qos: *qos}
      align: {strategy: hold, timeline: header}
      select: [position.shoulder]
      apply: [rad2deg]
    - channel: {topic: /gripper/joint_states, type: sensor_msgs/msg/JointState, qos: *qos}
      align: {strategy: hold, timeline: header}
      select: [finger]
    - channel: {topic: /odom, type: nav_msgs/msg/Odometry, dtype: float64}
      align: {strategy: asof, timeline: header, tolerance_ms: 50}
      select: [twist.twist.linear.x, twist.twist.angular.z]
  observation.imu:
    channel: {topic: /imu, type: sensor_msgs/msg/Imu, dtype: float64, qos: *qos}
    align: {strategy: asof, timeline: header, tolerance_ms: 10}
    select: [orientation.x, orientation.y, orientation.z, orientation.w]
    kind: quaternion
  observation.battery:
    channel: {topic: /battery, type: std_msgs/msg/Float64MultiArray, decoder: "cells:decode", dtype: float32}
    align: {strategy: drop, timeline: receive}
    select: [cell0, cell1]
actions:
  action:
    - channel: {topic: /arm/commands, type: sensor_msgs/JointState, safety: hold}
      align: {strategy: hold, timeline: header}
      select: [position.shoulder]
      apply: [rad2deg, clamp: {min: -50, max: 90}]
    - channel: {topic: /gripper/command, type: std_msgs/msg/Float64, encoder: "gripper:encode", safety: hold}
      align: {strategy: hold, timeline: receive}
      select: [data]
      kind: binary
  action.base:
    channel: {topic: /cmd_vel, type: geometry_msgs/msg/TwistStamped, safety: zeros}
    align: {strategy: hold, timeline: receive}
    select: [twist.linear.x, twist.angular.z]
    apply: [clamp: {min: -0.4, max: 0.4}]
tasks: {task: {channel: {topic: /task_prompt, type: std_msgs/msg/String}}}
teleop:
  input:
    - {target: /arm/commands, channel: {topic: /leader, type: sensor_msgs/msg/JointState}, select: [position.shoulder]}
  events: {channel: {topic: /joy, type: sensor_msgs/msg/Joy}, select: {success: buttons.0}}
rewards: {next.reward: {channel: {topic: /reward, type: std_msgs/msg/Float64, dtype: float64}}}
adjunct: [{channel: {topic: /tf, type: tf2_msgs/msg/TFMessage}}]
x-safety:
  motion_enabled: {required: true, timeout_s: 0.3}
  observation_max_age_ms: 100
  channels:
    - &joint {name: shoulder, unit: deg, mode: absolute, measured: position.shoulder, hold: measured, max_decel: 500,
       hold_timeout_s: 1, rest_step: 0.1, limits: {position: [-90, 80], velocity: 90, step: 10}}
    - <<: *joint
      name: gripper
      measured: position.finger
    - &base {name: vx, unit: m/s, mode: velocity, hold: zero_velocity, max_decel: 2, hold_timeout_s: 1, rest_step: 0.01,
       downstream_timeout_ms: 250, limits: {velocity: [-0.5, 0.5], acceleration: 1, step: 0.3}}
    - <<: *base
      name: wz
      unit: rad/s
"""
"""Every key that rosetta's own example contracts have."""


def test_a_rosetta_file_is_read_with_our_section_beside_its_own_but_its_code_is_not_run() -> None:
    text = ROSETTA
    for key, code in (("decoder", "cells:decode"), ("encoder", "gripper:encode")):
        reason = str(refused(text))
        assert f"channel.{key}: code in a contract is not run" in reason
        text = text.replace(f', {key}: "{code}"', "")
    parsed = parse_contract(text)
    assert (parsed.robot_type, parsed.rate_hz, parsed.motion.required) == ("mobile_arm", 30.0, True)
    assert parsed.features == {
        "observation.images.top": FeatureSpec((32, 48, 3), "uint8"),
        "observation.images.wrist": FeatureSpec((32, 32, 3), "uint8"),
        "observation.state": FeatureSpec((4,), "float32"),
        "observation.imu": FeatureSpec((4,), "float32"),
        "observation.battery": FeatureSpec((2,), "float32"),
    }
    assert [(o.topic, o.start, o.stop, o.rad2deg) for o in parsed.outputs] == [
        ("/arm/commands", 0, 1, True),
        ("/gripper/command", 1, 2, False),
        ("/cmd_vel", 2, 4, False),
    ]
    shoulder, gripper, vx, _ = parsed.channels
    assert (shoulder.limits.low, shoulder.limits.high) == (-50.0, 80.0)  # the tighter of clamp and limit
    assert (vx.limits.low, vx.limits.high) == (-0.4, 0.4)
    assert (shoulder.measured, gripper.measured) == (("observation.state", 0), ("observation.state", 1))
    assert parsed.observations[2].sources[2].align.tolerance_ms == 50.0
    assert parsed.observations[4].sources[0].select == ("data.0", "data.1")
    assert parsed.instruction is None  # `tasks` labels recordings


def observing(entry: str) -> str:
    return contract_text().replace("\nactions:", f"\n  extra:\n    {entry}\nactions:")


PROMPT = "channel: {topic: prompt, type: std_msgs/msg/String}\n    align: {strategy: hold, timeline: receive}"
CAMERA = (
    "channel: {topic: image, type: sensor_msgs/msg/Image}\n    align: {strategy: hold, timeline: header}\n    apply:"
)


def test_a_text_is_the_instruction_and_no_feature() -> None:
    parsed = parse_contract(observing(PROMPT))
    assert parsed.instruction is not None and parsed.instruction.topic == "prompt"
    assert (parsed.instruction.qos.reliability, set(parsed.features)) == ("reliable", {"observation.state"})


def test_a_picture_is_cut_and_resized_in_the_order_of_the_file() -> None:
    crop = "crop: {top: 1, left: 2, height: 30, width: 40}"
    for entry, steps, size in (
        (f"[{crop}, resize: [8, 9], bgr]", ["crop", "resize"], (8, 9)),
        (f"[resize: [64, 64], {crop}]", ["resize", "crop"], (30, 40)),
        (f"[{crop}]", ["crop"], (30, 40)),
    ):
        picture = parse_contract(observing(f"{CAMERA} {entry}")).observations[1].sources[0].picture
        assert picture is not None and [name for name, _ in picture.steps] == steps
        assert (picture.size, picture.blue_first) == (size, "bgr" in entry)


@pytest.mark.parametrize(
    ("entry", "code", "named"),
    [
        (PROMPT.replace("strategy: hold", "strategy: asof, tolerance_ms: 9"), "CONTRACT_VALUE_INVALID", "does not age"),
        (PROMPT.replace("receive", "header"), "CONTRACT_VALUE_INVALID", "no header"),
        (f"{PROMPT}\n  more:\n    {PROMPT}", "CONTRACT_VALUE_INVALID", "second instruction"),
        (f"{PROMPT}\n    select: [data]", "CONTRACT_KEY_UNKNOWN", "extra.select"),
        (CAMERA.removesuffix("apply:"), "CONTRACT_KEY_MISSING", "resize: [height, width]"),
        (f"{CAMERA} [bgr]", "CONTRACT_KEY_MISSING", "resize: [height, width]"),
        (f"{CAMERA} [rad2deg]", "CONTRACT_VALUE_INVALID", "crop, resize, bgr"),
        (f"{CAMERA} [resize: [0, 8]]", "CONTRACT_VALUE_INVALID", "apply[0].resize"),
        (f"{CAMERA} [crop: {{top: 0, left: 0, height: 8}}]", "CONTRACT_KEY_MISSING", "crop.width"),
        (f"{CAMERA} [crop: {{top: -1, left: 0, height: 8, width: 8}}]", "CONTRACT_VALUE_INVALID", "crop.top"),
        (f"{CAMERA} [resise: [8, 8]]", "CONTRACT_KEY_UNKNOWN", "did you mean 'resize'"),
    ],
)
def test_a_picture_or_an_instruction_that_is_not_said_in_full_is_refused(entry: str, code: str, named: str) -> None:
    error = refused(observing(entry))
    assert error.code == code and named in error.message, error.message


def trajectory(*select: str) -> str:
    text = SIM_ARM.read_text().replace("std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory")
    return text.replace("[data.0, data.1, data.2]", f"[{', '.join(select)}]")


def test_joints_are_spelt_in_each_of_rosettas_ways_and_other_ways_are_refused_with_ours() -> None:
    names = ("position.j1", "position.j2", "position.j3")
    assert parse_contract(trajectory("position.j1", "positions.j2", "j3")).outputs[0].select == names
    reason = str(refused(trajectory("points.0.positions.0", *names[1:])))
    assert "points.0" in reason and "write position.JOINT, velocity.JOINT or effort.JOINT" in reason


def test_the_shipped_contract_is_the_simulated_arms() -> None:
    parsed = load_contract(SIM_ARM)
    assert parsed.robot_type == arm.ROBOT_TYPE and parsed.rate_hz == arm.CONTROL_HZ
    assert tuple(c.name for c in parsed.channels) == arm.JOINT_NAMES
    for channel, bounds, speed in zip(parsed.channels, arm.POSITION_LIMITS_RAD, arm.VELOCITY_LIMITS_RAD_S, strict=True):
        assert (channel.limits.low, channel.limits.high) == bounds
        assert channel.limits.rate <= speed


def manifest(fit: Contract, **changes: Any) -> Manifest:
    channels = tuple(Channel(c.name, c.unit, c.mode) for c in fit.channels)  # type: ignore[arg-type]
    made = Manifest(
        "m", "1.0.0", "tiny_vla", fit.robot_type, ActionSpec(channels, fit.rate_hz), "2026-01-01T00:00:00Z", (), {}
    )
    return replace(made, **changes)


SPEC = PolicySpec({"observation.state": FeatureSpec((2,), "float32")}, horizon=20, execute=10, action_dim=2)


def channels_with(fit: Contract, **changes: Any) -> ActionSpec:
    spec = manifest(fit).action
    return ActionSpec((replace(spec.channels[0], **changes), *spec.channels[1:]), spec.rate_hz)


@pytest.mark.parametrize(
    ("code", "bundle", "spec"),
    [
        ("ROBOT_TYPE_MISMATCH", lambda c: {"robot_type": "other"}, {}),
        ("RATE_MISMATCH", lambda c: {"action": replace(manifest(c).action, rate_hz=49.0)}, {}),
        (
            "CHANNELS_MISMATCH",
            lambda c: {"action": replace(manifest(c).action, channels=manifest(c).action.channels[::-1])},
            {},
        ),
        ("CHANNELS_MISMATCH", lambda c: {"action": channels_with(c, name="z")}, {}),
        ("UNIT_MISMATCH", lambda c: {"action": channels_with(c, unit="deg")}, {}),
        ("MODE_MISMATCH", lambda c: {"action": channels_with(c, mode="relative")}, {}),
        ("ACTION_DIM_MISMATCH", lambda c: {}, {"action_dim": 3}),
        (
            "OBSERVATION_MISMATCH",
            lambda c: {},
            {"observation": {"observation.images.top": FeatureSpec((8, 8, 3), "uint8")}},
        ),
        ("OBSERVATION_MISMATCH", lambda c: {}, {"observation": {"observation.state": FeatureSpec((3,), "float32")}}),
        ("HORIZON_TOO_SHORT", lambda c: {}, {"horizon": 12}),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(code: str, bundle: Any, spec: dict[str, Any]) -> None:
    fit = contract()
    with pytest.raises(ContractError) as e:
        fit.check_bundle(manifest(fit, **bundle(fit)), replace(SPEC, **spec))
    assert e.value.code == code


def test_a_bundle_that_fits_is_taken_unless_it_is_too_slow_for_its_horizon() -> None:
    fit = contract()
    fit.check_bundle(manifest(fit), SPEC, latency_s=0.1)
    with pytest.raises(ContractError) as e:
        fit.check_bundle(manifest(fit), SPEC, latency_s=0.3)
    assert e.value.code == "HORIZON_TOO_SHORT"
