# SPDX-License-Identifier: Apache-2.0
"""The one clock of the server: a stage of 24 hours is tested in milliseconds because nothing else says what time it is."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What every wait, retry and window of the server uses."""

    def now(self) -> float:
        """Return the wall-clock time [s since 1970 UTC]."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the wall-clock time [s since 1970 UTC]."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that moves when it is told to; for simulations and tests."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self._now_s = now_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return the simulated time [s since 1970 UTC]."""
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        """Return once :meth:`advance` has moved the clock by ``seconds``."""
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Move the clock on, waking every sleeper at its own time."""
        end = self._now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now_s, _, waker = heapq.heappop(self._sleepers)
            if not waker.done():
                waker.set_result(None)
            await asyncio.sleep(0)  # what was woken may go to sleep again before ``end``
        self._now_s = end
