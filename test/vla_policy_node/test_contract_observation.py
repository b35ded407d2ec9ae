# SPDX-License-Identifier: Apache-2.0
"""Messages become features exactly as the contract says, and an incomplete or old observation never looks valid."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
import pytest
from support.camera_messages import compressed, image
from support.control_rig import contract_text
from support.refusals import refused

from vla_policy_node.contract.model import parse_contract
from vla_policy_node.errors import ObservationError
from vla_policy_node.ipc.layouts import INSTRUCTION_BYTES
from vla_policy_node.observation import ObservationBuffer

MS = 1_000_000
T0 = 1_000_000 * MS

TEXT = contract_text(motion=True).replace(
    "observations:",
    """observations:
  observation.images.top:
    channel: {topic: image, type: sensor_msgs/msg/Image}
    align: {strategy: asof, timeline: header, tolerance_ms: 60}
    apply: [resize: [2, 3]]""",
)


def joints(values: dict[str, float], **more: Any) -> Message:
    made = Message(name=list(values), position=array("d", values.values()), velocity=array("d"), effort=array("d"))
    return Message(**{**vars(made), **more})


@pytest.fixture
def buffer() -> Iterator[ObservationBuffer]:
    made = ObservationBuffer(parse_contract(TEXT))
    yield made
    made.arena.close()


def feed(buffer: ObservationBuffer, now_ns: int = T0, picture_age_ms: int = 0) -> None:
    buffer.receive("observation.state", 0, joints({"b": 2.0, "x": 9.0, "a": 1.0}), now_ns=now_ns)
    ros_now = 5_000_000 * MS
    buffer.receive(
        "observation.images.top", 0, image(stamp_ns=ros_now - picture_age_ms * MS), ros_now_ns=ros_now, now_ns=now_ns
    )


def record(buffer: ObservationBuffer) -> dict[str, Any]:
    read = buffer.arena.read()
    assert read is not None
    return read[1]


def test_a_complete_observation_is_written_with_names_in_the_contracts_order(buffer: ObservationBuffer) -> None:
    feed(buffer, picture_age_ms=20)
    assert buffer.publish(T0 + 5 * MS)
    r = record(buffer)
    np.testing.assert_array_equal(r["feature:observation.state"], np.float32([1.0, 2.0]))
    np.testing.assert_array_equal(r["feature:observation.images.top"].ravel(), np.arange(18))
    np.testing.assert_array_equal(r["measured"], [1.0, 2.0])
    assert (r["valid"], r["stamp_ns"], r["measured_ns"]) == (1, T0 - 20 * MS, T0)


def test_a_missing_or_an_old_part_makes_the_record_invalid(buffer: ObservationBuffer) -> None:
    assert not buffer.publish(T0)
    assert record(buffer)["valid"] == 0 and np.isnan(record(buffer)["measured"]).all()
    feed(buffer)
    assert buffer.publish(T0 + 60 * MS)
    assert not buffer.publish(T0 + 61 * MS)  # the picture's tolerance
    feed(buffer, T0 + 70 * MS, picture_age_ms=61)  # it arrived now, but was taken then
    assert not buffer.publish(T0 + 70 * MS)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (joints({"a": 1.0}), "OBSERVATION_FIELD_MISSING"),
        (Message(name=["a", "b", "a"], position=[1.0, 2.0, 3.0]), "OBSERVATION_FIELD_MISSING"),
        (Message(name=["a", "b"], position=[1.0]), "OBSERVATION_FIELD_MISSING"),
        (joints({"a": 1.0, "b": float("nan")}), "OBSERVATION_NOT_FINITE"),
        (joints({"a": 1.0, "b": float("inf")}), "OBSERVATION_NOT_FINITE"),
        (joints({"a": 1.0, "b": -1e39}), "OBSERVATION_NOT_FINITE"),  # infinite in float32
    ],
)
def test_joint_states_that_do_not_hold_what_was_promised_are_refused_and_the_old_one_ages(
    buffer: ObservationBuffer, message: Message, code: str
) -> None:
    feed(buffer)
    with pytest.raises(ObservationError) as e:
        buffer.receive("observation.state", 0, message, now_ns=T0 + 150 * MS)
    assert e.value.code == code and "joint_states" in e.value.message
    assert not buffer.publish(T0 + 250 * MS)


def test_a_damaged_picture_is_refused_with_its_topic_and_the_one_before_ages() -> None:
    raw, packed = "type: sensor_msgs/msg/Image}", "type: sensor_msgs/msg/CompressedImage}"
    buffer = ObservationBuffer(
        parse_contract(TEXT.replace(raw, packed).replace("timeline: header", "timeline: receive"))
    )
    try:
        pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
        buffer.receive("observation.state", 0, joints({"a": 1.0, "b": 2.0}), now_ns=T0)
        buffer.receive("observation.images.top", 0, compressed(pixels), now_ns=T0)
        damaged = compressed(pixels)
        del damaged.data[40:]
        with refused("IMAGE_DAMAGED") as caught:
            buffer.receive("observation.images.top", 0, damaged, now_ns=T0 + 50 * MS)
        assert "image: 40 bytes" in str(caught.value)
        assert buffer.publish(T0 + 60 * MS)
        np.testing.assert_array_equal(record(buffer)["feature:observation.images.top"], pixels)
        assert not buffer.publish(T0 + 61 * MS)
    finally:
        buffer.close()


@pytest.mark.parametrize(
    ("kind", "fields", "message", "want"),
    [
        ("std_msgs/msg/Bool", "", Message(data=True), [1.0]),
        ("std_msgs/msg/Int32", "", Message(data=-3), [-3.0]),
        ("std_msgs/msg/Int64", "select: [data]", Message(data=7), [7.0]),
        ("std_msgs/msg/Float32", "", Message(data=0.5), [0.5]),
        ("std_msgs/msg/Float64", "", Message(data=0.25), [0.25]),
        ("std_msgs/msg/Float64", "apply: [rad2deg, clamp: {min: -90, max: 90}]", Message(data=7.0), [90.0]),
        ("std_msgs/msg/Float64", "apply: [clamp: {min: -1, max: 1}, rad2deg]", Message(data=7.0), [np.degrees(1.0)]),
        ("std_msgs/msg/Int32MultiArray", "select: [data.2, data.0]", Message(data=[1, 2, 3]), [3.0, 1.0]),
        ("std_msgs/msg/Float64MultiArray", "select: [left, right]", Message(data=[1.0, 2.0, 3.0]), [1.0, 2.0]),
        ("sensor_msgs/msg/Joy", "select: [axes.1, buttons.0]", Message(axes=[0.0, -1.0], buttons=[1]), [-1.0, 1.0]),
    ],
)
def test_each_kind_of_number_becomes_a_part_of_the_feature(kind: str, fields: str, message: Message, want: Any) -> None:
    extra = f"""
  observation.extra:
    channel: {{topic: extra, type: {kind}}}
    align: {{strategy: hold, timeline: receive}}
    {fields}
