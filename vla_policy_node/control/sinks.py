# SPDX-License-Identifier: Apache-2.0
"""Where commands go: to the robot, into a file, or nowhere."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.errors import ControlError

Floats = npt.NDArray[np.float64]

NOWHERE = "nowhere"
"""Kind of the sink of a policy that is in shadow: it alone needs neither permission nor resume."""
_STAMP = struct.Struct("<q")


class CommandSink(Protocol):
    """Takes one command a tick; must not wait."""

    def publish(self, values: Floats) -> None:
        """Send a command, float64 ``[C]`` in the contract's units."""

    def check(self) -> None:
        """Raise PolicyNodeError COMMAND_TOPIC_TAKEN if another node commands the robot. Called while inactive; may wait."""

    def intruder(self) -> str:
        """Return which other node commands the robot, as far as is known now; empty = none. Does not wait."""

    def close(self) -> None:
        """Publish nothing from now on."""


class RecordSink:
    """Appends ``(monotonic_ns, command)`` records to a file: dry runs and tests."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise ControlError("SINK_FAILED", f"{path}: {e}") from e

    def publish(self, values: Floats) -> None:
        """See CommandSink."""
        os.write(self._fd, _STAMP.pack(time.monotonic_ns()) + values.tobytes())

    def check(self) -> None:
        """Nobody else writes the file."""

    def intruder(self) -> str:
        """Nobody else writes the file."""
        return ""

    def close(self) -> None:
        """See CommandSink."""
        os.close(self._fd)


class NoSink:
    """Commands nothing: the policy is in shadow, and something else may command the robot."""

    def publish(self, values: Floats) -> None:
        """See CommandSink."""

    def check(self) -> None:
        """Whoever commands the robot may."""

    def intruder(self) -> str:
        """Whoever commands the robot may."""
        return ""

    def close(self) -> None:
        """See CommandSink."""


def read_record(path: str | Path, channels: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return what a RecordSink wrote: stamps [ns] ``[n]`` and commands ``[n, C]``."""
    row = np.dtype([("stamp", "<i8"), ("command", "<f8", (channels,))])
    data = np.frombuffer(Path(path).read_bytes(), row)
    return data["stamp"], data["command"]


def open_sink(spec: Mapping[str, Any], contract: Contract) -> CommandSink:
    """Open the sink that the node asked for. Raises ControlError (COMMAND_TOPIC_LOCKED, SINK_FAILED, SINK_UNKNOWN)."""
    kind = spec.get("kind")
    if kind == NOWHERE:
        return NoSink()
    if kind == "record":
        return RecordSink(str(spec["path"]))
    if kind == "ros":
        from vla_policy_node.ros.command_publisher import RosSink  # rclpy is imported here, and only now
        from vla_policy_node.ros.command_transport import by_udp

        with by_udp(os.environ):
            return RosSink(spec, contract)
    raise ControlError("SINK_UNKNOWN", f"sink kind {kind!r}")
