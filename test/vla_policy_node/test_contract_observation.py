# SPDX-License-Identifier: Apache-2.0
"""Messages become features exactly as the contract says, and an incomplete or old observation never looks valid."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.control_rig import contract_text
from support.refusals import refused

from vla_policy_node.contract.model import parse_contract
from vla_policy_node.decoding import decode_image
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


def image(height: int = 2, width: int = 3, encoding: str = "rgb8", padding: int = 0, stamp_ns: int = 0) -> Message:
    size = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4, "bgra8": 4}.get(encoding, 3)
    rows = np.full((height, width * size + padding), 255, np.uint8)
    rows[:, : width * size] = np.arange(height * width * size, dtype=np.uint8).reshape(height, -1)
    stamp = Message(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return Message(
        height=height,
        width=width,
        encoding=encoding,
        step=width * size + padding,
        is_bigendian=0,
        data=array("B", rows.tobytes()),
        header=Message(stamp=stamp),
    )


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


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_pictures_of_each_encoding_come_out_as_rgb_whatever_their_row_padding(encoding: str, padding: int) -> None:
    message = image(4, 5, encoding, padding)
    got = decode_image(message, (4, 5))
    size = message.step - padding
    pixels = np.arange(4 * size, dtype=np.uint8).reshape(4, 5, -1)
    want = np.repeat(pixels, 3, axis=2) if encoding == "mono8" else pixels[..., :3]
    np.testing.assert_array_equal(got, want[..., ::-1] if encoding.startswith("bgr") else want)
    del message.data[len(message.data) - padding :]  # the last row without its padding
    np.testing.assert_array_equal(decode_image(message, (4, 5)), got)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_resizing_takes_the_pixel_under_each_centre(height: int, width: int, rows: int, columns: int) -> None:
    message = image(height, width, "mono8")
    source = np.frombuffer(message.data, np.uint8).reshape(height, width)
    got = decode_image(message, (rows, columns))[..., 0]
    y = np.floor((np.arange(rows) + 0.5) * height / rows + 1e-9).astype(int)
    x = np.floor((np.arange(columns) + 0.5) * width / columns + 1e-9).astype(int)
    np.testing.assert_array_equal(got, source[np.ix_(y, x)])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"encoding": "16UC1"}, "IMAGE_ENCODING"),
        ({"encoding": ""}, "IMAGE_ENCODING"),
        ({"height": 3}, "IMAGE_SIZE"),
        ({"width": 4}, "IMAGE_SIZE"),
        ({"step": 5}, "IMAGE_SIZE"),
        ({"height": 0}, "IMAGE_SIZE"),
        ({"width": 10**9}, "IMAGE_SIZE"),
        ({"data": array("B")}, "IMAGE_SIZE"),
    ],
)
def test_a_picture_that_contradicts_itself_is_refused(change: dict[str, Any], code: str) -> None:
    message = image()
    for key, value in change.items():
        setattr(message, key, value)
    with refused(code):
        decode_image(message, (2, 3))
