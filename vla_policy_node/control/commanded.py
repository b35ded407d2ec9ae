# SPDX-License-Identifier: Apache-2.0
"""The last command: its value, how fast it moves, whether it rests, what steps are usual."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Channel
from vla_policy_node.control.limits import Limiter

Floats = npt.NDArray[np.float64]


class Commanded:
    """``value`` float64 ``[C]`` is the last command; ``None`` = the robot is not being commanded."""

    def __init__(self, channels: Sequence[Channel], period_ns: int, second_ticks: int, rest_ticks: int) -> None:
        """``second_ticks``: ticks in a second; ``rest_ticks``: the most that :meth:`has_rested` is asked for."""
        self.value: Floats | None = None
        self.history = CommandHistory(second_ticks, len(channels), max(second_ticks, rest_ticks + 1))
        self._before: Floats | None = None
        self._at_ns = 0
        self._period_ns = period_ns
        self._rest_step = np.array([c.rest_step for c in channels])
        self._start_tolerance = np.array([c.start_tolerance for c in channels])
        self._positions = np.array([c.is_position for c in channels])
        self._velocities = np.array([c.mode == "velocity" for c in channels])

    def all_known(self, measured: Floats) -> bool:
        """Whether every position is measured (NaN = not known)."""
        return bool(np.isfinite(measured[self._positions]).all())

    def is_far(self, command: Floats, measured: Floats) -> bool:
        """Whether a position lies further than ``start_tolerance`` from the measured one."""
        return bool((self._positions & (np.abs(command - measured) > self._start_tolerance)).any())

    def start_from(self, measured: Floats, limiter: Limiter, now_ns: int) -> bool:
        """Let the next command start from the measured state, nothing was published; false if that lies outside the limits."""
        state = np.where(np.isfinite(measured), measured, 0.0)  # a velocity or effort that is not known starts from 0
        inside = np.minimum(np.maximum(state, limiter.low), limiter.high)
        if self.is_far(inside, state):
            return False
        self.value = self._before = inside
        self._at_ns = now_ns - self._period_ns
        return True

    def put(self, command: Floats, now_ns: int) -> None:
        """Remember a command that is published now. There must be one before, or a start."""
        assert self.value is not None
        self._before, self.value, self._at_ns = self.value, command, now_ns
        self.history.add(command)

    def clear(self) -> None:
        """Nothing is commanded from now on."""
        self.value = self._before = None
        self.history.clear()

    def has_rested(self, ticks: int) -> bool:
        """Whether the command has been at rest for so many ticks."""
        commands = self.history.last(ticks + 1)
        if len(commands) <= ticks:
            return False
        # A velocity that does not change is motion.
        motion = np.where(self._velocities, commands[1:], np.diff(commands, axis=0))
        return bool((np.abs(motion) <= self._rest_step).all())

    def since_s(self, now_ns: int) -> float:
        """Return the time since the last command, at most one period: what was missed is not made up for [s]."""
        since_ns = now_ns - self._at_ns
        return (since_ns if since_ns < self._period_ns else self._period_ns) / 1e9

    @property
    def velocity(self) -> Floats:
        """Change from the command before the last to the last, per second."""
        assert self.value is not None and self._before is not None
        velocity: Floats = (self.value - self._before) * (1e9 / self._period_ns)
        return velocity


class CommandHistory:
    """The last commands ``[n, C]``: how large a step is usual, counted over the last ``length`` of those ``kept``."""

    def __init__(self, length: int, channels: int, kept: int = 0) -> None:
        self._length, self._channels = max(length, 2), channels
        self._commands: deque[Floats] = deque(maxlen=max(self._length, kept))

    def add(self, command: Floats) -> None:
        """Remember a command."""
        self._commands.append(command)

    def clear(self) -> None:
        """Commands were interrupted."""
        self._commands.clear()

    def last(self, count: int) -> Floats:
        """Return the last ``count`` commands ``[n, C]``, oldest first, or as many as there are since the last interruption."""
        first = max(0, len(self._commands) - count)
        return np.array([*islice(self._commands, first, None)]).reshape(-1, self._channels)

    def typical_step(self, channel: int) -> float:
        """Return the step from tick to tick that 99 % of the channel's do not exceed; 0 without at least two commands."""
        if len(self._commands) < 2:
            return 0.0
        # np.percentile imports numpy.ma, on its first call.
        steps = np.sort(np.abs(np.diff(self.last(self._length)[:, channel])))
        return float(steps[math.ceil(0.99 * len(steps)) - 1])
