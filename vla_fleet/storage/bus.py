# SPDX-License-Identifier: Apache-2.0
"""Messages between the parts of the server. A hint to look, never the truth: that is in the database."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class Bus(Protocol):
    """What the server needs of a bus. A subscriber that falls behind gets the newest messages, not all."""

    local: LocalBus
    """The part within this process."""

    async def open(self) -> None:
        """Begin; BUS_UNREACHABLE if that is impossible."""
        ...

    async def close(self) -> None:
        """End."""
        ...

    async def publish(self, topic: str, text: str = "") -> None:
        """Tell every subscriber of ``topic``."""
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[asyncio.Queue[str]]:
        """Give a queue of what is published on ``topic`` while the context lasts."""
        ...


class LocalBus:
    """A bus within this process."""

    def __init__(self) -> None:
        self.local = self
        self._queues: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)

    async def open(self) -> None:
        """There is nothing to begin."""

    async def close(self) -> None:
        """There is nothing to end."""

    async def publish(self, topic: str, text: str = "") -> None:
        """Tell every subscriber of ``topic``."""
        for queue in self._queues.get(topic, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(text)

    async def publish_everywhere(self) -> None:
        """Let every subscriber look, because messages may have been lost."""
        for topic in list(self._queues):
            await self.publish(topic)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[asyncio.Queue[str]]:
        """Give a queue of what is published on ``topic`` while the context lasts."""
        queue: asyncio.Queue[str] = asyncio.Queue(64)
        self._queues[topic].add(queue)
        try:
            yield queue
        finally:
            self._queues[topic].discard(queue)
            if not self._queues[topic]:
                del self._queues[topic]
