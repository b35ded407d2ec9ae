# SPDX-License-Identifier: Apache-2.0
"""The last seconds of a robot in memory, bounded in time and in bytes."""

from __future__ import annotations

import dataclasses
from collections import deque

from vla_recorder.records import Record


class Ring:
    """Keeps the newest records; the oldest go first. Not thread-safe.

    Age is by the caller's monotonic clock, so that a wall clock that is set does not empty the ring.

    Args:
        seconds: longest age [s].
        max_bytes: most memory [bytes].
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._window_ns, self._max_bytes = int(seconds * 1e9), max_bytes
        self._records: deque[tuple[int, Record]] = deque()
        self._latched: dict[str, Record] = {}  # topic -> the last one that fell out of the window
        self.bytes = 0
        """Memory that the records take [bytes]."""

    def add(self, record: Record, now_ns: int) -> None:
        """Take in a record. ``now_ns``: monotonic time, never smaller than at the call before."""
        self._records.append((now_ns, record))
        self.bytes += record.size
        while self._records and (now_ns - self._records[0][0] > self._window_ns or self.bytes > self._max_bytes):
            _, old = self._records.popleft()
            self.bytes -= old.size
            if old.topic.latched:
                before = self._latched.pop(old.topic.name, None)
                self.bytes += old.size - (before.size if before else 0)
                self._latched[old.topic.name] = old

    def seconds(self, now_ns: int) -> float:
        """Return the age of the oldest record [s]."""
        return (now_ns - self._records[0][0]) / 1e9 if self._records else 0.0

    def records(self) -> list[Record]:
        """Return what is in the ring by the time of its reception.

        Of a latched topic whose last message is older than the window, that message comes first, as if it were received at the
        window's begin: it was true then.
        """
        found = sorted((record for _, record in self._records), key=lambda record: record.received_ns)
        if not found:
            return list(self._latched.values())
        begin_ns = found[0].received_ns
        return [*(dataclasses.replace(r, received_ns=begin_ns) for r in self._latched.values()), *found]
