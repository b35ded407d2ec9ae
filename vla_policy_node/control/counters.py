# SPDX-License-Identifier: Apache-2.0
"""Counts of a loop: ticks, missed, starved, lateness. One for the life of the process, one for each span asked for."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Any

from vla_policy_node.ipc.layouts import LATENESS_BOUNDS_MS

_BOUNDS_NS = [int(ms * 1e6) for ms in LATENESS_BOUNDS_MS]
MAX_SPANS = 16


class Counters:
    """Plain counts; ``histogram`` has the bins of ``LATENESS_BOUNDS_MS`` and an open one."""

    def __init__(self) -> None:
        self.ticks = self.missed = self.starved = self.clamped = self.worst_late_ns = 0
        self.histogram = array("Q", bytes(8 * (len(_BOUNDS_NS) + 1)))

    def add(self, late_ns: int, period_ns: int, skipped: int, *, starved: bool, clamped: bool) -> None:
        """Count a tick and the ``skipped`` ones after it, which are missed by definition."""
        self.ticks += 1 + skipped
        self.missed += (late_ns > period_ns) + skipped
        self.starved += starved
        self.clamped += clamped
        if late_ns > self.worst_late_ns:
            self.worst_late_ns = late_ns
        self.histogram[bisect_right(_BOUNDS_NS, late_ns)] += 1
        if not skipped:
            return
        # A skipped tick was as late as the time that had passed since its deadline, at least.
        for k in range(1, min(skipped, 1000) + 1):
            self.histogram[bisect_right(_BOUNDS_NS, max(0, late_ns - k * period_ns))] += 1
        if skipped > 1000:
            self.histogram[-1] += skipped - 1000

    def to_json(self) -> dict[str, Any]:
        """Return the counts as an event carries them."""
        return {
            "ticks": self.ticks,
            "missed": self.missed,
            "starved": self.starved,
            "clamped": self.clamped,
            "worst_late_ms": self.worst_late_ns / 1e6,
            "histogram": list(self.histogram),
        }


class Spans:
    """Named spans that count at the same time; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Counters, int | None]] = {}

    @property
    def any_open(self) -> bool:
        """Whether anything is to be counted."""
        return bool(self._open)

    def begin(self, span_id: str) -> None:
        """Start counting. A span of that name that is open is kept."""
        if span_id not in self._open:
            while len(self._open) >= MAX_SPANS:
                del self._open[next(iter(self._open))]
            self._open[span_id] = (Counters(), None)

    def end(self, span_id: str, at_ns: int) -> None:
        """End a span at ``at_ns``."""
        if span_id in self._open:
            self._open[span_id] = (self._open[span_id][0], at_ns)

    def get(self, span_id: str) -> Counters | None:
        """Return the counts so far."""
        found = self._open.get(span_id)
        return None if found is None else found[0]

    def add(self, late_ns: int, period_ns: int, skipped: int, *, starved: bool, clamped: bool) -> None:
        """Count a tick in every open span."""
        for counters, _ in self._open.values():
            counters.add(late_ns, period_ns, skipped, starved=starved, clamped=clamped)

    def ended(self, now_ns: int) -> list[tuple[str, Counters]]:
        """Take out the spans whose end has come."""
        done = [(k, c) for k, (c, end) in self._open.items() if end is not None and now_ns >= end]
        for key, _ in done:
            del self._open[key]
        return done
