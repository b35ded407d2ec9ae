# SPDX-License-Identifier: Apache-2.0
"""How each channel comes to rest, and stays there, when the policy does not act.

* position, ``last_command``: the commanded motion is slowed down by ``max_decel`` and stays where that ends;
* position, ``measured``: the command goes to the position measured when the hold began, within ``max_decel`` and velocity;
* velocity and effort, ``zero_velocity``: the command goes to 0 by ``max_decel`` [unit/s]; effort ``last_command`` stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Channel

Floats = npt.NDArray[np.float64]


def _toward(value: float, goal: float, reach: float) -> float:
    return value + min(max(goal - value, -reach), reach)


class Stop:
    """One hold, from the last command to rest. Every command it returns keeps the contract's position and velocity."""

    def __init__(self, channels: Sequence[Channel], command: Floats, velocity: Floats, measured: Floats) -> None:
        """``command``, ``velocity`` [unit/s], ``measured`` (NaN = not known): float64 ``[C]``."""
        self._channels = channels
        self._command = command.astype(np.float64)
        self._velocity = velocity.tolist()
        self._goal: list[float | None] = [
            self._inside(c, m) if c.is_position and c.hold == "measured" and math.isfinite(m) else None
            for c, m in zip(channels, measured.tolist(), strict=True)
        ]

    def go_to(self, measured: Floats) -> None:
        """Bring the positions to where the robot is, whatever ``hold`` says: done before the policy acts again."""
        for i, (channel, value) in enumerate(zip(self._channels, measured.tolist(), strict=True)):
            if channel.is_position and math.isfinite(value):
                self._goal[i] = self._inside(channel, value)

    @property
    def arrived(self) -> bool:
        """Whether every position channel rests (at its goal, if it has one)."""
        return all(
            not c.is_position or (self._velocity[i] == 0.0 and self._goal[i] in (None, float(self._command[i])))
            for i, c in enumerate(self._channels)
        )

    def step(self, dt_s: float) -> Floats:
        """Return the next command, ``dt_s`` after the one before."""
        command = self._command.copy()
        for i, channel in enumerate(self._channels):
            now = float(command[i])
            if channel.is_position:
                command[i], self._velocity[i] = self._position(channel, now, self._velocity[i], self._goal[i], dt_s)
            elif channel.hold == "zero_velocity":
                command[i] = _toward(now, 0.0, min(channel.max_decel, channel.limits.rate) * dt_s)
        self._command = command
        return command

    @staticmethod
    def _inside(channel: Channel, value: float) -> float:
        return min(max(value, channel.limits.low), channel.limits.high)

    @classmethod
    def _position(
        cls, channel: Channel, now: float, velocity: float, goal: float | None, dt_s: float
    ) -> tuple[float, float]:
        """Return the next position and its velocity."""
        slower = channel.max_decel * dt_s
        if goal is None:
            velocity = _toward(velocity, 0.0, slower)
        else:
            way = goal - now
            if dt_s <= 0.0 or (abs(way) < 1e-9 and abs(velocity) <= slower):
                return (now, velocity) if dt_s <= 0.0 else (goal, 0.0)
            # The speed v from which steps of max_decel a end at the goal: v^2 / 2a + v dt / 2 = |way|; the last step is whole.
            speed = math.sqrt((slower / 2.0) ** 2 + 2.0 * channel.max_decel * abs(way)) - slower / 2.0
            velocity = _toward(velocity, math.copysign(min(speed, abs(way) / dt_s), way), slower)
        velocity = min(max(velocity, -channel.limits.rate), channel.limits.rate)
        return cls._inside(channel, now + velocity * dt_s), velocity
