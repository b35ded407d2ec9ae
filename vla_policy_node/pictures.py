# SPDX-License-Identifier: Apache-2.0
"""From a camera's message to the picture that the policy gets. Messages are read by attribute: no ROS import."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Files

from vla_policy_node.contract.model import Picture
from vla_policy_node.errors import ObservationError

Image: TypeAlias = npt.NDArray[np.uint8]
_Index: TypeAlias = npt.NDArray[np.int64]

_BYTES_A_PIXEL = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1}
_DEPTH = ("16UC1", "32FC1", "mono16")
_MAX_SIDE_PX = 16384
_MAX_PIXELS = 1 << 26
"""Of a compressed picture: a file of a few bytes may claim any size."""
_FILE_MODES = ("L", "RGB", "RGBA")


class PictureReader:
    """Reads the messages of one camera as uint8 ``[H, W, 3]``. Raises ObservationError IMAGE_…."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._have: tuple[int, ...] = ()  # size of the pictures that come: it hardly ever changes
        self._rows: _Index | slice = slice(0)
        self._columns: _Index | slice = slice(0)

    def read(self, message: Any) -> Image:
        """Return the picture as the contract wants it: cut, resized, its colours in the policy's order."""
        pixels = decode(message)
        if pixels.shape[:2] != self._have:
            self._rows, self._columns = map(_as_slice, _places(self._picture, *pixels.shape[:2]))
            self._have = pixels.shape[:2]
        picked = pixels[self._rows][:, self._columns]
        return np.ascontiguousarray(picked[..., ::-1] if self._picture.blue_first else picked)


def decode(message: Any) -> Image:
    """Return a sensor_msgs/Image or CompressedImage as uint8 RGB ``[H, W, 3]``, not always a copy."""
    return _decode_raw(message) if hasattr(message, "encoding") else _decode_compressed(message)


def _decode_raw(message: Any) -> Image:
    """Return a sensor_msgs/Image as uint8 RGB ``[H, W, 3]``, not always a copy; rows may be padded."""
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in _BYTES_A_PIXEL:
        raise ObservationError("IMAGE_ENCODING", _why_not(encoding))
    bytes_a_pixel = _BYTES_A_PIXEL[encoding]
    if not (0 < height <= _MAX_SIDE_PX and 0 < width <= _MAX_SIDE_PX) or step < width * bytes_a_pixel:
        raise ObservationError("IMAGE_SIZE", f"{width}x{height} px {encoding} with rows of {step} bytes")
    data = np.frombuffer(message.data, np.uint8)
    if data.size < (height - 1) * step + width * bytes_a_pixel:
        raise ObservationError("IMAGE_SIZE", f"{data.size} bytes for {height} rows of {step}")
    # The last row may come without its padding; ``step`` may be any number.
    shape, strides = (height, width, bytes_a_pixel), (step, bytes_a_pixel, 1)
    return _as_rgb(np.lib.stride_tricks.as_strided(data, shape, strides), blue_first=encoding.startswith("bgr"))


def _decode_compressed(message: Any) -> Image:
    """Return a sensor_msgs/CompressedImage, JPEG or PNG, as uint8 RGB ``[H, W, 3]``.

    compressed_image_transport writes ``<encoding>; jpeg compressed <order>``. Its files are right for order ``bgr8`` and
    have red and blue exchanged for ``rgb8``.
    """
    encoding, _, order = message.format.partition("compressed")
    if encoding.partition(";")[0].strip() in _DEPTH or order.startswith("Depth"):
        raise ObservationError("IMAGE_ENCODING", _why_not(message.format))
    try:
        with Files.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as file:
            width, height = file.size
            if not (width <= _MAX_SIDE_PX and height <= _MAX_SIDE_PX and width * height <= _MAX_PIXELS):
                raise ObservationError("IMAGE_SIZE", f"{width}x{height} px in a file of {len(message.data)} bytes")
            if file.mode not in _FILE_MODES:
                raise ObservationError("IMAGE_ENCODING", _why_not(f"{file.format} of mode {file.mode}"))
            pixels = np.asarray(file)
    except ObservationError:
        raise
    except Exception as e:  # of many kinds: what a damaged file makes of Pillow is not its interface
        text = f"{len(message.data)} bytes, format {message.format!r}: no whole JPEG or PNG ({e})"
        raise ObservationError("IMAGE_DAMAGED", text) from e
    return _as_rgb(pixels.reshape(height, width, -1), blue_first=order.strip().startswith("rgb"))


def _as_rgb(pixels: Image, *, blue_first: bool) -> Image:
    height, width, colours = pixels.shape
    if colours == 1:
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[..., 2::-1] if blue_first else pixels[..., :3]


def _why_not(encoding: str) -> str:
    if encoding.partition(";")[0].strip() in _DEPTH or "compressedDepth" in encoding:
        return f"{encoding!r} is depth: no feature of a policy holds it; take it out of the contract"
    known = ", ".join(_BYTES_A_PIXEL)
    return f"{encoding!r} is not supported; let the driver or image_proc publish one of {known}, or JPEG or PNG"


def _places(picture: Picture, height: int, width: int) -> tuple[_Index, _Index]:
    """Return which rows and which columns of a picture ``[height, width]`` the feature has."""
    rows, columns = np.arange(height), np.arange(width)
    for name, numbers in picture.steps:
        if name == "resize":
            rows, columns = rows[nearest(len(rows), numbers[0])], columns[nearest(len(columns), numbers[1])]
            continue
        top, left, tall, wide = numbers
        if top + tall > len(rows) or left + wide > len(columns):
            have = f"{len(columns)}x{len(rows)} px"
            text = f"crop {wide}x{tall} px at left {left}, top {top} leaves the picture of {have}"
            raise ObservationError("IMAGE_SIZE", text)
        rows, columns = rows[top : top + tall], columns[left : left + wide]
    return rows, columns


def _as_slice(places: _Index) -> _Index | slice:
    """A picture that is not resized need not be gathered pixel by pixel."""
    return slice(int(places[0]), int(places[-1]) + 1) if (np.diff(places) == 1).all() else places


def nearest(have: int, want: int) -> _Index:
    """Return the source index of each of ``want`` pixels: rosetta's rule, ends on ends, halves to the even one.

    What trained on data that rosetta converted sees the same pixels here.
    """
    return np.round(np.linspace(0, have - 1, want)).astype(np.int64)
