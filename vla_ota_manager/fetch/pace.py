# SPDX-License-Identifier: Apache-2.0
"""How fast, how slow and how often: the bandwidth cap, what counts as a stall, and the waits between attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError
from vla_ota_manager.fetch.http import Cancelled
from vla_ota_manager.fetch.source import Url


def pause(duration_s: float, cancelled: Cancelled) -> None:
    """Sleep, but not through a cancellation."""
    deadline = time.monotonic() + duration_s
    while (left := deadline - time.monotonic()) > 0:
        if cancelled():
            raise CancelledError("CANCELLED", "stopped on request")
        time.sleep(min(left, 0.1))


class Bandwidth:
    """Holds a mean rate by waiting; shared by all downloads of a manager."""

    def __init__(self, bytes_s: int) -> None:
        self._bytes_s = bytes_s
        self._free_at = time.monotonic()

    def spend(self, count: int, cancelled: Cancelled) -> None:
        """Wait until ``count`` more bytes may be taken."""
        if not self._bytes_s:
            return
        self._free_at = max(self._free_at, time.monotonic()) + count / self._bytes_s
        pause(self._free_at - time.monotonic(), cancelled)


class StallGuard:
    """Raises when too little arrives in a window of time, however regularly it trickles.

    ``lines``: so many connections share the bandwidth cap.
    """

    def __init__(self, config: OtaConfig, url: Url, lines: int = 1) -> None:
        self._config, self._url = config, url
        rate = config.bandwidth_bytes_s / lines
        self._least = (
            min(config.stall_min_bytes, int(rate * config.stall_window_s / 2)) if rate else config.stall_min_bytes
        )
        self._begun, self._count = time.monotonic(), 0

    def add(self, count: int) -> None:
        """Count bytes that arrived."""
        self._count += count
        now = time.monotonic()
        if now - self._begun < self._config.stall_window_s:
            return
        if self._count < self._least:
            what = f"{self._count} bytes in {self._config.stall_window_s:g} s, at least {self._least} expected"
            raise FetchError("STALLED", what, self._url.text, retryable=True)
        self._begun, self._count = now, 0


class Patience:
    """Exponential backoff with full jitter; progress of ``stall_min_bytes`` begins the count of failures anew.

    ``progress``: returns how far it is [bytes].
    """

    def __init__(self, config: OtaConfig, rng: random.Random, retries: int, progress: Callable[[], int]) -> None:
        self._config, self._rng, self._retries, self._progress = config, rng, retries, progress
        self._failures, self._mark = 0, progress()

    def wait_s(self, error: FetchError) -> float:
        """Return how long to wait after a failure [s]; raise it if it is no use."""
        self._begin_anew()
        if not error.retryable or self._failures >= self._retries:
            raise error
        return self.backoff_s(error)

    def backoff_s(self, error: FetchError) -> float:
        """Count a failure that ends nothing; return how long to wait after it [s]."""
        self._begin_anew()
        config = self._config
        ceiling = min(config.backoff_s * 2 ** min(self._failures, 30), config.backoff_max_s)
        self._failures += 1
        return max(self._rng.uniform(0.0, ceiling), error.retry_after_s)

    def _begin_anew(self) -> None:
        """Begin the count anew if there was progress."""
        if self._progress() - self._mark >= self._config.stall_min_bytes:
            self._failures, self._mark = 0, self._progress()
