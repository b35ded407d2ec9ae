# SPDX-License-Identifier: Apache-2.0
"""A camera's picture becomes exactly the pixels that the contract names, or is refused with a code."""

from __future__ import annotations

import tracemalloc
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.camera_messages import BYTES_A_PIXEL, compressed, image
from support.refusals import refused

from vla_policy_node.contract.model import Picture
from vla_policy_node.errors import ObservationError
from vla_policy_node.pictures import PictureReader

SIDE = st.integers(1, 40)
QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def read(message: Any, *steps: tuple[str, tuple[int, ...]], blue_first: bool = False) -> Any:
    return PictureReader(Picture(steps, blue_first)).read(message)


def whole(message: Any, **more: Any) -> Any:
    return read(message, ("crop", (0, 0, message.height, message.width)), **more)


def with_data(message: Any, data: Any) -> Any:
    return type(message)(**vars(message) | {"data": data})


def numbered(height: int, width: int) -> tuple[Any, np.ndarray[Any, Any]]:
    """A picture whose neighbouring pixels differ, and its pixels."""
    message = image(height, width, "rgb8")
    pixels = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), np.uint8)
    message.data = array("B", pixels.tobytes())
    return message, pixels


@pytest.mark.parametrize("encoding", sorted(BYTES_A_PIXEL))
@pytest.mark.parametrize("padding", [0, 5])
def test_pictures_of_each_encoding_come_out_as_rgb_whatever_their_row_padding(encoding: str, padding: int) -> None:
    message = image(4, 5, encoding, padding)
    got = whole(message)
    size = message.step - padding
    pixels = np.arange(4 * size, dtype=np.uint8).reshape(4, 5, -1)
    want = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    want = want[..., ::-1] if encoding.startswith("bgr") else want
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(whole(message, blue_first=True), want[..., ::-1])
    last_row_bare = with_data(message, message.data[: len(message.data) - padding])
    np.testing.assert_array_equal(whole(last_row_bare), got)


def test_a_row_that_claims_to_be_long_takes_no_memory() -> None:
    message = image(1, 5, "rgb8")
    message.step = 1 << 28
    tracemalloc.start()
    try:
        whole(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(SIDE, SIDE, SIDE, SIDE)
@QUICK
def test_resizing_takes_the_pixels_that_rosetta_takes(height: int, width: int, rows: int, columns: int) -> None:
    message, pixels = numbered(height, width)
    y = np.round(np.linspace(0, height - 1, rows)).astype(np.int64)
    x = np.round(np.linspace(0, width - 1, columns)).astype(np.int64)
    np.testing.assert_array_equal(read(message, ("resize", (rows, columns))), pixels[y][:, x])


@given(SIDE, SIDE, st.data())
@QUICK
def test_a_crop_is_cut_where_the_file_has_it_before_the_resize_or_after(height: int, width: int, data: Any) -> None:
    message, pixels = numbered(height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    crop, same = ("crop", (top, left, tall, wide)), ("resize", (height, width))
    want = pixels[top : top + tall, left : left + wide]
    np.testing.assert_array_equal(read(message, crop), want)
    np.testing.assert_array_equal(read(message, same, crop), want)
    rows, columns = data.draw(SIDE), data.draw(SIDE)
    y = np.round(np.linspace(0, tall - 1, rows)).astype(np.int64)
    x = np.round(np.linspace(0, wide - 1, columns)).astype(np.int64)
    np.testing.assert_array_equal(read(message, crop, ("resize", (rows, columns))), want[y][:, x])


def test_a_camera_that_changes_its_size_is_followed() -> None:
    reader = PictureReader(Picture((("resize", (2, 2)),)))
    for height, width in ((2, 2), (6, 8), (2, 2)):
        message, pixels = numbered(height, width)
        np.testing.assert_array_equal(reader.read(message), pixels[[0, -1]][:, [0, -1]])


def test_a_crop_that_leaves_the_picture_is_refused() -> None:
    for crop in ((1, 0, 2, 3), (0, 1, 2, 3)):
        with refused("IMAGE_SIZE"):
            read(image(2, 3), ("crop", crop))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"encoding": "16UC1"}, "IMAGE_ENCODING"),
        ({"encoding": "32FC1"}, "IMAGE_ENCODING"),
        ({"encoding": "bayer_rggb8"}, "IMAGE_ENCODING"),
        ({"encoding": "yuv422_yuy2"}, "IMAGE_ENCODING"),
        ({"encoding": ""}, "IMAGE_ENCODING"),
        ({"height": 3}, "IMAGE_SIZE"),
        ({"width": 4}, "IMAGE_SIZE"),
        ({"step": 5}, "IMAGE_SIZE"),
        ({"height": 0}, "IMAGE_SIZE"),
        ({"width": 10**9}, "IMAGE_SIZE"),
        ({"data": array("B")}, "IMAGE_SIZE"),
    ],
)
def test_a_picture_that_contradicts_itself_or_has_no_colours_is_refused(change: dict[str, Any], code: str) -> None:
    message = image()
    for key, value in change.items():
        setattr(message, key, value)
    with refused(code) as caught:
        read(message, ("resize", (2, 3)))
    named = change.get("encoding", "")
    assert named in str(caught.value) and (
        code != "IMAGE_ENCODING" or "image_proc" in str(caught.value) or "depth" in str(caught.value)
    )


