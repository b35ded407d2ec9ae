# SPDX-License-Identifier: Apache-2.0
"""Messages between the parts of the server. A hint to look, never the truth: that is in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bus(Protocol):
    """What the server needs of a bus."""

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

    def subscribe(self, topic: str, hear: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call ``hear`` with what is published on ``topic`` while the context lasts; it must not wait or raise."""
        ...


class LocalBus:
    """A bus within this process."""

    def __init__(self) -> None:
        self.local = self
        self._listeners: defaultdict[str, set[Callable[[str], None]]] = defaultdict(set)

    async def open(self) -> None:
        """There is nothing to begin."""

    async def close(self) -> None:
        """There is nothing to end."""

    async def publish(self, topic: str, text: str = "") -> None:
        """Tell every subscriber of ``topic``."""
        for hear in tuple(self._listeners.get(topic, ())):
            hear(text)

    async def publish_everywhere(self) -> None:
        """Let every subscriber look, because messages may have been lost."""
        for topic in list(self._listeners):
            await self.publish(topic)

    @contextmanager
    def subscribe(self, topic: str, hear: Callable[[str], None]) -> Iterator[None]:
        """Call ``hear`` with what is published on ``topic`` while the context lasts; it must not wait or raise."""
        self._listeners[topic].add(hear)
        try:
            yield
        finally:
            self._listeners[topic].discard(hear)
            if not self._listeners[topic]:
                del self._listeners[topic]
