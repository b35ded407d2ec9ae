# SPDX-License-Identifier: Apache-2.0
"""One clock for every process of the demonstration, faster than the machine's: an hour of a rollout takes seconds.

The server waits, and stamps what it stores, by an injected clock; this is another one. ``vla-fleet serve`` has no such option.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

_VARIABLE = "VLA_SIM_FLEET_CLOCK"
_SHORTEST_S = 0.1


@dataclass(frozen=True)
class FastClock:
    """Runs ``rate`` times as fast as the machine's clock, and agreed with it at ``origin_s`` [s since 1970 UTC]."""

    origin_s: float
    rate: float

    def now(self) -> float:
        """Return the time [s since 1970 UTC]."""
        return self.origin_s + (time.time() - self.origin_s) * self.rate

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock; a loop that looks around each second does so ten times in a real one."""
        await asyncio.sleep(max(seconds / self.rate, _SHORTEST_S))

    def wall(self, time_s: float) -> float:
        """Return what the machine's clock shows when this one shows ``time_s``."""
        return self.origin_s + (time_s - self.origin_s) / self.rate

    def environment(self) -> dict[str, str]:
        """Return what makes :meth:`inherited` of another process this clock."""
        return {_VARIABLE: f"{self.origin_s!r} {self.rate!r}"}

    @staticmethod
    def inherited() -> FastClock:
        """Return the clock that the process was started with."""
        origin_s, rate = os.environ[_VARIABLE].split()
        return FastClock(float(origin_s), float(rate))
