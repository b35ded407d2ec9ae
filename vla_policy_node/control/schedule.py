# SPDX-License-Identifier: Apache-2.0
"""Absolute deadlines: tick ``k`` is due at ``start + k * period``, whatever happened before.

A tick is *missed* when its command goes out more than one period after its deadline, or not at all. After a stall the
schedule goes on at the next deadline to come: lost ticks are counted, never made up for by a burst of commands.
"""

from __future__ import annotations


class Schedule:
    """Deadlines on the monotonic clock [ns]."""

    def __init__(self, period_ns: int, start_ns: int) -> None:
        if period_ns <= 0:
            raise ValueError("the period must be positive")
        self.period_ns = period_ns
        self.start_ns = start_ns
        self.tick = 0

    @property
    def deadline_ns(self) -> int:
        """When the current tick is due."""
        return self.start_ns + self.tick * self.period_ns

    def resync(self, now_ns: int) -> None:
        """Go on at the first deadline after ``now_ns``, without counting: nothing was due meanwhile."""
        self.tick = max(self.tick, (now_ns - self.start_ns) // self.period_ns + 1)

    def finish(self, now_ns: int) -> tuple[int, int]:
        """The current tick's command went out at ``now_ns``. Move on; return ``(lateness_ns, ticks skipped)``."""
        late = max(0, now_ns - self.deadline_ns)
        self.tick += 1
        if late <= self.period_ns:
            return late, 0
        skipped = -(-(now_ns - self.deadline_ns) // self.period_ns)  # to the first deadline not before now
        self.tick += skipped
        return late, skipped
