# SPDX-License-Identifier: Apache-2.0
"""What takes long to find out is found out once for everybody who looks, and a tenth of the time at most goes into it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_REST = 10.0
"""So many times as long as it took to find something out, it is not looked up again."""
_REMEMBERED = 256


class Shared:
    """Answers that several people get. Unlike the server's clock, which tests move, the time that is spent is the machine's."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, key: Any, find: Callable[[], Awaitable[_T]], *, at_least_s: float = 0.0) -> _T:
        """Return what ``find`` returned lately, or call it.

        Args:
            key: of the question.
            find: answers it; what it raises, everybody gets who waits for it, and nobody later.
            at_least_s: so long an answer is good.
        """
        until_s, answer = self._known.get(key, (0.0, None))
        if answer is None or (answer.done() and time.monotonic() >= until_s):
            if len(self._known) >= _REMEMBERED:
                self._known = {k: known for k, known in self._known.items() if not known[1].done()}
            answer = asyncio.ensure_future(self._find(key, find, at_least_s))
            self._known[key] = 0.0, answer
        return cast(_T, await asyncio.shield(answer))

    async def _find(self, key: Any, find: Callable[[], Awaitable[_T]], at_least_s: float) -> _T:
        began_s = time.monotonic()
        answer = asyncio.current_task()
        try:
            found = await find()
        except BaseException:
            if self._mine(key, answer):
                del self._known[key]
            raise
        now_s = time.monotonic()
        if answer is not None and self._mine(key, answer):
            self._known[key] = now_s + max(at_least_s, _REST * (now_s - began_s)), answer
        return found

    def _mine(self, key: Any, answer: asyncio.Future[Any] | None) -> bool:
        return key in self._known and self._known[key][1] is answer

    def forget(self, key: Any) -> None:
        """Find it out again next time: somebody has just changed it."""
        self._known.pop(key, None)
