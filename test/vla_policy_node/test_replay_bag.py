# SPDX-License-Identifier: Apache-2.0
"""Recordings as ``ros2 bag record -s mcap`` makes them: pictures as they came, several files, several robots, other topics."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String

from vla_policy_node.contract.model import load_contract, parse_contract
from vla_policy_node.errors import ObservationError
from vla_policy_node.pictures import decode
from vla_policy_node.replay.replay import Recorded
from vla_policy_node.replay.ros.bag import Bag
from vla_recorder.mcap_file import McapFile
from vla_recorder.records import Record, Topic
from vla_recorder.ros.schemas import schema

CONTRACT = load_contract(Path(__file__).resolve().parents[2] / "config" / "sim_arm.contract.yaml")
PIXELS = np.full((64, 64, 3), (10, 200, 30), np.uint8)


def record(path: Path, messages: list[tuple[str, Any]], begin_ns: int = 10**18) -> None:
    file = McapFile(path)
    for number, (name, message) in enumerate(messages):
        package, kind = type(message).__module__.partition(".")[0], type(message).__name__
        topic = Topic(name, f"{package}/msg/{kind}", schema(f"{package}/msg/{kind}"))
        at_ns = begin_ns + number
        file.write(Record(topic, at_ns, at_ns, bytes(serialize_message(message))))
    file.finish()


def picture() -> Image:
    return Image(height=64, width=64, step=192, encoding="rgb8", data=PIXELS.tobytes())


def compressed(form: str = "png") -> CompressedImage:
    out = io.BytesIO()
    Pillow.fromarray(PIXELS).save(out, "PNG")
    return CompressedImage(format=form, data=out.getvalue())


def joints(position: float = 0.0) -> JointState:
    return JointState(name=["j1"], position=[position])


def robot(space: str = "") -> list[tuple[str, Any]]:
    commands = ("/forward_position_controller/commands", Float64MultiArray(data=[1.0, 2.0, 3.0]))
    found = [("/camera/image_raw", picture()), ("/joint_states", joints()), commands, ("/chatter", String(data="x"))]
    return [(space + name, message) for name, message in found]


def read(path: Path, namespace: str | None = None) -> list[tuple[str, Any]]:
    return [(m.topic, m.value) for m in Bag(path).messages(CONTRACT, namespace)]


def test_what_the_contract_names_is_read_in_order_and_nothing_else(tmp_path: Path) -> None:
    record(tmp_path / "a.mcap", robot("/lab/arm"))
    found = read(tmp_path / "a.mcap")
    assert [topic for topic, _ in found] == ["camera/image_raw", "joint_states", "forward_position_controller/commands"]
    assert bytes(found[0][1].data) == PIXELS.tobytes() and list(found[2][1].data) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("form", "pixels"), [("png", PIXELS), ("rgb8; png compressed rgb8", PIXELS[..., ::-1])])
def test_pictures_that_were_compressed_are_read_as_the_robot_reads_them(tmp_path: Path, form: str, pixels: Any) -> None:
    record(tmp_path / "a.mcap", [("/camera/image_raw/compressed", compressed(form)), ("/joint_states", joints())])
    topic, value = read(tmp_path / "a.mcap")[0]
    assert topic == "camera/image_raw"
    np.testing.assert_array_equal(decode(value), pixels)


def test_a_damaged_picture_is_counted_and_ends_no_replay(tmp_path: Path) -> None:
    torn = CompressedImage(format="jpeg", data=compressed().data[:40])
    messages = [
        ("/camera/image_raw/compressed", torn),
        ("/camera/image_raw/compressed", compressed()),
        ("/joint_states", joints()),
    ]
    record(tmp_path / "a.mcap", messages)
    recorded = Recorded(CONTRACT, None)
    for message in Bag(tmp_path / "a.mcap").messages(CONTRACT, None):
        recorded.receive(message)
    assert "IMAGE_DAMAGED" in {reason.partition(":")[0] for reason in recorded.unusable}
    recorded.observations.close()


def test_the_task_is_read_from_the_contracts_topic(tmp_path: Path) -> None:
    task = "  task:\n    channel: {topic: task, type: std_msgs/msg/String}\n    align: {strategy: hold, timeline: receive}\n"
    contract = parse_contract(CONTRACT.text.replace("observations:\n", f"observations:\n{task}", 1))
    record(tmp_path / "a.mcap", [*robot(), ("/task", String(data="pick the red one"))])
    recorded = Recorded(contract, None)
    for message in Bag(tmp_path / "a.mcap").messages(contract, None):
        recorded.receive(message)
    recorded.observations.publish()
    shown = recorded.observations.arena.read(["instruction"])
    assert shown is not None and shown[1]["instruction"].tobytes().rstrip(b"\0") == b"pick the red one"
    recorded.observations.close()


def test_a_recording_in_several_files_is_one_in_the_order_of_time(tmp_path: Path) -> None:
    for number in range(3):
        name = f"bag_{number + 9}.mcap"  # the file after bag_9 is bag_10
        record(tmp_path / name, [*robot(), ("/joint_states", joints(number))], 10**18 + number * 100)
    positions = [value.position[0] for topic, value in read(tmp_path) if topic == "joint_states"]
    assert positions == [0.0, 0.0, 0.0, 1.0, 0.0, 2.0]


def test_of_several_robots_one_has_to_be_named(tmp_path: Path) -> None:
    record(tmp_path / "a.mcap", robot("/left") + robot("/right"))
    with pytest.raises(ObservationError, match=r"--namespace /left or /right") as refused:
        read(tmp_path / "a.mcap")
    assert refused.value.code == "BAG_TOPIC_MISSING"
    assert len(read(tmp_path / "a.mcap", "right")) == len(read(tmp_path / "a.mcap", "/left")) == 3


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("/joint_states", joints())], r"needs /camera/image_raw \(sensor_msgs/msg/Image\); it has /joint_states"),
        (
            [("/camera/image_raw", joints())],
            r"/camera/image_raw \(sensor_msgs/msg/Image\); it is sensor_msgs/msg/JointState",
        ),
        ([("/arm/camera/image_raw", picture())], r"needs /arm/joint_states"),
        ([], "it has no topic"),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(
    tmp_path: Path, messages: list[tuple[str, Any]], reason: str
) -> None:
    record(tmp_path / "a.mcap", messages)
    with pytest.raises(ObservationError, match=reason) as refused:
        read(tmp_path / "a.mcap")
    assert refused.value.code == "BAG_TOPIC_MISSING"


@pytest.mark.parametrize(
    "damage", ["missing", "empty folder", "empty", "no MCAP", "cut off", "overwritten", "no schemas"]
)
def test_a_recording_that_cannot_be_read_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.mcap"
    record(path, robot() * 50)
    data = bytearray(path.read_bytes())
    if damage == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
        path.write_bytes(data)
    elif damage == "no schemas":  # zeros up to a record of the index are records of no known kind, which readers skip
        summary_start = int.from_bytes(data[-28:-20], "little")
        length = 9 + int.from_bytes(data[summary_start + 1 : summary_start + 9], "little")
        data[summary_start : summary_start + length] = bytes(length)
        path.write_bytes(data)
    elif damage in ("empty", "no MCAP"):
        path.write_bytes(damage.encode() if damage == "no MCAP" else b"")
    elif damage == "empty folder":
        path = tmp_path / "folder"
        path.mkdir()
    else:
        path = tmp_path / "none.mcap"
    with pytest.raises(ObservationError) as refused:
        read(path)
    assert refused.value.code == "BAG_UNREADABLE" and str(path) in refused.value.message
