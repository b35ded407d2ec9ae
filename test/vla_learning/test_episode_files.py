# SPDX-License-Identifier: Apache-2.0
"""An episode comes back as it was written, opens with the public MCAP libraries, and no hostile file is taken for one."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcap_ros2.writer
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from mcap_ros2.decoder import DecoderFactory
from PIL import Image
from support.episodes import CAMERA, RATE_HZ, STATE, make_episode, meta

from vla_learning.episodes.format import IMAGE_SCHEMA, IMAGE_TYPE, METADATA, decode_image, encode_image
from vla_learning.episodes.reading import read_episode
from vla_learning.episodes.writing import write_episode
from vla_learning.errors import EpisodeError


def refused(path: Path) -> EpisodeError:
    before = path.read_bytes()
    with pytest.raises(EpisodeError) as found:
        read_episode(path)
    assert path.read_bytes() == before
    assert "\n" not in str(found.value)
    return found.value


def test_an_episode_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = make_episode(tmp_path / "e.mcap", steps=13, corrected=4, success=None)
    made["policy_actions"][0] = np.nan
    write_episode(tmp_path / "e.mcap", meta(success=None), **made)
    episode = read_episode(tmp_path / "e.mcap")
    assert (
        episode.steps == 13 and episode.corrections == 4 and episode.meta.intervention and episode.meta.success is None
    )
    assert episode.meta.duration_s == 13 / RATE_HZ
    for name, values in made["features"].items():
        assert episode.features[name].dtype == values.dtype
        np.testing.assert_array_equal(episode.features[name], values)
    np.testing.assert_array_equal(episode.actions, made["actions"])
    np.testing.assert_array_equal(episode.policy_actions, made["policy_actions"])
    np.testing.assert_array_equal(episode.intervention, made["intervention"])
    np.testing.assert_array_equal(np.diff(episode.times_ns), 10**8)
    assert len(episode.pictures[CAMERA].encoded) == 7, "a picture that did not change is stored once"


def test_the_public_libraries_read_an_episode(tmp_path: Path) -> None:
    made = make_episode(tmp_path / "e.mcap")
    with (tmp_path / "e.mcap").open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        found = list(reader.iter_decoded_messages(topics=[CAMERA]))
        steps = [json.loads(message.data) for _, _, message in reader.iter_messages(topics=["step"])]
        (metadata,) = reader.iter_metadata()
    picture = np.asarray(Image.open(io.BytesIO(bytes(found[0].decoded_message.data))))
    assert found[0].decoded_message.format == "png"
    np.testing.assert_array_equal(picture, made["features"][CAMERA][0])
    np.testing.assert_array_equal([step["action"] for step in steps], made["actions"])
    assert metadata.name == METADATA and metadata.metadata["version"] == "1.0.0"


@given(
    data=st.binary(max_size=50),
    frame=st.text(max_size=9),
    form=st.sampled_from(["png", "jpeg", "rgb8; png compressed"]),
)
@settings(max_examples=30)
def test_pictures_of_any_ros_writer_are_read(data: bytes, frame: str, form: str) -> None:
    out = io.BytesIO()
    writer = mcap_ros2.writer.Writer(out)
    schema = writer.register_msgdef(IMAGE_TYPE, IMAGE_SCHEMA)
    stamp = {"sec": 7, "nanosec": 5}
    frame = frame.replace("\0", "")
    writer.write_message("x", schema, {"header": {"stamp": stamp, "frame_id": frame}, "format": form, "data": data}, 1)
    writer.finish()
    ((_, _, message),) = make_reader(io.BytesIO(out.getvalue())).iter_messages()
    assert decode_image(message.data) == data
    if not frame:
        assert encode_image(7 * 10**9 + 5, form, data) == message.data


# -- damage -----------------------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    make_episode(tmp_path / "e.mcap", steps=4)
    whole = (tmp_path / "e.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    for length in [*range(40), *range(40, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        assert refused(cut).code == "EPISODE_TRUNCATED"


def test_a_changed_byte_changes_no_value_unnoticed(tmp_path: Path) -> None:
    """Chunks have a CRC. What lies outside of them is the index, which is not read, and metadata, which have no CRC."""
    make_episode(tmp_path / "e.mcap", steps=4)
    whole = (tmp_path / "e.mcap").read_bytes()
    before = read_episode(tmp_path / "e.mcap")
    damaged = tmp_path / "damaged.mcap"
    for at in range(8, len(whole), 41):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            after = read_episode(damaged)
        except EpisodeError as e:
            assert e.code.startswith("EPISODE_")
            continue
        np.testing.assert_array_equal(after.actions, before.actions)
        np.testing.assert_array_equal(after.features[CAMERA], before.features[CAMERA])


def test_a_small_chunk_that_holds_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    make_episode(tmp_path / "e.mcap", steps=2)
    bomb = zstandard.compress(bytes(200 << 20))
    body = struct.pack("<QQQII", 0, 0, 1, 0, 4) + b"zstd" + struct.pack("<Q", len(bomb)) + bomb
    whole = (tmp_path / "e.mcap").read_bytes()
    for claimed in (1, 200 << 20):
        chunk = body[:16] + struct.pack("<Q", claimed) + body[24:]
        (tmp_path / "bomb.mcap").write_bytes(whole[:8] + b"\x06" + struct.pack("<Q", len(chunk)) + chunk + whole[8:])
        assert refused(tmp_path / "bomb.mcap").code == "EPISODE_LIMIT"


def test_a_chunk_whose_length_no_machine_can_count_is_damage(tmp_path: Path) -> None:
    make_episode(tmp_path / "e.mcap", steps=2)
    whole = (tmp_path / "e.mcap").read_bytes()
    chunk = struct.pack("<QQQII", 0, 0, 1, 0, 4) + b"zstd" + struct.pack("<Q", 1 << 63) + bytes(8)
    (tmp_path / "huge.mcap").write_bytes(whole[:8] + b"\x06" + struct.pack("<Q", len(chunk)) + chunk + whole[8:])
    assert refused(tmp_path / "huge.mcap").code == "EPISODE_FORMAT"


# -- files that are MCAP and no episodes --------------------------------------------------------------------------------------


def step(**changes: Any) -> dict[str, Any]:
    whole = {"time_ns": 5, "instruction": "pick", "state": {STATE: [0.0, 1.0]}, "intervention": False}
    whole |= {"action": [0.0, 1.0], "policy_action": None}
    return whole | changes


PNG = io.BytesIO()
Image.new("RGB", (10, 8)).save(PNG, "PNG")


def write(
    path: Path,
    steps: list[Any],
    record: dict[str, str] | None = None,
    image: bytes = PNG.getvalue(),
    compression: CompressionType = CompressionType.ZSTD,
) -> Path:
    """Write what a stranger may write."""
    with path.open("wb") as stream:
        writer = Writer(stream, compression=compression)
        writer.start("ros2", "stranger")
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channel, camera = (
            writer.register_channel("step", "json", schema),
            writer.register_channel(CAMERA, "cdr", schema),
        )
        writer.add_message(camera, 0, encode_image(0, "png", image), 0)
        for number, value in enumerate(steps):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            writer.add_message(channel, number, data, number)
        if record is None or record:
            writer.add_metadata(METADATA, meta().as_record() if record is None else record)
        writer.finish()  # type: ignore[no-untyped-call]
    return path


BAD_STEPS: dict[str, Any] = {
    "not JSON": b"{",
    "nested without end": b"[" * 100_000,
    "no object": [1],
    "no state": step(state=None),
    "a state without the feature": step(state={}),
    "a state of another length": step(state={STATE: [1.0]}),
    "an action of texts": step(action=["1", "2"]),
    "an action of booleans": step(action=[True, False]),
    "NaN": step(action=[float("nan"), 0.0]),
    "infinity": step(state={STATE: [float("inf"), 0.0]}),
    "beyond float32": step(action=[1e300, 0.0]),
    "beyond float64": step(action=[10**400, 0.0]),
    "infinity that the policy wanted": step(policy_action=[float("inf"), 0.0]),
    "a policy's action of another length": step(policy_action=[]),
    "no time": step(time_ns="now"),
    "a time beyond 64 bits": step(time_ns=2**63),
    "half a truth": step(intervention=1),
    "no instruction": step(instruction=None),
    "half a character": step(instruction="\ud800"),
}


@pytest.mark.parametrize("bad", BAD_STEPS.values(), ids=BAD_STEPS.keys())
def test_a_step_that_is_none_is_refused_by_its_number(tmp_path: Path, bad: Any) -> None:
    error = refused(write(tmp_path / "e.mcap", [step(), bad]))
    assert error.code == "EPISODE_FORMAT" and "step 1" in str(error)


def changed(**changes: str) -> dict[str, str]:
    return meta().as_record() | changes


BAD_RECORDS: dict[str, dict[str, str]] = {
    "no metadata": {},
    "another schema": changed(schema="2"),
    "a rate of none": changed(rate_hz="0"),
    "a rate of NaN": changed(rate_hz="nan"),
    "success of a kind": changed(success="maybe"),
    "a name longer than any": changed(policy="x" * 129),
    "channels that are none": changed(channels="{}"),
    "features without end": changed(features="[" * 100_000),
    "a feature of bytes": changed(features=json.dumps({STATE: {"dtype": "uint8", "shape": [2]}})),
    "a feature of minus one": changed(features=json.dumps({STATE: {"dtype": "float32", "shape": [-1]}})),
    "a picture of a continent": changed(features=json.dumps({CAMERA: {"dtype": "image", "shape": [10**6, 10**6, 3]}})),
    "a feature with a column's name": changed(features=json.dumps({"index": {"dtype": "float32", "shape": [2]}})),
    "a feature with a path for a name": changed(features=json.dumps({"../x": {"dtype": "float32", "shape": [2]}})),
}


@pytest.mark.parametrize("record", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_metadata_that_make_no_sense_are_refused(tmp_path: Path, record: dict[str, str]) -> None:
    assert refused(write(tmp_path / "e.mcap", [step()], record)).code == "EPISODE_FORMAT"


def _large() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("image", [b"", b"GIF89a", _large()], ids=["nothing", "another format", "another size"])
def test_a_picture_that_is_not_the_features_is_refused(tmp_path: Path, image: bytes) -> None:
    error = refused(write(tmp_path / "e.mcap", [step()], image=image))
    assert error.code == "EPISODE_FORMAT" and CAMERA in str(error)


def test_a_picture_that_is_cut_short_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    make = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(make).save(out, "PNG")
    episode = read_episode(write(tmp_path / "e.mcap", [step()], image=out.getvalue()[:150]))
    with pytest.raises(EpisodeError, match="EPISODE_FORMAT"):
        _ = episode.features


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: path.write_text("MCAP, I promise"), "EPISODE_FORMAT"),
        (lambda path: write(path, [step()], compression=CompressionType.LZ4), "EPISODE_FORMAT"),
        (lambda path: write(path, []), "EPISODE_FORMAT"),
    ],
    ids=["no MCAP", "another compression", "no step"],
)
def test_what_is_no_episode_is_refused(tmp_path: Path, make: Callable[[Path], object], code: str) -> None:
    make(tmp_path / "e.mcap")
    assert refused(tmp_path / "e.mcap").code == code


def test_steps_before_a_cameras_first_picture_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "e.mcap"
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.start("ros2", "stranger")
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channel, camera = (
            writer.register_channel("step", "json", schema),
            writer.register_channel(CAMERA, "cdr", schema),
        )
        for number in range(5):
            writer.add_message(channel, number, json.dumps(step(time_ns=number)).encode(), number)
        writer.add_message(camera, 2, encode_image(2, "png", PNG.getvalue()), 2)
        writer.add_metadata(METADATA, meta().as_record())
        writer.finish()  # type: ignore[no-untyped-call]
    assert read_episode(path).times_ns.tolist() == [2, 3, 4]


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="EPISODE_UNREADABLE"):
        read_episode(tmp_path / "none.mcap")
