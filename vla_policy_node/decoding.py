# SPDX-License-Identifier: Apache-2.0
"""From ROS messages to numbers, as the contract says. Messages are read by attribute: no ROS import."""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Source
from vla_policy_node.errors import ObservationError

Floats: TypeAlias = npt.NDArray[np.float64]
Image: TypeAlias = npt.NDArray[np.uint8]

_IMAGE_CHANNELS = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0], "mono8": [0, 0, 0]}
_BYTES_A_PIXEL = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_MAX_SIDE_PX = 16384
_JOINT_STATE = "sensor_msgs/msg/JointState"


class Decoder:
    """Decodes the messages of one source. Raises :class:`ObservationError` for what the contract does not promise."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._names: list[str] = []  # of the last JointState: its order hardly ever changes
        self._places: list[tuple[str, int]] = []

    def image(self, message: Any) -> Image:
        """Return a picture uint8 ``[H, W, 3]`` RGB of the contract's size."""
        assert self._source.resize is not None
        try:
            return decode_image(message, self._source.resize)
        except ObservationError as e:
            raise ObservationError(e.code, f"{self._source.topic}: {e.message}") from e

    def numbers(self, message: Any) -> Floats:
        """Return the selected fields, float64 ``[len(select)]``, operators applied."""
        values = self._joints(message) if self._source.type == _JOINT_STATE else self._fields(message)
        if not np.isfinite(values).all():
            name = self._source.select[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise ObservationError("OBSERVATION_NOT_FINITE", f"{self._source.topic}: {name} is not finite")
        if self._source.rad2deg:
            values = np.degrees(values)
        if self._source.clamp is not None:
            values = np.clip(values, *self._source.clamp)
        return values

    def _joints(self, message: Any) -> Floats:
        names = list(message.name)
        if names != self._names:
            self._places = [self._place(entry, names) for entry in self._source.select]
            self._names = names
        values = np.empty(len(self._places))
        for i, (field, index) in enumerate(self._places):
            numbers = getattr(message, field)
            if index >= len(numbers):
                self._missing(f"{field} of joint {names[index]}")
            values[i] = numbers[index]
        return values

    def _place(self, entry: str, names: list[str]) -> tuple[str, int]:
        field, _, joint = entry.partition(".")
        if field not in ("position", "velocity", "effort") or names.count(joint) != 1:
            self._missing(f"{entry} (exactly one joint of that name; it has {names[:32]})")
        return field, names.index(joint)

    def _fields(self, message: Any) -> Floats:
        return np.array([self._field(message, entry) for entry in self._source.select], dtype=np.float64)

    def _field(self, message: Any, entry: str) -> float:
        value = message
        try:
            for part in entry.split("."):
                value = value[int(part)] if part.isdigit() else getattr(value, part)
            return float(value)
        except (AttributeError, IndexError, TypeError, ValueError):
            self._missing(entry)

    def _missing(self, what: str) -> NoReturn:
        raise ObservationError("OBSERVATION_FIELD_MISSING", f"{self._source.topic}: no {what}")


def decode_image(message: Any, size: tuple[int, int]) -> Image:
    """Return a sensor_msgs/Image as uint8 RGB ``[*size, 3]``: rows may be padded; other sizes by nearest neighbour."""
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in _IMAGE_CHANNELS:
        known = ", ".join(_IMAGE_CHANNELS)
        raise ObservationError("IMAGE_ENCODING", f"encoding {encoding!r} is not supported; supported are {known}")
    bytes_a_pixel = _BYTES_A_PIXEL[encoding]
    if not (0 < height <= _MAX_SIDE_PX and 0 < width <= _MAX_SIDE_PX) or step < width * bytes_a_pixel:
        raise ObservationError("IMAGE_SIZE", f"{width}x{height} px {encoding} with rows of {step} bytes")
    data = np.frombuffer(message.data, np.uint8)
    if data.size < (height - 1) * step + width * bytes_a_pixel:
        raise ObservationError("IMAGE_SIZE", f"{data.size} bytes for {height} rows of {step}")
    rows = _nearest(height, size[0])
    columns = _nearest(width, size[1])
    if data.size < height * step:  # the last row may come without its padding
        data = np.concatenate([data, np.zeros(height * step - data.size, np.uint8)])
    pixels = (
        data[: height * step].reshape(height, step)[:, : width * bytes_a_pixel].reshape(height, width, bytes_a_pixel)
    )
    picture: Image = pixels[rows[:, None, None], columns[None, :, None], np.array(_IMAGE_CHANNELS[encoding])]
    return picture


def _nearest(have: int, want: int) -> npt.NDArray[np.int64]:
    """Source index of each of ``want`` pixels: the one under its centre."""
    return ((2 * np.arange(want, dtype=np.int64) + 1) * have) // (2 * want)
