# SPDX-License-Identifier: Apache-2.0
"""From ROS messages to numbers, as the contract says. Messages are read by attribute: no ROS import."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.message_types import JOINT_STATE, JOINT_TRAJECTORY
from vla_policy_node.contract.model import Align, Output, Qos, Source
from vla_policy_node.errors import ObservationError
from vla_policy_node.pictures import Image, PictureReader

Floats: TypeAlias = npt.NDArray[np.float64]

_LARGEST = float(np.finfo(np.float32).max)
"""What a policy gets is float32."""


class Decoder:
    """Decodes the messages of one source. Raises :class:`ObservationError` for what the contract does not promise."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._picture = None if source.picture is None else PictureReader(source.picture)
        self._names: list[str] = []  # of the last JointState: its order hardly ever changes
        self._places: list[tuple[str, int]] = []

    def read(self, message: Any) -> Floats | Image:
        """Return the source's part of its feature: a picture uint8 ``[H, W, 3]``, or numbers float64 ``[len(select)]``."""
        if self._picture is None:
            return self._numbers(message)
        try:
            return self._picture.read(message)
        except ObservationError as e:
            raise ObservationError(e.code, f"{self._source.topic}: {e.message}") from e

    def _numbers(self, message: Any) -> Floats:
        values = self._joints(message) if self._source.type == JOINT_STATE else self._fields(message)
        if not np.isfinite(values).all():
            name = self._source.select[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise ObservationError("OBSERVATION_NOT_FINITE", f"{self._source.topic}: {name} is not finite")
        if self._source.rad2deg:
            values = np.degrees(values)
        if self._source.clamp is not None:
            values = np.clip(values, *self._source.clamp)
        if (np.abs(values) > _LARGEST).any():
            name = self._source.select[int(np.argmax(np.abs(values)))]
            raise ObservationError("OBSERVATION_NOT_FINITE", f"{self._source.topic}: {name} is not finite in float32")
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


class CommandDecoder:
    """Decodes commands as the contract's output publishes them, in the contract's units: a recording's, or an operator's."""

    def __init__(self, output: Output) -> None:
        self._trajectory = output.type == JOINT_TRAJECTORY
        kind = JOINT_STATE if self._trajectory else output.type
        align = Align("hold", "receive", None)
        self._decoder = Decoder(Source(output.topic, kind, Qos(), align, output.select, rad2deg=output.rad2deg))

    def read(self, message: Any) -> Floats:
        """Return the output's channels, float64 ``[len(select)]``; none if a trajectory has no point. Raises ObservationError."""
        if self._trajectory:
            points = list(message.points)
            if not points:
                return np.empty(0)
            first = points[0]
            message = SimpleNamespace(
                name=message.joint_names, position=first.positions, velocity=first.velocities, effort=first.effort
            )
        return np.ravel(self._decoder.read(message)).astype(np.float64)