FULL = ("resize", COLOURS.shape[:2])


def test_a_png_is_read_to_the_last_bit_grey_and_with_alpha() -> None:
    alpha = np.dstack([COLOURS, COLOURS[..., :1]])
    np.testing.assert_array_equal(read(compressed(COLOURS), FULL), COLOURS)
    np.testing.assert_array_equal(read(compressed(alpha), FULL), COLOURS)
    np.testing.assert_array_equal(read(compressed(COLOURS[..., 0]), FULL), np.repeat(COLOURS[..., :1], 3, axis=2))


def test_a_jpeg_is_read_as_its_decoder_reads_it() -> None:
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None] * np.array([2, 1, 0]) + np.array([0, 60, 120])
    message = compressed(smooth.astype(np.uint8), "jpeg", "bgr8; jpeg compressed bgr8")
    got = read(message, FULL)
    assert np.abs(got.astype(int) - smooth).mean() < 3.0  # red is red: exchanged colours would be far off


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_file_that_its_transport_says_to_be_in_rgb_order_has_red_and_blue_exchanged(kind: str) -> None:
    plain = read(compressed(COLOURS, kind, f"rgb8; {kind} compressed bgr8"), FULL)
    exchanged = read(compressed(COLOURS, kind, f"rgb8; {kind} compressed rgb8"), FULL)
    np.testing.assert_array_equal(exchanged, plain[..., ::-1])


def test_depth_and_other_kinds_of_files_are_refused_by_name() -> None:
    depth = np.zeros((4, 4), np.uint16)
    for message in (
        compressed(depth, "png", "16UC1; png compressed "),
        compressed(depth, "png", "16UC1; compressedDepth png"),
        compressed(depth, "png"),
    ):
        with refused("IMAGE_ENCODING"):
            read(message, ("resize", (4, 4)))
    for kind in ("gif", "tiff", "bmp"):
        with refused("IMAGE_DAMAGED"):
            read(compressed(COLOURS, kind), FULL)


def test_a_small_file_cannot_claim_a_picture_that_fills_the_memory() -> None:
    message = compressed(np.asarray(Image.new("L", (10240, 8192))))
    assert len(message.data) < 200_000
    with refused("IMAGE_SIZE"):
        read(message, ("resize", (4, 4)))


@given(st.sampled_from(["png", "jpeg"]), st.integers(0, 4000), st.binary(max_size=20), st.integers(0, 4000))
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
def test_damage_to_a_file_is_a_coded_refusal_or_a_picture_of_the_size_wanted(
    kind: str, at: int, noise: bytes, cut: int
) -> None:
    message = compressed(COLOURS[:16, :16], kind)
    data = message.data.tobytes()
    at %= len(data)
    message.data = array("B", data[:at] + noise + data[at + cut :])
    try:
        assert read(message, ("resize", (8, 8))).shape == (8, 8, 3)
    except ObservationError as e:
        assert e.code in ("IMAGE_DAMAGED", "IMAGE_SIZE", "IMAGE_ENCODING")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_file_that_is_cut_off_is_damaged(kind: str) -> None:
    message = compressed(COLOURS, kind)
    for left in (0, 1, 10, len(message.data) // 2):
        with refused("IMAGE_DAMAGED"):
            read(with_data(message, message.data[:left]), FULL)