actions:"""
    buffer = ObservationBuffer(parse_contract(contract_text().replace("\nactions:", extra)))
    try:
        buffer.receive("observation.state", 0, joints({"a": 0.0, "b": 0.0}), now_ns=T0)
        buffer.receive("observation.extra", 0, message, now_ns=T0)
        assert buffer.publish(T0)
        np.testing.assert_array_equal(record(buffer)["feature:observation.extra"], np.float32(want))
    finally:
        buffer.close()


def test_a_joint_state_whose_order_changes_is_followed(buffer: ObservationBuffer) -> None:
    for names in (("a", "b"), ("b", "a"), ("a", "b", "c")):
        values = {n: float("abc".index(n)) for n in names}
        buffer.receive("observation.state", 0, joints(values), now_ns=T0)
        buffer.publish(T0)
        np.testing.assert_array_equal(record(buffer)["measured"], [0.0, 1.0])


def test_a_header_without_a_stamp_or_from_the_future_is_refused(buffer: ObservationBuffer) -> None:
    for stamp_ns, code in ((0, "OBSERVATION_UNSTAMPED"), (9_000_000 * MS, "OBSERVATION_CLOCK")):
        with refused(code):
            buffer.receive("observation.images.top", 0, image(stamp_ns=stamp_ns), ros_now_ns=5_000_000 * MS, now_ns=T0)


def test_a_renewed_permission_takes_no_record_of_the_history(buffer: ObservationBuffer) -> None:
    """motion_enabled may come far more often than observations are handed over."""
    buffer.set_motion(True, T0)
    first = buffer.arena.newest
    for i in range(20):
        buffer.set_motion(True, T0 + 5 * i * MS)
    assert buffer.arena.newest == first
    assert buffer.motion_permitted(T0 + 95 * MS + 500 * MS)
    buffer.publish(T0 + 100 * MS)
    assert record(buffer)["motion_ns"] == T0 + 95 * MS + 500 * MS and record(buffer)["written_ns"] == T0 + 100 * MS
    soon = T0 + 595 * MS - 10 * MS  # it would end before the record after the next
    buffer.set_motion(True, soon)
    assert record(buffer)["motion_ns"] == soon + 500 * MS


def test_motion_is_permitted_until_its_timeout_only(buffer: ObservationBuffer) -> None:
    feed(buffer)
    buffer.publish(T0)
    assert record(buffer)["motion_ns"] == 0 and not buffer.motion_permitted(T0)
    buffer.set_motion(True, T0)
    assert record(buffer)["motion_ns"] == T0 + 500 * MS
    assert buffer.motion_permitted(T0 + 500 * MS) and not buffer.motion_permitted(T0 + 501 * MS)
    buffer.set_motion(False, T0 + 1)
    assert record(buffer)["motion_ns"] == -1 and not buffer.motion_permitted(T0 + 1)


def test_episode_and_instruction_reach_the_record(buffer: ObservationBuffer) -> None:
    feed(buffer)
    assert buffer.start_episode("greife den Würfel") == 1
    assert record(buffer)["instruction"].tobytes().rstrip(b"\0").decode() == "greife den Würfel"
    assert buffer.start_episode("x" * INSTRUCTION_BYTES) == 2 and record(buffer)["episode"] == 2
    for text in ("é" * INSTRUCTION_BYTES, "a\0b"):
        with refused("INSTRUCTION_TOO_LONG"):
            buffer.start_episode(text)
