# SPDX-License-Identifier: Apache-2.0
"""One log line for a message that repeats, and a count. No ROS here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Repeats:
    """Logs a text, keeps quiet while the same one comes again, and then says how often it came. Thread-safe.

    Args:
        log: takes one line.
        again_s: a text that still comes after this time is logged once more, with its count [s].
        clock: seconds that only grow.
    """

    def __init__(
        self, log: Callable[[str], object], again_s: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._again_s, self._clock = log, again_s, clock
        self._lock = threading.Lock()
        self._text, self._count, self._logged_s = "", 0, 0.0

    def say(self, text: str) -> bool:
        """Log the text unless it was just logged; return whether it was."""
        with self._lock:
            now_s = self._clock()
            if text == self._text and now_s - self._logged_s < self._again_s:
                self._count += 1
                return False
            if text == self._text:
                self._count += 1
                self._tell(now_s)
            else:
                self._end(now_s)
                self._log(text)
            self._text, self._count, self._logged_s = text, 0, now_s
            return True

    def over(self) -> None:
        """The condition is over: the next text is logged even if it is the same."""
        with self._lock:
            self._end(self._clock())

    def _end(self, now_s: float) -> None:
        if self._count:
            self._tell(now_s)
        self._text, self._count = "", 0

    def _tell(self, now_s: float) -> None:
        self._log(f"{self._text} ({self._count} more times in {now_s - self._logged_s:.0f} s)")
