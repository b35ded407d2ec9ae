# SPDX-License-Identifier: Apache-2.0
"""A growing download is flushed in a thread of its own while more of it arrives: the disk writes as long as the network sends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

FLUSH_BYTES = 15 << 20
"""After so many bytes the next flush begins, and the one before has ended: less than 32 MiB are lost at a power loss."""


class Flusher:
    """Flushes one download. Use as a context manager, inside that of its file: it waits for a flush that is under way.

    Args:
        flush: returns when everything written before is on the disk; called in the other thread.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._pool = ThreadPoolExecutor(1, "vla_ota_flush")
        self._under_way: Future[None] | None = None
        self._unflushed = 0

    def wrote(self, count: int, note: Callable[[], None]) -> None:
        """Count bytes that were written, and now and then begin a flush.

        Args:
            count: how many [bytes].
            note: writes down what was there at this moment; called behind the flush, in the other thread.

        Raises:
            StoreError: the flush before failed, or its note.
        """
        self._unflushed += count
        if self._unflushed < FLUSH_BYTES:
            return
        self._unflushed = 0
        if self._under_way is not None:
            self._under_way.result()
        self._under_way = self._pool.submit(self._work, note)

    def finish(self, note: Callable[[], None]) -> None:
        """Return when all that was written is flushed and noted. Raises as :meth:`wrote`."""
        if self._under_way is not None:
            self._under_way.result()
        self._work(note)

    def _work(self, note: Callable[[], None]) -> None:
        self._flush()
        note()

    def __enter__(self) -> Flusher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
