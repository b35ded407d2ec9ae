# SPDX-License-Identifier: Apache-2.0
"""Limits of the contract: what is published always keeps position and velocity; a policy far outside is stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import ChannelLimits

Floats = npt.NDArray[np.float64]

OK, NAN, LIMIT = 0, 1, 2
REASONS = ("", "NAN", "LIMIT")
# Chunks are float32: a bound that is hit exactly may come out this much beyond it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Violation:
    """What broke which bound."""

    reason: str  # NAN or LIMIT
    channel: int
    value: float
    limit: float  # NaN = there is none
    message: str


class Limiter:
    """The limits of one generation: the contract's, perhaps tightened by the bundle. Arrays are ``[C]``."""

    def __init__(self, limits: Sequence[ChannelLimits], names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.low = np.array([c.low for c in limits])
        self.high = np.array([c.high for c in limits])
        self.rate = np.array([c.rate for c in limits])
        self.step = np.array([c.step for c in limits])
        tolerance = np.array([c.tolerance for c in limits])
        slack = _ROUNDING * np.maximum(1.0, np.maximum(np.abs(self.low), np.abs(self.high)))
        self._lowest, self._highest = self.low - tolerance - slack, self.high + tolerance + slack
        self._step = self.step + slack

    def judge(self, actions: Floats) -> npt.NDArray[np.uint8]:
        """Return a verdict per action of a chunk ``[H, C]``: OK, NAN or LIMIT (position, or the step that leads to it)."""
        finite = np.isfinite(actions).all(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            inside = ((actions >= self._lowest) & (actions <= self._highest)).all(axis=1)
            inside[1:] &= (np.abs(np.diff(actions, axis=0)) <= self._step).all(axis=1)
        return np.where(finite, np.where(inside, OK, LIMIT), NAN).astype(np.uint8)

    def takes_s(self, actions: Floats, verdicts: npt.NDArray[np.uint8]) -> list[float]:
        """Return how long each action of a chunk ``[H, C]`` takes from the one before it at the largest velocity [s].

        Infinity: it can be commanded only within limits, if at all, or there is none before it.
        """
        inside = ((actions >= self.low) & (actions <= self.high)).all(axis=1) & (verdicts == OK)
        takes_s = np.full(len(actions), math.inf)
        takes_s[1:] = (np.abs(np.diff(actions, axis=0)) / self.rate).max(axis=1)
        found: list[float] = np.where(inside, takes_s, math.inf).tolist()
        return found

    def too_far(self, target: Floats, last: Floats) -> bool:
        """Whether the policy's stream jumps by more than ``step`` from one tick to the next."""
        return bool((np.abs(target - last) > self._step).any())

    def used(self, jumps: Floats) -> Floats:
        """Return the part of the accepted step that each jump ``[..., C]`` uses, by its worst channel; > 1 = :meth:`too_far`."""
        part: Floats = (np.abs(jumps) / self._step).max(axis=-1)
        return part

    def explain(self, action: Floats, last: Floats | None) -> Violation:
        """Say which channel of a refused action broke which bound (the first that did)."""
        for i, value in enumerate(action.tolist()):
            name = self.names[i]
            if not np.isfinite(value):
                return Violation("NAN", i, value, math.nan, f"{name} is not finite")
            if not self._lowest[i] <= value <= self._highest[i]:
                bound = float(self.low[i] if value < self._lowest[i] else self.high[i])
                return Violation("LIMIT", i, value, bound, f"{name} = {value:.6g}, its limit is {bound:.6g}")
        if last is not None and self.too_far(action, last):
            return self.explain_jump(action, last)
        return Violation("LIMIT", 0, float(action[0]), float("nan"), "an action breaks a limit")

    def explain_jump(self, action: Floats, last: Floats) -> Violation:
        """Say which channel jumps furthest from one tick to the next, compared with its bound."""
        i = int(np.argmax(np.abs(action - last) / self._step))
        jump, step = abs(float(action[i] - last[i])), float(self.step[i])
        text = f"{self.names[i]} jumps by {jump:.6g} in one tick, at most {step:.6g} is allowed"
        return Violation("LIMIT", i, jump, step, text)

    def shorten(self, target: Floats, previous: Floats, dt_s: float) -> tuple[Floats, bool]:
        """Return the command next to ``target`` that keeps position and velocity, and whether it had to be shortened.

        ``previous`` is the last command (or the measured state); ``dt_s`` the time since, at most one period.
        """
        reach = self.rate * dt_s
        if (np.abs(target - previous) <= reach).all() and (target >= self.low).all() and (target <= self.high).all():
            return target, False
        inside = np.minimum(np.maximum(target, self.low), self.high)
        command = previous + np.minimum(np.maximum(inside - previous, -reach), reach)
        return command, bool((np.abs(command - target) > 1e-9).any())
