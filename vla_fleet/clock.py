# SPDX-License-Identifier: Apache-2.0
"""The one clock of the server: a stage of 24 hours is tested in milliseconds because nothing else says what time it is."""

from __future__ import annotations

import asyncio
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
