# SPDX-License-Identifier: Apache-2.0
"""Limits on how often: a token bucket for each robot, key or address."""

from __future__ import annotations

from vla_fleet.clock import Clock
from vla_fleet.errors import BusyError

_REMEMBERED = 10_000
"""So many keys are kept without looking which of them have all of their tokens again."""


class Buckets:
    """Each key may do something ``burst`` times at once, and ``rate`` times a second in the long run [1/s]."""

    def __init__(self, clock: Clock, rate: float, burst: int) -> None:
        self._clock, self._rate, self._burst = clock, rate, burst
        self._spent: dict[str, tuple[float, float]] = {}  # key → (tokens that were left, when)
        self._look_at = _REMEMBERED

    def wait_s(self, key: str) -> float:
        """Return how long ``key`` must wait for its next token [s]; 0: not at all."""
        return max(0.0, (1.0 - self._left(key)) / self._rate)

    def take(self, key: str) -> float:
        """Take a token; return 0, or how long ``key`` must wait for one [s] (then none is taken)."""
        wait_s = self.wait_s(key)
        if wait_s == 0.0:
            if len(self._spent) >= self._look_at:
                self._spent = {k: v for k, v in self._spent.items() if self._left(k) < self._burst}
                self._look_at = max(_REMEMBERED, 2 * len(self._spent))  # else every token costs a look at all keys
            self._spent[key] = self._left(key) - 1.0, self._clock.now()
        return wait_s

    def _left(self, key: str) -> float:
        left, at = self._spent.get(key, (float(self._burst), 0.0))
        return min(float(self._burst), left + max(0.0, self._clock.now() - at) * self._rate)


def refuse(what: str, wait_s: float) -> None:
    """Raise ``BusyError`` RATE_LIMITED unless ``wait_s`` is 0."""
    if wait_s > 0.0:
        raise BusyError("RATE_LIMITED", f"too many {what}; try again in {wait_s:.1f} s", wait_s)
